"""Draws the README's strip: the reference picture, and beside it frames of a job's pose clip above those of its video.

uv run python scripts/draw_strip.py demo docs/demo-strip.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from wan_orchestration.settings.environment import environment
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import read_image

HEIGHT, FRAMES, GAP = 240, 5, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    env = environment()
    clips = env.clips_root / arguments.job
    rows = [frames(clips / "src_pose.mp4"), frames(env.videos_root / arguments.job / "video.mp4")]
    reference = read_image(clips / "src_ref.png")
    reference = np.asarray(Image.fromarray(reference).resize(size_for(reference, 2 * HEIGHT + GAP)))

    height, width = rows[0][0].shape[:2]
    sheet = np.full((2 * height + GAP, reference.shape[1] + FRAMES * (width + GAP), 3), 255, np.uint8)
    sheet[: reference.shape[0], : reference.shape[1]] = reference
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            left, top = reference.shape[1] + GAP + x * (width + GAP), y * (height + GAP)
            sheet[top : top + height, left : left + width] = frame
    Image.fromarray(sheet).quantize(256).save(arguments.picture, optimize=True)


def frames(video: Path) -> list[np.ndarray]:
    """Evenly spaced frames, HEIGHT tall."""
    with FrameReader(video) as reader:
        places = np.linspace(0, reader.info.frames - 1, FRAMES).round().astype(int)
        shown = reader.read(places.tolist())
    return [np.asarray(Image.fromarray(frame).resize(size_for(frame, HEIGHT))) for frame in shown]


def size_for(picture: np.ndarray, height: int) -> tuple[int, int]:
    return round(picture.shape[1] * height / picture.shape[0]), height


if __name__ == "__main__":
    main()
