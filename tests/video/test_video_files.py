"""Videos of other programs, with their times, shapes, colours and containers."""

import re
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc
from imageio_ffmpeg import get_ffmpeg_exe
from media import moving_frames, sine, write_video

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.info import VideoInfo
from wan_orchestration.video.packets import BROADCAST, BROADCAST_JUMP, JUMP, NO_TIMESTAMP
from wan_orchestration.video.reader import FrameReader, iter_frames, probe
from wan_orchestration.video.timeline import Timeline
from wan_orchestration.video.tonemap import to_sdr

FRAMES = moving_frames(40, 96, 128)


def ffmpeg(*arguments: object) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def decode(path: Path) -> np.ndarray:
    return np.stack(list(iter_frames(path)))


def order_of(path: Path) -> list[int]:
    """For each frame of a video, its index in FRAMES."""
    small = np.stack(FRAMES)[:, ::8, ::8].astype(int)
    return [int(np.abs(small - frame[::8, ::8]).mean((1, 2, 3)).argmin()) for frame in iter_frames(path)]


@pytest.fixture(scope="session")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 25 a second with B-frames, a keyframe every 10, and 1.6 s of sound."""
    path = tmp_path_factory.mktemp("files") / "reordered.mp4"
    return write_video(
        path, FRAMES, 25, options={"g": "10", "bf": "2", "b-adapt": "0", "sc_threshold": "0"}, sound=sine(1.6)
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 40 frames without sound and reordering, with a keyframe every 10."""
    options = {"b": "1M", "g": "10", "deadline": "realtime", "cpu-used": "8"}
    return write_video(tmp_path_factory.mktemp("files") / "plain.webm", FRAMES, 25, "libvpx", options)


@pytest.mark.parametrize(
    ("name", "size", "frames", "seconds", "chosen", "notice"),
    [
        ("starts_at_10_s/driving.mkv", (256, 256), 97, 97 / 30, 97, None),
        ("cut_and_paused/driving.mp4", (256, 256), 62, 65 / 30, 65, None),
        ("cut_and_paused/pause/driving.mp4", (256, 256), 24, 3.3, 99, None),
        ("last_frame_lasts/driving.mp4", (256, 256), 15, 3.0, 90, "stays for 2.5 s"),
        ("timestamps_in_decoding_order/driving.mp4", (256, 256), 97, 97 / 30, 97, "decoding times"),
        ("mirrored_matrix/driving.mp4", (256, 256), 97, 97 / 30, 97, None),
        ("square_pixels_not/driving.mp4", (256, 256), 97, 97 / 30, 97, None),
        ("hd_without_colour_tag/driving.mp4", (1280, 720), 9, 0.3, 9, None),
    ],
)
def test_real_videos(
    shared: Path, name: str, size: tuple, frames: int, seconds: float, chosen: int, notice: str | None
) -> None:
    video = DrivingVideo(shared / "field" / name, PreprocessSettings())
    info = video.info
    assert ((info.width, info.height), info.fps, info.frames, len(video)) == (size, 30, frames, chosen)
    assert info.duration == pytest.approx(seconds, abs=2e-3)
    assert notice in info.notices[0] if notice else not info.notices


def length(time: Timeline) -> float:
    rate = time.rate()
    return float(time.duration(rate) + time.extra_hold(rate))


def timeline(stamps: list, tick: Fraction | float = Fraction(1, 1000), **facts: object) -> Timeline:
    """A timeline of packets with these display times, in file order."""
    ends = {"stream_end": None, "sound_end": None, "file_end": None, "broken_off": None}
    packets = {"pts": [NO_TIMESTAMP if each is None else each for each in stamps], "dts": list(range(len(stamps)))}
    others = {"format": "matroska", "depth": 0, "rates": [], "last": (NO_TIMESTAMP, 0), "hidden": [0] * len(stamps)}
    others["keyframes"] = [0] * len(stamps)
    others["farthest_jump"] = BROADCAST_JUMP if facts.get("format") in BROADCAST else JUMP
    return Timeline(SimpleNamespace(tick=Fraction(tick), **(ends | packets | others | facts)))


def stamps(rate: Fraction | float, count: int, jitter: float = 0) -> list[int]:
    """Timestamps of a rate, in milliseconds."""
    off = np.random.default_rng(0).normal(0, 1000 * jitter, count)
    return [round(1000 * i / rate + off[i]) for i in range(count)]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), 25, 30, 60, 12, Fraction(120)])
