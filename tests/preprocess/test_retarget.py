import json
from dataclasses import replace

import numpy as np
import pytest
from figures import figure, walk

from wan_orchestration.preprocess.keypoints import (
    LEFT_ANKLE,
    LEFT_WRIST,
    LIMBS,
    NECK,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_HIP,
    RIGHT_WRIST,
    Pose,
    absent,
)
from wan_orchestration.preprocess.motion import Motion
from wan_orchestration.preprocess.retarget import Retargeting
from wan_orchestration.preprocess.retarget_published import PublishedRetargeting

LEFT_OUT = {
    "edit_fallback_scale": "poses of pictures edited by FLUX are out of scope",
    "ref_none_ear": "the published tools stop",
}
HANDS_LEFT_OUT = {"hands_swapped", "arms_crossed_later"}


def golden_pose(cases, prefix: str) -> Pose:
    size = cases[f"{prefix}/wh"]

    def points(name: str) -> np.ndarray:
        found = cases[f"{prefix}/keypoints_{name}"].astype(np.float64)
        found[:, :2] *= size
        found[np.isnan(found).any(axis=1), 2] = 0
        return found

    hands = points("left_hand"), points("right_hand")
    return Pose((int(size[0]), int(size[1])), points("body"), *hands, absent(68))


def test_published_rule_gives_the_published_poses(golden):
    cases = np.load(golden / "retarget/cases.npz")
    compared = 0
    for case in json.loads((golden / "retarget/cases.json").read_text()):
        name = case["name"]
        if name in LEFT_OUT or case["error"]:
            continue
        fitted = PublishedRetargeting(golden_pose(cases, f"{name}/tpl0"), golden_pose(cases, f"{name}/ref"))
        for t in range(case["frames"]):
            pose = fitted(golden_pose(cases, f"{name}/tpl/{t}"), t)
            out = f"{name}/out/{t}"
            assert pose.size == tuple(cases[f"{out}/wh"])
            assert np.allclose(pose.body[:, :2], cases[f"{out}/body"], rtol=0, atol=1e-6), (name, t)
            assert np.allclose(pose.body[:, 2], cases[f"{out}/body_p"])
            if name not in HANDS_LEFT_OUT:
                # The published "lhand" holds the person's right hand.
                for hand, published in ((pose.right_hand, "lhand"), (pose.left_hand, "rhand")):
                    assert np.array_equal(hand[:, :2], cases[f"{out}/{published}"], equal_nan=True), (name, t)
                    assert np.allclose(hand[:, 2], cases[f"{out}/{published}_p"])
            compared += 1
    assert compared >= 45


def test_published_rule_leaves_out_a_missing_joint(golden):
    cases = np.load(golden / "retarget/cases.npz")
    fitted = PublishedRetargeting(golden_pose(cases, "ref_none_ear/tpl0"), golden_pose(cases, "ref_none_ear/ref"))
    body = fitted(golden_pose(cases, "ref_none_ear/tpl/1"), 1).body
    assert body[16, 2] == 0 and np.isnan(body[16, :2]).all()
    assert np.isfinite(np.delete(body, 16, axis=0)).all()


def lengths(pose: Pose) -> np.ndarray:
    starts, ends = zip(*LIMBS)
    return np.linalg.norm(pose.body[list(ends), :2] - pose.body[list(starts), :2], axis=1)


def test_limbs_get_the_characters_lengths_and_keep_the_drivers_directions():
    poses = walk(12)
    character = figure((320, 240), 180, (160, 220), stretch={2: 1.4, 4: 1.4, 8: 0.7, 11: 0.7})
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), character, 30)
    made = fitted(poses[5])
    assert made.size == (320, 240)
    assert np.allclose(lengths(made), lengths(character), rtol=0.02)
    for parent, child in LIMBS:
        was = poses[5].body[child, :2] - poses[5].body[parent, :2]
        now = made.body[child, :2] - made.body[parent, :2]
        assert np.dot(was, now) / np.linalg.norm(was) / np.linalg.norm(now) > 0.9999


