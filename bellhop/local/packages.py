"""Install RabbitMQ with the system's package manager."""

import os
import subprocess
import sys
from pathlib import Path

from bellhop.cli.errors import CannotRun
from bellhop.local.node import find_server

APT_INSTALL = Path(__file__).parents[2] / "scripts" / "apt-install"
BY_HAND = "run 'apt-get install rabbitmq-server' as root, or set BELLHOP_AMQP_URL to a broker that runs elsewhere."


def ensure_rabbitmq() -> None:
    """Install `rabbitmq-server` if it is missing: without a question as root, otherwise after a question at a terminal.

    Raises:
        CannotRun: it is missing, and was not installed.
    """
    if find_server() is not None:
        return
    if not APT_INSTALL.exists() or not Path("/usr/bin/apt-get").exists():
        raise CannotRun(
            "RabbitMQ is not installed: install rabbitmq-server 3.10 or newer with your system's package manager,"
            " or set BELLHOP_AMQP_URL to a broker that runs elsewhere."
        )
    command = [str(APT_INSTALL), "rabbitmq-server"]
    if os.geteuid() != 0:
        if not sys.stdin.isatty():
            raise CannotRun(f"RabbitMQ is not installed: {BY_HAND}")
        answer = input("RabbitMQ is not installed. Install Debian's package rabbitmq-server now, with sudo? [Y/n] ")
        if answer.strip().lower() not in ("", "y", "yes"):
            raise CannotRun(f"RabbitMQ is not installed: {BY_HAND}")
        command.insert(0, "sudo")
    print("Installing the Debian package rabbitmq-server (its own service is not started) ...", flush=True)
    done = subprocess.run(command, check=False)  # noqa: S603
    if done.returncode != 0 or find_server() is None:
        raise CannotRun(f"rabbitmq-server could not be installed: {BY_HAND}")
