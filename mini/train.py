"""Trains the mini snapshot: `python -m mini.train STAGE`, with the stages in this order.

codec: fits the linear codec and writes the base, a snapshot with random weights
vae: trains the decoder
cache: draws samples and caches their latents, shard by shard; may run at the same time as vae and transformer
transformer: flow matching on the cached samples
export: writes the snapshot

Everything is stored in --work (default data/mini). A stage that was stopped resumes.
"""

import argparse
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mini import codec as codecs
from mini import flow, samples
from mini.base import write_base
from mini.codec import Codec
from mini.export import write_snapshot
from mini.flow import Trainee
from mini.work import Average, Budget, Work
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.files import replacing

HELD_OUT = 10**6
"""Training uses no seed from here on."""
RATE_FACTORS = ((5.0,), (1.0, 2.0))
"""Of the learning rate, for each optimizer's parameter groups, see `_optimizers`."""


def fit_codec(work: Work) -> None:
    """Fit the codec and write the base."""
    codec = Codec.fit(samples.codec_videos(np.random.default_rng(HELD_OUT - 1), 60))
    write_base(work.base)
    work.save("codec", vars(codec))
    vae = work.models().vae()
    codec.install(vae)
    video = samples.codec_videos(np.random.default_rng(HELD_OUT), 1)[0][0].transpose(0, 1)
    off = (vae.encode_video(video[None])[0] - codec.encode(video)).abs().max().item()
    print(f"the encoder's latents differ from the codec's by at most {off:.4f}")


def train_vae(work: Work, minutes: float, batch: int) -> None:
    """Train the decoder on crops that are drawn during training."""
    codec, vae = work.codec(), work.models().vae().requires_grad_(False)
    codec.install(vae)
    torch.manual_seed(0)
    codecs.prepare_decoder(vae)
    vae.decoder.requires_grad_(True)
    average = Average(vae.decoder)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    steps, spent = 0, 0.0
    if state := work.load("vae"):
        vae.decoder.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights, average.steps = state["average"], state["average_steps"]
        steps, spent = state["steps"], state["minutes"]
    rng = np.random.default_rng([1, steps])
    held_out = samples.decoder_batch(np.random.default_rng(HELD_OUT), 16, 128)
    budget, first, saved, losses = Budget(minutes), steps, time.monotonic(), []

    def save() -> None:
        row = {"minutes": spent + budget.minutes, "steps": steps, "loss": float(np.mean(losses))}
        with average.in_use(vae.decoder), torch.no_grad():
            for name, pictures in zip(("fours", "stills"), held_out):
                error = _decode(vae, codec, pictures.to(work.device), 0.0)[0]
                row[f"psnr_{name}"] = -10 * math.log10(error.item() / 4)
        work.log("vae", row)
        work.save(
            "vae",
            {
                "model": vae.decoder.state_dict(), "optimizer": optimizer.state_dict(), "average": average.weights,
                "average_steps": average.steps, "steps": steps, "minutes": row["minutes"],
            },
        )  # fmt: skip
        losses.clear()

    while (rate := budget.rate(steps - first, 100)) > 0:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        loss = torch.zeros(())
        for pictures in samples.decoder_batch(rng, batch, 64):
            square, flat = _decode(vae, codec, pictures.to(work.device), 0.1)
            loss = loss + (square + 0.1 * flat) * (0.8 if pictures.shape[1] == 4 else 0.2)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        steps += 1
        average.update(vae.decoder, 0.998)
        losses.append(loss.item())
        if time.monotonic() - saved > 90:
            save()
            saved = time.monotonic()
    if losses:
        save()


