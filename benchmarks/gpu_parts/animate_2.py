"""Wan-Animate-2: the pass over the driving video, and a denoising step, beside those of diffusers' transformer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gpu_parts.record import Record, Work
from gpu_parts.sizes import allow_tf32, free, peak, precision, timed
from wan_orchestration.engine.memory.placement import CONTEXT_TOKENS, SegmentShape
from wan_orchestration.engine.speed import measured_tflops
from wan_orchestration.engine.transformer.attention import choose_backend
from wan_orchestration.families.animate_2.driving import Where, Window
from wan_orchestration.families.animate_2.family import LOG_SCALE
from wan_orchestration.families.animate_2.transformer import Animate2Transformer, InContextBranch

REAL = {"640x800": SegmentShape(800, 640, 81), "720x1280": SegmentShape(1280, 720, 81)}
TINY = {"640x800": SegmentShape(80, 64, 9), "720x1280": SegmentShape(128, 80, 9)}
REAL_WIDTHS: dict[str, Any] = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "num_layers": 40,
    "text_dim": 4096,
    "freq_dim": 256,
}
TINY_WIDTHS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_dim": 128,
    "num_layers": 3,
    "text_dim": 64,
    "freq_dim": 64,
}
IMAGE_WIDTH = 1280

RUNS: dict[str, tuple[tuple[Where, bool], ...]] = {
    "640x800": (("device", False), ("device", True), ("inputs", True), ("host", True)),
    "720x1280": (("inputs", True), ("host", True)),
}
"""Where the driving video's keys and values lie, and whether the blocks are compiled. At 720x1280 there are 62 GB of
them, which do not fit beside the weights."""


def animate_2_640x800(work: Work, record: Record) -> None:
    _measure(work, record, "640x800")


def animate_2_720x1280(work: Work, record: Record) -> None:
    _measure(work, record, "720x1280")


def _measure(work: Work, record: Record, size: str) -> None:
    """Random weights of the 14B model's sizes. The engine first: the deadline may cut off the rest."""
    allow_tf32(convolutions=True)
    Engine(work, record, size).measure()
    free(work)
    try:
        Stock(work, record, size).measure()
    except Exception as error:
        record.cannot(f"{size}, stock", error)


@dataclass
class Inputs:
    """Inputs of both passes at one size, in the model's dtype."""

    latents: torch.Tensor
    """(1, 16, T, h, w)."""
    y: torch.Tensor
    """(1, 20, T, h, w)."""
    driving: torch.Tensor
    """(1, 16, T - 1, h, w)."""
    text: torch.Tensor
    image: torch.Tensor
    timestep: torch.Tensor

    @classmethod
    def draw(cls, work: Work, segment: SegmentShape, text_dim: int) -> "Inputs":
        random = torch.Generator().manual_seed(0)
        slots, height, width = (segment.frames - 1) // 4 + 2, segment.height // 8, segment.width // 8

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(work.device, precision(work))

        return cls(
            latents=noise(1, 16, slots, height, width),
            y=noise(1, 20, slots, height, width),
            driving=noise(1, 16, slots - 1, height, width),
            text=noise(1, 512, text_dim),
            image=noise(1, 257, IMAGE_WIDTH),
            timestep=torch.tensor([500], device=work.device),
        )


class Side:
    """Measures one transformer at one size."""

    def __init__(self, work: Work, record: Record, size: str) -> None:
        self.work, self.record, self.size = work, record, size
        self.segment = (TINY if work.tiny else REAL)[size]
        self.matmul = measured_tflops(torch.device(work.device), precision(work), 512 if work.tiny else 8192)
        self.widths = TINY_WIDTHS if work.tiny else REAL_WIDTHS

    def time(self, what: str, call: Callable[[], Any], flops: float) -> None:
        """Record the first call's seconds and those of a later one."""
        found: dict[str, Any] = {}
        try:
            with torch.no_grad(), peak(self.work, found):
                first = timed(self.work, call)
                seconds = timed(self.work, call)
        except Exception as error:
            self.record.cannot(f"{self.size}, {what}", error)
            return
        speed = flops / seconds / 1e12
        figures = {
            "s": seconds,
            "first, s": first,
            "TFLOP/s": speed,
            "of the matmul peak": f"{speed / self.matmul:.0%}",
        }
        self.record.row(f"{self.size}, {what}", figures | found)

    def flops(self, slots: int, driven: bool) -> float:
        """Operations of a pass over so many latent frames, without what is computed once per job."""
        widths, layers = self.widths, self.widths["num_layers"]
        dim = widths["num_attention_heads"] * widths["attention_head_dim"]
        frame = self.segment.height * self.segment.width // 256
        tokens = slots * frame
        seen = tokens + CONTEXT_TOKENS + (frame if driven else 0)
        return layers * tokens * (2 * (6 * dim**2 + 2 * dim * widths["ffn_dim"]) + 4 * seen * dim)


