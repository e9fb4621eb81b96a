"""API keys."""

import re

import pytest

from bellhop.web.auth import Caller, Scope, hash_key, key_matches, new_key, split_key


def test_a_new_key_has_an_id_and_a_secret_of_256_bits() -> None:
    """It has the published form, and no two are alike."""
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"bh_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", key) for key in keys)
    assert all(split_key(key) == (key[3:11], key[12:]) for key in keys)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bh_",
        "bh_abcdefgh",
        "bh_abcdefgh_" + "a" * 42,
        "bh_abcdefgh_" + "a" * 44,
        "xx_abcdefgh_" + "a" * 43,
        "bh_abcdefgh-" + "a" * 43,
        "bh_abc%efgh_" + "a" * 43,
        "bh_abcdefgh_" + "ä" * 43,
    ],
)
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    """There is nothing to look up for a text of another form."""
    assert split_key(text) is None


def test_a_key_is_found_again_by_its_hash_alone() -> None:
    """The kept hash fits its secret and no other, and does not contain it."""
    secret = "s" * 43
    kept = hash_key(secret)
    assert key_matches(secret, kept)
    assert not key_matches("t" * 43, kept)
    assert not key_matches(secret, "")
    assert secret not in kept


def test_only_admin_may_everything() -> None:
    """Any other scope gives itself alone."""
    reader = Caller("a", "reader", frozenset({"mail:read"}))
    admin = Caller("b", "admin", frozenset({"admin"}))
    assert [scope for scope in Scope if reader.may(scope)] == [Scope.MAIL_READ]
    assert all(admin.may(scope) for scope in Scope)
