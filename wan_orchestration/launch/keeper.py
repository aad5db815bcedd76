"""Keeps a launch: starts torchrun, passes requests of Dagster runs on to rank 0, and ends the processes.

`python -m wan_orchestration.launch.keeper FOLDER DESCRIPTOR`: a step starts it and is its first run, connected by
DESCRIPTOR. Later runs connect to FOLDER/socket. One run at a time has the launch:

run -> keeper    take    a later run takes an idle launch over: its `key` and `run`, the name of the `holder`
                 work    a request, with the environment variables of its Pipes session
                 give_back, cancel; end: the processes hang
keeper -> run    taken   whether the run has the launch
                 done    rank 0 has done what was asked
                 ended   the processes have ended, with this exit code
keeper -> rank 0 work, cancel; ping, before a run takes an idle launch over
rank 0 -> keeper ready, done, pong
anybody          tell (see `LaunchInfo`), stop

A run whose connection closes without `give_back` or `cancel` has died. What it asked for is cancelled: rank 0 stops at
the next denoising step, and the models stay for the next run. If the launch is not to stay, the word decides how long
its processes may take to end. An idle launch ends after some time, when somebody waits for its devices, or when the
process that it belongs to is gone.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from wan_orchestration.launch.processes import descendants, is_running, stop
from wan_orchestration.protocol import leases
from wan_orchestration.protocol.lines import is_same_user, listen

TICK_SECONDS = 0.2
YIELD_SECONDS = 0.4
"""How long somebody must have been waiting for a device before an idle launch leaves it. A run that finds a free device
leaves the queue sooner."""
LEAVE_SECONDS = 0.5
"""How long idle processes may take to end by themselves."""
CANCEL_SECONDS = 60.0
"""How long a cancelled request may go on until the launch is ended. A denoising step, loading the weights or joining
the video must fit into it."""
PING_SECONDS = 3.0
"""How long an idle rank 0 may take to answer. If it does not, it is suspended or damaged."""
READ_SECONDS = 5.0
"""How long a run may take to read the last output."""
LINE_BYTES = 2**28
"""Longest message: a request of very many jobs."""


@dataclass(frozen=True)
class Start:
    """How a launch is started: the content of FOLDER/start.json. Variables come with the keeper's own environment."""

    command: list[str]
    key: str
    run: str
    holder: str
    devices: list[str]
    processes: int
    descriptors: list[int]
    """The open locks of the devices."""
    lease_folder: str
    keep_warm_seconds: float
    grace_seconds: float
    """How long working processes may take to end by themselves."""
    owner: tuple[int, float] | None
    """Process id and start time of the process that the launch belongs to, if there is one."""


