"""Reservations: when a rate-limited task may run, and how the task carries that time through a retry queue."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bellhop.amqp.retry import RETRY_QUEUES

HEADER = "bellhop-turn"
"""The AMQP header with the reservation: attempt, seconds left after the retry queue, each limit's name and generation.

A reservation holds no time of day. The retry queue measures the wait, so no clock matters."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """When a task may run."""

    wait: float
    """Seconds from now; 0 or less: now."""
    header: str
    """The value of `HEADER` for the task, which makes the reservation valid when the task comes back."""
    limit: str
    """The limit that makes it wait."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A reservation that a task brought back from a retry queue."""

    attempt: int
    left: float
    generations: dict[str, int]
    words: str


def make(attempt: int, wait: float, limits: Iterable[tuple[str, int]], limit: str) -> Reservation:
    """Return the reservation of a task with these limits and their generations."""
    words = " ".join(f"{name}={generation}" for name, generation in limits)
    return Reservation(wait, _header(attempt, wait, words), limit)


def read(header: object) -> Carried | None:
    """Return the reservation in a header; None if there is none. Any publisher may have written the header."""
    if not isinstance(header, str):
        return None
    attempt, _, rest = header.partition(" ")
    left, _, words = rest.partition(" ")
    try:
        generations = {name: int(number) for name, _, number in (word.rpartition("=") for word in words.split(" "))}
        return Carried(int(attempt), float(left), generations, words)
    except ValueError:
        return None


def renew(
    carried: Carried | None, attempt: int, names: Iterable[str], generation: Callable[[str], int], longest: float
) -> Reservation | None:
    """Return the carried reservation if it is still valid for this attempt and these limits, otherwise None.

    A limit that was lowered or paused has a new `generation`, which makes older reservations invalid.
    """
    if carried is None or carried.attempt != attempt or not 0 <= carried.left < longest:
        return None
    if any(name not in carried.generations or carried.generations[name] < generation(name) for name in names):
        return None
    return Reservation(carried.left, _header(attempt, carried.left, carried.words), "")


def _header(attempt: int, wait: float, words: str) -> str:
    return f"{attempt} {max(0.0, wait - RETRY_QUEUES[-1].seconds):.3f} {words}"
