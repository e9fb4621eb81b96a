"""A private RabbitMQ node of the `rabbitmq-server` that is installed on this machine.

Private means: it has its own name, ports, cookie, configuration and data in one folder, listens only on the loopback
address, has no user `guest` and its own epmd. No process is left running when it is stopped or when this process ends.
A system-wide RabbitMQ is neither read nor changed.
"""

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from bellhop.amqp import topology
from bellhop.cli.errors import CannotRun
from bellhop.local import node_log, processes
from bellhop.local.ports import LOOPBACK

VHOST = "bellhop"
"""Not "/": clients disagree on how to write that in a URL."""
DEBIAN_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What Debian's wrapper in /usr/sbin calls; the wrapper itself wants to be root or the user rabbitmq."""

MOST_READ_CHARACTERS = 300_000
"""Bytes that are read from the end of each log: the reason is hundreds of lines before the last one."""

# Name and host of the Erlang node. `localhost` always resolves; the name of a container often does not.
NODE_NAME = "bellhop@localhost"

# Busy waiting makes a broker answer faster on a machine of its own and steals the cores of everything beside it.
VM_ARGUMENTS = "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of the node, on the loopback address."""

    amqp: int
    management: int
    prometheus: int
    distribution: int
    epmd: int


def find_server() -> Path | None:
    """Return the script that starts RabbitMQ, or None if it is not installed."""
    if DEBIAN_SCRIPT.exists():
        return DEBIAN_SCRIPT
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class Node:
    """One node in one folder. `launch` it, `wait_ready`, `stop` it."""

    def __init__(self, folder: Path, ports: Ports, passwords: dict[str, str]) -> None:
        """`passwords`: those of the users in `topology.RIGHTS` and of `deploy`. No file is changed before `launch`."""
        self.folder = folder.absolute()
        self.ports = ports
        self._passwords = passwords
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    @property
    def log(self) -> Path:
        """The file the node logs to."""
        return self.folder / "log" / "node.log"

    @property
    def _console(self) -> Path:
        return self.folder / "log" / "console.log"

    @property
    def management_url(self) -> str:
        """URL of the management API with the credentials of `deploy`: never print it."""
        return self.management_url_of("deploy")

    def management_url_of(self, user: str) -> str:
        """Return the same with the credentials of `user`."""
        return f"http://{user}:{self._passwords[user]}@{LOOPBACK}:{self.ports.management}"

    def amqp_url(self, user: str) -> str:
        """Return the URL that `user` connects with."""
        return f"amqp://{user}:{self._passwords[user]}@{LOOPBACK}:{self.ports.amqp}/{VHOST}"

    def launch(self) -> None:
        """Start the processes and return immediately; a node that a killed run left is ended first.

        Call it from the main thread, see `processes.ends_with_us`.

        Raises:
            CannotRun: RabbitMQ is not installed.
        """
        server = find_server()
        if server is None:
            raise CannotRun(
                "RabbitMQ is not installed: run 'apt-get install rabbitmq-server' as root,"
                " or set BELLHOP_AMQP_URL to a broker that runs elsewhere."
            )
        # The processes of a killed run have received a signal, but need time to stop.
        processes.end_leftovers("RABBITMQ_MNESIA_BASE", f"{self.folder}/data", timeout=30)
        self._stopped.clear()
        self._write_files()
        environment = self._environment()
        if self.log.exists():  # so that the log has only this start
            self.log.replace(self.log.with_name("node.previous.log"))
        with self._console.open("wb") as console:
            # Started here, in the foreground, so that it can be ended: one that the node starts would keep running.
            self._epmd = subprocess.Popen(  # noqa: S603
                [_epmd(), "-address", LOOPBACK, "-port", str(self.ports.epmd)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                preexec_fn=processes.ends_with_us(),
            )
            _wait_for_port(self.ports.epmd)  # otherwise the node would start its own
            self._server = subprocess.Popen(  # noqa: S603
                [str(server)],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                preexec_fn=processes.ends_with_us(),
            )

    def wait_ready(self, timeout: float = 90) -> None:
        """Return when both AMQP and the management API answer. Blocks; `stop` in another thread ends it.

        Raises:
            CannotRun: the node ended, or did not answer within `timeout` seconds; the text has the node's reason.
        """
        deadline = time.monotonic() + timeout
        while not (speaks_amqp(self.ports.amqp) and self._management_answers()):
            if self.has_ended or self._epmd_has_ended:
                raise CannotRun(f"RabbitMQ did not start: {self.last_words()}")
            if time.monotonic() > deadline:
                raise CannotRun(f"RabbitMQ did not answer within {timeout:.0f} seconds: {self.last_words()}")
            if self._stopped.wait(0.1):
                raise CannotRun("RabbitMQ was stopped while it started.")

    @property
    def has_ended(self) -> bool:
        """Return whether the node was launched and has ended."""
        return self._server is not None and self._server.poll() is not None

    @property
    def _epmd_has_ended(self) -> bool:
        return self._epmd is not None and self._epmd.poll() is not None

    def last_words(self) -> str:
        """Return why the node ended or does not answer, as one sentence, with the names of its logs."""
        files = [self._console, self.log]
        said = "\n".join(_end_of(file) for file in files)
        ports = asdict(self.ports)
        if self._epmd_has_ended:  # it logs no reason
            words = node_log.taken(self.ports.epmd, ports)
        else:
            words = node_log.reason(said, self.folder, ports) or "its logs contain no known reason."
        return f"{words} (Its logs: {' and '.join(str(file) for file in files if file.exists())})"

    def stop(self, timeout: float = 30) -> None:
        """Stop the node, by force after `timeout` seconds, and then its epmd. Idempotent."""
        self._stopped.set()
        for process, limit in ((self._server, timeout), (self._epmd, 5)):
            if process is not None:
                processes.stop(process, limit)
        self._server = self._epmd = None

    def kill(self) -> None:
        """Kill all processes immediately; only for a node whose data is not needed."""
        self._stopped.set()
        for process in (self._server, self._epmd):
            if process is not None:
                processes.kill_group(process)
        self._server = self._epmd = None

    def _write_files(self) -> None:
        for name in ("home", "data", "log", "etc"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        etc = self.folder / "etc"
        _write_private(
            etc / "definitions.json", json.dumps(topology.boot_definitions(self._passwords, vhost=VHOST), indent=2)
        )
        _write_private(
            etc / "rabbitmq.conf",
            "\n".join(
                [
                    f"listeners.tcp.1 = {LOOPBACK}:{self.ports.amqp}",
                    f"management.tcp.ip = {LOOPBACK}",
                    f"management.tcp.port = {self.ports.management}",
                    f"prometheus.tcp.ip = {LOOPBACK}",
                    f"prometheus.tcp.port = {self.ports.prometheus}",
                    f"load_definitions = {etc / 'definitions.json'}",
                    "log.console = false",
                    "log.file.level = info",
                    "",
                ]
            ),
        )
        _write_private(etc / "enabled_plugins", "[rabbitmq_management, rabbitmq_prometheus].\n")
        _write_private(etc / "rabbitmq-env.conf", "")
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            _write_private(cookie, secrets.token_hex(32))
            cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        etc = self.folder / "etc"
        return {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "home"),  # Erlang reads the cookie from there
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "RABBITMQ_MNESIA_BASE": f"{self.folder}/data",
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": str(self.log),
            "RABBITMQ_CONFIG_FILE": str(etc / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(etc / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(etc),
            "RABBITMQ_CONF_ENV_FILE": str(etc / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(etc / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": VM_ARGUMENTS,
            # The start script then executes the Erlang VM instead of waiting for it, so that our child is the VM.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _management_answers(self) -> bool:
        token = base64.b64encode(f"deploy:{self._passwords['deploy']}".encode()).decode()
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.ports.management}/api/whoami", headers={"Authorization": f"Basic {token}"}
        )
        try:
            with _OPENER.open(request, timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False


# Without the proxy of HTTP_PROXY, because the address is the loopback address.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def speaks_amqp(port: int, host: str = LOOPBACK) -> bool:
    """Return whether an AMQP 0-9-1 server answers the protocol header with Connection.Start (specification, 4.2.2)."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise CannotRun(f"Erlang's epmd did not listen on port {port} within 5 seconds.") from None
            time.sleep(0.01)


def _epmd() -> str:
    found = shutil.which("epmd")
    if found is None:
        raise CannotRun("Erlang's epmd is not on the PATH although RabbitMQ is installed: reinstall erlang-base.")
    return found


def _write_private(file: Path, text: str) -> None:
    """Create a file with mode 600, so that no other user can read it at any time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def _end_of(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[-MOST_READ_CHARACTERS:]
    except OSError:
        return ""
