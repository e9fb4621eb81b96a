"""A confirm counts only for the queue that must receive the message: the queue is missing while others are bound."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from bellhop.amqp.connection import Connection
from bellhop.amqp.errors import Unroutable
from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.outcomes import State
from bellhop.contracts.reactions import QUEUE, TYPE, MailerStarted
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.system import expiry
from tests.services.gateway_support import RunningGateway, envelope_headers, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost

SCORE = {"board": "chess", "player": "ada", "score": 1}
NOTE = {"channels": ["news"], "title": "Hello"}


@pytest.fixture
async def gateway(vhost: Vhost, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(
        vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db", live_types="order.paid=orders"
    ) as running:
        yield running


async def bind_foreign(vhost: Vhost, exchange: str = "events", key: str = "#") -> None:
    """Bind a queue of somebody else's."""
    channel = await vhost.channel()
    queue = await channel.declare_queue("theirs", durable=True)
    await queue.bind(exchange, key)
    await channel.close()


async def announce(gateway: RunningGateway, *types: str) -> None:
    """Announce what a mailer reacts to, as it does when it starts; return when the gateway knows."""
    body = MailerStarted(reacts_to=list(types)).model_dump_json().encode()
    await gateway.vhost.publish("work", QUEUE, body, headers=envelope_headers(TYPE))

    async def known() -> bool:
        found: list[str] = (await gateway.admin.get("/v1/system")).json()["reacts_to"]
        return found == sorted(types)

    await wait_until(known, 10, "the announcement is taken")


async def waiting(gateway: RunningGateway) -> int:
    count: int = (await gateway.admin.get("/v1/system")).json()["outbox"]["waiting"]
    return count


async def shows(gateway: RunningGateway, name: str, value: int) -> None:
    """Wait until `/v1/system` shows a number, which may be of some moments ago."""

    async def shown() -> bool:
        return bool((await gateway.admin.get("/v1/system")).json()[name] == value)

    await wait_until(shown, 10, f"{name} is {value}")


async def post_score(gateway: RunningGateway) -> int:
    return (await gateway.admin.post("/v1/scores", json=SCORE)).status_code


async def post_keyed_score(gateway: RunningGateway) -> int:
    return (await gateway.admin.post("/v1/scores", json=SCORE, headers={"Idempotency-Key": "k"})).status_code


async def post_note(gateway: RunningGateway) -> int:
    return (await gateway.admin.post("/v1/notifications", json=NOTE)).status_code


async def post_order(gateway: RunningGateway, type_: str = "order.placed", id: str = "e-1") -> int:
    event = {"specversion": "1.0", "id": id, "source": "/shop", "type": type_, "data": {"total": 12}}
    answer = await gateway.admin.post(
        "/v1/events", content=orjson.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
    )
    return answer.status_code


async def post_live(gateway: RunningGateway) -> int:
    return await post_order(gateway, "order.paid")


Post = Callable[[RunningGateway], Awaitable[int]]
CASES: list[tuple[Post, str, str]] = [
    (post_score, "work", "leaderboard.scores"),
    (post_keyed_score, "work", "leaderboard.scores"),
    (post_note, "notifications", "notifier.log"),
    (post_live, "notifications", "notifier.log"),
    (post_order, "work", "mailer.reactions"),
]


@pytest.mark.parametrize("missing", ["queue", "binding"])
@pytest.mark.parametrize(
    ("post", "exchange", "queue"), CASES, ids=["scores", "keyed-scores", "notifications", "live-types", "reactions"]
)
async def test_what_its_queue_cannot_take_waits_in_the_outbox(
    gateway: RunningGateway, post: Post, exchange: str, queue: str, missing: str
) -> None:
    """Although another queue gets every event; and once the queue is back, it and the other one have it once."""
    vhost = gateway.vhost
    await bind_foreign(vhost)
    await announce(gateway, "order.placed")
    await _take_away(vhost, exchange, queue, missing)

    assert await post(gateway) == 202
    await wait_until(lambda: waiting(gateway), 10, "it waits in the outbox")
    assert await vhost.depth("unrouted") == 0

    await vhost.apply_topology()
    await wait_until(lambda: _depth_is(vhost, queue, 1), 20, "the queue has it")
    await wait_until(lambda: _is_empty(gateway), 10, "the outbox is empty")
    assert await vhost.depth(queue) == 1
    assert await vhost.depth("theirs") == 1
    await shows(gateway, "unrouted", 0)


