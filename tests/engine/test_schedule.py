import numpy as np
import pytest

from wan_orchestration.engine.schedule import make_solver, sigmas


def test_published_levels():
    """Four steps at shift 5: the values recorded from the published sampler."""
    assert np.allclose(sigmas(4, 5.0, "dpm++"), [1.0, 0.9375, 0.8333333, 0.625, 0.0])
    assert make_solver("dpm++", 4, 5.0).timesteps.tolist() == [1000, 937, 833, 625]


def test_unipc_starts_below_one():
    levels = sigmas(20, 5.0, "unipc")
    assert levels[0] == pytest.approx(5 * 0.999 / (1 + 4 * 0.999))
    assert make_solver("unipc", 20, 5.0).timesteps[0] == 999


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_many_steps_run_through(name):
    """Some of hundreds of timesteps are equal. The solver must still go through all levels."""
    import torch

    solver = make_solver(name, 400, 5.0)
    assert len(set(solver.timesteps.tolist())) < 400
    sample = torch.ones(1, 1)
    for timestep in solver.timesteps:
        sample = solver.step(sample * 0, timestep, sample, return_dict=False)[0]
    assert solver.step_index == 400
    assert torch.isfinite(sample).all()