def test_the_same_build_stays_where_it_is():
    poses = [figure((160, 120), 96, (80, 108))] * 5
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), poses[0], 30)
    assert fitted.anchor == "ankles"
    for part in ("body", "left_hand", "right_hand"):
        assert np.allclose(getattr(fitted(poses[0]), part), getattr(poses[0], part), atol=1e-3)


def test_the_driver_stands_on_the_pictures_ground_and_its_walk_is_scaled():
    poses = walk(40)
    character = figure((320, 240), 192, (160, 220))
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), character, 10)
    start, end = fitted(poses[0]).body, fitted(poses[-1]).body
    assert max(start[[RIGHT_ANKLE, LEFT_ANKLE], 1]) == pytest.approx(
        max(character.body[[RIGHT_ANKLE, LEFT_ANKLE], 1]), abs=0.5
    )
    walked = poses[-1].body[NECK, 0] - poses[0].body[NECK, 0]
    assert end[NECK, 0] - start[NECK, 0] == pytest.approx(2 * walked, rel=0.02)


def test_a_foreshortened_first_frame_does_not_stretch_the_limbs():
    poses = walk(30)
    squashed = poses[0].body.copy()
    squashed[[3, 4], :2] = squashed[2, :2] + (1, 1)
    poses[0] = replace(poses[0], body=squashed)
    character = figure((160, 120), 96, (80, 108))
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), character, 30)
    assert np.allclose(fitted.ratios, 1, atol=0.03)
    published = PublishedRetargeting(poses[0], character)
    assert published.ratios.max() > 3


def test_an_uncertain_ankle_changes_nothing_else():
    poses = walk(20)
    character = figure((160, 120), 96, (80, 108))
    sane = Retargeting.fit(Motion.from_poses((160, 120), poses), character, 30)(poses[7])
    guessed = character.body.copy()
    guessed[[RIGHT_ANKLE, 19]] = (5000, -3000, 0.3)
    wild = poses[7].body.copy()
    wild[RIGHT_ELBOW] = (900, 900, 0.2)
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), replace(character, body=guessed), 30)
    assert fitted.ratios.max() <= 2 and fitted.ratios.min() >= 0.5
    made = fitted(replace(poses[7], body=wild))
    others = [joint for joint in range(20) if joint not in (RIGHT_ELBOW, RIGHT_ANKLE, 19)]
    assert np.allclose(made.body[others, :2], sane.body[others, :2], atol=2)
    assert made.body[RIGHT_ELBOW, 2] == 0.2


def test_crossed_hands_stay_at_their_own_wrists():
    poses = walk(10)
    body = poses[3].body.copy()
    body[[LEFT_WRIST, RIGHT_WRIST]] = body[[RIGHT_WRIST, LEFT_WRIST]]
    crossed = replace(poses[3], body=body, left_hand=poses[3].right_hand, right_hand=poses[3].left_hand)
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), figure((320, 240), 180, (160, 220)), 30)
    made = fitted(crossed)
    assert np.allclose(made.left_hand[0, :2], made.body[LEFT_WRIST, :2])
    assert np.allclose(made.right_hand[0, :2], made.body[RIGHT_WRIST, :2])


def test_a_picture_of_half_a_body_is_matched_by_its_visible_part():
    poses = walk(10)
    character = figure((320, 240), 400, (160, 500))
    character.body[[9, 10, 12, 13, 18, 19], 2] = 0.05
    fitted = Retargeting.fit(Motion.from_poses((160, 120), poses), character, 30)
    assert fitted.anchor == "hips"
    hips = np.median([fitted(pose).body[RIGHT_HIP, :2] for pose in poses], axis=0)
    assert np.allclose(hips, character.body[RIGHT_HIP, :2], atol=1)


def test_no_limb_in_common():
    poses = walk(4)
    assert Retargeting.fit(Motion.from_poses((160, 120), poses), Pose.empty((64, 64)), 30) is None
