"""One word, one meaning (docs/glossary.md): code has no banned word in names, comments, logs and errors.

To add a folder: add it to `CLEAN`, run this test, and replace what it reports.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folders and files without banned words.
CLEAN = ("Makefile", "bellhop", "compose.yaml", "deploy", "scripts", "services")

# Pattern of the banned words -> what to write instead. Identifiers are split into words before they are matched.
BANNED = {
    "(no|some|every|any)body": "the subject: no client, all replicas",
    "(who|what|wher|which)ever": "the subject: a client that, any value",
    "anew": "again",
    "at once": "immediately, concurrently or together",
    "for ?ever": "without limit, or the duration",
    "what (becomes|became|has become) of": "the outcome of",
    "bur(y|ies|ied|ying)": "dead-letter",
    "the (living|dead)(?! letter)": "live replicas, crashed replicas",
    "away": "unavailable",
    "troubles?": "failure",
    "patien(t|tly|ce)": "timeout, or background",
    "goodbyes?": "close, release",
    "kin": "related, of the same kind",
    "mend(s|ed|ing)?": "repair, fix",
    "seldom": "rarely",
    "fates?": "outcome, reason",
    "ladders?": "retry queues",
    "rungs?": "retry queue",
    "in vain": "without success",
    "stands? on": "depends on",
    "lets? in": "accepts",
    "tells?": "reports, returns, shows",
    "told": "reported, returned",
    "says? whether": "Return whether",
    "bites?": "batch",
    "things?": "the noun that is meant",
    "born": "created",
    # `died_at` is a column, and a field of the API.
    "(?<!bellhop-)(die|dies|died)(?! at\\b)": "end; of messages: dead-lettered",
}

PATTERNS = [(re.compile(rf"\b{banned}\b", re.IGNORECASE), instead) for banned, instead in BANNED.items()]


def findings(text: str, name: str = "") -> list[str]:
    """Return "file:line: 'word', write instead: …" for each banned word."""
    return [
        f"{name}:{number}: {found[0]!r}, write instead: {instead}"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, instead in PATTERNS
        for found in pattern.finditer(split_identifiers(line))
    ]


def split_identifiers(line: str) -> str:
    """Return the line with identifiers split into words: `QueueAway` becomes `Queue Away`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", line)


def files_of(place: str) -> list[Path]:
    """Return the files of a folder, or the file itself."""
    path = ROOT / place
    files = path.rglob("*") if path.is_dir() else [path]
    return sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts)


@pytest.mark.parametrize("place", CLEAN)
def test_a_clean_folder_uses_plain_words(place: str) -> None:
    """The failure names file, line, word and replacement."""
    found = [finding for path in files_of(place) for finding in findings(path.read_text(), str(path.relative_to(ROOT)))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("class QueueAway(Exception):", "Away"),
        ("PRUNED_AT_ONCE = 5", "AT ONCE"),
        ("# Whoever waits for it", "Whoever"),
        ('"""Say whether it is open."""', "Say whether"),
    ],
)
def test_a_banned_word_is_found_in_names_and_text(line: str, word: str) -> None:
    assert [repr(word) in finding for finding in findings(line)] == [True]


@pytest.mark.parametrize("line", ["the dead letter", "forward(message)", "DEAD_LETTERED_AT", "killed", "making"])
def test_a_word_that_contains_a_banned_one_is_not_found(line: str) -> None:
    assert findings(line) == []