class Keeper:
    """The state of a launch, and what it does on each message. All runs in one thread."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self.start = folder, start
        self.run: str | None = start.run
        self.runner: StreamWriter | None = None
        """The connection of the run that has this launch."""
        self.unused = asyncio.Event()
        """Set once no run has this launch."""
        self.rank: StreamWriter | None = None
        """The connection of rank 0."""
        self.was_ready = False
        """Whether rank 0 has connected."""
        self.answered = asyncio.Event()
        """Set once rank 0 has answered the last ping."""
        self.request: dict[str, Any] | None = None
        """What rank 0 works on, or will once it is ready."""
        self.cancelled_at: float | None = None
        self.idle_since = time.monotonic()
        self.waited_since: float | None = None
        """Since when somebody waits for one of the devices."""
        self.ending: float | None = None
        """Seconds of grace, once the launch is to end."""
        self.stop_when_idle = False
        self.snapshot: str | None = None
        self.jobs = self.orders = 0
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                start.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=start.descriptors,
            )

    @property
    def is_idle(self) -> bool:
        """Whether no run has this launch, and rank 0 does nothing."""
        return self.run is None and self.request is None

    @property
    def can_be_taken(self) -> bool:
        """Whether a run may take it over."""
        return self.is_idle and self.ending is None and not self.stop_when_idle and not self.rank_has_left

    @property
    def rank_has_left(self) -> bool:
        """Whether rank 0 has closed its connection: its process has ended, or is about to."""
        return self.rank is None and self.was_ready

    # ---- what others say

    async def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve a connection to FOLDER/socket."""
        peer = writer.get_extra_info("socket")
        first = await _message(reader) if is_same_user(peer) else None
        match (first or {}).get("do"):
            case "tell" if first:
                memory = await asyncio.to_thread(_memory_of, self.process.pid) if first["memory"] else None
                _send(writer, **self.tell(), memory_bytes=memory)
            case "stop" if first:
                self.stop_when_idle = True
                if first["at_once"]:
                    self.end(self.start.grace_seconds)
                _send(writer, stops=True)
            case "ready":
                await self.serve_rank(reader, writer)
            case "take" if first:
                if self.can_be_taken and first["key"] == self.start.key:
                    self.take(first)
                    if await self.rank_answers() and self.ending is None:
                        _send(writer, taken=True)
                        await self.serve_run(reader, writer)
                        return
                    self.run = None
                    self.end(0.0)
                _send(writer, taken=False)
        await _close(writer)

    def take(self, message: dict[str, Any]) -> None:
        """Let a run have this idle launch."""
        self.run = message["run"]
        leases.name_holder(self.start.descriptors, message["holder"])
        # The output so far belongs to other runs.
        with suppress(OSError):
            os.truncate(self.folder / "log", 0)

    async def rank_answers(self) -> bool:
        """Whether rank 0 of an idle launch answers. One that has not connected yet gets its request when it does."""
        if self.rank is None:
            return True
        self.answered.clear()
        _send(self.rank, do="ping")
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.answered.wait(), PING_SECONDS)
        return False

    async def serve_run(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve the run that has this launch, until it gives it back or dies."""
        self.runner = writer
        self.unused.clear()
        word = None
        while message := await _message(reader):
            word = message["do"]
            if word == "work":
                self.orders += 1
                self.request = message | {"number": self.orders}
                self.snapshot = message["request"].get("snapshot") or self.snapshot
                if self.rank:
                    _send(self.rank, **self.request)
            elif word == "end":
                self.end(0.0)
        self.runner = self.run = None
        self.idle_since, self.waited_since = time.monotonic(), None
        self.unused.set()
        if self.start.keep_warm_seconds == 0:
            # The run's connection stays open until all processes have ended.
            self.end({"give_back": LEAVE_SECONDS, "cancel": self.start.grace_seconds}.get(word or "", 0.0))
            return
        if self.request and self.rank:
            self.cancelled_at = time.monotonic()
            _send(self.rank, do="cancel", number=self.orders)
        else:
            self.request = None
        leases.name_holder(self.start.descriptors, "a warm launch")
        await _close(writer)

    async def serve_rank(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve rank 0, until its process ends."""
        self.rank, self.was_ready = writer, True
        if self.request:
            _send(writer, **self.request)
        while message := await _message(reader):
            if message["do"] == "pong":
                self.answered.set()
                continue
            if self.request and self.cancelled_at is None:
                self.jobs += len(self.request["request"].get("tasks", [None]))
            self.request = self.cancelled_at = None
            self.idle_since = time.monotonic()
            if self.runner:
                _send(self.runner, done=True)
        self.rank = None

    def tell(self) -> dict[str, Any]:
        """The fields of `LaunchInfo`, other than `memory_bytes`."""
        leaving = self.ending is not None
        return {
            "id": self.folder.name,
            "pid": os.getpid(),
            "key": self.start.key,
            "devices": self.start.devices,
            "processes": self.start.processes,
            "state": "leaving" if leaving else "idle" if self.is_idle else "working",
            "run": self.run,
            "snapshot": self.snapshot,
            "jobs": self.jobs,
            "idle_seconds": round(time.monotonic() - self.idle_since, 1) if self.is_idle else 0.0,
            "keep_warm_seconds": self.start.keep_warm_seconds,
        }

    # ---- when it ends

    def end(self, grace: float) -> None:
        """Make `run_until_end` end the processes; they may take `grace` seconds to end by themselves."""
        self.ending = grace if self.ending is None else min(grace, self.ending)

    async def run_until_end(self) -> int:
        """Wait until the launch is to end or its processes have ended, and end them. Returns torchrun's exit code."""
        while self.ending is None and self.process.poll() is None:
            self.decide()
            await asyncio.sleep(TICK_SECONDS)
        if self.rank and self.is_idle:
            self.rank.close()  # rank 0 leaves, and the other ranks follow
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self.process.wait), LEAVE_SECONDS)
        await asyncio.to_thread(stop, self.process, self.ending or 0.0)
        return self.process.returncode

    def decide(self) -> None:
        """End the launch if it is no longer wanted."""
        now = time.monotonic()
        if self.cancelled_at is not None and now - self.cancelled_at > CANCEL_SECONDS:
            self.end(self.start.grace_seconds)
        if not self.is_idle:
            return
        unwanted = now - self.idle_since >= self.start.keep_warm_seconds or self.stop_when_idle
        if unwanted or self.rank_has_left or self.is_waited_for(now) or not self.is_owned():
            self.end(0.0)

    def is_waited_for(self, now: float) -> bool:
        """Whether somebody who cannot take this launch over has been waiting for one of its devices."""
        tickets = leases.waiting(Path(self.start.lease_folder), self.start.devices)
        if all(self.serves(ticket) for ticket in tickets):
            self.waited_since = None
        elif self.waited_since is None:
            self.waited_since = now
        return self.waited_since is not None and now - self.waited_since >= YIELD_SECONDS

    def serves(self, ticket: leases.Ticket) -> bool:
        """Whether the run that waits with this ticket can take this launch over."""
        allowed = ticket.wish is not None and ticket.wish.allows(self.start.key, self.start.processes)
        return allowed and set(self.start.devices) <= set(ticket.devices)

    def is_owned(self) -> bool:
        """Whether the process that this launch belongs to still runs."""
        return self.start.owner is None or is_running(*self.start.owner)

    async def finish(self, code: int) -> None:
        """Tell the run that has this launch, if there is one, and wait until it has read the output."""
        if self.runner:
            _send(self.runner, ended=code)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.unused.wait(), READ_SECONDS)


