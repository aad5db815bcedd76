from fractions import Fraction

import numpy as np
import pytest
from figures import driving, figure, picture_of, save_keypoints, walk
from PIL import Image
from pydantic import ValidationError

from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.mask_hints import MaskHint, MovingHints
from wan_orchestration.preprocess.motion import Motion
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.writer import write_lossless

SIZE = (160, 120)


def moving(poses: list[Pose], *hints: str) -> MovingHints:
    return MovingHints(
        [MaskHint.parse(hint) for hint in hints],
        Motion.from_poses(SIZE, poses),
        SIZE,
        lambda seconds: round(seconds or 0),
    )


def test_a_point_moves_with_the_nearest_limb():
    """A stick in the right hand: its middle lies beyond the wrist, in line with the forearm."""
    poses = [
        figure(SIZE, height, (80 + x, 110), wave) for height, x, wave in [(90, 0, 0.0), (90, 30, 1.2), (45, 5, 0.5)]
    ]
    beyond = [1.5 * (pose.body[4, :2] - pose.body[3, :2]) + pose.body[3, :2] for pose in poses]
    hints = moving(poses, f"point:{beyond[0][0]},{beyond[0][1]}")
    for t, pose in enumerate(poses):
        prompts = hints.at(t, pose)
        assert np.linalg.norm(prompts.inside[0] - beyond[t]) < 1 and prompts.drawn == (t == 0)
        assert not len(prompts.outside) and not prompts.boxes
    assert not len(hints.at(1, Pose.empty(SIZE)).inside), "without the person, the point is nowhere"


def test_a_box_keeps_its_distances_and_fractions_are_of_the_frame():
    poses = [figure(SIZE, 90, (60, 110)), figure(SIZE, 45, (120, 60))]
    ((x0, y0, x1, y1),) = moving(poses, "box:0.25,0.1,0.6,1").at(1, poses[1]).boxes
    left, right = poses[1].body[:, 0].min(), poses[1].body[:, 0].max()
    assert x0 == pytest.approx(left - (poses[0].body[:, 0].min() - 40) / 2, abs=1.5)
    assert x1 == pytest.approx(right + (96 - poses[0].body[:, 0].max()) / 2, abs=1.5)
    assert y0 < poses[1].body[:, 1].min() and y1 == pytest.approx(60 + 5, abs=1)


def test_hints_correct_an_outline():
    pose = figure(SIZE, 90, (60, 110))
    x, y = (int(value) for value in pose.body[1, :2])
    mask = np.zeros((120, 160), np.uint8)
    mask[y - 10 : 111, x - 15 : x + 15] = 1
    mask[20:40, 120:140] = 1
    before = mask.copy()
    other = moving([pose], "not:130,30").at(0, pose).corrected(mask, pose)
    assert not other[:, 110:].any() and np.array_equal(other[:, :110], mask[:, :110]), "another part goes as a whole"
    cut = moving([pose], f"not:{x},{y}").at(0, pose).corrected(mask, pose)
    assert not cut[y, x] and cut[y + 20, x] and cut[30, 130], "of the person, only a disc goes"
    added = moving([pose], "point:20,20").at(0, pose).corrected(mask, pose)
    assert added[20, 20] and 30 < added.sum() - mask.sum() < 120
    boxed = moving([pose], f"box:{x - 5},0,{x + 5},120").at(0, pose).corrected(mask, pose)
    assert np.flatnonzero(boxed.any(axis=0)).tolist() == list(range(x - 5, x + 5))
    assert np.array_equal(mask, before)


def test_clips_are_made_with_hints(tmp_path):
    """A mask video that shows a second person too. Frame 0 has no person, so frame 1 is that of people.jpg."""
    poses = walk(8)
    driving(tmp_path, poses)
    save_keypoints(tmp_path / "keypoints.npz", [Pose.empty(SIZE), *poses[1:]])
    masks = [np.zeros((120, 160), np.uint8) for _ in poses]
    for mask, pose in zip(masks, poses):
        mask[20:110, int(pose.body[1, 0]) - 10 : int(pose.body[1, 0]) + 10] = 255
        mask[20:110, 130:150] = 255
    write_lossless(tmp_path / "mask.mp4", masks, Fraction(30), "gray")
    Image.fromarray(picture_of(poses[0])).save(tmp_path / "reference.png")

    def clip(*hints: str) -> tuple[np.ndarray, list[str]]:
        settings = PreprocessSettings(
            mode="replace", resolution_area=160 * 112, mask_iterations=0, mask_hints=list(hints)
        )
        result = preprocess(
            tmp_path / "driving.mp4",
            tmp_path / "reference.png",
            tmp_path / "clips",
            settings,
            snapshot=None,
            models_root=tmp_path,
        )
        with FrameReader(tmp_path / "clips" / "src_mask.mp4") as reader:
            return reader.read(range(8))[..., 0] > 0, [notice.text for notice in result.warnings]

    plain, _ = clip()
    assert plain[:, :, 125:].any(axis=(1, 2)).all() and plain[:, :, :125].any(axis=(1, 2)).all()
    without, _ = clip("not:0.875,0.5")
    assert not without[1:, :, 112:].any() and np.array_equal(without[1:, :, :105], plain[1:, :, :105])
    _, told = clip("point:10,10@5")
    assert any("point:10,10@5 is not used, because the clips show 0.00 to 0.23 s" in text for text in told)


@pytest.mark.parametrize("hint", ["box:1,2,3", "box:5,5,4,9", "circle:1,2", "point:1,2@", "not:a,b", "not:1,2#0"])
def test_bad_hints_are_refused(hint):
    with pytest.raises(ValidationError, match="expected box:x0,y0,x1,y1"):
        PreprocessSettings(mask_hints=[hint])
