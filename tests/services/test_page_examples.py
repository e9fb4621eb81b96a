"""Every example of the pages is executed: with curl against everything that `bellhop up` runs, or where ELSEWHERE says.

The examples of one page share their variables; `$ID` is the `id` of the last answer that had one.
"""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bellhop.web.tokens import service_key
from services.mailer.relays.settings import read_relays
from services.mailer.rendering import Templates
from tests.services.test_run_up import Run
from tests.support import wait_until
from tests.support.pages import ROOT, Block, blocks

# The tests of this module share one system.
pytestmark = [pytest.mark.xdist_group("page-examples"), pytest.mark.timeout(300)]

PAGES = ("README.md", "docs/api.md", "docs/mail.md", "docs/operations.md", "docs/settings.md")

# The examples with curl, by the beginning of their first line, and how each request of theirs is answered.
ANSWERS = {
    ("README.md", "KEY=$(make -s admin-key)"): [202, 200],
    ("docs/api.md", "BASE="): [],
    ("docs/api.md", "curl -s $BASE/v1/mail "): [202],
    ("docs/api.md", 'curl -s "$BASE/v1/tasks/$ID?wait=25"'): [200],
    # It has one recipient and is finished when it is paused.
    ("docs/api.md", "curl -s $BASE/v1/broadcasts "): [202, 200, 200, 200, 409],
    ("docs/api.md", "curl -s $BASE/v1/notifications "): [202],
    ("docs/api.md", "curl -s $BASE/v1/stream-tokens "): [201],
    ("docs/api.md", "curl -s $BASE/v1/scores "): [202, 200, 200],
    ("docs/api.md", "curl -s $BASE/v1/events "): [202, 200],
    ("docs/api.md", 'curl -s "$BASE/v1/dead-letters?queue=unrouted"'): [200, 202],
    # What was replayed cannot be deleted.
    ("docs/api.md", "curl -s $BASE/v1/dead-letters "): [200, 200, 202, 202, 404],
    ("docs/mail.md", "KEY=$(make -s admin-key)"): [201],
}

# Every other example, and what executes it; or why nothing does.
ELSEWHERE = {
    ("README.md", "git clone"): ".ci/run, on a fresh clone",
    ("README.md", "make demo"): "tests/services/test_demo.py",
    ("README.md", "async def apply_outcome"): "test_the_handler_of_the_readme_is_the_one_of_the_gateway",
    ("README.md", "make test"): ".ci/run",
    ("docs/api.md", 'let last = "";'): "tests/browser/test_event_source.py",
    ("docs/api.md", "async def follow(url, token"): "tests/services/test_notifier_clients.py",
    ("docs/mail.md", "---"): "test_the_template_of_the_page_can_be_used",
    ("docs/mail.md", "printf mailer"): "test_the_service_key_is_made_as_the_page_says",
    ("docs/mail.md", "[[relay]]"): "test_the_relays_of_the_page_can_be_read",
    ("docs/operations.md", "docker compose up --build --wait"): "tests/compose/test_system.py",
    ("docs/operations.md", "BELLHOP_SMTP_HOST="): "tests/unit/test_pages.py, by the names",
    ("docs/operations.md", "printf %s"): "tests/unit/test_container_secrets.py, by the function",
    ("docs/operations.md", "BELLHOP_FRONT_TRUSTED="): "tests/unit/test_pages.py, by the names",
    ("docs/operations.md", "services:"): "test_yaml_can_be_read",
    ("docs/operations.md", "docker compose up --wait --scale"): "tests/compose/test_system.py",
    ("docs/operations.md", "docker compose --profile cluster"): "tests/compose/test_cluster.py",
    ("docs/operations.md", "docker compose exec rabbitmq rabbitmq-queues shrink"): "nothing yet",
    (
        "docs/operations.md",
        "docker compose --profile monitoring",
    ): "nothing: CI has no images of Prometheus and Grafana",
    ("docs/operations.md", "git pull"): "tests/compose/test_procedures.py, without the pull",
    ("docs/operations.md", "mkdir -m 700 backup"): "tests/compose/test_procedures.py",
    ("docs/operations.md", "docker compose run --rm --no-deps -T"): "tests/compose/test_procedures.py",
    ("docs/operations.md", "tar -cf"): "test_a_copy_of_the_folder_brings_everything_back",
    ("docs/operations.md", "tar -xf"): "test_a_copy_of_the_folder_brings_everything_back",
    ("docs/operations.md", "docker compose run --rm secrets mailer"): "tests/compose/test_procedures.py",
    ("docs/operations.md", "docker compose exec -T rabbitmq"): "tests/compose/test_procedures.py",
    ("docs/operations.md", ".venv/bin/bellhop keys"): "test_keys_are_made_and_revoked",
    ("docs/operations.md", "listeners.tcp = none"): "nothing: it needs certificates of the reader's",
    ("docs/operations.md", "# RabbitMQ Cluster Operator"): "test_yaml_can_be_read, without Kubernetes",
    ("docs/settings.md", "printf %s"): "tests/unit/test_container_secrets.py, by the function",
}

