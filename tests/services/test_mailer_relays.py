"""Several relays: who gets the mail, who gets it when one fails, and what never goes out twice for that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bellhop.tasks.breaker import THRESHOLD, Breaker
from services.mailer.settings import MailerSettings
from tests.services.mailer_running import Running, running_mailer
from tests.services.mailer_support import DROP, SILENCE, ScriptedRelay, mailer_settings, relay
from tests.support import Vhost, wait_until


@pytest.fixture
async def pair() -> AsyncIterator[tuple[ScriptedRelay, ScriptedRelay]]:
    async with ScriptedRelay() as first, ScriptedRelay() as second:
        yield first, second


@pytest.fixture
def start(vhost: Vhost, tmp_path: Path) -> Any:
    run = partial(running_mailer, vhost, f"sqlite+aiosqlite:///{tmp_path}/mailer.db", 1)

    @asynccontextmanager
    async def started(first: ScriptedRelay, second: ScriptedRelay, **changes: Any) -> AsyncIterator[Running]:
        quick = {"timeout": 0.5, "data_timeout": 0.5}
        relays = [
            relay(first.port, "first", **quick),
            relay(second.port, "second", priority=2) | changes.pop("spare", {}),
        ]
        async with run(relays=relays, **changes) as mailer:
            yield mailer

    return started


Pair = tuple[ScriptedRelay, ScriptedRelay]


async def test_the_relay_of_the_first_priority_gets_the_mail(pair: Pair, start: Any) -> None:
    """The other one is for when it fails."""
    first, second = pair
    async with start(first, second) as mailer:
        for number in range(5):
            await mailer.mail(f"t-{number}")
        outcome = await mailer.outcome(5)
    assert (len(first.mails), len(second.mails)) == (5, 0)
    assert outcome["relay"] == f"127.0.0.1:{first.port}"


async def test_relays_of_one_priority_share_by_weight(pair: Pair, start: Any) -> None:
    """Four parts to one."""
    first, second = pair
    async with start(first, second, spare={"priority": 1, "weight": 4}) as mailer:
        await asyncio.gather(*(mailer.mail(f"t-{number}") for number in range(100)))
        await mailer.outcome(100, timeout=20)
    assert 60 <= len(second.mails) <= 95
    assert len(first.mails) + len(second.mails) == 100


async def test_an_absent_relay_costs_neither_mail_nor_attempt(pair: Pair, start: Any) -> None:
    """The next one takes the mail at once; when the first is back, it gets the mail again."""
    first, second = pair
    async with start(first, second) as mailer:
        await first.stop()
        for number in range(5):
            await mailer.mail(f"t-{number}")
        await mailer.outcome(5)
        assert {(one["state"], one["attempt"]) for one in mailer.outcomes} == {("sent", 1)}
        assert len(second.mails) == 5
        assert await mailer.app.state.ready() == dict.fromkeys(await mailer.app.state.ready(), "ok")
        await first.start()
        await wait_until(lambda: first.connections, 10, "the probe")
        await mailer.mail("back")
        assert (await mailer.outcome(6))["relay"] == f"127.0.0.1:{first.port}"


@pytest.mark.parametrize(
    ("verb", "reply"),
    [("MAIL", DROP), ("RCPT", DROP), ("DATA", SILENCE), ("MAIL", "530 5.7.0 authenticate first"),
     ("MAIL", "550 5.7.1 you may not send as this sender")],
)  # fmt: skip
async def test_what_is_certainly_not_out_goes_elsewhere_at_once(pair: Pair, start: Any, verb: str, reply: str) -> None:
    """One attempt, one mail, by the second relay."""
    first, second = pair
    first.replies[verb] = [reply]
    async with start(first, second) as mailer:
        await mailer.mail()
        outcome = await mailer.outcome()
    assert (outcome["state"], outcome["attempt"], outcome["uncertain"]) == ("sent", 1, False)
    assert outcome["relay"] == f"127.0.0.1:{second.port}"
    assert len(second.mails) == 1


@pytest.mark.parametrize("reply", [DROP, SILENCE])
async def test_what_may_be_out_goes_nowhere_before_it_is_marked_uncertain(pair: Pair, start: Any, reply: str) -> None:
    """After the final dot no other relay is tried: it is another attempt, and both outcomes say `uncertain`."""
    first, second = pair
    first.replies["."] = [reply]
    async with start(first, second) as mailer:
        await mailer.mail()
        outcome = await mailer.outcome(timeout=10)
        assert (outcome["state"], outcome["uncertain"]) == ("retrying", True)
        assert not second.mails
        outcome = await mailer.outcome(2, timeout=15)
    assert (outcome["state"], outcome["uncertain"], outcome["attempt"]) == ("sent", True, 2)


async def test_a_refusal_of_the_recipient_goes_nowhere_else(pair: Pair, start: Any) -> None:
    """What one relay says about a recipient would be asked of no second one."""
    first, second = pair
    first.replies["RCPT"] = ["550 5.1.1 no such user"]
    async with start(first, second) as mailer:
        await mailer.mail()
        outcome = await mailer.outcome()
    assert (outcome["state"], outcome["cause"]) == ("failed", "bad-address")
    assert not second.commands


async def test_a_relay_that_refuses_every_domain_is_left_alone(pair: Pair, start: Any) -> None:
    """After policy refusals to three domains in a row the mail goes by the other relay."""
    first, second = pair
    first.replies["RCPT"] = ["554 5.7.1 we do not relay for you"] * 50
    async with start(first, second) as mailer:
        for number in range(6):
            await mailer.mail(f"t-{number}", to=f"ada@{number}.example.com")
            await mailer.outcome(number + 1)
    assert [one["state"] for one in mailer.outcomes] == ["failed"] * 3 + ["sent"] * 3
    assert {one.get("cause") for one in mailer.outcomes} == {"policy", None}


async def test_when_all_are_away_the_mail_waits(pair: Pair, start: Any) -> None:
    """The health page names both; nothing is counted."""
    first, second = pair
    async with start(first, second) as mailer:
        await asyncio.gather(first.stop(), second.stop())
        await mailer.mail()

        async def failure() -> bool:
            said = (await mailer.app.state.ready())["relay"]
            return str(first.port) in said and str(second.port) in said

        await wait_until(failure, 15, "both relays are known to be away")
        await second.start()
        assert (await mailer.outcome(timeout=20))["attempt"] == 1
    assert len(second.mails) == 1


# Limits, from queue to relay


async def test_a_limited_domain_does_not_slow_another(pair: Pair, start: Any) -> None:
    """Its mails wait on the ladder, as the same attempt, while those to others go out past them."""
    first, second = pair
    limits = {"slow.example": "2/s"}
    async with start(first, second, domain_limits=limits) as mailer:
        await asyncio.gather(*(mailer.mail(f"slow-{number}", to="ada@slow.example") for number in range(20)))
        await asyncio.gather(*(mailer.mail(f"fast-{number}") for number in range(20)))

        def to(domain: str) -> int:
            return sum(f"@{domain}".encode() in mail for mail in first.mails)

        await wait_until(lambda: to("example.com") == 20, 5, "the fast ones are out")
        assert to("slow.example") < 12
        await mailer.outcome(40, timeout=25)
    assert {(one["state"], one["attempt"]) for one in mailer.outcomes} == {("sent", 1)}
    assert len(first.mails) == 40


async def test_a_throttled_domain_is_sent_to_more_slowly(pair: Pair, start: Any) -> None:
    """One "too fast" from its server, and the rest of its mails gets appointments instead of refusals."""
    first, second = pair
    first.replies["RCPT"] = ["250 OK"] * 20 + ["421 4.7.28 too fast"]
    async with start(first, second, domain_limits={"*": "1000/s"}) as mailer:
        for number in range(21):
            await mailer.mail(f"t-{number}")
        await mailer.outcome(21)
        row = mailer.app.state.mailer.send_rate.limits_of("example.com", "key-1", "relay:first")
        assert row[0][1] == pytest.approx(500, rel=0.1)


# Settings


def test_relays_may_stand_in_a_file(tmp_path: Path) -> None:
    """TOML or JSON; a variable may hold the same text."""
    toml = '[[relay]]\nname = "a"\nhost = "a.example"\nrate = "10/s"\n'
    file = tmp_path / "relays.toml"
    file.write_text(toml + '[[relay]]\nkind = "sendgrid"\nname = "b"\napi_key = "k"\n')
    found = settings(str(file)).all_relays
    assert [(one.name, one.kind) for one in found] == [("a", "smtp"), ("b", "sendgrid")]
    assert settings('[{"name": "a", "host": "a.example"}]').all_relays[0].name == "a"
    assert settings(toml).all_relays[0].rate == "10/s"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/no/such/file", "can be read"),
        ("[[relay]]\nname = 'a'\n", "host"),
        ("[[relay]]\nname = 'a'\nhost = 'a'\nrate = 'fast'\n", "must be a rate like"),
        ("[[relay]]\nname = 'a'\nhost = 'a'\n[[relay]]\nname = 'a'\nhost = 'b'\n", "a name of its own"),
        ("[[relay]]\nname='a'\nhost='a.example'\ntls='none'\nusername='u'\npassword='p'\n", "in clear"),
        ("[[relay]]\nkind='sendgrid'\nname='a'\napi_key='k'\nurl='http://a.example'\n", "in clear"),
        ("[{", "neither JSON nor TOML"),
    ],
)
def test_bad_relays_are_refused_with_a_reason(text: str, sentence: str) -> None:
    """At the start, not with the first mail."""
    with pytest.raises(ValidationError, match=sentence):
        settings(text)


def settings(relays: str) -> MailerSettings:
    return mailer_settings(25, smtp_host=None, relays=relays)


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    """A success in between starts the count anew; after a probe the next failure opens it at once."""
    events: list[str] = []
    breaker = Breaker(lambda: events.append("open"), lambda: events.append("closed"))
    for _ in range(THRESHOLD - 1):
        breaker.failed("no")
    breaker.succeeded()
    for _ in range(THRESHOLD - 1):
        breaker.failed("no")
    assert breaker.closed
    breaker.failed("no answer")
    assert (breaker.closed, breaker.failure) == (False, "no answer")
    breaker.half_open()
    assert breaker.closed
    breaker.failed("no")
    assert events == ["open", "closed", "open"]
