"""A file of orders: how steps ask a launch for work if both share only a file system.

Each line is a JSON object. Both sides append to the file, under its lock:

step -> rank 0   work    a request: its number, its `folder`, the environment variables of its Pipes session
                 cancel  the order of this number
                 end     the launch ends once it is idle
rank 0 -> steps  ready
                 done    the last order is done
                 end     the launch was idle for too long
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

POLL_SECONDS = 0.5


class OrderFile:
    """A file of orders, as far as this process has read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order: dict[str, Any] = {"number": 0}
        """The last order. Order 0 has never been given, and is done."""
        self.is_done = True
        """Whether it is done."""
        self.is_cancelled = False
        self.has_ended = False
        """Whether no more work can be given."""
        self._offset = 0
        self._messages: list[dict[str, Any]] = []

    @property
    def is_idle(self) -> bool:
        """Whether work can be given."""
        return self.is_done and not self.has_ended

    def read(self) -> list[dict[str, Any]]:
        """Messages since the last call. Raises FileNotFoundError."""
        # Opens the file each time: on NFS, a reader sees what other machines wrote only when it opens the file.
        with self.path.open("rb") as file:
            self._read(file)
        messages, self._messages = self._messages, []
        return messages

    def give(self, **order: Any) -> bool:
        """Give work, if the launch is idle. Returns whether it was."""
        with self._locked() as append:
            if idle := self.is_idle:
                append(**order | {"do": "work", "number": self.order["number"] + 1})
            return idle

    def cancel(self, number: int) -> None:
        """Cancel an order, if it is not done."""
        with self._locked() as append:
            if not self.is_done and self.order["number"] == number:
                append(do="cancel", number=number)

    def end(self, number: int | None = None) -> bool:
        """End the launch: if it is idle, or with a number, if it works on this order. Returns whether it ends."""
        with self._locked() as append:
            wanted = self.is_done if number is None else not self.is_done and self.order["number"] == number
            if wanted and not self.has_ended:
                append(do="end")
            return wanted

    def say(self, word: str) -> None:
        """Append what rank 0 has to tell."""
        with self._locked() as append:
            append(do=word)

    @contextmanager
    def _locked(self) -> Iterator[Callable[..., None]]:
        """Lock the file and read it. Yields a function that appends a message."""
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read(file)

            def append(**message: Any) -> None:
                # A process that was killed may have left half a line.
                file.seek(0, 2)
                file.write(b"\n" * (file.tell() > self._offset) + json.dumps(message).encode() + b"\n")
                file.flush()
                self._read(file)

            yield append

    def _read(self, file: BinaryIO) -> None:
        file.seek(self._offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            try:
                message = json.loads(line)
            except ValueError:
                continue
            self._messages.append(message)
            if message["do"] == "work":
                self.order, self.is_done, self.is_cancelled = message, False, False
            self.is_cancelled |= message["do"] == "cancel"
            self.is_done |= message["do"] == "done"
            self.has_ended |= message["do"] == "end"


class OrderLine:
    """Rank 0's end of a file of orders, with the methods of a `Line` to a keeper that rank 0 uses.

    Args:
        path: of the file.
        keep_warm_seconds: how long rank 0 waits for the next order.
    """

    def __init__(self, path: Path, keep_warm_seconds: float) -> None:
        self.path, self.keep_warm_seconds = path, keep_warm_seconds
        self._file = OrderFile(path)
        self._received: list[dict[str, Any]] = []

    def send(self, do: str) -> None:
        """Append a message. Raises OSError."""
        # Called in another thread than `receive`.
        OrderFile(self.path).say(do)

    def receive(self) -> dict[str, Any] | None:
        """The next order or cancellation; None if there will be no more. Raises OSError."""
        idle_since = time.monotonic()
        while not self._received:
            self._received = [one for one in self._file.read() if one["do"] in ("work", "cancel")]
            if self._received:
                break
            if not self._file.is_done:
                idle_since = time.monotonic()
            elif self._file.has_ended:
                return None
            elif time.monotonic() - idle_since >= self.keep_warm_seconds:
                self._file.end()
                continue
            time.sleep(POLL_SECONDS)
        return self._received.pop(0)
