"""Estimates how long a video will take and what it will cost, from earlier videos with the same weights.

The planner (`wan-animate plan`) is not used: it needs torch and the speed of a device that this process may not have.
"""

import json
import math
from pathlib import Path
from statistics import median
from typing import NamedTuple

from wan_orchestration.api.models import Estimate
from wan_orchestration.defs.resources import devices_of_a_run
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.service import PriceSettings
from wan_orchestration.weights import hub

SCANNED, USED = 50, 5
"""Most earlier videos that are read, and that are used; the newest first."""

SPEED = ("quantization", "vae_dtype", "step_cache", "dtype")
"""Settings with a large effect on the speed."""


class Rates(NamedTuple):
    """Seconds that parts of a video take, as `generate/estimate.py` learns them.

    `loading` and `compiling` are for a whole video. The others are for a million generated pixels, `denoising` for one
    forward of the transformer.
    """

    loading: float
    compiling: float
    encoding: float
    denoising: float
    decoding: float
    finishing: float

    @classmethod
    def of(cls, result: Result) -> "Rates | None":
        """Of a finished video; None if it cannot be told."""
        settings, spent = result.settings, result.seconds
        if not (settings and result.width and result.height and result.segments and spent.denoise):
            return None
        if result.status != "succeeded" or result.resumed_segments:
            return None
        size = result.width * result.height * settings.clip_len * result.segments / 1e6
        denoising = spent.denoise / size / _forwards(settings)
        return cls(spent.load, spent.compile, spent.encode / size, denoising, spent.decode / size, spent.finish / size)

    def seconds(self, settings: GenerateSettings, frames: int, pixels: int, characters: int) -> float:
        segments = characters * max(1, math.ceil((frames - settings.refert_num) / settings.stride))
        size = pixels * settings.clip_len * segments / 1e6
        each = self.encoding + self.denoising * _forwards(settings) + self.decoding + self.finishing
        return self.loading + self.compiling + size * each


def estimate(env: Environment, settings: GenerateSettings, frames: int, pixels: int, characters: int = 1) -> Estimate:
    """What a video will take. `frames` are those of the clips, `pixels` those of a frame."""
    rates, basis = _rates(env, settings)
    if rates is None:
        return Estimate(seconds=None, price=None, basis=basis)
    seconds, hourly = rates.seconds(settings, frames, pixels, characters), validate(PriceSettings, {}).per_hour
    price = None if hourly is None else hourly * seconds / 3600 * devices_of_a_run()
    return Estimate(seconds=round(seconds, 1), price=price and round(price, 4), basis=basis)


def _rates(env: Environment, settings: GenerateSettings) -> tuple[Rates | None, str]:
    """How fast the weights are, and where that comes from."""
    try:
        snapshot = hub.resolve(env, allow_download=False)
    except BadInput:
        return None, "unknown: the weights are not there yet"
    earlier = _earlier(env.videos_root, snapshot.path, settings)
    if earlier:
        rates = Rates(*(median(values) for values in zip(*earlier, strict=True)))
        return rates, "from an earlier video" if len(earlier) == 1 else f"from {len(earlier)} earlier videos"
    if learnt := env.cache_root and _learnt(env.cache_root / snapshot.fingerprint[:16] / "seconds.json"):
        return learnt, "from earlier runs with the same weights"
    return None, "unknown until a first video is made with these weights"


def _earlier(videos: Path, snapshot: Path, settings: GenerateSettings) -> list[Rates]:
    """The rates of the newest videos with these weights, on the device of the newest of them."""
    files = sorted(videos.glob("*/result.json"), key=_written_at, reverse=True)[:SCANNED]
    found = [result for file in files if (result := Result.read(file)) and _snapshot(result) == snapshot]
    found = [result for result in found if result.settings and _speed(result.settings) == _speed(settings)] or found
    rates = [Rates.of(result) for result in found if result.device == found[0].device]
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
    try:
        (rates,) = json.loads(file.read_bytes()).values()
        return Rates(*(float(rates[name]) for name in Rates._fields))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _forwards(settings: GenerateSettings) -> int:
    """Forwards of the transformer in a segment."""
    return settings.sampling_steps * (2 if settings.guided else 1)


def _speed(settings: GenerateSettings) -> list[object]:
    return [getattr(settings, name) for name in SPEED]
