"""What the step makes of the worker's messages."""

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from tasks import make_task

from wan_orchestration.launch.pipes import Listener
from wan_orchestration.protocol.messages import Progress, Request


def test_time_that_passes_is_no_sign_of_life():
    task = make_task("dance", Path())
    lines, heard, messages = [], [], []
    context = SimpleNamespace(run=SimpleNamespace(run_id="run"), log=SimpleNamespace(info=lines.append))
    listener = Listener(context, Request(snapshot=Path(), tasks=[task]))
    for phase, step in (("loading", 0), ("loading", 0), ("denoising", 1), ("denoising", 1), ("denoising", 2)):
        time.sleep(0.01)
        progress = Progress(job_id="dance", phase=phase, fraction=len(messages) / 10, clip=1, clips=1, step=step)
        messages.append(progress.model_dump(mode="json"))
        listener.hear(messages)
        heard.append(listener.heard_at)
    assert [after > before for before, after in pairwise(heard)] == [False, True, False, True]
    assert lines == ["dance: loading the weights, 0%"]