CLOUD_EVENT = {"Content-Type": "application/cloudevents+json"}
ORDER = {"email": "ada@example.com", "order": "9"}

# Before the commands: what a reader sees, with the status of each answer on a line of its own.
PRELUDE = """
set -eu -o pipefail
curl() {
    local said
    said=$(command curl --max-time 60 "$@" -w '\\n=%{http_code}')
    if [[ $said =~ ^\\{(\\"dead_letters\\":\\[\\{)?\\"id\\":\\"([^\\"]+) ]]; then ID=${BASH_REMATCH[2]}; fi
    echo "$said"
}
"""
ANSWER = re.compile(r"(.*?)\n=(\d{3})\n", re.DOTALL)


def named(table: dict[tuple[str, str], Any], block: Block) -> list[Any]:
    """Return what a table says of a block."""
    page, first = block.name
    return [value for (of, beginning), value in table.items() if of == page and first.startswith(beginning)]


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_executed_or_has_a_reason(page: str) -> None:
    """A new example needs a line in one of the tables, and a line without an example goes."""
    found = blocks(page)
    assert [block.name for block in found if len(named(ANSWERS, block) + named(ELSEWHERE, block)) != 1] == []
    lines = [line for line in (*ANSWERS, *ELSEWHERE) if line[0] == page]
    assert [line for line in lines if not any(named({line: True}, block) for block in found)] == []


def test_what_executes_the_others_exists() -> None:
    """Files and functions."""
    here = Path(__file__).read_text()
    for who in ELSEWHERE.values():
        first = re.split(r"[ ,:]", who)[0]
        assert first == "nothing" or (ROOT / first).is_file() or f"def {first}(" in here, who


