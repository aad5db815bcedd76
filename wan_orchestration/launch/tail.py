"""Files that another machine appends to, read as they grow."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter, PipesOpenedData

PIECE_BYTES = 2**20


class Tail:
    """Reads what is new in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def pieces(self) -> Iterator[bytes]:
        """What was appended since the last call."""
        # Opened anew each time, because NFS shows what others have written only to those who open the file after that.
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while piece := file.read(PIECE_BYTES):
                self._offset += len(piece)
                yield piece


class TailMessageReader(dg.PipesMessageReader):
    """Pipes messages from a file that may hold some already, and that stays when the session ends.

    Dagster's own reader empties the file first, and takes half a line for a whole one. This one reads when told to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail = Tail(path)
        self._begun = b""
        self._handler: dg.PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, str]]:
        self._handler = handler
        yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(self.path)}

    def read(self) -> None:
        """Hand on the messages that are whole."""
        assert self._handler is not None
        for piece in self._tail.pieces():
            *lines, self._begun = (self._begun + piece).split(b"\n")
            for line in lines:
                self._handler.handle_message(json.loads(line))

    def on_opened(self, opened_payload: PipesOpenedData) -> None:
        return

    def no_messages_debug_text(self) -> str:
        return f"Attempted to read messages from {self.path}."