async def _depth_is(vhost: Vhost, queue: str, count: int) -> bool:
    return await vhost.depth(queue) == count


async def _is_empty(gateway: RunningGateway) -> bool:
    return await waiting(gateway) == 0


async def _take_away(vhost: Vhost, exchange: str, queue: str, missing: str) -> None:
    if missing == "queue":
        gone = await vhost.management.delete(f"/api/queues/{vhost.name}/{queue}")
    else:
        key = queue if exchange == "work" else "~"
        gone = await vhost.management.delete(f"/api/bindings/{vhost.name}/e/{exchange}/q/{queue}/{key}")
    assert gone.is_success, gone.text


@pytest.mark.parametrize("missing", ["queue", "binding"])
@pytest.mark.parametrize("lane", ["urgent", "normal", "bulk"])
async def test_an_outcome_is_not_confirmed_without_its_queue(vhost: Vhost, lane: str, missing: str) -> None:
    """Of any lane: the mailer holds the delivery until the ledger can have it."""
    if missing == "queue":
        await vhost.management.delete(f"/api/queues/{vhost.name}/gateway.outcomes")
    else:
        await vhost.management.delete(f"/api/bindings/{vhost.name}/e/outcomes/q/gateway.outcomes/%23")
    connection = Connection(vhost.amqp_url, "bellhop/tests/1/publish")
    publisher = Publisher(connection)
    await connection.start()
    await wait_until(lambda: publisher.failure is None, 10, "the publisher is ready")
    with pytest.raises(Unroutable):
        await publisher.publish("outcomes", f"mail.{lane}.sent", Message(b"{}", Envelope("mail.sent", "tests")))
    await connection.close()


async def test_a_missing_stream_does_not_stop_outcomes(gateway: RunningGateway) -> None:
    """They are applied; what browsers missed is counted."""
    await gateway.vhost.management.delete(f"/api/queues/{gateway.vhost.name}/notifier.log")
    task = (await gateway.admin.post("/v1/mail", json=mail())).json()["id"]
    await gateway.report(task, State.SENT, owner="admin")

    async def sent() -> bool:
        return await gateway.state(task) == "sent"

    await wait_until(sent, 10, "the outcome is applied")
    await wait_until(lambda: _depth_is(gateway.vhost, "gateway.outcomes", 0), 10, "the outcome is settled")
    assert "bellhop_gateway_not_shown_total" in (await gateway.admin.get("/metrics")).text


async def test_outcomes_of_single_mails_reach_the_stream(gateway: RunningGateway) -> None:
    """Once the ledger has them; those of bulk mail do not."""
    task = (await gateway.admin.post("/v1/mail", json=mail())).json()["id"]
    await gateway.report(task, State.SENT, owner="admin", lane="bulk")
    await gateway.report(task, State.SENT, owner="admin", lane="normal")
    await wait_until(lambda: _depth_is(gateway.vhost, "notifier.log", 1), 10, "the stream has one")
    assert await gateway.state(task) == "sent"


async def test_an_event_that_nobody_needs_is_kept_listed_and_replayed(gateway: RunningGateway) -> None:
    """Apart from dead letters; a replay goes to the queue that is bound by then."""
    assert await post_order(gateway) == 202
    await shows(gateway, "unrouted", 1)
    await shows(gateway, "dead_letters", 0)
    assert (await gateway.admin.get("/v1/dead-letters")).json()["dead_letters"] == []
    (kept,) = (await gateway.admin.get("/v1/dead-letters?queue=unrouted")).json()["dead_letters"]
    assert (kept["reason"], kept["type"], kept["event_id"]) == ("unrouted", "order.placed", "e-1")

    await bind_foreign(gateway.vhost, key="order.*")
    assert (await gateway.admin.post(f"/v1/dead-letters/{kept['id']}/replay")).json() == {"replayed": 1}
    message = await wait_until(lambda: gateway.vhost.get("theirs"), 10, "the replayed event")
    assert orjson.loads(message.body) == {"total": 12}
    assert message.headers["cloudEvents:id"] == "e-1"
    await shows(gateway, "unrouted", 0)


async def test_events_before_a_template_was_known_are_replayed_to_the_mailer(gateway: RunningGateway) -> None:
    """By their type; others stay."""
    assert await post_order(gateway) == 202
    assert await post_order(gateway, "order.cancelled", "e-2") == 202

    await shows(gateway, "unrouted", 2)
    await announce(gateway, "order.placed")
    wish = {"queue": "unrouted", "type": "order.placed"}
    assert (await gateway.admin.post("/v1/dead-letters/replay", json=wish)).json() == {"replayed": 1}
    message = await wait_until(lambda: gateway.vhost.get("mailer.reactions"), 10, "the mailer's event")
    assert message.headers["cloudEvents:id"] == "e-1"
    await shows(gateway, "unrouted", 1)


