"""Run the notifier: `python -m services.notifier`."""

from bellhop.observe.logs import configure_logging
from bellhop.web.server import serve
from services.notifier.app import build
from services.notifier.settings import NotifierSettings

if __name__ == "__main__":
    settings = NotifierSettings.load()
    configure_logging("notifier", settings)
    serve(build(settings), settings)
