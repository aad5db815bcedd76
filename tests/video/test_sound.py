"""The sound of driving videos: it is copied if it is good, else corrected or left out."""

import re
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from media import moving_frames, sine, without_decoder, write_video

from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video import concat
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import iter_frames, probe
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.writer import write_segment

FPS = Fraction(30)


def packets(path: Path, track: int = 0) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(audio=track) if packet.size]


def samples(path: Path) -> np.ndarray:
    """Mono samples at 48 kHz from time 0 on, as a player plays them."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", path, "-af", "aresample=async=1:first_pts=0"]
    raw = subprocess.run([*command, "-f", "f32le", "-ac", "1", "-ar", "48000", "-"], check=True, capture_output=True)
    return np.frombuffer(raw.stdout, np.float32)


def onset(path: Path) -> float:
    """Seconds at which a tone begins."""
    return float(np.argmax(np.abs(samples(path)) > 0.2)) / 48000


def tone(path: Path) -> list[tuple[float, float]]:
    """Start and end of each tone in seconds. Pauses under 5 ms are ignored."""
    heard = np.flatnonzero(np.abs(samples(path)) > 0.2)
    breaks = np.flatnonzero(np.diff(heard) > 240)
    starts, ends = [0, *(breaks + 1)], [*breaks, len(heard) - 1]
    return [(float(heard[a]) / 48000, float(heard[b]) / 48000) for a, b in zip(starts, ends, strict=True)]


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of picture."""
    path = tmp_path_factory.mktemp("segment") / "s.mp4"
    write_segment(path, moving_frames(60, 48, 64), FPS)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s with a tone in AAC from 0.5 s on."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return write_video(path, moving_frames(60, 48, 64), sound=sine(2, silent_until=0.5))


@pytest.fixture
def joined(segment: Path, tmp_path: Path) -> Callable[..., Path]:
    """Adds the sound of a video to the segment, and checks that the file has all frames."""

    def join(video: Path, start: Fraction | None = None) -> Path:
        output = tmp_path / "out.mp4"
        lost = concatenate([segment], output, find_sound(video), probe(video).start if start is None else start)
        assert lost is None
        assert probe(output).frames == 60
        return output

    return join


def ffmpeg(output: Path, *arguments: str | Path) -> Path:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *arguments, output], check=True)
    return output


@pytest.mark.parametrize(
    ("suffix", "codec", "copied"),
    [("mp4", "aac", True), ("mkv", "libmp3lame", True), ("mov", "pcm_s16le", False), ("webm", "libopus", False)],
)
def test_sound(tmp_path: Path, suffix: str, codec: str, copied: bool) -> None:
    video = "libvpx" if suffix == "webm" else "libx264"
    driving = write_video(
        tmp_path / f"driving.{suffix}",
        moving_frames(60, 48, 64),
        codec=video,
        sound=sine(2.0, silent_until=0.5),
        sound_codec=codec,
    )
    segments = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for i, segment in enumerate(segments):
        write_segment(segment, moving_frames(20, 48, 64, i), FPS)
    output = tmp_path / "out.mp4"
    concatenate(segments, output, find_sound(driving))

    with av.open(str(output)) as container:
        kinds = [stream.type for stream in container.streams]
        assert kinds == ["video", "audio"]
        track = container.streams.audio[0]
        assert track.codec_context.name.startswith("mp3" if "mp3" in codec else "aac")
        assert container.duration / av.time_base == pytest.approx(40 / 30, abs=1e-3)
        assert 40 / 30 - 0.08 < float(track.duration * track.time_base) <= 40 / 30 + 1e-3
    if copied:
        given, kept = packets(driving), packets(output)
        assert [bytes(packet) for packet in kept] == [bytes(packet) for packet in given[: len(kept)]]
    assert onset(output) == pytest.approx(onset(driving), abs=0.005)
    assert onset(output) == pytest.approx(0.5, abs=0.05)
    pictures = [np.stack(list(iter_frames(path))) for path in (output, *segments)]
    assert (pictures[0] == np.concatenate(pictures[1:])).all()


