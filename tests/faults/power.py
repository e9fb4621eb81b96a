"""A power cut for one process: of its files, only what it had synced is left.

`kill -9` proves nothing about the disk, because the kernel keeps what was written. So the process is watched by
strace, and its files are put together anew from what it wrote: a write counts from the moment that a later fsync or
fdatasync of the same file has returned. What was written and not synced is gone, which is the worst that a power cut
may do. The device itself is taken to keep what it said it had.
"""

import asyncio
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "pwrite64,pwritev,write,writev,ftruncate,fdatasync,fsync,unlink,rename,mmap"

_LINE = re.compile(r"(\d+)\s+(.*)")
_CALL = re.compile(r"(\w+)\((\d+)<([^>]*)>(?:, )?(.*)")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")


@dataclass
class _File:
    durable: bytearray
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, what was written there), or (length, None) for a truncation."""

    def sync(self, upto: int) -> None:
        for offset, data in self.pending[:upto]:
            if data is None:
                del self.durable[offset:]
            else:
                missing = offset - len(self.durable)
                self.durable.extend(b"\0" * max(0, missing))
                self.durable[offset : offset + len(data)] = data
        del self.pending[:upto]


class Watch:
    """Watches what a process writes to one SQLite database."""

    def __init__(self, pid: int, database: Path) -> None:
        self._pid = pid
        self._database = database
        self._before = database.parent / "power-before"
        self._log = database.parent / "power.strace"
        self._strace: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Take what is on the disk now as safe, and watch from here on. The process must be at rest."""
        shutil.rmtree(self._before, ignore_errors=True)
        self._before.mkdir()
        for name in (self._database.name, f"{self._database.name}-wal"):
            if (self._database.parent / name).exists():
                shutil.copy(self._database.parent / name, self._before)
        self._strace = await asyncio.create_subprocess_exec(
            "strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(self._log),
            "-p", str(self._pid), stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._strace.stderr is not None
        said = await asyncio.wait_for(self._strace.stderr.readline(), 10)
        assert b"attached" in said, said

    async def end(self) -> None:
        """Wait for strace, which ends with the process that it watches."""
        assert self._strace is not None
        await self._strace.communicate()

    def after_the_cut(self, folder: Path) -> Path:
        """Write down what is left of the database, and return where."""
        files: defaultdict[str, _File] = defaultdict(lambda: _File(bytearray()))
        for kept in self._before.iterdir():
            files[kept.name].durable = bytearray(kept.read_bytes())
        syncing: dict[str, tuple[_File, int]] = {}
        with self._log.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                match = _LINE.match(line)
                if match is not None:
                    self._replay(match[1], match[2], files, syncing)
        folder.mkdir()
        for name, file in files.items():
            (folder / name).write_bytes(file.durable)
        return folder / self._database.name

    def _replay(
        self, thread: str, text: str, files: defaultdict[str, _File], syncing: dict[str, tuple[_File, int]]
    ) -> None:
        if (resumed := _RESUMED.match(text)) is not None:
            if resumed[1] in ("fsync", "fdatasync") and thread in syncing:
                file, upto = syncing.pop(thread)
                file.sync(upto)
            return
        match = _CALL.match(text)
        if match is None:
            return
        call, path, rest = match[1], bytes(_unhex(match[3])).decode(errors="replace"), match[4]
        if not path.startswith(str(self._database)) or path.endswith("-shm"):
            return
        file = files[Path(path).name]
        if call in ("fsync", "fdatasync"):
            if "unfinished" in text:
                syncing[thread] = (file, len(file.pending))
            else:
                file.sync(len(file.pending))
        elif call == "ftruncate":
            file.pending.append((int(rest.split(")")[0].split(" ")[0]), None))
        elif call == "pwrite64":
            data, _, end = rest.rpartition('", ')
            _, offset = end.split(")")[0].split(" <")[0].split(", ")
            file.pending.append((int(offset), bytes(_unhex(data.lstrip('"')))))
        else:
            raise AssertionError(f"SQLite wrote with {call}, which is not replayed: {text[:200]}")


def _unhex(text: str) -> bytes:
    """Undo strace's -xx; file names come so, too, where it is new enough."""
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()
