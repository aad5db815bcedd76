"""Fuses LoRA files into the transformer: W + strength * (alpha / rank) * B A, and differences of whole weights.

It reads keys as the tools for Wan write them: peft, diffusers, ComfyUI and the original code with dotted names, kohya
with underscores instead of dots.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wan_orchestration.engine.layouts.weight_files import read_pickle
from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.transformer.model import WanTransformer
from wan_orchestration.engine.transformer.sharding import own_rows
from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe

_PREFIX = re.compile(r"((base_model|model|diffusion_model|transformer|unet|dit|pipe)\.)*")
_UNDERSCORED = re.compile(r"(lora_unet|lora_transformer|lycoris)_+")
# Names in the original transformer that contain underscores.
_COMPOUND = re.compile(
    r"(self_attn|cross_attn|norm_k_img|norm_[qk]|[kv]_img|[qk]_norm|(?:pose_)?patch_embedding|text_embedding"
    r"|time_embedding|time_projection|img_emb|face_adapter|fuser_blocks|linear1_kv|linear1_q|face_encoder|conv1_local"
    r"|out_proj|padding_tokens|motion_encoder|net_app)|_"
)
_PARTS = {
    "down": re.compile(r"\.lora_(A|down)(\.\w+)?\.weight$"),
    "up": re.compile(r"\.lora_(B|up)(\.\w+)?\.weight$"),
    "up_bias": re.compile(r"\.lora_(B|up)(\.\w+)?\.bias$"),
    "alpha": re.compile(r"\.alpha$"),
    "diff": re.compile(r"\.diff$"),
    "diff_b": re.compile(r"\.diff_b$"),
    "diff_m": re.compile(r"\.diff_m$"),
}
"""Endings of keys. `diff_m` is the difference of a block's modulation."""
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoCon with a third matrix",
    "oft_": "OFT",
}


@dataclass(frozen=True)
class Lora:
    file: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """From `FILE` or `FILE:STRENGTH`.

        Raises:
            BadInput: the strength is not a number, or the file does not exist.
        """
        name, colon, strength = text.rpartition(":")
        if not colon or Path(text).exists():
            name, strength = text, "1"
        try:
            lora = cls(Path(name).expanduser().absolute(), float(strength))
        except ValueError:
            raise BadInput(f"lora {text!r}: the strength {strength!r} is not a number; write FILE:0.8") from None
        if not lora.file.is_file():
            raise BadInput(f"lora {text!r}: there is no file {lora.file}")
        return lora

    def version(self) -> tuple[Any, ...]:
        """Differs once the file, or the configuration beside it, has been replaced or changed."""
        return self, *(_version(file) for file in (self.file, self.config) if file)

    @property
    def config(self) -> Path | None:
        """The configuration file that peft writes beside an adapter, if any. It holds alpha if the adapter does not."""
        beside = self.file.with_name("adapter_config.json")
        return beside if self.file.stem == "adapter_model" and beside.is_file() else None


@dataclass(frozen=True)
class Change:
    """What to add to a weight: `scale * value`, or with `down` `scale * value @ down`."""

    keys: tuple[str, ...]
    """The keys in the file."""
    scale: float
    value: Tensor
    """Without `down`: shaped like the weight. With `down`: (out, rank), for a convolution (out, rank, 1, ...)."""
    down: Tensor | None = None
    """(rank, in), for a convolution (rank, in, ...)."""

    @property
    def shape(self) -> str:
        up = str(tuple(self.value.shape))
        return up if self.down is None else f"{up} x {tuple(self.down.shape)}"

    def fits(self, weight: Tensor) -> bool:
        if self.down is None:
            return self.value.shape == weight.shape
        up, down, whole = _as_matrix(self.value), _as_matrix(self.down), _as_matrix(weight)
        return up[1] == down[0] and (up[0], down[1]) == whole

    def delta(self, weight: Tensor, local: Tensor) -> Tensor:
        """The change in float32 of `local`, which is this rank's rows of `weight`, on the same device."""
        rows = own_rows(weight, self.value).to(local.device, torch.float32)
        if self.down is not None:
            rows = rows.flatten(1) @ self.down.to(local.device, torch.float32).flatten(1)
        return self.scale * rows.reshape(local.shape)


