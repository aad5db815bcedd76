"""Several drivers in one video, each with a character who replaces them: a driving video, masks and the true video."""

from dataclasses import dataclass, replace

import numpy as np

from mini.drawing import draw_frame, draw_place, silhouette
from mini.figures import Build, Figure, Look, perform, stand
from mini.scene import Scene
from wan_orchestration.preprocess.keypoints import Pose


@dataclass(frozen=True)
class Group:
    """Drivers who move in front of one camera, in the place of the first. Later ones stand in front of earlier ones."""

    scenes: tuple[Scene, ...]
    """Of one length and size."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px of the video."""
        return self.scenes[0].size

    @property
    def frames(self) -> range:
        return self.scenes[0].frames

    def place(self, size: tuple[int, int]) -> np.ndarray:
        return draw_place(self.scenes[0].driver, size)

    def picture(self, t: int, replaced: int = 0, scale: int = 1) -> np.ndarray:
        """Frame t, (H, W, 3) uint8, `scale` times as large: the first `replaced` are characters, the others drivers."""
        size = self.size[0] * scale, self.size[1] * scale
        picture = self.place(size)
        for index, one in enumerate(self.scenes):
            look = one.character if index < replaced else one.driver
            picture = draw_frame(one.driving, look, t, size, picture)
        return picture

    def truth(self, t: int) -> np.ndarray:
        """What the video should show once all drivers are replaced."""
        return self.picture(t, len(self.scenes))

    def mask(self, index: int, t: int, scale: int = 1) -> np.ndarray:
        """The visible part of a driver, (H, W) uint8 of 0 and 1."""
        size = self.size[0] * scale, self.size[1] * scale
        shown, *before = (silhouette(one.driving, one.driver, t, size) for one in self.scenes[index:])
        for one in before:
            shown = shown & (1 - one)
        return shown

    def poses(self, t: int, scale: int = 1) -> list[Pose]:
        """Keypoints of the drivers, in their order."""
        return [one.driving.pose(t, (self.size[0] * scale, self.size[1] * scale)) for one in self.scenes]


def two_figures(seed: int, frames: int, crossing: bool = False, size: tuple[int, int] = (128, 128)) -> Group:
    """Two random figures side by side, their arms low: the first on the left, the second, a smaller one, on the right.

    With `crossing`, they change sides, and the second passes in front of the first.
    """
    rng = np.random.default_rng(seed)
    aside = np.full(frames, size[0] / size[1] / 4)
    if crossing:
        aside = aside * np.linspace(1, -1, frames)
    scenes = []
    for side in (-1, 1):
        build, act = replace(Build.draw(rng), zoom=0.95 - 0.05 * side), perform(rng, frames)
        act = replace(act, hips=act.hips + np.stack([side * aside, np.zeros(frames)], 1), arms=act.arms / 2)
        standing = Figure(replace(build, zoom=1.0), stand(rng))
        scenes.append(Scene(Figure(build, act), Look.draw(rng), standing, Look.draw(rng), size))
    return Group(tuple(scenes))
