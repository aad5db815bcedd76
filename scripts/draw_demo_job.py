"""Draws the demo job: a video of a dancer, the dancer's keypoints, and a picture of another character.

    uv run python scripts/draw_demo_job.py [FOLDER]

Everything is synthetic, the tune included, so that the job can be shared freely. Every run writes the same files.
"""

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from mini.figures import FPS, Act, Build, Figure, Look, perform, stand
from mini.jobs import write_raw
from mini.scene import Scene
from wan_orchestration.files import replacing
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.sound import find_sound

FRAMES = 97
DANCER = Look(
    skin=(200, 144, 102), hair=(34, 38, 88), torso=(240, 136, 28), right_arm=(62, 168, 70), left_arm=(150, 208, 62),
    right_leg=(138, 66, 190), left_leg=(212, 45, 48), wall=(214, 238, 214), floor=(148, 155, 160), style="short",
)  # fmt: skip
CHARACTER = Look(
    skin=(255, 222, 196), hair=(212, 45, 48), torso=(28, 168, 172), right_arm=(246, 208, 48), left_arm=(238, 108, 172),
    right_leg=(52, 92, 222), left_leg=(138, 66, 190), wall=(206, 230, 244), floor=(175, 170, 150), style="buns",
)  # fmt: skip
JOB = """\
preprocess:
  resolution_area: 16384   # 128x128
"""


def tune(seconds: float, rate: int = 48000) -> np.ndarray:
    """(1, samples) float32: sixteen soft plucked notes over a bass line."""
    t = np.arange(round(seconds * rate)) / rate
    step = seconds / 16
    notes = (72, 76, 79, 76, 74, 77, 81, 77, 76, 79, 84, 79, 77, 74, 71, 67)
    bass = (48, 53, 57, 55)
    sound = np.zeros_like(t)

    def pluck(start: float, note: float, length: float, loud: float) -> None:
        u = t - start
        on = (u >= 0) & (u < length * 3)
        u = u[on]
        tone = sum(np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * k * u) / k**2 for k in (1, 2, 3))
        sound[on] += loud * tone * np.minimum(u / 0.008, 1) * np.exp(-u / length)

    for i, note in enumerate(notes):
        pluck(i * step, note, 0.16, 0.16)
    for i, note in enumerate(bass):
        pluck(i * 4 * step, note, 0.45, 0.22)
    return (sound * np.clip((seconds - t) / 0.15, 0, 1)).astype(np.float32)[None]


def write_sound(path: Path, samples: np.ndarray, rate: int = 48000) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux([*stream.encode(frame), *stream.encode(None)])


def dance() -> Act:
    return perform(np.random.default_rng(4), FRAMES)


def main(folder: Path) -> None:
    dancer = Build(head=0.125, torso=0.21, upper_arm=0.12, forearm=0.11, thigh=0.155, shin=0.145, zoom=0.95)
    standing = Figure(Build(), stand(np.random.default_rng(1)))
    scene = Scene(Figure(dancer, dance()), DANCER, standing, CHARACTER)
    with replacing(folder) as part, tempfile.TemporaryDirectory() as work:
        write_raw(part, scene)
        (part / "job.yaml").write_text(JOB)
        silent, sound = Path(work, "silent.mp4"), Path(work, "sound.mp4")
        (part / "driving.mp4").rename(silent)
        write_sound(sound, tune(FRAMES / FPS))
        concatenate([silent], part / "driving.mp4", find_sound(sound))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "jobs" / "demo")
