"""Files that lie beside the job folders, and the commands that move them into one."""

import os
from collections import defaultdict
from pathlib import Path
from shlex import quote

from wan_orchestration.formats import PARTIAL
from wan_orchestration.jobs.folder import key_from
from wan_orchestration.jobs.inputs import RAW

HIDDEN = {"thumbs.db", "desktop.ini"}
"""Files that Windows puts into folders, and hides."""
LISTED = 100


def loose_files(root: Path, before: float) -> dict[str, str]:
    """By file name, why each cannot be used. Opens no file, because there may be thousands.

    Leaves out hidden files, partial downloads, and files that changed after `before` (Unix time).
    """
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if _is_loose(entry, before))
    by_stem = defaultdict(list)
    for name in names[:LISTED]:
        by_stem[Path(name).stem.casefold()].append(name)
    reasons = {}
    for files in by_stem.values():
        reasons |= _reasons(root, files)
    if len(names) > LISTED:
        reasons[f"{len(names) - LISTED} more files"] = (
            f"{root}: {len(names) - LISTED} more files beside the job folders"
        )
    return reasons


def _is_loose(entry: os.DirEntry[str], before: float) -> bool:
    if entry.name[0] == "." or entry.name.lower() in HIDDEN or PARTIAL.fullmatch(entry.name):
        return False
    try:
        return not entry.is_dir() and entry.stat(follow_symlinks=False).st_ctime <= before
    except FileNotFoundError:
        return False


def _reasons(root: Path, files: list[str]) -> dict[str, str]:
    """Reasons for files with the same stem. A video and a picture of one stem are a job without a folder."""
    key = key_from(files[0]) or "my-job"
    moves, inputs = {}, {file: _input(file) for file in files}
    for file, name in inputs.items():
        if name:
            moves[file] = f"mv {quote(file)} {key}/{name}{Path(file).suffix.lower()}"
    if sorted(filter(None, inputs.values())) == sorted(RAW):
        how = f"a job is a folder; make one of the two files there: mkdir {key}; {'; '.join(moves.values())}"
        return {file: f"{root / file}: {how}" for file in moves}
    missing = {"driving": "a picture there as reference.png", "reference": "a video there as driving.mp4"}
    return {
        file: f"{root / file}: a job is a folder; make one there: mkdir {key}; {moves[file]}, and put {missing[name]}"
        if name
        else f"{root / file}: a file beside the job folders is not used; move it into a job's folder"
        for file, name in inputs.items()
    }


def _input(file: str) -> str:
    """The input that a file may be by its suffix: driving, reference, or "" for neither."""
    suffix = Path(file).suffix[1:].lower()
    return next((name for name, suffixes in RAW.items() if suffix in suffixes), "")
