"""Every service, in one table. `bellhop up`, the secrets, the rights at RabbitMQ and the tests derive from it.

Files that cannot import it (compose.yaml, deploy/) are compared with it by tests/unit/test_catalog.py.
"""

from dataclasses import dataclass, field

from bellhop.contracts.kinds import MAIL
from bellhop.contracts.reactions import QUEUE as ANNOUNCEMENTS


@dataclass(frozen=True, slots=True)
class Entry:
    """One service."""

    name: str
    """Also of its package in `services`, its user at RabbitMQ, its role and database at PostgreSQL, and its host."""
    port: int
    """Of its HTTP face, unless BELLHOP_PORT says another."""
    publishes: tuple[str, ...] = ()
    """Exchanges. Whoever consumes a work queue may publish to the retry ladder and to `dead` as well."""
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
    Entry(
        "gateway", 8000,
        publishes=("events", "notifications", "work", "unrouted"),
        consumes=("gateway.outcomes", ANNOUNCEMENTS, "dead-letters", "unrouted"),
        secrets=("token_key", "admin_key", "link_keys", "management_url"), tags="monitoring", public=True,
    ),
    Entry(
        "mailer", 8003,
        publishes=("work", "outcomes"),
        consumes=(*MAIL.work_queues, "mailer.reactions"),
        secrets=("service_key",),
    ),
    Entry("notifier", 8001, consumes=("notifier.log",), tables=False, secrets=("token_key",), public=True),
    Entry(
        "leaderboard", 8002,
        publishes=("notifications",), events={"score.submitted": "leaderboard.scores"},
        secrets=("token_key",), public=True,
    ),
)  # fmt: skip

NAMES = tuple(one.name for one in SERVICES)
WITH_TABLES = tuple(one.name for one in SERVICES if one.tables)
PORTS = {one.name: one.port for one in SERVICES}
EVENT_QUEUES = {type_: queue for one in SERVICES for type_, queue in one.events.items()}
