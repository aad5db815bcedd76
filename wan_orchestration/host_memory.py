"""Host memory of this process: its peak since a moment that it chooses, and unused memory that it gives back."""

import ctypes
import re
import resource
from contextlib import suppress
from pathlib import Path


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


def give_back_unused() -> None:
    """Give memory that was freed back to the system. glibc keeps it otherwise, in pieces between live objects."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