def test_sound_stays_in_sync_in_a_cut_video(tmp_path: Path) -> None:
    whole = write_video(
        tmp_path / "whole.mp4", moving_frames(60, 48, 64), options={"g": "60"}, sound=sine(2.0, silent_until=1.0)
    )
    cut = tmp_path / "cut.mp4"
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-ss", "0.6", "-i", whole, "-c", "copy", cut], check=True)
    write_segment(tmp_path / "s.mp4", moving_frames(30, 48, 64), FPS)
    assert find_sound(cut).copied
    concatenate([tmp_path / "s.mp4"], tmp_path / "out.mp4", find_sound(cut), probe(cut).start)
    assert onset(tmp_path / "out.mp4") == pytest.approx(0.4, abs=0.05)


def test_driving_video_without_sound(tmp_path: Path) -> None:
    write_segment(tmp_path / "s.mp4", moving_frames(3, 48, 64), FPS)
    concatenate([tmp_path / "s.mp4"], tmp_path / "out.mp4", find_sound(tmp_path / "s.mp4"))
    assert not probe(tmp_path / "out.mp4").has_audio


def test_short_sound_is_kept_complete(tmp_path: Path) -> None:
    driving = write_video(tmp_path / "driving.mp4", moving_frames(30, 48, 64), sound=sine(0.3))
    write_segment(tmp_path / "s.mp4", moving_frames(30, 48, 64), FPS)
    concatenate([tmp_path / "s.mp4"], tmp_path / "out.mp4", find_sound(driving))
    assert len(packets(tmp_path / "out.mp4")) == len(packets(driving))
    assert probe(tmp_path / "out.mp4").duration == pytest.approx(1.0)


def remuxed(source: Path, output: Path, moved: dict[int, float]) -> Path:
    """The same file with moved sound packets. `moved`: packet number -> seconds by which it and all later ones move."""
    with av.open(str(source)) as given, av.open(str(output), "w") as made:
        streams = [made.add_stream_from_template(stream) for stream in given.streams]
        counts, shift = [0, 0], 0.0
        for packet in given.demux():
            if packet.size:
                index = packet.stream_index
                if index == 1:
                    shift += moved.get(counts[1], 0)
                    packet.pts = packet.dts = packet.pts + round(shift / packet.time_base)
                counts[index] += 1
                packet.stream = streams[index]
                made.mux(packet)
    return output


def patched(good: Path, folder: Path, numbers: slice, milliseconds: int) -> Path:
    """A Matroska file in which some sound packets have timestamps that no muxer would write."""
    source = ffmpeg(folder / "whole.mkv", "-i", good, "-c", "copy")
    data = bytearray(source.read_bytes())
    for packet in packets(source)[numbers]:
        place = data.index(bytes(packet)) - 3
        time = int.from_bytes(data[place : place + 2], "big", signed=True) + milliseconds
        data[place : place + 2] = time.to_bytes(2, "big", signed=True)
    (folder / "v.mkv").write_bytes(data)
    return folder / "v.mkv"


def repeats(good: Path, folder: Path) -> Path:
    return remuxed(good, folder / "v.mkv", {40: -0.0213, 41: 0.0213})


def goes_back(good: Path, folder: Path) -> Path:
    return patched(good, folder, slice(60, 61), -200)


def strays(good: Path, folder: Path) -> Path:
    return patched(good, folder, slice(60, 61), 5000)


def starts_anew(good: Path, folder: Path) -> Path:
    """The clock goes back by 0.6 s and continues from there."""
    return patched(good, folder, slice(50, None), -600)


def jumps(good: Path, folder: Path) -> Path:
    return remuxed(good, folder / "v.mkv", {50: 0.3})


def crowded(good: Path, folder: Path) -> Path:
    """Joined with the part before the cut, whose packets ffmpeg placed directly one after another."""
    moves = dict.fromkeys(range(50, 70), -0.0213) | {70: 20 * 0.0213}
    return remuxed(good, folder / "v.mp4", {number: shift + 1 / 48000 for number, shift in moves.items()})


def damaged(good: Path, folder: Path) -> Path:
    data, rng = bytearray(good.read_bytes()), np.random.default_rng(0)
    for packet in packets(good)[50:55]:
        data[packet.pos : packet.pos + packet.size] = rng.bytes(packet.size)
    (folder / "v.mp4").write_bytes(data)
    return folder / "v.mp4"


