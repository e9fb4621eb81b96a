"""Attachments and template previews: from the gateway's API through the mailer to the mailbox."""

import base64
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellhop.contracts.mail import MAX_ATTACHMENT_BYTES, MAX_INLINE_BYTES
from bellhop.web.tokens import mint, service_key
from services.mailer.app import build
from tests.services.gateway_support import RunningGateway, mail, running_gateway
from tests.services.mailer_running import running_mailer
from tests.services.mailer_support import mailer_settings
from tests.support import SmtpServer, Vhost, wait_until
from tests.support.serving import serving

KEY = service_key("k" * 40, "mailer")


@dataclass
class Both:
    gateway: RunningGateway
    smtp: SmtpServer

    async def upload(self, content: bytes = b"%PDF", filename: str = "a.pdf", kind: str = "application/pdf") -> Any:
        return await self.gateway.admin.post(
            "/v1/attachments", params={"filename": filename}, content=content, headers={"Content-Type": kind}
        )

    async def send(self, *attachments: dict[str, str]) -> httpx.Response:
        return await self.gateway.admin.post("/v1/mail", json=mail(attachments=list(attachments)))

    async def arrived(self, task_id: str) -> Any:
        async def found() -> Any:
            state = await self.gateway.state(task_id)
            assert state != "failed", (await self.gateway.admin.get(f"/v1/tasks/{task_id}")).text
            return state == "sent"

        await wait_until(found, 20, "the mail is sent")
        return self.smtp.mails[-1].message


@pytest.fixture
async def both(vhost: Vhost, database_url: str, smtp_server: SmtpServer, tmp_path: Path) -> AsyncIterator[Both]:
    async with running_gateway(vhost, database_url) as gateway:
        settings = {"service_key": KEY, "gateway_url": gateway.url, "attachments_folder": tmp_path / "cache"}
        mailer_database = f"sqlite+aiosqlite:///{tmp_path}/mailer.db"
        async with running_mailer(vhost, mailer_database, smtp_server.port, **settings):
            yield Both(gateway, smtp_server)


async def test_an_uploaded_file_arrives_byte_for_byte(both: Both, tmp_path: Path) -> None:
    """Ten megabytes do not ride on the broker: the mailer fetches them, and once for many mails."""
    content = os.urandom(MAX_ATTACHMENT_BYTES)
    answer = await both.upload(content, "Rechnung für Ada.pdf")
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert (upload["size"], upload["filename"]) == (MAX_ATTACHMENT_BYTES, "Rechnung für Ada.pdf")
    for _ in range(2):
        task_id = (await both.send({"id": upload["id"]})).json()["id"]
        (part,) = (await both.arrived(task_id)).iter_attachments()
        assert part.get_payload(decode=True) == content
        assert part.get_filename() == "Rechnung für Ada.pdf"
        assert part.get_content_type() == "application/pdf"
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [upload["sha256"]]


async def test_an_invitation_and_a_text_keep_their_parameters(both: Both) -> None:
    """Uploaded and inline alike; where a text says no charset, none is added."""
    invitation = (await both.upload(b"BEGIN:VCALENDAR", "i.ics", "text/calendar; method=REQUEST; charset=UTF-8")).json()
    latin = (await both.upload(b"caf\xe9", "a.txt", "text/plain")).json()
    inline = {"filename": "a.csv", "content_type": "text/csv; charset=utf-8", "content_base64": "YQ=="}

    answer = await both.send({"id": invitation["id"]}, {"id": latin["id"]}, inline)

    assert answer.status_code == 202, answer.text
    parts = list((await both.arrived(answer.json()["id"])).iter_attachments())
    # The parser of the standard library puts quotes around values.
    assert [part["Content-Type"].replace('"', "") for part in parts] == [
        "text/calendar; method=REQUEST; charset=UTF-8",
        "text/plain",
        "text/csv; charset=utf-8",
    ]


async def test_a_small_file_may_travel_with_the_request(both: Both) -> None:
    """Up to 64 KB in base64."""
    content = os.urandom(MAX_INLINE_BYTES)
    inline = {"filename": "a.bin", "content_type": "application/octet-stream",
              "content_base64": base64.b64encode(content).decode()}  # fmt: skip
    answer = await both.send(inline)
    assert answer.status_code == 202, answer.text
    (part,) = (await both.arrived(answer.json()["id"])).iter_attachments()
    assert part.get_payload(decode=True) == content


