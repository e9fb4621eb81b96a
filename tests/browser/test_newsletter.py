"""The newsletter as a person meets it: a real browser, real mail, the whole system as `bellhop up` starts it."""

import re
from email import message_from_string
from email.policy import default
from typing import Any

import httpx
import pytest

from tests.browser.chromium import Page
from tests.services.test_run_up import Run
from tests.support import wait_until


class Mailbox:
    """The development mailbox, which took the mails by SMTP."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def mail(self, to: str, subject: str) -> dict[str, Any]:
        """Wait for a mail and return it whole."""

        async def arrived() -> str | None:
            listed = (await self._client.get(f"{self._url}/api/v1/messages")).json()["messages"]
            ids = [mail["ID"] for mail in listed if mail["Subject"] == subject and mail["To"][0]["Address"] == to]
            assert len(ids) <= 1, f"{to} got {subject!r} {len(ids)} times"
            return ids[0] if ids else None

        found = await wait_until(arrived, 30, f"{to} has a mail {subject!r}", interval=0.2)
        mail: dict[str, Any] = (await self._client.get(f"{self._url}/api/v1/message/{found}")).json()
        return mail


async def broadcast(client: httpx.AsyncClient, subject: str) -> dict[str, Any]:
    """Send a mail to the list and return how it ended."""
    wish = {"list": "newsletter", "subject": subject, "text": "Dear {{ subscriber.name }}, there is news."}
    answer = await client.post("/v1/broadcasts", json=wish)
    assert answer.status_code == 202, answer.text
    progress: dict[str, Any] = {}

    async def finished() -> bool:
        progress.update((await client.get(answer.headers["location"], params={"wait": 5})).json())
        return progress["state"] == "finished"

    await wait_until(finished, 60, "the broadcast is finished")
    return progress


@pytest.mark.timeout(240)
async def test_from_the_form_to_the_last_mail(running: Run, page: Page, pictures: dict[str, bytes]) -> None:
    """Sign up, confirm, be mailed, unsubscribe by the button in the mail, be left alone; without any script."""
    async with running.client() as client:
        mailbox = Mailbox(client, running.url("MAILBOX_HTTP"))
        await client.post(
            "/v1/subscribers",
            json={"email": "bob@example.com", "name": "Bob", "lists": ["newsletter"], "confirmed": True},
        )

        await page.open(f"{running.url('GATEWAY')}/subscribe")
        pictures["subscribe.png"] = await page.screenshot()
        await page.type("#email", "ada@example.com")
        await page.type("#name", "Ada Lovelace")
        await page.click_through("button")
        assert "Almost done" in await page.text()

        asked = await mailbox.mail("ada@example.com", "Please confirm: Newsletter")
        await page.open(first_link(asked["Text"]))
        await page.click_through("button")
        assert "You are subscribed" in await page.text()

        first = await broadcast(client, "Issue 1")
        assert (first["recipients"], first["counts"]["sent"]) == (2, 2)
        mail = await mailbox.mail("ada@example.com", "Issue 1")
        assert mail["Text"].startswith("Dear Ada Lovelace, there is news.")
        source = (await client.get(f"{running.url('MAILBOX_HTTP')}/view/{mail['ID']}/source")).text
        headers = message_from_string(source, policy=default)
        assert headers["List-Unsubscribe"] == f"<{first_link(mail['Text'])}>"
        assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert headers["List-Id"] == "<newsletter.127.0.0.1>"

        await page.open(first_link(mail["Text"]))
        assert (await client.get("/v1/subscribers/ada@example.com")).json()["state"] == "confirmed"
        pictures["unsubscribe.png"] = await page.screenshot()
        await page.click_through("button")
        assert "You are unsubscribed" in await page.text()

        second = await broadcast(client, "Issue 2")
        assert (second["recipients"], second["counts"]["sent"]) == (1, 1)
        await mailbox.mail("bob@example.com", "Issue 2")
    assert page.complaints == []


def first_link(text: str) -> str:
    """Return the first link in a mail."""
    match = re.search(r"http://\S+", text)
    assert match is not None, text
    return match[0]
