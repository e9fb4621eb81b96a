"""The newsletter's people: they sign up, confirm, leave, are imported, and are left alone where mail cannot go."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa

from bellhop.contracts.base import now
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from services.gateway.public_pages.links import Links
from services.gateway.subscribers.addresses import subscriber_id
from services.gateway.tables import subscriptions
from tests.services.gateway_support import RunningGateway, json, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost


@pytest.fixture
async def gateway(vhost: Vhost, database_url: str) -> AsyncIterator[RunningGateway]:
    lists = "news=The News,books=New Books"
    async with running_gateway(vhost, database_url, public_url="https://news.example", public_lists=lists) as running:
        yield running


@pytest.fixture
async def browser(gateway: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        yield client


async def add(gateway: RunningGateway, email: str, **more: object) -> dict[str, Any]:
    answer = await gateway.admin.post("/v1/subscribers", json={"email": email, "lists": ["news"]} | more)
    assert answer.status_code == 202, answer.text
    person: dict[str, Any] = answer.json()
    return person


async def person(gateway: RunningGateway, email: str) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.admin.get(f"/v1/subscribers/{email}")).json()
    return found


async def link(gateway: RunningGateway, queue: str = "mail.normal") -> tuple[str, str]:
    """Return whom the next mail asks, and the path of the link in it."""
    message = await wait_until(lambda: gateway.vhost.get(queue), 10, "a mail that asks for confirmation")
    task = json(message.body)
    match = re.search(r"https://news\.example(/confirm\?token=\S+)", str(task["text"]))
    assert match is not None
    return str(task["to"]), match[1]


async def test_a_form_a_mail_a_button(gateway: RunningGateway, browser: httpx.AsyncClient) -> None:
    """Signing up makes a pending subscription and a mail; its link shows a button; the button confirms."""
    form = await browser.get("/subscribe")
    assert (form.status_code, form.headers["content-type"]) == (200, "text/html; charset=utf-8")
    fields = {"email": "Ada@Example.com", "name": "Ada Lovelace", "list": "books", "website": ""}
    assert (await browser.post("/subscribe", data=fields)).status_code == 200
    assert (await person(gateway, "ada@example.com"))["lists"]["books"]["state"] == "pending"
    to, path = await link(gateway)
    assert to == "ada@example.com"

    assert "New Books" in (await browser.get(path)).text
    assert (await person(gateway, "ada@example.com"))["state"] == "pending"
    answer = await browser.post(path)

    assert (answer.status_code, "You are subscribed" in answer.text) == (200, True)
    known = await person(gateway, "ada@example.com")
    assert (known["state"], known["name"], list(known["lists"])) == ("confirmed", "Ada Lovelace", ["books"])


async def test_the_form_does_not_tell_who_is_known(gateway: RunningGateway, browser: httpx.AsyncClient) -> None:
    """The same page for a confirmed address as for a new one; no second mail, and the person stays as they are."""
    await add(gateway, "ada@example.com", confirmed=True, name="Ada", attributes={"city": "London"})

    pages = [
        (await browser.post("/subscribe", data={"email": email, "name": "Eve"})).text.replace(email, "")
        for email in ("ada@example.com", "new@example.com", "new@example.com")
    ]

    assert len(set(pages)) == 1
    assert (await link(gateway))[0] == "new@example.com"
    assert await gateway.vhost.get("mail.normal") is None
    assert (await person(gateway, "ada@example.com"))["name"] == "Ada"


async def test_the_form_is_limited_and_sees_through_robots(gateway: RunningGateway, browser: httpx.AsyncClient) -> None:
    """What fills in the hidden field is thanked and ignored; one address can send twenty forms at once, no more."""
    robot = await browser.post("/subscribe", data={"email": "robot@example.com", "website": "http://spam.example"})
    answers = [await browser.post("/subscribe", data={"email": "wrong"}) for _ in range(25)]

    assert robot.status_code == 200
    assert (await gateway.admin.get("/v1/subscribers/robot@example.com")).status_code == 404
    assert {answer.status_code for answer in answers} == {422, 429}
    assert "retry-after" in answers[-1].headers


async def test_what_the_form_says_comes_back_escaped(browser: httpx.AsyncClient) -> None:
    """Markup in a field is text on the page, and the page allows no script anyway."""
    answer = await browser.post("/subscribe", data={"email": '"><script>alert(1)</script>', "name": "<b>"})

    assert answer.status_code == 422
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_only_a_post_unsubscribes(gateway: RunningGateway, browser: httpx.AsyncClient) -> None:
    """Opening the link changes nothing; one click of a mail program (RFC 8058) ends it, with no cookie or redirect."""
    await add(gateway, "ada@example.com", confirmed=True)
    url = unsubscribe_path(gateway, "ada@example.com")

    assert "Unsubscribe" in (await browser.get(url)).text
    assert (await person(gateway, "ada@example.com"))["state"] == "confirmed"
    answer = await browser.post(url, data={"List-Unsubscribe": "One-Click"})

    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert (await person(gateway, "ada@example.com"))["state"] == "unsubscribed"
    assert (await browser.post(url, files={"List-Unsubscribe": (None, "One-Click")})).status_code == 200


def unsubscribe_path(gateway: RunningGateway, email: str) -> str:
    return Links(["k" * 40], gateway.url).unsubscribe(subscriber_id(email), "news").removeprefix(gateway.url)


async def test_who_left_comes_back_by_their_own_hand_alone(gateway: RunningGateway, browser: httpx.AsyncClient) -> None:
    """After unsubscribing neither `confirmed` nor an import makes them confirmed; a mail asks, or nothing happens."""
    await add(gateway, "ada@example.com", confirmed=True)
    await browser.post(unsubscribe_path(gateway, "ada@example.com"))

    imported = await import_(gateway, "email\nada@example.com\n", confirmed="true")
    assert (imported["skipped"], await state(gateway, "ada@example.com")) == (1, "unsubscribed")
    await add(gateway, "ada@example.com", confirmed=True)
    assert await state(gateway, "ada@example.com") == "pending"
    _, path = await link(gateway)
    await browser.post(path)

    assert await state(gateway, "ada@example.com") == "confirmed"


async def test_a_strangers_sign_up_does_not_undo_an_unsubscription(
    gateway: RunningGateway, browser: httpx.AsyncClient
) -> None:
    """Anybody may have filled in the form: until the person confirms, they count as somebody who left."""
    await add(gateway, "ada@example.com", confirmed=True)
    await browser.post(unsubscribe_path(gateway, "ada@example.com"))
    await browser.post("/subscribe", data={"email": "ada@example.com"})
    assert await state(gateway, "ada@example.com") == "pending"

    imported = await import_(gateway, "email\nada@example.com\n", confirmed="true")
    await add(gateway, "ada@example.com", confirmed=True)

    assert (imported["skipped"], await state(gateway, "ada@example.com")) == (1, "pending")
    _, path = await link(gateway)
    await browser.post(path)
    assert await state(gateway, "ada@example.com") == "confirmed"
    assert "unsubscribed_at" not in (await person(gateway, "ada@example.com"))["lists"]["news"]


async def test_who_never_confirms_is_forgotten(vhost: Vhost, database_url: str) -> None:
    """When the link has expired, so has the sign-up; who left before is somebody who left again."""
    async with running_gateway(vhost, database_url) as gateway:
        await add(gateway, "never@example.com")
        await add(gateway, "reader@example.com", confirmed=True)
        await add(gateway, "reader@example.com", lists=["books"])
        await add(gateway, "left@example.com", confirmed=True)
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as browser:
            await browser.post(unsubscribe_path(gateway, "left@example.com"))
        await add(gateway, "left@example.com")

    async with running_gateway(vhost, database_url, confirm_days=1e-6) as gateway:

        async def forgotten() -> bool:
            return (await gateway.admin.get("/v1/subscribers/never@example.com")).status_code == 404

        await wait_until(forgotten, 10, "the sign-up is forgotten")
        assert list((await person(gateway, "reader@example.com"))["lists"]) == ["news"]
        assert await state(gateway, "left@example.com") == "unsubscribed"
        await add(gateway, "left@example.com", confirmed=True)
        assert await state(gateway, "left@example.com") == "pending"


async def test_who_signs_up_again_is_asked_again_after_a_while(
    gateway: RunningGateway, database_url: str, browser: httpx.AsyncClient
) -> None:
    """A lost mail is no dead end, and a form is no way to fill a stranger's mailbox: each wait is twice the last."""

    database = Database(database_url)

    async def asked(minutes: float) -> bool:
        """Let time pass, sign up, and say whether that sent a mail."""
        async with database.write() as connection:
            columns = (subscriptions.c.created_at, subscriptions.c.asked_at)
            earlier = {column: column - round(minutes * 60_000) for column in columns}
            await connection.execute(sa.update(subscriptions).values(earlier))
        await browser.post("/subscribe", data={"email": "ada@example.com"})
        await gateway.admin.post("/v1/mail", json=mail(to="last@example.com"))
        to, again = "", False
        while to != "last@example.com":
            message = await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "a mail")
            to = str(json(message.body)["to"])
            again = again or to == "ada@example.com"
        return again

    answers = [await asked(minutes) for minutes in (0, 9, 2, 9, 3, 10, 15, 10)]
    await database.close()
    assert answers == [True, False, True, False, True, False, True, False]


