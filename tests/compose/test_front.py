"""The front before the replicas: shares of connections, addresses of clients, who answers for whom, and its errors.

The tests are one story on one system and run in the order in which they stand here.
"""

import asyncio
import re
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bellhop import catalog
from tests.compose.system import System
from tests.support import wait_until

IDLE = 10_000
"""Connections that say nothing."""
LONGEST_ANSWER = 15.0
"""Seconds until another port has answered, also while the machine is busy with making those connections."""
DETECTION = 6.0
"""Seconds until the front leaves a dead replica: three failed checks, one a second, and a connection that times out."""
PROBLEM = "application/problem+json"
SHARED = 497
"""An address that asks once has 499 requests left; fewer where several requests are counted as one client's."""


@pytest.fixture(scope="module", autouse=True)
def started(system: System) -> None:
    """Everything is up."""
    system.up()


@pytest.fixture
def published(system: System) -> dict[str, str]:
    """The faces as users reach them."""
    return {"gateway": system.url, "notifier": system.notifier_url, "leaderboard": system.leaderboard_url}


def sessions(address: str, face: str, metric: str) -> float:
    """Return what the front tells of one of its faces."""
    text = httpx.get(f"http://{address}:8404/metrics", trust_env=False, timeout=LONGEST_ANSWER).text
    (value,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"haproxy_frontend_{metric}" and sample.labels["proxy"] == face
    )
    return value


@contextmanager
def idle_connections(address: str, port: int) -> Iterator[int]:
    """Open connections, as many as this process may, and send nothing; give their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(IDLE, hard - 500)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for _ in range(number):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((address, port))  # the kernel goes on with it
            held.append(connection)
        yield number
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def health(url: str) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=LONGEST_ANSWER) as client:
        return (await client.get(f"{url}/healthz")).status_code


async def _answers(url: str) -> bool:
    try:
        return await health(url) == 200
    except httpx.TransportError:
        return False


async def test_idle_connections_to_one_port_leave_the_others(system: System, published: dict[str, str]) -> None:
    """Ten thousand connections that say nothing take one port; the others and the health check answer."""
    # Not by the published port: Docker's own proxy ends when the engine may open fewer files than it needs.
    front = system.address("front")
    with idle_connections(front, catalog.PORTS["notifier"]) as number:
        most = min(number * 0.9, sessions(front, "notifier", "limit_sessions"))
        await wait_until(
            lambda: sessions(front, "notifier", "current_sessions") >= most, 60, "the notifier's port is full"
        )
        for url in (published["gateway"], published["leaderboard"], f"http://{front}:8404"):
            began = time.monotonic()
            assert await health(url) == 200, url
            print(f"{url}: {time.monotonic() - began:.2f} s beside {number} idle connections")
    await wait_until(lambda: _answers(published["notifier"]), 60, "the notifier's port answers", interval=0.2)


async def left(url: str, *clients: str) -> list[int]:
    """Ask at once for each of `clients`, without a key, and return how many more requests each of them may send."""
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=20)) as proxy:
        answers = await asyncio.gather(
            *(proxy.get(f"{url}/v1/tasks", headers={"X-Forwarded-For": client}) for client in clients)
        )
    assert {answer.status_code for answer in answers} <= {401, 429}
    return [int(answer.headers["RateLimit"].split("r=")[1].split(";")[0]) for answer in answers]


FOREIGN = """
import http.client, re
connection = http.client.HTTPConnection("front", 8000)
for number in range(200):
    connection.request("GET", "/v1/tasks", headers={"X-Forwarded-For": f"203.0.113.{number}"})
    answer = connection.getresponse()
    answer.read()
    print(re.search("r=([0-9]+)", answer.getheader("RateLimit"))[1])
