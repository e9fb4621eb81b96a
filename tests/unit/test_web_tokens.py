"""Signed tokens."""

import time
from typing import Any

import jwt
import pytest

from bellhop.web import tokens
from bellhop.web.problems import Problem

KEY = "k" * 32


def test_a_token_says_what_was_put_in() -> None:
    """Subject, channels, scopes and end come back; each token has an id of its own."""
    token = tokens.mint(KEY, "ada", 60, "stream", channels=["a", "b"], scopes=["x:y", "z"])
    claims = tokens.read(token, KEY, "stream")
    assert (claims.subject, claims.channels, claims.scopes) == ("ada", ("a", "b"), ("x:y", "z"))
    assert 58 <= claims.expires_at.timestamp() - time.time() <= 60
    assert claims.id != tokens.read(tokens.mint(KEY, "ada", 60, "stream"), KEY, "stream").id


def signed(key: str = KEY, algorithm: str = "HS256", **changes: Any) -> str:
    claims = {"jti": "1", "sub": "ada", "aud": "stream", "iat": int(time.time()), "exp": int(time.time()) + 60}
    return jwt.encode({name: value for name, value in {**claims, **changes}.items() if value != ""}, key, algorithm)


BAD = {
    "empty": "",
    "garbage": "a.b.c",
    "not ASCII": "é.é.é",
    "another key": signed("other" * 8),
    "another algorithm": signed("k" * 64, "HS512"),
    "no signature": jwt.encode({"jti": "1", "sub": "a", "aud": "stream", "exp": time.time() + 60}, "", "none"),
    "expired": signed(exp=int(time.time()) - 61),
    "another audience": signed(aud="mail"),
    "no end": signed(exp=""),
    "no subject": signed(sub=""),
    "no id": signed(jti=""),
    "channels that are no list": signed(channels=5),
    "channels that are no names": signed(channels=[{"a": 1}]),
    "scope that is no text": signed(scope=["a"]),
    "an end beyond all calendars": signed(exp=10**18),
    "huge": signed(channels=["a" * 100] * 1000),
}


@pytest.mark.parametrize("name", BAD)
def test_any_other_token_is_refused(name: str) -> None:
    """401, with the same words for whatever is wrong with it."""
    with pytest.raises(Problem) as refused:
        tokens.read(BAD[name], KEY, "stream")
    assert refused.value.status == 401
    assert refused.value.detail == "This needs a valid token. Get a fresh one and connect again with it."


@pytest.mark.parametrize("skew", [-50, 50])
def test_clocks_may_differ_a_little(skew: int) -> None:
    """A token from a server whose clock is up to a minute off is valid."""
    token = tokens.mint(KEY, "ada", 20, "stream", at=int(time.time()) + skew)
    assert tokens.read(token, KEY, "stream").subject == "ada"


def test_a_clock_that_is_far_ahead_is_named() -> None:
    """A fresh token would not help: the sentence says what does."""
    token = tokens.mint(KEY, "ada", 60, "stream", at=int(time.time()) + 3600)
    with pytest.raises(Problem) as refused:
        tokens.read(token, KEY, "stream")
    assert "the clocks of the server that issued it" in refused.value.detail