async def keep(folder: Path, first: socket.socket) -> None:
    """Keep the launch that FOLDER/start.json describes, and remove the folder when it has ended."""
    start = Start(**json.loads((folder / "start.json").read_text()))
    keeper = Keeper(folder, start)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, keeper.end, start.grace_seconds)
    server = await asyncio.start_unix_server(keeper.accept, sock=listen(folder), limit=LINE_BYTES)
    # A writer that nothing refers to closes its connection.
    reader, writer = await asyncio.open_unix_connection(sock=first, limit=LINE_BYTES)
    serving = asyncio.create_task(keeper.serve_run(reader, writer))
    try:
        code = await keeper.run_until_end()
        keeper.end(0.0)
        # The socket stays open, because `launches.ask` removes a folder whose socket refuses connections.
        await keeper.finish(code)
    finally:
        server.close()
        serving.cancel()
        shutil.rmtree(folder, ignore_errors=True)


async def _message(reader: StreamReader) -> dict[str, Any] | None:
    """The next message; None if there will be no more."""
    try:
        line = await reader.readline()
    except ConnectionError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def _send(writer: StreamWriter, **message: Any) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


async def _close(writer: StreamWriter) -> None:
    with suppress(OSError):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _memory_of(pid: int) -> int:
    """Bytes of memory of a process and its descendants."""
    return sum(map(_memory, descendants(pid)))


def _memory(process: psutil.Process) -> int:
    """Bytes of a process's memory, with its share of what it shares with others."""
    try:
        return process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def main() -> None:
    folder, descriptor = sys.argv[1:]
    asyncio.run(keep(Path(folder), socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main()
