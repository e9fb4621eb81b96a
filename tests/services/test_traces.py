"""Traces: real services with a real OTLP collector, joined by the `traceparent` that travels."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bellhop.local import processes
from bellhop.web.auth import new_key
from tests.support import SmtpServer, Vhost, wait_until
from tests.support.addresses import service_environment
from tests.support.collector import Collector, Span, collecting
from tests.support.ports import lasting_ports

ROOT = Path(__file__).parents[2]
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class System:
    """A gateway and another service, each a process of its own, that send their spans to `collector`."""

    http: httpx.AsyncClient
    collector: Collector

    async def span(self, service: str, name: str) -> Span:
        """Wait for a span."""
        return await wait_until(lambda: self.collector.find(service, name), 20, f"the span {name!r} of the {service}")


@contextmanager
def running(environments: dict[str, dict[str, str]]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run services as processes until the block ends."""
    clean = {name: value for name, value in service_environment().items() if not name.startswith("OTEL_")}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"services.{name}"],
            cwd=ROOT,
            env=clean | {"OTEL_BSP_SCHEDULE_DELAY": "100"} | environment,
            preexec_fn=processes.ends_with_us(),
        )
        for name, environment in environments.items()
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait(10)


def environments(
    vhost: Vhost, folder: Path, endpoint: str, smtp_port: int, key: str, other: str
) -> dict[str, dict[str, str]]:
    """Return what the gateway and the `other` service are told."""
    ports = dict(zip(("gateway", other), lasting_ports(2), strict=True))
    shared = {
        "BELLHOP_AMQP_URL": vhost.amqp_url,
        "BELLHOP_TOKEN_KEY": "k" * 40,
        "BELLHOP_ADMIN_KEY": key,
        "BELLHOP_OTLP_ENDPOINT": endpoint,
        "BELLHOP_LEADERBOARD_URL": f"http://127.0.0.1:{ports[other]}",
        "BELLHOP_PULL_SECONDS": "0.2",
        "BELLHOP_SMTP_HOST": "127.0.0.1",
        "BELLHOP_SMTP_PORT": str(smtp_port),
        "BELLHOP_SMTP_TLS": "none",
        "BELLHOP_MAIL_FROM": "hello@bellhop.example",
    }
    return {
        name: shared | {"BELLHOP_PORT": str(port), "BELLHOP_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/{name}.db"}
        for name, port in ports.items()
    }


async def until_ready(port: str, name: str) -> None:
    async def ready() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    await wait_until(ready, 60, f"the {name} is ready", interval=0.1)


@pytest.fixture
async def system(
    vhost: Vhost, smtp_server: SmtpServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[System]:
    key = new_key()
    with collecting() as collector:
        told = environments(vhost, tmp_path, collector.url, smtp_server.port, key, request.param)
        with running(told):
            for name, environment in told.items():
                await until_ready(environment["BELLHOP_PORT"], name)
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{told['gateway']['BELLHOP_PORT']}",
                headers={"Authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=30,
            ) as client:
                yield System(client, collector)


@pytest.mark.parametrize("system", ["mailer"], indirect=True)
async def test_one_mail_is_one_trace_through_gateway_broker_mailer_and_back(system: System) -> None:
    """From the client's own span to the outcome, each span is the child of the one that caused it."""
    mail = {"to": "ada@example.com", "subject": "Hello", "text": "Hello Ada"}
    answer = await system.http.post("/v1/mail", json=mail, headers={"traceparent": CLIENT})
    assert answer.status_code == 202, answer.text
    task = await system.http.get(f"/v1/tasks/{answer.json()['id']}", params={"wait": 25})
    assert task.json()["state"] == "sent"

    request = await system.span("gateway", "POST /v1/mail")
    publish = await system.span("gateway", "publish work:mail.normal")
    process = await system.span("mailer", "process mail.normal")
    smtp = await system.span("mailer", "SMTP send")
    outcome = await system.span("mailer", "publish outcomes:mail.normal.sent")
    applied = await system.span("gateway", "process gateway.outcomes")

    spans = [request, publish, process, smtp, outcome, applied]
    assert {span.trace_id for span in spans} == {CLIENT[3:35]}
    causes = [request, publish, process, process, outcome]
    assert [span.parent_id for span in spans] == [CLIENT[36:52], *(cause.span_id for cause in causes)]
    assert [span.kind for span in spans] == ["SERVER", "PRODUCER", "CONSUMER", "CLIENT", "PRODUCER", "CONSUMER"]
    assert not any(span.failed for span in spans)


@pytest.mark.parametrize("system", ["mailer"], indirect=True)
async def test_spans_say_what_the_conventions_name_and_nobody_s_address(system: System) -> None:
    """Attributes of HTTP and messaging by OpenTelemetry's names; no path, no query, no mail address anywhere."""
    mail = {"to": "ada@example.com", "subject": "Secret", "text": "Hello Ada"}
    await system.http.post("/v1/mail", json=mail)
    await system.http.get("/v1/subscribers/ada@example.com", params={"token": "secret"})

    request = await system.span("gateway", "POST /v1/mail")
    assert request.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/v1/mail",
        "http.response.status_code": 202,
    }
    process = await system.span("mailer", "process mail.normal")
    expected = {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": "work:mail.normal:mail.normal",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.rabbitmq.destination.routing_key": "mail.normal",
    }
    assert expected.items() <= process.attributes.items()
    smtp = await system.span("mailer", "SMTP send")
    assert (smtp.attributes["server.address"], smtp.attributes["smtp.response.status_code"]) == ("127.0.0.1", 250)
    await system.span("gateway", "GET /v1/subscribers/{email:path}")
    said = repr(system.collector.spans)
    assert "ada@" not in said
    assert "ecret" not in said


