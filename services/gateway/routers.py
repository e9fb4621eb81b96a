"""The routes of the gateway: one folder for each noun."""

from services.gateway.attachments import routes as attachments
from services.gateway.broadcasts import routes as broadcasts
from services.gateway.console import routes as console
from services.gateway.dead_letters import routes as dead_letters
from services.gateway.events import routes as events
from services.gateway.keys import routes as keys
from services.gateway.leaderboards import routes as leaderboards
from services.gateway.mail import routes as mail
from services.gateway.public_pages import routes as public
from services.gateway.stream_tokens import routes as streams
from services.gateway.subscribers import routes as subscribers
from services.gateway.system import routes as system
from services.gateway.tasks import routes as tasks
from services.gateway.templates import routes as templates

ROUTERS = (
    mail.router,
    attachments.router,
    templates.router,
    tasks.router,
    events.published,
    events.router,
    streams.router,
    leaderboards.router,
    subscribers.router,
    broadcasts.router,
    public.router,
    dead_letters.router,
    keys.router,
    system.router,
    console.router,
)
