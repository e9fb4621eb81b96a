"""No page has a serious or critical fault that axe-core knows: contrast, names of fields and buttons, structure."""

import json
from urllib.parse import quote

import pytest

from tests.browser.accessibility import Audit
from tests.browser.chromium import Page
from tests.browser.test_newsletter import Mailbox, first_link
from tests.browser.test_pages import shown
from tests.services.test_run_up import Run

pytestmark = pytest.mark.timeout(240)


async def test_public_pages_and_mailbox(running: Run, scripted: Page) -> None:
    """The form, its error, its answer, confirm, unsubscribe, a link that is over; the list of mails and a mail."""
    audit = Audit(scripted)
    async with running.client() as client:
        mailbox = Mailbox(client, running.url("MAILBOX_HTTP"))
        await scripted.open(running.url("MAILBOX_HTTP"))
        await audit.check("mailbox-empty")
        await scripted.open(f"{running.url('GATEWAY')}/subscribe")
        await audit.check("subscribe")
        await scripted.type("#email", "ada@-")
        await scripted.evaluate("document.querySelector('form').noValidate = true")
        await scripted.click_through("button")
        await shown(scripted, "Please give your e-mail address")
        await audit.check("subscribe-error")
        await scripted.open(f"{running.url('GATEWAY')}/subscribe")
        await scripted.type("#email", "ada@example.com")
        await scripted.click_through("button")
        await audit.check("almost-done")

        asked = await mailbox.mail("ada@example.com", "Please confirm: Newsletter")
        await scripted.open(first_link(asked["Text"]))
        await audit.check("confirm")
        await scripted.click_through("button")
        await audit.check("confirmed")
        issue = {"list": "newsletter", "subject": "Issue 1", "text": "News.", "html": "<p>News.</p>"}
        assert (await client.post("/v1/broadcasts", json=issue)).status_code == 202
        mail = await mailbox.mail("ada@example.com", "Issue 1")
        await scripted.open(first_link(mail["Text"]))
        await audit.check("unsubscribe")
        await scripted.click_through("button")
        await audit.check("unsubscribed")
        await scripted.open(f"{running.url('GATEWAY')}/confirm?token=over")
        await audit.check("void")

        await scripted.open(running.url("MAILBOX_HTTP"))
        await audit.check("mailbox")
        await scripted.open(f"{running.url('MAILBOX_HTTP')}/view/{mail['ID']}")
        await audit.check("mail")
    assert not audit.found, audit.report()


async def test_console(running: Run, scripted: Page) -> None:
    """Signed out, refused, with queues, a dead letter and tasks, and with one of them open."""
    audit = Audit(scripted)
    async with running.client() as client:
        await scripted.open(running.url("GATEWAY"))
        await audit.check("console-signed-out")
        await scripted.type("#key", "bh_wrong")
        await scripted.click("#sign-in button")
        await shown(scripted, "key")
        await audit.check("console-refused")
        for number in range(3):
            mail = {"to": f"person{number}@example.com", "subject": "Hello", "text": "Hello"}
            assert (await client.post("/v1/mail", json=mail)).status_code == 202
        event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed", "data": {"email": "no"}}
        answer = await client.post(
            "/v1/events", content=json.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
        )
        assert answer.status_code == 202
        await scripted.type("#key", (running.home / "admin-key").read_text().strip())
        await scripted.click("#sign-in button")
        await shown(scripted, "person2@example.com")
        await shown(scripted, "order.placed")
        await shown(scripted, "mail.urgent")
        await audit.check("console")
        await scripted.click("#dead td:nth-child(6) button")
        await shown(scripted, "Close")
        await audit.check("console-detail")
    assert not audit.found, audit.report()


async def test_live_page(running: Run, scripted: Page) -> None:
    """Without a token, with events of each kind, and with a token that is not valid."""
    audit = Audit(scripted)
    async with running.client() as client:
        await scripted.open(f"{running.url('NOTIFIER')}/live")
        await audit.check("live-empty")
        asked = {"subject": "ada", "channels": ["orders", "leaderboard:axe"], "expires_in": 600}
        token = (await client.post("/v1/stream-tokens", json=asked)).json()["token"]
        await scripted.open("about:blank")
        await scripted.open(f"{running.url('NOTIFIER')}/live#token={quote(token)}")
        await shown(scripted, "live on")
        for title, data in (("Order A-17 is packed", {}), ("Order A-17 is on its way", {"order": "A-17"})):
            raised = {"channels": ["orders"], "title": title, "body": "It leaves today.", "data": data}
            assert (await client.post("/v1/notifications", json=raised)).status_code == 202
            await shown(scripted, title)
        scores = [{"board": "axe", "player": "ada", "score": 7}]
        assert (await client.post("/v1/scores", json=scores)).status_code == 202
        await shown(scripted, "leaderboard:axe")
        await audit.check("live")
        await scripted.open("about:blank")
        await scripted.open(f"{running.url('NOTIFIER')}/live#token=wrong")
        await shown(scripted, "the token is wrong")
        await audit.check("live-wrong")
    assert not audit.found, audit.report()
