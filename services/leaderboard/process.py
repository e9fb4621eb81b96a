"""What one process is told about the machine it runs on."""

import ctypes
import sys

# Options of glibc's mallopt(3).
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def tune_process() -> None:
    """Set how threads take turns and when memory is given back; for the whole process.

    Threads: SQLite's and NumPy's threads let go of the interpreter for each call and have to get it back. By default
    they wait 5 ms for a busy thread to yield; a tenth of that makes applying scores twice as fast, and keeps readers
    from waiting while a batch is parsed.

    Memory: glibc raises its threshold for giving memory back with every array that is freed, up to 32 MB, so that a
    process with a million players would keep 60 MB that it does not use.
    """
    sys.setswitchinterval(0.0005)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1_000_000)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Give back what the heap holds and nothing uses: 25 MB after a large batch, in 2 ms."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
