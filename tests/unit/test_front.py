"""What the front's start script makes of its settings."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FRONT = Path(__file__).parents[2] / "deploy/front"
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010013AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000013AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@pytest.fixture(scope="module")
def start() -> ModuleType:
    spec = importlib.util.spec_from_file_location("front_start", FRONT / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("setting", "networks"),
    [
        ("", "255.255.255.255"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("host", "172.19.0.1/32"),
        ("host, 2001:db8::/32", "172.19.0.1/32 2001:db8::/32"),
    ],
)
def test_trusted_proxies_are_networks(start: ModuleType, setting: str, networks: str) -> None:
    """Nobody is trusted unless named; `host` is the machine outside of the containers."""
    assert start.trusted(setting, ROUTES) == networks


def test_what_is_no_network_is_refused(start: ModuleType) -> None:
    """A mistake must not trust everybody."""
    with pytest.raises(ValueError, match="everybody"):
        start.trusted("everybody", ROUTES)


@pytest.mark.parametrize("files", [4_096, 20_000, 1_048_576])
def test_faces_share_the_connections_and_leave_a_reserve(start: ModuleType, files: int) -> None:
    """All frontends together have fewer connections than the process, and these fit into its files."""
    limits = start.connections(files)
    faces = sum(limits[f"FRONT_{name}_CONNECTIONS"] for name in start.SHARES)
    assert faces + start.HEALTH_CONNECTIONS <= limits["FRONT_CONNECTIONS"]
    assert limits["FRONT_FILES"] <= files


def test_the_answer_to_streams_is_an_event_stream() -> None:
    """An EventSource comes back after a 200 only."""
    head, _, body = (FRONT / "come-back.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream" in head
    assert body.startswith(b"retry: ")