def _decode(vae: AnimateVae, codec: Codec, pictures: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean square and absolute error of pictures (n, 1 or 4, 3, H, W) after encoding, adding noise and decoding."""
    still = pictures.shape[1] == 1
    video = torch.cat([pictures[:, :1], pictures if not still else pictures[:, :0]], 1)
    latents = torch.stack([codec.encode(each.transpose(0, 1))[:, -1] for each in video.float()])
    latents = latents + noise * torch.rand(len(latents), 1, 1, 1, device=latents.device) * torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        made = codecs.decode(vae, latents, still)
    error = made.float() - pictures
    return error.square().mean(), error.abs().mean()


def draw_cache(work: Work, shards: int, motions: int, seed: int) -> None:
    """Draw shards of `motions` each. Shard 0 is held out."""
    codec, image_encoder = work.codec(), work.models().image_encoder()
    work.cache.mkdir(exist_ok=True)
    for shard in range(seed, seed + shards):
        path = work.cache / f"{shard:05d}.pt"
        if path.is_file():
            continue
        rng = np.random.default_rng(HELD_OUT if shard == 0 else [2, shard])
        drawn = [samples.draw_motion(rng, codec, image_encoder) for _ in range(motions)]
        with replacing(path) as part:
            torch.save({name: torch.stack([each[name] for each in drawn]).half() for name in drawn[0]}, part)
        print(path, flush=True)


def train_transformer(work: Work, minutes: float, batch: int, rate: float, single: float) -> None:
    """Train on all shards, also on those added during training. `single` is the share of steps on single frames."""
    torch.manual_seed(0)
    models = work.models()
    trainee = Trainee(models, work.codec(), samples.SIZE, samples.CLIP_LEN)
    average = Average(trainee)
    optimizers = _optimizers(trainee, rate)
    steps, spent = 0, 0.0
    if state := work.load("transformer"):
        trainee.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(kept)
        average.weights, average.steps = state["average"], state["average_steps"]
        steps, spent = state["steps"], state["minutes"]
        torch.manual_seed(steps)
    held_out = _read_shard(work.cache / "00000.pt")
    shards, cached = [], {}
    budget, first, saved, losses = Budget(minutes), steps, time.monotonic(), []

    def save() -> None:
        row = {"minutes": spent + budget.minutes, "steps": steps}
        row |= {f"train_{name}": float(np.mean([each[name] for each in losses])) for name in losses[0]}
        with average.in_use(trainee):
            row |= {f"held_out_{name}": value for name, value in _validate(trainee, held_out, work.device).items()}
        work.log("transformer", row)
        work.save(
            "transformer",
            {
                "model": trainee.state_dict(), "optimizers": [each.state_dict() for each in optimizers],
                "average": average.weights, "average_steps": average.steps, "steps": steps, "minutes": row["minutes"],
            },
        )  # fmt: skip
        losses.clear()

    while (factor := budget.rate(steps - first, 30)) > 0:
        if steps % 250 == 0 or not shards:
            there = [path for path in sorted(work.cache.glob("*.pt")) if path.stem != "00000"]
            if there != shards:
                shards, cached = there, _join([_read_shard(path) for path in there])
        for optimizer, own_factors in zip(optimizers, RATE_FACTORS):
            for group, own in zip(optimizer.param_groups, own_factors):
                group["lr"] = rate * factor * own
        loss = _random_loss(trainee, cached, batch, single, work.device)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss["loss"] + 0.1 * loss["face"]).backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        steps += 1
        average.update(trainee, 0.998)
        losses.append({name: value.item() for name, value in loss.items()})
        if time.monotonic() - saved > 240:
            save()
            saved = time.monotonic()
    if losses:
        save()


def _optimizers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices; AdamW for the rest, with the motion encoder in a group of its own."""
    matrices, motion, rest = [], [], []
    for name, weight in trainee.named_parameters():
        if weight.requires_grad:
            kind = matrices if ".blocks." in name and weight.ndim == 2 else motion if "motion_encoder" in name else rest
            kind.append(weight)
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([{"params": rest}, {"params": motion}], lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return [muon, adamw]


def _random_loss(
    trainee: Trainee, cached: samples.Sample, batch: int, single: float, device: torch.device
) -> dict[str, Tensor]:
    """Losses of a random batch: whole samples, or with probability `single` six times as many single latent frames."""
    shares = torch.tensor([share for _, share in flow.GUIDES])
    only, guides, size = None, int(torch.multinomial(shares, 1)), batch
    if torch.rand(()).item() < single:
        only, guides, size = int(torch.randint(samples.CLIP_LEN // 4 + 1, ())), 0, 6 * batch
    sample = _pick(cached, torch.randint(len(cached["pose"]), (size,)), torch.randint(2, (size,)), device)
    noise = torch.randn(size, *_noise_shape(sample, only), device=device)
    dropped = torch.rand(()).item() < 0.05
    with torch.autocast(device.type, torch.bfloat16):
        return trainee.loss(sample, flow.levels(size, device), noise, flow.GUIDES[guides][0], dropped, only)


@torch.no_grad()
def _validate(trainee: Trainee, held_out: samples.Sample, device: torch.device) -> dict[str, float]:
    """Mean losses on 24 held-out samples, without and with a guiding frame. The noise is the same each time."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for guides in (0, 1):
        part = _pick(held_out, torch.arange(24), torch.arange(24) % 2, device)
        noise = torch.randn(24, *_noise_shape(part), generator=generator).to(device)
        sigma = torch.linspace(0.1, 0.99, 24, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            found.append(trainee.loss(part, sigma, noise, guides, False))
    return {name: float(np.mean([each[name].item() for each in found])) for name in found[0]}


def _read_shard(path: Path) -> samples.Sample:
    return torch.load(path, weights_only=True)


def _join(parts: list[samples.Sample]) -> samples.Sample:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _pick(cached: samples.Sample, motions: Tensor, looks: Tensor, device: torch.device) -> samples.Sample:
    """A batch of samples: these motions, each with the first or the second of its characters."""
    own = ("pose", "face", "expression", "figure")
    picked = {name: value[motions] if name in own else value[motions, looks] for name, value in cached.items()}
    return {name: value.to(device).float() for name, value in picked.items()}


def _noise_shape(sample: samples.Sample, only: int | None = None) -> tuple[int, ...]:
    channels, frames, *sides = sample["video"].shape[1:]
    return channels, frames + 1 if only is None else 1, *sides


def export(work: Work, folder: Path) -> None:
    """Write the snapshot from the averaged weights so far."""
    vae = work.models().vae()
    work.codec().install(vae)
    trained = work.load("vae")
    if trained is None:
        raise SystemExit(f"{work.folder / 'vae.pt'} is missing; run the stage vae first")
    codecs.prepare_decoder(vae)
    vae.decoder.load_state_dict(trained["average"])
    trainee = Trainee(work.models(), work.codec(), samples.SIZE, samples.CLIP_LEN)
    if trained := work.load("transformer"):
        trainee.load_state_dict(trained["average"], strict=False)
    write_snapshot(folder, work.base, dict(trainee.transformer.named_parameters()), dict(vae.named_parameters()))
    print(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/mini"))
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("codec")
    vae = stages.add_parser("vae")
    vae.add_argument("--minutes", type=float, default=30)
    vae.add_argument("--batch", type=int, default=4, help="figures per step")
    cache = stages.add_parser("cache")
    cache.add_argument("--shards", type=int, default=20)
    cache.add_argument("--motions", type=int, default=200, help="motions per shard")
    cache.add_argument("--first", type=int, default=0, help="number of the first shard")
    transformer = stages.add_parser("transformer")
    transformer.add_argument("--minutes", type=float, default=60)
    transformer.add_argument("--batch", type=int, default=16)
    transformer.add_argument("--single", type=float, default=0.0, help="share of steps on single latent frames")
    transformer.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    stages.add_parser("export").add_argument(
        "folder", type=Path, nargs="?", default=Path("data/models/wan-animate-mini")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    work = Work(arguments.work, arguments.device)
    if arguments.stage == "codec":
        fit_codec(work)
    elif arguments.stage == "vae":
        train_vae(work, arguments.minutes, arguments.batch)
    elif arguments.stage == "cache":
        draw_cache(work, arguments.shards, arguments.motions, arguments.first)
    elif arguments.stage == "export":
        export(work, arguments.folder)
    elif arguments.stage == "transformer":
        train_transformer(work, arguments.minutes, arguments.batch, arguments.rate, arguments.single)


if __name__ == "__main__":
    main()