def example(page: str, beginning: str) -> str:
    """Return the text of one block."""
    [block] = [block for block in blocks(page) if named({(page, beginning): True}, block)]
    return block.text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One system for all tests of this module, in a folder `.bellhop` as a reader has it."""
    run = Run(tmp_path_factory.mktemp("examples"))
    run.home = run.home.with_name(".bellhop")
    run.environment["BELLHOP_HOME"] = str(run.home)
    yield run
    run.end()


@pytest.fixture
async def running(home: Run) -> Run:
    """It, up."""
    if home.process is None:
        await home.start()
    return home


def shell(run: Run, commands: str) -> str:
    """Run commands of a page in the checkout, against this system; return what they print."""
    commands = commands.replace("http://127.0.0.1:8000", run.url("GATEWAY"))
    done = subprocess.run(
        ["bash", "-c", PRELUDE + commands], cwd=ROOT, env=run.environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def answers(said: str) -> list[tuple[int, str]]:
    """Return status and body of each answer."""
    return [(int(status), body) for body, status in ANSWER.findall(said)]


async def prepare(run: Run) -> None:
    """Make what the examples expect: a subscriber of `news`, a ranked player, an order, a dead letter."""
    async with run.client() as client:
        person = {"email": "ada@example.com", "lists": ["news"], "confirmed": True}
        (await client.post("/v1/subscribers", json=person)).raise_for_status()
        score = {"board": "chess", "player": "ada", "score": 1}
        (await client.post("/v1/scores", json=score)).raise_for_status()

        event = {"specversion": "1.0", "id": "order-9", "source": "/shop", "type": "order.placed", "data": ORDER}
        (await client.post("/v1/events", json=event, headers=CLOUD_EVENT)).raise_for_status()
    password = (run.home / "secrets/amqp/deploy").read_text().strip()
    async with httpx.AsyncClient(auth=("deploy", password), trust_env=False, timeout=30) as rabbitmq:
        bad = {"properties": {}, "routing_key": "mail.normal", "payload": "no mail", "payload_encoding": "string"}
        url = f"http://127.0.0.1:{run.ports['NODE_MANAGEMENT']}/api/exchanges/bellhop/work/publish"
        (await rabbitmq.post(url, json=bad)).raise_for_status()
    async with run.client() as client:

        async def all_there() -> bool:
            ranked = await client.get("/v1/leaderboards/chess/players/ada/around")
            reacted = await client.get("/v1/events", params={"source": "/shop", "id": "order-9"})
            letters = (await client.get("/v1/dead-letters")).json()["dead_letters"]
            return ranked.is_success and reacted.is_success and letters != []

        await wait_until(all_there, 60, "all of it is there", interval=0.2)


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/mail.md"])
async def test_requests_are_answered_as_the_page_says(running: Run, page: str, tmp_path: Path) -> None:
    """All of a page in one shell, in their order, each with its status."""
    await prepare(running)
    (tmp_path / "invoice.pdf").write_bytes(b"%PDF-1.7")
    examples = [block for block in blocks(page) if named(ANSWERS, block)]
    commands = "\necho '=next'\n".join(block.text for block in examples)
    said = shell(running, commands.replace("@invoice.pdf", f"@{tmp_path}/invoice.pdf"))
    for block, part in zip(examples, said.split("=next\n"), strict=True):
        [expected] = named(ANSWERS, block)
        assert [status for status, _ in answers(part)] == expected, f"{block.text}\n{part}"
        # An answer that the page shows has the fields that it shows.
        for shown, (_, body) in zip(re.findall(r"^# (.*)", block.text, re.MULTILINE), answers(part), strict=False):
            assert set(re.findall(r'"(\w+)":', shown)) <= set(re.findall(r'"(\w+)":', body))


def test_the_handler_of_the_readme_is_the_one_of_the_gateway() -> None:
    """Word for word."""
    assert example("README.md", "async def apply_outcome") in (ROOT / "services/gateway/handlers.py").read_text()


def test_the_template_of_the_page_can_be_used(tmp_path: Path) -> None:
    """It names its event, and has a text and an HTML part."""
    (tmp_path / "order.mail").write_text(example("docs/mail.md", "---"))
    assert Templates(tmp_path).names == ["order"]


def test_the_service_key_is_made_as_the_page_says() -> None:
    """By openssl."""
    command = ["bash", "-c", example("docs/mail.md", "printf mailer")]
    said = subprocess.run(command, env={"BELLHOP_TOKEN_KEY": "k" * 40}, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == service_key("k" * 40, "mailer")


def test_the_relays_of_the_page_can_be_read() -> None:
    """As the value of BELLHOP_RELAYS."""
    assert len(read_relays(example("docs/mail.md", "[[relay]]"))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("beginning", ["services:", "# RabbitMQ Cluster Operator"])
def test_yaml_can_be_read(beginning: str) -> None:
    """Each document is a mapping."""
    documents = list(yaml.safe_load_all(example("docs/operations.md", beginning)))
    assert all(isinstance(document, dict) for document in documents)


async def test_keys_are_made_and_revoked(running: Run) -> None:
    """With the id that the list tells in place of the one that the page shows."""
    commands = example("docs/operations.md", ".venv/bin/bellhop keys").splitlines()
    shell(running, commands[0])
    async with running.client() as client:
        [shop] = [key for key in (await client.get("/v1/keys")).json()["keys"] if key["name"] == "shop"]
    assert shop["id"] in shell(running, commands[1])
    shell(running, commands[2].replace("4fJk2LmQ", shop["id"]))


def copy_and_bring_back(home: Path) -> None:
    """Run both commands of the page, and move what was copied in between."""
    subprocess.run(["bash", "-c", example("docs/operations.md", "tar -cf")], cwd=home.parent, check=True)
    home.rename(home.with_name("gone"))
    subprocess.run(["bash", "-c", example("docs/operations.md", "tar -xf")], cwd=home.parent, check=True)


async def test_a_copy_of_the_folder_brings_everything_back(running: Run) -> None:
    """As a whole, after Ctrl-C."""
    async with running.client() as client:
        mail = {"to": "ada@example.com", "subject": "Kept", "text": "Hello Ada"}
        task = (await client.post("/v1/mail", json=mail)).json()["id"]
    assert running.process is not None
    running.process.send_signal(signal.SIGINT)
    await wait_until(lambda: running.process is not None and running.process.poll() is not None, 100, "it has stopped")
    copy_and_bring_back(running.home)
    await running.start()
    async with running.client() as client:
        assert (await client.get(f"/v1/tasks/{task}", params={"wait": 25})).json()["state"] == "sent"
