"""Makes the clips of Wan2.2-Animate: skeletons, faces, the reference picture, backgrounds and masks."""

from wan_orchestration.preprocess.frames import choose_frames
from wan_orchestration.preprocess.pipeline import preprocess as make

__all__ = ["choose_frames", "make"]