@dataclass(frozen=True)
class Changes:
    """What a LoRA changes in a model."""

    weights: Mapping[str, list[Change]]
    """By the weight's name in the model."""
    left_out: str | None
    """A message about tensors that do not fit the model. None if all of them fit."""


def fuse(model: WanTransformer, lora: Lora) -> str | None:
    """Add a LoRA to the weights it names. Returns `Changes.left_out`.

    Raises:
        BadInput: as for `changes_of`. The model is then unchanged.
    """
    changes = changes_of(model, lora)
    add(model, changes)
    return changes.left_out


@torch.no_grad()
def add(model: nn.Module, changes: Changes, device: torch.device | None = None) -> None:
    """Change a model's weights. Sums are computed in float32, on `device` or where the weights lie."""
    weights = dict(model.named_parameters())
    for name, parts in changes.weights.items():
        weight = weights[name]
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        total = local.to(device, torch.float32)
        for part in parts:
            total = total + part.delta(weight, total)
        local.copy_(total)


def changes_of(model: WanTransformer, lora: Lora) -> Changes:
    """What a LoRA changes in this model. Alpha defaults to the rank.

    Raises:
        BadInput: the file is not a LoRA or is damaged, or most of its modules do not fit the model.
    """
    tensors = _tensors(lora.file)
    modules, weights = _modules(lora.file, tensors), dict(model.named_parameters())
    dotted = {name.replace(".", "_"): name for name, _ in [*model.named_modules(), *weights.items()]}
    config = _config(lora)
    changes: dict[str, list[Change]] = defaultdict(list)
    left_out: dict[str, str] = {}
    misfits = 0
    for module, keys in modules.items():
        parts = {part: tensors[key] for part, key in keys.items()}
        wanted = list(_changes(_name(module, dotted), keys, parts, lora.strength, config))
        if not wanted:
            left_out |= dict.fromkeys(keys.values(), "it is not part of a LoRA")
        fits = 0
        for name, change in wanted:
            places = _places(model, weights, name, change)
            if reason := _misfit(weights, places):
                left_out |= dict.fromkeys(change.keys, reason)
                continue
            fits += 1
            for place, part in places.items():
                changes[place].append(part)
        misfits += not fits
    if 2 * misfits > len(modules):
        key, reason = next(iter(left_out.items()))
        raise BadInput(
            f"{lora.file}: {misfits} of its {len(modules)} modules do not fit the transformer, for instance "
            f"{key!r}: {reason}; the file was made for another model"
        )
    return Changes(changes, _message(lora.file, left_out, len(tensors)) if left_out else None)