async def state(gateway: RunningGateway, email: str) -> str:
    found: str = (await person(gateway, email))["state"]
    return found


async def import_(gateway: RunningGateway, text: str, **query: str) -> dict[str, Any]:
    answer = await gateway.admin.post(
        "/v1/subscribers/import",
        params={"lists": "news"} | query,
        content=text.encode(),
        headers={"Content-Type": "text/csv"},
    )
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_a_file_is_imported_and_can_be_sent_again(gateway: RunningGateway) -> None:
    """Good lines are taken, wrong ones told with their numbers; the second time everybody is known."""
    lines = [f"reader-{number}@example.com,Reader {number},City {number}" for number in range(600)]
    text = "\n".join(["Email,Name,City", *lines[:300], "nonsense,,", "a@example.com,a,b,c", *lines[300:]])

    first = await import_(gateway, text, confirmed="true")
    again = await import_(gateway, text, confirmed="true")

    assert (first["new"], first["wrong"], [error["line"] for error in first["errors"]]) == (600, 2, [302, 303])
    assert (again["new"], again["known"]) == (0, 600)
    assert (await person(gateway, "reader-7@example.com"))["attributes"] == {"city": "City 7"}
    assert (await gateway.admin.get("/v1/lists")).json() == {"lists": {"news": {"confirmed": 600}}}


