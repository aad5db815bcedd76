import numpy as np
import pytest

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Detection
from wan_orchestration.preprocess.tracking import Choice, Tracker, Trackers
from wan_orchestration.settings.preprocess import PreprocessSettings


def person(x: float, y: float = 100, width: float = 60, height: float = 160) -> Detection:
    return Detection((x - width / 2, y - height / 2, x + width / 2, y + height / 2), 0.9)


def tracker(choice: str = "largest") -> Tracker:
    return Tracker(Choice.parse(choice), 30, (640, 360))


def test_follows_the_person_when_another_becomes_larger():
    follow = tracker()
    for t in range(60):
        near = person(100 + t)
        other = person(500 - t, width=30 + 3 * t, height=60 + 5 * t)
        assert follow.follow(t, [other, near]) is near


def test_follows_the_person_while_two_cross():
    follow = tracker("point:105,100")
    for t in range(60):
        a, b = person(100 + 6 * t), person(460 - 6 * t, y=112)
        assert follow.follow(t, [b, a]) is a


def test_waits_for_a_person_hidden_for_a_moment():
    follow = tracker()
    for t in range(10):
        follow.follow(t, [person(100 + 2 * t)])
    for t in range(10, 20):
        assert follow.follow(t, [person(500)]) is None
    back = person(100 + 2 * 20)
    assert follow.follow(20, [person(500), back]) is back
    assert follow.found_elsewhere == []


def test_a_switch_is_reported():
    follow = tracker()
    follow.follow(0, [person(100)])
    for t in range(1, 31):
        assert follow.follow(t, [person(500)]) is None
    assert follow.follow(31, [person(500)]) is not None
    assert follow.found_elsewhere == [31]


@pytest.mark.parametrize("choice", ["point:10,10", "box:600,300,640,360"])
def test_a_point_or_box_without_a_person_in_the_first_second_is_refused(choice):
    follow = tracker(choice)
    for t in range(10):
        assert follow.follow(t, []) is None
    follow.check_choice()
    told = rf"person: found '{choice}', but .* frame 10 \(0\.33 s, 640x360 px\) shows 1 in box:70,20,130,180, 2 in"
    with pytest.raises(BadInput, match=told):
        for t in range(10, 40):
            assert follow.follow(t, [person(500, width=50), person(100)]) is None
    assert t == 39


def test_a_point_waits_a_second_for_the_person_and_an_index_for_more_people():
    at_once = tracker("point:100,100")
    assert at_once.follow(0, [person(300)]) is None
    assert at_once.follow(1, [person(300), person(100)]) is not None
    second = tracker("index:2")
    for t in range(90):
        assert second.follow(t, [person(300)]) is None
    with pytest.raises(
        BadInput, match=r"'index:2', but no frame shows more than 1; frame 0 .* 1 in box:270,20,330,180; write"
    ):
        second.check_choice()
    assert second.follow(90, [person(300), person(100, width=20)]) is not None
    second.check_choice()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("largest", 1),
        ("index:1", 1),
        ("index:2", 0),
        ("index:4", None),
        ("point:500,100", 2),
        ("point:0.78,0.28", 2),
        ("point:10,10", None),
        ("box:60,20,140,180", 0),
        ("box:0.1,0.05,0.22,0.5", 0),
        ("box:485,30,510,50", 2),
        ("box:600,300,640,360", None),
    ],
)
def test_choices(choice, expected):
    people = [person(100), person(300, width=100), person(500, width=50)]
    picked = Choice.parse(choice).pick(people, (640, 360))
    assert picked is (None if expected is None else people[expected])


@pytest.mark.parametrize(
    "text", ["", "tallest", "index:0", "index:1.5", "box:1,2,3", "point:1", "point:1,2,3", "point:-1,2"]
)
def test_the_settings_refuse_other_choices(text):
    with pytest.raises(ValueError, match="expected largest"):
        PreprocessSettings(person=text)


def test_an_empty_box_is_refused():
    with pytest.raises(BadInput, match="x0 < x1"):
        Choice.parse("box:10,10,5,20")


def painted(people: dict[str, Detection]) -> np.ndarray:
    """A frame in which each person is of their colour; the last one stands in front."""
    pixels = np.full((360, 640, 3), 90, np.uint8)
    for colour, one in people.items():
        x0, y0, x1, y1 = (round(edge) for edge in one.box)
        pixels[y0:y1, x0:x1] = {"red": (200, 30, 30), "blue": (30, 30, 200)}[colour]
    return pixels


@pytest.mark.parametrize("turns", [False, True])
def test_two_followed_people_are_not_confused_when_they_meet(turns):
    """They walk towards each other, are hidden by each other for a while, then go on or turn round."""
    both = Trackers([Choice.parse("point:100,100"), Choice.parse("point:460,100")], 30, (640, 360))
    for t in range(90):
        way = 4 * t if t < 45 or not turns else 4 * (90 - t)
        people = {"red": person(100 + way), "blue": person(460 - way)}
        hidden = abs(people["red"].box[0] - people["blue"].box[0]) < 30
        seen = [people["blue"]] if hidden else [people["blue"], people["red"]]
        assert both.follow(t, seen, painted(people)) == [None if hidden else people["red"], people["blue"]]


def test_two_choices_of_one_person_are_refused():
    both = Trackers([Choice.parse("largest"), Choice.parse("point:100,100")], 30, (640, 360))
    with pytest.raises(BadInput, match=r"characters 1 and 2 mean the same person: largest and point:100,100"):
        both.follow(0, [person(100, width=80), person(300)], np.zeros((360, 640, 3), np.uint8))
