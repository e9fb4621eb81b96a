"""`bellhop topology` prints the table, renders it for a broker, and brings a broker to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bellhop.amqp import topology
from tests.support import Vhost


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}
    return subprocess.run(
        [sys.executable, "-m", "bellhop.cli.main", "topology", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=inherited | {"COLUMNS": "200"} | environment,
    )


def test_show_names_everything() -> None:
    """Every exchange, every queue, and each binding's two ends."""
    said = run("show").stdout
    for one in (*topology.EXCHANGES, *topology.QUEUES):
        assert f" {one.name} " in said


def test_definitions_are_the_table_in_one_virtual_host() -> None:
    """They can be imported as they are."""
    document = json.loads(run("definitions", "--vhost", "shop").stdout)
    assert document.keys() == topology.definitions().keys()
    assert {item["vhost"] for items in document.values() for item in items} == {"shop"}


def test_definitions_with_passwords_have_every_user_and_no_password(tmp_path: Path) -> None:
    """Only hashes: the file lies on the broker."""
    for user in (*topology.RIGHTS, "deploy"):
        (tmp_path / user).write_text(f"secret-of-{user}\n")
    said = run("definitions", "--passwords", str(tmp_path)).stdout
    document = json.loads(said)
    assert {user["name"] for user in document["users"]} == {*topology.RIGHTS, "deploy"}
    assert "secret-of" not in said


def test_a_missing_password_is_named(tmp_path: Path) -> None:
    """One sentence, exit code 1, and nothing on standard output that could be taken for definitions."""
    done = run("definitions", "--passwords", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "put the password of the user gateway there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_apply_says_in_one_sentence_that_nothing_answers() -> None:
    """And exits with 1."""
    done = run("apply", BELLHOP_MANAGEMENT_URL="http://deploy:secret@127.0.0.1:1")
    assert done.returncode == 1
    assert "the management API does not answer" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


async def test_apply_brings_a_broker_to_the_table(bare_vhost: Vhost) -> None:
    """Afterwards a message for a work queue finds it; applying again changes nothing."""
    for _ in range(2):
        done = run("apply", "--vhost", bare_vhost.name, BELLHOP_MANAGEMENT_URL=bare_vhost.broker.management_url)
        assert done.returncode == 0, done.stderr
    await bare_vhost.publish("work", "mail.normal", b"{}")
    assert await bare_vhost.depth("mail.normal") == 1