def test_rate_of_millisecond_ticks(rate: Fraction) -> None:
    for count in (300, 301):
        found = timeline(stamps(rate, count))
        assert (found.rate(), length(found)) == (rate, pytest.approx(count / rate))


def test_rate_of_irregular_streams() -> None:
    assert float(timeline(stamps(Fraction(30000, 1001), 300, jitter=0.003)).rate()) == pytest.approx(30, abs=0.15)
    full = stamps(30, 240)
    assert timeline(full[:80] + full[80:160:2] + full[160:200] + full[200::2]).rate() == 30
    assert timeline([33 * i for i in range(20)] + [5000 + 33 * i for i in range(20)]).rate() == Fraction(1000, 33)
    # Frames of a film with two and three fields alternately.
    film = [round(1000 * (5 * i // 2) / 60) for i in range(200)]
    assert float(timeline(film).rate()) == pytest.approx(24, abs=0.05)
    assert timeline([0, 40]).rate() == 25
    assert timeline([7]).rate() == 30


def test_rounding_costs_no_frame() -> None:
    for count in range(90, 100):
        steady, paused = stamps(30, count), [stamp for stamp in stamps(30, count) if not 500 < stamp < 900]
        for given in (steady, paused):
            assert length(timeline(given)) * 30 == pytest.approx(count, abs=1e-6)


def test_corrected_times() -> None:
    def seconds(*given: int | None, **facts: object) -> list[int]:
        return [round(1000 * time) for time in timeline(list(given), **facts).times]

    assert seconds(100, 140, 140, 220, 260) == [0, 40, 80, 120, 160]
    assert seconds(0, 40, 10, 120, 160) == [0, 40, 80, 120, 160]
    assert seconds(0, 40, 80, 0, 40, 80) == [0, 40, 80, 120, 160, 200]
    assert seconds(0, 40, 60040, 60080) == [0, 40, 60040, 60080]
    assert seconds(0, 40, 60040, 60080, format="mpegts") == [0, 40, 80, 120]
    assert seconds(0, 40, 10**12, 120, 160) == [0, 40, 80, 120, 160]
    assert seconds(-(10**12), 40, 80) == [0, 40, 80] and timeline([-(10**12), 40, 80]).start == 0
    assert seconds(0, None, 80, rates=[Fraction(50)], dts=[0, 40, 80]) == [0, 40, 80]
    assert seconds(0, None, 80, rates=[Fraction(50)], dts=[NO_TIMESTAMP, 40, NO_TIMESTAMP]) == [0, 20, 40]
    assert seconds(0, 120, 40, 80, 0, 120, 40, 80, depth=1, keyframes=[1, 0, 0, 0, 1, 0, 0, 0]) == list(
        range(0, 320, 40)
    )
    # Reordered frames are not a flaw.
    assert not timeline([0, 120, 40, 80, 240, 160, 200], depth=1).notice
    repeated = timeline([0, 120, 40, 40, 240, 160, 200], depth=1)
    assert repeated.counted and "1 of 7 timestamps repeat or go back" in repeated.notice


def test_the_last_frame_lasts() -> None:
    steps = [0, 40, 80]
    second, half = Fraction(1), Fraction(1, 2)
    assert length(timeline(steps)) == pytest.approx(0.12)
    assert length(timeline(steps, sound_end=half)) == pytest.approx(0.12)
    assert length(timeline(steps, sound_end=second)) == pytest.approx(1)
    assert length(timeline(steps, file_end=second, broken_off="yes")) == pytest.approx(0.12)
    assert length(timeline(steps, last=(80, 400))) == pytest.approx(0.48)
    assert length(timeline(steps, last=(80, 400), sound_end=half)) == pytest.approx(0.5)
    assert length(timeline(steps, stream_end=second)) == pytest.approx(1)
    late = [stamp + 5000 for stamp in steps]
    assert length(timeline(late, sound_end=Fraction(6))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("xvid.avi", "-c:v mpeg4 -bf 2 -q:v 2"),
        ("h264.avi", "-c:v libx264 -bf 2"),
        ("mjpeg.avi", "-c:v mjpeg -q:v 2"),
        ("old.mpg", "-c:v mpeg1video -bf 2 -q:v 2"),
        ("dvd.mpeg", "-c:v mpeg2video -bf 2 -q:v 2 -f vob"),
        ("broadcast.ts", "-c:v libx264 -bf 2 -g 12"),
        ("camera.MTS", "-c:v mpeg2video -bf 2 -q:v 2 -f mpegts"),
        ("disc.m2ts", "-c:v libx265 -x265-params log-level=error:bframes=2"),
        ("phone.m4v", "-c:v mpeg4 -bf 2 -q:v 2 -f mp4"),
        ("drawn.gif", "-filter_complex [0:v]split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"),
        ("offset.mp4", "-c:v libx264 -bf 2 -output_ts_offset 10"),
        ("offset.mkv", "-c:v libx264 -bf 2 -output_ts_offset 10"),
        ("offset.webm", "-c:v libvpx -b:v 1M -deadline realtime -cpu-used 8 -output_ts_offset 100"),
        ("negative.mkv", "-c:v libx264 -bf 2 -output_ts_offset -0.5 -avoid_negative_ts disabled"),
        ("fragmented.mp4", "-c:v libx264 -bf 2 -movflags frag_keyframe+empty_moov"),
    ],
)
def test_containers(tmp_path: Path, reordered: Path, name: str, arguments: str) -> None:
    path = tmp_path / name
    ffmpeg("-i", reordered, "-an", *arguments.split(), path)
    with FrameReader(path) as reader:
        info = reader.info
        assert (info.frames, info.fps, info.width, info.height) == (40, 25, 128, 96)
        assert info.duration == pytest.approx(1.6, abs=1e-3)
        assert not info.notices or name == "negative.mkv"
        backwards = [reader.read([index])[0] for index in (39, 20, 3)]
    assert order_of(path) == list(range(40))
    assert (np.stack(backwards) == decode(path)[[39, 20, 3]]).all()


def test_decoding_times_in_place_of_display_times(tmp_path: Path, reordered: Path) -> None:
    ffmpeg("-i", reordered, "-an", "-c", "copy", "-bsf:v", "setts=pts=DTS", tmp_path / "dts.mkv")
    info = probe(tmp_path / "dts.mkv")
    assert (info.frames, info.fps) == (40, 25) and "decoder's order" in info.notices[0]
    assert order_of(tmp_path / "dts.mkv") == list(range(40))


@pytest.mark.parametrize("expression", ["if(eq(N,20),PTS-2*DURATION,PTS)", "if(gt(N,19),PTS-20*DURATION,PTS)"])
def test_times_that_repeat_or_go_back(tmp_path: Path, plain: Path, expression: str) -> None:
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", f"setts=pts='{expression}':dts='{expression}'", tmp_path / "back.mkv")
    with FrameReader(tmp_path / "back.mkv") as reader:
        assert (reader.info.frames, reader.info.fps) == (40, 25)
        assert reader.info.duration == pytest.approx(1.6, abs=0.002)
        assert np.diff(reader.times) == pytest.approx(np.full(39, 0.04), abs=0.002)
        assert "timestamps repeat or go back" in reader.info.notices[0]
    assert order_of(tmp_path / "back.mkv") == list(range(40))


def test_a_recording_that_begins_between_keyframes(tmp_path: Path, reordered: Path) -> None:
    ffmpeg("-i", reordered, "-an", "-c", "copy", tmp_path / "whole.ts")
    with av.open(str(tmp_path / "whole.ts")) as container:
        cut = [packet.pos for packet in container.demux(video=0) if packet.size][4]
    (tmp_path / "cut.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[cut:])
    assert order_of(tmp_path / "cut.ts") == list(range(10, 40))


def test_a_webm_without_a_length_as_browsers_record_it(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "recorded.webm"
    with path.open("wb") as file:
        command = [get_ffmpeg_exe(), "-v", "error", "-i", plain, "-c", "copy", "-f", "webm", "-live", "1", "-"]
        subprocess.run(command, check=True, stdout=file)
    with FrameReader(path) as reader:
        assert (reader.info.frames, reader.info.fps) == (40, 25)
        assert (reader.read([35, 5]) == decode(plain)[[35, 5]]).all()


def test_a_cut_file_whose_clock_starts_late(tmp_path: Path, reordered: Path) -> None:
    ffmpeg("-i", reordered, "-an", "-c", "copy", "-output_ts_offset", "10", tmp_path / "late.mkv")
    data = (tmp_path / "late.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match="truncated"):
        probe(tmp_path / "cut.mkv")


def test_avi_that_breaks_off(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=3", "-c:v", "mjpeg", tmp_path / "whole.avi")
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"cut\.avi: truncated: it ends at .* of 3\.0 s"):
        probe(tmp_path / "cut.avi")
    with FrameReader(tmp_path / "cut.avi", truncated_ok=True) as reader:
        assert 20 < reader.info.frames < 27


def with_matrix(path: Path, *matrix: int) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
        stream.set_display_matrix([*matrix[:2], 0, *matrix[2:], 0, 0, 0, 1 << 30])
        output.mux([*stream.encode(av.VideoFrame.from_ndarray(FRAMES[0])), *stream.encode(None)])
    return path


@pytest.mark.parametrize("near", [0, 1000])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("x", [1, -1])
@pytest.mark.parametrize("y", [1, -1])
def test_eight_orientations(tmp_path: Path, x: int, y: int, transposed: bool, near: int) -> None:
    one = 1 << 16
    matrix = (near, y * one, x * one, near) if transposed else (x * one, near, near, y * one)
    path = with_matrix(tmp_path / "laid.mp4", *matrix)
    source = FRAMES[0].transpose(1, 0, 2) if transposed else FRAMES[0]
    assert (decode(path)[0] == source[::y, ::x]).all()
    assert not probe(path).notices


def test_an_odd_angle_is_reported(tmp_path: Path) -> None:
    info = probe(with_matrix(tmp_path / "slanted.mp4", 56756, 32768, -32768, 56756))
    assert "30 degrees off a right angle" in info.notices[0]


@pytest.mark.parametrize(("aspect", "shape"), [("2/1", (256, 96)), ("8/9", (128, 108)), ("0/1", (128, 96))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_non_square_pixels(tmp_path: Path, aspect: str, shape: tuple[int, int], suffix: str) -> None:
    path = tmp_path / f"wide.{suffix}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=0.2", "-vf", f"setsar={aspect}", "-c:v", "libx264", path)
    info = probe(path)
    assert (info.width, info.height) == shape


@pytest.mark.parametrize("size", ["101x75", "103x77"])
def test_odd_sizes_are_read_completely(tmp_path: Path, size: str) -> None:
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        f"testsrc=s={size}:r=25:d=0.2",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv444p",
        tmp_path / "o.mp4",
    )
    info = probe(tmp_path / "o.mp4")
    assert f"{info.width}x{info.height}" == size


def with_aperture(path: Path, *values: int) -> None:
    """Adds a clean aperture to an mp4 with the index at the end: width, height and offset from the centre."""
    data = path.read_bytes()
    ratios = b"".join(value.to_bytes(4, "big", signed=True) + (1).to_bytes(4, "big") for value in values)
    clap = (8 + len(ratios)).to_bytes(4, "big") + b"clap" + ratios
    index = data.index(b"moov")
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = data.index(kind, index) - 4
        end = at + int.from_bytes(data[at : at + 4], "big")
        data = data[:at] + (end - at + len(clap)).to_bytes(4, "big") + data[at + 4 :]
    path.write_bytes(data[:end] + clap + data[end:])


def test_crop_of_the_container(tmp_path: Path, reordered: Path) -> None:
    cropped, copy = tmp_path / "cropped.mp4", tmp_path / "copy.mkv"
    ffmpeg("-i", reordered, "-an", "-c", "copy", "-frames:v", "5", cropped)
    whole = decode(cropped)[0]
    with_aperture(cropped, 100, 64, 4, -6)
    ffmpeg("-apply_cropping", "none", "-i", cropped, "-c", "copy", copy)
    for path in (cropped, copy):
        assert (decode(path)[0] == whole[10:74, 18:118]).all()


def test_too_large_frames_are_refused_before_one_is_decoded(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=s=9000x16:r=1:d=1", "-c:v", "libx264", tmp_path / "large.mp4")
    with pytest.raises(BadInput, match=r"large\.mp4: 9000x16 frames, at most 8192 px a side are accepted"):
        probe(tmp_path / "large.mp4")


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mts", "mpeg2video")])
def test_interlaced_video_is_deinterlaced(tmp_path: Path, suffix: str, codec: str) -> None:
    # A bright bar moves by 8 px per field. Differences of neighbouring rows show combing.
    path = tmp_path / f"camera.{suffix}"
    bar = (
        "color=white:s=24x96:r=50:d=0.6[b];color=black:s=128x96:r=50:d=0.6[g];"
        "[g][b]overlay=x=n*4:shortest=1,interlace=lowpass=0"
    )
    muxer = ["-f", "mpegts"] if suffix == "mts" else []
    ffmpeg(
        "-filter_complex",
        bar,
        "-c:v",
        codec,
        "-g",
        5,
        "-b:v",
        "2M",
        "-flags",
        "+ildct+ilme",
        "-pix_fmt",
        "yuv420p",
        *muxer,
        path,
    )
    with FrameReader(path) as reader:
        info = reader.info
        assert (info.frames, info.fps) == (15, 25) and "interlaced" in info.notices[0]
        frames = [reader.read([index])[0] for index in range(15)]
        for index in (12, 5, 10, 0):
            assert (reader.read([index])[0] == frames[index]).all()
    combs = [np.abs(np.diff(frame[16:80, :, 1].astype(int), axis=0)).mean() for frame in frames[2:-2]]
    assert max(combs) < 6


class Bits:
    """Writes bits in H.264's syntax, ITU-T H.264 7.2."""

    def __init__(self) -> None:
        self._bits = ""

    def put(self, *fields: tuple[int, int]) -> "Bits":
        """Appends values, each with its length in bits. Length 0: an unsigned Exp-Golomb code."""
        for length, value in fields:
            code = f"{value:0{length}b}" if length else f"{value + 1:b}"
            self._bits += code if length else "0" * (len(code) - 1) + code
        return self

    def align(self) -> "Bits":
        self._bits += "0" * (-len(self._bits) % 8)
        return self

    def unit(self, header: int) -> bytes:
        """A complete NAL unit."""
        data = self.put((1, 1)).align()._bits
        payload = bytes(int(data[i : i + 8], 2) for i in range(0, len(data), 8))
        # The content must not contain a start code.
        return b"\0\0\0\1" + bytes([header]) + re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", payload)


def field_pictures(count: int) -> bytes:
    """H.264 of 32x32 with PCM samples: 25 frames per second of two separately coded fields, as camcorders write."""
    start = Bits().put((8, 77), (8, 0), (8, 30), *[(0, 0)] * 4, (0, 1), (1, 0), (0, 1), (0, 0), (4, 0b0010))
    # Display: 50 fields per second, no reordering.
    start.put((6, 0b100001), (32, 1), (32, 50), (1, 1), (5, 0b00011), *[(0, 0)] * 2, *[(0, 10)] * 2, (0, 0), (0, 1))
    start = start.unit(0x67) + Bits().put(*[(0, 0)] * 2, (2, 0), *[(0, 0)] * 3, (3, 0), *[(0, 0)] * 3, (3, 0)).unit(
        0x68
    )
    stream = b""
    for i in range(count):
        for bottom in (0, 1):
            picture = Bits().put((0, 0), (0, 7), (0, 0), (4, i % 5), (1, 1), (1, bottom))
            first = i % 5 == 0 and not bottom
            picture.put(
                *([(0, i // 5 % 2)] if first else []), (4, 2 * (i % 5) + bottom), (2 if first else 1, 0), (0, 0)
            )
            for _ in range(2):
                picture.put((0, 25)).align().put(*[(8, 16 + 7 * i)] * 256, *[(8, 128)] * 128)
            opening = start if first else b""
            stream += b"\0\0\0\1\x09\x10" + opening + picture.unit(0x65 if first else 0x61)
    return stream


@pytest.mark.parametrize("suffix", ["mts", "mp4", "mkv"])
def test_fields_in_separate_packets(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "fields.h264").write_bytes(field_pictures(20))
    path = tmp_path / f"fields.{suffix}"
    muxer = ["-f", "mpegts"] if suffix == "mts" else []
    ffmpeg("-v", "fatal", "-framerate", 25, "-i", tmp_path / "fields.h264", "-c", "copy", *muxer, path)
    with FrameReader(path) as reader:
        assert (reader.info.frames, reader.info.fps, reader.info.duration) == (20, 25, pytest.approx(0.8, abs=1e-3))
        for index in (*range(20), 11, 10, 3):
            assert abs(reader.read([index])[0, 16, 16, 0] - 255 * 7 * index / 219) < 2


def test_recordings_joined_end_to_end(tmp_path: Path, reordered: Path) -> None:
    ffmpeg("-i", reordered, "-an", "-c", "copy", tmp_path / "one.ts")
    (tmp_path / "two.ts").write_bytes((tmp_path / "one.ts").read_bytes() * 2)
    with FrameReader(tmp_path / "two.ts") as reader:
        assert (reader.info.frames, reader.info.duration) == (80, pytest.approx(3.2))
    assert order_of(tmp_path / "two.ts") == [*range(40), *range(40)]


def test_a_length_in_the_header_that_is_too_short(tmp_path: Path, reordered: Path) -> None:
    data = reordered.read_bytes()
    at = data.index(b"mdhd") + 20
    short = tmp_path / "short.mp4"
    short.write_bytes(data[:at] + (int.from_bytes(data[at : at + 4], "big") // 30).to_bytes(4, "big") + data[at + 4 :])
    info = probe(short)
    assert (info.frames, info.fps, info.duration) == (40, 25, pytest.approx(1.6))


def coloured(
    path: Path, *, size: str = "64x64", tags: str = "", pixels: str = "yuv444p", yuv: tuple = (81, 90, 240)
) -> np.ndarray:
    """The central pixel of a video that has one Y, Cb, Cr everywhere."""
    width, height = map(int, size.split("x"))
    raw = b"".join(bytes([value]) * (width * height) for value in yuv)
    command = [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-i", "-"]
    command += ["-vf", f"setparams={tags}" if tags else "null", "-c:v", "libx264", "-qp", "0", str(path)]
    subprocess.run(command, check=True, input=raw)
    return next(iter_frames(path))[height // 2, width // 2].astype(int)


@pytest.mark.parametrize(
    ("size", "tags", "expected"),
    [
        ("64x64", "", (254, 0, 0)),
        ("720x576", "", (254, 0, 0)),
        ("1280x720", "", (255, 24, 0)),
        ("720x1280", "", (255, 24, 0)),
        ("64x64", "colorspace=bt709", (255, 24, 0)),
        ("1280x720", "colorspace=smpte170m", (254, 0, 0)),
        ("1280x720", "colorspace=bt2020c", (255, 10, 0)),
        ("64x64", "range=pc", (238, 14, 14)),
    ],
)
def test_matrix_by_tag_and_else_by_size(tmp_path: Path, size: str, tags: str, expected: tuple) -> None:
    assert np.abs(coloured(tmp_path / "c.mp4", size=size, tags=tags) - expected).max() <= 1


def test_hd_without_colour_tag(shared: Path) -> None:
    path = shared / "field" / "hd_without_colour_tag" / "driving.mp4"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        expected = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    # Chroma at edges is filtered differently.
    assert np.percentile(np.abs(decode(path)[0].astype(int) - expected), 95) <= 1


@pytest.mark.parametrize("primaries", ["bt2020", "smpte432"])
def test_wide_primaries_become_those_of_bt709(tmp_path: Path, primaries: str) -> None:
    tags = f"colorspace=bt709:range=pc:color_primaries={primaries}:color_trc=iec61966-2-1"
    # R, G, B 211, 75, 57, converted by the matrices of both primaries in linear light.
    found = coloured(tmp_path / "p.mp4", tags=tags, yuv=(103, 103, 197))
    expected = {"smpte432": (229, 61, 44), "bt2020": (255, 0, 45)}[primaries]
    assert np.abs(found - expected).max() <= 2
    assert np.ptp(coloured(tmp_path / "g.mp4", tags=tags, yuv=(120, 128, 128))) <= 1


def test_gray_stays_in_every_transfer() -> None:
    gray = np.full((1, 1, 3), 100 * 257, np.uint16)
    for transfer in (ColorTrc.BT709, ColorTrc.IEC61966_2_1, ColorTrc.UNSPECIFIED):
        assert np.abs(to_sdr(gray, transfer, ColorPrimaries.SMPTE432).astype(int) - 100).max() <= 1


def test_defaults_of_info() -> None:
    info = VideoInfo(Path("v.mp4"), 2, 2, Fraction(30), 1, 0.1, False)
    assert (info.start, info.notices) == (0, ())


def test_a_recording_that_ends_within_a_frame(tmp_path: Path) -> None:
    """As television recordings: the packets of a transport stream may end anywhere."""
    whole = write_video(tmp_path / "whole.ts", FRAMES, 25, "mpeg2video", {"g": "10", "bf": "2", "b": "4M"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.ts"
    for part in (0.5, 0.7, 0.9):
        cut.write_bytes(data[: int(len(data) * part) // 188 * 188])
        with FrameReader(cut) as reader:
            reader.verify()
            assert 40 * part - 6 < reader.info.frames < 40
