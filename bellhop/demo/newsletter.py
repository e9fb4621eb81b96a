"""The newsletter: people sign up at the form, confirm by mail, are mailed, and one unsubscribes with one click.

Other subscribers of the public list must get no mail of a demo. So those who confirmed are added to a list of this run,
with more people from a file, and at the end all of them are erased.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from bellhop.cli.errors import CannotRun
from bellhop.demo.api import gather_limited
from bellhop.demo.mail import CONCURRENT_REQUESTS, DOMAIN, LOOK_SECONDS, Arrived, MailboxClient, judge, subject
from bellhop.demo.steps import StepResult, Stopwatch, System

MEMBERS = 6
"""People who sign up at the form. It accepts about 20 in a burst from one address, so demos can run in succession."""
READERS = 200
PAGE = 1000
ENDED = ("sent", "failed", "cancelled", "suppressed")
_LINK = re.compile(r"https?://\S+")


def members(system: System) -> list[str]:
    """Return the addresses of the people who sign up at the form."""
    return [f"{system.run}-member-{number}@{DOMAIN}" for number in range(MEMBERS)]


def readers(system: System) -> list[str]:
    """Return the addresses of the people in the file."""
    return [f"{system.run}-reader-{number}@{DOMAIN}" for number in range(READERS)]


# Double opt-in


async def sign_ups(system: System) -> StepResult:
    """Sign up people at the public form, and confirm each with the link in the mail."""
    result, watch = StepResult(f"{MEMBERS} sign-ups, confirmed by mail"), Stopwatch()
    people = members(system)
    bar = system.progress.add_task("  signed up", total=MEMBERS)
    await system.visitor.page("/subscribe")
    for number, email in enumerate(people):
        await system.visitor.fill_in("/subscribe", email=email, name=f"Member {number}")
        system.progress.advance(bar)
    result.accepted = MEMBERS
    asked = await questions(system, people, watch)
    shown = all([await confirm(system, mail, result) for mail in asked])
    tasks: dict[str, dict[str, Any] | None] = {
        mail.task_id: await system.gateway.get(f"/v1/tasks/{mail.task_id}", timeout=60, wait=25) for mail in asked
    }
    tasks |= {f"the one to {email}": None for email in set(people) - {mail.to for mail in asked}}
    await judge(system, tasks, result, watch)
    if not shown:
        result.remark = "not confirmed: the mailbox lists mails, but shows none of them"
    elif not_confirmed := [email for email in people if await state(system, email) != "confirmed"]:
        result.wrong.append(f"{len(not_confirmed)} people are not confirmed, {not_confirmed[0]} for one")
        result.done = min(result.done, MEMBERS - len(not_confirmed))
        result.lost = MEMBERS - result.done
    return result


async def questions(system: System, people: Collection[str], watch: Stopwatch) -> list[Arrived]:
    """Return one mail to each of `people`, when all have arrived or the count stalls."""
    bar = system.progress.add_task("  asked by mail", total=len(people))
    mailbox = MailboxClient(system.mailbox, system.run)
    while True:
        found = {mail.to: mail for mail in (await mailbox.look()).mails if mail.to in people}
        system.progress.update(bar, completed=len(found))
        if len(found) == len(people) or watch.stalled(len(found)):
            return list(found.values())
        await asyncio.sleep(LOOK_SECONDS)


async def confirm(system: System, mail: Arrived, result: StepResult) -> bool:
    """Open the link in a mail, as a scanner does, and then press the button; False if the mailbox has no source."""
    message = await MailboxClient(system.mailbox, system.run).open(mail)
    if message is None:
        return False
    body = message.get_body(("plain",))
    link = _LINK.search(str(body.get_content())) if body is not None else None
    if link is None:
        raise CannotRun(f"The mail {mail.subject!r} to {mail.to} has no link to confirm by.")
    await system.visitor.page(path_of(link[0]))
    if await state(system, mail.to) != "pending":
        result.wrong.append(f"{mail.to} was subscribed by opening a link, without pressing a button")
    await system.visitor.fill_in(path_of(link[0]))
    return True


def path_of(link: str) -> str:
    """Return the path of a link in a mail; its host is the gateway's public name, which may not resolve here."""
    parts = urlsplit(link)
    return f"/{parts.path.rpartition('/')[2]}?{parts.query}"


async def state(system: System, email: str) -> str:
    """Return the state of a subscriber."""
    return str((await system.gateway.get(f"/v1/subscribers/{email}"))["state"])


# Broadcasts


