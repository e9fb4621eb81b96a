"""What the gateway deletes, and when: one table for all of it.

A round deletes a batch for each rule, and further batches for up to a second where there are more rows. So a backlog
of millions is deleted while requests are served, and no transaction is long. Deleted rows leave free space in the file
of SQLite and in the tables of PostgreSQL, which later rows use; neither returns it to the disk by itself.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.observe.logs import get_logger
from bellhop.sql.database import BACKGROUND_SECONDS, Database
from services.gateway import metrics
from services.gateway.outbox.store import now_ms
from services.gateway.settings import Settings
from services.gateway.system import expiry

ROUND_SECONDS = 600.0
NEXT_SECONDS = 0.5
"""The pause before the next round if this one could not delete everything."""
RULE_SECONDS = 1.0
"""How long one rule may take in one round."""
ROWS = 1000
WIDE_ROWS = 20
"""A batch of rows that may have megabytes."""

KEPT = {
    "outbox": "a message is deleted when the broker has confirmed it",
    "withdrawals": "an address is deleted when the tasks that waited for it were checked twice",
    "reaction_types": "a type is deleted when no mailer has announced it for an hour, while mailers announced others",
    "board_names": "one row for each leaderboard, until it is deleted",
    "subscribers": "a person stays until they are deleted, or their last unconfirmed subscription is",
    "attachment_usage": "one row for each key with attachments",
}
"""Tables without a rule that deletes by age."""

DAY_MS = 86_400_000

log = get_logger(__name__)

DeleteBatch = Callable[[AsyncConnection, int, int], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """Which rows are deleted, and how long they are kept."""

    what: str
    tables: tuple[str, ...]
    keep_ms: int
    """Since the time that `delete_batch` compares; 0 where each row has its own end."""
    delete_batch: DeleteBatch
    rows: int = ROWS
    loss: bool = False
    """The rows were waiting for a decision: log a warning."""


def rules(settings: Settings) -> list[RetentionRule]:
    """Return the rules of all tables."""

    def days(number: float) -> int:
        return round(number * DAY_MS)

    keys = round(settings.idempotency_hours * 3_600_000)
    letters, all_broadcasts = ("dead_letters",), ("broadcasts",)
    one = settings
    return [
        RetentionRule("tasks", ("tasks", "attempts"), days(one.tasks_days), expiry.delete_tasks),
        RetentionRule("idempotency keys", ("idempotency_keys",), keys, expiry.delete_idempotency_keys),
        RetentionRule(
            "replayed bodies", letters, days(one.dead_letter_body_days), expiry.erase_replayed_dead_letters, WIDE_ROWS
        ),
        RetentionRule(
            "dead letters",
            letters,
            days(one.dead_letter_days),
            expiry.delete_waiting_dead_letters,
            WIDE_ROWS,
            loss=True,
        ),
        RetentionRule("dead letter records", letters, days(one.dead_letter_record_days), expiry.delete_dead_letters),
        RetentionRule("unrouted events", letters, days(one.unrouted_days), expiry.delete_unrouted),
        RetentionRule("audit entries", ("audit",), days(one.audit_days), expiry.delete_audit),
        RetentionRule("contents", all_broadcasts, days(one.broadcast_content_days), expiry.erase_contents, WIDE_ROWS),
        RetentionRule("broadcasts", all_broadcasts, days(one.broadcast_days), expiry.delete_broadcasts),
        RetentionRule("attachments", ("attachments",), 0, expiry.delete_attachments, WIDE_ROWS),
        RetentionRule("unconfirmed", ("subscriptions",), days(one.confirm_days), expiry.delete_unconfirmed),
        RetentionRule("suppressions", ("suppressions",), 0, expiry.delete_suppressions),
        RetentionRule("form limits", ("form_limits",), 0, expiry.delete_form_limits),
        RetentionRule("revoked keys", ("api_keys",), days(one.revoked_key_days), expiry.delete_revoked_keys),
    ]


class Retention:
    """Deletes rows past their retention."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._rules = rules(settings)
        for rule in self._rules:
            metrics.EXPIRED.labels(rule.what)  # from the start with 0, so that Prometheus sees the first increase

    async def round(self) -> float | None:
        """Delete a batch for each rule; return the seconds until the next round if there is more to delete."""
        more = [rule.what for rule in self._rules if await self._apply(rule)]
        return NEXT_SECONDS if more else None

    async def _apply(self, rule: RetentionRule) -> bool:
        """Delete for up to a second; return whether there may be more."""
        began, count, full = monotonic(), 0, True
        while full and (count == 0 or monotonic() - began < RULE_SECONDS):
            async with self._database.write(BACKGROUND_SECONDS) as connection:
                deleted = await rule.delete_batch(connection, now_ms() - rule.keep_ms, rule.rows)
            count += deleted
            full = deleted >= rule.rows
        if count:
            metrics.EXPIRED.labels(rule.what).inc(count)
            write_log = log.warning if rule.loss else log.info
            write_log("deleted what is past its retention", what=rule.what, count=count)
        return full