def late(good: Path, folder: Path) -> Path:
    late = ["-itsoffset", "0.7", "-i", good, "-map", "0:v", "-map", "1:a"]
    return ffmpeg(folder / "v.mp4", "-i", good, *late, "-c", "copy")


def clock_jumps(good: Path, folder: Path) -> Path:
    """Two joined recordings. The clock of the second is 16 minutes ahead."""
    whole = folder / "v.ts"
    parts = [("0", "1", "0"), ("1", "1", "1000")]
    for place, (start, length, offset) in enumerate(parts):
        cut = ["-ss", start, "-t", length, "-i", good, "-c:v", "mpeg2video", "-c:a", "aac"]
        part = ffmpeg(folder / f"{place}.ts", *cut, "-output_ts_offset", offset)
        with whole.open("ab") as file:
            file.write(part.read_bytes())
    return whole


def second_track(good: Path, folder: Path) -> Path:
    """As phones record: spatial sound in a proprietary codec, and plain stereo."""
    tracks = ["-map", "0:v", "-map", "0:a", "-map", "0:a"]
    return without_decoder(ffmpeg(folder / "v.mov", "-i", good, *tracks, "-c", "copy"))


def changes(good: Path, folder: Path) -> Path:
    """48 kHz mono until 1 s, then 44.1 kHz stereo."""
    parts = []
    for start, rate, channels in ((0, "48000", "1"), (1, "44100", "2")):
        kind = ["-vn", "-c:a", "libmp3lame", "-write_xing", "0", "-ar", rate, "-ac", channels]
        parts.append(ffmpeg(folder / f"{rate}.mp3", "-ss", str(start), "-t", "1", "-i", good, *kind).read_bytes())
    (folder / "both.mp3").write_bytes(b"".join(parts))
    both = ["-i", good, "-i", folder / "both.mp3", "-map", "0:v", "-map", "1:a", "-c", "copy"]
    return ffmpeg(folder / "v.mkv", *both)


def low_rate(good: Path, folder: Path) -> Path:
    return ffmpeg(folder / "v.mkv", "-i", good, "-c:v", "copy", "-c:a", "libmp3lame", "-ar", "8000")


WHOLE = [(0.5, 2.0)]


