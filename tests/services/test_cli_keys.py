"""`bellhop keys` against a running gateway, as an operator types it."""

import asyncio
import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO

from bellhop.cli.addresses import Addresses
from bellhop.cli.settings import UpSettings
from bellhop.web.auth import new_key
from tests.services.gateway_support import RunningGateway, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.ports import lasting_ports


async def keys(
    gateway: RunningGateway | None, *arguments: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `bellhop keys` and return what it said; without `environment` it is told where `gateway` is."""
    if environment is None:
        environment = {"BELLHOP_URL": f"http://127.0.0.1:{lasting_ports(1)[0]}", "BELLHOP_ADMIN_KEY": "bh_any"}
    if gateway is not None:
        admin_key = gateway.admin.headers["Authorization"].removeprefix("Bearer ")
        environment = {"BELLHOP_URL": gateway.url, "BELLHOP_ADMIN_KEY": admin_key}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}
    command = [sys.executable, "-m", "bellhop.cli.main", "keys", *arguments]
    return await asyncio.to_thread(
        subprocess.run,
        command,
        check=False,
        capture_output=True,
        text=True,
        env=clean | {"COLUMNS": "200"} | environment,
        timeout=60,
    )


async def test_a_key_is_made_listed_and_revoked(vhost: Vhost, tmp_path: Path) -> None:
    """What `create` prints is the key and nothing else; it works until it is revoked, and stays in the list."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/g.db") as gateway:
        made = await keys(gateway, "create", "shop", "mail:send", "mail:read")
        assert made.returncode == 0, made.stderr
        key = made.stdout.removesuffix("\n")
        async with gateway.client(key) as shop:
            assert (await shop.post("/v1/mail", json=mail())).status_code == 202
            listed = (await keys(gateway, "list")).stdout
            assert key not in listed
            (line,) = [line for line in listed.splitlines() if "shop" in line]
            key_id = key[3:11]
            assert key_id in line
            assert "mail:send mail:read" in line

            assert (await keys(gateway, "revoke", key_id)).returncode == 0

            async def refused() -> bool:
                return (await shop.get("/v1/tasks")).status_code == 401

            await wait_until(refused, 15, "the key is refused")
        (line,) = [line for line in (await keys(gateway, "list")).stdout.splitlines() if "shop" in line]
        assert "revoked" in line


def found_here(home: Path, gateway: RunningGateway, key: str) -> IO[str]:
    """Make it look as if `bellhop up` ran from `home` with this gateway; closing what is returned ends that."""
    home.mkdir()
    (home / "admin-key").write_text(key)
    replace(Addresses.of(UpSettings()), gateway=gateway.url).write(home)
    lock = (home / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


async def test_the_system_that_runs_here_is_found_with_its_ports(vhost: Vhost, tmp_path: Path) -> None:
    """It wrote where it is reached, so that no other command has to be told its ports again."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/g.db") as gateway:
        key = gateway.admin.headers["Authorization"].removeprefix("Bearer ")
        with found_here(tmp_path / "home", gateway, key):
            listed = await keys(None, "list", environment={"BELLHOP_HOME": str(tmp_path / "home")})
    assert listed.returncode == 0, listed.stderr
    assert "admin" in listed.stdout


async def test_a_key_is_not_sent_to_another_system(vhost: Vhost, tmp_path: Path) -> None:
    """The key that was found is of one system, the URL that was given of another: refused in one sentence."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/g.db") as gateway:
        with found_here(tmp_path / "home", gateway, new_key()):
            environment = {"BELLHOP_HOME": str(tmp_path / "home"), "BELLHOP_URL": gateway.url}
            refused = await keys(None, "list", environment=environment)
    assert refused.returncode == 1
    assert "is not the Bellhop whose admin key was found" in refused.stderr
    assert refused.stderr.count("\n") == 1


async def test_what_cannot_be_done_is_told_in_a_sentence(vhost: Vhost, tmp_path: Path) -> None:
    """A scope that is none, a key that is none, and a gateway that is not there: exit code 1, no trace."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/g.db") as gateway:
        failed = {
            "scopes/0 must be 'mail:send'": await keys(gateway, "create", "shop", "mail:fly"),
            "no such key": await keys(gateway, "revoke", "abcdefgh"),
            "make up": await keys(None, "list"),
        }
    for words, done in failed.items():
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert words in done.stderr
        assert done.stderr.startswith("bellhop: ")
        assert done.stderr.count("\n") == 1
