"""Estimates how long a video will take and what it will cost.

It uses earlier videos with the same weights. Without any, it uses the rates that the engine has learnt, or the planner.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from statistics import median

from wan_orchestration.api.models import Estimate
from wan_orchestration.defs.resources import cards_of_a_run, devices_of_a_run
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.protocol.devices import Card
from wan_orchestration.protocol.messages import Result
from wan_orchestration.protocol.rates import Rates, all_rates, rates_file
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.service import PriceSettings
from wan_orchestration.weights import hub

SCANNED, USED = 50, 5
"""Most earlier videos that are read, and that are used; the newest first."""

SPEED = ("quantization", "vae_dtype", "step_cache", "dtype")
"""Settings with a large effect on the speed."""
PLANNING_SECONDS = 120.0
"""Longest time that the planner may take. It imports torch, which takes about 10 s."""
LEAST = 1e-9
"""Seconds that a phase takes at least."""


class Estimator:
    """Estimates videos. The planner needs torch, so it runs in a process of its own, once for each kind of video."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._plans: dict[tuple[str, ...], Future[float | None]] = {}
        self._lock = threading.Lock()

    def estimate(
        self, settings: GenerateSettings, frames: int, width: int, height: int, characters: int = 1
    ) -> Estimate:
        """What a video of this size will take. `frames` are those of the clips."""
        try:
            snapshot = hub.resolve(self.env, allow_download=False, model=settings.model, variant=settings.variant)
        except BadInput:
            return unknown("unknown: the weights are not there yet")
        segments = characters * settings.segments(frames)
        size = width * height * settings.clip_len / 1e6
        planned = None
        if earlier := _earlier(self.env.videos_root, snapshot.path, settings):
            rates = _median(earlier)
            basis = "from an earlier video" if len(earlier) == 1 else f"from {len(earlier)} earlier videos"
        elif rates := self.env.cache_root and _learnt(rates_file(self.env.cache_root, snapshot.fingerprint)):
            basis = "from earlier runs with the same weights"
        else:
            plan = self._plan(snapshot.path, settings, width, height)
            if not plan.done():
                return unknown("the planner is working", pending=True)
            if (planned := plan.result()) is None:
                return unknown("unknown until a first video is made with these weights")
            rates, basis = Rates.guess(snapshot.bytes, cuda=True), "from the planner"
        learnt = (rates.encoding + rates.denoising * _forwards(settings) + rates.decoding) * size
        segment = learnt if planned is None else planned
        others = rates.once + segments * rates.finishing * size
        return _priced(others, segments * segment, settings.retakes, basis)

    @cached_property
    def _cards(self) -> list[Card]:
        return cards_of_a_run()

    def _plan(self, snapshot: Path, settings: GenerateSettings, width: int, height: int) -> "Future[float | None]":
        """The planner's seconds of a segment, or None if it cannot tell. Starts the planner unless it was started."""
        arguments = _planner_arguments(self._cards, snapshot, settings, width, height)
        with self._lock:
            if (plan := self._plans.get(arguments)) is None:
                plan = self._plans[arguments] = Future()
                if arguments:
                    threading.Thread(target=_run_planner, args=(arguments, plan), daemon=True).start()
                else:
                    plan.set_result(None)
            return plan


def unknown(basis: str, pending: bool = False) -> Estimate:
    return Estimate(seconds=None, most_seconds=None, price=None, most_price=None, pending=pending, basis=basis)


def _planner_arguments(
    cards: Sequence[Card], snapshot: Path, settings: GenerateSettings, width: int, height: int
) -> tuple[str, ...]:
    """Flags of `wan-animate plan` that describe a run's cards; none if the speed of one is not known."""
    tflops = min((card.tflops or 0 for card in cards), default=0)
    if not tflops:
        return ()
    return (
        f"--checkpoint-dir={snapshot}",
        f"--resolution={width}x{height}",
        f"--clip-len={settings.clip_len}",
        f"--steps={settings.sampling_steps}",
        *(["--guidance"] if settings.guided else []),
        f"--quantization={settings.quantization}",
        f"--vae-dtype={settings.vae_dtype}",
        f"--gpus={len(cards)}",
        f"--vram={min(card.memory for card in cards) / 1e9}",
        f"--tflops={tflops}",
    )


def _run_planner(arguments: tuple[str, ...], plan: "Future[float | None]") -> None:
    command = [sys.executable, "-m", "wan_orchestration.cli", "plan", "--json", *arguments]
    world = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # the cards belong to the launches
    try:
        printed = subprocess.run(command, check=True, capture_output=True, env=world, timeout=PLANNING_SECONDS).stdout
        (chosen,) = [way for way in json.loads(printed)["ways"] if way["chosen"]]
        plan.set_result(chosen["seconds"] if chosen["fits"] else None)
    except (OSError, subprocess.SubprocessError, ValueError):
        plan.set_result(None)


def _priced(others: float, segments: float, retakes: int, basis: str) -> Estimate:
    """Adds the price. `segments` are the seconds of all segments if none is made again, `others` the other seconds."""
    hourly = validate(PriceSettings, {}).per_hour
    seconds, most = others + segments, others + segments * (1 + retakes)
    price, most_price = (
        None if hourly is None else round(hourly * one / 3600 * devices_of_a_run(), 4) for one in (seconds, most)
    )
    return Estimate(
        seconds=round(seconds, 1),
        most_seconds=round(most, 1),
        price=price,
        most_price=most_price,
        pending=False,
        basis=basis,
    )


def _rates_of(result: Result) -> Rates | None:
    """Of a finished video; None if they cannot be told."""
    settings, spent = result.settings, result.seconds
    if not (settings and result.width and result.height and result.segments and spent.denoise):
        return None
    if result.status != "succeeded" or result.resumed_segments:
        return None
    size = result.width * result.height * settings.clip_len / 1e6
    shown = size * result.segments
    made = size * sum(len(one.takes) or 1 for one in result.made_segments) or shown
    return Rates(
        loading=spent.load,
        compiling=spent.compile,
        encoding=max(spent.encode / made, LEAST),
        denoising=max(spent.denoise / made / _forwards(settings), LEAST),
        decoding=max(spent.decode / made, LEAST),
        finishing=max(spent.finish / shown, LEAST),
    )


def _median(earlier: list[Rates]) -> Rates:
    return Rates(**{name: median(getattr(one, name) for one in earlier) for name in Rates.model_fields})


def _earlier(videos: Path, snapshot: Path, settings: GenerateSettings) -> list[Rates]:
    """The rates of the newest videos with these weights, on the device of the newest of them."""
    files = sorted(videos.glob("*/result.json"), key=_written_at, reverse=True)[:SCANNED]
    found = [result for file in files if (result := Result.read(file)) and _snapshot(result) == snapshot]
    found = [result for result in found if result.settings and _speed(result.settings) == _speed(settings)] or found
    rates = [_rates_of(result) for result in found if result.device == found[0].device]
    return [one for one in rates if one][:USED]


def _written_at(file: Path) -> float:
    """0 if the job was purged meanwhile: its result is then not read either."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _snapshot(result: Result) -> Path | None:
    return result.snapshot and result.snapshot.path


def _learnt(file: Path) -> Rates | None:
    """The rates that the engine keeps; None if it has used several kinds of devices, or none."""
    found = list(all_rates(file).values())
    return found[0] if len(found) == 1 else None


def _forwards(settings: GenerateSettings) -> int:
    """Forwards of the transformer in a segment."""
    return settings.sampling_steps * (2 if settings.guided else 1)


def _speed(settings: GenerateSettings) -> list[object]:
    return [getattr(settings, name) for name in SPEED]
