"""Mails: one with a long poll, many on three lanes, and some that an event causes."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_string
from email.message import EmailMessage
from email.policy import default
from functools import partial
from typing import Any

from bellhop.cli.errors import CannotRun
from bellhop.demo.api import Api, gather_limited
from bellhop.demo.steps import StepResult, Stopwatch, System

MAILS = 500
ORDERS = 10
REQUESTS = 5
FOLLOWERS = 15
CONCURRENT_REQUESTS = 16
LOOK_SECONDS = 0.25
PAGE = 500
# RFC 2606, 3: the domain has no mailboxes, so no mail of a demo can reach a person.
DOMAIN = "example.com"
# The same scale for all, so that the table shows which lane is which: 10 % urgent, 40 % normal, 50 % bulk.
LANES = ("urgent", *["normal"] * 4, *["bulk"] * 5)


async def one_mail(system: System) -> StepResult:
    """Send one mail, wait for its outcome with one long poll, and find it in the mailbox.

    This also checks that mails go to the mailbox, before hundreds are sent.
    """
    result, watch = StepResult("one mail, a long poll"), Stopwatch()
    request = {
        "to": f"first@{DOMAIN}",
        "subject": subject(system, "first"),
        "text": "This is the first mail of the demo.",
        "lane": "urgent",
    }
    task = await system.gateway.post("/v1/mail", request, key=f"{system.run}-first")
    result.accepted = 1
    while True:
        state = await system.gateway.get(f"/v1/tasks/{task['id']}", timeout=60, wait=25)
        if state["state"] in ("sent", "failed", "cancelled", "suppressed") or watch.stalled(0):
            break
    await judge(system, {task["id"]: state}, result, watch)
    if result.lost and state["state"] == "sent":
        raise CannotRun(
            f"The first mail was sent, but is not in the mailbox at {system.mailbox.base_url}: the mailer seems to"
            " use another relay, so no more mails are sent. Set BELLHOP_MAILBOX_URL to the mailbox that it uses."
        )
    result.remark = f"{1000 * result.seconds:.0f} ms from POST to mailbox"
    return result


async def mails(system: System) -> StepResult:
    """Send mails on all lanes: some by a template, some due in a second, some twice with the same key."""
    result, watch = StepResult(f"{MAILS} mails, three lanes"), Stopwatch()
    bar = system.progress.add_task("  accepted", total=MAILS)
    due: dict[str, datetime] = {}

    async def send(number: int) -> None:
        request = mail_request(system, number)
        key = f"{system.run}-mail-{number}"
        answer = await system.gateway.post("/v1/mail", request, key=key)
        if number % 5 == 0:
            again = await system.gateway.post("/v1/mail", request, key=key)
            if again["id"] != answer["id"]:
                result.wrong.append(f"the same Idempotency-Key made two tasks, {answer['id']} and {again['id']}")
        due[answer["id"]] = datetime.fromisoformat(request["send_at"]) if "send_at" in request else datetime.min
        system.progress.advance(bar)

    await gather_limited([partial(send, number) for number in range(MAILS)], CONCURRENT_REQUESTS)
    result.accepted = len(due)
    if len(due) != MAILS:
        result.wrong.append(f"{MAILS} mails under as many keys made only {len(due)} tasks")
    tasks = await follow(system, set(due), watch)
    for task_id, task in tasks.items():
        if due[task_id] != datetime.min and datetime.fromisoformat(task["finished_at"]) < due[task_id]:
            result.wrong.append(f"task {task_id} was sent before its time, {due[task_id].isoformat()}")
    await judge(system, {task_id: tasks.get(task_id) for task_id in due}, result, watch)
    return result


def mail_request(system: System, number: int) -> dict[str, Any]:
    """Return mail `number`: every fourth by a template, every tenth due in a second."""
    request: dict[str, Any] = {"to": f"reader-{number}@{DOMAIN}", "lane": LANES[number % len(LANES)]}
    if number % 4 == 0:
        request |= {"template": "welcome", "data": {"name": subject(system, str(number))}}
    else:
        request |= {"subject": subject(system, str(number)), "text": f"Mail {number} of the demo."}
    if number % 10 == 7:
        request["send_at"] = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    return request


async def _set_off(system: System, event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks that an event caused; none while the ledger does not know them."""
    found = await system.gateway.find("/v1/events", id=event["id"], source=event["source"])
    return [] if found is None else list(found["tasks"])


