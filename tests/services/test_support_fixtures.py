"""The shared fixtures are what they say."""

import asyncio
import smtplib

import aio_pika
import asyncpg
import pytest
import sqlalchemy as sa

from bellhop.sql.database import Database
from tests.support import Broker, SmtpServer, Vhost, wait_until
from tests.support.databases import postgresql_database
from tests.support.ports import first_of_clients, lasting_ports


async def test_a_bare_vhost_is_a_working_broker(bare_vhost: Vhost) -> None:
    """A message published to a queue is counted and can be taken."""
    channel = await bare_vhost.channel()
    await channel.declare_queue("q", durable=True)
    await bare_vhost.publish("", "q", b"hello")
    assert await bare_vhost.depth("q") == 1
    message = await bare_vhost.get("q")
    assert message is not None
    assert message.body == b"hello"
    assert await bare_vhost.get("q") is None


async def test_the_broker_has_no_guest(broker: Broker) -> None:
    """Nobody knows a password from a manual."""
    async with broker.management() as management:
        users = (await management.get("/api/users")).json()
    assert "guest" not in [user["name"] for user in users]


async def test_an_empty_database_has_no_table(empty_database_url: str) -> None:
    """A test of migrations begins with nothing."""
    assert await tables(empty_database_url) == set()


async def test_a_database_has_the_tables_of_all_services(database_url: str) -> None:
    """No test waits for migrations."""
    assert {"tasks", "mailer_inbox", "boards"} <= await tables(database_url)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_database_is_fresh_and_writable(database_url: str, number: int) -> None:
    """A table of one name can be made twice, since each test has its own database."""
    database = Database(database_url)
    async with database.write() as connection:
        await connection.execute(sa.text("CREATE TABLE t (x INTEGER)"))
    await database.close()


@pytest.mark.parametrize("empty", [True, False])
async def test_texts_are_ordered_as_in_production(postgresql: str, empty: bool) -> None:
    """Not by their bytes, which would put every capital first."""
    async with postgresql_database(postgresql, empty=empty) as url:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        ordered = await connection.fetch("SELECT * FROM (VALUES ('a'), ('B'), ('c')) AS t (x) ORDER BY x")
        await connection.close()
    assert [row["x"] for row in ordered] == ["a", "B", "c"]


async def tables(url: str) -> set[str]:
    database = Database(url)
    try:
        async with database.read() as connection:
            return set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))
    finally:
        await database.close()


async def test_the_smtp_server_takes_mail_and_answers_as_told(smtp_server: SmtpServer) -> None:
    """It keeps what it accepted, and says what the test told it to say."""
    smtp_server.recipient_replies["bob@example.com"] = ["550 5.1.1 no such user"]

    def send() -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP(smtp_server.host, smtp_server.port) as client:
            return client.sendmail("a@example.com", ["ada@example.com", "bob@example.com"], b"Subject: x\r\n\r\nhi\r\n")

    refused = await asyncio.to_thread(send)
    assert refused == {"bob@example.com": (550, b"5.1.1 no such user")}
    assert [mail.recipients for mail in smtp_server.mails] == [["ada@example.com"]]
    assert smtp_server.mails[0].message["Subject"] == "x"


async def test_close_connections_closes_others_and_says_how_many(vhost: Vhost) -> None:
    """The witness stays."""
    connection = await aio_pika.connect(vhost.amqp_url)
    ended = asyncio.Event()
    connection.close_callbacks.add(lambda *_: ended.set())
    closed = await wait_until(vhost.close_connections, 20, "the management API lists the connection")
    assert closed == 1
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_vhost_has_the_topology(vhost: Vhost) -> None:
    """An event that a service reacts to lies in that service's queue."""
    await vhost.publish("work", "leaderboard.scores", b"{}")
    await wait_until(lambda: vhost.depth("leaderboard.scores"), 5, "the event is in the queue")


def test_a_server_that_is_down_keeps_its_port() -> None:
    """The kernel gives ports of its own range to any client, so a broker that a test killed might not start again."""
    ports = lasting_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < first_of_clients()
