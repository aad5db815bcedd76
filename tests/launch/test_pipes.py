"""What the step makes of the worker's messages."""

import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from wan_orchestration.launch.pipes import Listener
from wan_orchestration.protocol.messages import Progress, Request, Task
from wan_orchestration.settings.generate import GenerateSettings


def test_time_that_passes_is_no_sign_of_life():
    task = Task(job_id="dance", clips=Path(), output=Path(), settings=GenerateSettings(), created_at=datetime.now(UTC))
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
