import json

import cv2
import numpy as np
import pytest

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.geometry import Letterbox, canvas_size, crop_face, face_box, letterbox
from wan_orchestration.preprocess.keypoints import Pose


def test_canvas_sizes_are_the_published_ones(golden):
    for row in json.loads((golden / "geometry/cases.json").read_text())["resize_by_area_size"]:
        arguments = row["w"], row["h"], row["area"], row["divisor"]
        if row["error"]:
            with pytest.raises(BadInput, match="resolution_area"):
                canvas_size(*arguments)
        else:
            assert canvas_size(*arguments) == tuple(row["out_wh"])


def test_resized_pictures_are_the_published_ones(golden):
    pictures = np.load(golden / "geometry/resize_images.npz")
    for row in json.loads((golden / "geometry/cases.json").read_text())["resize_images"]:
        picture = pictures[f"{row['key']}_in"]
        if row["fn"] == "resize_by_area":
            made = letterbox(picture, canvas_size(row["w"], row["h"], row["target_area"], row["divisor"]))
        elif row["error"]:
            with pytest.raises(BadInput, match="too narrow"):
                letterbox(picture, (row["width"], row["height"]))
            continue
        else:
            kind, border = getattr(cv2, f"INTER_{row['interpolation']}"), tuple(row["padding_color"])
            made = letterbox(picture, (row["width"], row["height"]), kind, border)
        assert np.array_equal(made, pictures[f"{row['key']}_out"]), row["key"]


def test_face_boxes_are_the_published_ones_unless_those_are_empty(golden):
    faces = np.load(golden / "geometry/face_bbox_inputs.npz")
    seen = []
    for row in json.loads((golden / "geometry/cases.json").read_text())["face_bbox"]:
        size = row["W"], row["H"]
        box = face_box(faces[row["name"]][1:] * size, size, row["scale"])
        published = row["out_x1x2y1y2"]
        if published is None or published[0] >= published[1] or published[2] >= published[3]:
            assert box is None, row["name"]
        else:
            assert box == (published[0], published[2], published[1], published[3]), row["name"]
            seen.append(row["name"])
    assert len(seen) >= 14


@pytest.mark.parametrize("shift", [(-900, 0), (900, 0), (0, -900), (0, 900)])
def test_a_face_outside_the_picture_has_no_box(shift):
    angles = np.linspace(0, 6, 68)
    face = np.column_stack([np.cos(angles), np.sin(angles)]) * 20 + (160, 120)
    assert face_box(face, (320, 240)) is not None
    assert face_box(face + shift, (320, 240)) is None


def test_a_box_at_the_border_is_cut_and_still_gives_a_crop():
    angles = np.linspace(0, 6, 68)
    face = np.column_stack([np.cos(angles), np.sin(angles)]) * 20 + (2, 118)
    box = face_box(face, (320, 120))
    assert box is not None and box[0] == 0 and box[3] == 120
    assert crop_face(np.zeros((120, 320, 3), np.uint8), box).shape == (512, 512, 3)


def test_whole_body_points_are_split_as_published(golden):
    cases = np.load(golden / "pose2d/cases.npz")
    size = np.array([1280, 720])
    for i, points in enumerate(cases["split/kp2ds"]):
        pose = Pose.from_wholebody(points, (1280, 720))
        for part in ("body", "left_hand", "right_hand", "face"):
            published = cases[f"split/keypoints_{part}"][i][1 if part == "face" else 0 :].copy()
            published[:, :2] *= size
            if part == "body" and (pose.body[:, :2] < 0).all():
                # For a body outside the picture, the published tools repeat the previous frame.
                continue
            assert np.allclose(getattr(pose, part), published, atol=1e-9), part


def test_points_move_with_the_letterboxed_picture():
    picture = np.zeros((100, 60, 3), np.uint8)
    picture[40:60, 20:40] = 255
    fit = Letterbox.into((60, 100), (160, 80))
    fitted = letterbox(picture, (160, 80))
    ys, xs = np.nonzero(fitted[..., 0] > 127)
    scale = fit.scale((60, 100))
    assert abs(xs.mean() + 0.5 - (30 * scale[0] + fit.left)) < 0.6
    assert abs(ys.mean() + 0.5 - (50 * scale[1] + fit.top)) < 0.6
