"""Where a system is reached is worked out in one place."""

from pathlib import Path

import pytest

from bellhop import catalog
from bellhop.cli.addresses import Addresses
from bellhop.cli.container_secrets import PublishedPorts, write_all
from bellhop.cli.settings import UpSettings
from bellhop.local.up import banner

READERS = (*catalog.NAMES, "rabbitmq", "topology", "postgres", "grafana")


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address but the ports."""
    for name in ("PUBLIC", "NOTIFIER"):
        monkeypatch.delenv(f"BELLHOP_{name}_URL")


def test_a_moved_port_moves_what_stands_in_mails_and_tokens() -> None:
    """The links of mails and the URL of streams follow the ports, unless they are given."""
    moved = Addresses.of(UpSettings(gateway_port=9100, notifier_port=9101))
    assert (moved.gateway, moved.public) == ("http://127.0.0.1:9100", "http://127.0.0.1:9100")
    assert moved.public_notifier == "http://127.0.0.1:9101"
    given = Addresses.of(UpSettings(public_url="https://mail.example", notifier_url="https://live.example"))
    assert (given.public, given.public_notifier) == ("https://mail.example", "https://live.example")


def test_other_commands_read_them(tmp_path: Path) -> None:
    """What was written is read back; without a file, or with one of another version, there is nothing."""
    addresses = Addresses.of(UpSettings(gateway_port=9100))
    assert Addresses.read(tmp_path) is None
    addresses.write(tmp_path)
    assert Addresses.read(tmp_path) == addresses
    (tmp_path / "addresses.json").write_text('{"gateway": "http://127.0.0.1:1"}')
    assert Addresses.read(tmp_path) is None


def test_the_greeting_names_the_moved_ports(tmp_path: Path) -> None:
    """All of them, RabbitMQ's pages too, and the links of mails where these differ."""
    settings = UpSettings(gateway_port=9100, mailbox_http_port=9102, node_management_port=9103)
    said = banner(settings, tmp_path)
    assert "http://127.0.0.1:9100/v1/mail" in said
    assert "http://127.0.0.1:9102/" in said
    assert "http://127.0.0.1:9103/" in said
    # Neither of these services has a page at /.
    assert "http://127.0.0.1:8001/live " in said
    assert "http://127.0.0.1:8002/docs" in said
    assert "links in mails" not in said
    assert "https://mail.example/" in banner(UpSettings(public_url="https://mail.example"), tmp_path)


def test_the_log_of_secrets_names_the_published_ports(tmp_path: Path) -> None:
    """They were moved in `.env`."""
    for reader in READERS:
        (tmp_path / reader).mkdir()
    ports = PublishedPorts(gateway_port=9100, rabbitmq_port=9672, grafana_port=9300)
    said = "\n".join(write_all(tmp_path, [], ports))
    for port in (9100, 9672, 9300):
        assert f"http://127.0.0.1:{port} " in said
