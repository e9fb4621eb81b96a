"""The development mailbox takes mail and shows it, safely and within bounds."""

import asyncio
import os
import smtplib
import sys
from collections.abc import AsyncIterator
from email.message import EmailMessage

import httpx
import pytest

from bellhop.local.mailbox import Mailbox, create_app
from bellhop.local.processes import ends_with_us
from tests.support import wait_until
from tests.support.ports import lasting_ports


def mail(subject: str = "Hello", html: str | None = None) -> bytes:
    """Return a mail as it goes over the wire."""
    message = EmailMessage()
    message["From"] = "Bellhop <hello@bellhop.example>"
    message["To"] = "Ada <ada@example.com>"
    message["Subject"] = subject
    message["Message-ID"] = "<one@bellhop.example>"
    message.set_content("Grüße")
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message.as_bytes()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def client(mailbox: Mailbox) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(mailbox))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_a_mail_sent_by_smtp_can_be_read_by_http() -> None:
    """The whole way, through both real ports."""
    smtp_port, http_port = lasting_ports(2)
    environment = {
        **os.environ,
        "BELLHOP_MAILBOX_SMTP_PORT": str(smtp_port),
        "BELLHOP_MAILBOX_HTTP_PORT": str(http_port),
    }
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bellhop.cli.main", "mailbox", env=environment, preexec_fn=ends_with_us()
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", trust_env=False) as client:

        async def live() -> bool:
            try:
                return (await client.get("/livez")).status_code == 200
            except httpx.ConnectError:
                return False

        await wait_until(live, 10, "the mailbox answers")

        def send() -> None:
            with smtplib.SMTP("127.0.0.1", smtp_port) as smtp:
                smtp.sendmail("hello@bellhop.example", ["ada@example.com", "eve@example.com"], mail())

        await asyncio.to_thread(send)
        listed = (await client.get("/api/v1/messages")).json()["messages"]
        assert [entry["Subject"] for entry in listed] == ["Hello"]
        shown = (await client.get(f"/api/v1/message/{listed[0]['ID']}")).json()
    server.terminate()
    assert await server.wait() == 0
    assert shown["Text"].strip() == "Grüße"
    assert shown["MessageID"] == "one@bellhop.example"
    assert shown["To"] == [{"Name": "Ada", "Address": "ada@example.com"}]
    assert shown["Bcc"] == [{"Name": "", "Address": "eve@example.com"}]


async def test_the_newest_mail_comes_first_and_pages_hold(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """`start` and `limit` cut the list as Mailpit does."""
    for number in range(5):
        mailbox.add("a@example.com", ["b@example.com"], mail(f"mail {number}"))
    page = (await client.get("/api/v1/messages", params={"start": 1, "limit": 2})).json()
    assert [entry["Subject"] for entry in page["messages"]] == ["mail 3", "mail 2"]
    assert (page["total"], page["count"], page["start"]) == (5, 2, 1)


def test_the_oldest_mails_make_room() -> None:
    """Memory is bounded by number, and all that ever came are counted."""
    mailbox = Mailbox(max_mails=3)
    for number in range(5):
        mailbox.add("a@example.com", ["b@example.com"], b"%d" % number)
    assert [kept.content for kept in mailbox.page(0, 10)] == [b"4", b"3", b"2"]
    assert mailbox.received == 5


def test_big_mails_make_room_too() -> None:
    """Memory is bounded by bytes as well."""
    mailbox = Mailbox(max_bytes=250)
    for _ in range(5):
        mailbox.add("a@example.com", ["b@example.com"], b"x" * 100)
    assert len(mailbox) == 2


async def test_emptying_it_keeps_the_count(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """Who compares sent with received may empty it in between."""
    mailbox.add("a@example.com", ["b@example.com"], mail())
    assert (await client.delete("/api/v1/messages")).text == "ok"
    page = (await client.get("/api/v1/messages")).json()
    assert (page["total"], page["received"]) == (0, 1)


async def test_deleting_by_id_is_refused(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """What is not offered must not delete everything instead."""
    mailbox.add("a@example.com", ["b@example.com"], mail())
    response = await client.request("DELETE", "/api/v1/messages", json={"IDs": ["x"]})
    assert (response.status_code, len(mailbox)) == (400, 1)


async def test_headers_in_raw_utf_8_are_shown(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """RFC 6532; and a mail whose headers are no UTF-8 does not make the list fail."""
    mailbox.add("a@b.example", ["jürgen@example.com"], "To: Jürgen <jürgen@example.com>\nSubject: Grüße\n\nx".encode())
    mailbox.add("a@b.example", ["x@example.com"], b"To: \xff <x@example.com>\nSubject: \xff\n\n\xff")

    broken, right = (await client.get("/api/v1/messages")).json()["messages"]

    assert (right["Subject"], right["To"]) == ("Grüße", [{"Name": "Jürgen", "Address": "jürgen@example.com"}])
    for each in (broken, right):
        assert (await client.get(f"/api/v1/message/{each['ID']}")).status_code == 200
        assert (await client.get(f"/view/{each['ID']}")).status_code == 200
    assert (await client.get("/")).status_code == 200


async def test_html_is_shown_in_a_sandbox(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """Nothing of a mail can run or break out of its frame."""
    mailbox.add("a@example.com", ["b@example.com"], mail(html='"><script>alert(1)</script>'))
    response = await client.get(f"/view/{mailbox.page(0, 1)[0].id}")
    assert "<script>" not in response.text
    assert "sandbox=" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_a_subject_cannot_smuggle_markup(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """The list is a page of ours."""
    mailbox.add("a@example.com", ["<script>@example.com"], mail("<script>alert(1)</script>"))
    assert "<script>" not in (await client.get("/")).text


async def test_a_foreign_host_name_is_refused(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    """A page elsewhere that lets its name point here (DNS rebinding) reads nothing."""
    response = await client.get("/api/v1/messages", headers={"Host": "evil.example"})
    assert response.status_code == 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"Subject: =?nonsense?q?x?=\r\n\r\n",
        b"To: \r\nFrom: <<>>\r\n\r\nx",
        b"Content-Type: text/plain; charset=no-such\r\n\r\n\xff",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n",
    ],
)
async def test_a_broken_mail_is_shown_all_the_same(mailbox: Mailbox, client: httpx.AsyncClient, content: bytes) -> None:
    """No mail can hide the others by breaking the list."""
    mailbox.add("a@example.com", ["b@example.com"], content)
    mail_id = mailbox.page(0, 1)[0].id
    for path in ("/", f"/view/{mail_id}", "/api/v1/messages", f"/api/v1/message/{mail_id}"):
        assert (await client.get(path)).status_code == 200, path