async def test_a_replay_that_still_reaches_nobody_is_kept_again(gateway: RunningGateway) -> None:
    """It is not lost with the replay; and it can be deleted."""
    assert await post_order(gateway) == 202
    first = await wait_until(lambda: _kept(gateway), 10, "the event is kept")
    answer = await gateway.admin.post("/v1/dead-letters/replay", json={"queue": "unrouted"})
    assert answer.json() == {"replayed": 1}

    async def again() -> list[str]:
        return [one for one in await _kept(gateway) if one not in first]

    (kept,) = await wait_until(again, 10, "it is kept again")
    assert (await gateway.admin.delete(f"/v1/dead-letters/{kept}")).status_code == 204
    assert await _kept(gateway) == []


async def _kept(gateway: RunningGateway) -> list[str]:
    found = (await gateway.admin.get("/v1/dead-letters?queue=unrouted")).json()["dead_letters"]
    return [letter["id"] for letter in found]


async def test_events_are_kept_up_to_a_limit_and_an_age(database_url: str) -> None:
    """The oldest go first, and none stays for ever; dead letters are left alone."""
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    store = DeadLetters(database, unrouted_limit=3)

    def delivery(number: int) -> Delivery:
        envelope = Envelope(type="order.placed", source="/shop", id=f"e-{number}")
        return Delivery(b"{}", envelope, 1, {}, "unrouted", "unrouted", "order.placed", redelivered=False)

    async with database.write() as connection:
        await store.add(connection, [delivery(100)])
    for number in range(12):
        async with database.write() as connection:
            await store.add_unrouted(connection, [delivery(number)])
            await store.add_unrouted(connection, [delivery(number)])  # a redelivery
    assert 3 <= len(await _ids(store, "unrouted")) <= 5
    async with database.write() as connection:
        assert await expiry.delete_unrouted(connection, now_ms() - 60_000, 100) == 0
        assert await expiry.delete_unrouted(connection, now_ms() + 60_000, 100) >= 3
    assert (await _ids(store, "unrouted"), await _ids(store, None)) == ([], ["e-100"])
    await database.close()


async def _ids(store: DeadLetters, queue: str | None) -> list[str]:
    return [letter.event_id for letter in await store.page(queue=queue, before=None, waiting=True, limit=100)]


async def test_a_row_of_an_earlier_version_is_routed_by_its_type(gateway: RunningGateway, tmp_path: Path) -> None:
    """It was addressed to `events`, where the queue that needs it is no longer bound."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
    message = Message(b'{"scores": []}', Envelope(type="score.submitted", source="bellhop/gateway"))
    async with database.write() as connection:
        await outbox.add(connection, [Entry("events", "score.submitted", message)])
    await database.close()
    await wait_until(lambda: _depth_is(gateway.vhost, "leaderboard.scores", 1), 10, "the scores are on their queue")


async def test_the_announcement_survives_a_restart(vhost: Vhost, database_url: str) -> None:
    """It is a row: a gateway that starts while no mailer runs routes by it."""
    async with running_gateway(vhost, database_url) as gateway:
        await announce(gateway, "order.placed")
    async with running_gateway(vhost, database_url) as gateway:
        assert await post_order(gateway) == 202
        assert await vhost.depth("mailer.reactions") == 1


async def test_types_without_a_queue_share_a_destination_in_the_outbox(gateway: RunningGateway, tmp_path: Path) -> None:
    """Clients choose types, so many of them must not keep the sweep from the destinations of other messages."""
    channel = await gateway.vhost.channel()
    await channel.queue_delete("unrouted")
    events = [{"specversion": "1.0", "id": f"e-{n}", "source": "/shop", "type": f"shop.type{n}"} for n in range(20)]
    batch = {"Content-Type": "application/cloudevents-batch+json"}
    for more in ({}, {"Idempotency-Key": "k1"}):
        answer = await gateway.admin.post("/v1/events", content=orjson.dumps(events), headers=batch | more)
        assert answer.status_code == 202
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
    async with database.read() as connection:
        first = await outbox.next_destination(connection, None)
        assert first == ("events", "*")
        assert await outbox.next_destination(connection, first) is None
    await database.close()
