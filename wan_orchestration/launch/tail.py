"""Reads files while another machine appends to them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter, PipesOpenedData

CHUNK_BYTES = 2**20


class Tail:
    """Reads what is new in a file, from an offset in bytes on."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self._offset = offset

    def chunks(self) -> Iterator[bytes]:
        """What was appended since the last call."""
        # Opens the file each time: on NFS, a reader sees what other machines wrote only when it opens the file.
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES):
                self._offset += len(chunk)
                yield chunk

    def copy_to_stderr(self) -> None:
        """Write what was appended since the last call to this process's stderr."""
        for chunk in self.chunks():
            sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()


class TailMessageReader(dg.PipesMessageReader):
    """Reads Pipes messages from a file that may already hold some and that outlives the session.

    Dagster's own reader empties the file first and treats half a line as a whole one. This one reads on demand.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail = Tail(path)
        self._partial_line = b""
        self._handler: dg.PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, str]]:
        self._handler = handler
        yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(self.path)}

    def read(self) -> None:
        """Pass new messages to the handler once they are complete."""
        assert self._handler is not None
        for chunk in self._tail.chunks():
            *lines, self._partial_line = (self._partial_line + chunk).split(b"\n")
            for line in lines:
                self._handler.handle_message(json.loads(line))

    def on_opened(self, opened_payload: PipesOpenedData) -> None:
        return

    def no_messages_debug_text(self) -> str:
        return f"Attempted to read messages from {self.path}."
