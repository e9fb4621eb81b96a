"""The window of the stream that a notifier holds in memory."""

from services.notifier.events import Event
from services.notifier.log import START, Log


def event(offset: int, *channels: str, key: str = "", size: int = 0) -> Event:
    digest = (key or f"key {offset}").encode().ljust(16, b".")
    return Event(offset, digest, "note", channels or ("news",), b"x" * size)


def log(*events: Event, count: int = 100, size: int = 10_000_000, seconds: float = 60) -> Log:
    made = Log(events=count, size=size, seconds=seconds)
    for item in events:
        made.append(item)
    return made


def offsets(log: Log, behind: int, *channels: str) -> list[int] | None:
    piece = log.read(behind, channels or ("news",))
    return None if piece is None else [item.offset for item, _ in piece.shown]


def test_an_id_is_valid_only_with_the_tag_of_its_event() -> None:
    """A stream that was made anew has the same offsets, but not the same events."""
    window = log(event(0), event(1))
    assert window.find(event(1).id) == 1
    assert window.find(event(1, key="another event").id) is None


def test_two_logs_of_the_same_events_agree_wherever_they_begin() -> None:
    """No coordinator is needed: a replica that started later understands the ids of an older one."""
    older, younger = log(event(0), event(1), event(2)), log(event(1), event(2))
    assert older.end_id == younger.end_id
    assert younger.find(older.end_id) == 2


def test_what_lies_outside_the_window_is_not_found() -> None:
    """Whoever resumes from there is told that there is a gap."""
    window = log(*(event(offset) for offset in range(10)), count=3)
    assert (window.first, window.end) == (7, 9)
    assert window.find(event(6).id) is None
    assert window.find(event(10).id) is None
    assert window.find(event(7).id) == 7


def test_nonsense_is_not_found() -> None:
    """An id comes from outside and may be anything."""
    window = log(event(0))
    for text in ("", ":", "none:0", "0", "abc", "a:b", "none:-2", "x:" + "9" * 5000, "x:٣", "none:-1 "):
        assert window.find(text) is None, text


def test_an_empty_stream_is_resumed_from_its_start() -> None:
    """Whoever connected before the first event gets it."""
    window = log()
    assert window.end_id == START
    assert window.find(START) == -1
    window.append(event(0))
    assert offsets(window, -1) == [0]


def test_the_start_is_a_gap_once_the_first_event_is_gone() -> None:
    """Nothing before the window can be vouched for."""
    assert log(event(0), event(1), count=1).find(START) is None
    assert log(event(5)).find(START) is None


def test_reading_gives_what_was_shown_on_the_channels_behind_an_offset() -> None:
    """In order, with the channel that each is shown on, and an event on several of them once."""
    window = log(event(0, "a"), event(1, "b"), event(2, "a", "b"), event(4, "c"))
    piece = window.read(0, ("b", "a"))
    assert piece is not None
    assert [(item.offset, channel) for item, channel in piece.shown] == [(1, "b"), (2, "a")]
    assert (piece.end, piece.complete) == (4, True)


def test_a_long_replay_comes_in_pieces() -> None:
    """So that it never lies in a buffer as a whole."""
    window = log(*(event(offset, size=1000) for offset in range(10)))
    read, behind, pieces = [], -1, 0
    while True:
        piece = window.read(behind, ("news",), limit=4000)
        assert piece is not None
        read += [item.offset for item, _ in piece.shown]
        behind, pieces = piece.end, pieces + 1
        if piece.complete:
            break
    assert read == list(range(10))
    assert pieces > 2


def test_a_reader_that_the_window_has_left_behind_gets_a_gap() -> None:
    """Also in the middle of a replay."""
    window = log(*(event(offset) for offset in range(10)), count=5)
    assert offsets(window, 3) is None
    assert offsets(window, 4) == [5, 6, 7, 8, 9]


def test_the_window_is_bounded_in_bytes() -> None:
    """Large events leave earlier."""
    window = log(*(event(offset, size=10_000) for offset in range(100)), size=50_000)
    assert window.bytes <= 50_000
    assert len(window) == 4


def test_the_window_is_bounded_in_time_but_keeps_the_newest() -> None:
    """After a quiet night its id is still good."""
    window = log(event(0), event(1), seconds=-1)
    assert (window.first, window.end) == (1, 1)


def test_a_copy_of_an_event_takes_a_position_but_is_not_shown() -> None:
    """A publisher that had no answer publishes again."""
    window = log()
    assert window.append(event(0, key="same"))
    assert not window.append(event(1, key="same"))
    assert offsets(window, -1) == [0]
    assert window.find(window.end_id) == 1


def test_many_events_cost_no_memory_once_they_are_gone() -> None:
    """The list behind the window does not grow."""
    window = log(*(event(offset) for offset in range(20_000)), count=100)
    assert len(window) == 100
    assert len(window._events) < 5000
    assert len(window._keys) == 100
    assert len(window._arrivals) == 100
