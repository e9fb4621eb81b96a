"""What the first container hands out: each reader its own, and the same again as long as nothing is renewed."""

import json
from pathlib import Path

import pytest

from bellhop import catalog
from bellhop.cli.container_secrets import store, write_all
from bellhop.cli.errors import CannotRun

READERS = ("kept", *catalog.NAMES, "rabbitmq", "postgres", "grafana")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The volumes, empty and made out to us as the image has them."""
    for reader in READERS:
        (tmp_path / reader).mkdir(mode=0o700)
    write_all(tmp_path, [])
    return tmp_path


def contents(root: Path) -> dict[str, str]:
    """Return every file by its path."""
    return {str(file.relative_to(root)): file.read_text() for file in root.rglob("*") if file.is_file()}


def test_again_it_hands_out_the_same(root: Path) -> None:
    """Byte for byte: RabbitMQ then leaves alone what an operator has changed."""
    before = contents(root)
    write_all(root, [])
    assert contents(root) == before


def test_rabbitmq_gets_hashes_and_no_password(root: Path) -> None:
    """Its file has a hash for each user, and no user `guest`."""
    text = (root / "rabbitmq" / "definitions.json").read_text()
    users = {user["name"] for user in json.loads(text)["users"]}
    assert users == {*catalog.NAMES, "deploy"}
    for file in (root / "kept" / "secrets" / "amqp").iterdir():
        assert file.read_text().strip() not in text


def test_a_renewed_service_gets_new_passwords_and_nobody_else(root: Path) -> None:
    """Renewing the mailer changes its password at RabbitMQ and at PostgreSQL, and no other file."""
    before = contents(root)
    write_all(root, ["mailer"])
    after = contents(root)
    assert {name for name in after if after[name] != before[name]} == {
        "kept/secrets/amqp/mailer",
        "kept/postgres/mailer",
        "mailer/bellhop_amqp_url",
        "mailer/bellhop_database_url",
        "postgres/mailer",
        "rabbitmq/definitions.json",
    }


@pytest.mark.parametrize("name", ["admin-key", "token-key", "link-key", "postgres", "grafana", "erlang-cookie"])
def test_everything_that_is_kept_can_be_renewed(root: Path, name: str) -> None:
    """Also what no service of ours reads."""
    before = contents(root)
    write_all(root, [name])
    assert [kept for kept in before if kept.startswith("kept/") and contents(root)[kept] != before[kept]] != []


def test_an_unknown_name_is_refused(root: Path) -> None:
    """A slip of the finger renews nothing, and the sentence says what there is."""
    before = contents(root)
    with pytest.raises(CannotRun, match="no secret 'mialer': name one of admin-key, token-key, link-key, postgres"):
        write_all(root, ["mailer", "mialer"])
    assert contents(root) == before


def test_files_are_for_their_reader_alone(root: Path) -> None:
    """Ours open only for our user; those of other images, whose users have other numbers, for whoever mounts them."""
    modes = {name: (root / name).stat().st_mode & 0o777 for name in contents(root)}
    assert {modes[name] for name in modes if name.startswith(("rabbitmq/", "postgres/", "grafana/"))} == {0o444}
    assert {modes[name] for name in modes if not name.startswith(("rabbitmq/", "postgres/", "grafana/"))} == {0o600}


def test_a_secret_that_was_given_reaches_its_service_and_no_other(root: Path) -> None:
    """The relay's password is a file of the mailer, also after the next run."""
    store(root, "mailer", "smtp_password", "correct horse\n")
    store(root, "mailer", "smtp_ca.pem", "-----BEGIN CERTIFICATE-----")
    write_all(root, [])
    write_all(root, [])
    found = {name for name, text in contents(root).items() if "correct horse" in text}
    assert found == {"kept/given/mailer/smtp_password", "mailer/bellhop_smtp_password"}
    assert "mailer/smtp_ca.pem" in contents(root)


def test_a_secret_that_was_taken_back_is_gone(root: Path) -> None:
    """Its service reads it no more."""
    before = contents(root)
    store(root, "gateway", "amqp_url", "amqps://elsewhere/bellhop")
    write_all(root, [])
    assert contents(root)["gateway/bellhop_amqp_url"] == "amqps://elsewhere/bellhop\n"
    store(root, "gateway", "amqp_url", "")
    write_all(root, [])
    assert contents(root) == before


@pytest.mark.parametrize(("service", "name"), [("mialer", "smtp_password"), ("mailer", "../admin-key"), ("mailer", "")])
def test_a_secret_for_nobody_is_refused(root: Path, service: str, name: str) -> None:
    """Neither an unknown service nor a path."""
    with pytest.raises(CannotRun):
        store(root, service, name, "x")
