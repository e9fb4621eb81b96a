"""Live notifications, and the clients that follow them: each must see each of its notifications once, in order."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from bellhop.cli.errors import CannotRun
from bellhop.demo.steps import StepResult, Stopwatch, System

CLIENTS = 20
TEAMS = 4
NOTIFICATIONS = 200
LEAVE_AFTER = 40
"""Every fifth client disconnects after this number of notifications, and resumes."""
PAUSE_SECONDS = 0.01
LONGEST_SILENCE_SECONDS = 40.0
"""Seconds; the notifier sends a ping every 15."""


async def notifications(system: System) -> StepResult:
    """Follow channels with many clients, raise notifications, and check what each client has received."""
    result, watch = StepResult(f"{NOTIFICATIONS} notifications, {CLIENTS} clients"), Stopwatch()
    clients = await clients_of(system)
    following = [asyncio.create_task(client.follow()) for client in clients]
    try:
        await all_ready(clients, following)
        sent = await raise_all(system)
        await all_seen(system, clients, following, sent, watch)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    result.seconds = watch.seconds
    judge(clients, sent, result)
    return result


class Client:
    """One reader of Server-Sent Events that reconnects as a browser does, with the last id it has received.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self, url: str, token: str, channels: frozenset[str], leave_after: int | None) -> None:
        """`leave_after`: close the connection once, after this number of notifications."""
        self.channels = channels
        self.ready = asyncio.Event()
        self.seen: Counter[str] = Counter()
        self.sequence: list[str] = []
        """Ids of events, in the order of receipt."""
        self.delays: list[float] = []
        """Seconds from before the POST to the receipt."""
        self.gaps = 0
        self.resumed = 0
        self._url = url
        self._token = token
        self._leave_after = leave_after
        self._last_id: str | None = None

    async def follow(self) -> None:
        """Read until cancelled."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        timeout = httpx.Timeout(5, read=LONGEST_SILENCE_SECONDS)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
            while True:
                try:
                    async with aclosing(self._events(http)) as events:
                        async for name, data in events:
                            self._take(name, data)
                            if self._leave_after is not None and len(self.sequence) >= self._leave_after:
                                self._leave_after = None
                                break
                except httpx.TransportError:
                    await asyncio.sleep(random.uniform(0.2, 1.0))  # not all together

    async def _events(self, http: httpx.AsyncClient) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        headers = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        async with http.stream("GET", self._url, headers=headers) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")[:200]
                if response.status_code < 500 and response.status_code != 429:
                    raise CannotRun(f"The notifier at {self._url} refused a stream: {response.status_code}, {text}")
                raise httpx.RemoteProtocolError(text)
            if self._last_id is not None:
                self.resumed += 1
            name, data = "message", ""
            async for line in response.aiter_lines():
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "id":
                    self._last_id = value
                elif field == "event":
                    name = value
                elif field == "data":
                    data += value
                elif not line:
                    if data:
                        yield name, json.loads(data)
                    name, data = "message", ""

    def _take(self, name: str, data: dict[str, Any]) -> None:
        if name == "ready":
            self.ready.set()
        elif name == "gap":
            self.gaps += 1
        elif name == "notification.raised":
            self.seen[data["event_id"]] += 1
            self.sequence.append(data["id"])
            if not self.resumed:
                self.delays.append(time.time() - data["data"]["data"]["sent"])


async def clients_of(system: System) -> list[Client]:
    """Return the clients: all follow the news, and each one of a few teams besides."""
    clients = []
    for team in range(TEAMS):
        channels = [f"{system.run}:news", f"{system.run}:team-{team}"]
        wish = {"subject": f"{system.run}-team-{team}", "channels": channels}
        grant = await system.gateway.post("/v1/stream-tokens", wish)
        url = f"{system.notifier_url.rstrip('/')}/v1/stream" if system.notifier_url else grant["url"]
        for number in range(CLIENTS // TEAMS):
            leave_after = LEAVE_AFTER if number == 0 else None
            clients.append(Client(url, grant["token"], frozenset(channels), leave_after))
    return clients


async def raise_all(system: System) -> dict[str, frozenset[str]]:
    """Raise the notifications one after the other; return the channels of each, by its id."""
    bar = system.progress.add_task("  accepted", total=NOTIFICATIONS)
    sent: dict[str, frozenset[str]] = {}
    for number in range(NOTIFICATIONS):
        channels = channels_of(system.run, number)
        notification = {"channels": channels, "title": f"Notification {number}", "data": {"sent": time.time()}}
        answer = await system.gateway.post("/v1/notifications", notification, key=f"{system.run}-live-{number}")
        sent[answer["id"]] = frozenset(channels)
        system.progress.advance(bar)
        await asyncio.sleep(PAUSE_SECONDS)
    return sent


def channels_of(run: str, number: int) -> list[str]:
    """Return the channels of notification `number`: the common one, a team's, or both; a client receives it once."""
    team = f"{run}:team-{number // 3 % TEAMS}"
    return ([f"{run}:news"], [team], [f"{run}:news", team])[number % 3]