@pytest.mark.parametrize("system", ["leaderboard"], indirect=True)
async def test_a_batch_of_scores_is_linked_to_the_requests_that_brought_them(system: System) -> None:
    """Many messages, one span: no parent could be right, so it has links; a forwarded read is one trace."""
    answer = await system.http.post("/v1/scores", json={"board": "b", "player": "ada", "score": 1})
    assert answer.status_code == 202, answer.text
    publish = await system.span("gateway", "publish work:leaderboard.scores")
    batch = await system.span("leaderboard", "process leaderboard.scores")
    assert batch.links == [publish.span_id]
    assert batch.attributes["messaging.batch.message_count"] >= 1  # marks may have come with it, and have no trace

    await system.http.get("/v1/leaderboards/b")
    asked = await system.span("gateway", "GET /v1/leaderboards/{board}")
    answered = await system.span("leaderboard", "GET /v1/leaderboards/{board}")
    assert answered.parent_id == asked.span_id


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(
    vhost: Vhost, smtp_server: SmtpServer, tmp_path: Path
) -> None:
    """The mail goes out, the health checks are green, and the service ends in time."""
    key = new_key()
    nobody = f"http://127.0.0.1:{lasting_ports(1)[0]}"
    told = environments(vhost, tmp_path, nobody, smtp_server.port, key, "mailer")
    with running(told) as services:
        for name, environment in told.items():
            await until_ready(environment["BELLHOP_PORT"], name)
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30) as client:
            base = f"http://127.0.0.1:{told['gateway']['BELLHOP_PORT']}"
            mail = {"to": "ada@example.com", "subject": "Hello", "text": "Hello Ada"}
            answer = await client.post(f"{base}/v1/mail", json=mail)
            task = await client.get(f"{base}/v1/tasks/{answer.json()['id']}", params={"wait": 25})
            assert task.json()["state"] == "sent"
        began = time.monotonic()
        services["gateway"].send_signal(signal.SIGTERM)
        assert services["gateway"].wait(30) == 0
        assert time.monotonic() - began < 15


def test_an_endpoint_without_the_package_ends_the_service_with_a_sentence() -> None:
    """Not a traceback: what is missing, and what to do."""
    code = (
        "import sys, runpy; sys.modules['opentelemetry.sdk'] = None;"
        " runpy.run_module('services.gateway', run_name='__main__')"
    )
    environment = os.environ | {
        "BELLHOP_AMQP_URL": "amqp://nobody:nothing@127.0.0.1:1/",
        "BELLHOP_DATABASE_URL": "sqlite+aiosqlite:////nowhere/gateway.db",
        "BELLHOP_TOKEN_KEY": "k" * 40,
        "BELLHOP_ADMIN_KEY": new_key(),
        "BELLHOP_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    }
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("BELLHOP_OTLP_ENDPOINT is set, but the package for it is missing")
    assert ended.stderr.count("\n") == 1