@pytest.mark.parametrize(
    ("make", "copied", "notice", "heard"),
    [
        (repeats, False, "has flaws: 1 timestamp corrected", WHOLE),
        (goes_back, False, "1 timestamp corrected", WHOLE),
        (strays, False, "1 timestamp corrected", WHOLE),
        (starts_anew, False, "1 timestamp corrected", WHOLE),
        (jumps, False, "1 gap filled with silence", [(0.5, 1.07), (1.37, 2.0)]),
        (crowded, False, "overlapping pieces left out", [(0.5, 1.09), (1.47, 2.0)]),
        (damaged, False, "damaged, 1 gap filled with silence", [(0.5, 1.05), (1.17, 2.0)]),
        (late, True, None, [(1.2, 2.0)]),
        (clock_jumps, False, "1 timestamp corrected", [(0.5, 1.0), (1.04, 2.0)]),
        (second_track, True, "sound track 1 of 2 has a codec that is not supported; track 2 is used", WHOLE),
        (changes, False, "the kind of sound changes", [(0.52, 1.02), (1.09, 2.0)]),
        (low_rate, False, None, WHOLE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_flaws_are_corrected(
    make: Callable[[Path, Path], Path],
    copied: bool,
    notice: str | None,
    heard: list[tuple[float, float]],
    good: Path,
    joined: Callable[..., Path],
    tmp_path: Path,
) -> None:
    video = make(good, tmp_path)
    found = find_sound(video)
    assert found.copied == copied
    assert len(found.notices) == (notice is not None)
    assert (notice or "") in "".join(found.notices)
    assert np.array(tone(joined(video))) == pytest.approx(np.array(heard), abs=0.03)


@pytest.mark.parametrize("flags", [[], ["-mpegts_flags", "latm"]], ids=["adts", "latm"])
def test_aac_streams_are_reencoded(
    flags: list[str],
    good: Path,
    joined: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A transport stream, whose clock starts at any time. Packets in an mp4 must not have stream headers."""
    video = ffmpeg(tmp_path / "v.ts", "-i", good, "-c", "copy", *flags)
    start = probe(video).start
    assert start > 1
    assert not find_sound(video).copied
    assert onset(joined(video, start)) == pytest.approx(0.5, abs=0.005)


def no_decoder(good: Path, folder: Path) -> Path:
    return without_decoder(ffmpeg(folder / "v.mov", "-i", good, "-c", "copy"))


def no_packets(good: Path, folder: Path) -> Path:
    with av.open(str(good)) as given, av.open(str(folder / "v.mkv"), "w") as made:
        picture, _ = [made.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = picture  # pyright: ignore[reportAttributeAccessIssue]
                made.mux(packet)
    return folder / "v.mkv"


def all_damaged(good: Path, folder: Path) -> Path:
    data, rng = bytearray(good.read_bytes()), np.random.default_rng(0)
    for packet in packets(good):
        data[packet.pos : packet.pos + packet.size] = rng.bytes(packet.size)
    (folder / "v.mp4").write_bytes(data)
    return folder / "v.mp4"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_decoder, "a codec that is not supported; the video is silent"),
        (no_packets, "is empty; the video is silent"),
        (all_damaged, r"cannot be decoded \(aac, \d+ of \d+ damaged\); the video is silent"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_a_usable_track(
    make: Callable[[Path, Path], Path], reason: str, good: Path, joined: Callable[..., Path], tmp_path: Path
) -> None:
    video = make(good, tmp_path)
    found = find_sound(video)
    assert found.track is None
    assert re.fullmatch(rf"{video.name}: the sound .*{reason}", "".join(found.notices))
    assert not probe(joined(video)).has_audio


def test_the_video_is_written_even_if_the_sound_cannot_be(
    good: Path, segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The muxer refuses the eleventh packet, copied or encoded."""
    real = concat._sound_packets

    def refused(*arguments: Any) -> Iterator[av.Packet]:
        for number, packet in enumerate(real(*arguments) or []):
            if number == 10:
                packet.dts = packet.pts = packet.pts - 10**6
            yield packet

    monkeypatch.setattr(concat, "_sound_packets", refused)
    output = tmp_path / "out.mp4"
    told = concatenate([segment], output, find_sound(good))
    assert told is not None
    assert re.fullmatch(r"good\.mp4: the sound is left out, it could not be written \(.*\); the video is silent", told)
    assert (probe(output).frames, probe(output).has_audio) == (60, False)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_the_used_part_has_no_sound(codec: str, segment: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mov", moving_frames(9, 48, 64), sound=sine(0.3), sound_codec=codec)
    told = concatenate([segment], tmp_path / "out.mp4", find_sound(video), Fraction(2))
    assert told == "v.mov: the sound is left out, there is none in the used part; the video is silent"
    assert (probe(tmp_path / "out.mp4").frames, probe(tmp_path / "out.mp4").has_audio) == (60, False)


@pytest.mark.parametrize(
    ("folder", "file", "notice"),
    [
        ("sound_without_decoder", "driving.mov", "is not supported; the video is silent"),
        ("sound_timestamps_repeat", "driving.mkv", "1 timestamp corrected"),
    ],
)
def test_real_files(shared: Path, folder: str, file: str, notice: str, tmp_path: Path) -> None:
    place = shared / "field" / folder
    result = preprocess(
        place / file,
        place / "reference.png",
        tmp_path / "clips",
        PreprocessSettings(estimator="file", retarget="off", resolution_area=16384),
        snapshot=None,
        models_root=tmp_path,
    )
    assert (result.frames, [notice in told.text for told in result.warnings]) == (97, [True])
    info = probe(tmp_path / "clips" / "src_pose.mp4")
    assert (info.frames, info.has_audio, result.has_audio) == (97, *[folder != "sound_without_decoder"] * 2)
    if info.has_audio:
        assert len(samples(info.path)) == pytest.approx(97 / 30 * 48000, abs=2000)
