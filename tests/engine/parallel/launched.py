"""Runs a request on the ranks of torchrun, once for each word: `launched.py REQUEST.json plain fsdp`.

The outputs for a word go to a folder of that name beside the request. Rank 0 prints each result as a JSON line.
With the words `full`, `raise` and `die`, rank 1 fails in the first denoising step, in which the other ranks then wait:
it runs out of memory (only with placement `resident`), raises an error, or is killed.
"""

import os
import signal
import sys
from pathlib import Path

from wan_orchestration.engine.memory.placement import Placement
from wan_orchestration.engine.parallel.ranks import connect
from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.generate import fallback
from wan_orchestration.generate.runner import Runner, follow
from wan_orchestration.generate.segments import SegmentMaker
from wan_orchestration.protocol.messages import Request
from wan_orchestration.settings.environment import World
from wan_orchestration.weights.snapshot import open_snapshot


class Printer:
    def log(self, message):
        print(message, file=sys.stderr)

    def progress(self, progress):
        pass

    def segment(self, segment):
        pass

    def finished(self, result):
        print(result.model_dump_json(), flush=True)


def fail(*arguments):
    raise RuntimeError("rank 1 fails on purpose")


def fill(animator, *arguments, flows=Animator._flows):
    if animator.models.placement == "resident":
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return flows(animator, *arguments)


FAILURES = {"full": fill, "raise": fail, "die": lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)}


def main(file, words):
    request = Request.model_validate_json(Path(file).read_text())
    with connect(World()) as ranks:
        for word in words:
            maker = SegmentMaker(ranks, fsdp=word == "fsdp")
            if word in FAILURES and ranks.rank == 1:
                Animator._flows = FAILURES[word]
            if word == "full":
                fallback.placements_for = lambda *arguments: [Placement("resident"), Placement("swap")]
            if not ranks.leads:
                follow(maker)
                continue
            runner = Runner(open_snapshot(request.snapshot, variant=request.variant), Printer(), maker)
            for task in request.tasks[:1] if word == "full" else request.tasks:
                place = Path(file).parent / word / task.job_id
                runner.run(task.model_copy(update={"output": place, "save_frames": place.with_suffix(".npz")}))
            ranks.announce(None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
