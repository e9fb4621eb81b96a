"""The console and the live page, as people meet them."""

import json
from urllib.parse import quote

import pytest

from tests.browser.chromium import Page
from tests.services.test_run_up import Run
from tests.support import wait_until

MARKUP = "<b id=injected>bold</b>"


async def shown(page: Page, text: str) -> None:
    """Wait until `text` can be read on the page."""

    async def there() -> bool:
        return text in await page.text()

    await wait_until(there, 20, f"{text!r} is shown", interval=0.1)


@pytest.mark.timeout(240)
async def test_the_console_shows_and_replays(running: Run, scripted: Page, pictures: dict[str, bytes]) -> None:
    """It refuses a wrong key; with the right one it shows what goes on, and a click replays a dead letter."""
    async with running.client() as client:
        await scripted.call(
            "Emulation.setDeviceMetricsOverride", width=1180, height=1060, deviceScaleFactor=1, mobile=False
        )
        await scripted.open(running.url("GATEWAY"))
        await scripted.type("#key", "bh_wrong")
        await scripted.click("#sign-in button")
        await shown(scripted, "key")
        assert "Queues" not in await scripted.text()

        for number, lane in enumerate(("urgent", "normal", "normal", "bulk")):
            mail = {"to": f"person{number}@example.com", "subject": "Hello", "text": "Hello", "lane": lane}
            assert (await client.post("/v1/mail", json=mail)).status_code == 202
        event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed", "data": {"email": MARKUP}}
        answer = await client.post(
            "/v1/events", content=json.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
        )
        assert answer.status_code == 202

        await scripted.type("#key", (running.home / "admin-key").read_text().strip())
        await scripted.click("#sign-in button")
        await shown(scripted, "mail.urgent")
        await shown(scripted, "person3@example.com")
        await shown(scripted, "order.placed")
        assert await scripted.evaluate("document.querySelector('#injected')") is None
        # RabbitMQ counts consumers every five seconds.
        consumers = "[...document.querySelectorAll('#queues tr')].filter(row => row.cells[2].textContent > '0').length"

        async def counted() -> bool:
            return int(await scripted.evaluate(consumers)) > 5

        await wait_until(counted, 30, "the consumers are shown", interval=0.2)
        pictures["console.png"] = await scripted.screenshot()

        before = (await client.get("/v1/dead-letters")).json()["dead_letters"]
        await scripted.click("#dead td:nth-child(7) button")

        async def replayed() -> bool:
            letter = (await client.get(f"/v1/dead-letters/{before[0]['id']}")).json()
            return letter["replayed_at"] is not None

        await wait_until(replayed, 20, "the dead letter is replayed")
    assert [line for line in scripted.complaints if "401" not in line] == []


@pytest.mark.timeout(240)
async def test_the_live_page_shows_what_happens(running: Run, scripted: Page, pictures: dict[str, bytes]) -> None:
    """A notification stands on the page the moment it is raised, as text, whatever it says."""
    async with running.client() as client:
        asked = {"subject": "ada", "channels": ["orders"], "expires_in": 600}
        token = (await client.post("/v1/stream-tokens", json=asked)).json()["token"]
        await scripted.call(
            "Emulation.setDeviceMetricsOverride", width=860, height=620, deviceScaleFactor=1, mobile=False
        )
        await scripted.open(f"{running.url('NOTIFIER')}/live#token={quote(token)}")
        await shown(scripted, "live on orders")
        for title, body in (("Order A-17 is packed", "It leaves today."), ("Order A-17 is on its way", MARKUP)):
            notification = {"channels": ["orders"], "title": title, "body": body}
            assert (await client.post("/v1/notifications", json=notification)).status_code == 202
            await shown(scripted, title)
        await shown(scripted, MARKUP)
        await scripted.evaluate("Promise.all(document.getAnimations().map(one => one.finished)).then(() => null)")
        assert await scripted.evaluate("document.querySelector('#injected')") is None
        pictures["live.png"] = await scripted.screenshot()
    assert scripted.complaints == []
