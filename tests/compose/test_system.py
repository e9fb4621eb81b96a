"""`docker compose up` from a clean copy: it works, it keeps its secrets, it scales, and it forgets only when told.

The tests are one story on one system and run in the order in which they stand here.
"""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import yaml

from bellhop.cli.settings import UpSettings
from bellhop.local.checkout import find
from bellhop.web.tokens import mint
from tests.compose.system import SERVICES, TAG, System, counted
from tests.services.notifier_support import browser
from tests.services.test_monitoring_files import METRIC, expressions
from tests.support import wait_until
from tests.support.follower import Follower

BOARD = "compose"
ENTRIES = [("ada", 30.0), ("bob", 20.0), ("cleo", 10.0)]
SCALE = ["gateway=2", "mailer=3", "notifier=2", "leaderboard=2"]
SCALED = [part for one in SCALE for part in ("--scale", one)]


@pytest.fixture(scope="module", autouse=True)
def started(system: System) -> float:
    """Everything is up; the seconds that it took."""
    return system.up()


async def send_mails(system: System, number: int, prefix: str) -> list[str]:
    """Have that many mails accepted and return their tasks."""
    async with system.client() as gateway:
        answers = await asyncio.gather(
            *(
                gateway.post(
                    "/v1/mail", json={"to": f"{prefix}-{n}@example.com", "subject": f"{prefix} {n}", "text": "Hello"}
                )
                for n in range(number)
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["id"] for answer in answers]


async def all_sent(system: System, tasks: list[str]) -> None:
    """Wait until all tasks are sent."""
    async with system.client() as gateway:
        for task in tasks:
            answer = await gateway.get(f"/v1/tasks/{task}", params={"wait": 55}, timeout=70)
            assert answer.json()["state"] == "sent", answer.text


async def notify(system: System, channel: str, titles: list[str]) -> None:
    """Raise one notification for each title."""
    async with system.client() as gateway:
        for title in titles:
            answer = await gateway.post("/v1/notifications", json={"channels": [channel], "title": title})
            assert answer.status_code == 202, answer.text


async def stream_token(system: System, channel: str) -> str:
    """Return a token for one channel."""
    async with system.client() as gateway:
        answer = await gateway.post("/v1/stream-tokens", json={"subject": "ada", "channels": [channel]})
    token: str = answer.json()["token"]
    return token


async def post_scores(system: System, entries: list[tuple[str, float]]) -> None:
    """Have scores accepted."""
    scores = [
        {"board": BOARD, "player": player, "score": score, "at": datetime.now(UTC).isoformat()}
        for player, score in entries
    ]
    async with system.client() as gateway:
        assert (await gateway.post("/v1/scores", json=scores)).status_code == 202


async def ranking(system: System) -> list[tuple[str, float]]:
    """Return the board, by way of the gateway; nothing while the leaderboard is away."""
    async with system.client() as gateway:
        answer = await gateway.get(f"/v1/leaderboards/{BOARD}")
    return [(entry["player"], entry["score"]) for entry in answer.json().get("entries", [])]


def titles_of(documents: list[dict[str, Any]]) -> list[str]:
    return [document["data"]["title"] for document in documents]


def test_every_container_is_healthy(system: System) -> None:
    """`--wait` says so, and every service has a check that it could have failed."""
    for service in [*SERVICES, "front", "rabbitmq", "postgres", "mailpit"]:
        (container,) = system.containers(service)
        assert system.inspect(container)["State"]["Health"]["Status"] == "healthy", service


def test_every_container_is_hardened(system: System) -> None:
    """Read-only, without capabilities it does not need, without new privileges, with limits; ours not as root."""
    for service in [*SERVICES, "front", "rabbitmq", "postgres", "mailpit", "secrets"]:
        (container,) = system.containers(service)
        described = system.inspect(container)
        host, user = described["HostConfig"], described["Config"]["User"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"] or service == "postgres", service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["PidsLimit"] > 0, service
        # What is full is an error of the program that writes, and not the end of the container for want of memory.
        assert all("size=" in options for options in host["Tmpfs"].values()), service
        if service in (*SERVICES, "front", "secrets"):
            assert int(user.partition(":")[0]) >= 10_000, service


def test_no_server_process_is_root(system: System) -> None:
    """The two images that are not ours have users of their own as well."""
    for service, server in (("rabbitmq", "beam.smp"), ("postgres", "postgres")):
        (container,) = system.containers(service)
        lines = [
            line.split(None, 2) for line in system.docker("top", container, "-eo", "pid,uid,comm").splitlines()[1:]
        ]
        users = {int(uid) for _, uid, command in lines if command == server}
        assert users, service
        assert 0 not in users, service


def test_only_this_machine_reaches_it(system: System) -> None:
    """Ports are published on 127.0.0.1, and only those that a user needs."""
    published: dict[str, set[str]] = {}
    for service in [*SERVICES, "front", "rabbitmq", "postgres", "mailpit"]:
        ports = system.inspect(system.containers(service)[0])["NetworkSettings"]["Ports"]
        bindings = [(port, binding["HostIp"]) for port, found in ports.items() for binding in found or []]
        assert {address for _, address in bindings} <= {"127.0.0.1"}, service
        if bindings:
            published[service] = {port for port, _ in bindings}
    assert published == {
        "front": {"8000/tcp", "8001/tcp", "8002/tcp"},
        "rabbitmq": {"15672/tcp"},
        "mailpit": {"8025/tcp"},
    }


def test_each_service_sees_its_own_secrets_and_no_other(system: System) -> None:
    """A service that is taken over gives away nothing but what is its own."""
    database = {"bellhop_amqp_url", "bellhop_database_url"}
    expected = {
        "gateway": database | {"bellhop_token_key", "bellhop_link_keys", "bellhop_admin_key", "bellhop_management_url"},
        "mailer": database | {"bellhop_service_key"},
        "notifier": {"bellhop_amqp_url", "bellhop_token_key"},
        "leaderboard": database | {"bellhop_token_key"},
    }
    seen = {}
    for service in SERVICES:
        listed = system.compose("exec", "-T", service, "find", "/run/secrets", "/secrets", "-type", "f")
        seen[service] = {path.rpartition("/")[2] for path in listed.split()}
    assert seen == expected


def test_no_secret_is_in_any_environment(system: System) -> None:
    """`docker inspect` shows environments to whoever may ask the engine, and crash reports contain them."""
    secret = [system.key, system.secret("gateway", "token_key")]
    secret += [system.secret(service, "amqp_url").split(":")[2].partition("@")[0] for service in SERVICES]
    for service in [*SERVICES, "front", "rabbitmq", "postgres", "mailpit", "secrets"]:
        environment = "\n".join(system.inspect(system.containers(service)[0])["Config"]["Env"])
        assert not [one for one in secret if one in environment], service


async def test_its_first_step_tells_how_to_get_in(system: System) -> None:
    """The log of `secrets` has the admin key and a login of RabbitMQ's pages that work; `guest` does not exist."""
    said = system.compose("logs", "--no-color", "--no-log-prefix", "secrets")
    assert system.key in said
    password = said.split("user deploy, password ")[1].split()[0]
    async with httpx.AsyncClient(base_url=system.management_url, auth=("deploy", password), trust_env=False) as pages:
        users = (await pages.get("/api/users")).json()
    assert {user["name"] for user in users} == {*SERVICES, "deploy"}


def test_make_admin_key_finds_the_containers(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command as for `make up` prints the key of the composed system."""
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", system.name)
    found = find(UpSettings(home=system.folder / "no-such-home"))
    assert (found.url, found.mailbox_url, found.admin_key) == (system.url, system.mailbox_url, system.key)


async def test_a_mail_a_ranking_and_a_live_notification(system: System) -> None:
    """The three things that Bellhop does, from HTTP to where a user sees them."""
    await all_sent(system, await send_mails(system, 3, "first"))
    async with httpx.AsyncClient(base_url=system.mailbox_url, trust_env=False) as mailbox:
        mails = (await mailbox.get("/api/v1/messages")).json()["messages"]
    assert sorted(mail["Subject"] for mail in mails) == ["first 0", "first 1", "first 2"]

    await post_scores(system, ENTRIES)
    await wait_until(lambda: _ranked(system, ENTRIES), 20, "the scores are ranked")

    async with browser(system.notifier_url, await stream_token(system, "news")) as page:
        assert (await page.read(1))[0]["type"] == "ready"
        await notify(system, "news", ["Dinner", "Dessert"])
        assert titles_of(await page.read(2)) == ["Dinner", "Dessert"]


async def test_a_live_stream_survives_a_restart_of_its_only_notifier(system: System) -> None:
    """Behind the front it is answered with nothing but 200, and is shown each event once, also those of the absence."""
    port = int(system.notifier_url.rpartition(":")[2])
    follower, titles = Follower(port, await stream_token(system, "restarted")), []
    following = asyncio.create_task(follower.run())
    try:
        await asyncio.wait_for(follower.live.wait(), 20)
        restarting = asyncio.create_task(asyncio.to_thread(system.compose, "restart", "notifier"))
        async with system.client() as gateway:
            while not restarting.done() or not titles:
                titles.append(f"n{len(titles)}")
                body = {"channels": ["restarted"], "title": titles[-1]}
                assert (await gateway.post("/v1/notifications", json=body)).status_code == 202
                await asyncio.sleep(0.1)
        await restarting
        await wait_until(lambda: titles[-1] in follower.seen, 60, "it follows again")
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert follower.refusals == []
    assert list(follower.seen.items()) == [(title, 1) for title in titles]
    assert follower.gaps == 0
    assert follower.connections > 1


async def _ranked(system: System, expected: list[tuple[str, float]]) -> bool:
    return await ranking(system) == expected


async def test_a_stop_loses_nothing(system: System) -> None:
    """`down` and `up`: tasks, ranks, keys and the stream are as they were."""
    tasks = await send_mails(system, 2, "before")
    await all_sent(system, tasks)
    key = system.key
    token = await stream_token(system, "news")
    async with browser(system.notifier_url, token) as page:
        await page.read(1)
        last = page.last_event_id
    system.down()
    system.up()
    assert system.key == key
    await all_sent(system, tasks)
    assert await ranking(system) == ENTRIES
    async with browser(system.notifier_url, token, last_event_id=last) as page:
        await notify(system, "news", ["Back"])
        assert titles_of(await page.read(1)) == ["Back"]


def test_a_missing_secret_is_named(system: System) -> None:
    """A service without secrets ends at once, with one sentence for each that it lacks."""
    with pytest.raises(AssertionError) as ended:
        system.docker("run", "--rm", "--network", "none", f"bellhop/mailer:{TAG}")
    said = str(ended.value)
    assert "BELLHOP_AMQP_URL: Field required. Set the variable, or a file of that name" in said
    assert "BELLHOP_DATABASE_URL: Field required." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("variable", "wrong", "reason"),
    [
        (
            "BELLHOP_DATABASE_URL",
            "postgresql+asyncpg://gateway:wrong@postgres/gateway",
            "password authentication failed",
        ),
        ("BELLHOP_AMQP_URL", "amqp://gateway:wrong@rabbitmq/bellhop", "ACCESS_REFUSED"),
    ],
)
async def test_a_wrong_secret_is_told_and_waited_for(system: System, variable: str, wrong: str, reason: str) -> None:
    """The service stays up, says once what is wrong and is not ready; it does not crash again and again."""
    name = f"{system.name}-wrong"
    system.compose("run", "-d", "--no-deps", "--name", name, "-e", f"{variable}={wrong}", "gateway")
    try:
        check = ["exec", name, "python3", "-IS", "/app/healthcheck.py", "8000", "/healthz"]
        await wait_until(lambda: _succeeds(system, check), 30, "it answers", interval=0.5)
        logged = await wait_until(lambda: _lines_with(system, name, reason), 30, "it says what is wrong", interval=0.5)
        assert len(logged) <= 2, logged  # publishing and consuming have a connection each
        assert not _lines_with(system, name, "Traceback")
        with pytest.raises(AssertionError):
            system.docker("exec", name, "python3", "-IS", "/app/healthcheck.py")
        state = system.inspect(name)
        assert (state["State"]["Status"], state["RestartCount"]) == ("running", 0)
    finally:
        system.docker("rm", "-f", name)


def _succeeds(system: System, command: list[str]) -> bool:
    try:
        system.docker(*command)
    except AssertionError:
        return False
    return True


def _lines_with(system: System, container: str, what: str) -> list[str]:
    return [line for line in system.docker("logs", container).splitlines() if what in line]


async def test_a_database_that_comes_late_is_waited_for(system: System) -> None:
    """Services that are started without PostgreSQL are alive, not ready, and work as soon as it is there."""
    system.compose("stop", "postgres")
    system.compose("restart", *SERVICES)
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as gateway:

        async def status(path: str) -> int:
            return (await gateway.get(path)).status_code

        async def alive_and_not_ready() -> bool:
            return (await status("/healthz"), await status("/readyz")) == (200, 503)

        await wait_until(alive_and_not_ready, 40, "the gateway is alive and not ready", interval=0.5)
        system.compose("start", "postgres")

        async def ready() -> bool:
            return await status("/readyz") == 200

        await wait_until(ready, 60, "the gateway is ready", interval=0.5)
    await all_sent(system, await send_mails(system, 2, "late"))


async def test_it_scales(system: System) -> None:
    """More replicas of everything come up beside those that are there, behind the same addresses."""
    system.up("--no-recreate", *SCALED)
    for replicas in SCALE:
        service, _, number = replicas.partition("=")
        assert len(system.containers(service)) == int(number)
    async with system.client() as gateway:
        assert (await gateway.get("/readyz")).status_code == 200


async def test_mailers_and_gateways_share_the_work(system: System) -> None:
    """Each replica does a part, and nothing is done twice."""
    await all_sent(system, await send_mails(system, 300, "shared"))
    sent = [counted(address, "bellhop_mailer_outcomes_total") for address in system.addresses("mailer")]
    assert all(sent), sent
    served = [counted(address, "bellhop_http_request_seconds_count") for address in system.addresses("gateway")]
    assert all(served), served
    async with httpx.AsyncClient(base_url=system.mailbox_url, trust_env=False) as mailbox:
        mails = (await mailbox.get("/api/v1/messages")).json()["messages"]
    assert len({mail["MessageID"] for mail in mails}) == len(mails)


async def test_every_notifier_sees_everything_and_a_browser_resumes_on_another(system: System) -> None:
    """Each replica has its own copy of the stream; an id that one gave is understood by the other."""
    one, other = system.addresses("notifier")
    token = await stream_token(system, "replicas")
    titles = [f"n{number}" for number in range(20)]
    async with browser(one, token) as here, browser(other, token) as there:
        await here.read(1)
        await there.read(1)
        await notify(system, "replicas", titles)
        assert titles_of(await there.read(20)) == titles
        assert titles_of(await here.read(5)) == titles[:5]
        last = here.last_event_id
    async with browser(other, token, last_event_id=last) as resumed:
        assert titles_of(await resumed.read(15)) == titles[5:]


async def test_one_leaderboard_applies_and_another_takes_over(system: System) -> None:
    """Exactly one replica counts scores, both serve reads, and when the one is killed the other counts on."""
    await post_scores(system, [("dora", 5.0)])
    expected = [*ENTRIES, ("dora", 5.0)]
    token = mint(system.secret("leaderboard", "token_key"), "test", 600, "leaderboard", scopes=["leaderboards:read"])
    addresses = system.addresses("leaderboard")
    for address in addresses:
        await wait_until(lambda address=address: _reads(address, token, expected), 20, f"{address} has the scores")
    applied = [counted(address, "bellhop_leaderboard_scores_total") for address in addresses]
    assert sorted(bool(count) for count in applied) == [False, True], applied

    containers = system.containers("leaderboard")
    system.docker("kill", containers[applied.index(max(applied))])
    await post_scores(system, [("emil", 4.0)])
    survivor = addresses[applied.index(min(applied))]
    expected = [*expected, ("emil", 4.0)]
    await wait_until(lambda: _reads(survivor, token, expected), 40, "the other replica counts")
    assert counted(survivor, "bellhop_leaderboard_scores_total") > 0
    system.up("--no-recreate", *SCALED)  # Docker takes a kill for an operator's wish, and starts nothing again


async def test_what_was_read_once_stays_readable(system: System) -> None:
    """A board that one answer knew is known to all that follow, whichever replica gives them."""
    async with system.client() as gateway:
        for number in range(20):
            board = f"/v1/leaderboards/fresh-{number}"
            assert (await gateway.put(board, json={"operator": "sum"})).status_code in {200, 201}
            answers = await asyncio.gather(*(gateway.get(board) for _ in range(5)))
            assert {answer.status_code for answer in answers} == {200}


async def _reads(address: str, token: str, expected: list[tuple[str, float]]) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{address}/v1/leaderboards/{BOARD}", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return [(entry["player"], entry["score"]) for entry in answer.json()["entries"]] == expected


def test_the_demo_passes_at_this_scale(system: System) -> None:
    """`make demo` counts what became of everything that was accepted."""
    demo = system.start_demo()
    said, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, said


def test_every_metric_of_the_alerts_and_the_board_exists(system: System) -> None:
    """What deploy/monitoring names is told by some /metrics, read where its prometheus.yml reads it."""
    rabbitmq, front = system.address("rabbitmq"), system.address("front")
    scraped = yaml.safe_load((system.folder / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
    (detailed,) = (one for one in scraped if one["job_name"] == "rabbitmq-queues")
    pages = [f"{address}/metrics" for service in SERVICES for address in system.addresses(service)]
    pages += [f"http://{rabbitmq}:15692/metrics", f"http://{front}:8404/metrics"]
    page = httpx.URL(f"http://{rabbitmq}:15692{detailed['metrics_path']}", params=detailed["params"])
    known: set[str] = set()
    for url in [*pages, page]:
        text = httpx.get(url, trust_env=False, timeout=20).text
        known |= {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    named = {name for text in expressions().values() for name in METRIC.findall(text)}
    # A histogram is declared by its own name and told as three.
    assert {name for name in named if not {name, re.sub("_(bucket|count|sum)$", "", name)} & known} == set()


def test_down_with_volumes_leaves_nothing(system: System) -> None:
    """No container, volume or network of this project is there afterwards."""
    system.down("-v")
    label = f"label=com.docker.compose.project={system.name}"
    for kind in (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"]):
        assert system.docker(*kind, "--filter", label).strip() == "", kind
