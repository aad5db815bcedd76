"""The models of a snapshot: loads each when it is first needed, places it, changes it, and frees it."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoTokenizer, CLIPVisionModel, PreTrainedTokenizerBase, UMT5EncoderModel

from wan_orchestration.engine.fused_loras import FusedLoras
from wan_orchestration.engine.layouts.fill import Loaded
from wan_orchestration.engine.layouts.load import load_image_encoder, load_text_encoder, load_transformer, load_vae
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.memory.capacity import free_memory
from wan_orchestration.engine.memory.offload import Stream, Swap, stream
from wan_orchestration.engine.memory.placement import STREAMED, Name
from wan_orchestration.engine.memory.quantize import quantize
from wan_orchestration.engine.memory.sizes import text_encoder_size
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.tensor_cache import TensorCache
from wan_orchestration.engine.transformer.compilation import forget_compiled
from wan_orchestration.engine.transformer.model import WanTransformer
from wan_orchestration.engine.vae.layers import use_own_layers
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.choose import family_of
from wan_orchestration.host_memory import give_back_unused
from wan_orchestration.settings.generate import Quantization
from wan_orchestration.stopwatch import Stopwatch
from wan_orchestration.weights.snapshot import Snapshot

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@dataclass
class Models:
    """The models of one snapshot. Each is loaded when it is first needed.

    The transformer and the text encoder run in `dtype`, the CLIP tower in float32, and the VAE in `vae_dtype`. Float32
    is the default for the VAE too: both are small and run once per segment or job, and their rounding errors show in
    the picture.

    A process runs many tasks with the same object. `change` adapts it to the next task, and frees only what differs.

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
    _loras: FusedLoras | None = field(default=None, init=False, repr=False)
    """Of the loaded transformer."""
    _in_host: Swap | Stream | None = field(default=None, init=False, repr=False)
    """Keeps the loaded transformer's weights in host memory; None if they are on the device only."""

    def __post_init__(self) -> None:
        self._open_cache()

    def change(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        placement: Name,
        quantization: Quantization,
        vae_dtype: torch.dtype,
        tf32: bool,
    ) -> None:
        """Adapt to the next task. The models are then those of a new object with these values, bit for bit.

        Models that stay are moved if the placement differs. Others are freed here, and loaded when they are needed.
        """
        other_snapshot, before = not self.of(snapshot), self.placement
        freed = self._outdated(snapshot, device, dtype, quantization, vae_dtype)
        if self.quantization != "off" and (placement in STREAMED) != self.streamed:
            freed.add("transformer")  # the weights were quantised on another device
        if freed:
            self.free(*freed)
        self.snapshot, self.device, self.dtype, self.placement = snapshot, device, dtype, placement
        self.quantization, self.vae_dtype, self.tf32 = quantization, vae_dtype, tf32
        if other_snapshot:
            self._open_cache()
            forget_compiled()  # graphs of the other snapshot's widths would make these widths dynamic in new graphs
        self.cache.precision = self._precision
        if placement != before:
            with self.stopwatch.during("loading"):
                self._move(before)

    def of(self, snapshot: Snapshot) -> bool:
        """Whether these are the models of this snapshot."""
        return (snapshot.path, snapshot.fingerprint) == (self.snapshot.path, self.snapshot.fingerprint)

    @property
    def host_memory(self) -> int:
        """Bytes of host memory that weights take, and what the transformer keeps for the next job."""
        models = [one for one in self._loaded.values() if isinstance(one, nn.Module)]
        weights = sum(weight.nbytes for one in models for weight in one.parameters() if weight.device.type == "cpu")
        transformer = self._loaded.get("transformer")
        kept = transformer.kept_in_host if transformer else 0
        return weights + kept + sum(packed.size for packed in (self._in_host.packed if self._in_host else ()))

    def _outdated(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization,
        vae_dtype: torch.dtype,
    ) -> set[str]:
        """Names of the loaded models that cannot be kept with these values."""
        if device != self.device or not self.of(snapshot):
            return set(self._loaded)
        outdated = set()
        if dtype != self.dtype:
            outdated |= {"transformer", "text_encoder"}
        if quantization != self.quantization:
            outdated.add("transformer")
        if vae_dtype != self.vae_dtype:
            outdated.add("vae")
        return outdated & self._loaded.keys()

    def _move(self, before: Name) -> None:
        """Move the loaded models from one placement to the present one. After an error, the transformer is freed."""
        if vae := self._loaded.get("vae"):
            self._arrange_vae(vae)
        if text_encoder := self._loaded.get("text_encoder"):
            nn.Module.to(text_encoder, self.weights_device)
        transformer = self._loaded.get("transformer")
        if transformer is None or (before in STREAMED and self.streamed):
            return
        with self._or_free_transformer():
            if self._in_host:
                self._in_host.undo()
                self._in_host = None
            self._place(transformer)
        self._empty_cache()

    def transformer(self, loras: tuple[Lora, ...] = ()) -> WanTransformer:
        """The transformer with these LoRAs fused.

        If they differ from those before, or their files have changed, the weights that earlier LoRAs changed are read
        from the snapshot again. 8-bit weights cannot be restored in part, so the whole transformer is loaded again.

        On each call, rank 0 warns of LoRA tensors that do not fit the transformer.

        Raises:
            BadInput: a LoRA cannot be used. A transformer that was loaded before keeps its weights.
        """
        if self._loras is None or not self._loras.are(loras, self._fusing_device):
            with self.stopwatch.during("loading"):
                self._fuse(loras)
        assert self._loras is not None
        if self.ranks.leads:
            for text in self._loras.left_out:
                log.warning(text)
        return self._loras.transformer

    def _fuse(self, loras: tuple[Lora, ...]) -> None:
        """Fuse these LoRAs instead of the present ones. Load the transformer first if necessary."""
        if self._loras:
            wanted = self._loras.read(loras, self._fusing_device)
            if self.quantization == "off":
                with self._or_free_transformer(), self._in_host.changing() if self._in_host else nullcontext():
                    self._loras.replace(wanted)
                return
            del wanted
            self.free("transformer")
        transformer = self._load_transformer()
        fused = FusedLoras(transformer, self._tensors)
        fused.replace(fused.read(loras, self._fusing_device))
        if self.quantization != "off":
            quantize(transformer, self.quantization, self.weights_device)
        self._place(transformer)
        self._loras, self._loaded["transformer"] = fused, transformer

    def _tensors(self, names: set[str]) -> Iterable[Loaded]:
        """The snapshot's tensors that hold weights of these names."""
        return family_of(self.snapshot.family).part("checkpoint").tensors(self.snapshot, names)

    def _place(self, transformer: WanTransformer) -> None:
        """Place the transformer. Its weights are final."""
        transformer.use_slices(self.placement != "resident")
        if self.placement == "swap":
            self._in_host = Swap(transformer, self.device)
        if self.streamed:
            self._in_host = stream(transformer, self.device)

    @contextmanager
    def _or_free_transformer(self) -> Iterator[None]:
        """A context that changes the transformer. If it fails half-way, the transformer is freed."""
        try:
            yield
        except BaseException:
            self.free("transformer")
            raise

    @property
    def _fusing_device(self) -> torch.device:
        """Where the LoRAs' sums are computed. Weights to quantise are still on the CPU then."""
        return self.weights_device if self.quantization == "off" else torch.device("cpu")

    @contextmanager
    def without_transformer(self) -> Iterator[None]:
        """A context in which other models work. With placement `swap`, the transformer is off the device meanwhile."""
        swap = self._in_host if isinstance(self._in_host, Swap) else None
        if swap:
            swap.swap_out()
        try:
            yield
        finally:
            if swap:
                swap.swap_in()

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
        path = self.snapshot.file("tokenizer")
        return self._once("tokenizer", lambda: AutoTokenizer.from_pretrained(path, local_files_only=True))

    def free(self, *names: str) -> None:
        """Drop models and release their memory."""
        if self._loaded.keys().isdisjoint(names):
            return  # collecting garbage takes a third of a second
        for name in names:
            self._loaded.pop(name, None)
        if "transformer" in names:
            self._loras = self._in_host = None
        self._empty_cache()

    def free_all(self) -> None:
        """Drop all models and release their memory."""
        self.free(*self._loaded)

    def _empty_cache(self) -> None:
        """Give unused memory back, so that other models find it in one piece."""
        gc.collect()
        give_back_unused()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _once(self, name: str, load: Callable[[], M]) -> M:
        if name not in self._loaded:
            with self.stopwatch.during("loading"):
                self._loaded[name] = load()
        return self._loaded[name]

    def _open_cache(self) -> None:
        folder = self.cache_root and self.cache_root / self.snapshot.fingerprint[:16]
        self.cache = TensorCache(folder, self.ranks, self._precision)

    @property
    def _precision(self) -> str:
        return "tf32" if self.tf32 else ""

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

    def _load_transformer(self) -> WanTransformer:
        # Quantization moves the blocks to the device one by one, because they may not all fit unquantised.
        return load_transformer(self.snapshot, self.dtype, self._fusing_device, self._shard_mesh)

    def _load_text_encoder(self) -> UMT5EncoderModel:
        return load_text_encoder(self.snapshot, self.dtype, self.weights_device, self._shard_mesh)

    def _load_image_encoder(self) -> CLIPVisionModel:
        return load_image_encoder(self.snapshot, self.device)

    def _load_vae(self) -> AnimateVae:
        return load_vae(self.snapshot, self.vae_dtype, self.device)

    def _load_shared_vae(self) -> AnimateVae:
        vae = self._load_vae()
        self._arrange_vae(vae)
        vae.split_over(self.ranks)
        return vae

    def _arrange_vae(self, vae: AnimateVae) -> None:
        use_own_layers(vae, by_frames=self.placement != "resident")
        vae.tiled = self.placement == "tiled"
