"""LoRA files, fused into the transformer: W + strength * (alpha / rank) * B A."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wan_orchestration.animate.original_layout import convert_transformer, read_pickle
from wan_orchestration.animate.sharding import own_rows
from wan_orchestration.errors import BadInput

_PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "model.")
_DOWN = ("lora_A.weight", "lora_A.default.weight", "lora_down.weight")
_UP = ("lora_B.weight", "lora_B.default.weight", "lora_up.weight")


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


@torch.no_grad()
def fuse(model: nn.Module, lora: Lora) -> None:
    """Add a LoRA to the weights it names, in float32, whatever their dtype.

    Keys may be those of the original code, of diffusers, peft or kohya; alpha defaults to the rank.

    Raises:
        BadInput: a key of the file matches no weight of the model, or its shape does not.
    """
    pairs, alphas = _read(lora.file)
    weights = dict(model.named_parameters())
    unmatched = []
    for module, (down, up) in pairs.items():
        name = f"{module}.weight"
        if name not in weights:
            name = next(iter(convert_transformer(name, up)))
        if name not in weights:
            unmatched.append(module)
            continue
        weight = weights[name]
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise BadInput(
                f"{lora.file}: {module} is a LoRA {tuple(up.shape)} x {tuple(down.shape)}, but the transformer's "
                f"weight is {tuple(weight.shape)}; the file was made for another model"
            )
        scale = lora.strength * alphas.get(module, down.shape[0]) / down.shape[0]
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        up = own_rows(weight, up)
        delta = up.to(local.device, torch.float32) @ down.to(local.device, torch.float32)
        local.copy_(local.float() + scale * delta)
    if unmatched:
        raise BadInput(
            f"{lora.file}: {len(unmatched)} of its {len(pairs)} LoRA modules match nothing in the transformer, "
            f"for instance {unmatched[0]!r}; the file was made for another model"
        )


def _read(file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    tensors = _tensors(file)
    downs, ups, alphas, other = {}, {}, {}, []
    for key, tensor in tensors.items():
        module = _strip(key, _PREFIXES)
        if end := _ending(module, _DOWN):
            downs[module.removesuffix(f".{end}")] = tensor
        elif end := _ending(module, _UP):
            ups[module.removesuffix(f".{end}")] = tensor
        elif module.endswith(".alpha"):
            alphas[module.removesuffix(".alpha")] = float(tensor)
        else:
            other.append(key)
    alone = sorted(downs.keys() ^ ups.keys())
    if other or alone or not downs:
        found = (other or alone or list(tensors) or ["nothing"])[0]
        raise BadInput(f"{file}: expected pairs of LoRA matrices (lora_A and lora_B, or down and up), found {found!r}")
    return {module: (downs[module], ups[module]) for module in downs}, alphas


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return read_pickle(file)
    try:
        return load_file(file)
    except Exception as error:
        raise BadInput(f"{file}: cannot be read as safetensors: {error}") from None


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key


def _ending(name: str, endings: tuple[str, ...]) -> str | None:
    return next((end for end in endings if name.endswith(f".{end}")), None)
