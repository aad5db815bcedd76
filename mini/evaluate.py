"""Measures a snapshot on characters and motions outside the training data: `python -m mini.evaluate SNAPSHOT`.

Writes jobs as clips, runs them in the engine like any job, and compares their videos with the drawn truth. Prints a
Markdown table; `--sheet` also writes a picture of reference, pose, truth and result.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from mini import measure
from mini.figures import Act, Figure
from mini.group import two_figures
from mini.jobs import write_clips, write_group
from mini.samples import CLIP_LEN
from mini.scene import scene
from mini.train import HELD_OUT
from wan_orchestration.files import replacing
from wan_orchestration.generate.runner import run
from wan_orchestration.infer import TerminalReporter
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.protocol.messages import CharacterRequest, Request, Task
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.weights.snapshot import open_snapshot

LONG = 4 * CLIP_LEN - 3
"""Frames of four segments."""
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


class Case:
    """The jobs of one held-out figure."""

    def __init__(self, number: int, long: bool) -> None:
        self.long = scene(HELD_OUT + 1 + number, LONG)
        build, act = self.long.driving.build, self.long.driving.act
        other = scene(HELD_OUT - 1 - number, 1).character
        self.short = replace(self.long, driving=Figure(build, _cut(act, CLIP_LEN)))
        self.other = replace(self.short, character=other)
        held = _held(act, CLIP_LEN)
        self.shut, self.open = (
            replace(self.long, driving=Figure(build, replace(held, mouth=held.mouth * 0 + mouth))) for mouth in (0, 1)
        )
        self.animated = self.long if long else self.short
        self.scenes = {
            "animated": self.animated,
            "other": self.other,
            "shut": self.shut,
            "open": self.open,
            "replace": self.short,
        }


def _cut(act: Act, frames: int) -> Act:
    return replace(act, **{name: value[:frames] for name, value in vars(act).items()})


def _held(act: Act, frames: int) -> Act:
    """The first frame repeated, with open eyes and no smile."""
    held = {name: np.repeat(value[:1], frames, axis=0) for name, value in vars(act).items()}
    return replace(act, **held | {"eyes": np.ones(frames), "smile": np.zeros(frames)})


def measure_case(case: Case, made: dict[str, np.ndarray]) -> dict[str, float]:
    """Measurements of a case by name. `made` are the videos of its scenes."""
    truth = {
        name: np.stack([scene.truth(t, name == "replace") for t in scene.frames]) for name, scene in case.scenes.items()
    }
    animated = [name for name in case.scenes if name != "replace"]
    first = slice(CLIP_LEN)
    face = measure.face_region(case.open.driving, 0, case.open.size)
    change = [videos["open"][:, *face] - videos["shut"][:, *face].astype(float) for videos in (made, truth)]
    outside = np.stack([case.short.mask(t) for t in case.short.frames]) == 0

    def mean(of: Callable[[str], float]) -> float:
        return float(np.mean([of(name) for name in animated]))

    def repeated(name: str) -> np.ndarray:
        return np.broadcast_to(case.scenes[name].reference(), truth[name].shape)

    def limbs(name: str) -> float:
        return measure.limb_errors(made[name][::4], truth[name][::4], case.scenes[name].character).mean()

    def identity(name: str) -> bool:
        looks = case.short.character, case.other.character
        own, other = reversed(looks) if name == "other" else looks
        return measure.wears(made[name][first], truth[name][first], own, other)

    row = {
        "psnr": mean(lambda name: measure.psnr(made[name], truth[name])),
        "repeated": mean(lambda name: measure.psnr(repeated(name), truth[name])),
        "limbs": mean(limbs),
        "identity": mean(identity),
        "face": float(measure.agreement(*change) > 0.5),
        "background": measure.psnr(made["replace"][outside], truth["replace"][outside]),
        "replaced": measure.psnr(made["replace"], truth["replace"]),
    }
    if case.animated is case.long:
        segments = first, slice(LONG - CLIP_LEN + 1, LONG)
        start, end = (measure.psnr(made["animated"][part], truth["animated"][part]) for part in segments)
        row["drift"] = end - start
    return row


def make_videos(
    folder: Path, snapshot: Path, jobs: dict[str, Path], settings: Mapping[str, Mapping[str, float | str]], steps: int
) -> dict[str, np.ndarray]:
    """Frames of each job's video. `jobs` are folders of clips; `settings` has more settings of some jobs.

    Videos that are already in the folder are kept.
    """
    tasks = [
        Task(
            job_id=name,
            clips=check_clips(clips, chosen.mode, chosen.refert_num),
            output=folder / "videos" / name,
            settings=chosen,
            created_at=datetime.now(UTC),
        )
        for name, clips in jobs.items()
        for more in [settings.get(name, {})]
        for chosen in [Job.open(clips).generate_settings(clip_len=CLIP_LEN, sampling_steps=steps, **more)]
        if not (folder / "videos" / name / "video.mp4").is_file()
    ]
    opened = open_snapshot(snapshot)
    for result in run([(Request(snapshot=opened.path, revision=opened.revision, tasks=tasks), TerminalReporter())]):
        if result.status != "succeeded":
            raise SystemExit(f"{result.job_id}: {result.error}")
    videos = {}
    for name in jobs:
        with FrameReader(folder / "videos" / name / "video.mp4") as reader:
            videos[name] = reader.read(range(reader.info.frames))
    return videos


def strength_jobs(cases: list[Case], jobs: dict[str, Path]) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    """Jobs for each strength of pose and face, and their settings. They share the clips of `jobs`."""
    more, settings = {}, {}
    for number in range(len(cases)):
        for strength in STRENGTHS:
            for kind, name in (("pose", "other"), ("face", "shut"), ("face", "open")):
                key = f"{number}-{name}-{kind}{strength:g}"
                more[key], settings[key] = jobs[f"{number}-{name}"], {f"{kind}_strength": strength}
    return more, settings


def measure_strength(cases: list[Case], made: dict[str, np.ndarray], strength: float) -> list[str]:
    """A row of the table of strengths: amplitudes relative to the drawn truth, and likeness to it."""
    rows = []
    for number, case in enumerate(cases):
        moved = made[f"{number}-other-pose{strength:g}"]
        truth = np.stack([case.other.truth(t) for t in case.other.frames])
        face = measure.face_region(case.open.driving, 0, case.open.size)
        faces = [made[f"{number}-{name}-face{strength:g}"][:, *face].astype(float) for name in ("open", "shut")]
        drawn = [
            np.stack([scene.truth(t)[face] for t in scene.frames]).astype(float) for scene in (case.open, case.shut)
        ]
        change = faces[0] - faces[1], drawn[0] - drawn[1]
        rows.append(
            {
                "limbs": measure.limb_amplitude(moved, truth, case.other.reference(), case.other.character),
                "moved": measure.psnr(moved, truth),
                "mouth": measure.amplitude(*change),
                "faces": float(np.mean([measure.psnr(one, two) for one, two in zip(faces, drawn)])),
            }
        )
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return [f"{mean['limbs']:.2f}", f"{mean['moved']:.1f} dB", f"{mean['mouth']:.2f}", f"{mean['faces']:.1f} dB"]


def measure_groups(folder: Path, snapshot: Path, count: int, steps: int) -> dict[str, float]:
    """Replaces two drivers in one video by two characters: how the results compare with the drawn truth.

    Every other pair crosses. Videos that are already in the folder are kept.
    """
    psnr, right = [], []
    for number in range(count):
        group = two_figures(HELD_OUT + 1 + number, 2 * CLIP_LEN - 1, crossing=number % 2 == 1)
        job, clips = (folder / kind / f"pair-{number}" for kind in ("jobs", "clips"))
        if not job.is_dir():
            with replacing(job) as part:
                write_group(part, group)
        if not clips.is_dir():
            opened = Job.open(job)
            pictures = [CharacterRequest(reference=file, settings=one) for file, one in opened.other_characters()]
            preprocess(
                opened.inputs["driving"],
                opened.inputs["reference"],
                clips,
                opened.preprocess_settings(),
                snapshot=None,
                models_root=folder,
                others=pictures,
            )
        videos = make_videos(
            folder, snapshot, {f"pair-{number}": clips}, {f"pair-{number}": {"mode": "replace"}}, steps
        )
        made = videos[f"pair-{number}"]
        psnr.append(measure.psnr(made, np.stack([group.truth(t) for t in group.frames])))
        right.append(measure.limbs_told_apart(made, group, group.frames).mean())
    return {"psnr": float(np.mean(psnr)), "right": float(np.mean(right))}


def sheet(case: Case, made: np.ndarray) -> np.ndarray:
    """The reference, then pose, truth and result of some frames, one above the other."""
    rows = []
    for t in np.linspace(0, len(made) - 1, 8).astype(int):
        rows.append(np.concatenate([case.animated.pose(t), case.animated.truth(t), made[t]]))
    reference = np.full_like(rows[0], 255)
    reference[: case.short.size[1]] = case.short.reference()
    return np.concatenate([reference, *rows], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path, nargs="?", default=Path("data/models/wan-animate-mini"))
    parser.add_argument("--figures", type=int, default=20)
    parser.add_argument("--long", type=int, default=5, help="figures with four segments; the others have one")
    parser.add_argument("--strengths", type=int, default=6, help="figures for the table of strengths")
    parser.add_argument("--pairs", type=int, default=2, help="videos of two figures, both replaced")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("data/mini/evaluation"),
        help="folder of jobs and videos; videos in it are kept, so use another folder for another snapshot",
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG")
    arguments = parser.parse_args()
    cases = [Case(number, long=number < arguments.long) for number in range(arguments.figures)]
    folder, jobs = arguments.folder, {}
    for number, case in enumerate(cases):
        for name, each in case.scenes.items():
            jobs[f"{number}-{name}"] = clips = folder / "jobs" / f"{number}-{name}"
            if not clips.is_dir():
                with replacing(clips) as part:
                    write_clips(part, each, name == "replace")
    videos = make_videos(folder, arguments.snapshot, jobs, {}, arguments.steps)
    made = [{name: videos[f"{number}-{name}"] for name in case.scenes} for number, case in enumerate(cases)]
    if arguments.sheet:
        picture = np.concatenate([sheet(case, each["animated"]) for case, each in zip(cases[:4], made)])
        Image.fromarray(picture).save(arguments.sheet)
    rows = [measure_case(case, each) for case, each in zip(cases, made)]
    mean = {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}
    drift = f"{mean['drift']:+.1f} dB" if "drift" in mean else "no figure with four segments"
    print(
        f"| {len(rows)} held-out figures, {len(jobs)} jobs, {arguments.steps} steps | measured | aim |\n|---|---|---|"
    )
    for what, measured, aim in (
        ("PSNR to the drawn truth, animate mode", f"{mean['psnr']:.1f} dB", ">= 20 dB"),
        ("above repeating the reference picture", f"{mean['psnr'] - mean['repeated']:.1f} dB", ">= 6 dB"),
        ("limbs found by colour, mean error", f"{100 * mean['limbs']:.1f} % of the height", "<= 4 %"),
        ("identity: the reference's colours, not another's", f"{100 * mean['identity']:.0f} %", ">= 95 %"),
        ("expression follows the face clip, pose held", f"{100 * mean['face']:.0f} %", ">= 90 %"),
        ("replace: background outside the mask, PSNR", f"{mean['background']:.1f} dB", ">= 24 dB"),
        ("replace: whole picture, PSNR", f"{mean['replaced']:.1f} dB", ""),
        ("last of 4 segments against the first, PSNR", drift, "within 2 dB"),
    ):
        print(f"| {what} | {measured} | {aim} |")
    if arguments.pairs:
        pairs = measure_groups(folder, arguments.snapshot, arguments.pairs, arguments.steps)
        print(f"| two characters, {arguments.pairs} videos: whole picture, PSNR | {pairs['psnr']:.1f} dB | |")
        print(f"| two characters: limbs in the own character's colours | {100 * pairs['right']:.0f} % | >= 90 % |")
    if not arguments.strengths:
        return
    cases = cases[: arguments.strengths]
    videos = make_videos(folder, arguments.snapshot, *strength_jobs(cases, jobs), arguments.steps)
    print(f"\n| {len(cases)} figures: strength | limbs move | PSNR | mouth opens | PSNR of the face |")
    print("|---|---|---|---|---|")
    for strength in STRENGTHS:
        print(f"| {strength:g} | {' | '.join(measure_strength(cases, videos, strength))} |")


if __name__ == "__main__":
    main()
