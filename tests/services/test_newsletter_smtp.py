"""Mail to many the whole way: the gateway, the broker, the mailer, and an SMTP server that answers as it is told."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bellhop.web.tokens import mint, service_key
from tests.services.gateway_support import RunningGateway, mail, running_gateway
from tests.services.mailer_running import running_mailer
from tests.support import SmtpServer, Vhost, wait_until

WINDOW = 40


@dataclass
class Whole:
    """Both services, and the server that their mails go to."""

    gateway: RunningGateway
    smtp: SmtpServer

    async def broadcast(self, emails: list[str]) -> str:
        """Put these people on a list, send them a mail, and return the path of the broadcast."""
        rows = "\n".join(emails)
        imported = await self.gateway.admin.post(
            "/v1/subscribers/import",
            params={"lists": "news", "confirmed": "true"},
            content=f"email\n{rows}",
            headers={"Content-Type": "text/csv"},
        )
        assert imported.status_code == 200, imported.text
        wish = {"list": "news", "subject": "News", "text": "There is news."}
        answer = await self.gateway.admin.post("/v1/broadcasts", json=wish)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["location"])

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        document: dict[str, Any] = (await self.gateway.admin.get(path, params=query)).json()
        return document

    async def post(self, path: str) -> None:
        answer = await self.gateway.admin.post(path)
        assert answer.status_code == 202, answer.text

    async def counted(self, path: str, **counts: int) -> None:
        """Wait until a broadcast has exactly these counts."""

        async def there() -> bool:
            found = (await self.get(path))["counts"]
            return {state: count for state, count in found.items() if count} == counts

        await wait_until(there, 30, f"the counts are {counts}", interval=0.1)

    async def finished(self, path: str) -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            document = await self.get(path)
            return document if document["state"] == "finished" else None

        return await wait_until(there, 60, "the broadcast is finished", interval=0.1)


@pytest.fixture
async def whole(vhost: Vhost, smtp_server: SmtpServer, tmp_path: Path) -> AsyncIterator[Whole]:
    url = f"sqlite+aiosqlite:///{tmp_path}"
    async with (
        running_gateway(vhost, f"{url}/gateway.db", broadcast_window=WINDOW) as gateway,
        running_mailer(
            vhost,
            f"{url}/mailer.db",
            smtp_server.port,
            smtp_connections=5,
            service_key=service_key("k" * 40, "mailer"),
            gateway_url=gateway.url,
        ),
    ):
        yield Whole(gateway, smtp_server)


def readers(count: int) -> list[str]:
    return [f"reader-{number:03}@example.com" for number in range(count)]


# What the server says to each of them, the state that follows, and after how many seconds the next attempt comes.
REPLIES = {
    "gone@a.example": ("550 5.1.1 no such user", "failed", None),
    "closed@b.example": ("550 5.2.1 mailbox disabled", "failed", None),
    "strict@c.example": ("550 5.7.1 refused by policy", "failed", None),
    "unsigned@d.example": ("550 5.7.26 unauthenticated mail", "failed", None),
    "plain@e.example": ("554 no", "failed", None),
    "full@f.example": ("452 4.2.2 over quota", "retrying", 3600),
    "grey@g.example": ("450 4.7.1 greylisted, come back in 20 seconds", "retrying", 300),
    "later@h.example": ("451 4.3.0 try again in 90 seconds", "retrying", 90),
    "moved@i.example": ("450 4.1.1 cannot be verified", "retrying", 1),
}
SUPPRESSED = {"gone@a.example", "closed@b.example"}


async def test_each_refusal_is_taken_for_what_it_says(whole: Whole) -> None:
    """Bad addresses are suppressed, policy refusals fail and suppress nobody, the rest comes again when it should."""
    whole.smtp.recipient_replies |= {email: [reply] for email, (reply, _, _) in REPLIES.items()}
    path = await whole.broadcast([*REPLIES, *readers(5)])
    await whole.counted(path, sent=5, failed=5, retrying=4)

    listed = {task["to"]: task for task in (await whole.get(f"{path}/tasks"))["tasks"]}
    for email, (reply, state, wait) in REPLIES.items():
        task = await whole.get(f"/v1/tasks/{listed[email]['id']}")
        attempt = task["attempts"][-1]
        assert (task["state"], f"{attempt['code']} {attempt['reply']}") == (state, reply)
        if wait is not None:
            at, again = (datetime.fromisoformat(attempt[name]) for name in ("at", "retry_at"))
            assert (again - at).total_seconds() >= wait
    found = (await whole.get("/v1/suppressions"))["suppressions"]
    assert {each["address"]: each["source"] for each in found} == dict.fromkeys(SUPPRESSED, "bounce")
    assert all(each["expires_at"] for each in found)


async def test_a_pause_takes_effect_within_seconds_and_a_resume_forgets_nobody(whole: Whole) -> None:
    """While it goes, rate and time of arrival are told; after a pause only what was under way arrives."""
    emails = readers(300)
    whole.smtp.delay = 0.05
    path = await whole.broadcast(emails)

    async def goes() -> bool:
        document = await whole.get(path)
        return bool(document.get("rate_per_second", 0) > 0 and document["eta_seconds"] > 0)

    await wait_until(goes, 20, "rate and time of arrival are known", interval=0.1)
    await whole.post(f"{path}/pause")
    already = len(whole.smtp.mails)

    async def still() -> bool:
        counts = (await whole.get(path))["counts"]
        return not counts["retrying"] and counts["sent"] == len(whole.smtp.mails)

    await wait_until(still, 20, "what was under way is out", interval=0.2)
    assert len(whole.smtp.mails) - already <= WINDOW
    assert (await whole.get(path))["state"] == "paused"
    await whole.post(f"{path}/resume")
    await whole.finished(path)
    assert Counter(each.recipients[0] for each in whole.smtp.mails) == Counter(emails)


async def test_what_failed_is_sent_again_and_nothing_else(whole: Whole) -> None:
    """Two were refused for their content; after retry-failed everybody has the mail once."""
    emails = readers(30)
    for email in emails[:2]:
        whole.smtp.recipient_replies[email] = ["554 5.6.0 not this", "250 OK"]
    path = await whole.broadcast(emails)
    await whole.finished(path)
    await whole.counted(path, sent=28, failed=2)

    await whole.post(f"{path}/retry-failed")
    await whole.counted(path, sent=30)
    assert Counter(each.recipients[0] for each in whole.smtp.mails) == Counter(emails)


async def test_an_urgent_mail_overtakes_a_broadcast(whole: Whole) -> None:
    """A password reset does not wait for the newsletter."""
    whole.smtp.delay = 0.05
    path = await whole.broadcast(readers(300))
    await wait_until(lambda: len(whole.smtp.mails) > 20, 20, "the broadcast goes")
    await whole.gateway.admin.post("/v1/mail", json=mail(to="urgent@example.com", lane="urgent"))
    await wait_until(lambda: whole.smtp.to("urgent@example.com"), 20, "the urgent mail is there")
    assert len(whole.smtp.mails) < 150
    await whole.post(f"{path}/cancel")


async def test_an_event_mails_nobody_who_is_suppressed(whole: Whole) -> None:
    """Of the followers of a genre, who is suppressed gets no mail, and the task says why; however it is spelt."""
    await whole.gateway.admin.post("/v1/suppressions", json={"address": "ada@example.com", "reason": "asked by phone"})
    followers = [{"email": email} for email in ("Ada@Example.com", "bob@example.com")]
    data = {"genre": "crime", "title": "The Bell", "author": "A. Hop", "followers": followers}
    event = {"specversion": "1.0", "id": "book-1", "source": "/shop", "type": "book.published", "data": data}
    headers = {"Content-Type": "application/cloudevents+json"}

    async def announced() -> bool:
        return "book.published" in (await whole.get("/v1/system"))["reacts_to"]

    await wait_until(announced, 20, "the gateway knows that a template needs this event")
    answer = await whole.gateway.admin.post("/v1/events", json=event, headers=headers)
    assert answer.status_code == 202, answer.text

    async def over() -> dict[str, Any] | None:
        event = await whole.gateway.admin.get("/v1/events", params={"source": "/shop", "id": "book-1"})
        tasks = {task["to"]: task for task in event.json().get("tasks", ())}
        return tasks if len(tasks) == 2 and all("finished_at" in task for task in tasks.values()) else None

    tasks = await wait_until(over, 20, "both tasks are over")
    assert {to: task["state"] for to, task in tasks.items()} == {
        "Ada@Example.com": "suppressed",
        "bob@example.com": "sent",
    }
    assert [each.recipients for each in whole.smtp.mails] == [["bob@example.com"]]
    ada = await whole.get(f"/v1/tasks/{tasks['Ada@Example.com']['id']}")
    assert ada["attempts"][-1]["reply"] == "The address is suppressed: asked by phone"


async def test_only_the_mailer_asks_who_is_suppressed(whole: Whole) -> None:
    """Neither an API key nor a token for something else opens the question."""
    for token in ("x", mint(service_key("k" * 40, "mailer"), "x", 60, "attachments")):
        async with whole.gateway.client(token) as client:
            answer = await client.post("/v1/suppressions/among", json={"addresses": ["ada@example.com"]})
        assert answer.status_code == 401
    asked = await whole.gateway.admin.post("/v1/suppressions/among", json={"addresses": ["ada@example.com"]})
    assert asked.status_code == 401
