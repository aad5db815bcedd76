"""Opens the models of a snapshot, in either layout, strictly: every tensor has its place and every place a tensor."""

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
from torch.distributed.tensor import DTensor
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
from wan_orchestration.animate.layouts.original import Loaded
from wan_orchestration.animate.memory.offload import Parking, stream
from wan_orchestration.animate.memory.placement import STREAMED, Name
from wan_orchestration.animate.memory.quantize import quantize
from wan_orchestration.animate.memory.room import free_memory, ran_out_of_memory
from wan_orchestration.animate.memory.sizes import text_encoder_size
from wan_orchestration.animate.parallel.ranks import Ranks
from wan_orchestration.animate.tensor_cache import TensorCache
from wan_orchestration.animate.transformer.model import AnimateTransformer
from wan_orchestration.animate.transformer.sharding import (
    kept_in_float32,
    own_rows,
    shard_text_encoder,
    shard_transformer,
)
from wan_orchestration.animate.vae.layers import lighten
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
    """The models of one snapshot, each loaded when first asked for.

    The transformer and the text encoder run in `dtype`. The CLIP tower and, unless told otherwise, the VAE run in
    float32: they are small, run once per clip or job, and their rounding is what shows in the picture.

    Ranks share the VAE's work. With `fsdp` they also share the weights of the transformer and the text encoder, and
    must then load, use and drop models together.
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
    """Whether this process computes float32 convolutions in TF32, see `clips.use_tf32`."""
    cache_root: Path | None = None
    """Where tensors that every launch would compute anew are kept; None: in memory only."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch, repr=False)
    cache: TensorCache = field(init=False, repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _loras: tuple[lora.Lora, ...] = field(default=(), init=False, repr=False)
    _left_out: list[str] = field(default_factory=list, init=False, repr=False)
    """What of the LoRAs has no place in the transformer, in words."""
    _parked: Parking | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        folder = self.cache_root and self.cache_root / self.snapshot.fingerprint[:16]
        self.cache = TensorCache(folder, self.ranks, "tf32" if self.tf32 else "")

    def transformer(self, loras: tuple[lora.Lora, ...] = ()) -> AnimateTransformer:
        """The transformer with these LoRAs fused; another set than before reloads the weights.

        What of them has no place in it is a warning, each time, from the leading rank.
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
        said = [lora.fuse(transformer, item) for item in loras]
        self._loras, self._left_out = loras, [text for text in said if text]
        self._place(transformer)
        self._loaded["transformer"] = transformer

    def _place(self, transformer: AnimateTransformer) -> None:
        """Quantise the transformer, and have it take less of the device as the placement says; its LoRAs are in."""
        if self.quantization != "off":
            quantize(transformer, self.quantization, self.weights_device)
        if self.placement != "resident":
            transformer.work_in_slices()
        if self.placement == "swap":
            self._parked = Parking(transformer, self.device)
        if self.streamed:
            stream(transformer, self.device)

    @contextmanager
    def without_transformer(self) -> Iterator[None]:
        """While other models work: the transformer gives way to them where the placement says so."""
        if self._parked:
            self._parked.leave()
        try:
            yield
        finally:
            if self._parked:
                self._parked.come()

    def vae(self) -> AnimateVae:
        return self._once("vae", self._load_shared_vae)

    def text_encoder(self) -> UMT5EncoderModel:
        """The text encoder. Where it does not fit beside the transformer, that is dropped, and loaded anew later."""
        meets = "transformer" in self._loaded and "text_encoder" not in self._loaded and not self.fsdp
        if meets and text_encoder_size(self.snapshot, self.dtype) > free_memory(self.weights_device):
            self.free("transformer")
        return self._once("text_encoder", self._load_text_encoder)

    def image_encoder(self) -> CLIPVisionModel:
        return self._once("image_encoder", self._load_image_encoder)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = TOKENIZER if self.snapshot.layout == "original" else "tokenizer"
        path = self.snapshot.path / folder
        return self._once("tokenizer", lambda: AutoTokenizer.from_pretrained(path, local_files_only=True))

    def free(self, *names: str) -> None:
        """Drop models, and give their memory back to the device."""
        for name in names:
            self._loaded.pop(name, None)
        if "transformer" in names:
            self._loras, self._left_out, self._parked = (), [], None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _once(self, name: str, load: Callable[[], M]) -> M:
        if name not in self._loaded:
            with self.stopwatch.during("loading"):
                self._loaded[name] = load()
        return self._loaded[name]

    @property
    def _shards(self) -> DeviceMesh | None:
        mesh = self.ranks.mesh(self.device) if self.fsdp else None
        return mesh and mesh["sequence"]

    @property
    def streamed(self) -> bool:
        """Whether the transformer's blocks lie in host memory until they run."""
        return self.placement in STREAMED

    @property
    def weights_device(self) -> torch.device:
        """Where the transformer's blocks lie, and prompts are encoded: beside streamed blocks there is no room."""
        return torch.device("cpu") if self.streamed else self.device

    def _load_transformer(self) -> AnimateTransformer:
        model = empty_transformer(self.snapshot)
        if self.snapshot.layout == "diffusers":
            tensors = diffusers_tensors(self.snapshot.path / "transformer")
        else:
            tensors = original.transformer_tensors(self.snapshot.path)
        if mesh := self._shards:
            shard_transformer(model, mesh)
        # To be quantised, blocks come to the device one by one: there may be no room for all of them as they are.
        device = torch.device("cpu") if self.quantization != "off" else self.weights_device
        return self._fill(model, tensors, self.dtype, device)

    def _load_shared_vae(self) -> AnimateVae:
        vae = self._load_vae()
        lighten(vae, by_frames=self.placement != "resident")
        vae.tiled = self.placement == "tiled"
        vae.split_over(self.ranks)
        return vae

    def _load_vae(self) -> AnimateVae:
        if self.snapshot.layout == "diffusers":
            folder = self.snapshot.path / "vae"
            with init_empty_weights():
                model = configured(AnimateVae, folder)
            return self._fill(model, diffusers_tensors(folder), self.vae_dtype)
        return self._from_pickle(
            VAE,
            original.vae_config,
            lambda config: AnimateVae(**config),
            original.vae_tensors,
            self.vae_dtype,
        )

    def _load_text_encoder(self) -> UMT5EncoderModel:
        mesh = self._shards
        if self.snapshot.layout == "diffusers":
            # To be sharded it is loaded on the CPU: its layers then reach the device one by one, already cut.
            device = torch.device("cpu") if mesh else self.weights_device
            model = self._from_transformers(UMT5EncoderModel, "text_encoder", self.dtype, device)
            if mesh:
                shard_text_encoder(model, mesh)
                nn.Module.to(model, self.device)
            return model
        return self._from_pickle(
            TEXT_ENCODER,
            original.text_config,
            lambda config: UMT5EncoderModel(UMT5Config(**config)),
            original.text_tensors,
            self.dtype,
            shard_text_encoder,
            self.weights_device,
        )

    def _load_image_encoder(self) -> CLIPVisionModel:
        if self.snapshot.layout == "diffusers":
            return self._from_transformers(CLIPVisionModel, "image_encoder", torch.float32, self.device)
        return self._from_pickle(
            IMAGE_ENCODER,
            original.clip_config,
            lambda config: CLIPVisionModel(CLIPVisionConfig(**config)),
            original.clip_tensors,
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
        weights = original.read_pickle(file)
        try:
            config = configure(weights)
        except KeyError as missing:
            raise BadInput(f"{file}: tensor {missing.args[0]!r} is missing") from None
        with init_empty_weights():
            model = build(config)
        if shard and (mesh := self._shards):
            shard(model, mesh)
        return self._fill(model, tensors(file, weights), dtype, device)

    def _from_transformers(self, cls: type[P], name: str, dtype: torch.dtype, device: torch.device) -> P:
        folder = self.snapshot.path / name
        try:
            # A pair because of output_loading_info; the signature does not say so.
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
                _refuse(folder, kind.removesuffix("_keys"), sorted(map(str, report[kind])))
        return loaded.eval().requires_grad_(False)

    def _fill(self, model: M, tensors: Iterable[Loaded], dtype: torch.dtype, device: torch.device | None = None) -> M:
        """Put each tensor in its place as it is read, so that never two copies of the weights exist."""
        device = device or self.device
        if isinstance(model, UMT5EncoderModel):
            model.tie_weights()
        places = dict(model.named_parameters())
        weights, file, unexpected = {}, None, []
        for file, original_name, converted in tensors:
            for name, value in converted.items():
                place = places.pop(name, None)
                if place is None:
                    unexpected.append(original_name)
                    continue
                if place.shape != value.shape:
                    value = _reshape_bias(file, original_name, value, place)
                wanted = torch.float32 if kept_in_float32(model, name) else dtype
                # A copy, because a slice or a mapped page would hold the whole file.
                value = own_rows(place, value).to(device, wanted, copy=True)
                weights[name] = _distribute(place, value) if isinstance(place, DTensor) else value
        if unexpected:
            _refuse(file, "unexpected", unexpected)
        if places:
            _refuse(file, "missing", sorted(places))
        model.load_state_dict(weights, strict=False, assign=True)
        if isinstance(model, UMT5EncoderModel):
            model.tie_weights()
        nn.Module.to(model, device)
        return model.eval().requires_grad_(False)


def _distribute(place: DTensor, rows: Tensor) -> DTensor:
    return DTensor.from_local(
        rows, place.device_mesh, place.placements, run_check=False, shape=place.shape, stride=place.stride()
    )


def _reshape_bias(file: Path, name: str, value: Tensor, place: Tensor) -> Tensor:
    if value.numel() == place.numel() and value.squeeze().shape == place.squeeze().shape:
        return value.reshape(place.shape)
    raise BadInput(
        f"{file}: tensor {name!r} has shape {tuple(value.shape)}, but the snapshot's configuration asks for "
        f"{tuple(place.shape)}"
    )


def _refuse(place: Path | None, kind: str, names: list[str]) -> None:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise BadInput(f"{place}: {len(names)} {kind} tensor(s): {shown}; the snapshot is damaged or of another model")
