"""The worker: does what the requests of Dagster steps ask for. Rank 0 receives them and reports over Dagster Pipes.

`torchrun -m wan_orchestration.worker` receives one request after another from the keeper of its launch and ends when
the keeper closes the connection. On a cluster, `torchrun -m wan_orchestration.worker REQUEST.json` does a single one,
and `torchrun -m wan_orchestration.worker ORDERS.jsonl SECONDS` does those in a file (`protocol/orders.py`) until there
has been none for so long. The exit code is 0 even if jobs failed; their results have the errors.
"""

import ctypes
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dagster_pipes import (
    PipesContext,
    PipesDefaultContextLoader,
    PipesDefaultMessageWriter,
    PipesMappingParamsLoader,
)

from wan_orchestration.errors import BadInput, Cancelled
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.protocol import lines
from wan_orchestration.protocol.leases import hold
from wan_orchestration.protocol.lines import Line
from wan_orchestration.protocol.messages import (
    AnyRequest,
    FinishedSegment,
    PreprocessOutcome,
    PreprocessProgress,
    PreprocessRequest,
    PreprocessResult,
    Progress,
    Request,
    Result,
)
from wan_orchestration.protocol.orders import OrderLine
from wan_orchestration.settings.environment import World
from wan_orchestration.settings.preprocess import PREVIEW_SECONDS, PreprocessSettings

PR_SET_PDEATHSIG = 1
PROGRESS_SECONDS = 1.0

Log = Callable[[str], None]
ReportPhase = Callable[[str, int, int], None]
"""Called with the phase, the number of frames done, and their total."""


@dataclass(frozen=True)
class Order:
    """A request, with the way to report on it."""

    number: int
    """Counts the orders of a launch."""
    request: Request | PreprocessRequest
    variables: Mapping[str, str]
    """Of the step's Pipes session."""

    def open_session(self) -> PipesContext:
        """The step's Pipes session. `open_dagster_pipes` would open only one in the life of a process."""
        params = PipesMappingParamsLoader(self.variables)
        return PipesContext(params, PipesDefaultContextLoader(), PipesDefaultMessageWriter())


class Orders:
    """What rank 0 is asked to do. A thread receives it, so that an order can be cancelled."""

    def __init__(self, line: Line | OrderLine) -> None:
        self._line = line
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._present = self._cancelled = 0
        """Numbers of the order that is being done, and of the last one to cancel."""
        threading.Thread(target=self._receive, name="orders", daemon=True).start()

    def is_cancelled(self) -> bool:
        """Whether the present order is cancelled."""
        return self._cancelled >= self._present

    def __iter__(self) -> Iterator[Order]:
        """Orders one after another, until there will be no more. Who asks for the next has done the present one."""
        self._line.send(do="ready")
        while order := self._orders.get():
            self._present = order.number
            yield order
            with suppress(OSError):  # the keeper or the file is gone, so this launch ends
                self._line.send(do="done")

    def _receive(self) -> None:
        try:
            while message := self._line.receive():
                if message["do"] == "cancel":
                    self._cancelled = message["number"]
                elif message["do"] == "ping":
                    # Nothing else is being sent: the keeper asks only between two orders.
                    self._line.send(do="pong")
                else:
                    request = AnyRequest.validate_python(message["request"])
                    self._orders.put(Order(message["number"], request, message["variables"]))
        finally:
            self._cancelled = sys.maxsize
            self._orders.put(None)


class PipesReporter:
    """Sends messages to the Dagster step that asked for the videos."""

    def __init__(self, pipes: PipesContext) -> None:
        self.pipes = pipes
        self._lock = threading.Lock()  # another thread sends progress

    def log(self, message: str) -> None:
        with self._lock, suppress(FileNotFoundError):
            self.pipes.log.info(message)

    def progress(self, progress: Progress) -> None:
        self._send(progress)

    def segment(self, segment: FinishedSegment) -> None:
        self._send(segment)

    def finished(self, result: Result) -> None:
        self._send(result)

    def _send(self, message: Progress | FinishedSegment | Result) -> None:
        # The file for the messages is gone if the step is.
        with self._lock, suppress(FileNotFoundError):
            self.pipes.report_custom_message(message.model_dump(mode="json"))


def main(argv: Sequence[str]) -> int:
    """Do what is asked on rank 0, or follow rank 0. Returns the exit code."""
    world = World()
    hold(world.leases)
    signal.signal(signal.SIGTERM, leave)
    die_with_torchrun()
    if folder := world.wan_launch:
        write_stacks_on_demand(folder / f"stacks-{world.rank}-{os.getpid()}.txt")
    if world.rank > 0:
        follow()
    elif len(argv) == 1:
        request = AnyRequest.validate_json(Path(argv[0]).read_bytes())
        work([Order(1, request, os.environ)], lambda: False)
    else:
        orders = Orders(_line(argv, world))
        work(orders, orders.is_cancelled)
    return 0


