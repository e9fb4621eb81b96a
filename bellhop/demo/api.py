"""HTTP with retries: any service may be killed and restarted at any time."""

import asyncio
import random
import time
from collections.abc import Callable, Collection
from typing import Any

import httpx

from bellhop.cli.errors import CannotRun

CALL_SECONDS = 90.0
"""Limit of one call with all its retries; a supervisor restarts a killed service long before that."""

LONGEST_PAUSE_SECONDS = 2.0
UNAVAILABLE = frozenset({429, 502, 503, 504})
"""Statuses of a temporary failure."""


class Api:
    """One HTTP service. A call is retried until it is answered, so it must be idempotent.

    That is, a read, or a write with an `Idempotency-Key` or an event id. All calls raise `CannotRun` when the service
    refuses the key or does not answer within `CALL_SECONDS`.
    """

    def __init__(self, name: str, base_url: str, say: Callable[[str], None], key: str | None = None) -> None:
        """`say` is called with a sentence when the service becomes unavailable, and when it answers again."""
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.retries = 0
        """Number of retries."""
        self._say = say
        self._unavailable_since: float | None = None
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(30, connect=5),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str, *, timeout: float = 30, **query: Any) -> Any:
        """Return the document at `path`; `timeout`: seconds, longer than the wait of a long poll."""
        return (await self._call("GET", path, params=query, timeout=timeout)).json()

    async def find(self, path: str, **query: Any) -> Any | None:
        """Return the document at `path`; None for 404."""
        response = await self._call("GET", path, fine=(404,), params=query)
        return response.json() if response.is_success else None

    async def post(self, path: str, body: Any, *, key: str | None = None, content_type: str | None = None) -> Any:
        """Post `body` as JSON, under the idempotency key `key`."""
        headers = {} if key is None else {"Idempotency-Key": f'"{key}"'}
        if content_type is not None:
            headers["Content-Type"] = content_type
        return (await self._call("POST", path, json=body, headers=headers)).json()

    async def put(self, path: str, body: Any) -> Any:
        """Put `body` as JSON."""
        return (await self._call("PUT", path, json=body)).json()

    async def send(self, path: str, content: str, content_type: str, **query: Any) -> Any:
        """Post `content`, which is not JSON."""
        headers = {"Content-Type": content_type}
        return (await self._call("POST", path, content=content.encode(), headers=headers, params=query)).json()

    async def delete(self, path: str) -> None:
        """Delete `path`; 404 counts as deleted."""
        await self._call("DELETE", path, fine=(404,))

    async def page(self, path: str) -> str:
        """Return the text at `path`; "" for 404."""
        response = await self._call("GET", path, fine=(404,))
        return response.text if response.is_success else ""

    async def fill_in(self, path: str, **fields: str) -> str:
        """Post a form, as a browser does, and return the page of the answer."""
        return (await self._call("POST", path, data=fields)).text

    async def look(self, path: str) -> tuple[bool, str]:
        """Ask once, without retries; return whether a server answers, and why it is not ready ("" if it is)."""
        try:
            response = await self._http.get(path, timeout=5)
        except httpx.TransportError as error:
            return False, reason_of(error)
        return True, "" if response.is_success else detail_of(response)

    async def _call(self, method: str, path: str, fine: Collection[int] = (), **options: Any) -> httpx.Response:
        deadline = time.monotonic() + CALL_SECONDS
        pause = 0.1
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                reason = reason_of(error)
            else:
                if response.status_code not in UNAVAILABLE:
                    self._note_answer()
                    if response.status_code not in fine:
                        self._check(response, f"{method} {path}")
                    return response
                reason = f"{response.status_code}, {detail_of(response)}"
            self._note_failure(reason)
            if time.monotonic() > deadline:
                raise CannotRun(f"{method} {path} was not answered for {CALL_SECONDS:.0f} seconds: {reason}.")
            self.retries += 1
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    def _check(self, response: httpx.Response, what: str) -> None:
        if response.status_code == 401:
            raise CannotRun(
                f"The {self.name} at {self.base_url} does not know this key: set BELLHOP_ADMIN_KEY to the admin key"
                " of that system ('make admin-key' prints it)."
            )
        if not response.is_success:
            raise CannotRun(f"{what}: {response.status_code}, {detail_of(response)}")

    def _note_failure(self, reason: str) -> None:
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            self._say(f"the {self.name} does not answer ({reason.rstrip('.')}); trying again")

    def _note_answer(self) -> None:
        if self._unavailable_since is not None:
            self._say(f"the {self.name} answers again after {time.monotonic() - self._unavailable_since:.1f} s")
            self._unavailable_since = None


def detail_of(response: httpx.Response) -> str:
    """Return the detail of a problem document (RFC 9457), or the beginning of another answer that is not a page."""
    if "html" in response.headers.get("content-type", ""):
        return response.reason_phrase
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and "detail" in document:
        return str(document["detail"])
    if isinstance(document, dict) and "checks" in document:
        return "; ".join(f"{name}: {text}" for name, text in document["checks"].items() if text != "ok")
    return " ".join(response.text.split())[:200] or response.reason_phrase


def reason_of(error: httpx.TransportError) -> str:
    """Return why there was no answer, as a phrase."""
    return str(error) or type(error).__name__


async def gather_limited(work: Collection[Callable[[], Any]], limit: int) -> None:
    """Await all of `work`, at most `limit` concurrently; the first error cancels the rest."""
    queue = iter(work)

    async def worker() -> None:
        for make in queue:
            await make()

    async with asyncio.TaskGroup() as group:
        for _ in range(limit):
            group.create_task(worker())
