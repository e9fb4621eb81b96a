"""A mailer that is killed in the worst moment: between the final dot and the reply to it (RFC 1047)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from tests.services.mailer_support import SILENCE, ScriptedRelay
from tests.support import Vhost, wait_until
from tests.support.ports import lasting_ports

ROOT = Path(__file__).parents[2]


@contextmanager
def process(vhost: Vhost, database: Path, smtp_port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "BELLHOP_AMQP_URL": vhost.amqp_url,
        "BELLHOP_DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        "BELLHOP_TOKEN_KEY": "0" * 32,
        "BELLHOP_PORT": str(lasting_ports(1)[0]),
        "BELLHOP_SMTP_HOST": "127.0.0.1",
        "BELLHOP_SMTP_PORT": str(smtp_port),
        "BELLHOP_SMTP_TLS": "none",
        "BELLHOP_MAIL_FROM": "hello@bellhop.example",
    }
    mailer = subprocess.Popen([sys.executable, "-m", "services.mailer"], cwd=ROOT, env=environment)
    try:
        yield mailer
    finally:
        mailer.kill()
        mailer.wait(10)


async def test_kill_after_the_final_dot_makes_one_more_copy_and_says_so(vhost: Vhost, tmp_path: Path) -> None:
    """Both copies have one Message-ID, and the outcome is marked uncertain; nothing is lost."""
    task = {"task_id": "t-1", "owner": "key-1", "to": "ada@example.com", "subject": "Hi", "text": "Hello"}
    message = Message(b"", Envelope(type="mail.requested", source="/tests"))
    async with ScriptedRelay(replies={".": [SILENCE]}) as relay:
        with process(vhost, tmp_path / "mailer.db", relay.port) as killed:
            await vhost.publish("work", "mail.normal", json.dumps(task).encode(), headers=to_headers(message))
            await wait_until(lambda: relay.mails, 30, "the final dot")
            killed.kill()
            killed.wait(10)
        with process(vhost, tmp_path / "mailer.db", relay.port):
            outcome: Any = await wait_until(lambda: vhost.get("gateway.outcomes"), 40, "an outcome")
    body = json.loads(outcome.body)
    assert (body["state"], body["attempt"], body["uncertain"]) == ("sent", 1, True)
    assert len(relay.mails) == 2
    ids = {line for mail in relay.mails for line in mail.split(b"\r\n") if line.startswith(b"Message-ID:")}
    assert ids == {b"Message-ID: <t-1@bellhop.example>"}
