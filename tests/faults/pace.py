"""How long the faults take: `make test-faults` breaks everything at full length, CI a sample of it.

FAULTS=sample    fewer repetitions, and shorter faults where their length proves nothing more
SEED             the random order of the kill points; printed, so that a failure can be repeated
"""

import os
import random
import secrets

SAMPLE = os.environ.get("FAULTS") == "sample"
KILLS = int(os.environ.get("KILLS", "4" if SAMPLE else "52"))
"""At each kill point; a sample has one in each lane."""


def seconds(full: float, sample: float) -> float:
    """Return how long a fault lasts."""
    return sample if SAMPLE else full


def times(full: int, sample: int) -> int:
    """Return how often a fault is repeated."""
    return sample if SAMPLE else full


def seed() -> int:
    """Return the seed of this session, the same in all its workers."""
    return int(os.environ.setdefault("SEED", str(secrets.randbelow(1_000_000))))


def dice(name: str) -> random.Random:
    """Return a random source of the session's seed; the same `name` gives the same numbers."""
    return random.Random(f"{seed()} {name}")
