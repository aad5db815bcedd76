"""A launch in the hands of a run: sends it requests, follows their messages, and gives it back."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from wan_orchestration.launch.launcher import WorkerDied
from wan_orchestration.launch.pipes import LaunchMonitor, Outcome, pipes_session
from wan_orchestration.launch.tail import Tail, TailMessageReader
from wan_orchestration.protocol.launches import LOG
from wan_orchestration.protocol.lines import Line
from wan_orchestration.protocol.messages import PreprocessRequest, Request

POLL_SECONDS = 0.2
STACK_SECONDS = 2.0
"""How long hung processes get to write their stacks."""
KEEPER_SECONDS = 15.0
"""How long a keeper may take to end the processes of a launch after their grace period."""


class Launch:
    """A run's connection to a launch.

    Args:
        line: connection to its keeper.
        folder: of the launch.
        devices: that it works on.
        processes: number of its ranks.
        grace: seconds that its processes may take to end.
        is_warm: whether an earlier run started it.
    """

    def __init__(
        self, line: Line, folder: Path, devices: Sequence[str], processes: int, grace: float, is_warm: bool = False
    ) -> None:
        self.line, self.folder = line, folder
        self.devices, self.processes, self.grace, self.is_warm = devices, processes, grace, is_warm
        self.busy = False
        self._log = Tail(folder / LOG)
        self._session: ExitStack | None = None

    def is_alive(self) -> bool:
        """Whether its processes run, as far as its keeper has said."""
        try:
            self.line.receive(0)
        except TimeoutError:
            return True
        return False

    def begin(self, context: dg.AssetExecutionContext, request: Request | PreprocessRequest) -> None:
        """Ask for a request's outcomes, which `poll` yields. Raises WorkerDied: the launch has ended."""
        self.context, self.monitor, self.busy = context, LaunchMonitor(context, request), True
        with ExitStack() as stack:
            messages = Path(stack.enter_context(TemporaryDirectory())) / "messages"
            messages.touch()
            self._reader = TailMessageReader(messages)
            self._pipes = stack.enter_context(pipes_session(context, request, reader=self._reader))
            variables = self._pipes.get_bootstrap_env_vars()
            try:
                body = request.model_copy(update={"warm": self.is_warm}).model_dump(mode="json")
                self.line.send(do="work", request=body, variables=variables)
            except OSError as error:
                self.busy = False
                raise WorkerDied("The launch ended while it was taken over.", self.monitor.current_job) from error
            self._session = stack.pop_all()

    def poll(self, stall_timeout: float) -> Iterator[Outcome]:
        """Outcomes since the last call. Sets `busy` to False after the last.

        Raises:
            WorkerDied: a process reported nothing for `stall_timeout` seconds and was killed, or the launch ended
                without an outcome for every job.
        """
        try:
            message = self.line.receive(0) or {}
        except TimeoutError:
            self._reader.read()
            yield from self.monitor.process(self._pipes.get_custom_messages())
            self._copy_output()
            silence = time.monotonic() - self.monitor.active_at
            if silence > stall_timeout:
                self._kill_hung(silence)
            return
        self._reader.read()
        self._close_session()
        yield from self.monitor.process(self._pipes.get_custom_messages())
        self._copy_output()
        # If the keeper says nothing, it was killed, and the worker with it.
        ending = "was done" if "done" in message else f"ended with {_exit_words(message.get('ended', -signal.SIGKILL))}"
        if self.monitor.pending:
            raise WorkerDied(
                f"The worker {ending} before it had a result for {', '.join(self.monitor.pending)}; "
                "its last lines are in this step's stderr.",
                self.monitor.current_job,
            )
        if "done" not in message:
            self.context.log.warning(f"The worker had all results, but {ending}.")

    def give_back(self) -> None:
        """Let the next run have this launch, if it stays warm. Otherwise returns when its processes have ended."""
        self._leave("give_back")

    def cancel(self) -> None:
        """As `give_back`, but stop what was asked for. A warm launch does so later, at the next denoising step."""
        self._close_session()
        self._leave("cancel")

    def _leave(self, word: str) -> None:
        with suppress(OSError):
            self.line.send(do=word)
        self.line.finish()
        with suppress(OSError):  # TimeoutError: the keeper itself hangs; others: this has left before
            while self.line.receive(self.grace + KEEPER_SECONDS) is not None:
                continue
        self.line.close()

    def _close_session(self) -> None:
        self.busy = False
        if session := self._session:
            self._session = None
            session.close()

    def _kill_hung(self, silence: float) -> None:
        """Log the stacks of all processes and end them. Raises WorkerDied: a job has no outcome."""
        self.context.log.error("\n".join(["The worker hangs here:", *self._stacks()]))
        self._copy_output()
        self._close_session()
        self._leave("end")
        if not self.monitor.pending:
            self.context.log.warning(f"The worker had all results, but hung for {silence:.0f} s.")
            return
        raise WorkerDied(
            f"The worker hung: {self.monitor.current_job} made no progress for {silence:.0f} s "
            "(stall_timeout_seconds); the stacks of its processes are in this run's log.",
            self.monitor.current_job,
            retryable=False,
        )

    def _stacks(self) -> Iterator[str]:
        # Each process has a file for its stacks, named after its rank and process id. SIGUSR1 makes it write them.
        files = sorted(self.folder.glob("stacks-*-*.txt"))
        for file in files:
            with suppress(ProcessLookupError):
                os.kill(int(file.stem.split("-")[-1]), signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        for file in files:
            yield f"rank {file.stem.split('-')[1]}:\n{file.read_text() or '(no answer: it may be stopped)'}"

    def _copy_output(self) -> None:
        with suppress(FileNotFoundError):
            self._log.copy_to_stderr()


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
