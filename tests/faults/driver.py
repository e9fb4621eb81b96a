"""Clients that do what good clients do: a request has an idempotency key, and is sent again until it is answered."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from tests.faults.oracle import Books
from tests.faults.system import System
from tests.support import wait_until

BOARD = "sums"
CHANNEL = "news"

numbers = itertools.count(1)
"""What the names of things end in, over all tests of a session."""


@dataclass
class Driver:
    """Puts things in, and keeps the books about it."""

    system: System
    books: Books = field(default_factory=Books)
    patience: float = 90.0
    """Seconds that one thing is tried for."""
    timeout: float = 10.0
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds that the slowest answered request took."""
    ids: dict[str, list[str]] = field(default_factory=dict)
    """Idempotency key -> the ids that its answers named: all the same."""

    async def prepare(self) -> None:
        """Set up the board: it adds scores up, so that one counted twice shows."""
        answer = await self.system.http.put(
            f"{self.system['gateway'].url}/v1/leaderboards/{BOARD}", json={"operator": "sum"}, headers=self._headers()
        )
        assert answer.status_code in (200, 201), answer.text

    async def mail(self, lane: str = "normal", send_at: datetime | None = None) -> bool:
        name = f"m{next(numbers)}"
        body = {"to": f"{name}@example.com", "subject": name, "text": "Hello", "lane": lane}
        if send_at is not None:
            body["send_at"] = send_at.isoformat()
        return await self._put_in("mail", {name}, "/v1/mail", body)

    async def scores(self, count: int = 1, board: str = BOARD, keyed: bool = True) -> bool:
        names = [f"s{next(numbers)}" for _ in range(count)]
        body = [{"board": board, "player": name, "score": 1} for name in names]
        return await self._put_in("score", set(names), "/v1/scores", body, keyed)

    async def notification(self) -> bool:
        name = f"n{next(numbers)}"
        return await self._put_in("notification", {name}, "/v1/notifications", {"channels": [CHANNEL], "title": name})

    async def order(self) -> bool:
        """Publish an event that a template makes a mail of."""
        name = f"o{next(numbers)}"
        attributes = {"ce-specversion": "1.0", "ce-id": name, "ce-source": "/shop", "ce-type": "order.placed"}
        data = {"email": f"{name}@example.com", "order": name}
        self.books.attempted["mail"].add(name)
        answer = await self.system.http.post(
            f"{self.system['gateway'].url}/v1/events", json=data, headers=self._headers() | attributes
        )
        if answer.is_success:
            self.books.accepted["mail"].add(name)
        return answer.is_success

    async def until_reacts_to(self, type_: str) -> None:
        """Wait until the gateway hands events of this type to the mailer."""

        async def known() -> bool:
            url = f"{self.system['gateway'].url}/v1/system"
            return type_ in (await self.system.http.get(url, headers=self._headers())).json()["reacts_to"]

        await wait_until(known, 30, f"the gateway knows that {type_} makes a mail")

    @asynccontextmanager
    async def load(self, workers: int = 8, pause: float = 0.03) -> AsyncIterator[None]:
        """Keep putting things in while the block runs; most are scores, as in life. Ends when all are answered."""
        stop = asyncio.Event()

        async def work(number: int) -> None:
            dice = random.Random(number)
            while not stop.is_set():
                toss = dice.random()
                if toss < 0.3:
                    await self.mail(dice.choice(["urgent", "normal", "bulk"]))
                elif toss < 0.5:
                    await self.notification()
                elif toss < 0.8:
                    await self.scores(10)
                else:
                    await self.scores(10, keyed=False)
                await asyncio.sleep(dice.uniform(0, 2 * pause))

        tasks = [asyncio.create_task(work(number)) for number in range(workers)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _put_in(self, kind: str, names: set[str], path: str, body: Any, keyed: bool = True) -> bool:
        """Send it until it is answered 2xx; without a key only once, because twice would be two."""
        key = f"{kind}-{min(names)}"
        self.books.attempted[kind] |= names
        deadline = time.monotonic() + self.patience
        while True:
            answer = await self.post(path, body, key if keyed else None)
            if answer is not None and answer.is_success:
                self.books.accepted[kind] |= names
                self.ids.setdefault(key, []).append(answer.json()["id"])
                return True
            if time.monotonic() > deadline or not keyed:
                return False
            await asyncio.sleep(0.1)

    async def post(self, path: str, body: Any, key: str | None = None) -> httpx.Response | None:
        """Send one request; None where there was no answer. A 4xx other than 429 is the test's own mistake."""
        headers = self._headers() | ({"Idempotency-Key": key} if key else {})
        began = time.monotonic()
        try:
            answer = await self.system.http.post(
                f"{self.system['gateway'].url}{path}", json=body, headers=headers, timeout=self.timeout
            )
        except httpx.TransportError as error:
            self.statuses[type(error).__name__] += 1
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)
        self.statuses[str(answer.status_code)] += 1
        assert answer.is_success or answer.status_code in (429, 503), f"{answer.status_code}: {answer.text}"
        if answer.status_code == 503:
            assert "retry-after" in answer.headers
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.system.admin_key}"}
