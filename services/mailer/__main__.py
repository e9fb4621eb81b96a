"""`python -m services.mailer`."""

from bellhop.service import run
from services.mailer.app import build
from services.mailer.settings import MailerSettings

run("mailer", MailerSettings, build)
