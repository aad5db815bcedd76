"""How long the phases of a video's generation take with a snapshot on a device, as earlier runs took."""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from wan_orchestration.files import replacing


class Rates(BaseModel):
    """Seconds that phases take with one snapshot on one device, learnt from the latest segments.

    `loading` and `compiling` are for a whole launch. The others are per million pixels: of all frames of a segment for
    `encoding`, `denoising` (one forward of the transformer) and `decoding`, of the whole video for `finishing`.
    """

    loading: float = Field(ge=0)
    compiling: float = Field(default=0.0, ge=0)
    encoding: float = Field(gt=0)
    denoising: float = Field(gt=0)
    decoding: float = Field(gt=0)
    finishing: float = Field(gt=0)

    @property
    def once(self) -> float:
        """Seconds that a new launch takes apart from its segments."""
        return self.loading + self.compiling

    @classmethod
    def guess(cls, snapshot_bytes: int, cuda: bool) -> "Rates":
        """Rates to start with, before any are learnt: roughly those of a card of 2023, or of a few CPU cores."""
        loading = 2.0 + snapshot_bytes / 0.5e9
        if cuda:
            step = max(0.02, 8e-12 * snapshot_bytes)
            return cls(loading=loading, encoding=0.2, denoising=step, decoding=0.2, finishing=0.05)
        step = max(0.5, 6e-9 * snapshot_bytes)
        return cls(loading=loading, encoding=4.0, denoising=step, decoding=2.0, finishing=0.5)


_RatesByName = TypeAdapter(dict[str, Rates])


def rates_file(cache_root: Path, fingerprint: str) -> Path:
    """The file of the rates learnt with a snapshot."""
    return cache_root / fingerprint[:16] / "seconds.json"


def read_rates(file: Path, name: str) -> Rates | None:
    """The rates learnt for `name`, a device and a precision; None if there are none."""
    return all_rates(file).get(name)


def keep_rates(file: Path, name: str, rates: Rates) -> None:
    """Write the rates for later launches. Ignores a file that cannot be written."""
    kept = all_rates(file) | {name: rates}
    with suppress(OSError), replacing(file) as part:
        part.write_bytes(_RatesByName.dump_json(kept, indent=2))


def all_rates(file: Path) -> dict[str, Rates]:
    """All learnt rates by name. Empty if the file is missing or damaged."""
    try:
        return _RatesByName.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}
