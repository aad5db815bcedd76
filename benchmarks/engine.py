"""Compares this engine with the stock `diffusers.WanAnimatePipeline`: seconds and memory for the same weights and job.

    uv run python benchmarks/engine.py --checkpoint-dir DIR [--size 192x128] [--frames 77 385] [--steps 4]
    uv run python benchmarks/engine.py --model 14b --size 1280x720 832x480 --frames 77 --sides stock compile=off ""
    uv run python benchmarks/engine.py --family animate-2 [--frames 81 241] [--sides stock stock-eager ""]

Each measurement runs in its own process, so its peak memory is its own. The sides take turns. A side is `stock`, or
settings of this engine: "" for the defaults, or for instance "step_cache=2,compile=off". The time runs from clips on
disk to the mp4 on disk, without loading. "CPU s" is the CPU time of all threads, with loading; other work on the
machine changes it less than the other times (OMP_NUM_THREADS=1). With several sides of this engine, PSNR compares their
frames with those of the first. A side that fails gives a row with the reason, and the others still run.

On CUDA each side first makes an uncounted video with one denoising step and another prompt. So compiling is a column of
its own, and the latents of an empty segment of that size are cached, as in any later job.

Without --checkpoint-dir a small random snapshot is used. `--model 14b` makes random weights of the real sizes on the
device; their videos are noise. On CUDA the share of the GPU's bfloat16 peak is shown, measured with a matrix product.

The stock pipeline reads only the Diffusers layout. An original snapshot is converted first, and both sides read that.

Of Wan-Animate-2, `stock` is diffusers' modular pipeline, see `stock_animate_2.py`. It has its own denoising steps, and
its own frames to fill a last segment; with 80 n + 1 frames both sides make n segments and as many steps. "driving" is
the pass over the driving video. `stock` compiles its blocks in an uncounted first segment, `stock-eager` does not.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from long_video import draw_animate_2_job, draw_job, random_snapshot

SELF = Path(__file__).resolve()
PHASES = ("load", "compile", "conditioning", "driving", "denoise", "decode", "total")
STOCK = ("stock", "stock-eager")
DRAW = {"animate": draw_job, "animate-2": draw_animate_2_job}
CLIP_LEN = {"animate": 77, "animate-2": 81}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(DRAW), default="animate")
    parser.add_argument("--model", choices=["snapshot", "14b"], default="snapshot")
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--size", nargs="+", default=["192x128"], help="WIDTHxHEIGHT, multiples of 16")
    parser.add_argument("--frames", type=int, nargs="+", help="default: 77 385; of animate-2: 81 241")
    parser.add_argument("--clip-len", type=int, help="default: 77; of animate-2: 81")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sides", nargs="+", default=["stock", ""], metavar="SIDE")
    parser.add_argument("--repeat", type=int, default=1, help="turns; the median is shown")
    parser.add_argument("--vram", type=float, help="let PyTorch use only this many GB of the GPU")
    parser.add_argument("--cache", type=Path, help="folder of this engine's caches; default: each turn starts without")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.family != "animate" and arguments.model != "snapshot":
        parser.error(
            "--model 14b is for --family animate; benchmarks/gpu_check.py --parts animate_2_640x800 is for the other"
        )
    arguments.clip_len = arguments.clip_len or CLIP_LEN[arguments.family]
    arguments.frames = arguments.frames or {"animate": [77, 385], "animate-2": [81, 241]}[arguments.family]

    rows = []
    print(" ".join(f"{name:>12}" for name in ("size", "frames", *PHASES, "CPU s", "RAM MB", "VRAM MB")) + "  side")

    def keep(row: dict) -> None:
        rows.append(row)
        show(row)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2))

    with tempfile.TemporaryDirectory() as scratch:
        snapshot = arguments.checkpoint_dir or random_snapshot(Path(scratch), arguments.family)
        if arguments.model == "snapshot":
            snapshot = diffusers_layout(snapshot, Path(scratch))
        for size in arguments.size:
            for frames in arguments.frames:
                width, height = map(int, size.split("x"))
                job = DRAW[arguments.family](Path(scratch) / f"{size}-{frames}", frames, height, width)
                references = [side for side in arguments.sides if side not in STOCK]
                turns = []
                for turn in range(arguments.repeat):
                    for side in arguments.sides:
                        work = {"side": side, "job": str(job), "snapshot": str(snapshot)} | vars_of(arguments)
                        turns.append(launch(work))
                        if turn < arguments.repeat - 1:
                            continue
                        row = median([one for one in turns if one["side"] == side])
                        if side in references[1:] and "error" not in row and exact_frames(job, references[0]).exists():
                            row["psnr"] = psnr(exact_frames(job, side), exact_frames(job, references[0]))
                        keep({"size": size, "frames": frames, **row})
    measured = [row for row in rows if "error" not in row]
    for row in measured:
        compare(row, measured)


def vars_of(arguments: argparse.Namespace) -> dict:
    return {
        "family": arguments.family,
        "model": arguments.model,
        "clip_len": arguments.clip_len,
        "steps": arguments.steps,
        "vram": arguments.vram,
        "exact": len([side for side in arguments.sides if side not in STOCK]) > 1,
    } | {"cache": arguments.cache and str(arguments.cache.absolute())}


def diffusers_layout(snapshot: Path, scratch: Path) -> Path:
    if (snapshot / "model_index.json").exists():
        return snapshot
    target = scratch / "diffusers"
    subprocess.run([sys.executable, str(SELF), "--convert", str(snapshot), str(target)], check=True)
    return target


def launch(work: dict) -> dict:
    """Run one side in its own process."""
    with (
        tempfile.NamedTemporaryFile("r") as output,
        tempfile.TemporaryFile("w+") as log,
        tempfile.TemporaryDirectory() as empty,
    ):
        process = subprocess.Popen(
            [sys.executable, str(SELF), "--measure", json.dumps(work | {"output": output.name})],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "WAN_CACHE_ROOT": work["cache"] or empty},
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            said = log.read()
            print(said, file=sys.stderr)
            return {"side": work["side"], "error": (said.strip().splitlines() or [f"exit status {status}"])[-1]}
        spent = {"ram_bytes": usage.ru_maxrss * 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        row = json.loads(output.read()) | {"side": work["side"]}
        return spent | row


def median(turns: list[dict]) -> dict:
    """The median of each time. If a turn failed, its error."""
    turns = [turn for turn in turns if "error" in turn] or turns
    return {
        name: statistics.median(turn[name] for turn in turns) if isinstance(value, float) else value
        for name, value in turns[0].items()
    }


def show(row: dict) -> None:
    if "error" in row:
        print(f"{row['size']:>12} {row['frames']:>12}  {row['side'] or 'defaults'}: {row['error']}", flush=True)
        return
    figures = [f"{row[phase]:.2f}" for phase in PHASES]
    figures.append(f"{row['cpu_seconds']:.2f}")
    figures += [f"{row['ram_bytes'] / 2**20:.0f}", f"{row['vram_bytes'] / 2**20:.0f}" if row["vram_bytes"] else "-"]
    print(
        " ".join(f"{x:>12}" for x in (row["size"], row["frames"], *figures)) + f"  {row['side'] or 'defaults'}",
        flush=True,
    )


def compare(row: dict, rows: list[dict]) -> None:
    """Compare a row of this engine with the stock pipeline's, and with the shortest video of its side."""
    same = {"size": row["size"], "frames": row["frames"]}
    stocks = [one for one in rows if one["side"] in STOCK and same.items() <= one.items()]
    first = next(one for one in rows if (one["side"], one["size"]) == (row["side"], row["size"]))
    line = f"{row['size']} x {row['frames']}, {row['side'] or 'defaults'}:"
    for stock in stocks if row["side"] not in STOCK else ():
        line += f" {stock['total'] / row['total']:.2f} times as fast as {stock['side']}"
        line += f" ({stock['cpu_seconds'] / row['cpu_seconds']:.2f} times less CPU time, with loading);"
    if "psnr" in row:
        line += f" PSNR {row['psnr']:.1f} dB;"
    if first is not row:
        line += f" peak memory {memory(row) / memory(first):.2f} times that at {first['frames']} frames"
    if "tflops" in row:
        line += f" {row['tflops']:.0f} TFLOP/s in the steps, {row['share_of_peak']:.0%} of the measured peak"
    if not line.endswith(":"):
        print(line)