async def test_a_newsletter_carries_its_attachments_to_everybody(both: Both, tmp_path: Path) -> None:
    """One upload and one small file, the same for all; subject and the way out are each reader's own."""
    content = os.urandom(200_000)
    upload = (await both.upload(content, "Ausgabe März.pdf")).json()
    inline = {"filename": "a.txt", "content_type": "text/plain", "content_base64": base64.b64encode(b"hi").decode()}
    emails = [f"reader-{number}@example.com" for number in range(12)]
    rows = "\n".join(f"{email},Reader {number}" for number, email in enumerate(emails))
    imported = await both.gateway.admin.post(
        "/v1/subscribers/import",
        params={"lists": "news", "confirmed": "true"},
        content=f"email,name\n{rows}",
        headers={"Content-Type": "text/csv"},
    )
    assert imported.json()["new"] == len(emails), imported.text
    wish = {"list": "news", "subject": "Hello {{ subscriber.name }}", "text": "News.", "html": "<p>News.</p>",
            "attachments": [{"id": upload["id"]}, inline]}  # fmt: skip
    answer = await both.gateway.admin.post("/v1/broadcasts", json=wish)
    assert answer.status_code == 202, answer.text

    async def finished() -> bool:
        return bool((await both.gateway.admin.get(answer.headers["location"])).json()["state"] == "finished")

    await wait_until(finished, 20, "the broadcast is finished")
    assert sorted(each.recipients[0] for each in both.smtp.mails) == sorted(emails)
    for each in both.smtp.mails:
        message = each.message
        files = {part.get_filename(): part.get_payload(decode=True) for part in message.iter_attachments()}
        assert files == {"Ausgabe März.pdf": content, "a.txt": b"hi"}
        assert message["Subject"] == f"Hello Reader {emails.index(each.recipients[0])}"
        assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        html = message.get_body(("html",))
        assert html is not None
        assert message["List-Unsubscribe"].strip("<>") in html.get_content()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [upload["sha256"]]


async def test_the_same_upload_again_is_the_same_attachment(both: Both) -> None:
    """A retried upload takes no further room; another name is another attachment."""
    first, again, other = [(await both.upload(filename=name)).json()["id"] for name in ("a.pdf", "a.pdf", "b.pdf")]
    assert first == again != other


async def test_bad_uploads_are_refused(both: Both) -> None:
    """Too large, empty, without a name or a usable type, or without the right."""
    assert (await both.upload(b"x" * (MAX_ATTACHMENT_BYTES + 1))).status_code == 413
    assert (await both.upload(b"")).status_code == 400
    for filename in ("../a", "a\nb", "", "x" * 201):
        assert (await both.upload(filename=filename)).status_code == 422, filename
    for kind in ("", "pdf", "message/rfc822", "multipart/mixed; boundary=x"):
        assert (await both.upload(kind=kind)).status_code == 415, kind
    reader = both.gateway.client(await both.gateway.make_key("reader", "mail:read"))
    assert (await reader.post("/v1/attachments?filename=a", content=b"x")).status_code == 403
    await reader.aclose()


