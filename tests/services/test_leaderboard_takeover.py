"""A replica that is cut from its database gives up counting, and the other one goes on."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from bellhop.amqp.handling import retry
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT
from bellhop.contracts.scores import ACCEPTED_AT
from services.leaderboard import standings
from services.leaderboard.scores import Scores
from tests.faults.proxy import proxy_to
from tests.services.test_leaderboard_service import Service, mark, publisher, scores, submit
from tests.support import Vhost, wait_until

__all__ = ["publisher"]

PATIENCE_SECONDS = 60


async def total(service: Service) -> float:
    """Return what the only player has at a replica."""
    response = await service.http.get("/v1/leaderboards/b/players/ann")
    return response.json()["score"] if response.status_code == 200 else 0.0


async def shows(service: Service, expected: float) -> None:
    async def look() -> bool:
        return await total(service) == expected

    await wait_until(look, PATIENCE_SECONDS, f"the replica shows {expected}")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_standby_counts_when_the_active_replica_is_cut_from_its_database(vhost, publisher, database_url):
    """Packets vanish without an error. Every score counts once, and the cut replica says what it shows and lacks."""
    url = make_url(database_url)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_to(url.port or 5432))
        cut = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        active = await stack.enter_async_context(Service(vhost.amqp_url, cut))
        await active.shown("", "the first replica is ready")
        assert (await active.http.put("/v1/leaderboards/b", json={"operator": "sum"})).status_code == 201
        await submit(publisher, scores(("ann", 1)))
        await mark(publisher, "2026-11-21T09:00:00Z")
        await shows(active, 1)

        async def marked() -> bool:
            return (await active.get("/b"))["as_of"] == "2026-11-21T09:00:00Z"

        await wait_until(marked)
        standby = await stack.enter_async_context(Service(vhost.amqp_url, database_url))
        await shows(standby, 1)
        proxy.passing.clear()
        for _ in range(20):
            await submit(publisher, scores(("ann", 1)))
        await mark(publisher, "2026-11-21T10:00:00Z")
        await shows(standby, 21)

        async def told() -> Any:
            checks = (await active.http.get("/readyz")).json()["checks"]
            return checks["database"] != "ok"

        await wait_until(told, PATIENCE_SECONDS, "the cut replica says that it is")
        assert (await active.get("/b"))["as_of"] == "2026-11-21T09:00:00Z"
        proxy.passing.set()
        await submit(publisher, scores(("ann", 1)))
        await shows(active, 22)
        await shows(standby, 22)


async def test_a_batch_is_given_back_and_applied_once_the_database_answers(vhost, publisher, tmp_path, monkeypatch):
    """The only replica takes the queue up again by itself; nothing is lost, doubled or dead-lettered."""
    from bellhop.sql.database import DatabaseUnavailable

    monkeypatch.setattr("bellhop.amqp.batches.PAUSE_SECONDS", 0.1)
    async with Service(vhost.amqp_url, f"sqlite+aiosqlite:///{tmp_path}/l.db") as service:
        await service.shown("", "the service is ready")
        await service.http.put("/v1/leaderboards/b", json={"operator": "sum"})
        store = service.app.state.leaderboard.standings._store
        failures = 0
        write, check = store.save_results, store.check_writable

        async def fail(*_: object) -> None:
            nonlocal failures
            failures += 1
            raise DatabaseUnavailable("the database does not answer")

        monkeypatch.setattr(store, "save_results", fail)
        await submit(publisher, scores(("ann", 1)))
        await wait_until(lambda: failures >= 2, description="the batch was given back and came again")
        monkeypatch.setattr(store, "save_results", write)
        assert store.check_writable == check
        await submit(publisher, scores(("ann", 1)))
        await shows(service, 2)
        assert await vhost.get("dead-letters") is None


@pytest.mark.parametrize("attempt", [1, DEFAULT.attempts], ids=["retried", "dead letter"])
async def test_as_of_waits_for_scores_on_the_retry_ladder(
    vhost: Vhost, database_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """At every replica, until they are counted; not for those that became a dead letter."""
    fails, works = True, standings.compute_updates

    async def failing(store: Any, cache: Any, loader: Any, connection: Any, found: Scores, new: Any) -> Any:
        if fails and "ann" in found.players:
            raise LookupError("a defect")
        return await works(store, cache, loader, connection, found, new)

    monkeypatch.setattr(standings, "compute_updates", failing)
    monkeypatch.setattr(retry, "expiration_ms", lambda _: 2000)
    accepted = {ACCEPTED_AT: "2026-11-21T08:00:00+00:00"}
    async with Service(vhost.amqp_url, database_url) as one, Service(vhost.amqp_url, database_url) as other:
        await submit(publisher, scores(("ann", 5)), attempt=attempt, headers=accepted)
        await mark(publisher, "2026-11-21T09:00:00Z")
        await submit(publisher, scores(("bob", 5), board="later"))
        for replica in (one, other):
            await replica.shown("/later")

            async def as_of(replica: Service = replica) -> Any:  # a refresh shows boards a moment before their `as_of`
                return (await replica.get(""))["as_of"]

            shown = await wait_until(as_of, PATIENCE_SECONDS, "the replica knows its as_of")
            assert shown == ("2026-11-21T08:00:00Z" if attempt == 1 else "2026-11-21T09:00:00Z")
        if attempt > 1:
            return
        fails = False
        await one.shown("/b")
        await mark(publisher, "2026-11-21T10:00:00Z")

        async def passed() -> bool:
            return (await other.get(""))["as_of"] == "2026-11-21T10:00:00Z"

        await wait_until(passed, PATIENCE_SECONDS, "as_of passes the score that is counted")
