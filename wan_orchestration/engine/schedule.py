"""The noise schedule and its ODE solvers."""

from typing import Any, Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

TRAIN_TIMESTEPS = 1000


class Solver(Protocol):
    """A diffusers scheduler."""

    timesteps: Tensor

    @property
    def step_index(self) -> int | None: ...

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool) -> Any: ...


def sigmas(steps: int, shift: float, solver: str) -> np.ndarray:
    """Noise levels of the published sampler: (steps + 1,) float32 from about 1 down to 0.

    shift * s / (1 + (shift - 1) * s) for evenly spaced s, which start at 0.999 for unipc and at 1 for the
    others. Those of diffusers differ by up to 2.5e-3.
    """
    start = 1 - 1 / TRAIN_TIMESTEPS if solver == "unipc" else 1.0
    even = np.linspace(start, 0, steps + 1)[:-1]
    return np.append(shift * even / (1 + (shift - 1) * even), 0).astype(np.float32)


def make_solver(name: str, steps: int, shift: float) -> Solver:
    """A solver with the published sigmas, ready for `step`. Its timesteps are the sigmas times 1000, truncated."""
    solver: Any
    if name == "dpm++":
        solver = DPMSolverMultistepScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    elif name == "euler":
        solver = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS)
    else:
        solver = UniPCMultistepScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    solver.set_timesteps(steps)
    levels = sigmas(steps, shift, name)
    solver.sigmas = torch.from_numpy(levels)
    timesteps = (levels[:-1] * TRAIN_TIMESTEPS).astype(np.int64)
    # Euler's class refuses integers.
    solver.timesteps = torch.from_numpy(timesteps.astype(np.float32) if name == "euler" else timesteps)
    # Truncation can give two steps the same timestep, so the solver must count steps instead of looking them up.
    solver.set_begin_index(0)
    return solver
