import json
import threading
from fractions import Fraction

import numpy as np
import pytest
from figures import driving, walk

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess import frames
from wan_orchestration.preprocess.frames import DrivingVideo, batched, choose_fps, nearest_frames, prefetched
from wan_orchestration.settings.preprocess import PreprocessSettings


def test_chooses_the_published_frames_of_a_constant_rate_except_at_exact_ties(golden):
    for row in json.loads((golden / "geometry/cases.json").read_text())["frame_indices"]:
        rate, fps = (Fraction(row[name]).limit_denominator(10**8) for name in ("video_fps", "fps"))
        times = [float(i / rate) for i in range(row["frame_num"])]
        chosen = nearest_frames(times, rate, fps, 0, float(row["frame_num"] / rate), None)
        assert len(chosen) == row["target_num"]
        for i, (ours, published) in enumerate(zip(chosen, row["idx"])):
            # Halfway between two frames the published tools choose the even one, ours the earlier one.
            tie = abs(i / fps * rate % 1 - Fraction(1, 2)) < Fraction(1, 10**4)
            assert ours == published or (tie and ours == published - 1)


def test_follows_timestamps_of_a_variable_rate():
    times = [0.0, 0.1, 0.2, 1.0, 1.05, 1.1]
    assert nearest_frames(times, Fraction(10), Fraction(10), 0, 1.2, None) == [0, 1, *[2] * 8, 3, 5]


def test_start_end_and_max_frames():
    times = [i / 30 for i in range(90)]
    assert nearest_frames(times, Fraction(30), Fraction(30), 1.0, 2.0, None) == list(range(30, 60))
    assert nearest_frames(times, Fraction(30), Fraction(10), 1.0, 2.0, 4) == [30, 33, 36, 39]
    assert nearest_frames(times, Fraction(30), Fraction(30), 5.0, 3.0, None) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [("30000/1001", "30000/1001"), ("60000/1001", "30000/1001"), ("60", "30"), ("50", "25"), ("240", "30"),
     ("24", "24"), ("12", "12"), ("30.2", "30.2"), ("45.3", "30"), ("31", "30")],
)  # fmt: skip
def test_the_rate_is_the_sources_up_to_30_in_even_steps(source, expected):
    assert choose_fps(Fraction(source), None) == Fraction(expected)


def test_a_requested_rate_is_used():
    assert choose_fps(Fraction(60), 16.0) == 16
    assert choose_fps(Fraction(60), 29.97) == Fraction(2997, 100)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_the_video_can_be_iterated_over_repeatedly(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(frames, "KEPT_BYTES", memory)
    video = DrivingVideo(driving(tmp_path, walk(10)), PreprocessSettings(fps=60))
    assert len(video) == 20
    first, second = list(video), list(video)
    assert [frame.source for frame in first] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second))
    assert (first[-1] is second[-1]) == bool(memory), "a short video is decoded once"


def test_the_error_for_too_few_frames_gives_the_times(tmp_path):
    path = driving(tmp_path, walk(10))
    with pytest.raises(BadInput, match=r"driving\.mp4: 1 frames between 0\.3 and .*at least 2"):
        DrivingVideo(path, PreprocessSettings(start=0.3))


def test_prefetching_passes_items_and_errors_and_stops_with_its_consumer():
    assert list(prefetched(range(100), 3)) == list(range(100))
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    for item in prefetched(items(), 2):
        if item == 5:
            break
    assert len(made) < 20
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]

    def broken():
        yield 1
        raise BadInput("frame 1 is damaged")

    with pytest.raises(BadInput, match="frame 1"):
        list(prefetched(broken(), 2))


def test_batches():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_a_pause_repeats_the_frame_before_it():
    times = [0.0, 1 / 30, 2 / 30, 2 + 2 / 30, 2 + 3 / 30]
    places = nearest_frames(times, Fraction(30), Fraction(30), 0, 2 + 4 / 30, None)
    assert places == [0, 1, *[2] * 60, 3, 4]
    assert nearest_frames(times[::2], Fraction(30), Fraction(30), 0, 0.1, None) == [0, 0, 1]
