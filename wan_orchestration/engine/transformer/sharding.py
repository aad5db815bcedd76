"""Fully sharded models (FSDP2): each rank keeps a part of every weight, and a layer gathers its weights when it runs.

Models are sharded while they are still empty. Loading then fills in each rank's part, so no device ever holds a whole
model. Weights that stay in float32 are not sharded: FSDP needs one dtype per layer, and those weights are small. The
exception is the text encoder's large `wo`, which is sharded as a separate layer.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import UMT5EncoderModel

from wan_orchestration.engine.diffusers_internals import kept_in_float32
from wan_orchestration.engine.transformer.model import WanTransformer


def shard_transformer(model: WanTransformer, mesh: DeviceMesh) -> None:
    """Shard the modules of the trunk, 98 % of the 14B model's weights. Each rank keeps the rest whole."""
    _shard(model, model.trunk.order(), mesh)
    for method in model.sharded_methods:
        register_fsdp_forward_method(model, method)


def shard_text_encoder(model: UMT5EncoderModel, mesh: DeviceMesh) -> None:
    """Shard the layers. Each rank keeps the token embedding whole."""
    model.tie_weights()
    layers: list[nn.Module] = []
    for block in model.encoder.block:
        # `wo` stays in float32 and is a third of the layer, so it is sharded separately.
        layers += [block.get_submodule("layer.1.DenseReluDense.wo"), block]
    _shard(model, layers, mesh)


def own_rows(weight: Tensor, value: Tensor) -> Tensor:
    """The rows of `value` that this rank keeps: all of them, unless `weight` is sharded.

    `value` has the shape of the whole weight. FSDP2 cuts along the first dimension into equal parts; the last may be
    smaller or empty.
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
    # The root shards no weights. It only lets a layer's weights be gathered while the previous layer runs.
    fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()) - inside)