async def test_an_import_without_consent_asks_everybody(gateway: RunningGateway) -> None:
    """Unless `confirmed`, each new person gets one mail on the bulk lane."""
    await import_(gateway, "email\na@example.com\nb@example.com\na@example.com\n")

    asked = {(await link(gateway, "mail.bulk"))[0] for _ in range(2)}
    assert asked == {"a@example.com", "b@example.com"}
    assert await gateway.vhost.get("mail.bulk") is None


async def test_people_are_listed_page_by_page(gateway: RunningGateway) -> None:
    """By list and state, each once; a suppressed address shows as suppressed."""
    rows = "\n".join(f"reader-{number}@example.com" for number in range(5))
    await import_(gateway, f"email\n{rows}\n", confirmed="true")
    await add(gateway, "other@example.com", lists=["books"], confirmed=True)
    await gateway.admin.post("/v1/suppressions", json={"address": "reader-3@example.com", "reason": "asked by phone"})
    seen: list[tuple[str, str]] = []
    cursor: dict[str, str] = {}
    while True:
        params = {"list": "news", "state": "confirmed", "limit": "2", **cursor}
        page = (await gateway.admin.get("/v1/subscribers", params=params)).json()
        seen += [(each["email"], each["state"]) for each in page["subscribers"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    states = ["confirmed", "confirmed", "confirmed", "suppressed", "confirmed"]
    assert seen == [(f"reader-{number}@example.com", state) for number, state in enumerate(states)]
    only = (await gateway.admin.get("/v1/subscribers", params={"state": "suppressed"})).json()["subscribers"]
    assert [each["email"] for each in only] == ["reader-3@example.com"]


async def test_a_page_begins_where_the_last_one_ended_though_its_last_person_is_gone(gateway: RunningGateway) -> None:
    """An export that walks through the pages loses nobody."""
    rows = "\n".join(f"reader-{number}@example.com" for number in range(9))
    await import_(gateway, f"email\n{rows}\n", confirmed="true")
    first = (await gateway.admin.get("/v1/subscribers", params={"limit": 3})).json()
    await gateway.admin.delete(f"/v1/subscribers/{first['subscribers'][-1]['email']}")

    second = (await gateway.admin.get("/v1/subscribers", params={"cursor": first["next"]})).json()

    assert [each["email"] for each in second["subscribers"]] == [
        f"reader-{number}@example.com" for number in range(3, 9)
    ]
    assert second["next"] is None


async def test_an_address_of_any_characters_can_be_found_and_undone(gateway: RunningGateway) -> None:
    """`Location` is percent-encoded (RFC 3986), and a slash in an address stays part of it."""
    for email in ("a/b@example.com", "用户@example.com", "100%?#@example.com"):
        added = await gateway.admin.post("/v1/subscribers", json={"email": email, "lists": ["news"], "confirmed": True})
        await gateway.admin.post("/v1/suppressions", json={"address": email, "reason": "asked"})
        suppression = f"/v1/suppressions/{quote(email, safe='@')}"

        assert added.status_code == 202, added.text
        assert (await gateway.admin.get(added.headers["location"])).json()["email"] == email
        assert (await gateway.admin.get(suppression)).json()["reason"] == "asked"
        assert (await gateway.admin.delete(suppression)).status_code == 204
        assert (await gateway.admin.delete(added.headers["location"])).status_code == 204
        assert (await gateway.admin.get(added.headers["location"])).status_code == 404


async def test_a_person_can_be_forgotten(gateway: RunningGateway) -> None:
    """DELETE erases the person; asking again is 404."""
    await add(gateway, "ada@example.com", confirmed=True)

    assert (await gateway.admin.delete("/v1/subscribers/Ada@example.com")).status_code == 204
    assert (await gateway.admin.get("/v1/subscribers/ada@example.com")).status_code == 404
    assert (await gateway.admin.delete("/v1/subscribers/ada@example.com")).status_code == 404


async def test_a_hard_bounce_suppresses_and_a_policy_refusal_does_not(gateway: RunningGateway) -> None:
    """5.1.1 ends all mail to that address, which ends as `suppressed` at once; 5.7.1 is about us, not about them."""
    ids = {}
    for to, enhanced in (("gone@example.com", "5.1.1"), ("strict@example.com", "5.7.1")):
        ids[to] = (await gateway.admin.post("/v1/mail", json=mail(to=to))).json()["id"]
        await gateway.report(ids[to], State.FAILED, code=550, enhanced=enhanced, reply=f"{enhanced} no")

    async def both_failed() -> bool:
        return [await gateway.state(task_id) for task_id in ids.values()] == ["failed", "failed"]

    await wait_until(both_failed, 10, "both mails failed")
    answers = [
        await gateway.admin.post("/v1/mail", json=mail(to=to)) for to in ("Gone@example.com", "strict@example.com")
    ]

    assert [answer.json()["state"] for answer in answers] == ["suppressed", "queued"]
    task = (await gateway.admin.get(f"/v1/tasks/{answers[0].json()['id']}")).json()
    assert (task["state"], task["attempts"][0]["reply"]) == (
        "suppressed",
        "The address is suppressed: 550 5.1.1 no",
    )
    suppressed = (await gateway.admin.get("/v1/suppressions")).json()["suppressions"]
    assert [(each["address"], each["source"]) for each in suppressed] == [("gone@example.com", "bounce")]


async def test_a_suppression_ends_by_hand_or_by_time(gateway: RunningGateway) -> None:
    """After DELETE, and after `expires_at`, mail goes out again."""
    soon = (now() + timedelta(seconds=1.5)).isoformat()
    await gateway.admin.post("/v1/suppressions", json={"address": "a@example.com", "reason": "r", "expires_at": soon})
    await gateway.admin.post("/v1/suppressions", json={"address": "b@example.com", "reason": "r"})

    async def state_of(to: str) -> str:
        found: str = (await gateway.admin.post("/v1/mail", json=mail(to=to))).json()["state"]
        return found

    assert [await state_of("a@example.com"), await state_of("b@example.com")] == ["suppressed", "suppressed"]
    assert (await gateway.admin.delete("/v1/suppressions/b@example.com")).status_code == 204
    assert await state_of("b@example.com") == "queued"

    async def expired() -> bool:
        return await state_of("a@example.com") == "queued"

    await wait_until(expired, 10, "the suppression has ended")


async def test_the_same_person_50_times_in_parallel_is_asked_once(gateway: RunningGateway) -> None:
    """However often a form is sent, one mail goes out."""
    await asyncio.gather(*(add(gateway, "ada@example.com") for _ in range(50)))

    assert (await link(gateway))[0] == "ada@example.com"
    assert await gateway.vhost.get("mail.normal") is None


async def test_subscribers_need_their_scopes(gateway: RunningGateway) -> None:
    """A key for mail alone sees nobody."""
    async with gateway.client(await gateway.make_key("mailer", "mail:send", "mail:read")) as stranger:
        answers = [
            await stranger.get("/v1/subscribers"),
            await stranger.post("/v1/subscribers", json={"email": "a@example.com", "lists": ["news"]}),
            await stranger.get("/v1/suppressions"),
            await stranger.post("/v1/broadcasts", json={"list": "news", "subject": "s", "text": "t"}),
        ]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 403]
