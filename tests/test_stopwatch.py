import time

import pytest

from wan_orchestration.stopwatch import PHASES, Stopwatch


def test_an_inner_phase_stops_the_outer_one():
    waits = []
    stopwatch, started = Stopwatch(lambda: waits.append(stopwatch.phase)), time.perf_counter()
    with pytest.raises(ValueError), stopwatch.during("denoising"):
        with stopwatch.during("compiling"):
            time.sleep(0.05)
        waits.clear()
        assert stopwatch.phase == "denoising"
        raise ValueError
    assert not waits, "a device that has failed is not waited for"
    spent, took = stopwatch.read(), time.perf_counter() - started
    assert stopwatch.phase == "encoding" and set(spent) == set(PHASES)
    assert spent["compiling"] >= 0.05 > spent["denoising"] and abs(sum(spent.values()) - took) < 0.005