"""


async def test_a_trusted_proxy_says_for_whom_it_asks_and_nobody_else(system: System) -> None:
    """With `BELLHOP_FRONT_TRUSTED` clients behind a proxy are counted each for itself; without it, all as one."""
    different = [f"198.51.100.{number}" for number in range(200)]
    assert min(await left(system.url, *different)) < SHARED, "whatever it says, one client is one client"

    proxy = system.docker("network", "inspect", f"{system.name}_default", "-f", "{{(index .IPAM.Config 0).Gateway}}")
    system.environment["BELLHOP_FRONT_TRUSTED"] = "host"
    try:
        system.compose("up", "-d", "--no-deps", "--wait", "front")
        assert min(await left(system.url, *different)) >= SHARED, "each address has a limit of its own"
        assert min(await left(system.url, *["192.0.2.7"] * 200)) < SHARED
        # A proxy puts the address that it sees behind what the client said of itself.
        for client in ("203.0.113.5", "192.168.1.5"):
            assert min(await left(system.url, *(f"{said}, {client}" for said in different))) < SHARED, client
        behind_two = (f"203.0.113.9, 198.51.101.{number}, {proxy.strip()}" for number in range(200))
        assert min(await left(system.url, *behind_two)) >= SHARED, "the last one is a proxy that is trusted, too"
        # Another container is no trusted proxy.
        told = system.compose("exec", "-T", "mailer", "python3", "-IS", "-c", FOREIGN)
        assert min(map(int, told.split())) < SHARED
    finally:
        del system.environment["BELLHOP_FRONT_TRUSTED"]
        system.compose("up", "-d", "--no-deps", "--wait", "front")


@dataclass
class Asked:
    """One request: when it was sent and answered, and how."""

    at: float
    answered: float
    answer: httpx.Response


@asynccontextmanager
async def asked_all_the_time(*asks: Callable[[], Awaitable[httpx.Response]]) -> AsyncIterator[list[Asked]]:
    """Ask each again and again, meanwhile."""
    seen: list[Asked] = []
    over = asyncio.Event()

    async def go_on(ask: Callable[[], Awaitable[httpx.Response]]) -> None:
        while not over.is_set():
            at = time.monotonic()
            answer = await ask()
            seen.append(Asked(at, time.monotonic(), answer))
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as running:
        for ask in asks:
            running.create_task(go_on(ask))
        try:
            yield seen
        finally:
            over.set()


async def since(seen: list[Asked], began: float, number: int) -> None:
    """Wait for so many more answers."""
    await wait_until(lambda: sum(one.at > began for one in seen) >= number, 60, f"{number} more answers")


async def test_what_is_meant_for_a_gateway_reaches_no_other_service(system: System) -> None:
    """Gateways stop and mailers start, which may get their addresses: the answer is 503 all the time, never 404."""
    former = {httpx.URL(address).host for address in system.addresses("gateway")}
    mail = {"to": "nobody@example.com", "subject": "Nothing", "text": "Hello"}
    async with system.client() as gateway:
        system.compose("stop", "gateway")
        async with asked_all_the_time(lambda: gateway.post("/v1/mail", json=mail)) as seen:
            scaled = ["--no-deps", "--no-recreate", "--wait", "--scale", "mailer=4", "mailer"]
            await asyncio.to_thread(system.compose, "up", "-d", *scaled)
            taken = former & {httpx.URL(address).host for address in system.addresses("mailer")}
            await since(seen, time.monotonic(), 20)
    print(f"{len(seen)} requests; {len(taken)} mailers had a gateway's former address")
    assert Counter(one.answer.status_code for one in seen) == {503: len(seen)}
    assert {one.answer.headers["Content-Type"] for one in seen} == {PROBLEM}


async def test_readers_of_a_killed_leaderboard_are_served_by_the_other(system: System) -> None:
    """Once the front knows, every board is read from the other replica, also while the killed one starts again."""
    system.up("--no-recreate", "--scale", "leaderboard=2")
    killed = system.containers("leaderboard")[0]

    def restarted() -> bool:
        state = system.inspect(killed)
        return state["RestartCount"] > 0 and state["State"].get("Health", {}).get("Status") == "healthy"

    async with system.client() as gateway:
        boards = [f"/v1/leaderboards/kept-{number}" for number in range(8)]
        for board in boards:
            assert (await gateway.put(board, json={"operator": "sum"})).status_code in {200, 201}
        async with asked_all_the_time(*(partial(gateway.get, board) for board in boards)) as seen:
            await since(seen, time.monotonic(), 16)
            system.docker("exec", killed, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
            at = time.monotonic()
            await wait_until(restarted, 120, "the killed replica is back", interval=0.5)
            await since(seen, time.monotonic(), 16)
    failed = [one for one in seen if one.answer.status_code != 200]
    print(f"{len(seen)} reads; failed: {Counter(one.answer.status_code for one in failed)}")
    assert [one for one in seen if one.at < at]
    assert not [one for one in failed if one.at - at > DETECTION]
    assert {one.answer.status_code for one in failed} <= {502, 503}


FIELDS = b"".join(b"X-%d: 1\r\n" % number for number in range(110))
REFUSED = {
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n": 404,
    b"GET /%6detrics HTTP/1.1\r\nHost: x\r\n\r\n": 404,
    b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n": 404,
    b"GET http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n": 404,
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": 414,
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 33_000 + b"\r\n\r\n": 431,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + FIELDS + b"\r\n": 431,
    b"GET / HTTP/1.1\r\n\r\n": 400,
}
"""What is whole and valid enough to be read: refused with a problem document."""
NO_HTTP = {
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 60_000 + b"\r\n\r\n": 400,
    b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n": 422,
    b"GET / HTTP/1.1\r\nHost:": 408,
}
"""The exceptions that docs/api.md names: HAProxy answers by itself."""


async def refusal(url: str, request: bytes) -> tuple[int, str]:
    """Send bytes and return the status and the media type of the answer."""
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(40):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
    (kind,) = re.findall(r"(?im)^content-type: *([^;\r]+)", head)
    return int(head.split()[1]), kind


@pytest.mark.parametrize(("requests", "media_type"), [(REFUSED, PROBLEM), (NO_HTTP, "text/html")])
async def test_errors_are_problem_documents(
    published: dict[str, str], requests: dict[bytes, int], media_type: str
) -> None:
    """Whatever the port; and the exceptions are those that the page names."""
    for request, status in requests.items():
        answers = await asyncio.gather(*(refusal(url, request) for url in published.values()))
        assert set(answers) == {(status, media_type)}, request[:80]
