"""The inbox, on both databases: who may send what."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.tasks import heartbeats
from bellhop.tasks import inbox as module
from bellhop.tasks.claims import Claim, ClaimDecision, InboxState, Result
from bellhop.tasks.inbox import Inbox
from services.mailer.tables import INBOX

KEY = ("task-1", 1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.mailer")
    database = Database(database_url)
    yield database
    await database.close()


async def replica(database: Database, name: str) -> Inbox:
    inbox = Inbox(database, INBOX, name)
    await inbox.beat()
    return inbox


class Watch:
    """The monotonic time of all inboxes, to be set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: self.seconds))


async def test_a_new_task_may_be_sent(database: Database) -> None:
    """Nothing went before."""
    inbox = await replica(database, "a")
    assert await inbox.claim(KEY, 1) == Claim(ClaimDecision.RUN)


async def test_many_claims_share_a_transaction(database: Database) -> None:
    """New ones, old ones and cancelled ones side by side each get their own answer."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.FINISHED, 1, outcome="{}"))
    await inbox.cancel(("cancelled", 1))
    keys = [(f"new-{n}", 1) for n in range(300)]
    claims = await asyncio.gather(*(inbox.claim(key, 1) for key in [*keys, KEY, ("cancelled", 1), ("task-1", 2)]))
    assert [claim.decision for claim in claims] == [ClaimDecision.RUN] * 300 + [
        ClaimDecision.FINISHED,
        ClaimDecision.FINISHED,
        ClaimDecision.RUN,
    ]


async def test_what_is_done_is_over(database: Database) -> None:
    """With what was reported about it, for every attempt that comes late."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.FINISHED, 1, uncertain=True, outcome='{"state":"sent"}'))
    for attempt in (1, 2):
        assert await inbox.claim(KEY, attempt) == Claim(ClaimDecision.FINISHED, True, 1, '{"state":"sent"}')


async def test_the_next_attempt_may_be_made_and_the_last_one_not_again(database: Database) -> None:
    """A redelivery of an attempt that failed is no further attempt."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.RETRY_PENDING, 1, uncertain=True, outcome="{}"))
    assert await inbox.claim(KEY, 1) == Claim(ClaimDecision.ALREADY_ATTEMPTED, True, 1, "{}")
    assert await inbox.claim(KEY, 2) == Claim(ClaimDecision.RUN, True, 1, "{}")


async def test_what_another_living_replica_sends_is_held(database: Database) -> None:
    """Two never send the same mail at once."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.IN_PROGRESS)


async def test_what_a_dead_replica_claimed_is_sent_again_and_said_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier copy may have gone out (RFC 1047)."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    monkeypatch.setattr(heartbeats, "LEASE_SECONDS", 0.0)
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.RUN, uncertain=True, attempt=1)


