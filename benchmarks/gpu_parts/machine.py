"""The machine, and the peak performance of its GPU."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil
import torch
import torch.nn.functional as F

from gpu_parts.record import Record, Work
from gpu_parts.sizes import allow_tf32, precision, shape, timed

PACKAGES = (
    "torch", "triton", "transformers", "diffusers", "accelerate", "av", "pydantic", "pydantic-core", "torchao",
    "dagster-pipes",
)  # fmt: skip


def machine(work: Work, record: Record) -> None:
    """Records what the check runs on."""
    record.row("Python", {"value": platform.python_version()})
    record.row("cores", {"value": len(os.sched_getaffinity(0))})
    record.row("host memory, GB", {"value": psutil.virtual_memory().total / 1e9})
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            record.row(name, {"value": version(name)})
    compilers = [name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)]
    record.row("C compilers", {"value": ", ".join(compilers) or "none"})
    kernels = [name for name in ("flash_attn", "flash_attn_interface", "flash_attn.cute", "sageattention") if has(name)]
    record.row("attention packages", {"value": ", ".join(kernels) or "none"})
    if work.device != "cuda":
        return
    card = torch.cuda.get_device_properties(0)
    record.row("GPU", {"value": card.name}, note=f"{card.multi_processor_count} SMs, {card.major}.{card.minor}")
    free, total = torch.cuda.mem_get_info()
    record.row("device memory, GB", {"value": total / 1e9}, note=f"{free / 1e9:.1f} free")
    record.row("CUDA", {"value": torch.version.cuda}, note=f"cuDNN {torch.backends.cudnn.version()}")
    record.row("nvidia-smi", {"value": nvidia_smi("name,driver_version,pcie.link.gen.max,power.limit,clocks.max.sm")})


def has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # its package is missing
        return False


def nvidia_smi(fields: str) -> str:
    """What nvidia-smi reports of the first GPU. Empty if there is no nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return said.stdout.splitlines()[0].strip() if not said.returncode and said.stdout.strip() else ""


def peaks(work: Work, record: Record) -> None:
    """Measures matrix products, convolutions and attention separately."""
    matmuls(work, record)
    convolutions(work, record)
    for size in ("480p", "720p"):
        attention(work, record, size)


def matmuls(work: Work, record: Record) -> None:
    size = 256 if work.tiny else 8192
    a, b = (torch.randn(size, size, device=work.device) for _ in range(2))
    half = a.to(torch.bfloat16), b.to(torch.bfloat16)

    def product(what: str, call) -> None:
        try:
            seconds = timed(work, call, times=10, warm_up=3)
        except Exception as error:
            record.cannot(what, error)
        else:
            record.row(what, {"ms": 1e3 * seconds, "TFLOP/s": 2 * size**3 / seconds / 1e12})

    product(f"{size} matmul, bfloat16", lambda: half[0] @ half[1])
    allow_tf32(products=True)
    product(f"{size} matmul, TF32" if work.device == "cuda" else f"{size} matmul, float32", lambda: a @ b)
    allow_tf32()
    if work.device == "cuda":
        product(f"{size} matmul, float32", lambda: a @ b)
        eight = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=work.device)
        rows, columns = torch.ones(size, 1, device=work.device), torch.ones(1, size, device=work.device)
        scaled = {"one scale": (one, one), "a scale for each row": (rows, columns)}
        for how, (left, right) in scaled.items():
            product(
                f"{size} matmul, fp8, {how}",
                lambda left=left, right=right: torch._scaled_mm(
                    *eight, scale_a=left, scale_b=right, out_dtype=torch.bfloat16
                ),
            )


def convolutions(work: Work, record: Record) -> None:
    """The decoder's widest convolution at 480p, on four frames and the two before them, in both layouts."""
    width, segment = (8 if work.tiny else 96), shape(work, "480p")
    for name, dtype in {"TF32": torch.float32, "bfloat16": torch.bfloat16}.items():
        allow_tf32(convolutions=True)
        x = torch.randn(1, width, 6, segment.height, segment.width, device=work.device, dtype=dtype)
        weight = torch.randn(width, width, 3, 3, 3, device=work.device, dtype=dtype)
        flops = 2 * 27 * width**2 * 4 * segment.height * segment.width
        for layout, form in {"NCDHW": torch.contiguous_format, "NDHWC": torch.channels_last_3d}.items():
            laid = x.to(memory_format=form), weight.to(memory_format=form)
            for benchmark in (False, True):
                torch.backends.cudnn.benchmark = benchmark
                what = f"conv3d, {name}, {layout}" + (", cudnn.benchmark" if benchmark else "")
                try:
                    seconds = timed(work, lambda laid=laid: F.conv3d(*laid, padding=(0, 1, 1)), times=5, warm_up=2)
                    record.row(what, {"ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12})
                except Exception as error:
                    record.cannot(what, error)
        torch.backends.cudnn.benchmark = False


def attention(work: Work, record: Record, size: str) -> None:
    """Each attention kernel that runs here, on the tokens of a segment."""
    from wan_orchestration.engine.transformer.attention import KERNELS, SelfAttention, choose_backend

    tokens = shape(work, size).tokens
    heads, width = (2, 32) if work.tiny else (40, 128)
    device, dtype = torch.device(work.device), precision(work)
    q, k, v = (torch.randn(1, tokens, heads, width, device=device, dtype=dtype) for _ in range(3))
    for name in KERNELS:
        what = f"attention of {tokens} tokens, {name}"
        try:
            choose_backend(name, device, dtype, heads, width)
            kernel = SelfAttention(name, None)
            seconds = timed(work, lambda kernel=kernel: kernel.attend(q, k, v), times=3, warm_up=1)
            flops = 4 * tokens**2 * heads * width
            record.row(what, {"ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12})
        except Exception as error:
            record.cannot(what, error)
