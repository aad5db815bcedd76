"""What the `drop_folder` sensor remembers of each folder, so that it reads only what is new or changed."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Self

import dagster as dg

from wan_orchestration.defs.jobs.run_requests import Ask

PLACE = "wan_orchestration/drop_folder"


@dataclass
class Known:
    """What was found in a folder."""

    signature: str
    """`FolderState.signature` at the time."""
    defaults: str
    """Hash of the default settings at the time."""
    fingerprint: str = ""
    ask: Ask | None = None
    """None where the folder cannot be used."""
    reason: str = ""
    """Why it cannot."""
    taken: bool = False
    """Whether there has been a run for this content."""

    @property
    def content(self) -> str | None:
        return self.ask and self.ask.content


@dataclass
class Memory:
    """Kept in the instance's key-value store: Dagster copies a sensor's cursor into every tick.

    It may be lost at any time. Then contents are read again, and the tags of runs tell what was made.
    """

    folders: dict[str, Known] = field(default_factory=dict)

    @classmethod
    def read(cls, instance: dg.DagsterInstance) -> Self:
        text = instance.daemon_cursor_storage.get_cursor_values({PLACE}).get(PLACE)
        try:
            return cls({name: _known(entry) for name, entry in json.loads(text or "{}").items()})
        except (TypeError, ValueError):
            # Written by another version.
            return cls()

    def write(self, instance: dg.DagsterInstance) -> None:
        instance.daemon_cursor_storage.set_cursor_values({PLACE: json.dumps(dataclasses.asdict(self)["folders"])})


def _known(entry: dict) -> Known:
    return Known(**{**entry, "ask": entry["ask"] and Ask(**entry["ask"])})