async def all_ready(clients: list[Client], following: list["asyncio.Task[None]"]) -> None:
    """Wait until every client is live: earlier notifications are not for it."""
    watch = Stopwatch()
    while not all(client.ready.is_set() for client in clients):
        raise_failure(following)
        if watch.stalled(sum(client.ready.is_set() for client in clients)):
            raise CannotRun("The notifier accepts no client: see its log, or set BELLHOP_NOTIFIER_URL.")
        await asyncio.sleep(0.05)


async def all_seen(
    system: System,
    clients: list[Client],
    following: list["asyncio.Task[None]"],
    sent: dict[str, frozenset[str]],
    watch: Stopwatch,
) -> None:
    """Wait until every client has received everything, or the count stalls."""
    expected = sum(len(wanted(client, sent)) for client in clients)
    bar = system.progress.add_task("  seen by clients", total=expected)
    while True:
        raise_failure(following)
        seen = sum(len(client.seen) for client in clients)
        system.progress.update(bar, completed=seen)
        if seen >= expected or watch.stalled(seen):
            return
        await asyncio.sleep(0.05)


def raise_failure(following: list["asyncio.Task[None]"]) -> None:
    """Raise the error that ended a client, if there is one."""
    for task in following:
        if task.done():
            task.result()


def wanted(client: Client, sent: dict[str, frozenset[str]]) -> set[str]:
    """Return the ids of the notifications that `client` must see."""
    return {event_id for event_id, channels in sent.items() if channels & client.channels}


def judge(clients: list[Client], sent: dict[str, frozenset[str]], result: StepResult) -> None:
    """Count, for every client, notifications that are missing, doubled, or out of order."""
    for number, client in enumerate(clients):
        expected = wanted(client, sent)
        result.accepted += len(expected)
        result.done += len(expected & client.seen.keys())
        result.doubled += sum(client.seen.values()) - len(client.seen)
        if missing := len(expected - client.seen.keys()):
            result.wrong.append(f"client {number} did not see {missing} notifications")
        if doubled := sum(client.seen.values()) - len(client.seen):
            result.wrong.append(f"client {number} saw {doubled} notifications twice")
        if client.seen.keys() - expected:
            result.wrong.append(f"client {number} saw notifications of channels that it does not follow")
        if client.gaps:
            result.wrong.append(f"client {number} received {client.gaps} gaps: events are missing")
        offsets = [int(event_id.rpartition(":")[2]) for event_id in client.sequence]
        if offsets != sorted(offsets):
            result.wrong.append(f"client {number} saw notifications out of order")
    result.lost = result.accepted - result.done
    delays = sorted(delay for client in clients for delay in client.delays)
    resumed = sum(client.resumed for client in clients)
    result.remark = f"{resumed} times resumed"
    if delays:
        result.remark += f"; POST to client {1000 * delays[len(delays) // 2]:.0f} ms (p50)"
