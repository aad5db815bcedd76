"""The noise schedule and its ODE solvers."""

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

TRAIN_TIMESTEPS = 1000

Solver = DPMSolverMultistepScheduler | UniPCMultistepScheduler


def sigmas(steps: int, shift: float, solver: str) -> np.ndarray:
    """Noise levels of the published sampler: (steps + 1,) float32 from about 1 down to 0.

    shift * s / (1 + (shift - 1) * s) for evenly spaced s, which start at 1 for dpm++ and at 0.999 for unipc. Those of
    diffusers differ by up to 2.5e-3.
    """
    start = 1.0 if solver == "dpm++" else 1 - 1 / TRAIN_TIMESTEPS
    even = np.linspace(start, 0, steps + 1)[:-1]
    return np.append(shift * even / (1 + (shift - 1) * even), 0).astype(np.float32)


def make_solver(name: str, steps: int, shift: float) -> Solver:
    """A solver with the published sigmas, ready for `step`. Its timesteps are the sigmas times 1000, truncated."""
    if name == "dpm++":
        solver: Solver = DPMSolverMultistepScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    else:
        solver = UniPCMultistepScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    solver.set_timesteps(steps)
    levels = sigmas(steps, shift, name)
    solver.sigmas = torch.from_numpy(levels)
    solver.timesteps = torch.from_numpy((levels[:-1] * TRAIN_TIMESTEPS).astype(np.int64))
    # Truncation can give two steps the same timestep, so the solver must count steps instead of looking them up.
    solver.set_begin_index(0)
    return solver
