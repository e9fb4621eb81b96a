"""Secrets are made once and are nobody else's to read."""

import stat
from pathlib import Path

import pytest

from bellhop.amqp.topology import RIGHTS
from bellhop.cli import secrets
from bellhop.cli.errors import CannotRun
from bellhop.web.auth import split_key


def test_secrets_stay_the_same(tmp_path: Path) -> None:
    """A restart locks nobody out."""
    assert secrets.load_or_create(tmp_path / "home") == secrets.load_or_create(tmp_path / "home")


def test_every_service_and_the_deploy_step_have_their_own_password(tmp_path: Path) -> None:
    """One user each, no password twice."""
    passwords = secrets.load_or_create(tmp_path / "home").passwords
    assert set(passwords) == {*RIGHTS, "deploy"}
    assert len(set(passwords.values())) == len(passwords)


def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask is."""
    home = tmp_path / "home"
    secrets.private_folder(home)
    secrets.load_or_create(home)
    secrets.write_service(home, "gateway", {"amqp_url": "amqp://localhost/"})
    modes = {path.relative_to(home): stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
    assert {path: mode for path, mode in modes.items() if mode != (0o700 if (home / path).is_dir() else 0o600)} == {}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_service_file_is_named_like_its_setting(tmp_path: Path) -> None:
    """`BELLHOP_SECRETS_DIR` then says everything."""
    folder = secrets.write_service(tmp_path, "mailer", {"amqp_url": "amqp://localhost/"})
    assert (folder / "bellhop_amqp_url").read_text().strip() == "amqp://localhost/"


def test_an_empty_file_is_made_again(tmp_path: Path) -> None:
    """A disk that was full once must not leave a system without a password."""
    secrets.load_or_create(tmp_path)
    (tmp_path / "secrets" / "token-key").write_text("")
    assert len(secrets.load_or_create(tmp_path).token_key) >= 32


def test_a_system_without_link_keys_keeps_its_links(tmp_path: Path) -> None:
    """Its token key signed the links in old mails, and goes on verifying them after it was renewed."""
    before = secrets.load_or_create(tmp_path)
    (tmp_path / "secrets" / "link-keys").unlink()
    secrets.load_or_create(tmp_path)
    (tmp_path / "secrets" / "token-key").unlink()
    after = secrets.load_or_create(tmp_path)
    assert before.token_key in after.link_keys.split(",")
    assert after.link_keys.split(",")[0] != before.token_key


def test_renewing_the_link_key_keeps_the_earlier_ones(tmp_path: Path) -> None:
    """The new one comes first, because that one signs."""
    before = secrets.load_or_create(tmp_path).link_keys.split(",")
    secrets.renew_link_key(tmp_path)
    after = secrets.load_or_create(tmp_path).link_keys.split(",")
    assert after[1:] == before
    assert after[0] not in before


def test_the_admin_key_is_a_key(tmp_path: Path) -> None:
    """The gateway can take it apart."""
    assert split_key(secrets.load_or_create(tmp_path).admin_key) is not None


def test_reading_a_key_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    """One sentence."""
    with pytest.raises(CannotRun, match="start Bellhop first"):
        secrets.read_admin_key(tmp_path)


def test_secrets_do_not_print_themselves(tmp_path: Path) -> None:
    """Not even by accident."""
    made = secrets.load_or_create(tmp_path)
    assert made.admin_key not in repr(made)
    assert made.passwords["deploy"] not in repr(made)