async def test_a_mail_cannot_refer_to_what_is_not_its_owners(both: Both) -> None:
    """422 names the attachment; together they may have 20 MB."""
    answer = await both.send({"id": "none"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/attachments/0/id")
    upload = (await both.upload()).json()
    stranger = both.gateway.client(await both.gateway.make_key("stranger", "mail:send"))
    refused = await stranger.post("/v1/mail", json=mail(attachments=[{"id": upload["id"]}]))
    await stranger.aclose()
    assert refused.status_code == 422
    wish = {"list": "newsletter", "allow_empty": True, "subject": "s", "text": "t", "attachments": [{"id": "none"}]}
    refused = await both.gateway.admin.post("/v1/broadcasts", json=wish)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/attachments/0/id")
    large = (await both.upload(b"x" * MAX_ATTACHMENT_BYTES)).json()["id"]
    assert (await both.send(*[{"id": large}] * 3)).status_code == 422


@pytest.mark.parametrize(
    "attachment",
    [
        {},
        {"id": "x", "filename": "a"},
        {"filename": "a", "content_type": "text/plain"},
        {"filename": "a", "content_type": "text/plain", "content_base64": "!"},
        {"filename": "a", "content_type": "message/rfc822", "content_base64": ""},
        {"filename": "a", "content_type": "text/plain\r\nX: y", "content_base64": ""},
        {"filename": "a", "content_type": "text/plain",
         "content_base64": base64.b64encode(b"x" * (MAX_INLINE_BYTES + 1)).decode()},
    ],
)  # fmt: skip
async def test_a_bad_attachment_is_no_mail(both: Both, attachment: dict[str, str]) -> None:
    """422, and nothing was taken."""
    assert (await both.send(attachment)).status_code == 422


async def test_only_the_mailer_fetches_what_was_uploaded(both: Both) -> None:
    """Neither nobody, nor an API key, nor a token for something else gets in."""
    upload = (await both.upload()).json()
    url = f"/v1/attachments/{upload['id']}/content"
    assert (await both.gateway.admin.get(url)).status_code == 401
    for token in ("x", mint("k" * 40, "x", 60, "attachments"), mint(KEY, "x", 60, "mailer")):
        client = both.gateway.client(token)
        assert (await client.get(url)).status_code == 401
        await client.aclose()


# Previews


async def test_a_template_is_previewed_through_the_gateway(vhost: Vhost, tmp_path: Path) -> None:
    """Subject, text and HTML as the mail would have them; an error names file and line; nothing is sent.

    A broadcast of a template that does not exist is refused: else it would fail for everybody on the list.
    """
    settings = mailer_settings(
        1, amqp_url=vhost.amqp_url, database_url=f"sqlite+aiosqlite:///{tmp_path}/m.db", service_key=KEY
    )
    with serving(build(settings)) as port:
        await wait_until(partial(is_ready, port), 20, "the mailer is ready")
        database = f"sqlite+aiosqlite:///{tmp_path}/g.db"
        async with running_gateway(vhost, database, mailer_url=f"http://127.0.0.1:{port}") as gateway:
            listed = (await gateway.admin.get("/v1/templates")).json()["templates"]
            assert {"name": "welcome", "on": [], "required": ["name"]} in [
                {name: each[name] for name in ("name", "on", "required")} for each in listed
            ]
            answer = await gateway.admin.post("/v1/templates/welcome/preview", json={"data": {"name": "Ada"}})
            assert answer.json()["subject"] == "Welcome, Ada"
            assert "<p>Hello Ada,</p>" in answer.json()["html"]
            bad = await gateway.admin.post("/v1/templates/welcome/preview", json={"data": {}})
            assert bad.status_code == 422
            assert "welcome.mail, line 2" in bad.json()["detail"]
            unknown = await gateway.admin.post("/v1/templates/none/preview", json={"data": {}})
            assert unknown.status_code == 404
            wish = {"list": "newsletter", "allow_empty": True, "template": "welcom"}
            refused = await gateway.admin.post("/v1/broadcasts", json=wish)
            assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/template")
            assert "welcome" in refused.json()["errors"][0]["detail"]
            taken = await gateway.admin.post(
                "/v1/broadcasts", json=wish | {"template": "welcome", "data": {"name": "all"}}
            )
            assert taken.status_code == 202
            for path, incomplete in (("mail", {"to": "ada@example.com"}), ("broadcasts", wish)):
                told = await gateway.admin.post(f"/v1/{path}", json=incomplete | {"template": "welcome"})
                assert (told.status_code, told.json()["errors"][0]["pointer"]) == (422, "#/data/name"), told.text
            one = await gateway.admin.post("/v1/mail", json={"to": "ada@example.com", "template": "welcom"})
            assert (one.status_code, one.json()["errors"][0]["pointer"]) == (422, "#/template")
            right = {"to": "ada@example.com", "template": "welcome", "data": {"name": "Ada"}}
            assert (await gateway.admin.post("/v1/mail", json=right)).status_code == 202
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as nobody:
                assert (await nobody.get("/v1/templates")).status_code == 401
            stranger = gateway.client(await gateway.make_key("reader", "mail:read"))
            assert (await stranger.get("/v1/templates")).status_code == 403
            await stranger.aclose()


async def is_ready(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
