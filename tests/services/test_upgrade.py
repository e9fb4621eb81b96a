"""From the first version to the present one: data is kept, and what was under way ends as it should, once.

One upgrade on each database, and a look at it from each side.
"""

import asyncio
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellhop.amqp import applying, topology
from bellhop.sql.migrations import migrate
from tests.services import upgrade_old as old
from tests.services.gateway_support import RunningGateway, running_gateway
from tests.services.mailer_running import running_mailer
from tests.services.test_leaderboard_service import Service
from tests.services.test_topology_upgrade import THEIRS, bindings, policies, wanted
from tests.support import wait_until
from tests.support.broker import Broker, Vhost
from tests.support.databases import postgresql_database, sqlite_database
from tests.support.smtp import SmtpServer

pytestmark = pytest.mark.xdist_group("upgrade")


@dataclass
class Upgraded:
    """What there was after the upgrade."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    mails: Counter[str] = field(default_factory=Counter)
    """By recipient."""
    points: dict[str, float] = field(default_factory=dict)
    broadcast: dict[str, Any] = field(default_factory=dict)
    bindings: set[tuple[str, str, str, str]] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    letters: list[dict[str, Any]] = field(default_factory=list)
    replayed: int = 0
    answers: dict[str, httpx.Response] = field(default_factory=dict)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def upgraded(request: pytest.FixtureRequest, broker: Broker, session_folder: Path, tmp_path_factory: Any) -> Upgraded:
    """A system of the first version, upgraded."""
    server = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return asyncio.run(_upgrade(broker, server, session_folder, tmp_path_factory.mktemp("upgrade") / "old.db"))


async def _upgrade(broker: Broker, server: str | None, session_folder: Path, file: Path) -> Upgraded:
    async with AsyncExitStack() as stack:
        if server is None:
            url = await sqlite_database(file, session_folder, empty=True)
        else:
            url = await stack.enter_async_context(postgresql_database(server, empty=True))
        vhost = Vhost(broker, f"test-{secrets.token_hex(6)}")
        await vhost.create()
        stack.push_async_callback(vhost.close)
        await old.make_database(url)
        await old.make_broker(vhost)

        found = Upgraded()
        await applying.apply(broker.management_url, vhost.name)
        found.bindings, found.policies = await bindings(vhost), set(await policies(vhost))
        for service in old.REVISIONS:
            await migrate(url, f"services.{service}")
        smtp = SmtpServer()
        await smtp.start()
        stack.push_async_callback(smtp.stop)
        await stack.enter_async_context(running_mailer(vhost, url, smtp.port))
        board = await stack.enter_async_context(Service(vhost.amqp_url, url))
        keys = {"token_key": old.TOKEN_KEY, "link_keys": f"{'l' * 40},{old.TOKEN_KEY}"}
        gateway = await stack.enter_async_context(running_gateway(vhost, url, **keys))
        await _look(found, gateway, board, smtp)
        return found


async def _look(found: Upgraded, gateway: RunningGateway, board: Service, smtp: SmtpServer) -> None:
    admin = gateway.admin
    client = gateway.client(old.API_KEY)
    names = (*old.ENDED, *old.WAITING, old.LATER, old.LETTER)

    async def task(name: str) -> dict[str, Any]:
        answer = await client.get(f"/v1/tasks/{old.task_id(name)}")
        return dict(answer.json()) if answer.status_code == 200 else {"state": answer.text}

    async def ended() -> bool:
        found.tasks = {name: await task(name) for name in names}
        states = {name: found.tasks[name]["state"] for name in names}
        return states == old.ENDED | dict.fromkeys(old.WAITING, "sent") | {old.LATER: "scheduled", old.LETTER: "queued"}

    async def letters() -> bool:
        found.letters = (await admin.get("/v1/dead-letters")).json()["dead_letters"]
        found.letters += (await admin.get("/v1/dead-letters", params={"queue": "unrouted"})).json()["dead_letters"]
        return len(found.letters) >= 3

    async def counted() -> bool:
        answer = await board.http.get("/v1/leaderboards/points")
        entries = answer.json()["entries"] if answer.status_code == 200 else []
        found.points = {entry["player"]: entry["score"] for entry in entries}
        return len(found.points) == len(old.POINTS) and found.points["ann"] >= old.POINTS["ann"]

    async def finished() -> bool:
        found.broadcast = (await admin.get(f"/v1/broadcasts/{old.BROADCAST}")).json()
        return bool(found.broadcast["state"] == "finished")

    async def replayed() -> bool:
        return (await task(old.LETTER))["state"] == "sent"

    # A test for each says what is missing.
    for condition in (ended, letters, counted, finished):
        await _patiently(condition)
    found.answers["replay"] = await admin.post(f"/v1/dead-letters/{old.DEAD}/replay")
    await _patiently(replayed)
    found.mails = Counter(recipient for mail in smtp.mails for recipient in mail.recipients)
    json = {"Content-Type": "application/json", "Idempotency-Key": '"order-1"'}
    found.answers |= {
        "same": await client.post("/v1/mail", content=old.FIRST_ORDER, headers=json),
        "another": await client.post("/v1/mail", content=old.FIRST_ORDER.replace(b"Hi", b"Ho"), headers=json),
        "suppressed": await client.post("/v1/mail", json={"to": "gone@example.com", "subject": "Hi", "text": "Hello"}),
        "cancel": await client.post(f"/v1/tasks/{old.task_id(old.LATER)}/cancel"),
        "unsubscribe": await admin.post("/unsubscribe", params={"token": old.link_token("zoe@example.com")},
                                        data={"List-Unsubscribe": "One-Click"}),
        "person": await admin.get("/v1/subscribers/zoe@example.com"),
    }  # fmt: skip
    gone = found.answers["suppressed"].json()["id"]
    found.answers["suppressed"] = await client.get(f"/v1/tasks/{gone}", params={"wait": 5})
    await client.aclose()


async def _patiently(condition: Any) -> None:
    try:
        await wait_until(condition, 30, "", interval=0.1)
    except AssertionError:
        return


@pytest.mark.parametrize("name", old.WAITING)
def test_a_task_that_waited_is_sent_once(upgraded: Upgraded, name: str) -> None:
    assert (upgraded.tasks[name]["state"], upgraded.mails[f"{name}@example.com"]) == ("sent", 1)


@pytest.mark.parametrize(("name", "state"), old.ENDED.items())
def test_a_task_that_was_over_is_not_sent_again(upgraded: Upgraded, name: str, state: str) -> None:
    assert (upgraded.tasks[name]["state"], upgraded.mails[f"{name}@example.com"]) == (state, 0)


def test_attempts_before_and_after_are_one_history(upgraded: Upgraded) -> None:
    made = [(one["attempt"], one["state"]) for one in upgraded.tasks["retrying"]["attempts"]]
    assert made == [(1, "retrying"), (2, "sent")]


def test_only_what_a_crash_left_in_the_middle_is_uncertain(upgraded: Upgraded) -> None:
    assert {name for name, task in upgraded.tasks.items() if task.get("uncertain")} == {"claimed"}


def test_a_mail_for_later_stays_scheduled_and_can_be_cancelled(upgraded: Upgraded) -> None:
    assert upgraded.tasks[old.LATER]["state"] == "scheduled"
    assert (upgraded.answers["cancel"].status_code, upgraded.mails["later@example.com"]) == (200, 0)


def test_a_broadcast_that_ran_reaches_everybody_once(upgraded: Upgraded) -> None:
    """Those who had their mail before get no other one, in whatever order the addresses were walked through."""
    everybody = {f"{name}@example.com" for name in old.PEOPLE}
    assert upgraded.broadcast["state"] == "finished"
    assert {state: count for state, count in upgraded.broadcast["counts"].items() if count} == {"sent": len(everybody)}
    now = {email for email in everybody if upgraded.mails[email]}
    assert everybody - now in ({"ann@example.com"}, {f"{name}@example.com" for name in ("ann", "ann1", "ann2")})


def test_no_mail_went_out_twice(upgraded: Upgraded) -> None:
    assert {recipient: count for recipient, count in upgraded.mails.items() if count > 1} == {}


def test_an_event_on_the_queue_sets_off_its_mail(upgraded: Upgraded) -> None:
    assert upgraded.mails["order@example.com"] == 1


def test_scores_count_once(upgraded: Upgraded) -> None:
    """Those before, on the queue, and in the outbox; not those that were counted and came again."""
    assert upgraded.points == old.POINTS


def test_dead_letters_are_listed_and_replayed(upgraded: Upgraded) -> None:
    """One of the database, one that waited in the queue, and an event that no queue was bound to."""
    assert sorted((one["queue"], one["reason"]) for one in upgraded.letters) == [
        ("mail.normal", "rejected"), ("mail.normal", "rejected"), ("unrouted", "unrouted"),
    ]  # fmt: skip
    assert (upgraded.answers["replay"].status_code, upgraded.mails["letter@example.com"]) == (202, 1)


def test_an_idempotency_key_answers_with_the_same_task(upgraded: Upgraded) -> None:
    same, another = upgraded.answers["same"], upgraded.answers["another"]
    assert (same.status_code, same.json()["id"]) == (202, old.task_id("sent"))
    assert another.status_code == 422


def test_a_suppressed_address_stays_suppressed(upgraded: Upgraded) -> None:
    assert upgraded.answers["suppressed"].json()["state"] == "suppressed"


def test_a_link_in_an_old_mail_unsubscribes(upgraded: Upgraded) -> None:
    assert upgraded.answers["unsubscribe"].status_code == 200
    assert "unsubscribed" in upgraded.answers["person"].text


def test_the_broker_has_the_present_topology_and_what_others_made(upgraded: Upgraded) -> None:
    assert upgraded.bindings == wanted() | set(THEIRS)
    assert upgraded.policies == {"theirs", *(one["name"] for one in topology.definitions()["policies"])}
