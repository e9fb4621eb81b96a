"""Limits: one rate for all replicas, lowered and paused by what servers say."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import chain, pairwise
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Double, literal_column

from bellhop.contracts.tasks import Lane
from bellhop.sql.database import CLOCK_SQL, Database
from bellhop.sql.migrations import migrate
from bellhop.tasks.adaptive_rate import CLIMBED_SECONDS, REFUSALS
from bellhop.tasks.send_rate import SendRate
from services.mailer.handlers import answer_of
from services.mailer.relays.dialogue import Step
from services.mailer.relays.replies import Verdict, classify
from services.mailer.tables import LIMITS

RELAY = "relay:main"
SLOW = classify(Step.RCPT, 421, "4.7.28 too fast")
POLICY = classify(Step.RCPT, 550, "5.7.1 blocked")
SENT = classify(Step.DOT, 250, "2.0.0 OK")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.mailer")
    database = Database(database_url)
    yield database
    await database.close()


async def waits(limits: SendRate, count: int, domain: str = "example.com", lane: Lane = Lane.NORMAL) -> list[float]:
    names = limits.limits_of(domain, "shop", RELAY)
    turns = await asyncio.gather(*(limits.reserve(names, lane, 1, None) for _ in range(count)))
    return sorted(turn.wait for turn in turns)


async def hear(limits: SendRate, verdict: Verdict, domain: str = "example.com", times: int = 1) -> None:
    for _ in range(times):
        await limits.observe(answer_of(verdict), domain, RELAY, after=verdict.after, about_relay=verdict.about_relay)


def rate(limits: SendRate, name: str = "domain:example.com", domain: str = "example.com") -> float | None:
    return dict(limits.limits_of(domain, "shop", RELAY)).get(name)


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the database's clock so many seconds ahead of the right time."""
    monkeypatch.setattr(Database, "clock", property(lambda self: right_clock(self) + seconds))


def right_clock(database: Database) -> ColumnElement[float]:
    return literal_column(CLOCK_SQL[database.dialect], Double)


async def test_without_limits_nobody_is_asked(database: Database) -> None:
    """A mail that no limit holds for costs a look, not a query."""
    assert SendRate(database, LIMITS, {}, {}).limits_of("example.com", "shop", RELAY) == []


async def test_replicas_share_one_rate(database: Database) -> None:
    """Forty mails at 20/s, half of them on each of two replicas, are spread over the same two seconds."""
    replicas = [SendRate(database, LIMITS, {"*": "20/s"}, {}) for _ in range(2)]
    found = sorted(chain(*await asyncio.gather(*(waits(one, 20) for one in replicas))))
    assert sum(wait <= 0 for wait in found) == pytest.approx(20, abs=2)  # what nobody took for a second
    assert found[-1] == pytest.approx(1.0, abs=0.3)
    gaps = [after - before for before, after in pairwise(found)]
    assert max(gaps) < 0.15


async def test_every_kind_of_limit_counts(database: Database) -> None:
    """The strictest of domain, sender and relay decides; other domains and senders have their own."""
    limits = SendRate(database, LIMITS, {"example.com": "100/s"}, {"shop": "10/s"})
    limits.add_relay(RELAY, "1000/h")
    names = limits.limits_of("example.com", "shop", RELAY)
    assert [name for name, _ in names] == ["domain:example.com", RELAY, "sender:shop"]
    turns = [await limits.reserve(names, Lane.NORMAL, 1, None) for _ in range(5)]
    assert turns[-1].limit == RELAY
    assert limits.limits_of("other.example", "crm", "relay:other") == []


async def test_an_appointment_is_kept_and_taken_once(database: Database) -> None:
    """A mail that comes back with its appointment takes no other place; its next attempt does."""
    limits = SendRate(database, LIMITS, {"*": "1/s"}, {})
    await waits(limits, 5)
    names = limits.limits_of("example.com", "shop", RELAY)
    turn = await limits.reserve(names, Lane.NORMAL, 1, None)
    again = await limits.reserve(names, Lane.NORMAL, 1, turn.header)
    assert (again.wait, again.header) == (0, turn.header)
    assert (await limits.reserve(names, Lane.NORMAL, 2, turn.header)).wait > turn.wait + 0.5


