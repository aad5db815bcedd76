"""A driver who moves and a character who should move like the driver: a job's inputs and the true video."""

from dataclasses import dataclass, replace

import numpy as np

from mini.drawing import draw_face, draw_frame, draw_place, silhouette
from mini.figures import Build, Figure, Look, perform, stand
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.masks import grow_mask


@dataclass(frozen=True)
class Scene:
    """A driver who moves in front of the camera, and a character who should move like the driver."""

    driving: Figure
    driver: Look
    standing: Figure
    """The character in the reference picture, one frame."""
    character: Look
    size: tuple[int, int] = (128, 128)
    """Width and height in px of the video."""
    horizon: np.ndarray | None = None
    """If the camera moves: (T,) height at which the floor of the driver's place begins, in heights of the picture."""

    @property
    def frames(self) -> range:
        return range(len(self.driving.act))

    def reference(self, scale: int = 1) -> np.ndarray:
        """(H, W, 3) uint8, `scale` times as large as the video."""
        return draw_frame(self.standing, self.character, 0, (self.size[0] * scale, self.size[1] * scale))

    def pose(self, t: int) -> np.ndarray:
        return draw_skeleton(np.zeros((self.size[1], self.size[0], 3), np.uint8), self.driving.pose(t, self.size))

    def face(self, t: int) -> np.ndarray:
        """The driver's face crop from a driving video twice as large, before it is enlarged."""
        return draw_face(self.driving, self.driver, t, (self.size[0] * 2, self.size[1] * 2))

    def place(self, t: int) -> np.ndarray:
        """The driver's place, without the driver."""
        return draw_place(self.driver, self.size, horizon=0.8 if self.horizon is None else self.horizon[t])

    def mask(self, t: int) -> np.ndarray:
        """The driver's mask, (H, W) uint8 of 0 and 1, grown as in preprocessing."""
        return grow_mask(silhouette(self.driving, self.driver, t, self.size), 3, 7, (1, 1))

    def background(self, t: int) -> np.ndarray:
        return self.place(t) * (1 - self.mask(t))[..., None]

    def truth(self, t: int, replace: bool = False) -> np.ndarray:
        """What the video should show."""
        return draw_frame(self.driving, self.character, t, self.size, self.place(t) if replace else None)


def scene(seed: int, frames: int, size: tuple[int, int] = (128, 128)) -> Scene:
    """A random scene."""
    rng = np.random.default_rng(seed)
    build, act, standing = Build.draw(rng), perform(rng, frames), stand(rng)
    return Scene(Figure(build, act), Look.draw(rng), Figure(replace(build, zoom=1.0), standing), Look.draw(rng), size)
