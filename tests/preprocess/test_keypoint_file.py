import json

import numpy as np
import pytest
from figures import figure, save_keypoints, walk

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.keypoint_file import KeypointFile, find_keypoints

SIZE = (160, 120)
BODY_25 = dict(zip(range(18), [*range(8), *range(9, 19)]))


def frame(source: int, time: float = 0.0, size: tuple[int, int] = SIZE) -> Frame:
    return Frame(source, time, np.zeros((size[1], size[0], 3), np.uint8))


def openpose(pose) -> dict:
    """A person as OpenPose writes it: BODY_25, two toes per foot, zeros for missing points."""
    body = np.zeros((25, 3))
    for ours, theirs in BODY_25.items():
        body[theirs] = pose.body[ours]
    for toe, pair in {18: (19, 20), 19: (22, 23)}.items():
        body[list(pair)] = pose.body[toe]
    face = np.concatenate([pose.face, np.zeros((2, 3))])
    return {
        "pose_keypoints_2d": body.ravel().tolist(),
        "hand_left_keypoints_2d": pose.left_hand.ravel().tolist(),
        "hand_right_keypoints_2d": pose.right_hand.ravel().tolist(),
        "face_keypoints_2d": face.ravel().tolist(),
    }


def read(estimator: KeypointFile, at: Frame):
    (people,) = estimator.detect([at])
    return estimator.estimate([at], people[:1])[0]


def same(a, b) -> bool:
    return all(
        np.allclose(getattr(a, part), getattr(b, part), atol=1e-3)
        for part in ("body", "left_hand", "right_hand", "face")
    )


def test_npz_and_every_kind_of_openpose_json_give_the_same_poses(tmp_path):
    poses = walk(4)
    save_keypoints(tmp_path / "keypoints.npz", poses)
    frames = [{"people": [openpose(pose)]} for pose in poses]
    (tmp_path / "list.json").write_text(json.dumps(frames))
    (tmp_path / "frames.json").write_text(json.dumps({"frames": frames, "fps": 30}))
    (tmp_path / "folder").mkdir()
    for i, content in enumerate(frames):
        (tmp_path / f"folder/clip_{i + 98}_keypoints.json").write_text(json.dumps(content))
    for name in ("keypoints.npz", "list.json", "frames.json", "folder"):
        estimator = KeypointFile(tmp_path / name, 4)
        for i in range(4):
            assert same(read(estimator, frame(i, i / 30)), poses[i]), name


def test_whole_body_points_normalised_coordinates_and_another_size(tmp_path):
    pose = walk(1)[0]
    body = pose.body[None]
    np.savez(tmp_path / "parts.npz", body=body / (160, 120, 1))
    np.savez(tmp_path / "double.npz", body=body * (2, 2, 1), size=(320, 240))
    for name in ("parts.npz", "double.npz"):
        assert np.allclose(read(KeypointFile(tmp_path / name, 1), frame(0)).body, pose.body, atol=1e-3)
    whole = np.random.default_rng(0).uniform(20, 90, (2, 133, 3))
    whole[..., 2] = 0.7
    np.savez(tmp_path / "whole.npz", keypoints=whole)
    found = read(KeypointFile(tmp_path / "whole.npz", 2), frame(1))
    assert np.allclose(found.right_hand, whole[1, 112:])


def test_missing_points(tmp_path):
    person = openpose(walk(1)[0])
    person["pose_keypoints_2d"][4 * 3 : 4 * 3 + 3] = [0, 0, 0]
    del person["hand_left_keypoints_2d"]
    (tmp_path / "k.json").write_text(json.dumps([{"people": [person]}, {"people": []}]))
    estimator = KeypointFile(tmp_path / "k.json", 2)
    pose = read(estimator, frame(0))
    assert pose.body[4, 2] == 0 and np.isnan(pose.body[4, :2]).all()
    assert not pose.has("left_hand") and pose.has("right_hand")
    assert estimator.detect([frame(1)]) == [[]]


def test_a_file_with_another_rate_is_paired_by_time(tmp_path):
    poses = walk(20)
    save_keypoints(tmp_path / "k.npz", poses, fps=100)
    estimator = KeypointFile(tmp_path / "k.npz", 6)
    assert same(read(estimator, frame(5, 0.1)), poses[10])


def test_people_get_the_boxes_that_their_bodies_cover(tmp_path):
    far, near = figure(SIZE, 40, (40, 80)), figure(SIZE, 100, (140, 115))
    near.right_hand[:] = *SIZE, 0.3  # a guess
    (tmp_path / "k.json").write_text(json.dumps([{"people": [openpose(far), openpose(near)]}]))
    (people,) = KeypointFile(tmp_path / "k.json", 1).detect([frame(0)])
    # Bodies from face to toes and elbow to elbow, a tenth of the height more on each side, within the frame.
    assert np.allclose([person.box for person in people], [(29, 37, 51, 84), (115, 7, 160, 120)], atol=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.json", "nonsense", "cannot be read as JSON"),
        ("k.json", "[]", "has no frames"),
        ("k.json", '[{"persons": []}]', "frame 0 has no list of people"),
        ("k.json", '[{"people": [{"pose_keypoints_2d": [1, 2]}]}]', "expected numbers x, y, confidence"),
        ("k.json", '[{"people": [{"pose_keypoints_2d": [1, 2, 0.5]}]}]', r"expected \(frames, 20, 3\)"),
        ("k.json", '[{"people": []}, {"people": []}]', "keypoints of 2 frames, expected 1"),
        ("k.npz", "nonsense", "cannot be read as an npz"),
        ("k.txt", "", r"expected keypoints as \.npz"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=rf"{name}.*{message}"):
        KeypointFile(tmp_path / name, 1)


def test_wrong_arrays_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", joints=np.zeros((2, 20, 3)))
    with pytest.raises(BadInput, match=r"found \['joints'\], expected body"):
        KeypointFile(tmp_path / "a.npz", 2)
    np.savez(tmp_path / "b.npz", body=np.zeros((2, 17, 3)))
    with pytest.raises(BadInput, match=r"body has shape \(2, 17, 3\)"):
        KeypointFile(tmp_path / "b.npz", 2)
    np.savez(tmp_path / "c.npz", body=np.full((2, 20, 3), 1e30))
    with pytest.raises(BadInput, match="coordinates beyond"):
        KeypointFile(tmp_path / "c.npz", 2)
    np.savez(tmp_path / "d.npz", body=np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        KeypointFile(tmp_path / "d.npz", 2)


def test_keypoints_are_found_beside_the_video(tmp_path):
    driving = tmp_path / "driving.mp4"
    assert find_keypoints(driving, None) is None
    (tmp_path / "keypoints").mkdir()
    assert find_keypoints(driving, None) == tmp_path / "keypoints"
    (tmp_path / "mine.npz").touch()
    assert find_keypoints(driving, "mine.npz") == tmp_path / "mine.npz"
    assert find_keypoints(driving, "other.npz") is None
