"""A taken port is told in one sentence."""

import os
import socket

import pytest

from bellhop.cli.errors import CannotRun
from bellhop.local.ports import check_free, free_ports, holder_of


@pytest.fixture
def taken_port():
    """A port that this very process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_names_itself_its_holder_and_the_variable(taken_port: int) -> None:
    """Whoever reads it knows what to stop or what to set."""
    with pytest.raises(CannotRun) as raised:
        check_free(taken_port, "the gateway", "BELLHOP_GATEWAY_PORT")
    sentence = str(raised.value)
    assert f"Port {taken_port} for the gateway is taken by" in sentence
    assert f"(process {os.getpid()})" in sentence
    assert "set BELLHOP_GATEWAY_PORT" in sentence


def test_a_free_port_passes() -> None:
    """Nothing is raised."""
    check_free(free_ports(1)[0], "the gateway", "BELLHOP_GATEWAY_PORT")


def test_free_ports_are_all_different() -> None:
    """They are held together until all are known."""
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_nobody_holds_a_free_port() -> None:
    """There is no holder to name."""
    assert holder_of(free_ports(1)[0]) is None
