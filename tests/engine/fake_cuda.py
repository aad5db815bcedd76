"""Runs the engine at the 14B model's widths on a machine without CUDA, with CUDA tensors that have no data."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, CLIPVisionModel

from wan_orchestration.engine import animator, lora
from wan_orchestration.engine.diffusers_internals import kept_in_float32
from wan_orchestration.engine.memory import offload
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.schedule import make_solver
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.animate.transformer import AnimateTransformer
from wan_orchestration.families.animate_2 import driving
from wan_orchestration.families.animate_2.transformer import Animate2Transformer

NARROW = 5120
"""The transformer's patch embeddings have this many channels; the VAE's convolutions have fewer."""
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.convolution)
ATTENTION = (
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten.scaled_dot_product_attention,
)


class Watch(TorchDispatchMode):
    """Watches every operation: whether products are on the device, and whether convolutions get a fast layout."""

    def __init__(self):
        super().__init__()
        self.products = Counter()
        """Operations that multiply, as (operation, dtypes)."""
        self.elsewhere = Counter()
        """Products on another device."""
        self.to_host = 0
        """Bytes of the largest video, (3, T, H, W), that was copied from the device."""
        self.slow_convolutions = []
        """Inputs (shape, strides) of the VAE's convolutions over time that are not channels last, as weights are."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        packet = function.overloadpacket
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        if packet in PRODUCTS + ATTENTION:
            name = packet.__name__
            self.products[name, tuple({str(x.dtype).removeprefix("torch.") for x in tensors})] += 1
            if any(x.device != CUDA for x in tensors):
                self.elsewhere[name] += 1
        if packet is aten.convolution and tensors[1].shape[0] < NARROW and output.ndim > 3:
            layout = torch.channels_last_3d if output.ndim == 5 else torch.channels_last
            if output.ndim == 5 and not tensors[0].is_contiguous(memory_format=layout):
                self.slow_convolutions.append((tuple(tensors[0].shape), tensors[0].stride()))
            return output.contiguous(memory_format=layout)  # as cuDNN gives it
        if packet is aten._to_copy and tensors[0].device == CUDA and output.device.type == "cpu":
            self.to_host = max(self.to_host, output.nbytes if output.ndim == 4 else 0)
        return output


class FakeModels(Models):
    """Models of the real widths with few blocks, created without a snapshot."""

    def _load_transformer(self):
        return self._made(
            lambda: AnimateTransformer(added_kv_proj_dim=5120, num_layers=2, inject_face_latents_blocks=2),
            self.dtype,
            self.weights_device,
        )

    def _load_vae(self):
        return self._made(AnimateVae, self.vae_dtype, self.device)

    def _load_image_encoder(self):
        config = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=2,
            num_attention_heads=16,
            patch_size=14,
            hidden_act="gelu",
        )
        return self._made(lambda: CLIPVisionModel(config), torch.float32, self.device)

    @staticmethod
    def _made(build, dtype, device):
        with device:
            model = build()
        for name, parameter in list(model.named_parameters()):
            wanted = torch.float32 if kept_in_float32(model, name) else dtype
            owner, _, last = name.rpartition(".")
            value = nn.Parameter(parameter.to(wanted), requires_grad=False)
            setattr(model.get_submodule(owner), last, value)
        return model.eval()


class FakeModels2(FakeModels):
    """The same of Wan-Animate-2."""

    def _load_transformer(self):
        return self._made(
            lambda: Animate2Transformer(in_channels=36, image_dim=1280, added_kv_proj_dim=5120, num_layers=2),
            self.dtype,
            self.weights_device,
        )


def _tensors(file):
    with unset_fake_temporarily():
        return load_file(file)


def _solver(*arguments):
    with unset_fake_temporarily():  # NumPy computes its noise levels
        return make_solver(*arguments)


def _move(module, device):
    """`nn.Module.to`, which cannot move parameters without data."""
    for owner in module.modules():
        for owned in (owner._parameters, owner._buffers):
            for name, value in owned.items():
                if value is not None:
                    moved = value.to(device)
                    owned[name] = nn.Parameter(moved, requires_grad=False) if owned is owner._parameters else moved
    return module


@contextmanager
def fake_cuda(monkeypatch):
    """Replaces tensors by ones without data, and PyTorch's calls to a device by stand-ins; yields counts."""
    counts = SimpleNamespace(pinned=0)

    def host_memory(size):
        counts.pinned += size
        return torch.empty(size, dtype=torch.uint8)

    for module, pin in ((offload, "register"), (driving, "pin")):
        monkeypatch.setattr(module, "host_memory", host_memory)
        monkeypatch.setattr(module, pin, lambda owner, memory: None)
    monkeypatch.setattr(nn.Module, "to", _move)
    monkeypatch.setattr(animator, "make_solver", _solver)
    monkeypatch.setattr(lora, "_tensors", _tensors)
    event = SimpleNamespace(record=lambda *_: None)
    for name, value in {
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "Stream": lambda *_: SimpleNamespace(wait_event=lambda _: None, wait_stream=lambda _: None),
        "Event": lambda: event,
        "stream": lambda _: nullcontext(),
        "current_stream": lambda *_: SimpleNamespace(wait_event=lambda _: None),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield counts
