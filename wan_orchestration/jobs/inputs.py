"""Finds the inputs of a job among the files of its folder, and checks that they are of the right kind."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.family import CLIPS, clip_names
from wan_orchestration.families.choose import FIRST
from wan_orchestration.families.family import Family
from wan_orchestration.files import check_file
from wan_orchestration.formats import A_PICTURE, A_VIDEO, PARTIAL, PICTURE_SUFFIXES, VIDEO_SUFFIXES, describe, recognise
from wan_orchestration.settings.characters import Character
from wan_orchestration.settings.generate import Mode
from wan_orchestration.settings.preprocess import PreprocessSettings

RAW = {"driving": VIDEO_SUFFIXES, "reference": PICTURE_SUFFIXES}

KEYPOINTS = ("keypoints.npz", "keypoints.json", "keypoints")

REFERENCE_KEYPOINTS = ("reference_keypoints.npz", "reference_keypoints.json")

EXPECTED_RAW = " and ".join(f"{n}.<{'|'.join(s)}>" for n, s in RAW.items())

EXPECTED = f"{', '.join(CLIPS.values())}, or {EXPECTED_RAW}"

MOST_NAMED = 10
"""The most files of a folder that a message names."""


def find_inputs(
    folder: Path,
    mode: Mode,
    preprocess: PreprocessSettings,
    characters: Sequence[Character] = (),
    family: Family = FIRST,
) -> tuple[Literal["clips", "raw"], dict[str, Path]]:
    """The `kind` and the `inputs` of a job, as in `Job`.

    BadInput: inputs missing, ambiguous or of another kind, or a broken link.
    """
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    ready = {name: folder / file for name, file in clip_names("replace").items() if file in names}
    raw = {}
    for name, suffixes in RAW.items():
        if characters and name == "reference":
            continue
        # Cameras write .MOV and .JPG.
        found = [n for n in names if Path(n).stem.lower() == name and Path(n).suffix[1:].lower() in suffixes]
        if len(found) > 1:
            raise BadInput(f"{folder}: found {' and '.join(found)}, expected one {name} file; remove the others")
        if found:
            raw[name] = folder / found[0]

    if characters:
        kind, inputs = "raw", raw | _files_of(characters, folder, names, preprocess)
        if not raw:
            raise BadInput(
                f"{folder}: missing driving; characters replace people of driving.<{'|'.join(VIDEO_SUFFIXES)}>"
            )
    elif family.ready_clips and (
        ready.keys() >= clip_names(mode).keys() or (ready.keys() >= CLIPS.keys() and len(raw) < len(RAW))
    ):
        kind, inputs = "clips", ready
    elif len(raw) == len(RAW):
        beside = {
            "keypoints": _keypoints(folder, names, preprocess),
            "reference_keypoints": next((folder / name for name in REFERENCE_KEYPOINTS if name in names), None),
            "mask": folder / preprocess.mask_file if preprocess.mask_file in names else None,
        }
        kind, inputs = "raw", raw | {name: path for name, path in beside.items() if path is not None}
    else:
        if not family.ready_clips and not raw and ready:
            raise BadInput(
                f"{folder}: model {family.name} needs {EXPECTED_RAW}; "
                f"found ready clips, which are for model {FIRST.name}"
            )
        missing = _missing(folder, names, ready if family.ready_clips else {}, raw)
        raise BadInput(f"{folder}: {missing}; expected {EXPECTED if family.ready_clips else EXPECTED_RAW}")
    for name, path in inputs.items():
        if name != "keypoints":
            check_file(path)
        if suffixes := RAW.get(re.sub(r"_\d+$", "", name)):
            _check_content(path, suffixes)
    return kind, inputs


def _keypoints(folder: Path, names: list[str], preprocess: PreprocessSettings) -> Path | None:
    wanted = [preprocess.keypoints] if preprocess.keypoints else KEYPOINTS
    return next((folder / name for name in wanted if name in names), None)


def _files_of(
    characters: Sequence[Character], folder: Path, names: list[str], preprocess: PreprocessSettings
) -> dict[str, Path]:
    """Pictures and masks of the characters: `reference`, `mask` of the first, `reference_2`, `mask_2` of the second.

    BadInput: one is missing.
    """
    files = {}
    if keypoints := _keypoints(folder, names, preprocess):
        files["keypoints"] = keypoints
    for number, character in enumerate(characters, 1):
        for kind, name in (("reference", character.picture), ("mask", character.mask)):
            if name is not None and name not in names:
                field = "picture" if kind == "reference" else "mask"
                raise BadInput(f"{folder}: found no file {name}, which characters.{number - 1}.{field} names")
            if name is not None:
                files[kind if number == 1 else f"{kind}_{number}"] = folder / name
    unmasked = any(character.mask is None for character in characters)
    if unmasked and preprocess.mask_file in names and preprocess.masks in ("auto", "file"):
        if len(characters) == 1:
            return files | {"mask": folder / preprocess.mask_file}
        raise BadInput(
            f"{folder}: {preprocess.mask_file} cannot tell people apart; name a mask video of each in characters, "
            "or use masks: sam2 or light"
        )
    return files


def _missing(folder: Path, names: list[str], ready: dict[str, Path], raw: dict[str, Path]) -> str:
    """Describes which inputs a folder lacks, and which of its files could be meant as these inputs."""
    missing = [file for name, file in CLIPS.items() if name not in ready] if ready else []
    lacking = [name for name in RAW if name not in raw]
    beside = [_hint(folder / file, name) for name in lacking for file in names if file.lower().startswith(name)]
    if raw or beside:
        missing += lacking
    if missing:
        return "; ".join([f"missing {', '.join(missing)}", *beside])
    found = [f"{name} ({describe(folder / name)})" for name in names[:MOST_NAMED]]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"no inputs, found {', '.join(found) or 'an empty folder'}{more}"


def _hint(path: Path, name: str) -> str:
    found, suffix = recognise(path)
    if PARTIAL.fullmatch(path.name):
        return f"found {path.name}, which is still incomplete"
    if suffix in RAW[name]:
        return f"found {path.name}, {found}: rename it {name}.{suffix}"
    return f"found {path.name}, {found}"


def _check_content(path: Path, suffixes: tuple[str, ...]) -> None:
    """BadInput: the first bytes belong to another kind of file. If they do not tell, decoding does later."""
    found, suffix = recognise(path)
    if suffix is not None and suffix not in suffixes:
        raise BadInput(f"{path}: found {found}, expected {A_VIDEO if suffixes == VIDEO_SUFFIXES else A_PICTURE}")
