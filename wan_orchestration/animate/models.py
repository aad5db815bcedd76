"""The models of a snapshot: loads each when it is first needed, places it, and frees it."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    UMT5Config,
    UMT5EncoderModel,
)

from wan_orchestration.animate import lora
from wan_orchestration.animate.layouts import original
from wan_orchestration.animate.layouts.diffusers import configured, diffusers_tensors, empty_transformer
from wan_orchestration.animate.layouts.fill import Loaded, fill, refuse
from wan_orchestration.animate.layouts.weight_files import read_pickle
from wan_orchestration.animate.memory.capacity import free_memory, ran_out_of_memory
from wan_orchestration.animate.memory.offload import Swap, stream
from wan_orchestration.animate.memory.placement import STREAMED, Name
from wan_orchestration.animate.memory.quantize import quantize
from wan_orchestration.animate.memory.sizes import text_encoder_size
from wan_orchestration.animate.parallel.ranks import Ranks
from wan_orchestration.animate.tensor_cache import TensorCache
from wan_orchestration.animate.transformer.model import AnimateTransformer
from wan_orchestration.animate.transformer.sharding import shard_text_encoder, shard_transformer
from wan_orchestration.animate.vae.layers import use_own_layers
from wan_orchestration.animate.vae.model import AnimateVae
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.generate import Quantization
from wan_orchestration.stopwatch import Stopwatch
from wan_orchestration.weights.snapshot import IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER, VAE, Snapshot

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", UMT5EncoderModel, CLIPVisionModel)


@dataclass
class Models:
    """The models of one snapshot. Each is loaded when it is first needed.

    The transformer and the text encoder run in `dtype`, the CLIP tower in float32, and the VAE in `vae_dtype`. Float32
    is the default for the VAE too: both are small and run once per segment or job, and their rounding errors show in
    the picture.

    Ranks share the VAE's work. With `fsdp` they also share the weights of the transformer and the text encoder, and
    must then load, use and free models together.
    """

    snapshot: Snapshot
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks = field(default_factory=Ranks)
    fsdp: bool = False
    placement: Name = "resident"
    quantization: Quantization = "off"
    vae_dtype: torch.dtype = torch.float32
    tf32: bool = False
    """Whether this process computes float32 convolutions in TF32, see `device.use_tf32`."""
    cache_root: Path | None = None
    """Folder of the tensor cache and the compile cache. None: in memory only."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch, repr=False)
    cache: TensorCache = field(init=False, repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _loras: tuple[lora.Lora, ...] = field(default=(), init=False, repr=False)
    _left_out: list[str] = field(default_factory=list, init=False, repr=False)
    """Messages about LoRA tensors that do not fit the transformer."""
    _swap: Swap | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        folder = self.cache_root and self.cache_root / self.snapshot.fingerprint[:16]
        self.cache = TensorCache(folder, self.ranks, "tf32" if self.tf32 else "")

    def transformer(self, loras: tuple[lora.Lora, ...] = ()) -> AnimateTransformer:
        """The transformer with these LoRAs fused. If the LoRAs differ from those before, the weights are reloaded.

        On each call, rank 0 warns of LoRA tensors that do not fit the transformer.
        """
        if self._loras != loras:
            self.free("transformer")
        if "transformer" not in self._loaded:
            with self.stopwatch.during("loading"):
                self._prepare_transformer(loras)
        if self.ranks.leads:
            for text in self._left_out:
                log.warning(text)
        return self._loaded["transformer"]

    def _prepare_transformer(self, loras: tuple[lora.Lora, ...]) -> None:
        transformer = self._load_transformer()
        messages = [lora.fuse(transformer, item) for item in loras]
        self._loras, self._left_out = loras, [text for text in messages if text]
        self._place(transformer)
        self._loaded["transformer"] = transformer

    def _place(self, transformer: AnimateTransformer) -> None:
        """Quantise the transformer and place it. Its LoRAs are already fused."""
        if self.quantization != "off":
            quantize(transformer, self.quantization, self.weights_device)
        if self.placement != "resident":
            transformer.use_slices()
        if self.placement == "swap":
            self._swap = Swap(transformer, self.device)
        if self.streamed:
            stream(transformer, self.device)

    @contextmanager
    def without_transformer(self) -> Iterator[None]:
        """A context in which other models work. With placement `swap`, the transformer is off the device meanwhile."""
        if self._swap:
            self._swap.swap_out()
        try:
            yield
        finally:
            if self._swap:
                self._swap.swap_in()

    def vae(self) -> AnimateVae:
        return self._once("vae", self._load_shared_vae)

    def text_encoder(self) -> UMT5EncoderModel:
        """The text encoder. If it does not fit beside the transformer, the transformer is freed and reloaded later."""
        both = "transformer" in self._loaded and "text_encoder" not in self._loaded and not self.fsdp
        if both and text_encoder_size(self.snapshot, self.dtype) > free_memory(self.weights_device):
            self.free("transformer")
        return self._once("text_encoder", self._load_text_encoder)

    def image_encoder(self) -> CLIPVisionModel:
        return self._once("image_encoder", self._load_image_encoder)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = TOKENIZER if self.snapshot.layout == "original" else "tokenizer"
        path = self.snapshot.path / folder
        return self._once("tokenizer", lambda: AutoTokenizer.from_pretrained(path, local_files_only=True))

    def free(self, *names: str) -> None:
        """Drop models and release their memory."""
        for name in names:
            self._loaded.pop(name, None)
        if "transformer" in names:
            self._loras, self._left_out, self._swap = (), [], None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _once(self, name: str, load: Callable[[], M]) -> M:
        if name not in self._loaded:
            with self.stopwatch.during("loading"):
                self._loaded[name] = load()
        return self._loaded[name]

    @property
    def _shard_mesh(self) -> DeviceMesh | None:
        mesh = self.ranks.mesh(self.device) if self.fsdp else None
        return mesh and mesh["sequence"]

    @property
    def streamed(self) -> bool:
        """Whether the transformer's blocks stay in host memory until they run."""
        return self.placement in STREAMED

    @property
    def weights_device(self) -> torch.device:
        """Where the transformer's blocks lie and the text encoder runs: the CPU if the blocks are streamed."""
        return torch.device("cpu") if self.streamed else self.device

    def _load_transformer(self) -> AnimateTransformer:
        model = empty_transformer(self.snapshot)
        if self.snapshot.layout == "diffusers":
            tensors = diffusers_tensors(self.snapshot.path / "transformer")
        else:
            tensors = original.transformer_tensors(self.snapshot.path)
        if mesh := self._shard_mesh:
            shard_transformer(model, mesh)
        # Quantization moves the blocks to the device one by one, because they may not all fit unquantised.
        device = torch.device("cpu") if self.quantization != "off" else self.weights_device
        return fill(model, tensors, self.dtype, device)

    def _load_shared_vae(self) -> AnimateVae:
        vae = self._load_vae()
        use_own_layers(vae, by_frames=self.placement != "resident")
        vae.tiled = self.placement == "tiled"
        vae.split_over(self.ranks)
        return vae

    def _load_vae(self) -> AnimateVae:
        if self.snapshot.layout == "diffusers":
            folder = self.snapshot.path / "vae"
            with init_empty_weights():
                model = configured(AnimateVae, folder)
            return fill(model, diffusers_tensors(folder), self.vae_dtype, self.device)
        return self._from_pickle(
            VAE,
            original.vae_config,
            lambda config: AnimateVae(**config),
            original.vae_tensors,
            self.vae_dtype,
        )

    def _load_text_encoder(self) -> UMT5EncoderModel:
        mesh = self._shard_mesh
        if self.snapshot.layout == "diffusers":
            # With shards, load it on the CPU first. The device then gets only this rank's part of each layer.
            device = torch.device("cpu") if mesh else self.weights_device
            model = self._from_transformers(UMT5EncoderModel, "text_encoder", self.dtype, device)
            if mesh:
                shard_text_encoder(model, mesh)
                nn.Module.to(model, self.device)
            return model
        return self._from_pickle(
            TEXT_ENCODER,
            original.text_encoder_config,
            lambda config: UMT5EncoderModel(UMT5Config(**config)),
            original.text_encoder_tensors,
            self.dtype,
            shard_text_encoder,
            self.weights_device,
        )

    def _load_image_encoder(self) -> CLIPVisionModel:
        if self.snapshot.layout == "diffusers":
            return self._from_transformers(CLIPVisionModel, "image_encoder", torch.float32, self.device)
        return self._from_pickle(
            IMAGE_ENCODER,
            original.image_encoder_config,
            lambda config: CLIPVisionModel(CLIPVisionConfig(**config)),
            original.image_encoder_tensors,
            torch.float32,
        )

    def _from_pickle(
        self,
        name: str,
        configure: Callable[[dict[str, Tensor]], dict[str, Any]],
        build: Callable[[dict[str, Any]], M],
        tensors: Callable[[Path, dict[str, Tensor]], Iterable[Loaded]],
        dtype: torch.dtype,
        shard: Callable[[M, DeviceMesh], None] | None = None,
        device: torch.device | None = None,
    ) -> M:
        file = self.snapshot.path / name
        weights = read_pickle(file)
        try:
            config = configure(weights)
        except KeyError as missing:
            raise BadInput(f"{file}: tensor {missing.args[0]!r} is missing") from None
        with init_empty_weights():
            model = build(config)
        if shard and (mesh := self._shard_mesh):
            shard(model, mesh)
        return fill(model, tensors(file, weights), dtype, device or self.device)

    def _from_transformers(self, cls: type[P], name: str, dtype: torch.dtype, device: torch.device) -> P:
        folder = self.snapshot.path / name
        try:
            # With output_loading_info, from_pretrained returns a pair. Its signature does not say so.
            pair: Any = cls.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, device_map=str(device)
            )
            loaded, report = pair
        except (OSError, ValueError, RuntimeError) as error:
            if ran_out_of_memory(error):
                raise
            raise BadInput(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(kind):
                refuse(folder, kind.removesuffix("_keys"), sorted(map(str, report[kind])))
        return loaded.eval().requires_grad_(False)
