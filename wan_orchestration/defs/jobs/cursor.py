"""What the `drop_folder` sensor knows of each folder, so that a tick reads only new and changed folders."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import dagster as dg

from wan_orchestration.defs.jobs.versions import JobVersion

STORED_AS = "wan_orchestration/drop_folder"


@dataclass
class KnownFolder:
    """A folder as the sensor last read it."""

    signature: str
    """`FolderState.signature` at that time."""
    defaults: str
    """Hash of the default settings at that time."""
    fingerprint: str = ""
    """Of the job's inputs."""
    job: JobVersion | None = None
    """None if the folder cannot be used."""
    reason: str = ""
    """Why it cannot be used."""
    was_run: bool = False
    """Whether a run was started for the folder's present content."""


@dataclass
class DropFolderCursor:
    """The sensor's knowledge between ticks, in the instance's key-value store.

    It is too large for Dagster's own cursor, which is copied into every tick. It may be lost at any time: the sensor
    then reads the folders again, and the tags of runs tell which contents were run.
    """

    folders: dict[str, KnownFolder] = field(default_factory=dict)

    @classmethod
    def read(cls, instance: dg.DagsterInstance) -> Self:
        text = instance.daemon_cursor_storage.get_cursor_values({STORED_AS}).get(STORED_AS)
        try:
            return cls({name: _known(entry) for name, entry in json.loads(text or "{}").items()})
        except (TypeError, ValueError, KeyError):
            # Another version wrote it.
            return cls()

    def write(self, instance: dg.DagsterInstance) -> None:
        instance.daemon_cursor_storage.set_cursor_values({STORED_AS: json.dumps(asdict(self)["folders"])})


def _known(entry: dict[str, Any]) -> KnownFolder:
    return KnownFolder(**{**entry, "job": entry["job"] and JobVersion(**entry["job"])})
