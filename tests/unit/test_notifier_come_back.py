"""When clients are told to connect again."""

from services.notifier.come_back import FIRST_MS, MAX_MS, SPREAD_MS, ComeBack


def test_few_clients_come_back_within_seconds() -> None:
    """At different moments."""
    waits = {ComeBack().milliseconds() for _ in range(100)}
    assert len(waits) > 50
    assert min(waits) >= FIRST_MS
    assert max(waits) < FIRST_MS + SPREAD_MS


def test_many_clients_are_spread_over_a_longer_time() -> None:
    """So that no second brings more of them than a process can take, but nobody waits for minutes."""
    come_back = ComeBack()
    come_back.connected = 12_000
    waits = [come_back.milliseconds() for _ in range(12_000)]
    per_second = [sum(1 for wait in waits if wait // 1000 == second) for second in range(max(waits) // 1000 + 1)]
    assert max(per_second) < 700
    come_back.connected = 10**9
    assert max(come_back.milliseconds() for _ in range(1000)) < FIRST_MS + MAX_MS


def test_refused_clients_count_until_they_are_forgotten() -> None:
    """A crowd before a full process waits longer, and the next one does not."""
    come_back = ComeBack()
    for _ in range(10_000):
        come_back.refuse()
    assert max(come_back.milliseconds() for _ in range(1000)) > FIRST_MS + SPREAD_MS
    for _ in range(120):
        come_back.forget_some()
    assert max(come_back.milliseconds() for _ in range(1000)) < FIRST_MS + SPREAD_MS