async def test_an_appointment_beyond_the_ladder_is_kept(database: Database) -> None:
    """What is left after the longest retry queue is waited for in a further round; no other place is taken."""
    limits = SendRate(database, LIMITS, {"*": "2/h"}, {})
    names = limits.limits_of("example.com", "shop", RELAY)
    waiting = [await limits.reserve(names, Lane.NORMAL, 1, None) for _ in range(27)][-1]
    rounds = []
    while waiting.wait > 0:
        rounds.append(round(waiting.wait))
        waiting = await limits.reserve(names, Lane.NORMAL, 1, waiting.header)
    hours = 3600
    assert rounds == [pytest.approx(13 * hours, abs=3), pytest.approx(7 * hours, abs=3), pytest.approx(hours, abs=3)]


async def test_a_clock_that_was_ahead_delays_no_mail(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for while it was an hour ahead, the places and the appointments, does not wait for an hour."""
    limits = SendRate(database, LIMITS, {"*": "2/s"}, {})
    names = limits.limits_of("example.com", "shop", RELAY)
    with monkeypatch.context() as ahead:
        set_clock(ahead, 3600)
        early = [await limits.reserve(names, Lane.NORMAL, 1, None) for _ in range(5)]
    assert (await waits(limits, 1))[0] < 3
    assert (await limits.reserve(names, Lane.NORMAL, 1, early[-1].header)).wait <= 0


async def test_clocks_of_replicas_do_not_matter(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is an hour ahead takes the next place like any other."""
    limits = SendRate(database, LIMITS, {"*": "2/s"}, {})
    now = time.time
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: now() + 3600)
        assert (await waits(limits, 5))[-1] < 3
    assert (await waits(limits, 1))[0] < 4


async def test_a_backlog_and_a_pause_stay_when_the_clock_is_set_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as they were, neither longer nor forgotten."""
    limits = SendRate(database, LIMITS, {"*": "1/s"}, {})
    with monkeypatch.context() as ahead:
        set_clock(ahead, 3600)
        await waits(limits, 100)
        await hear(limits, classify(Step.RCPT, 421, "4.7.0 too fast, try again in 90 seconds"), "other.example")
    await limits.refresh()
    assert (await waits(limits, 1))[0] == pytest.approx(99, abs=3)
    assert (await waits(limits, 1, "other.example", Lane.URGENT))[0] == pytest.approx(90, abs=3)


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        "",
        "x y",
        "1",
        "1 nan domain:example.com=0",
        "1 1e300 domain:example.com=0",
        "1 2 domain:example.com=x",
        b"1 2",
    ],
)
async def test_a_strange_header_is_no_appointment(database: Database, header: Any) -> None:
    """Whatever a foreign message brings, the mail gets a place of its own."""
    limits = SendRate(database, LIMITS, {"*": "1/s"}, {})
    names = limits.limits_of("example.com", "shop", RELAY)
    assert (await limits.reserve(names, Lane.NORMAL, 1, header)).header.endswith("domain:example.com=0")


async def test_urgent_mail_takes_a_place_but_waits_for_none(database: Database) -> None:
    """A password reset does not stand behind a newsletter; what comes after it waits a little longer."""
    limits = SendRate(database, LIMITS, {"*": "1/s"}, {})
    before = (await waits(limits, 10))[-1]
    assert (await waits(limits, 1, lane=Lane.URGENT))[0] <= 0
    assert (await waits(limits, 1))[0] == pytest.approx(before + 2, abs=0.3)


async def test_too_fast_halves_the_rate_and_it_climbs_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all complaints of the same moment; every replica knows; after a while the set rate holds again."""
    one, other = (SendRate(database, LIMITS, {"*": "100/s"}, {}) for _ in range(2))
    await asyncio.gather(*(hear(one, SLOW) for _ in range(10)))
    await other.refresh()
    assert rate(one) == pytest.approx(50, abs=2)
    assert rate(other) == pytest.approx(50, abs=2)
    assert rate(one, "domain:fast.example", "fast.example") == 100
    set_clock(monkeypatch, 60)
    await one.refresh()
    assert rate(one) == pytest.approx(75, abs=2)
    set_clock(monkeypatch, 130)
    await one.refresh()
    assert rate(one) == 100


