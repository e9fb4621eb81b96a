"""What a gateway says of the scores that it accepted, on SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import orjson
import pytest

from bellhop.amqp.errors import BrokerUnavailable
from bellhop.amqp.message import Message
from bellhop.contracts.base import new_id, now
from bellhop.contracts.envelope import Envelope
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.web.peer import Peer
from services.gateway.leaderboards.marks import Marks
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry


class Published:
    """Takes messages in place of a broker."""

    def __init__(self) -> None:
        self.times: list[datetime] = []
        self.away = False

    async def publish(self, exchange: str, routing_key: str, message: Message) -> None:
        if self.away:
            raise BrokerUnavailable("no connection")
        assert (exchange, routing_key, message.envelope.type) == ("work", "leaderboard.scores", "scores.mark")
        self.times.append(datetime.fromisoformat(orjson.loads(message.body)["until"]))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    yield database
    await database.close()


def marks(database: Database, published: Published, status: int = 200) -> Marks:
    """Return what publishes marks; the leaderboard answers `status`."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(status)))
    leaderboard = Peer("leaderboard", "http://leaderboard", "k" * 40, http, subject="gateway")
    return Marks(database, published, leaderboard)  # type: ignore[arg-type]


def waiting(exchange: str = "work", routing_key: str = "leaderboard.scores", due_at: int = 0) -> Entry:
    return Entry(exchange, routing_key, Message(b"{}", Envelope(type="score.submitted", source="t")), due_at=due_at)


async def test_a_mark_says_now_while_no_scores_wait(database):
    """Other messages, and replays that are due later, may wait."""
    published = Published()
    async with database.write() as connection:
        await outbox.add(connection, [waiting(routing_key="mail.normal"), waiting(due_at=2**40)])
    before = now()
    await marks(database, published).publish()
    assert before <= published.times[0] <= now()


@pytest.mark.parametrize(("exchange", "key"), [("work", "leaderboard.scores"), ("events", "score.submitted")])
async def test_a_mark_does_not_pass_scores_in_the_outbox(database, exchange, key):
    """Whichever gateway they wait at: the outbox is shared."""
    published = Published()
    before = now() - timedelta(milliseconds=1)  # ids hold milliseconds
    first, second = waiting(exchange, key), waiting(exchange, key)
    async with database.write() as connection:
        await outbox.add(connection, [first], claimed=True)
        await outbox.add(connection, [second])
    after = now()
    await marks(database, published).publish()
    assert before <= published.times[0] <= after


async def test_a_mark_does_not_pass_what_is_left_of_a_score(database):
    """Its copy was confirmed and the leaderboard's queue refused it, minutes after it was accepted."""
    published = Published()
    event = replace(waiting("events", "score.submitted"), id=new_id_at(now() - timedelta(minutes=5)))
    later = waiting()
    async with database.write() as connection:
        await outbox.add(connection, [event, later])
        left = replace(event, id=new_id(), exchange="work", routing_key="leaderboard.scores")
        await outbox.replace(connection, [[(event, (left,))]])
    await marks(database, published).publish()
    assert published.times[0] < now() - timedelta(minutes=4)


def new_id_at(at: datetime) -> str:
    """Return an id as `new_id` made it at this time."""
    digits = f"{round(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}{new_id()[13:]}"


async def test_without_a_leaderboard_no_mark_is_published(database):
    """They would pile up in its queue."""
    published = Published()
    await marks(database, published, status=503).publish()
    assert published.times == []


async def test_without_a_broker_nothing_happens(database):
    """`as_of` stands still, and the next mark may succeed."""
    published = Published()
    published.away = True
    one = marks(database, published)
    await one.publish()
    published.away = False
    await one.publish()
    assert len(published.times) == 1
    assert published.times[0].tzinfo == UTC
