"""Draws the loss curves of a training folder: `python -m mini.curves data/mini mini/curves.png`."""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT, MARGIN = 460, 300, 52
CURVES = (
    ("vae", "decoder, held out: PSNR (dB)", (("psnr_fours", (200, 80, 40)),)),
    (
        "transformer",
        "transformer: loss on the figure",
        (("train_figure", (170, 170, 170)), ("held_out_figure", (40, 80, 200))),
    ),
)


def draw(rows: list[dict[str, str]], title: str, curves: tuple[tuple[str, tuple[int, int, int]], ...]) -> np.ndarray:
    """Curves over the number of steps, (HEIGHT, WIDTH, 3) uint8 RGB."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    steps = np.array([float(row["steps"]) for row in rows])
    values = {name: np.array([float(row[name]) for row in rows]) for name, _ in curves}
    low, high = min(map(np.min, values.values())), max(map(np.max, values.values()))

    def place(step: float, value: float) -> tuple[int, int]:
        x = MARGIN + (WIDTH - 1.5 * MARGIN) * step / steps[-1]
        return round(x), round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low))

    def write(text: str, x: float, y: float, colour: tuple[int, int, int] = (60, 60, 60)) -> None:
        cv2.putText(picture, text, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

    for value in np.linspace(low, high, 4):
        y = place(0, value)[1]
        cv2.line(picture, (MARGIN, y), (WIDTH - MARGIN // 2, y), (225, 225, 225), 1)
        write(f"{value:.3g}", 6, y + 4)
    for step in np.linspace(0, steps[-1], 4):
        write(f"{step:.0f}", place(step, low)[0] - 12, HEIGHT - MARGIN + 18)
    write("steps", WIDTH / 2, HEIGHT - 12)
    write(title, MARGIN, 24)
    for index, (name, colour) in enumerate(curves):
        points = np.array([place(step, value) for step, value in zip(steps, values[name])], np.int32)
        cv2.polylines(picture, [points], False, colour, 2, cv2.LINE_AA)
        write(name, MARGIN + 130 * index, 40, colour)
    return picture


def main() -> None:
    folder, target = map(Path, sys.argv[1:3])
    pictures = []
    for name, title, curves in CURVES:
        with (folder / f"{name}.csv").open(newline="") as file:
            pictures.append(draw(list(csv.DictReader(file)), title, curves))
    cv2.imwrite(str(target), np.concatenate(pictures, axis=1)[..., ::-1])


if __name__ == "__main__":
    main()