def exact_frames(job: Path, side: str) -> Path:
    """File of a side's exact frames, before they become 8-bit."""
    return job / f"{side or 'defaults'}.npz"


def psnr(frames: Path, reference: Path) -> float:
    """PSNR in dB of frames in [-1, 1]. Infinite if they are equal."""
    with np.load(frames) as ours, np.load(reference) as theirs:
        error = float(np.mean((ours["frames"].astype(np.float64) - theirs["frames"]) ** 2))
    return 10 * math.log10(4 / error) if error else math.inf


def memory(row: dict) -> int:
    return row["vram_bytes"] or row["ram_bytes"]


# All below runs in the measured process.


def convert(source: Path, target: Path) -> None:
    """Write an original snapshot in the Diffusers layout, with the stock pipeline's configuration."""
    if (source / "wan_animate_2").exists():
        import animate_2_layout

        animate_2_layout.write(source, target, "distilled")
        return
    import torch
    from diffusers import UniPCMultistepScheduler
    from transformers import CLIPImageProcessor

    from wan_orchestration.engine.models import Models
    from wan_orchestration.weights.snapshot import open_snapshot

    models = Models(open_snapshot(source), torch.device("cpu"), torch.bfloat16)
    models.transformer().save_pretrained(target / "transformer")
    models.vae().save_pretrained(target / "vae")
    models.text_encoder().save_pretrained(target / "text_encoder")
    models.image_encoder().save_pretrained(target / "image_encoder")
    models.tokenizer().save_pretrained(target / "tokenizer")
    scheduler().save_pretrained(target / "scheduler")
    CLIPImageProcessor().save_pretrained(target / "image_processor")
    for folder, name in (("transformer", "WanAnimateTransformer3DModel"), ("vae", "AutoencoderKLWan")):
        file = target / folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))
    index = {
        "_class_name": "WanAnimatePipeline",
        "transformer": ["diffusers", "WanAnimateTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", UniPCMultistepScheduler.__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "tokenizer": ["transformers", type(models.tokenizer()).__name__],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    }
    (target / "model_index.json").write_text(json.dumps(index))


def random_pipeline(work: dict, device, dtype):
    """The stock pipeline with random weights of the 14B model's sizes."""
    import torch
    from diffusers import AutoencoderKLWan, WanAnimatePipeline, WanAnimateTransformer3DModel
    from random_14b import image_encoder_14b, random_weights, text_encoder_14b
    from transformers import AutoTokenizer, CLIPImageProcessor

    return WanAnimatePipeline(
        tokenizer=AutoTokenizer.from_pretrained(Path(work["snapshot"]) / "google/umt5-xxl"),
        text_encoder=random_weights(text_encoder_14b, device, dtype),
        vae=random_weights(AutoencoderKLWan, device, torch.float32),
        scheduler=scheduler(),
        image_processor=CLIPImageProcessor(),
        image_encoder=random_weights(image_encoder_14b, device, torch.float32),
        transformer=random_weights(lambda: WanAnimateTransformer3DModel(added_kv_proj_dim=5120), device, dtype),
    )


def scheduler():
    """The stock pipeline's own solver."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def measure(work: dict) -> None:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and work["vram"]:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, work["vram"] * 1e9 / total))
    if work["side"] not in STOCK:
        row = measure_engine(work, device)
    elif work["family"] == "animate":
        row = measure_stock(work, device)
    else:
        import stock_animate_2

        row = stock_animate_2.measure(work, device)
    row["conditioning"] = row["total"] - row["driving"] - row["denoise"] - row["decode"]
    row["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    if device.type == "cuda" and row["steps"] and work["family"] == "animate":
        row |= utilisation(work, row, device)
    row["vram_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    Path(work["output"]).write_text(json.dumps(row))


def utilisation(work: dict, row: dict, device) -> dict:
    """TFLOP/s of the denoising steps, and their share of what a matrix product reaches on this GPU right after."""
    import torch

    from wan_orchestration.cli.plan import snapshot_sizes
    from wan_orchestration.engine.memory.placement import SegmentShape
    from wan_orchestration.engine.speed import forward_flops, measured_tflops
    from wan_orchestration.video.reader import probe

    info = probe(Path(work["job"]) / "src_pose.mp4")
    sizes = snapshot_sizes(Path(work["snapshot"]) if work["model"] == "snapshot" else None)
    flops = forward_flops(sizes, SegmentShape(info.height, info.width, work["clip_len"])) * row["steps"]
    tflops, peak = flops / row["denoise"] / 1e12, measured_tflops(device, torch.bfloat16)
    return {"tflops": tflops, "share_of_peak": tflops / peak}


def measure_stock(work: dict, device) -> dict:
    """Read the clips as pictures, call the pipeline as documented, write the frames to an mp4."""
    import torch
    from diffusers import AutoencoderKLWan, WanAnimatePipeline

    started = time.perf_counter()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if work["model"] == "snapshot":
        vae = AutoencoderKLWan.from_pretrained(work["snapshot"], subfolder="vae", torch_dtype=torch.float32)
        pipeline = WanAnimatePipeline.from_pretrained(work["snapshot"], vae=vae, torch_dtype=dtype).to(device)
    else:
        pipeline = random_pipeline(work, device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    seconds = {"load": time.perf_counter() - started, "compile": 0.0, "driving": 0.0, "denoise": 0.0, "decode": 0.0}

    def timed(phase, function):
        def call(*arguments, **options):
            started = time.perf_counter()
            result = function(*arguments, **options)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[phase] += time.perf_counter() - started
            return result

        return call

    if device.type == "cuda":
        stock_video(pipeline, work | {"steps": 1})
    pipeline.transformer.forward = timed("denoise", pipeline.transformer.forward)
    pipeline.vae.decode = timed("decode", pipeline.vae.decode)

    started = time.perf_counter()
    segments = stock_video(pipeline, work)
    return seconds | {"total": time.perf_counter() - started, "steps": work["steps"] * segments}


def stock_video(pipeline, work: dict) -> int:
    """From clips on disk to the mp4 on disk; returns how many segments were generated."""
    import torch
    from PIL import Image

    from wan_orchestration.settings.generate import NEGATIVE_PROMPT, PROMPT
    from wan_orchestration.video.reader import FrameReader
    from wan_orchestration.video.writer import write_segment

    job, clips = Path(work["job"]), {}
    for name in ("pose", "face"):
        with FrameReader(job / f"src_{name}.mp4") as reader:
            clips[name] = [Image.fromarray(frame) for frame in reader.read(range(reader.info.frames))]
            fps = reader.info.fps
    width, height = clips["pose"][0].size
    with torch.no_grad():
        frames = pipeline(
            image=Image.open(job / "src_ref.png"),
            pose_video=clips["pose"],
            face_video=clips["face"],
            prompt=PROMPT,
            negative_prompt=NEGATIVE_PROMPT,
            height=height,
            width=width,
            segment_frame_length=work["clip_len"],
            num_inference_steps=work["steps"],
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(42),
            output_type="np",
        ).frames[0]
    write_segment(job / "stock.mp4", ((frame * 255).round().astype("uint8") for frame in frames), fps)
    return max(1, math.ceil((len(clips["pose"]) - 1) / (work["clip_len"] - 1)))


def measure_engine(work: dict, device) -> dict:
    """Run a job as a launch does."""
    from datetime import UTC, datetime

    from wan_orchestration.generate import runner
    from wan_orchestration.jobs.clips import check_clips
    from wan_orchestration.protocol.messages import Request, Task
    from wan_orchestration.settings.generate import GenerateSettings

    if work["model"] == "14b":
        from random_14b import use_random_weights

        use_random_weights()
    options = dict(one.split("=", 1) for one in work["side"].split(",") if one)
    settings = GenerateSettings.model_validate(
        {
            "model": work["family"],
            "clip_len": work["clip_len"],
            **({} if "preset" in options else {"sampling_steps": work["steps"]}),
            **options,
        }
    )
    job = Path(work["job"])
    with tempfile.TemporaryDirectory() as output:

        def task(name: str, settings: GenerateSettings, **more) -> Task:
            return Task(
                job_id=name,
                clips=check_clips(job, settings.mode, settings.refert_num, settings.model),
                output=Path(output) / name,
                settings=settings,
                created_at=datetime.now(UTC),
                **more,
            )

        frames = exact_frames(job, work["side"]) if work["exact"] else None
        tasks = [task("job", settings, save_frames=frames)]
        if device.type == "cuda":
            once = settings.model_copy(update={"sampling_steps": 1, "prompt": "a first video, not counted"})
            tasks.insert(0, task("warm-up", once))
        driving = time_driving() if work["family"] == "animate-2" else [0.0]
        *before, result = runner.run([(Request(snapshot=work["snapshot"], tasks=tasks), Quiet())])
    for one in (*before, result):
        if one.error:
            sys.exit(one.error)
    took = result.seconds
    steps = settings.sampling_steps * (result.segments or 0)
    warm_up = sum(one.seconds.denoise - took.denoise / steps * (one.segments or 0) for one in before)
    return {
        "load": took.load + sum(one.seconds.load for one in before),
        "compile": max(0.0, warm_up),
        "driving": sum(driving),
        "denoise": took.denoise,
        "decode": took.decode,
        "total": took.total - took.load,
        "steps": steps,
        "attention": result.attention,
        "compiled": result.compiled,
        "placement": result.placement,
    }


def time_driving() -> list[float]:
    """A list that gets the seconds of each pass over the driving video."""
    import torch

    from wan_orchestration.families.animate_2.transformer import Animate2Transformer

    read, seconds = Animate2Transformer.read_driving, []

    def timed(*arguments):
        started = time.perf_counter()
        read(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)

    Animate2Transformer.read_driving = timed
    return seconds


class Quiet:
    def log(self, message: str) -> None:
        print(message)

    def progress(self, progress) -> None:
        return

    def segment(self, segment) -> None:
        return

    def finished(self, result) -> None:
        return


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(json.loads(sys.argv[2]))
    elif sys.argv[1:2] == ["--convert"]:
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