async def test_a_domain_without_limit_gets_one_and_loses_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is half of what was measured; at twice of what it was before, the limit is gone."""
    limits = SendRate(database, LIMITS, {}, {})
    await hear(limits, SENT, times=300)
    await asyncio.sleep(0.1)
    await hear(limits, SLOW)
    lowered = rate(limits)
    assert lowered is not None
    assert 20 < lowered < 151
    assert limits.limits_of("other.example", "shop", RELAY) == []
    set_clock(monkeypatch, CLIMBED_SECONDS)
    await limits.refresh()
    assert rate(limits) is None


async def test_too_fast_for_many_domains_is_about_the_relay(database: Database) -> None:
    """One domain that complains is limited by itself; when several do at once, the relay is."""
    limits = SendRate(database, LIMITS, {}, {})
    limits.add_relay(RELAY, "100/s")
    for domain in ("a.example", "b.example", "c.example"):
        await hear(limits, SLOW, domain)
    assert rate(limits, RELAY) == pytest.approx(50, abs=2)
    assert rate(limits, "domain:c.example", "c.example") is None


async def test_a_lowered_rate_voids_the_appointments_before_it(database: Database) -> None:
    """Those were made for the old rate; whoever comes back gets a new one."""
    limits = SendRate(database, LIMITS, {"*": "10/s"}, {})
    names = limits.limits_of("example.com", "shop", RELAY)
    turn = (await asyncio.gather(*(limits.reserve(names, Lane.NORMAL, 1, None) for _ in range(30))))[-1]
    await hear(limits, SLOW)
    again = await limits.reserve(limits.limits_of("example.com", "shop", RELAY), Lane.NORMAL, 1, turn.header)
    assert again.header != turn.header


async def test_the_server_says_how_long_to_pause(database: Database) -> None:
    """ "Try again in 90 seconds" holds the domain for so long."""
    limits = SendRate(database, LIMITS, {"*": "10/s"}, {})
    await hear(limits, classify(Step.RCPT, 421, "4.7.0 too fast, try again in 90 seconds"))
    assert (await waits(limits, 1))[0] == pytest.approx(90, abs=1)
    assert (await waits(limits, 1, lane=Lane.URGENT))[0] == pytest.approx(90, abs=1)


async def test_policy_refusals_in_a_row_pause_the_domain(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the pause one mail probes; a further refusal pauses for longer, a success forgives."""
    limits = SendRate(database, LIMITS, {}, {})
    await hear(limits, POLICY, times=REFUSALS - 1)
    await hear(limits, SENT)
    await hear(limits, POLICY, times=REFUSALS - 1)
    assert rate(limits) is None
    await hear(limits, POLICY)
    assert (await waits(limits, 2)) == [pytest.approx(600, abs=2), pytest.approx(660, abs=2)]
    set_clock(monkeypatch, 610)
    await limits.refresh()
    await hear(limits, POLICY, times=REFUSALS)
    assert (await waits(limits, 1))[0] == pytest.approx(1200, abs=2)
    await hear(limits, SENT)
    set_clock(monkeypatch, 610 + 1210)
    await limits.refresh()
    await hear(limits, POLICY, times=REFUSALS)
    assert (await waits(limits, 1))[0] == pytest.approx(600, abs=2)
