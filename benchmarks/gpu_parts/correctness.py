"""Whether the engine computes correctly on this device, with small models."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from gpu_parts.machine import nvidia_smi
from gpu_parts.record import Record, Skipped, Work
from gpu_parts.sizes import Listener, make_task, psnr, run_tasks, snapshot
from wan_orchestration.engine.memory.placement import SegmentShape
from wan_orchestration.protocol import leases
from wan_orchestration.protocol.messages import Request, Result

CASES = ("a_animate_1clip", "b_animate_3clips_pad", "d_replace_2clips", "g_replace_relight_lora")
PARAMS = ("clip_len", "refert_num", "shift", "sample_solver", "sampling_steps", "guide_scale", "seed")
LIMIT = 1e-4
"""Largest difference of a value in [-1, 1] from the published implementation's, in float32."""
BFLOAT16_DB = 30.0
TILED_DB = 30.0
"""Bands do not see each other, which shows more with random weights than with trained ones."""
DTYPES = {"cuda": ("float32", "bfloat16"), "cpu": ("float32",)}
"""Many CPUs compute in bfloat16 slowly or not at all."""
SMALL, TALL = SegmentShape(64, 96, 5), SegmentShape(384, 64, 5)


def parity(work: Work, record: Record) -> None:
    """Compares `infer` with recorded outputs of the published implementation, in float32 and in bfloat16."""
    if work.parity is None:
        raise Skipped("the recorded outputs are missing: use --parity DIR")
    cases = [case for case in CASES if (work.parity / "cases" / case / "output.npz").is_file()]
    if not cases:
        raise Skipped(f"{work.parity} has none of the recorded outputs")
    for index, case in enumerate(cases):
        try:
            frames, expected = infer(work, case, "float32", as_command=index == 0), recorded(work.parity, case)
        except Skipped as reason:
            record.cannot(case, str(reason))
            continue
        if frames.shape != expected.shape:
            record.check(case, False, {"found": str(frames.shape), "expected": str(expected.shape)}, "the same frames")
            continue
        worst = float(np.abs(frames - expected).max())
        figures = {"largest difference": worst, "PSNR, dB": psnr(frames, expected)}
        record.check(f"{case}, float32", worst <= LIMIT, figures, f"<= {LIMIT:g}")
    if "bfloat16" not in DTYPES[work.device]:
        return
    case = cases[0]
    frames, expected = infer(work, case, "bfloat16"), recorded(work.parity, case)
    figures = {"largest difference": float(np.abs(frames - expected).max()), "PSNR, dB": psnr(frames, expected)}
    record.check(f"{case}, bfloat16", figures["PSNR, dB"] >= BFLOAT16_DB, figures, f">= {BFLOAT16_DB:g} dB")


def recorded(parity: Path, case: str) -> np.ndarray:
    with np.load(parity / "cases" / case / "output.npz") as file:
        return file["frames"]


def infer(work: Work, case: str, dtype: str, as_command: bool = False) -> np.ndarray:
    """The frames of a recorded case, (3, T, H, W), made by the command or by a call of its main function."""
    from wan_orchestration import infer as command

    assert work.parity is not None
    folder, source = work.parity / "cases" / case, work.parity / "snapshot"
    told = json.loads((folder / "params.json").read_text())
    out = work.scratch / f"{case}-{dtype}"
    arguments = [f"--src-root={folder / 'job'}", f"--checkpoint-dir={source}", f"--output={out}"]
    arguments += [f"--save-frames={out}.npz", f"--dtype={dtype}", f"--device={work.device}"]
    arguments += [f"--{name.replace('_', '-')}={told['params'][name]}" for name in PARAMS]
    arguments += ["--replace"] if told["params"]["replace_flag"] else []
    if told.get("use_relighting_lora"):
        if not (source / "relighting_lora.ckpt").is_file():
            raise Skipped("the snapshot's relighting_lora.ckpt was left out")
        arguments.append("--use-relighting-lora")
    if as_command:
        words = [sys.executable, "-m", "wan_orchestration.infer", *arguments]
        said = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
        code, output = said.returncode, said.stdout
    else:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            code = command.main(arguments)
        output = stdout.getvalue()
    result = json.loads(output)
    if code:
        raise RuntimeError(f"{case}: {result['error']}")
    with np.load(f"{out}.npz") as file:
        return file["frames"]


def agreement(work: Work, record: Record) -> None:
    """Compares the ways to run one job with each other, on a small random snapshot."""
    plain: dict[str, Any] = {"attention": "native", "compile": "off", "placement": "resident"}
    for dtype in DTYPES[work.device]:
        fields = plain | {"dtype": dtype}
        resident, swap, offload = (
            frames_of(work, f"{placement}-{dtype}", fields | {"placement": placement})[0]
            for placement in ("resident", "swap", "offload")
        )
        # Both pairs may differ by rounding: swap computes in slices, for which libraries may choose other kernels, and
        # offload encodes the prompt on the CPU.
        for name, found, other in (("swap against resident", swap, resident), ("offload against swap", offload, swap)):
            worst, value = float(np.abs(found - other).max()), psnr(found, other)
            exact = dtype == "float32"
            good = worst <= LIMIT if exact else value >= BFLOAT16_DB
            aim = f"<= {LIMIT:g}" if exact else f">= {BFLOAT16_DB:g} dB"
            record.check(f"{name}, {dtype}", good, {"largest difference": worst, "PSNR, dB": value}, aim)
    tiled(work, record, plain | {"dtype": "float32"})
    compiled(work, record, plain | {"dtype": "float32"})