async def test_a_clock_that_is_wrong_kills_no_replica(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of a replica nor the database's, whichever way it is wrong and however far."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    now, clock = time.time, database.clock
    for seconds in (600, -600, 3 * 86_400):
        with monkeypatch.context() as wrong:
            wrong.setattr(time, "time", lambda skew=seconds: now() + skew)
            assert await other.claim(KEY, 1) == Claim(ClaimDecision.IN_PROGRESS)
        with monkeypatch.context() as wrong:
            wrong.setattr(Database, "clock", property(lambda _, skew=seconds: clock + skew))
            await other.delete_old(days=30)
            assert await other.claim(KEY, 1) == Claim(ClaimDecision.IN_PROGRESS)


async def test_a_dead_replica_is_noticed_whatever_its_clock_said(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat from the future does not keep it alive; its row goes after a day."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    async with database.write() as connection:
        await connection.execute(sa.update(INBOX.replicas).values(seen_at=INBOX.replicas.c.seen_at + 3600))
    watch = Watch(monkeypatch)
    await other.beat()
    for _ in range(3):
        assert (await other.claim(KEY, 1)).decision is ClaimDecision.IN_PROGRESS
        watch.seconds += heartbeats.LEASE_SECONDS * 0.4
        await other.beat()
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.RUN, uncertain=True, attempt=1)


async def test_a_hang_of_the_database_makes_nobody_look_dead(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No heartbeat arrived while it hung, so afterwards everybody has a whole lease for the next one."""
    watch = Watch(monkeypatch)
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    watch.seconds += 40
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.IN_PROGRESS)
    await one.beat()
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.IN_PROGRESS)


async def test_who_says_goodbye_holds_nothing(database: Database) -> None:
    """After an orderly end nobody waits for heartbeats."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    await one.close()
    assert (await other.claim(KEY, 1)).decision is ClaimDecision.RUN


async def test_a_late_result_of_the_presumed_dead_counts_only_if_final(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure must not take the claim from whoever sends now; a success ends the task."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    with monkeypatch.context() as patch:
        patch.setattr(heartbeats, "LEASE_SECONDS", 0.0)
        await other.claim(KEY, 1)
    await one.record(Result(KEY, InboxState.RETRY_PENDING, 1))
    assert (await one.claim(KEY, 2)).decision is ClaimDecision.IN_PROGRESS
    await one.record(Result(KEY, InboxState.FINISHED, 1, outcome="{}"))
    assert (await other.claim(KEY, 1)).decision is ClaimDecision.FINISHED


async def test_a_task_is_cancelled_before_it_begins(database: Database) -> None:
    """And stays so."""
    inbox = await replica(database, "a")
    assert await inbox.cancel(KEY) == Claim(ClaimDecision.FINISHED)
    assert await inbox.cancel(KEY) == Claim(ClaimDecision.FINISHED)
    assert await inbox.claim(KEY, 1) == Claim(ClaimDecision.FINISHED)


async def test_a_task_is_cancelled_between_two_attempts(database: Database) -> None:
    """Its attempts keep their number."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.RETRY_PENDING, 1, outcome="{}"))
    assert await inbox.cancel(KEY) == Claim(ClaimDecision.FINISHED, attempt=1)
    assert await inbox.claim(KEY, 2) == Claim(ClaimDecision.FINISHED, attempt=1)


async def test_a_cancel_during_an_attempt_is_stored(database: Database) -> None:
    """A failed attempt ends the task, so no later attempt is made."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    assert (await inbox.cancel(KEY)).decision is ClaimDecision.IN_PROGRESS
    assert await inbox.record(Result(KEY, InboxState.RETRY_PENDING, 1, outcome="{}")) is InboxState.CANCELLED
    assert await inbox.claim(KEY, 2) == Claim(ClaimDecision.FINISHED, attempt=1)


async def test_a_cancel_during_an_attempt_that_succeeds_changes_nothing(database: Database) -> None:
    """The mail is out."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.cancel(KEY)
    assert await inbox.record(Result(KEY, InboxState.FINISHED, 1, outcome="{}")) is InboxState.FINISHED
    assert await inbox.claim(KEY, 1) == Claim(ClaimDecision.FINISHED, attempt=1, outcome="{}")


async def test_a_cancel_during_an_attempt_survives_the_crash_of_its_replica(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The redelivery is not sent; whether the earlier copy went out is unknown."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    await other.cancel(KEY)
    monkeypatch.setattr(heartbeats, "LEASE_SECONDS", 0.0)
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.FINISHED, uncertain=True, attempt=1)
    assert await one.claim(KEY, 1) == Claim(ClaimDecision.FINISHED, uncertain=True, attempt=1)


async def test_a_cancel_of_a_task_that_is_done_returns_its_outcome(database: Database) -> None:
    """So that it can be reported once more."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.FINISHED, 1, outcome="{}"))
    assert await inbox.cancel(KEY) == Claim(ClaimDecision.FINISHED, attempt=1, outcome="{}")


async def test_a_cancel_and_a_failed_attempt_at_two_replicas_end_cancelled(database: Database) -> None:
    """Whichever of the two is committed first."""
    one, other = await replica(database, "a"), await replica(database, "b")
    keys = [(f"task-{n}", 1) for n in range(100)]
    await asyncio.gather(*(one.claim(key, 1) for key in keys))
    await asyncio.gather(
        *(one.record(Result(key, InboxState.RETRY_PENDING, 1)) for key in keys),
        *(other.cancel(key) for key in reversed(keys)),
    )
    assert {(await one.claim(key, 2)).decision for key in keys} == {ClaimDecision.FINISHED}


async def test_two_replicas_claim_crosswise_without_deadlock(database: Database) -> None:
    """Each task goes to one of them."""
    one, other = await replica(database, "a"), await replica(database, "b")
    keys = [(f"task-{n}", 1) for n in range(100)]
    claims = await asyncio.gather(
        *(one.claim(key, 1) for key in keys), *(other.claim(key, 1) for key in reversed(keys))
    )
    decisions = [claim.decision for claim in claims]
    assert (decisions.count(ClaimDecision.RUN), decisions.count(ClaimDecision.IN_PROGRESS)) == (100, 100)


async def test_old_tasks_are_forgotten(database: Database) -> None:
    """By their age, whatever became of them."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    await inbox.record(Result(KEY, InboxState.FINISHED, 1))
    assert await inbox.delete_old(days=1) == 0
    assert await inbox.delete_old(days=0) == 1
    assert (await inbox.claim(KEY, 1)).decision is ClaimDecision.RUN


async def test_a_large_inbox_is_forgotten_in_bites(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction is short; what is younger stays."""
    monkeypatch.setattr(module, "DELETED_PER_TRANSACTION", 10)
    monkeypatch.setattr(module, "DELETE_PAUSE_SECONDS", 0)
    inbox = await replica(database, "a")
    for number in range(35):
        await inbox.claim((f"old-{number}", 1), 1)
    async with database.write() as connection:
        await connection.execute(sa.update(INBOX.tasks).values(created_at=INBOX.tasks.c.created_at - 2 * 86_400))
    for number in range(5):
        await inbox.claim((f"new-{number}", 1), 1)
    bites = []
    delete_some = inbox._delete_some

    async def bite(days: float) -> int:
        bites.append(await delete_some(days))
        return bites[-1]

    monkeypatch.setattr(inbox, "_delete_some", bite)

    assert await inbox.delete_old(days=1) == 35

    assert bites == [10, 10, 10, 5, 0]
    async with database.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(INBOX.tasks))).scalar_one() == 5


async def test_freshness_ends_with_the_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica knows when others take it for dead."""
    inbox = Inbox(database, INBOX, "a")
    assert not inbox.fresh
    await inbox.beat()
    assert inbox.fresh
    monkeypatch.setattr(heartbeats, "LEASE_SECONDS", 0.0)
    assert not inbox.fresh


async def test_a_result_that_came_late_ends_the_claim(database: Database) -> None:
    """The next heartbeat of a living replica writes it; until then others hold the task."""
    one, other = await replica(database, "a"), await replica(database, "b")
    await one.claim(KEY, 1)
    one.record_late(Result(KEY, InboxState.FINISHED, 1, outcome="{}"))
    assert (await other.claim(KEY, 1)).decision is ClaimDecision.IN_PROGRESS
    await one.beat()
    assert await other.claim(KEY, 1) == Claim(ClaimDecision.FINISHED, attempt=1, outcome="{}")


async def test_a_result_that_came_late_is_known_to_the_next_claim(database: Database) -> None:
    """The message may come again before the next heartbeat."""
    inbox = await replica(database, "a")
    await inbox.claim(KEY, 1)
    inbox.record_late(Result(KEY, InboxState.FINISHED, 1, outcome="{}"))
    assert await inbox.claim(KEY, 1) == Claim(ClaimDecision.FINISHED, attempt=1, outcome="{}")
