"""Checks the paths that clients send, and shortens the server's paths in the texts that clients get."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job, check_key
from wan_orchestration.settings.environment import DagsterHome, Environment, environment

ABSOLUTE = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/'\"`:;,()\[\]<>|]+/)+(?P<name>[^\s/'\"`:;,()\[\]<>|]*)")
"""Absolute paths of two or more components; does not match the path of a URL."""


def job_key(src_root_path: str, env: Environment) -> str:
    """Key of the job in a `src_root_path`: `data/jobs/<job>`, also as an absolute path, or `<job>`.

    BadInput: any other path, and a folder that is a link.
    """
    error = BadInput(
        f"src_root_path: {src_root_path[:200]!r} is not a job folder; expected data/jobs/<job>, "
        "a folder directly in the jobs folder"
    )
    if not src_root_path or "\0" in src_root_path or "\\" in src_root_path:
        raise error
    parts = Path(src_root_path).parts
    if ".." in parts:
        raise error
    root = env.jobs_root
    if len(parts) == 1:
        key = parts[0]
    elif parts[:-1] == ("data", "jobs") or Path.cwd().joinpath(*parts[:-1]) == root:
        key = parts[-1]
    else:
        raise error
    if not re.fullmatch(r"[\x20-\x7e]+", key):
        raise error
    check_key(key)
    if (root / key).is_symlink():
        raise BadInput(f"src_root_path: data/jobs/{key} is a link; expected a folder")
    return key


def check_inputs(job: Job, env: Environment) -> None:
    """BadInput: an input of the job is a link to a file outside the data folder."""
    for path in job.inputs.values():
        if not (_inside(path, job.folder) or _inside(path, env.data_root)):
            raise BadInput(
                f"data/jobs/{job.key}/{path.name}: a link to a file outside the data folder; "
                "copy the file, or start the job on the server: wan-animate run"
            )


def check_loras(generate: Mapping[str, Any], env: Environment) -> None:
    """BadInput: a LoRA of these settings is not in the models folder."""
    for value in generate.get("lora", []):
        check_lora(value, env)


def check_lora(value: str, env: Environment) -> None:
    """BadInput: a LoRA, FILE or FILE:STRENGTH, is not in the models folder."""
    assert env.models_root is not None
    for path in {value, value.rpartition(":")[0] or value}:
        if "\0" in path or path.startswith("~") or not _inside(Path.cwd() / path, env.models_root):
            raise BadInput(f"lora: found {value[:200]!r}, expected a file in the models folder, data/models")


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def without_paths(text: str) -> str:
    """The text with short names for the server's folders; of other absolute paths, only the last part is kept."""
    env = environment()
    names = [
        (env.jobs_root, "data/jobs"),
        (env.models_root, "data/models"),
        (env.checkpoint_dir, "checkpoint"),
        (env.data_root, "data"),
        (DagsterHome().home.absolute(), "dagster_home"),
        (Path.cwd(), "."),
    ]
    for folder, name in names:
        if folder is not None and folder != Path("/"):
            text = re.sub(rf"{re.escape(str(folder))}(?=$|[^\w.-])", name, text)
    return ABSOLUTE.sub(lambda match: f"…/{match['name']}", text)