class Engine(Side):
    """This engine's transformer."""

    def __init__(self, work: Work, record: Record, size: str) -> None:
        from random_14b import random_weights

        super().__init__(work, record, size)
        device, dtype = torch.device(work.device), precision(work)
        self.transformer: Animate2Transformer = random_weights(partial(transformer, **self.widths), device, dtype)
        config = self.transformer.config
        self.inputs = Inputs.draw(work, self.segment, config["text_dim"])
        heads = config["num_attention_heads"], config["attention_head_dim"]
        self.attention = choose_backend("auto", device, dtype, *heads, with_lse=True)

    def measure(self) -> None:
        for where, compiled in RUNS[self.size]:
            self._measure(where, compiled, f"{'compiled' if compiled else 'not compiled'}, {self.attention}")

    @torch.no_grad()
    def _measure(self, where: Where, compiled: bool, how: str) -> None:
        one, transformer = self.inputs, self.transformer
        transformer.prepare(self.attention, None, compiled)
        transformer.keep_driving(where)
        context = transformer.cross_keys(transformer.embed_context(one.text, one.image))
        width, frame = self.segment.width // 16, self.segment.height * self.segment.width // 256

        def read() -> None:
            transformer.read_driving(one.driving, InContextBranch(context, "driving"), width)
            transformer.driving.window = Window(frame, frame, log_scale=LOG_SCALE["distilled"])

        def step() -> Any:
            return transformer.denoise(one.latents, one.timestep, one.y, InContextBranch(context))

        slots = one.latents.shape[2]
        self.time(f"driving pass, cache: {where}, {how}", read, self.flops(slots - 1, driven=False))
        self.time(f"denoising step, cache: {where}, {how}", step, self.flops(slots, driven=True))
        transformer.keep_driving(where)
        free(self.work)


class Stock(Side):
    """diffusers' transformer, compiled as its documentation asks for."""

    def measure(self) -> None:
        from diffusers import WanAnimate2Transformer3DModel
        from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
        from random_14b import random_weights

        config = self.widths
        widths = {name: config[name] for name in ("ffn_dim", "num_layers", "text_dim", "freq_dim")}
        heads = config["num_attention_heads"]
        device, dtype = torch.device(self.work.device), precision(self.work)
        dim = heads * config["attention_head_dim"]
        stock = random_weights(
            partial(WanAnimate2Transformer3DModel, dim=dim, num_heads=heads, **widths), device, dtype
        )
        if self.work.device == "cuda":
            stock.compile_repeated_blocks()
        one = Inputs.draw(self.work, self.segment, config["text_dim"])
        slots, rows, columns = one.latents.shape[2], self.segment.height // 16, self.segment.width // 16
        cache, grid = WanAnimate2KVCache(config["num_layers"]), torch.tensor([[slots - 1, rows, columns]])
        shared = {"timestep": one.timestep, "kv_cache": cache}
        shared |= {"encoder_hidden_states": [one.text[0]], "encoder_hidden_states_image": one.image}

        def read() -> Any:
            known = torch.cat([torch.ones_like(one.driving[0, :4]), one.driving[0]])
            return stock(
                [one.driving[0]],
                condition_latents=[known],
                kv_cache_mode="extract",
                seq_len=(slots - 1) * rows * columns,
                offset_grid_sizes=grid,
                **shared,
            )

        def step() -> Any:
            return stock(
                [one.latents[0]],
                condition_latents=[one.y[0]],
                kv_cache_mode="cached",
                seq_len=slots * rows * columns,
                reference_grid_sizes=grid,
                origin_len=self.segment.frames,
                origin_area=[self.segment.height, self.segment.width],
                **shared,
            )

        self.time("stock, driving pass", read, self.flops(slots - 1, driven=False))
        self.time("stock, denoising step", step, self.flops(slots, driven=True))


def transformer(**widths: Any) -> Animate2Transformer:
    dim = widths["num_attention_heads"] * widths["attention_head_dim"]
    return Animate2Transformer(
        patch_size=(1, 2, 2), in_channels=36, out_channels=16, image_dim=IMAGE_WIDTH, added_kv_proj_dim=dim, **widths
    )
