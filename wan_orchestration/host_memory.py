"""Host memory of this process: its peak since a moment that it chooses, and unused memory that it gives back."""

import ctypes
import re
import resource
from contextlib import suppress
from pathlib import Path

LARGE = 2**20
"""Bytes from which on a block is large."""
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of `mallopt`, from glibc's malloc.h."""


def reset_peak() -> None:
    """Measure anew from here on. Without Linux's `clear_refs`, the peak is that of the process's whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of the largest resident set since `reset_peak`."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_fragmentation() -> None:
    """Let glibc keep freed memory in few pieces, for a process that loads and frees models for hours. For all threads.

    Large blocks are then returned when they are freed, and threads share two heaps. By default the limit for large
    blocks grows to 32 MB, and each thread may have its own heap.
    """
    with suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(_M_ARENA_MAX, 2)


def give_back_unused() -> None:
    """Give memory that was freed back to the system. glibc keeps it otherwise, in pieces between live objects."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
