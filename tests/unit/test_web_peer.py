"""The client for other services of ours, against a transport that answers as it is told to."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from bellhop.errors import Unavailable
from bellhop.web import peer, tokens
from bellhop.web.auth import Scope
from bellhop.web.peer import Peer, PeerUnavailable, token_authenticator

KEY = "k" * 40


class Other:
    """The other service: it keeps what it was asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] = lambda _: httpx.Response(200, json={})):
        self.requests: list[httpx.Request] = []
        self._answer = answer
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._take))
        self.peer = Peer("mailer", "http://mailer:8003", KEY, http, subject="gateway")

    def _take(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer(request)

    @property
    def tokens(self) -> list[str]:
        return [request.headers["Authorization"].removeprefix("Bearer ") for request in self.requests]


def ask(other: Other, *paths: str, **options: object) -> None:
    async def run() -> None:
        for path in paths:
            await other.peer.request("GET", path, **options)  # type: ignore[arg-type]

    asyncio.run(run())


def test_the_other_service_knows_who_asks_and_for_what() -> None:
    """The token names the service that asks, is for the audience alone, and has one scope."""
    other = Other()
    ask(other, "/v1/templates", scope=Scope.MAIL_SEND)
    claims = tokens.read(other.tokens[0], KEY, "mailer")
    assert (claims.subject, claims.scopes) == ("gateway", ("mail:send",))
    caller = asyncio.run(token_authenticator(KEY, "mailer")(other.tokens[0]))
    assert caller is not None
    assert (caller.name, caller.scopes) == ("gateway", {"mail:send"})
    assert asyncio.run(token_authenticator(KEY, "leaderboard")(other.tokens[0])) is None


def test_one_token_is_used_for_many_requests_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another scope or audience gets its own; after half of its time a token is replaced."""
    other = Other()
    ask(other, "/a", "/b", scope=Scope.MAIL_SEND)
    ask(other, "/c", scope=Scope.LEADERBOARDS_READ)
    ask(other, "/d", audience="attachments")
    first, second, *others = other.tokens
    assert first == second
    assert len({first, *others}) == 3
    monkeypatch.setattr(peer, "TOKEN_SECONDS", -1)
    ask(other, "/e", scope=Scope.MAIL_SEND)
    assert other.tokens[-1] != first


def test_a_path_arrives_as_it_was_written() -> None:
    """What is encoded stays encoded: a slash in a name would lead to another path."""
    other = Other()
    ask(other, "/v1/leaderboards/a%2Fb/players/%C3%A4?limit=5&after=x%20y")
    assert other.requests[0].url.raw_path == b"/v1/leaderboards/a%2Fb/players/%C3%A4?limit=5&after=x%20y"


def test_a_header_of_the_caller_does_not_replace_the_token() -> None:
    """A forwarded request may have headers of its own."""
    other = Other()
    ask(other, "/", headers={"If-None-Match": "x", "Authorization": "Bearer theirs"})
    assert other.requests[0].headers["If-None-Match"] == "x"
    assert tokens.read(other.tokens[0], KEY, "mailer").subject == "gateway"


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectTimeout("", request=request)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuse, "the mailer does not answer: ConnectTimeout"),
        (lambda _: httpx.Response(503), "the mailer answers 503 to GET /v1/templates"),
        (lambda _: httpx.Response(200, text="<html>"), "the mailer answers something else than JSON"),
    ],
    ids=["nothing", "an error", "no JSON"],
)
def test_a_peer_that_does_not_answer_as_it_should_is_unavailable(
    answer: Callable[[httpx.Request], httpx.Response], reason: str
) -> None:
    """One error for all of it, and it is an `Unavailable`: a handler that meets it holds its message."""
    with pytest.raises(PeerUnavailable, match=f"^{reason}$") as caught:
        asyncio.run(Other(answer).peer.ask("GET", "/v1/templates?limit=1"))
    assert isinstance(caught.value, Unavailable)
