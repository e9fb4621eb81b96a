"""`python -m services.notifier`."""

from bellhop.service import run
from services.notifier.app import build
from services.notifier.settings import NotifierSettings

run("notifier", NotifierSettings, build)
