"""The public form cannot be used to fill a mailbox, whatever spellings and networks it is filled in from."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.outbox.store import now_ms
from services.gateway.public_pages.form_limits import MAILBOX_WINDOW_MS, MAILS_TO_A_MAILBOX, FormLimits, SignUpDecision
from services.gateway.system import expiry
from services.gateway.tables import form_limits


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.gateway")
    opened = Database(database_url)
    yield opened
    await opened.close()


async def test_a_mailbox_gets_nine_mails_a_day_from_all_replicas(database: Database, database_url: str) -> None:
    """Every `+tag` is the same mailbox; two gateways that count at once do not count one sign-up for two."""
    other = Database(database_url)
    limits = [FormLimits(each, domain_per_hour=100, per_hour=100) for each in (database, other)]
    decisions = await asyncio.gather(*(limits[n % 2].count_sign_up(f"Target+{n}@Example.com") for n in range(22)))
    await other.close()

    assert Counter(decisions) == {
        SignUpDecision.ALLOWED: MAILS_TO_A_MAILBOX,
        SignUpDecision.MAILBOX_FULL: 22 - MAILS_TO_A_MAILBOX,
    }
    assert await limits[0].count_sign_up("other@example.com") is SignUpDecision.ALLOWED


@pytest.mark.parametrize("bounds", [{"domain_per_hour": 3, "per_hour": 100}, {"domain_per_hour": 100, "per_hour": 3}])
async def test_a_domain_and_the_form_have_bounds(database: Database, bounds: dict[str, int]) -> None:
    """Many mailboxes at one domain are one target, too."""
    limits = FormLimits(database, **bounds)

    decisions = [await limits.count_sign_up(f"reader-{n}@example.com") for n in range(4)]

    assert decisions == [SignUpDecision.ALLOWED] * 3 + [SignUpDecision.FORM_BUSY]


async def test_a_window_ends(database: Database) -> None:
    """The next sign-up begins another one; a row whose window is over is deleted, and no address stands in any."""
    limits = FormLimits(database, domain_per_hour=1, per_hour=100)
    await limits.count_sign_up("ada@example.com")
    assert await limits.count_sign_up("bob@example.com") is SignUpDecision.FORM_BUSY
    async with database.write() as connection:
        names = (await connection.execute(sa.select(form_limits.c.name))).scalars().all()
        await connection.execute(sa.update(form_limits).values(ends_at=now_ms() - 1))

    assert await limits.count_sign_up("ada@example.com") is SignUpDecision.ALLOWED
    async with database.write() as connection:
        assert await expiry.delete_form_limits(connection, now_ms() + 2 * MAILBOX_WINDOW_MS, 100) == 4
    assert not any("ada" in name or "bob" in name for name in names)
