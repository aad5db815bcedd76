"""A local server that speaks the read part of ModelScope's protocol, with faults, and a small snapshot to serve.

with HubServer(original_layout()) as hub:
    hub.faults["Wan2.1_VAE.pth"] = Fault(cut=1000)
    download(Environment(model_endpoint=hub.url, ...), print)
    hub.asked_for("Wan2.1_VAE.pth")  # [None, "bytes=1000-"]: the Range headers
"""

import hashlib
import io
import json
import re
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from safetensors.numpy import save

from wan_orchestration.weights.manifest import FileEntry, Manifest

REPO = "Wan-AI/Wan2.2-Animate-14B"
CHUNK = 1 << 14

VAE = "Wan2.1_VAE.pth"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def original_layout(size: int = 200_000) -> dict[str, bytes]:
    """The files of a snapshot in the original layout, about `size` bytes each; and some that nobody needs."""
    noise = np.random.default_rng(0)
    index = {"metadata": {}, "weight_map": {f"blocks.{i}.weight": shard for i, shard in enumerate(SHARDS)}}
    return {
        "config.json": json.dumps({"_class_name": "WanAnimateModel", "dim": 128}).encode(),
        **{
            shard: save({f"blocks.{i}.weight": noise.standard_normal(size // 4, np.float32)})
            for i, shard in enumerate(SHARDS)
        },
        "diffusion_pytorch_model.safetensors.index.json": json.dumps(index).encode(),
        VAE: _archive(noise.bytes(size)),
        "models_t5_umt5-xxl-enc-bf16.pth": _archive(noise.bytes(size)),
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": _archive(noise.bytes(size)),
        "google/umt5-xxl/tokenizer.json": b"{}",
        "google/umt5-xxl/tokenizer_config.json": b"{}",
        "relighting_lora.ckpt": _archive(noise.bytes(size)),
        "process_checkpoint/det/yolov10m.onnx": noise.bytes(1000),
        "process_checkpoint/pose2d/vitpose_h_wholebody.onnx/end2end.onnx": noise.bytes(1000),
        "process_checkpoint/sam2/sam2_hiera_large.pt": noise.bytes(1000),
        **dict.fromkeys(UNNEEDED, b"not for us"),
    }


UNNEEDED = (
    "README.md",
    "assets/overview.png",
    "process_checkpoint/FLUX.1-Kontext-dev/config.json",
    "process_checkpoint/FLUX.1-Kontext-dev/flux1-kontext-dev.safetensors",
    "xlm-roberta-large/tokenizer.json",
)


def diffusers_layout() -> dict[str, bytes]:
    """The files of a snapshot in the Diffusers layout."""
    weights = save({"weight": np.zeros(100, np.float32)})
    return {
        "model_index.json": json.dumps({"_class_name": "WanAnimatePipeline"}).encode(),
        "transformer/config.json": json.dumps({"_class_name": "WanAnimateTransformer3DModel"}).encode(),
        "transformer/diffusion_pytorch_model.safetensors": weights,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": weights,
        "text_encoder/config.json": b"{}",
        "text_encoder/model-00001-of-00001.safetensors": weights,
        "text_encoder/model.safetensors.index.json": json.dumps(
            {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
        ).encode(),
        "image_encoder/config.json": b"{}",
        "image_encoder/model.safetensors": weights,
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer/tokenizer_config.json": b"{}",
        "scheduler/scheduler_config.json": b"{}",
    }


ANIMATE_2 = "Wan-AI/Wan2.2-Animate-2-14B"
BASE, DISTILLED = (f"wan_animate_2/wan_animate_2_bf16{end}.safetensors" for end in ("", "_distillation"))


def animate_2_layout() -> dict[str, bytes]:
    """The files of Wan-Animate-2 in the original layout, both checkpoints; and some that nobody needs."""
    folder = "videomodel/Wan-AI"
    return {
        BASE: save({"blocks.0.block.modulation": np.zeros(1000, np.float32)}),
        DISTILLED: save({"blocks.0.block.modulation": np.ones(1000, np.float32)}),
        f"{folder}/vae.pth": _archive(b"vae"),
        f"{folder}/models_t5_umt5-xxl-enc-bf16.pth": _archive(b"text"),
        f"{folder}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": _archive(b"image"),
        f"{folder}/umt5-xxl/tokenizer.json": b"{}",
        f"{folder}/umt5-xxl/tokenizer_config.json": b"{}",
        f"{folder}/xlm-roberta-large/tokenizer.json": b"not for us",
        "README.md": b"not for us",
    }


def animate_2_diffusers_layout(blocks: str) -> dict[str, bytes]:
    """The files of Wan-Animate-2 in the Diffusers layout. `blocks` tells the variant."""
    return diffusers_layout() | {
        "model_index.json": json.dumps({"_class_name": "WanAnimate2Pipeline"}).encode(),
        "modular_model_index.json": json.dumps({"_blocks_class_name": blocks}).encode(),
        "transformer/config.json": json.dumps({"_class_name": "WanAnimate2Transformer3DModel"}).encode(),
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_download(folder: Path, files: dict[str, bytes]) -> Path:
    """A complete download of these files."""
    entries = {name: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    write_files(folder, files)
    Manifest(repo="owner/name", endpoint="https://hub", revision="master", files=entries).write(folder)
    return folder


def _archive(content: bytes) -> bytes:
    """What torch.save writes, as far as one can see without torch: a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data/0", content)
    return stream.getvalue()


@dataclass
class Fault:
    """What goes wrong with one file; all of it by default only while `times` lasts."""

    cut: int | None = None
    """Close the connection after this many bytes of the answer."""
    status: int | None = None
    """Answer with this HTTP status."""
    corrupt: bool = False
    """Flip a bit of the last byte."""
    delay: float = 0.0
    """Wait this many seconds after each 16 KB."""
    times: int = 1_000_000
    listing: dict[str, object] = field(default_factory=dict)
    """Fields of the file's entry in the listing that are not true; None leaves one out."""


class HubServer:
    def __init__(self, files: dict[str, bytes], repo: str = REPO, revisions: tuple[str, ...] = ("master",)) -> None:
        self.files, self.repo, self.revisions = files, repo, revisions
        self.faults: dict[str, Fault] = {}
        self.listing_status = 200
        self.page: bytes | None = None
        """What everything is answered with, as by a network that wants one to sign in."""
        self.requests: list[tuple[str, str | None]] = []
        """(what was asked for: "listing" or a file's path, the Range header)"""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked_for(self, what: str) -> list[str | None]:
        return [range_header for name, range_header in self.requests if name == what]

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        route = url.path.removeprefix(f"/api/v1/models/{hub.repo}")
        if hub.page is not None:
            self._send(200, "text/html", hub.page)
        elif route == "/revisions":
            branches = [{"Revision": name} for name in hub.revisions]
            self._answer(200, {"RevisionMap": {"Branches": branches, "Tags": []}})
        elif query.get("Revision", "master") not in hub.revisions:
            self._answer(404)
        elif route == "/repo/files":
            hub.requests.append(("listing", None))
            self._answer(hub.listing_status, {"Files": self._listing()})
        elif route == "/repo" and query.get("FilePath") in hub.files:
            hub.requests.append((query["FilePath"], self.headers.get("Range")))
            self._file(query["FilePath"])
        else:
            self._answer(404)

    def _answer(self, status: int, data: object = None) -> None:
        body = json.dumps({"Code": status, "Success": status == 200, "Message": "as the test wants", "Data": data})
        self._send(status, "application/json", body.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _listing(self) -> list[dict[str, object]]:
        files, faults = self.server.hub.files, self.server.hub.faults
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        entries: list[dict[str, object]] = [{"Path": folder, "Type": "tree"} for folder in sorted(folders)]
        for name, content in files.items():
            true = {"Path": name, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
            told = true | (faults[name].listing if name in faults else {})
            entries.append({key: value for key, value in told.items() if value is not None})
        return entries

    def _file(self, name: str) -> None:
        content, fault = self.server.hub.files[name], self.server.hub.faults.get(name, Fault())
        fault.times -= 1
        if fault.times < 0:
            fault = Fault()
        if fault.status:
            self._answer(fault.status)
            return
        if fault.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        for i in range(0, len(body), CHUNK):
            self.wfile.write(body[i : i + CHUNK])
            time.sleep(fault.delay)
