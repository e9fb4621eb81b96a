"""`python -m services.sms`."""

from bellhop.service import run

from .app import SERVICE
from .settings import SmsSettings

run("sms", SmsSettings, SERVICE.create_app)
