"""Fully sharded models (FSDP2): each rank keeps a part of every weight, and a layer's weights are gathered as it runs.

Models are sharded while they are still empty; `models` then fills in each rank's part, so that no device ever holds a
whole model. What is kept in float32 stays whole: FSDP wants one dtype per layer, and those weights are small.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import UMT5EncoderModel

from wan_orchestration.animate.transformer.model import AnimateTransformer


def kept_in_float32(model: nn.Module, name: str) -> bool:
    """Whether a parameter of a diffusers or transformers model is kept in float32 whatever the model's dtype."""
    keep = getattr(model, "_keep_in_fp32_modules", None) or ()
    return bool(set(keep) & set(name.split(".")))


def shard_transformer(model: AnimateTransformer, mesh: DeviceMesh) -> None:
    """Shard blocks and face adapters, 98 % of the 14B model's weights; the rest stays whole on each rank."""
    _shard(model, [*model.blocks, *model.face_adapter], mesh)
    register_fsdp_forward_method(model, "denoise")


def shard_text_encoder(model: UMT5EncoderModel, mesh: DeviceMesh) -> None:
    """Shard the layers; the token embedding stays whole on each rank."""
    model.tie_weights()
    layers: list[nn.Module] = []
    for block in model.encoder.block:
        # Kept in float32 and a third of the layer: a part of its own.
        layers += [block.get_submodule("layer.1.DenseReluDense.wo"), block]
    _shard(model, layers, mesh)


def own_rows(weight: Tensor, value: Tensor) -> Tensor:
    """The rows of `value`, shaped like the whole of `weight`, that this rank keeps: all, unless the weight is sharded.

    They are cut as FSDP2 cuts: along the first dimension, into equal parts but for the last.
    """
    if not isinstance(weight, DTensor):
        return value
    share = -(-weight.shape[0] // weight.device_mesh.size())
    start = min(weight.device_mesh.get_local_rank() * share, weight.shape[0])
    return value[start : start + share]


def _shard(model: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    inside = set()
    for layer in layers:
        whole = {parameter for name, parameter in layer.named_parameters() if kept_in_float32(model, name)}
        fully_shard(layer, mesh=mesh, ignored_params=whole)
        inside |= set(layer.parameters())
    # The root has no weights of its own, but lets the gathering of a layer overlap with the one before.
    fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()) - inside)