async def reactions(system: System) -> StepResult:
    """Publish events that templates react to, each twice under one id: an order and a friend request send one mail.

    A new book sends one to each follower of its genre.
    """
    mails = ORDERS + REQUESTS + FOLLOWERS
    result, watch = StepResult(f"{mails} mails that events send"), Stopwatch()
    events = {event["id"]: (event, count) for event, count in _reactions(system)}
    bar = system.progress.add_task("  events accepted", total=len(events))
    for event, _ in events.values():
        for _ in range(2):
            await system.gateway.post("/v1/events", event, content_type="application/cloudevents+json")
        system.progress.advance(bar)
    result.accepted = mails
    bar = system.progress.add_task("  mails sent", total=mails)
    tasks: dict[str, dict[str, Any] | None] = {}
    missing = {event_id: count for event_id, (_, count) in events.items()}
    while missing and not watch.stalled(len(tasks)):
        for event_id in list(missing):
            listed = await _set_off(system, events[event_id][0])
            ended = {task["id"]: task for task in listed if task["state"] in ("sent", "failed")}
            tasks |= ended
            missing[event_id] = events[event_id][1] - len(ended)
            if missing[event_id] < 0:
                result.wrong.append(f"the event {event_id} made {-missing[event_id]} tasks too many")
            if missing[event_id] <= 0:
                del missing[event_id]
        system.progress.update(bar, completed=len(tasks))
        await asyncio.sleep(LOOK_SECONDS)
    if not tasks:
        result.remark = "does a mail template say 'on: order.placed'?"
    tasks |= {f"{event_id}, mail {number + 1}": None for event_id, count in missing.items() for number in range(count)}
    await judge(system, tasks, result, watch)
    return result


def _reactions(system: System) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield events, each with the number of mails that it causes."""
    for number in range(ORDERS):
        yield order(system, number), 1
    for number in range(REQUESTS):
        data = {"from": subject(system, f"friend {number}"), "email": f"member-{number}@{DOMAIN}"}
        yield _event(system, f"request-{number}", "friend.requested", data), 1
    followers = [{"email": f"follower-{number}@{DOMAIN}", "name": f"Reader {number}"} for number in range(FOLLOWERS)]
    book = {"genre": "crime", "title": subject(system, "The Bell"), "author": "A. Hop", "followers": followers}
    yield _event(system, "book", "book.published", book), FOLLOWERS


def order(system: System, number: int) -> dict[str, Any]:
    """Return the event of an order."""
    data = {
        "order": subject(system, f"order {number}"),
        "email": f"customer-{number}@{DOMAIN}",
        "items": [{"quantity": 1 + number % 3, "name": "brass bell"}],
    }
    return _event(system, f"order-{number}", "order.placed", data)


def _event(system: System, name: str, event_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return a CloudEvent in structured mode."""
    return {
        "specversion": "1.0",
        "id": f"{system.run}-{name}",
        "source": "/demo",
        "type": event_type,
        "subject": f"{system.run}-{name}",
        "data": data,
    }


async def follow(system: System, wanted: set[str], watch: Stopwatch) -> dict[str, dict[str, Any]]:
    """Return the ended tasks among `wanted`, when all have ended or the count stalls."""
    bar = system.progress.add_task("  sent", total=len(wanted))
    while True:
        found: dict[str, dict[str, Any]] = {}
        query: dict[str, Any] = {"kind": "mail", "limit": PAGE}
        while True:
            page = await system.gateway.get("/v1/tasks", **query)
            found |= {task["id"]: task for task in page["tasks"] if task["id"] in wanted}
            if page["next"] is None or len(found) == len(wanted):
                break
            query["cursor"] = page["next"]
        ended = {task_id: task for task_id, task in found.items() if "finished_at" in task}
        system.progress.update(bar, completed=len(ended))
        if len(ended) == len(wanted) or watch.stalled(len(ended)):
            return ended
        await asyncio.sleep(LOOK_SECONDS)


