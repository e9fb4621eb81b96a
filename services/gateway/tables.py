"""The gateway's tables. Times are whole milliseconds since 1970 (UTC): the same on every database, and cheap."""

import sqlalchemy as sa

metadata = sa.MetaData()


def _ordered(length: int) -> sa.String:
    """Return the type of a text by which lists are ordered: by its bytes, as in SQLite, in any locale."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("recipient", _ordered(320), nullable=False),
    sa.Column("address", _ordered(320)),  # of the recipient, in its canonical spelling
    sa.Column("template", sa.String(128)),
    sa.Column("event_id", sa.String(255)),
    sa.Column("event_source", sa.String(1024)),
    sa.Column("event_type", sa.String(255)),
    sa.Column("event_time", sa.BigInteger),
    sa.Column("broadcast_id", sa.String(36)),
    sa.Column("document", sa.LargeBinary),
    sa.Column("uncertain", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("send_at", sa.BigInteger),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("republished_at", sa.BigInteger),
    sa.Column("cancel_requested_at", sa.BigInteger),
    # Both begin with the state, also for lists without one: see `tasks/pages.py`.
    sa.Index("tasks_by_state", "state", "created_at", "id"),
    sa.Index("tasks_by_owner", "owner", "state", "created_at", "id"),
)

# These are partial, so that a mail that is just accepted does not pay for them.
_OF_EVENT = tasks.c.event_id.is_not(None)
sa.Index(
    "tasks_by_event",
    tasks.c.event_id,
    tasks.c.created_at,
    tasks.c.id,
    sqlite_where=_OF_EVENT,
    postgresql_where=_OF_EVENT,
)
_FINISHED = tasks.c.finished_at.is_not(None)
sa.Index("tasks_by_finish", tasks.c.finished_at, sqlite_where=_FINISHED, postgresql_where=_FINISHED)
_OPEN = tasks.c.finished_at.is_(None)
sa.Index("tasks_open_by_address", tasks.c.address, sqlite_where=_OPEN, postgresql_where=_OPEN)
# The first one makes sure that no recipient gets two mails, even if the dispatcher has a bug.
_OF_BROADCAST = tasks.c.broadcast_id.is_not(None)
sa.Index(
    "tasks_by_recipient",
    tasks.c.broadcast_id,
    tasks.c.recipient,
    unique=True,
    sqlite_where=_OF_BROADCAST,
    postgresql_where=_OF_BROADCAST,
)
sa.Index(
    "tasks_by_broadcast",
    tasks.c.broadcast_id,
    tasks.c.state,
    tasks.c.recipient,
    sqlite_where=_OF_BROADCAST,
    postgresql_where=_OF_BROADCAST,
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("task_id", sa.String(36), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("code", sa.Integer),
    sa.Column("enhanced", sa.String(16)),
    sa.Column("reply", sa.Text),
    sa.Column("relay", sa.String(255)),
    sa.Column("retry_at", sa.BigInteger),
    sa.Column("uncertain", sa.Boolean, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    # In SQLite this is the row's own number, which only grows while there are rows.
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("task_id", sa.String(36)),
    sa.Column("exchange", sa.String(255), nullable=False),
    sa.Column("routing_key", sa.String(255), nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("claimed_until", sa.BigInteger, nullable=False),
    sa.Column("retry_at", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("refusals", sa.Integer, nullable=False, server_default="0"),
    sa.Column("maybe_delivered", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("outbox_by_id", "id", unique=True),
    sa.Index("outbox_by_destination", "exchange", "routing_key", "due_at", "sequence"),
    sa.Index("outbox_by_task", "task_id"),
)

board_names = sa.Table(
    "board_names",
    metadata,
    sa.Column("board", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("board_names_by_owner", "owner", "created_at"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("id", sa.String(36), nullable=False, server_default=""),
    sa.Column("status", sa.Integer, nullable=False, server_default="202"),
    sa.Column("location", sa.Text),
    sa.Column("leased_until", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("idempotency_keys_by_age", "created_at"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("identity", sa.String(36), nullable=False, unique=True),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("event_id", sa.String(1024), nullable=False),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("died_at", sa.BigInteger, nullable=False),
    sa.Column("replayed_at", sa.BigInteger),
    sa.Column("deleted_at", sa.BigInteger),
    sa.Column("erased_at", sa.BigInteger),
    sa.Index("dead_letters_by_queue", "queue", "id"),
)
_WAITING = dead_letters.c.replayed_at.is_(None) & dead_letters.c.deleted_at.is_(None)
sa.Index("dead_letters_waiting", dead_letters.c.id, sqlite_where=_WAITING, postgresql_where=_WAITING)
# Events of types that no queue is bound to are in the same table; a list of dead letters does not scan them.
_FAILED = dead_letters.c.queue != "unrouted"
sa.Index("dead_letters_failed", dead_letters.c.id, sqlite_where=_FAILED, postgresql_where=_FAILED)
sa.Index(
    "dead_letters_failed_waiting",
    dead_letters.c.id,
    sqlite_where=_FAILED & _WAITING,
    postgresql_where=_FAILED & _WAITING,
)
sa.Index(
    "dead_letters_waiting_by_queue",
    dead_letters.c.queue,
    dead_letters.c.id,
    sqlite_where=_WAITING,
    postgresql_where=_WAITING,
)
_REPLAYED = dead_letters.c.replayed_at.is_not(None) & dead_letters.c.erased_at.is_(None)
sa.Index("dead_letters_replayed", dead_letters.c.replayed_at, sqlite_where=_REPLAYED, postgresql_where=_REPLAYED)

reaction_types = sa.Table(
    "reaction_types",
    metadata,
    sa.Column("type", sa.String(128), primary_key=True),
    sa.Column("announced_at", sa.BigInteger, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("detail", sa.Text),
)

subscribers = sa.Table(
    "subscribers",
    metadata,
    sa.Column("email", _ordered(320), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("attributes", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("subscribers_by_id", "id", unique=True),
)

subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("list", sa.String(64), primary_key=True),
    sa.Column("email", _ordered(320), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("asked_at", sa.BigInteger),
    sa.Column("confirmed_at", sa.BigInteger),
    sa.Column("unsubscribed_at", sa.BigInteger),
    sa.Index("subscriptions_by_state", "list", "state", "email"),
    sa.Index("subscriptions_by_email", "email"),
    sa.Index("subscriptions_by_any_state", "state", "email"),
)
_PENDING = subscriptions.c.state == "pending"
sa.Index("subscriptions_pending", subscriptions.c.asked_at, sqlite_where=_PENDING, postgresql_where=_PENDING)

form_limits = sa.Table(
    "form_limits",
    metadata,
    sa.Column("name", sa.String(320), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("ends_at", sa.BigInteger, nullable=False),
    sa.Index("form_limits_by_end", "ends_at"),
)

suppressions = sa.Table(
    "suppressions",
    metadata,
    sa.Column("address", _ordered(320), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Index("suppressions_by_source", "source", "address"),
)
_ENDS = suppressions.c.expires_at.is_not(None)
sa.Index("suppressions_by_end", suppressions.c.expires_at, sqlite_where=_ENDS, postgresql_where=_ENDS)

withdrawals = sa.Table(
    "withdrawals",
    metadata,
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
    sa.Column("address", sa.String(320), nullable=False),
    sa.Column("list", sa.String(64)),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("looks", sa.Integer, nullable=False),
    sa.Index("withdrawals_by_due", "due_at"),
)

broadcasts = sa.Table(
    "broadcasts",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("list", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("subject", sa.Text),
    sa.Column("template", sa.String(128)),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("fed", sa.BigInteger, key="dispatched", nullable=False),
    sa.Column("fed_after", sa.String(320), key="dispatch_cursor", nullable=False),
    sa.Column("fed_all", sa.Boolean, key="all_dispatched", nullable=False),
    sa.Column("retry_after", sa.String(320)),
    sa.Column("cancel_after", sa.String(320), nullable=False),
    sa.Column("counts", sa.LargeBinary),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("send_at", sa.BigInteger),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("erased_at", sa.BigInteger),
    sa.Index("broadcasts_by_owner", "owner", "id"),
)
_UNFINISHED = broadcasts.c.finished_at.is_(None)
sa.Index("broadcasts_unfinished", broadcasts.c.id, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)
_WITH_CONTENT = broadcasts.c.finished_at.is_not(None) & broadcasts.c.erased_at.is_(None)
sa.Index(
    "broadcasts_with_content",
    broadcasts.c.finished_at,
    sqlite_where=_WITH_CONTENT,
    postgresql_where=_WITH_CONTENT,
)
