"""The table: one line for each fault. `make test-faults` prints it and writes it into docs/reliability.md."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.oracle import Verdict

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = (
    "| fault | runs | things | lost | doubled | unexpected | recovery, s | beside |\n|---|---|---|---|---|---|---|---|"
)


@dataclass
class Row:
    """What one fault did."""

    fault: str
    runs: int
    things: int
    lost: int
    doubled: int
    unexpected: int
    recovery: float | None
    beside: str = ""

    def __str__(self) -> str:
        recovery = "" if self.recovery is None else f"{self.recovery:.1f}"
        cells = (self.fault, self.runs, self.things, self.lost, self.doubled, self.unexpected, recovery, self.beside)
        return "| " + " | ".join(map(str, cells)) + " |"


def record(
    folder: Path,
    test: tuple[str, int | None],
    fault: str,
    verdict: Verdict,
    *,
    runs: int = 1,
    recovery: float | None = None,
    beside: str = "",
) -> None:
    """Keep one line.

    `test`: where its test stands, which orders the table. `recovery`: the longest time from the end of the fault to the
    first thing that worked again.
    """
    if verdict.second_copies:
        beside = f"{beside}; " * bool(beside) + f"{verdict.second_copies} second copies of mails, all marked uncertain"
    row = Row(
        fault, runs, verdict.things, len(verdict.lost), len(verdict.doubled), len(verdict.unexpected), recovery, beside
    )
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps([test, asdict(row)]) + "\n")
        rows.flush()
        os.fsync(rows.fileno())


def rows(folder: Path) -> list[Row]:
    """Return all lines in the order of the tests, whichever ended first."""
    file = folder / "rows.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [Row(**row) for _, row in sorted(kept, key=lambda pair: pair[0])]


def table(found: list[Row]) -> str:
    return "\n".join([HEAD, *map(str, found)])


def write(page: Path, found: list[Row]) -> None:
    """Put the table between the two marks of `page`."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
