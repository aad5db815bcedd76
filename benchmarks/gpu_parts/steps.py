"""A denoising step: the stock transformer compared with the engine's, eager, compiled, and with each kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpu_parts.machine import has
from gpu_parts.record import Record, Skipped, Work
from gpu_parts.sizes import allow_tf32, engine_sizes, free, models, peak, precision, psnr, shape, timed
from wan_orchestration.engine.memory.placement import CONTEXT_TOKENS
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.speed import forward_flops, measured_tflops
from wan_orchestration.engine.transformer.attention import EXACT, KERNELS, choose_backend
from wan_orchestration.families.animate.transformer import FaceBranch

AIM_SECONDS = {"480p": 2.9, "720p": 11.1}
AIM_TIMES_STOCK = 1.9
PLAN_SHARE = 0.1


def steps_480p(work: Work, record: Record) -> None:
    Steps(work, record, "480p", warm_up=1, times=2).measure()


def steps_720p(work: Work, record: Record) -> None:
    # One measurement of each: a stock step takes half a minute.
    Steps(work, record, "720p", warm_up=0, times=1).measure()


def fp8_480p(work: Work, record: Record) -> None:
    """8-bit weights, multiplied in 8 bits or in bfloat16."""
    work.need_cuda()
    if not has("torchao"):
        raise Skipped("torchao is not installed (uv sync --extra fp8)")
    for how in ("fp8_matmul", "fp8"):
        try:
            one = Steps(work, record, "480p", warm_up=1, times=2, quantization=how)
            one.engine(f"{how}, not compiled", compiled=False)
            one.engine(f"{how}, compiled", compiled=True)
        except Exception as error:
            record.cannot(how, error)
        one = None
        free(work)


@dataclass
class Inputs:
    """Inputs of one step, named as in `AnimateTransformer.denoise`, and those of the stock transformer."""

    latents: torch.Tensor
    y: torch.Tensor
    timestep: torch.Tensor
    pose: torch.Tensor
    text: torch.Tensor
    image: torch.Tensor
    face: np.ndarray


class Steps:
    """Denoising steps at one size on one transformer."""

    def __init__(
        self, work: Work, record: Record, size: str, warm_up: int, times: int, quantization: str | None = None
    ) -> None:
        self.work, self.record, self.size = work, record, size
        self.warm_up, self.times = warm_up, times
        allow_tf32(convolutions=True)
        self.transformer = self._make(quantization)
        config = self.transformer.config
        self.heads = config["num_attention_heads"], config["attention_head_dim"]
        self.segment, self.sizes = shape(work, size), engine_sizes(work)
        self.flops = forward_flops(self.sizes, self.segment)
        device = torch.device(work.device)
        self.matmul = measured_tflops(device, precision(work), 512 if work.tiny else 8192)
        self.auto = choose_backend("auto", device, precision(work), *self.heads)
        self.inputs = self._draw()
        self.conditions: tuple[torch.Tensor, FaceBranch] | None = None
        self.first: np.ndarray | None = None
        self.stock_seconds: float | None = None
        self.exact = quantization is None

    def measure(self) -> None:
        """The most important first, because the deadline may cut off the rest."""
        self._load_libraries()
        self.stock()
        self.engine(f"engine, not compiled, {self.auto}", compiled=False)
        self.engine(f"engine, compiled, {self.auto}", compiled=True)
        for name in KERNELS:
            if name != self.auto:
                self.engine(f"engine, not compiled, {name}", compiled=False, attention=name)

    @torch.no_grad()
    def _load_libraries(self) -> None:
        """Run a step on a corner of the picture, so that no timed step waits for kernels to load."""
        self.transformer.prepare(self.auto, None)
        (pose, branch), one = self._conditions(), self.inputs
        corner = one.latents[..., :8, :8], one.timestep, one.y[..., :8, :8], pose[..., :4, :4], branch
        self.transformer.denoise(*corner)

    @torch.no_grad()
    def stock(self) -> None:
        """`WanAnimateTransformer3DModel.forward` on the same tensors, as the stock pipeline calls it at each step."""
        from random_14b import stock_beside

        from wan_orchestration.engine.conditioning import to_tensor

        one, forward = self.inputs, stock_beside(self.transformer).forward
        face = to_tensor(one.face, one.latents.device).to(precision(self.work))

        def step() -> torch.Tensor:
            return forward(
                hidden_states=torch.cat([one.latents, one.y], dim=1),
                timestep=one.timestep,
                encoder_hidden_states=one.text,
                encoder_hidden_states_image=one.image,
                pose_hidden_states=one.pose,
                face_pixel_values=face,
                return_dict=False,
            )[0]

        self.stock_seconds = self._time("stock forward", step)

    @torch.no_grad()
    def engine(self, what: str, compiled: bool, attention: str = "") -> None:
        attention, one = attention or self.auto, self.inputs
        try:
            choose_backend(attention, torch.device(self.work.device), precision(self.work), *self.heads)
        except Exception as error:
            self.record.cannot(what, error)
            return
        compilation = self.transformer.prepare(attention, None, compiled)
        pose, branch = self._conditions()
        exact = self.exact and attention in EXACT

        def step() -> torch.Tensor:
            return self.transformer.denoise(one.latents, one.timestep, one.y, pose, branch)

        seconds = self._time(what, step, compiled=compiled, exact=exact)
        if compiled and not compilation.compiled:
            self.record.cannot(f"{what}: was not compiled", compilation.error or "the reason is not known")
        if seconds and self.exact and not compiled and attention == self.auto:
            self._against_plan(step)

    def _time(self, what: str, step: Callable[[], Any], compiled: bool = False, exact: bool = False) -> float | None:
        """Record the seconds of a step. Returns None if it fails."""
        found: dict[str, Any] = {}
        outputs: list[torch.Tensor] = []

        def call() -> None:
            outputs[:] = [step()]

        ours = what != "stock forward"
        try:
            with peak(self.work, found):
                first = timed(self.work, call) if compiled or self.warm_up else 0.0
                seconds = timed(self.work, call, self.times)
        except Exception as error:
            self.record.cannot(what, error)
            free(self.work)
            return None
        tflops = self.flops / seconds / 1e12
        figures: dict[str, Any] = {
            "s a step": seconds,
            "TFLOP/s": tflops,
            "of the matmul peak": f"{tflops / self.matmul:.0%}",
        }
        if ours and self.stock_seconds:
            figures["times stock"] = self.stock_seconds / seconds
        figures |= found
        if compiled:
            figures["compiling, s"] = max(0.0, first - seconds)
        # Compared with the stock forward, which runs first.
        values = outputs[0].float().cpu().numpy()
        if self.first is not None:
            figures["PSNR against the first, dB"] = psnr(values, self.first)
        else:
            self.first = values
        aim, met = self._aim(seconds) if exact and compiled else ("", None)
        kept = {"size": self.size, "step": seconds} if exact else {}
        self.record.row(f"{self.size}, {what}", figures, aim, met, **kept)
        return seconds

    def _aim(self, seconds: float) -> tuple[str, bool | None]:
        most = AIM_SECONDS[self.size]
        text = f"<= {most:g} s and >= {AIM_TIMES_STOCK:g} times stock (one H100)"
        fast = self.stock_seconds is not None and self.stock_seconds / seconds >= AIM_TIMES_STOCK
        return text, None if self.work.tiny else seconds <= most and fast

    def _against_plan(self, step: Callable[[], Any]) -> None:
        """Compare the peak of a denoising step with the plan of placement `resident`."""
        if self.work.device != "cuda":
            return
        sizes, found = self.sizes, {}
        keys = sizes.layers * 2 * CONTEXT_TOKENS * sizes.dim * sizes.itemsize
        maps = int(sizes.peak_maps[0] * self.segment.tokens * sizes.dim * sizes.itemsize)
        plan = (sizes.transformer + keys + maps) / 1e9
        free(self.work)
        with peak(self.work, found):
            step()
        share = found["peak GB"] / plan - 1
        figures = found | {"plan GB": plan, "off by": f"{share:+.1%}"}
        met = abs(share) <= PLAN_SHARE
        self.record.row(f"{self.size}, memory of a step, resident", figures, "within 10 % of the plan", met)

    def _conditions(self) -> tuple[torch.Tensor, FaceBranch]:
        """What the engine computes once a segment. All measurements use the same."""
        if self.conditions is None:
            one, transformer = self.inputs, self.transformer
            context = transformer.cross_keys(transformer.embed_context(one.text, one.image))
            branch = FaceBranch(context, motion=transformer.encode_face(one.face, Ranks()))
            self.conditions = transformer.embed_pose(one.pose), branch
        return self.conditions

    def _make(self, quantization: str | None) -> Any:
        if quantization is None:
            return models(self.work).transformer()
        from random_14b import random_weights, transformer_14b

        from wan_orchestration.engine.memory.quantize import quantize

        transformer = random_weights(transformer_14b, torch.device("cuda"), torch.bfloat16)
        quantize(transformer, quantization, torch.device("cuda"))
        return transformer

    def _draw(self) -> Inputs:
        config, segment, dtype = self.transformer.config, self.segment, precision(self.work)
        random = torch.Generator().manual_seed(0)
        slots, height, width = (segment.frames - 1) // 4 + 2, segment.height // 8, segment.width // 8

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(self.work.device, dtype)

        side = config["motion_encoder_size"]
        return Inputs(
            latents=noise(1, 16, slots, height, width),
            y=noise(1, 20, slots, height, width),
            timestep=torch.tensor([500], device=self.work.device),
            pose=noise(1, 16, slots - 1, height, width),
            text=noise(1, 512, config["text_dim"]),
            image=noise(1, 257, config["image_dim"]),
            face=np.random.default_rng(0).integers(0, 256, (segment.frames, side, side, 3), np.uint8),
        )