async def broadcasts(system: System) -> StepResult:
    """Send an issue to all subscribers, unsubscribe one with one click, and send another issue."""
    result, watch = StepResult(f"2 issues of a newsletter, {READERS + MEMBERS} people"), Stopwatch()
    people = await subscribe_all(system)
    tasks = await issue(system, 1, people, result, watch)
    leaver = await leave(system, result)
    tasks |= await issue(system, 2, people - {leaver}, result, watch)
    await judge(system, tasks, result, watch)
    if leaver is None:
        result.remark = "no one unsubscribed: the mailbox lists mails, but shows none of them"
    else:
        result.remark = result.remark or "one unsubscribed with one click after the first"
    contents = await MailboxClient(system.mailbox, system.run).look()
    if any(mail.to == leaver and mail.subject == title(system, 2) for mail in contents.mails):
        result.wrong.append(f"{leaver} unsubscribed, and got the next issue")
    await gather_limited(
        [partial(system.gateway.delete, f"/v1/subscribers/{email}") for email in people], CONCURRENT_REQUESTS
    )
    return result


async def subscribe_all(system: System) -> set[str]:
    """Subscribe all people to the list of this run."""
    rows = "\n".join(f"{email},Reader {number}" for number, email in enumerate(readers(system)))
    await system.gateway.send(
        "/v1/subscribers/import", f"email,name\n{rows}\n", "text/csv", lists=system.run, confirmed="true"
    )
    for email in members(system):
        await system.gateway.post("/v1/subscribers", {"email": email, "lists": [system.run], "confirmed": True})
    return {*members(system), *readers(system)}


def title(system: System, number: int) -> str:
    """Return the subject of an issue."""
    return subject(system, f"issue {number}")


async def issue(
    system: System, number: int, people: set[str], result: StepResult, watch: Stopwatch
) -> dict[str, dict[str, Any] | None]:
    """Send one broadcast, show its progress, and return the task of each of `people`; None if there is none."""
    wish = {
        "list": system.run,
        "subject": title(system, number),
        "text": "Dear {{ subscriber.name }},\n\nthere is news.\n\nNo more of it: {{ subscriber.unsubscribe_url }}\n",
    }
    broadcast = await system.gateway.post("/v1/broadcasts", wish, key=f"{system.run}-issue-{number}")
    result.accepted += len(people)
    await follow(system, broadcast["id"], number, len(people), watch)
    listed = await tasks_of(system, broadcast["id"])
    mailed = Counter(task["to"] for task in listed)
    if strangers := mailed.keys() - people:
        result.wrong.append(f"issue {number} went to {len(strangers)} people who are not on its list")
    if twice := [email for email, count in mailed.items() if count > 1]:
        result.wrong.append(f"issue {number} has more than one task for {len(twice)} people, {twice[0]} for one")
    tasks: dict[str, dict[str, Any] | None] = {task["id"]: task for task in listed if task["state"] in ENDED}
    ended = {task["to"] for task in tasks.values() if task is not None}
    return tasks | {f"issue {number} to {email}": None for email in people - ended}


async def follow(system: System, broadcast_id: str, number: int, total: int, watch: Stopwatch) -> None:
    """Show the progress of a broadcast until it is finished, or the count stalls."""
    bar = system.progress.add_task(f"  issue {number}", total=total)
    while True:
        progress = await system.gateway.get(f"/v1/broadcasts/{broadcast_id}")
        done = sum(progress["counts"][each] for each in ENDED)
        rate, left = progress.get("rate_per_second", 0), progress.get("eta_seconds")
        ahead = "" if left is None else f", {left:.0f} s to go"
        system.progress.update(bar, completed=done, description=f"  issue {number}: {rate:,.0f} a second{ahead}")
        if progress["state"] == "finished" or watch.stalled(total * (number - 1) + done):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def tasks_of(system: System, broadcast_id: str) -> list[dict[str, Any]]:
    """Return all tasks of a broadcast, page by page."""
    tasks: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": PAGE}
    while True:
        page = await system.gateway.get(f"/v1/broadcasts/{broadcast_id}/tasks", **query)
        tasks += page["tasks"]
        if page["next"] is None:
            return tasks
        query["cursor"] = page["next"]


async def leave(system: System, result: StepResult) -> str | None:
    """Unsubscribe one person as a mail program does, with one POST to the URL in the mail's headers (RFC 8058).

    Returns the address; None if the mailbox has no source of the mail.
    """
    mailbox = MailboxClient(system.mailbox, system.run)
    mail = next((one for one in (await mailbox.look()).mails if one.subject == title(system, 1)), None)
    message = None if mail is None else await mailbox.open(mail)
    if mail is None or message is None:
        return None
    if message["List-Unsubscribe-Post"] != "List-Unsubscribe=One-Click" or not message["List-Unsubscribe"]:
        result.wrong.append("the issues lack the headers of RFC 8058 for a click to unsubscribe")
        return None
    link = str(message["List-Unsubscribe"]).strip("<>")
    await system.visitor.fill_in(path_of(link), **{"List-Unsubscribe": "One-Click"})
    person = await system.gateway.get(f"/v1/subscribers/{mail.to}")
    if person["lists"][system.run]["state"] != "unsubscribed":
        result.wrong.append(f"{mail.to} clicked to unsubscribe, and is still on the list")
    return mail.to