async def judge(system: System, tasks: dict[str, dict[str, Any] | None], result: StepResult, watch: Stopwatch) -> None:
    """Compare `tasks` in the ledger with the mails in the mailbox.

    A second copy is at-least-once delivery, and is correct if the task is marked `uncertain` (RFC 1047).
    """
    result.seconds = watch.seconds
    bar = system.progress.add_task("  in the mailbox", total=len(tasks))
    mailbox = MailboxClient(system.mailbox, system.run)
    looking = Stopwatch()
    sent = {task_id for task_id, task in tasks.items() if task is not None and task["state"] == "sent"}
    while True:
        contents = await mailbox.look()
        copies = contents.copies
        arrived = sent & copies.keys()
        if 0 < len(sent - arrived) <= contents.hidden:
            result.remark = f"{len(sent - arrived)} of them only counted: the mailbox does not list them"
            arrived = sent
        system.progress.update(bar, completed=len(arrived))
        # The ledger has `sent` after the mailbox accepted the mail: a mail that is missing now is lost.
        if arrived == sent or looking.seconds > 10:
            break
        await asyncio.sleep(LOOK_SECONDS)
    result.done = len(arrived)
    result.lost = len(tasks) - result.done
    result.doubled = sum(copies[task_id] - 1 for task_id in arrived & copies.keys())
    found: dict[str, list[str]] = {}
    for task_id, task in tasks.items():
        if task is None:
            found.setdefault("mails have not ended", []).append(task_id)
        elif task["state"] != "sent":
            what = f"tasks are {task['state']} ({await last_reply(system, task_id)})"
            found.setdefault(what, []).append(task_id)
        elif task_id not in arrived:
            found.setdefault("mails are sent, but not in the mailbox", []).append(task_id)
        elif copies[task_id] > 1 and not task["uncertain"]:
            found.setdefault("mails came twice although they are not marked uncertain", []).append(task_id)
    result.wrong += [f"{len(ids)} {what}, {ids[0]} for one" for what, ids in found.items()]


async def last_reply(system: System, task_id: str) -> str:
    """Return the last reply of the mail server."""
    attempts = (await system.gateway.get(f"/v1/tasks/{task_id}")).get("attempts", [])
    return str(attempts[-1].get("reply")) if attempts else "no attempt was made"


@dataclass(frozen=True)
class MailboxClient:
    """The mails of one run, read by the part of Mailpit's API that the development mailbox has too."""

    api: Api
    run: str

    async def look(self) -> "Contents":
        """Return the mails of this run: its name is in their subject or in their recipient."""
        found: dict[str, Arrived] = {}
        start = 0
        while True:
            answer = await self.api.get("/api/v1/messages", start=start, limit=PAGE)
            page = answer["messages"]
            ours = {mail["ID"]: _arrived(mail) for mail in page if self._is_ours(mail)}
            # By the mailbox's own id: a mail that arrives meanwhile shifts others to the next page.
            found |= ours
            # The newest come first, and nothing of this run is older than its first mail.
            if found and not ours:
                return Contents(list(found.values()), 0)
            if len(page) < PAGE:
                return Contents(list(found.values()), max(0, answer["total"] - start - len(page)))
            start += PAGE

    async def open(self, arrived: "Arrived") -> EmailMessage | None:
        """Return the source of a mail; None from a mailbox that only lists mails."""
        source = await self.api.page(f"/api/v1/message/{arrived.id}/raw")
        return message_from_string(source, policy=default) if source else None

    def _is_ours(self, mail: dict[str, Any]) -> bool:
        return self.run in mail["Subject"] or any(self.run in one["Address"] for one in mail["To"] or ())


def _arrived(mail: dict[str, Any]) -> "Arrived":
    to = mail["To"][0]["Address"] if mail["To"] else ""
    # A Message-ID begins with the id of the task.
    return Arrived(mail["ID"], mail["MessageID"].partition("@")[0], to, mail["Subject"])


@dataclass(frozen=True)
class Arrived:
    """One mail in the mailbox."""

    id: str
    """The mailbox's own id."""
    task_id: str
    to: str
    subject: str


@dataclass(frozen=True)
class Contents:
    """Mails that a mailbox lists."""

    mails: list[Arrived]
    hidden: int
    """Further mails that it counts and does not list: some mailboxes list only their newest."""

    @property
    def copies(self) -> Counter[str]:
        """Count the mails of each task."""
        return Counter(mail.task_id for mail in self.mails)


def subject(system: System, what: str) -> str:
    """Return a subject that names the run."""
    return f"{system.run}: {what}"
