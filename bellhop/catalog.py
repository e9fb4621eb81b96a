"""The table of services. `bellhop up`, the secrets, the permissions at RabbitMQ and the tests derive from it.

Files that cannot import it (compose.yaml, deploy/) are compared with it by tests/unit/test_catalog.py.
"""

from dataclasses import dataclass, field

from bellhop.contracts.kinds import MAIL
from bellhop.contracts.reactions import QUEUE as ANNOUNCEMENTS


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One service."""

    name: str
    """Name of the service, its package in `services`, its RabbitMQ user, its PostgreSQL role and database, its host."""
    port: int
    """Default port for HTTP; BELLHOP_PORT sets another one."""
    publishes: tuple[str, ...] = ()
    """Exchanges. A service that consumes a work queue may also publish to the retry exchanges and to `dead`."""
    events: dict[str, str] = field(default_factory=dict)
    """Type of events -> the queue of this service that the gateway publishes them to."""
    consumes: tuple[str, ...] = ()
    """Queues and streams beside those of `events`."""
    tables: bool = True
    """Whether it has a database."""
    secrets: tuple[str, ...] = ()
    """Settings that are made for it, beside the URLs of RabbitMQ and of its database: see `Secrets.of_service`."""
    tags: str = ""
    """Of its user at RabbitMQ (https://www.rabbitmq.com/docs/management#permissions)."""
    public: bool = False
    """Whether the front of the composed system publishes its port."""

    @property
    def queues(self) -> tuple[str, ...]:
        """Return all queues and streams that it consumes."""
        return (*self.consumes, *dict.fromkeys(self.events.values()))


SERVICES = (
    CatalogEntry(
        "gateway", 8000,
        publishes=("events", "notifications", "work", "unrouted"),
        consumes=("gateway.outcomes", ANNOUNCEMENTS, "dead-letters", "unrouted"),
        secrets=("token_key", "admin_key", "link_keys", "management_url"), tags="monitoring", public=True,
    ),
    CatalogEntry(
        "mailer", 8003,
        publishes=("work", "outcomes"),
        consumes=(*MAIL.work_queues, "mailer.reactions"),
        secrets=("service_key",),
    ),
    CatalogEntry("notifier", 8001, consumes=("notifier.log",), tables=False, secrets=("token_key",), public=True),
    CatalogEntry(
        "leaderboard", 8002,
        publishes=("notifications",), events={"score.submitted": "leaderboard.scores"},
        secrets=("token_key",), public=True,
    ),
)  # fmt: skip

NAMES = tuple(one.name for one in SERVICES)
WITH_TABLES = tuple(one.name for one in SERVICES if one.tables)
PORTS = {one.name: one.port for one in SERVICES}
EVENT_QUEUES = {type_: queue for one in SERVICES for type_, queue in one.events.items()}
