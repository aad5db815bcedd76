"""The step processes the worker's messages."""

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from tasks import make_task

from wan_orchestration.launch.pipes import LaunchMonitor
from wan_orchestration.protocol.messages import Progress, Request


def test_repeated_progress_is_no_activity():
    task = make_task("dance", Path())
    lines, active, messages = [], [], []
    context = SimpleNamespace(run=SimpleNamespace(run_id="run"), log=SimpleNamespace(info=lines.append))
    monitor = LaunchMonitor(context, Request(snapshot=Path(), tasks=[task]))
    for phase, step in (("loading", 0), ("loading", 0), ("denoising", 1), ("denoising", 1), ("denoising", 2)):
        time.sleep(0.01)
        progress = Progress(job_id="dance", phase=phase, fraction=len(messages) / 10, segment=1, segments=1, step=step)
        messages.append(progress.model_dump(mode="json"))
        monitor.process(messages)
        active.append(monitor.active_at)
    assert [after > before for before, after in pairwise(active)] == [False, True, False, True]
    assert lines == ["dance: loading the weights, 0%"]
