"""Parts for the tests of the GPU check's driver."""

import subprocess
import sys
import time

from gpu_parts.record import Record, Skipped, Work


def good(work: Work, record: Record) -> None:
    record.row("speed", {"s": 1.5}, "<= 2", met=True)
    record.check("sum", True, {"value": 3}, "3")


def wrong(work: Work, record: Record) -> None:
    record.check("sum", False, {"value": 4}, "3")
    record.row("after it", {"value": 5})


def breaks(work: Work, record: Record) -> None:
    record.row("before", {"value": 1})
    raise RuntimeError("no such kernel")


def cannot(work: Work, record: Record) -> None:
    work.need_cuda()
    raise Skipped("unreachable on the CPU")


def hangs(work: Work, record: Record) -> None:
    # In a session of its own, as the compiler's workers are.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    record.row("child", {"pid": child.pid})
    time.sleep(600)
