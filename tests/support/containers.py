"""RabbitMQ and PostgreSQL for tests, in containers, where a Docker Engine answers."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import docker
import httpx
from docker.errors import DockerException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from bellhop.local.node import speaks_amqp
from tests.support.postgresql import SETTINGS

RABBITMQ = "rabbitmq:4.3-management"
POSTGRESQL = "postgres:17"
START_TIMEOUT = 100.0
WITHOUT = "set BELLHOP_TEST_AMQP=node to test without containers"

# Its work is done by the keeper, which ends the container with the session, even one that was killed.
testcontainers_config.ryuk_disabled = True


def wanted() -> bool:
    """Say whether tests run against containers: where an engine answers, unless BELLHOP_TEST_AMQP=node."""
    if os.environ.get("BELLHOP_TEST_AMQP") == "node":
        return False
    return engine_answers()


def engine_answers() -> bool:
    """Say whether there is a Docker Engine that we may use."""
    try:
        client = docker.from_env(timeout=10)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


@contextmanager
def rabbitmq_container() -> Iterator[dict[str, Any]]:
    """Start a broker and say how to reach it (the fields of `Broker`)."""
    password = secrets.token_urlsafe(16)
    container = DockerContainer(RABBITMQ).with_exposed_ports(5672, 15672)
    # What `deploy` may do, and that there is no `guest`, is as on the private node.
    container.with_envs(RABBITMQ_DEFAULT_USER="deploy", RABBITMQ_DEFAULT_PASS=password)
    with _running(container) as host:
        facts = {
            "host": host,
            "amqp_port": container.get_exposed_port(5672),
            "management_port": container.get_exposed_port(15672),
            "user": "deploy",
            "password": password,
        }
        _wait(container, lambda: speaks_amqp(facts["amqp_port"], host) and _management_answers(facts))
        yield facts


@contextmanager
def postgresql_container() -> Iterator[dict[str, Any]]:
    """Start a server and say how to reach it; its data is gone afterwards."""
    password = secrets.token_urlsafe(16)
    container = DockerContainer(POSTGRESQL).with_exposed_ports(5432)
    container.with_envs(POSTGRES_USER="bellhop", POSTGRES_PASSWORD=password)
    container.with_command(["postgres", *(part for item in SETTINGS.items() for part in ("-c", "=".join(item)))])
    with _running(container) as host:
        address = f"bellhop:{password}@{host}:{container.get_exposed_port(5432)}"
        _wait(container, lambda: asyncio.run(_takes_connections(f"postgresql://{address}/postgres")))
        yield {"url": f"postgresql+asyncpg://{address}"}


@contextmanager
def _running(container: DockerContainer) -> Iterator[str]:
    try:
        container.start()
    except DockerException as error:
        raise RuntimeError(f"{error}; {WITHOUT}") from error
    try:
        host = container.get_container_host_ip()
        yield "127.0.0.1" if host == "localhost" else host  # the published port is not there for IPv6
    finally:
        container.stop()


def _wait(container: DockerContainer, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        container.reload()
        if container.status != "running" or time.monotonic() > deadline:
            said = b"".join(container.get_logs()).decode(errors="replace")
            raise RuntimeError(f"{container.image} does not come up: {said[-500:]}; {WITHOUT}")
        time.sleep(0.1)


def _management_answers(facts: dict[str, Any]) -> bool:
    url = f"http://{facts['host']}:{facts['management_port']}/api/whoami"
    try:
        return httpx.get(url, auth=(facts["user"], facts["password"]), trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False


async def _takes_connections(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True
