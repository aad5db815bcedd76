import itertools
import random
import subprocess
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from media import moving_frames, sine, write_video

from wan_orchestration.errors import BadInput
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader, iter_frames, pingpong, probe
from wan_orchestration.video.stills import read_image
from wan_orchestration.video.writer import write_lossless, write_segment

FPS = Fraction(30)


def decode(path: Path) -> np.ndarray:
    return np.stack(list(iter_frames(path)))


def packets(path: Path, kind: str = "video") -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(**{kind: 0}) if packet.size]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 frames with B-frames and a keyframe every 20."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    return write_video(path, moving_frames(90, 64, 96), options={"g": "20", "preset": "fast"}, sound=sine(3))


def test_probe(long: Path) -> None:
    info = probe(long)
    assert (info.width, info.height, info.fps, info.frames) == (96, 64, FPS, 90)
    assert info.duration == pytest.approx(3.0)
    assert info.has_audio


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(25)])
def test_probe_rates_and_containers(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    codec = "libvpx" if suffix == "webm" else "libx264"
    info = probe(write_video(tmp_path / f"v.{suffix}", moving_frames(20, 48, 64), fps, codec))
    assert (info.frames, info.has_audio) == (20, False)
    assert info.fps == fps or abs(info.fps - fps) < Fraction(1, 100)
    assert info.duration == pytest.approx(20 / fps, abs=0.003)


def test_read_any_order(long: Path) -> None:
    whole = decode(long)
    assert len(whole) == 90
    rng = random.Random(0)
    with FrameReader(long) as reader:
        for _ in range(20):
            indices = rng.choices(range(90), k=4)
            assert (reader.read(indices) == whole[indices]).all()
        tail = pingpong(90, 80, 30)
        assert (reader.read(tail) == whole[tail]).all()
        with pytest.raises(IndexError):
            reader.read([90])


def test_frames_equal_those_of_another_decoder(long: Path) -> None:
    video = cv2.VideoCapture(str(long))
    for ours in iter_frames(long):
        theirs = video.read()[1][..., ::-1]
        assert np.abs(ours.astype(int) - theirs).mean() < 2.5


def test_reading_forward_never_seeks_and_backward_decodes_one_group(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeks, decoded = [], []
    seek, restart = FrameReader._seek, FrameReader._restart

    def counting(self: FrameReader) -> None:
        restart(self)
        frames = self._decoded
        self._decoded = (decoded.append(1) or frame for frame in frames)

    monkeypatch.setattr(FrameReader, "_seek", lambda self, pts: seeks.append(pts) or seek(self, pts))
    monkeypatch.setattr(FrameReader, "_restart", counting)
    with FrameReader(long) as reader:
        for start in range(0, 90, 8):
            reader.read(range(max(start - 1, 0), min(start + 8, 90)))
        # Each segment begins with the last frame of the previous one, which the reader keeps.
        assert (len(seeks), len(decoded)) == (0, 90)
        for index in range(89, -1, -1):
            decoded.clear()
            reader.read([index])
            assert len(decoded) <= 20
        decoded.clear()
        reader.read(pingpong(90, 80, 20))
        assert len(decoded) <= 30


def test_variable_rate_is_read_frame_by_frame(tmp_path: Path) -> None:
    frames = moving_frames(12, 48, 64)
    times = [0, 1, 2, 5, 6, 7, 8, 14, 15, 16, 17, 20]
    path = write_video(tmp_path / "vfr.mp4", frames, codec="libx264rgb", options={"qp": "0"}, times=times)
    assert (decode(path) == frames).all()
    with FrameReader(path) as reader:
        assert reader.times == pytest.approx([t / 30 for t in times], abs=1e-3)
        assert reader.info.duration == pytest.approx(21 / 30, rel=0.05)


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", moving_frames(60, 48, 64), options={"g": "60", "bf": "0"})
    cut = tmp_path / "cut.mp4"
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-ss", "0.5", "-i", whole, "-c", "copy", cut], check=True)
    info = probe(cut)
    assert (info.frames, info.fps) == (45, FPS)
    assert (decode(cut) == decode(whole)[15:]).all()
    with FrameReader(cut) as reader:
        reader.read([40])
        assert (reader.read([3]) == decode(whole)[18]).all()


def test_seeking_in_open_groups(tmp_path: Path) -> None:
    options = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
    path = write_video(tmp_path / "open.mp4", moving_frames(60, 48, 64), options=options)
    whole = decode(path)
    with FrameReader(path) as reader:
        for index in reversed(range(60)):
            assert (reader.read([index])[0] == whole[index]).all()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(tmp_path: Path, degrees: int) -> None:
    upright = write_video(tmp_path / "upright.mp4", moving_frames(3, 48, 64))
    turned = tmp_path / "turned.mp4"
    command = [get_ffmpeg_exe(), "-v", "error", "-display_rotation", str(degrees), "-i", upright, "-c", "copy", turned]
    subprocess.run(command, check=True)
    assert (probe(turned).height, probe(turned).width) == ((48, 64) if degrees == 180 else (64, 48))
    assert (decode(turned) == np.rot90(decode(upright), degrees // 90, (1, 2))).all()


@pytest.mark.parametrize("case", ["a_animate_1clip", "b_animate_3clips_pad", "d_replace_2clips"])
def test_published_clips_decode_exactly(shared: Path, case: str) -> None:
    folder = shared / "parity" / "cases" / case
    inputs = np.load(folder / "inputs.npz")
    for name in inputs.files:
        if name == "ref":
            assert (read_image(folder / "job" / "src_ref.png") == inputs[name]).all()
        else:
            assert (decode(folder / "job" / f"src_{name}.mp4") == inputs[name]).all()


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.mp4: no such file"):
        probe(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(BadInput, match=r"empty\.mp4: the file is empty \(0 bytes\)"):
        probe(tmp_path / "empty.mp4")
    with pytest.raises(BadInput, match="no such file"):
        probe(tmp_path)


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video at all\n" * 100)
    with pytest.raises(BadInput, match=r"text\.mp4: found a text, expected a video"):
        probe(path)


def test_playlists_are_refused(tmp_path: Path, long: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{long}\n#EXT-X-ENDLIST\n")
    with pytest.raises(BadInput, match="found a text, expected a video"):
        probe(path)


def test_audio_only(tmp_path: Path, long: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(0.1), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(BadInput, match=r"song\.mp4: has no video stream, found audio"):
        probe(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    whole = write_video(
        tmp_path / f"whole.{suffix}",
        moving_frames(90, 64, 96),
        codec="libvpx" if suffix == "webm" else "libx264",
        container={"movflags": "faststart"} if suffix == "mp4" else None,
    )
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with pytest.raises(BadInput, match=rf"cut\.{suffix}: truncated: .* of .*; copy or export it again"):
        probe(cut)
    with FrameReader(cut, truncated_ok=True) as reader:
        count = reader.info.frames
        assert 20 < count < 80
        # With B-frames, some of the last few frames may be missing.
        assert (reader.read(range(count - 4)) == decode(whole)[: count - 4]).all()
        reader.verify()


def test_index_lost(tmp_path: Path, long: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(long.read_bytes()[:-4000])
    with pytest.raises(BadInput, match=r"cut\.mp4: found an MP4 video that is incomplete .*; if it was cut off while"):
        probe(cut)


def test_damage_names_the_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(40, 64, 96), options={"g": "10", "bf": "0"})
    data, victim = bytearray(path.read_bytes()), packets(path)[23]
    data[victim.pos + 8 : victim.pos + victim.size] = bytes(victim.size - 8)
    path.write_bytes(data)
    with FrameReader(path) as reader:
        reader.read(range(23))
        for _ in range(2):
            with pytest.raises(BadInput, match=r"damaged\.mp4: frame 2[34] \(of 40, counted from 0\)"):
                reader.read([23, 24])
        reader.read([35])
        with pytest.raises(BadInput, match=r"frame 2[34] "):
            reader.verify()


def test_pingpong() -> None:
    assert pingpong(4, 0, 10) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert pingpong(4, 5, 3) == [1, 0, 1]
    assert pingpong(1, 3, 4) == [0, 0, 0, 0]
    assert pingpong(2, 0, 5) == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("pixels", "error"), [("rgb", 0), ("gray", 0), ("yuv444", 2)])
def test_lossless(tmp_path: Path, pixels: str, error: int) -> None:
    frames = moving_frames(5, 48, 64)
    frames[0][:8, :256] = np.linspace(0, 255, 64, dtype=np.uint8)[:, None]
    given = [frame[..., 0] for frame in frames] if pixels == "gray" else frames
    assert write_lossless(tmp_path / "l.mp4", given, Fraction(24000, 1001), pixels) == 5
    expected = np.stack(given)[..., None] if pixels == "gray" else np.stack(given)
    assert np.abs(decode(tmp_path / "l.mp4").astype(int) - expected).max() <= error
    assert probe(tmp_path / "l.mp4").fps == Fraction(24000, 1001)


def test_no_frames_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_segment(tmp_path / "s.mp4", [], FPS)
    with pytest.raises(ValueError, match="must be even"):
        write_segment(tmp_path / "s.mp4", moving_frames(1, 47, 64), FPS)

    def breaking() -> Iterable[np.ndarray]:
        yield from moving_frames(2, 48, 64)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_segment(tmp_path / "s.mp4", breaking(), FPS)
    assert not list(tmp_path.iterdir())


def test_segments_are_deterministic_and_self_contained(tmp_path: Path) -> None:
    frames = moving_frames(9, 96, 128)
    for name in ("a", "b"):
        write_segment(tmp_path / name, frames, FPS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert next(packet.is_keyframe for packet in packets(tmp_path / "a"))


@pytest.mark.parametrize("fps", [FPS, Fraction(30000, 1001), Fraction(2997, 100), Fraction(25, 2)])
@pytest.mark.parametrize("lengths", [[1], [5], [1, 1, 1], [5, 4, 4, 1], [1, 9, 2]])
def test_concatenate(tmp_path: Path, fps: Fraction, lengths: list[int]) -> None:
    frames = iter(moving_frames(sum(lengths), 48, 64))
    segments = [tmp_path / f"{i}.mp4" for i in range(len(lengths))]
    for segment, length in zip(segments, lengths, strict=True):
        assert write_segment(segment, itertools.islice(frames, length), fps) == length
    output = tmp_path / "out.mp4"
    concatenate(segments, output)

    total = sum(lengths)
    info = probe(output)
    assert (info.frames, info.fps, info.has_audio) == (total, fps, False)
    assert info.duration == pytest.approx(total / fps)
    found = packets(output)
    starts = [packet.pts * packet.time_base for packet in found]
    assert starts == [i / fps for i in range(total)]
    assert [packet.dts for packet in found] == [packet.pts for packet in found]
    assert found[-1].duration * found[-1].time_base == 1 / fps
    keys = {i for i, packet in enumerate(found) if packet.is_keyframe}
    assert keys >= {sum(lengths[:i]) for i in range(len(lengths))}
    assert (decode(output) == np.concatenate([decode(segment) for segment in segments])).all()
    assert not list(tmp_path.glob(".*"))
    # The index is at the start, so that a browser can play while it loads.
    assert output.read_bytes().index(b"moov") < output.read_bytes().index(b"mdat")


def test_colours_are_kept(tmp_path: Path) -> None:
    frames = moving_frames(4, 96, 128)
    write_segment(tmp_path / "s.mp4", frames, FPS)
    concatenate([tmp_path / "s.mp4"], tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_primaries, context.color_trc) == ("yuv420p", 1, 1, 1)
        assert context.color_range == 1
    error = decode(tmp_path / "out.mp4").astype(int) - np.stack(frames)
    assert np.abs(error).mean() < 1.5
    assert np.abs(error.mean((0, 1, 2))).max() < 0.7
    # A player that follows the tags shows the same.
    command = [get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "out.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    seen = np.frombuffer(raw, np.uint8).reshape(4, 96, 128, 3).astype(int) - np.stack(frames)
    assert np.abs(seen.mean((0, 1, 2))).max() < 2


def test_segments_that_differ_are_refused(tmp_path: Path) -> None:
    write_segment(tmp_path / "a.mp4", moving_frames(2, 48, 64), FPS)
    write_segment(tmp_path / "b.mp4", moving_frames(2, 64, 64), FPS)
    with pytest.raises(ValueError, match=r"differ in size.*a\.mp4.*b\.mp4"):
        concatenate([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


PEAK = """
import resource, sys
from pathlib import Path
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.writer import write_segment
folder, frames = Path(sys.argv[1]), int(sys.argv[2])
with FrameReader(folder / f"{frames}.mp4") as reader:
    segments = []
    for start in range(0, frames, 10):
        segments.append(folder / f"{frames}_{start}.mp4")
        write_segment(segments[-1], iter(reader.read(range(start, start + 10))), reader.info.fps)
concatenate(segments, folder / f"{frames}_out.mp4", find_sound(folder / f"{frames}.mp4"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    few = moving_frames(40, 160, 208)
    for segments in (4, 40):
        frames = itertools.islice(itertools.cycle(few), segments * 10)
        write_video(
            tmp_path / f"{segments * 10}.mp4", list(frames), sound=sine(segments / 3), options={"preset": "veryfast"}
        )
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(segments * 10)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < peaks[0] * 1.05
    assert probe(tmp_path / "400_out.mp4").frames == 400
