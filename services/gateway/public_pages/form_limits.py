"""Limits of the mails that the public form may send: to one mailbox, to one domain, and in total.

Strangers can submit the form, from any number of networks. Counts are rows, so they hold for all replicas together and
across restarts. A window begins with the first sign-up in it.
"""

import hashlib
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.addresses import domain_of, mailbox_of
from bellhop.sql.database import Database, clock_ms
from services.gateway.tables import form_limits

HOUR_MS = 3_600_000
MAILBOX_WINDOW_MS = 24 * HOUR_MS
MAILS_TO_A_MAILBOX = 9
"""In a day, for all lists and all spellings of the address together."""


class SignUpDecision(Enum):
    """Whether a sign-up may be followed by a mail."""

    ALLOWED = "allowed"
    MAILBOX_FULL = "mailbox full"
    """This mailbox has reached its limit for today."""
    FORM_BUSY = "form busy"
    """There were too many sign-ups at this domain, or in total, in this hour."""


class FormLimits:
    """Counts sign-ups at the public form."""

    def __init__(self, database: Database, *, domain_per_hour: int, per_hour: int) -> None:
        self._database = database
        self._domain_per_hour = domain_per_hour
        self._per_hour = per_hour

    async def count_sign_up(self, email: str) -> SignUpDecision:
        """Count one sign-up and return the decision. Three upserts in one commit."""
        # No address is stored: the table must not reveal people who never subscribed.
        mailbox = hashlib.sha256(mailbox_of(email).encode()).hexdigest()
        async with self._database.write() as connection:
            # In the same order everywhere, to avoid deadlocks.
            form = await self._count(connection, "form", HOUR_MS)
            domain = await self._count(connection, f"domain:{domain_of(email)}", HOUR_MS)
            mailbox_count = await self._count(connection, f"mailbox:{mailbox}", MAILBOX_WINDOW_MS)
        if form > self._per_hour or domain > self._domain_per_hour:
            return SignUpDecision.FORM_BUSY
        return SignUpDecision.MAILBOX_FULL if mailbox_count > MAILS_TO_A_MAILBOX else SignUpDecision.ALLOWED

    async def _count(self, connection: AsyncConnection, name: str, window_ms: int) -> int:
        current = await clock_ms(connection)
        insert = self._database.insert(form_limits).values(name=name, count=1, ends_at=current + window_ms)
        over = form_limits.c.ends_at <= current
        # The upper bound: if the clock was set back, a window must still end.
        over |= form_limits.c.ends_at > current + window_ms
        values = {
            "count": sa.case((over, 1), else_=form_limits.c.count + 1),
            "ends_at": sa.case((over, insert.excluded.ends_at), else_=form_limits.c.ends_at),
        }
        query = insert.on_conflict_do_update(index_elements=["name"], set_=values).returning(form_limits.c.count)
        return int((await connection.execute(query)).scalar_one())
