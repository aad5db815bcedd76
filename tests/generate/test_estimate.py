"""What progress says of time, played through without any."""

from itertools import pairwise

import pytest

from wan_orchestration.generate.estimate import Estimate
from wan_orchestration.protocol.rates import Rates, keep_rates, read_rates
from wan_orchestration.stopwatch import PHASES

RATES = Rates(loading=60, compiling=30, encoding=12, denoising=4, decoding=10, finishing=3)
STEPS = 5


def play(
    expected: Rates, true: Rates, clips: int, first: int = 0, loads: bool = True, takes: int = 1
) -> tuple[list, Estimate]:
    """(seconds passed, fraction, seconds left) of each second of a run, whose phases take the true times.

    The first segment is made `takes` times.
    """
    seconds = dict.fromkeys(PHASES, 0.0)
    estimate = Estimate(expected, 1.0, clips, first, STEPS, 1, loads, seconds)
    seen = [(0.0, estimate.fraction, estimate.left)]

    def spend(phase, duration):
        while duration > 0:
            passed = min(1.0, duration)
            duration -= passed
            seconds[phase] += passed
            estimate.update(phase, seconds)
            seen.append((sum(seconds.values()), estimate.fraction, estimate.left))

    spend("encoding", 0.5)
    if loads:
        spend("loading", true.loading)
    for clip in range(first, clips):
        for take in range(takes if clip == first else 1):
            estimate.stepped(clip, 0, seconds, take)
            spend("encoding", 0 if take else true.encoding)
            if loads and clip == first and not take:
                spend("compiling", true.compiling)
            for step in range(STEPS):
                spend("denoising", true.denoising)
                estimate.stepped(clip, step + 1, seconds, take)
            spend("decoding", true.decoding)
            spend("finishing", 1 if takes > 1 else 0)  # measuring
    spend("finishing", true.finishing * clips)
    estimate.finish(seconds)
    return seen, estimate


def scaled(factor: float) -> Rates:
    return Rates(**{name: value * factor for name, value in RATES.model_dump().items()})


@pytest.mark.parametrize("factor", [0.1, 0.5, 1, 2, 10])
@pytest.mark.parametrize("clips, first, loads", [(1, 0, True), (3, 0, True), (3, 1, True), (2, 0, False)])
def test_the_fraction_grows_each_second_however_wrong_the_expectation(factor, clips, first, loads):
    seen, estimate = play(scaled(factor), RATES, clips, first, loads)
    fractions = [fraction for _, fraction, _ in seen]
    assert all(before < after for before, after in pairwise(fractions)) and fractions[-1] < 1
    assert (estimate.fraction, estimate.left) == (1, 0)
    if factor == 1:
        whole, (_, begun, _) = seen[-1][0], seen[0]
        for passed, fraction, left in seen:
            assert fraction == pytest.approx(begun + (1 - begun) * passed / whole, abs=0.03)
            assert left == pytest.approx(whole - passed, abs=0.1 * whole)


def test_segments_that_are_made_again():
    """The fraction still grows, the time left is right within a take, and no rate is learnt from what a take skips."""
    seen, estimate = play(RATES, RATES, clips=3, takes=3)
    fractions, whole = [fraction for _, fraction, _ in seen], seen[-1][0]
    assert all(before < after for before, after in pairwise(fractions)) and fractions[-1] < 1
    take = STEPS * RATES.denoising + RATES.decoding + 1
    assert all(whole - passed - 2 * take - 5 <= left <= whole - passed + 5 for passed, _, left in seen)
    assert estimate.rates.model_dump() == pytest.approx(RATES.model_dump() | {"finishing": estimate.rates.finishing})


def test_what_a_run_took_is_expected_of_the_next(tmp_path):
    _, estimate = play(Rates.guess(10**9, cuda=False), RATES, clips=2)
    learnt = estimate.rates.model_dump()
    assert learnt == pytest.approx(RATES.model_dump())
    file = tmp_path / "cache" / "seconds.json"
    assert read_rates(file, "cpu") is None
    keep_rates(file, "cpu", estimate.rates)
    keep_rates(file, "cuda", RATES)
    assert read_rates(file, "cpu") == estimate.rates and read_rates(file, "cuda") == RATES
    file.write_text("{")
    assert read_rates(file, "cpu") is None


def test_a_launch_that_has_the_weights_keeps_what_loading_takes():
    _, estimate = play(RATES, scaled(2), clips=1, loads=False)
    assert (estimate.rates.loading, estimate.rates.denoising) == (RATES.loading, 2 * RATES.denoising)
