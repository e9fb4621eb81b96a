"""A private node that cannot start says why, in one sentence."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellhop.cli.errors import CannotRun
from bellhop.local.node import Node, Ports
from tests.support.ports import lasting_ports


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node that was not started yet."""
    node = Node(tmp_path / "node", Ports(*lasting_ports(5)), {"deploy": "a password"})
    yield node
    node.kill()


def refusal(node: Node) -> str:
    """Start the node, which must fail, and return what is said."""
    node.launch()
    with pytest.raises(CannotRun) as raised:
        node.wait_ready(60)
    return str(raised.value)


def test_a_cookie_that_others_may_read(node: Node) -> None:
    """As after a `chmod -R`: the file is named, and what to do."""
    cookie = node.folder / "home" / ".erlang.cookie"
    cookie.parent.mkdir(parents=True)
    cookie.write_text("secret")
    cookie.chmod(0o644)
    said = refusal(node)
    assert f"others than its owner may read {cookie}" in said
    assert f"chmod 400 {cookie}" in said
    assert "stack_size" not in said


@pytest.mark.parametrize("name", ["distribution", "epmd"])
def test_a_port_that_another_program_has(node: Node, name: str) -> None:
    """The port, who has it, and the variable that moves ours are named."""
    port = getattr(node.ports, name)
    with socket.create_server(("127.0.0.1", port)):
        said = refusal(node)
    assert f"port {port} for its" in said
    assert "is taken by" in said
    assert f"set BELLHOP_NODE_{name.upper()}_PORT" in said


def test_a_node_that_is_stopped_while_it_starts_keeps_nobody_waiting(node: Node) -> None:
    """Ctrl-C during the start ends it immediately."""
    node.launch()
    node.stop()
    with pytest.raises(CannotRun, match="stopped while it started"):
        node.wait_ready(60)
