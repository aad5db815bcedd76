import json

import numpy as np
from figures import figure
from PIL import Image

from wan_orchestration.preprocess.drawing import draw_body, draw_hand, draw_skeleton
from wan_orchestration.preprocess.keypoints import HEAD, Pose, absent


def test_equals_the_published_drawing_to_the_pixel(golden):
    inputs = np.load(golden / "draw/inputs.npz")
    cases = json.loads((golden / "draw/cases.json").read_text())
    for name, case in cases.items():
        body = inputs[f"{name}/body"].copy()
        if not case["kwargs"].get("draw_head", True):
            body[list(HEAD), 2] = 0
        hands = inputs[f"{name}/lhand"], inputs[f"{name}/rhand"]
        canvas = np.zeros((case["H"], case["W"], 3), np.uint8)
        if case["kwargs"].get("stickwidth_type") == "v1":
            width = max(int(min(case["H"], case["W"]) / 200), 1)
            draw_body(canvas, body, width)
            for hand in hands:
                draw_hand(canvas, hand, width)
        else:
            draw_skeleton(canvas, Pose((case["W"], case["H"]), body, *hands, absent(68)))
        assert np.array_equal(canvas, np.asarray(Image.open(golden / f"draw/{name}.png"))), name


def test_uncertain_points_are_not_drawn():
    pose = figure((160, 120), 96, (80, 110))
    for part in (pose.body, pose.left_hand, pose.right_hand):
        part[:, 2] = 0.49
    assert not draw_skeleton(np.zeros((120, 160, 3), np.uint8), pose).any()
    pose.body[[2, 3], 2] = 0.5
    assert draw_skeleton(np.zeros((120, 160, 3), np.uint8), pose).any()


def test_a_missing_person_leaves_the_canvas_black():
    assert not draw_skeleton(np.zeros((120, 160, 3), np.uint8), Pose.empty((160, 120))).any()