def tiled(work: Work, record: Record, fields: dict[str, Any]) -> None:
    whole, _ = frames_of(work, "whole", fields, TALL, 5)
    found, _ = frames_of(work, "tiled", fields | {"placement": "tiled"}, TALL, 5)
    worst, value = float(np.abs(found - whole).max()), psnr(found, whole)
    figures = {"largest difference": worst, "PSNR, dB": value}
    record.check("tiled against resident, two bands", value >= TILED_DB, figures, f">= {TILED_DB:g} dB")


def compiled(work: Work, record: Record, fields: dict[str, Any]) -> None:
    eager, _ = frames_of(work, "eager", fields, SMALL, 5)
    started = time.perf_counter()
    found, result = frames_of(work, "compiled", fields | {"compile": "on"}, SMALL, 5)
    why = getattr(result, "compile_error", None)
    if why or not result.compiled:
        record.cannot("compiled against not", f"did not compile: {why}")
        return
    worst = float(np.abs(found - eager).max())
    figures = {"largest difference": worst, "PSNR, dB": psnr(found, eager), "s": time.perf_counter() - started}
    record.check("compiled against not, float32", worst <= LIMIT, figures, f"<= {LIMIT:g}")


def frames_of(
    work: Work, name: str, fields: dict[str, Any], segment: SegmentShape = SMALL, frames: int = 9
) -> tuple[np.ndarray, Result]:
    """The exact frames of a small job, (3, T, H, W)."""
    task = make_task(work, name, segment, frames, save=True, sampling_steps=2, **fields)
    (result,) = run_tasks(work, [task], Listener(work), small=True)
    if result.error:
        raise RuntimeError(f"{name}: {result.error}")
    assert task.save_frames is not None
    with np.load(task.save_frames) as file:
        return file["frames"], result


def worker(work: Work, record: Record) -> None:
    """Starts the worker as Dagster does, on the GPU named by its UUID, with a lease that makes others wait."""
    try:
        import dagster_pipes
    except ImportError:
        raise Skipped("dagster-pipes is not installed") from None
    uuid = card_uuid() if work.device == "cuda" else ""
    device, waited = uuid or "cpu-0", Event()

    def wait_in_vain(line: str) -> None:
        print(line, flush=True)
        waited.set()

    def ask_too() -> None:
        with leases.lease(folder, [device], 1, "another job", wait_in_vain):
            return

    folder = work.scratch / "leases"
    with leases.lease(folder, [device], 1, "the check", print) as lease:
        other = Thread(target=ask_too, daemon=True)
        other.start()
        waits = waited.wait(10)
        result = run_worker(work, dagster_pipes, {"WAN_LEASES": str(lease.files[0]), "CUDA_VISIBLE_DEVICES": uuid})
        kept = other.is_alive()
    other.join(10)
    record.check("a second lease", waits and kept and not other.is_alive(), {"device": device}, "waits for the first")
    figures = {"device": result.get("device"), "seconds": (result.get("seconds") or {}).get("total")}
    if result.get("error"):
        figures["error"] = result["error"]
    good = result.get("status") == "succeeded" and (not uuid or result.get("device") != "cpu")
    record.check("worker", good, figures, "succeeds on that device")


def card_uuid() -> str:
    """UUID of this process's GPU, as CUDA_VISIBLE_DEVICES accepts it."""
    found = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    if uuid := f"GPU-{found}" if found else nvidia_smi("uuid"):
        return uuid
    raise Skipped("neither PyTorch nor nvidia-smi reports the GPU's UUID")


def run_worker(work: Work, pipes: Any, variables: dict[str, str]) -> dict[str, Any]:
    """Run a small job in the worker. Returns the result that it reports over Dagster Pipes."""
    task = make_task(work, "worker", SMALL, 5, sampling_steps=1)
    request, messages = work.scratch / "request.json", work.scratch / "messages"
    request.write_text(Request(snapshot=snapshot(work), tasks=[task]).model_dump_json())
    messages.touch()
    empty = ("asset_keys", "code_version_by_asset_key", "provenance_by_asset_key", "partition_key", "job_name")
    context = dict.fromkeys((*empty, "partition_key_range", "partition_time_window"))
    context |= {"run_id": "check", "retry_number": 0, "extras": {}}
    environment = os.environ | variables
    environment |= {
        pipes.DAGSTER_PIPES_CONTEXT_ENV_VAR: pipes.encode_param({"data": context}),
        pipes.DAGSTER_PIPES_MESSAGES_ENV_VAR: pipes.encode_param({"path": str(messages)}),
    }
    words = [sys.executable, "-m", "wan_orchestration.worker", str(request)]
    code = subprocess.run(words, check=False, env=environment).returncode
    for line in messages.read_text().splitlines():
        payload = (json.loads(line).get("params") or {}).get("payload") or {}
        if payload.get("kind") == "result":
            return payload
    return {"error": f"exit code {code} and no result"}