def _modules(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """The keys of each module by part. A key that is not part of a LoRA becomes a separate module.

    Raises:
        BadInput: another kind of adapter, a module with only one of its two matrices, or no tensors.
    """
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        if kind := next((kind for sign, kind in _OTHER_KINDS.items() if sign in key), None):
            raise BadInput(
                f"{file}: {key!r} belongs to {kind}, which cannot be fused here; use a plain LoRA "
                "(lora_A and lora_B, or lora_down and lora_up)"
            )
        part, ending = next(
            ((part, match) for part, pattern in _PARTS.items() if (match := pattern.search(key))), ("other", None)
        )
        modules[key[: ending.start()] if ending else key][part] = key
    for module, keys in modules.items():
        if ("down" in keys) != ("up" in keys):
            raise BadInput(f"{file}: {module} has only one of its two LoRA matrices; the file is damaged")
    if not modules:
        raise BadInput(f"{file}: the file holds no tensors; expected pairs of LoRA matrices")
    return modules


def _name(module: str, dotted: Mapping[str, str]) -> str:
    """A module's dotted name, in diffusers' or in the original naming."""
    if prefix := _UNDERSCORED.match(module):
        underscored = module[prefix.end() :]
        return dotted.get(underscored) or _COMPOUND.sub(lambda match: match[1] or ".", underscored)
    return _PREFIX.sub("", module, count=1)


def _changes(
    module: str, keys: Mapping[str, str], parts: Mapping[str, Tensor], strength: float, config: Mapping[str, Any]
) -> Iterator[tuple[str, Change]]:
    """The name of each weight that a module's parts change, and the change."""
    if "down" in parts:
        scale = strength * _scale(module, parts["down"].shape[0], parts.get("alpha"), config)
        yield f"{module}.weight", Change((keys["down"], keys["up"]), scale, parts["up"], parts["down"])
        if "up_bias" in parts:
            yield f"{module}.bias", Change((keys["up_bias"],), scale, parts["up_bias"])
    for part, weight in (("diff", "weight"), ("diff_b", "bias"), ("diff_m", "modulation")):
        if part in parts:
            yield f"{module}.{weight}", Change((keys[part],), strength, parts[part])


def _scale(module: str, rank: int, alpha: Tensor | None, config: Mapping[str, Any]) -> float:
    """alpha / rank. In peft's configuration, a pattern matches the end of a module's name."""
    patterns = config.get("alpha_pattern") or {}
    special = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    value = float(alpha) if alpha is not None else next(special, config.get("lora_alpha") or rank)
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _places(model: WanTransformer, weights: Mapping[str, Tensor], name: str, change: Change) -> dict[str, Change]:
    """The change of each weight that `name` stands for: two for a fused key/value, none if there is no such weight."""
    for candidate in (name, name.removesuffix(".weight")):  # a modulation is a parameter, not a module with a weight
        if candidate in weights:
            return {candidate: change}
        try:
            converted = model.converted(candidate, change.value)
        except IndexError:  # the converter expects four dimensions for the motion encoder's biases
            return {}
        if converted.keys() <= weights.keys():
            return {place: replace(change, value=value) for place, value in converted.items()}
    return {}


def _as_matrix(tensor: Tensor) -> tuple[int, int]:
    return (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.dim() else (1, 1)


def _misfit(weights: Mapping[str, Tensor], places: Mapping[str, Change]) -> str | None:
    """Why a change cannot be made; None if it can."""
    if not places:
        return "there is no such weight"
    for place, change in places.items():
        if not change.fits(weights[place]):
            return f"its shape is {change.shape}, but the transformer's weight has {tuple(weights[place].shape)}"
    return None


def _message(file: Path, left_out: Mapping[str, str], total: int) -> str:
    """A message about the tensors left out. It names a key that several blocks share only once."""
    reasons = {re.sub(r"(?<=blocks[._])\d+", "*", key): reason for key, reason in left_out.items()}
    counts = Counter(re.sub(r"(?<=blocks[._])\d+", "*", key) for key in left_out)
    named = [f"{key} ({counts[key]}; {reason})" for key, reason in reasons.items()]
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    return f"LoRA {file.name}: left out {len(left_out)} of its {total} tensors: {', '.join(named[:10])}{more}"


def _config(lora: Lora) -> dict[str, Any]:
    """peft's configuration of the adapter: from the file beside it, or from its metadata, where diffusers writes it."""
    text, place = "{}", lora.file
    if lora.config:
        text, place = lora.config.read_text(), lora.config
    elif lora.file.suffix == ".safetensors":
        with safe_open(lora.file, framework="pt") as file:
            text = (file.metadata() or {}).get("lora_adapter_metadata", text)
    try:
        return {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise BadInput(f"{place}: the LoRA's configuration is not a JSON object; found {text[:80]!r}") from None


def _version(file: Path) -> tuple[int, ...] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return read_pickle(file)
    try:
        return load_file(file)
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise BadInput(f"{file} is {describe(file)}, which cannot be read as safetensors: {error}") from None