def _line(argv: Sequence[str], world: World) -> Line | OrderLine:
    """What brings the orders: a file and the seconds to wait for the next one, or a connection to the keeper."""
    if argv:
        file, seconds = argv
        return OrderLine(Path(file), float(seconds))
    assert world.wan_launch is not None
    return lines.connect(world.wan_launch)


def follow() -> None:
    """Take part in rank 0's tasks, on every other rank."""
    from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch)

    run(None)


def work(orders: Iterable[Order], is_cancelled: Callable[[], bool]) -> None:
    """Do one order after another."""
    networks = Networks()
    generations = make_clips_between(iter(orders), is_cancelled, networks)
    # Clips can be made without the engine, whose import takes seconds.
    if first := next(generations, None):
        from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch)

        run(chain([first], generations), is_cancelled, networks)


def make_clips_between(
    orders: Iterator[Order], is_cancelled: Callable[[], bool], networks: Networks
) -> Iterator[tuple[Request, PipesReporter]]:
    """Does the orders to make clips, and yields the requests for videos, each while its Pipes session is open."""
    for order in orders:
        # If the step is gone, so is the file for its messages.
        with suppress(FileNotFoundError), order.open_session() as pipes:
            if isinstance(order.request, PreprocessRequest):
                outcome = preprocess(order.request, pipes, is_cancelled, networks)
                pipes.report_custom_message(outcome.model_dump(mode="json"))
            else:
                reporter = PipesReporter(pipes)
                reporter.progress(Progress(job_id=order.request.tasks[0].job_id, phase="starting"))
                yield order.request, reporter


def preprocess(
    request: PreprocessRequest, pipes: PipesContext, is_cancelled: Callable[[], bool], networks: Networks
) -> PreprocessOutcome:
    """Make a job's clips, and report progress about once a second."""
    outcome = PreprocessOutcome(job_id=request.job_id)
    reported = float("-inf")

    def report(phase: str, done: int, total: int) -> None:
        nonlocal reported
        if is_cancelled():
            raise Cancelled
        if time.monotonic() - reported >= PROGRESS_SECONDS or done == total:
            reported = time.monotonic()
            progress = PreprocessProgress(job_id=request.job_id, phase=phase, done=done, total=total)
            pipes.report_custom_message(progress.model_dump(mode="json"))

    def make(output: Path, settings: PreprocessSettings, log: Log, progress: ReportPhase) -> PreprocessResult:
        # OpenCV and the estimators are imported here.
        return settings.family.part("clips").make(
            request.driving,
            request.reference,
            output,
            settings,
            snapshot=request.snapshot,
            models_root=request.models_root,
            others=request.others,
            log=log,
            progress=progress,
            networks=networks,
        )

    try:
        if request.preview:
            # The whole video may show what its first seconds do not, such as the person.
            with suppress(BadInput):
                make(request.preview, _first_seconds(request.settings), lambda line: None, _as_preview(report))
        outcome.result = make(request.output, request.settings, pipes.log.info, report)
        outcome.result.warm = request.warm
        return outcome
    except BadInput as error:
        outcome.error, outcome.bad_input = str(error), True
        return outcome
    except Cancelled:
        outcome.error = "cancelled"
        return outcome
    except Exception as error:
        pipes.log.error(traceback.format_exc())
        outcome.error = f"{type(error).__name__}: {error}"
        full = _ran_out_of_memory(error)
    # Outside of the `except` block, whose traceback holds networks.
    networks.free()
    if full and networks.make_room():
        pipes.log.info(f"{request.job_id}: frees the models of earlier videos and tries again")
        return preprocess(request, pipes, is_cancelled, networks)
    return outcome


def _first_seconds(settings: PreprocessSettings) -> PreprocessSettings:
    """The settings of a preview."""
    end = settings.start + PREVIEW_SECONDS
    return settings.model_copy(update={"end": min(end, settings.end or end)})


def _as_preview(report: ReportPhase) -> ReportPhase:
    """Reports the two passes over a video as one phase, `preview`."""
    return lambda phase, done, total: report("preview", done + (total if phase == "clips" else 0), 2 * total)


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether an estimator ran out of memory. Without PyTorch, there are no models that could make room."""
    if "torch" not in sys.modules:
        return False
    from wan_orchestration.engine.memory.capacity import ran_out_of_memory  # noqa: PLC0415 (torch)

    return ran_out_of_memory(error)


def write_stacks_on_demand(file: Path) -> None:
    """Make SIGUSR1 write the stacks of all threads to a file, even if a thread hangs in native code."""
    # The descriptor stays open, because the signal handler writes to it.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    faulthandler.register(signal.SIGUSR1, descriptor)


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM by raising SystemExit, so that files are closed and locks released."""
    raise SystemExit(128 + signum)


def die_with_torchrun() -> None:
    """Make the kernel kill this process when torchrun dies for any reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
