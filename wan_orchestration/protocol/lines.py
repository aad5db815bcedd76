"""JSON objects over a Unix socket, one a line, between processes of one user on one machine.

The socket lies in a folder that only its user can enter. Both ends check that the other is the same user.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOCKET = "socket"
ANSWER_SECONDS = 5.0
"""How long an answer to a short question may take."""


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self.closed = False
        """Whether the other end has closed the connection. What it sent before can still be received."""

    def send(self, **message: Any) -> None:
        """Send a message. Raises OSError: the other end is gone."""
        self._connection.settimeout(None)
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next message; None if there will be no more.

        Raises:
            TimeoutError: none has come for so many seconds; with 0, none is there.
        """
        while b"\n" not in self._received and not self.closed:
            # With 0, `recv` raises BlockingIOError instead of TimeoutError.
            self._connection.settimeout(seconds)
            try:
                part = self._connection.recv(2**16)
            except BlockingIOError:
                raise TimeoutError from None
            except ConnectionError:
                part = b""
            self._received += part
            self.closed = not part
        line, end, rest = self._received.partition(b"\n")
        if not end:
            return None
        self._received = rest
        return json.loads(line)

    def finish(self) -> None:
        """Tell the other end that nothing more is sent. Messages can still be received."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._connection.close()

    def fileno(self) -> int:
        """For `select`."""
        return self._connection.fileno()


def listen(folder: Path) -> socket.socket:
    """A socket that accepts connections at `folder`/socket. The caller checks each with `is_same_user`."""
    listener = socket.socket(socket.AF_UNIX)
    with _address(folder) as address:
        listener.bind(f"{address}.new")
    listener.listen()
    # Whoever finds it can connect.
    (folder / f"{SOCKET}.new").rename(folder / SOCKET)
    return listener


def connect(folder: Path) -> Line:
    """Connect to the process that listens in a folder. Raises OSError: there is none, or it is another user's."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(ANSWER_SECONDS)
        with _address(folder) as address:
            connection.connect(address)
        if not is_same_user(connection):
            raise PermissionError(f"{folder / SOCKET}: belongs to another user")
    except OSError:
        connection.close()
        raise
    return Line(connection)


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's, as the kernel says. Only Linux is asked."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user == os.geteuid()


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The address of a folder's socket. On Linux it goes through the open folder: an address has 107 bytes at most."""
    if not Path("/proc/self/fd").is_dir():
        yield str(folder / SOCKET)
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
