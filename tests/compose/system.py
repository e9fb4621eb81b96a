"""The whole system in containers, from a clean copy, beside any other that runs here."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bellhop import catalog
from bellhop.local.ports import LOOPBACK
from tests.support.ports import lasting_ports

ROOT = Path(__file__).parents[2]
SERVICES = catalog.NAMES
# Never a user's own images.
TAG = "test"


class System:
    """One project of Docker Compose."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._built = False
        gateway, notifier, leaderboard, rabbitmq, mailpit = lasting_ports(5)
        self.url = f"http://{LOOPBACK}:{gateway}"
        self.notifier_url = f"http://{LOOPBACK}:{notifier}"
        self.leaderboard_url = f"http://{LOOPBACK}:{leaderboard}"
        self.management_url = f"http://{LOOPBACK}:{rabbitmq}"
        self.mailbox_url = f"http://{LOOPBACK}:{mailpit}"
        # None of ours: the test must find what a user finds.
        self._clean = {key: value for key, value in os.environ.items() if not key.startswith(("BELLHOP_", "COMPOSE_"))}
        self.environment = self._clean | {
            "COMPOSE_PROJECT_NAME": name,
            "BELLHOP_TAG": TAG,
            "BELLHOP_GATEWAY_PORT": str(gateway),
            "BELLHOP_NOTIFIER_PORT": str(notifier),
            "BELLHOP_LEADERBOARD_PORT": str(leaderboard),
            "BELLHOP_RABBITMQ_PORT": str(rabbitmq),
            "BELLHOP_MAILPIT_PORT": str(mailpit),
        }

    def compose(self, *arguments: str, timeout: float = 600) -> str:
        """Run `docker compose …` and return what it said on stdout."""
        return self._run("docker", "compose", *arguments, timeout=timeout)

    def up(self, *arguments: str) -> float:
        """Bring everything up and wait until it is healthy; return how many seconds that took.

        The images are built the first time.
        """
        began = time.monotonic()
        build = [] if self._built else ["--build"]
        try:
            self.compose("up", *build, "--wait", "--wait-timeout", "240", *arguments)
            self._built = True
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('ps', '-a')}\n{self.logs()}") from None
        return time.monotonic() - began

    def down(self, *arguments: str) -> None:
        """Stop and remove the containers; with `-v` everything else too."""
        # Every profile's: what a test started is stopped.
        self.compose("--profile", "*", "down", *arguments)

    def logs(self, *services: str) -> str:
        """Return the end of what the containers said."""
        return self.compose("logs", "--no-color", "--tail", "40", *services)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, in the order of their numbers."""
        listed = self.compose("ps", "-a", "--format", "json", service).splitlines()
        found = [json.loads(line) for line in listed if line.strip()]
        return [one["ID"] for one in sorted(found, key=lambda one: str(one["Name"]))]

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container."""
        described: list[dict[str, Any]] = json.loads(self._run("docker", "inspect", container))
        return described[0]

    def address(self, service: str) -> str:
        """Return the IP address of a service's first container, as this machine reaches it without the front."""
        return self._address(self.containers(service)[0])

    def addresses(self, service: str) -> list[str]:
        """Return the base URL of each replica that runs, likewise."""
        described = (self.inspect(container) for container in self.containers(service))
        running = [one["Id"] for one in described if one["State"]["Running"]]
        return [f"http://{self._address(container)}:{catalog.PORTS[service]}" for container in running]

    def _address(self, container: str) -> str:
        address: str = self.inspect(container)["NetworkSettings"]["Networks"][f"{self.name}_default"]["IPAddress"]
        return address

    def docker(self, *arguments: str) -> str:
        """Run `docker …`."""
        return self._run("docker", *arguments)

    def secret(self, service: str, name: str) -> str:
        """Return one of the secrets of a service, read where it reads it."""
        return self.compose("exec", "-T", service, "cat", f"/run/secrets/bellhop/bellhop_{name}").strip()

    @property
    def key(self) -> str:
        """The admin key."""
        return self.secret("gateway", "admin_key")

    def client(self) -> httpx.AsyncClient:
        """Return a client of the gateway that has the admin key."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30, trust_env=False
        )

    def start_demo(self) -> "subprocess.Popen[str]":
        """Start `bellhop demo`, which finds this system, whatever its ports, by the name of its project."""
        ours = {"COMPOSE_PROJECT_NAME": self.name, "BELLHOP_HOME": str(self.folder / "no-such-home"), "COLUMNS": "120"}
        environment = self._clean | ours
        return subprocess.Popen(
            [sys.executable, "-m", "bellhop.cli.main", "demo"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def shell(self, commands: str) -> str:
        """Run commands in bash, in the folder of the copy, and return what they printed, errors included."""
        return self._run("bash", "-c", f"exec 2>&1\n{commands}")

    def _run(self, *command: str, timeout: float = 600) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, (
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:] or done.stdout[-3000:]}"
        )
        return done.stdout


def counted(address: str, metric: str) -> float:
    """Return the sum of one metric over all its labels, as a replica tells it."""
    text = httpx.get(f"{address}/metrics", trust_env=False, timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    )


@contextmanager
def clean_system(folder: Path, name: str) -> Iterator[System]:
    """Copy what belongs to the repository into `folder`, and leave nothing running or stored afterwards."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in listed.stdout.split("\0"):
        if path and (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    system = System(folder, name)
    try:
        yield system
    finally:
        system.down("-v", "--remove-orphans")
