import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media import moving_frames, sine, without_decoder, write_video
from PIL import Image

from wan_orchestration.errors import BadInput, validate
from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import check_clips, place_clips
from wan_orchestration.jobs.folder import Job, check_key, key_from
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.reader import probe
from wan_orchestration.video.writer import write_lossless

Make = Callable[..., Path]


def raw(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"content of " + name.encode())
    return folder


@pytest.mark.parametrize("key", ["demo", "a", "0.b_c-d", "x" * 63])
def test_keys(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "Demo", "-a", ".a", "a/b", "a b", "x" * 64, "ä", "a\n", "..", "a$(b)"])
def test_bad_keys(key: str) -> None:
    with pytest.raises(BadInput, match=re.escape(repr(key))):
        check_key(key)


def test_ready_clips(make_job: Make) -> None:
    job = Job.open(make_job("first"))
    assert (job.key, job.kind, job.file.priority) == ("first", "clips", 0)
    assert {name: path.name for name, path in job.inputs.items()} == {
        "src_pose": "src_pose.mp4",
        "src_face": "src_face.mp4",
        "src_ref": "src_ref.png",
    }


def test_raw_inputs(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", "driving.MOV", "reference.jpeg", "Thumbs.db", "._driving.mp4", "keypoints.json")
    job = Job.open(folder)
    assert job.kind == "raw"
    assert {name: path.name for name, path in job.inputs.items()} == {
        "driving": "driving.MOV",
        "reference": "reference.jpeg",
        "keypoints": "keypoints.json",
    }


@pytest.mark.parametrize(
    ("video", "suffix"),
    [("Driving.MOV", "HEIC"), ("driving.m4v", "avif"), ("DRIVING.MTS", "TIFF"), ("driving.gif", "gif")],
)
def test_names_as_devices_write_them(tmp_path: Path, video: str, suffix: str) -> None:
    job = Job.open(raw(tmp_path / "raw", video, f"REFERENCE.{suffix}"))
    assert [path.name for path in job.inputs.values()] == [video, f"REFERENCE.{suffix}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "driving.mov.mp4",
            b"\0\0\0\x18ftypisom",
            r"found driving\.mov\.mp4, an MP4 video: rename it driving\.mp4",
        ),
        ("reference.hif", b"\0\0\0\x18ftypheix", r"found reference\.hif, a HEIC picture: rename it reference\.heic"),
        ("reference.psd", b"8BPS\0\1", r"missing reference; found reference\.psd, a Photoshop document"),
        ("driving.mp4", b"<!doctype html>", r"/driving\.mp4: found an HTML page, expected a video \(mp4, mov"),
        ("driving.mp4", b"\x89PNG\r\n", r"/driving\.mp4: found a PNG picture, expected a video \(mp4, mov"),
        (
            "driving.mp4",
            b"version https://git-lfs.github.com/spec/v1",
            r"driving\.mp4: found a Git LFS pointer \(",
        ),
        ("driving.mp4", bytes(5000), r"/driving\.mp4: found a file of zeros, as an incomplete download leaves it"),
        ("reference.png", b"\0\0\0\x18ftypisom", r"/reference\.png: found an MP4 video, expected a picture \(png"),
    ],
)
def test_what_is_not_usable_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = raw(tmp_path / "job", "driving.mp4" if name.startswith("reference") else "reference.png")
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        Job.open(folder)


def test_complete_clips_win_over_raw_inputs(make_job: Make) -> None:
    folder = make_job()
    raw(folder, "driving.mp4", "reference.png")
    assert Job.open(folder).kind == "clips"
    (folder / "job.yaml").write_text("mode: replace")
    assert Job.open(folder).kind == "raw"
    (folder / "job.yaml").unlink()
    (folder / "src_face.mp4").unlink()
    assert Job.open(folder).kind == "raw"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no inputs, found an empty folder; expected src_pose\.mp4, .*driving\.<mp4\|mov\|.*>"),
        (["notes.txt", "dance.mov"], r"no inputs, found dance\.mov \(a text\), notes\.txt \(a text\); expected"),
        (["src_pose.mp4"], r"missing src_face\.mp4, src_ref\.png; expected"),
        (["driving.mp4"], r"missing reference; expected .*reference\.<png\|jpg\|.*>"),
        (["driving.mp4", "reference.psd"], r"missing reference; found reference\.psd, a text; expected"),
        (["driving.txt"], r"missing driving, reference; found driving\.txt, a text; expected"),
        (["reference.png", "driving.mp4.crdownload"], r"; found driving\.mp4\.crdownload, which is still incomplete;"),
        (["reference.png"], r"missing driving; expected"),
        (["driving.mp4", "driving.mov", "reference.png"], r"found driving\.mov and driving\.mp4, expected one driving"),
    ],
)
def test_missing_inputs(tmp_path: Path, names: list[str], message: str) -> None:
    folder = raw(tmp_path / "job", *names)
    with pytest.raises(BadInput, match=message) as error:
        Job.open(folder)
    assert str(folder) in str(error.value)


def test_missing_folder_and_bad_name(tmp_path: Path, make_job: Make) -> None:
    with pytest.raises(BadInput, match=r"nowhere: no such job folder"):
        Job.open(tmp_path / "nowhere")
    folder = make_job("My Job")
    with pytest.raises(BadInput, match=r"job key 'My Job': expected 1 to 63"):
        Job.open(folder)
    assert Job.open(folder, key="my-job").key == "my-job"


def test_links(make_job: Make, tmp_path: Path) -> None:
    folder = make_job()
    shutil.move(folder / "src_pose.mp4", tmp_path / "elsewhere.mp4")
    (folder / "src_pose.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    job = Job.open(folder)
    assert place_clips(job.folder, tmp_path / "placed", "animate").driving.frames == 5
    assert not (tmp_path / "placed" / "src_pose.mp4").is_symlink()
    (tmp_path / "elsewhere.mp4").unlink()
    with pytest.raises(BadInput, match=r"src_pose\.mp4: a broken link to .*elsewhere\.mp4"):
        Job.open(folder)
    with pytest.raises(BadInput, match="a broken link"):
        check_clips(folder, "animate")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("generate: {sampling_step: 3}", r"generate\.sampling_step: unknown key; did you mean sampling_steps\?"),
        ("generate: {colour: red}", r"generate\.colour: unknown key; known keys: .*clip_len, .*seed"),
        (
            "prioritty: 3",
            r"prioritty: unknown key; did you mean priority\? known keys: mode, priority, review, preprocess",
        ),
        ("generate: {mode: replace}", r"generate\.mode \(mode belongs at the top of the file\): unknown key"),
        ("preprocess: {mode: replace}", r"preprocess\.mode \(mode belongs at the top"),
        ("generate: {_env_file: /etc/passwd}", r"generate\._env_file: unknown key"),
        ("generate: {1: 2}", r"generate\.1.*found 1, expected a valid string"),
        ("mode: dance", r"mode: found 'dance', expected 'animate' or 'replace'"),
        ("generate: {clip_len: 6}", r"generate\.clip_len: found 6, must be 4n\+1 .*5 and 9"),
        ("generate: {clip_len: 5, refert_num: 5}", r"generate: clip_len 5 leaves nothing .*refert_num 5"),
        ("generate: {sampling_steps: many}", r"generate\.sampling_steps: found 'many', expected a valid integer"),
        ("generate: {sampling_steps: 0}", r"generate\.sampling_steps: found 0, expected greater than or equal to 1"),
        ("generate: {seed: -1, shift: 0}", r"generate\.shift: found 0, .*\n.*generate\.seed: found -1"),
        ("generate: [1]", r"generate: found \[1\], expected a valid dictionary"),
        ("preprocess: {fps: -1}", r"preprocess\.fps: found -1, expected greater than 0"),
        ("- a\n- b", r"found a list, expected a mapping with mode, priority, review, preprocess, generate, checks"),
        ("just words", r"found a str, expected a mapping"),
        ("mode: [animate", r"not valid YAML: .*line 1"),
        ("!!python/object/apply:os.getcwd []", r"not valid YAML"),
        ("priority: high", r"priority: found 'high', expected a valid integer"),
    ],
)
def test_bad_job_file(make_job: Make, yaml: str, message: str) -> None:
    folder = make_job(yaml=yaml)
    with pytest.raises(BadInput, match=message) as error:
        Job.open(folder)
    assert str(error.value).startswith(f"{folder / 'job.yaml'}: ")
    assert "pydantic" not in str(error.value)


def test_unreadable_job_file(make_job: Make) -> None:
    folder = make_job()
    (folder / "job.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(BadInput, match="not valid YAML"):
        Job.open(folder)
    (folder / "job.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(BadInput, match="2000000 bytes, expected a short YAML file"):
        Job.open(folder)
    (folder / "job.yaml").unlink()
    (folder / "job.yaml").mkdir()
    with pytest.raises(BadInput, match="expected a file"):
        Job.open(folder)


def test_precedence(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(make_job(mode="replace", yaml="mode: replace\npriority: 2\ngenerate: {clip_len: 9, seed: 7}\n"))
    monkeypatch.setenv("WAN_DEFAULT_SEED", "3")
    monkeypatch.setenv("WAN_DEFAULT_SHIFT", "4")
    settings = job.generate_settings(clip_len=13, seed=None)
    assert (settings.clip_len, settings.seed, settings.shift, settings.sampling_steps) == (13, 7, 4.0, 20)
    assert (settings.mode, job.preprocess_settings().mode, job.file.priority) == ("replace", "replace", 2)
    assert job.generate_settings(mode="animate").mode == "animate"
    assert Job.open(make_job("other")).generate_settings().seed == 3


def test_mode_from_the_environment(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_DEFAULT_MODE", "replace")
    assert Job.open(make_job(mode="replace")).generate_settings().mode == "replace"
    assert Job.open(make_job("other", yaml="mode: animate")).generate_settings().mode == "animate"


def test_empty_job_file(make_job: Make) -> None:
    assert Job.open(make_job(yaml="# nothing yet\n")).file.mode is None


def test_bad_overrides_and_variables_are_named_as_given(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(make_job(yaml="generate: {clip_len: 9}"))
    with pytest.raises(BadInput, match=r"^clip_len: found 6, must be 4n\+1"):
        job.generate_settings(clip_len=6)
    with pytest.raises(BadInput, match=r"^clip_length: unknown key; did you mean clip_len\?"):
        job.generate_settings(clip_length=9)
    monkeypatch.setenv("WAN_DEFAULT_SEED", "x")
    with pytest.raises(BadInput, match=r"^environment variable WAN_DEFAULT_SEED: found 'x', expected a valid integer"):
        job.generate_settings()
    monkeypatch.setenv("WAN_DEFAULT_SEED", "1")
    monkeypatch.setenv("WAN_DEFAULT_LORA", "not json")
    with pytest.raises(BadInput, match=r"^WAN_\* environment: .*lora"):
        job.generate_settings()


def test_validate_names_flags() -> None:
    with pytest.raises(BadInput, match=r"^--clip-len: found 7, must be"):
        validate(GenerateSettings, {"clip_len": 7}, lambda field: "--" + field.replace("_", "-"))


def test_fingerprint(make_job: Make) -> None:
    folder = make_job()
    first = Job.open(folder).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    (folder / "job.yaml").write_text("generate: {seed: 1}")
    (folder / "notes.txt").write_text("ignored")
    (folder / "src_pose.mp4").touch()
    copy = shutil.copytree(folder, folder.with_name("copy"))
    assert Job.open(folder).fingerprint() == Job.open(copy).fingerprint() == first
    Image.new("RGB", (64, 64)).save(folder / "src_ref.png")
    assert Job.open(folder).fingerprint() != first


def test_fingerprint_of_raw_inputs_covers_keypoints(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", "driving.mp4", "reference.png")
    prints = {Job.open(folder).fingerprint()}
    raw(folder / "keypoints", "0.json")
    prints.add(Job.open(folder).fingerprint())
    raw(folder / "keypoints", "1.json")
    prints.add(Job.open(folder).fingerprint())
    raw(folder, "reference_keypoints.json")
    prints.add(Job.open(folder).fingerprint())
    (folder / "driving.mp4").rename(folder / "driving.mov")
    prints.add(Job.open(folder).fingerprint())
    assert len(prints) == 5


def test_check_clips(make_job: Make) -> None:
    clips = check_clips(make_job(frames=6, face_frames=3), "animate")
    assert (clips.driving.frames, clips.videos["src_face"].frames, clips.background, clips.mask) == (6, 3, None, None)
    assert clips.notices == ("src_face.mp4: 3 frames, but src_pose.mp4 has 6; it is played forwards and backwards",)
    clips = check_clips(make_job("other", mode="replace"), "replace", refert_num=1)
    assert clips.background is not None
    assert [*clips.videos] == ["src_pose", "src_face", "src_bg", "src_mask"]
    assert clips.notices == ()


def test_notices_of_differing_clips_and_of_the_sound(make_job: Make) -> None:
    folder = make_job(mode="replace")
    write_lossless(folder / "src_bg.mp4", moving_frames(8, 64, 96), 25)
    write_lossless(folder / "src_mask.mp4", moving_frames(5, 64, 96), Fraction(2997, 100))
    without_decoder(
        write_video(folder / "src_pose.mp4", moving_frames(5, 64, 96), Fraction(30000, 1001), sound=sine(0.3))
    )
    clips = check_clips(folder, "replace")
    assert clips.sound.track is None
    assert clips.notices == (
        "src_bg.mp4: 8 frames, but src_pose.mp4 has 5; the rest is not used",
        "src_bg.mp4: 25 frames a second, but src_pose.mp4 has 29.97; frames are paired by number, at the rate of "
        "src_pose.mp4",
        "src_pose.mp4: the sound has a codec that is not supported; the video is silent",
    )


def test_clips_missing(make_job: Make) -> None:
    folder = make_job()
    with pytest.raises(BadInput, match=r"missing src_bg\.mp4, src_mask\.mp4; mode replace needs src_pose"):
        check_clips(folder, "replace")
    (folder / "src_face.mp4").unlink()
    with pytest.raises(BadInput, match=r"missing src_face\.mp4; mode animate needs"):
        check_clips(folder, "animate")


@pytest.mark.parametrize(
    ("frames", "refert_num", "message"),
    [
        (1, 1, r"src_pose\.mp4: found 1 frame, expected 2 or more$"),
        (5, 5, r"src_pose\.mp4: found 5 frames, expected 6 or more \(more than refert_num 5\)"),
    ],
)
def test_too_few_frames(make_job: Make, frames: int, refert_num: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_clips(make_job(frames=frames, face_frames=2), "animate", refert_num)


def test_one_frame_face(make_job: Make) -> None:
    with pytest.raises(BadInput, match=r"src_face\.mp4: found 1 frame, expected 2 or more"):
        check_clips(make_job(face_frames=1), "animate")


@pytest.mark.parametrize(("height", "width"), [(68, 96), (64, 90), (8, 96)])
def test_sizes_are_multiples_of_16(make_job: Make, height: int, width: int) -> None:
    with pytest.raises(BadInput, match=rf"src_pose\.mp4: found {width}x{height}, expected sides that are multiples of"):
        check_clips(make_job(height=height, width=width), "animate")


def test_other_sizes(make_job: Make) -> None:
    folder = make_job(mode="replace")
    write_lossless(folder / "src_mask.mp4", moving_frames(5, 64, 64), 30)
    with pytest.raises(BadInput, match=r"src_mask\.mp4: found 64x64, expected the size of src_pose\.mp4, 96x64"):
        check_clips(folder, "replace")
    write_lossless(folder / "src_face.mp4", moving_frames(5, 256, 256), 30)
    with pytest.raises(BadInput, match=r"src_face\.mp4: found 256x256, expected 512x512"):
        check_clips(folder, "animate")


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_bad_reference(make_job: Make, content: bytes) -> None:
    folder = make_job()
    (folder / "src_ref.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"src_ref\.png: found (an empty file|a text).*, expected a picture"):
        check_clips(folder, "animate")
    Image.new("RGB", (3, 400)).save(folder / "src_ref.png")
    with pytest.raises(BadInput, match=r"found 3x400 pixels, expected sides of 16 or more"):
        check_clips(folder, "animate")


@pytest.mark.parametrize("name", ["src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4"])
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_cut_clips(make_job: Make, name: str, part: float) -> None:
    path = make_job(mode="replace") / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(BadInput, match=rf"{name}: (the file is empty|found .* that is incomplete)"):
        check_clips(path.parent, "replace")


def test_place_clips(make_job: Make, tmp_path: Path) -> None:
    job, target = Job.open(make_job(mode="replace", yaml="mode: replace")), tmp_path / "clips" / "job"
    target.mkdir(parents=True)
    (target / "stale.mp4").touch()
    clips = place_clips(job.folder, target, "replace")
    assert clips.folder == target and clips.driving.path == target / "src_pose.mp4"
    assert sorted(path.name for path in target.iterdir()) == [
        "src_bg.mp4",
        "src_face.mp4",
        "src_mask.mp4",
        "src_pose.mp4",
        "src_ref.png",
    ]
    assert (target / "src_bg.mp4").read_bytes() == (job.folder / "src_bg.mp4").read_bytes()
    place_clips(job.folder, target, "animate")
    assert len(list(target.iterdir())) == 3
    assert [path.name for path in target.parent.iterdir()] == ["job"]


def test_placing_decodes_every_frame(make_job: Make, tmp_path: Path) -> None:
    job, target = Job.open(make_job(frames=9)), tmp_path / "clips" / "job"
    kept = place_clips(job.folder, target, "animate")
    data = bytearray((job.folder / "src_pose.mp4").read_bytes())
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (job.folder / "src_pose.mp4").write_bytes(data)
    check_clips(job.folder, "animate")
    with pytest.raises(BadInput, match=r"jobs/job/src_pose\.mp4: frame \d \(of 9"):
        place_clips(job.folder, target, "animate")
    assert check_clips(target, "animate") == kept


def test_replacing_survives_a_killed_writer(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = "import sys, os; from pathlib import Path; from wan_orchestration.files import replacing\n"
    code += "with replacing(Path(sys.argv[1])) as part: part.mkdir(); (part / 'a').touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert not target.exists()
    with replacing(target) as part:
        part.mkdir()
        (part / "b").touch()
    assert [path.name for path in target.iterdir()] == ["b"]
    with pytest.raises(RuntimeError), replacing(target) as part:
        part.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_demo_is_a_good_job(demo_job: Path) -> None:
    job = Job.open(demo_job)
    assert job.kind == "raw" and set(job.inputs) == {"driving", "reference", "keypoints", "reference_keypoints"}
    info = probe(job.inputs["driving"])
    assert info.has_audio and info.duration > 3 and info.frames == len(np.load(job.inputs["keypoints"])["body"])
    assert job.preprocess_settings().resolution_area == 128 * 128
    assert sum(path.stat().st_size for path in demo_job.iterdir()) < 1_000_000


def test_import_is_light() -> None:
    code = (
        "import sys, wan_orchestration.jobs.folder; print({'av', 'numpy', 'PIL', 'cv2', 'torch'} & sys.modules.keys())"
    )
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert seen.strip() == "set()"


@pytest.mark.parametrize(
    ("files", "key"),
    [
        (("Ada.PNG", "dance.mp4"), "ada-dance"),
        (("IMG_1234.HEIC", "C:\\Users\\me\\Tanz für Ada (1).mov"), "img-1234-tanz-fur-ada-1"),
        (("../../etc/passwd", "..", "/"), "passwd"),
        (("dance.png", "dance.mp4"), "dance"),
        (("reference.png", "driving.mp4"), ""),
        (("舞蹈.mp4", "$(rm -rf).png"), "rm-rf"),
        (("src_ref.png", "src_pose.mp4"), ""),
        (("x" * 200 + ".png", "-" + "y" * 200), f"{'x' * 24}-{'y' * 24}"),
    ],
)
def test_keys_from_file_names(files: tuple[str, ...], key: str) -> None:
    assert key_from(*files) == key
    assert not key or check_key(f"{key}-99") == f"{key}-99"


ANIMATE_2_REPOSITORY = "Wan-AI/Wan2.2-Animate-2-14B"


@pytest.mark.parametrize(
    ("files", "yaml", "model"),
    [
        ("raw", "", "animate-2"),
        ("raw", "model: animate", "animate"),
        ("raw", "generate: {model: animate-2}", "animate-2"),
        ("raw", "mode: replace", "animate"),
        ("raw", "characters: [{picture: reference.png, person: largest}]\nmode: replace", "animate"),
        ("clips", "", "animate"),
        ("clips raw", "", "animate"),
        ("clips raw", "model: animate-2", "animate-2"),
        (
            "clips",
            "model: animate-2",
            r"model animate-2 needs driving\..* found ready clips, which are for model animate",
        ),
        ("raw", "model: animate-2\nmode: replace", "model: found animate-2, but mode replace is for model animate"),
        (
            "raw",
            "model: animate\ngenerate: {model: animate-2}",
            r"generate\.model: found 'animate-2', but model at the",
        ),
        ("raw", "model: animate-3", r"job\.yaml: model: found 'animate-3', expected 'auto', 'animate' or 'animate-2'"),
        ("raw", "preprocess: {model: animate}", r"preprocess\.model \(model belongs at the top"),
        ("raw", "model: animate-2\nvariant: tiny", r"job\.yaml: variant: found 'tiny', expected 'distilled' or 'base'"),
        (
            "raw",
            "model: animate-2\nvariant: base\ngenerate: {variant: distilled}",
            r"generate\.variant: found 'distilled', but variant at the top",
        ),
        ("raw", "model: animate-2\ngenerate: {refert_num: 5}", r"generate\.refert_num: found 5, but it does not apply"),
        ("raw", "model: animate-2\npreprocess: {masks: light}", r"preprocess\.masks: found 'light', but it does not"),
        ("raw", "model: animate\ngenerate: {prompt_ref: a}", r"generate\.prompt_ref: found 'a', but it does not apply"),
    ],
)
def test_the_model_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str, yaml: str, model: str) -> None:
    # Variables that do not apply to a job's family are not used for it.
    monkeypatch.setenv("WAN_DEFAULT_POSE_STRENGTH", "0.5")
    monkeypatch.setenv("WAN_PREPROCESS_MAX_GAP", "1")
    folder = raw(tmp_path / "job", "job.yaml")
    (folder / "job.yaml").write_text(yaml)
    names = {"raw": ["driving.mp4", "reference.png"], "clips": ["src_pose.mp4", "src_face.mp4", "src_ref.png"]}
    for kind in files.split():
        raw(folder, *names[kind])
    if " " in model:
        with pytest.raises(BadInput, match=model):
            Job.open(folder, env=Environment(model_id=ANIMATE_2_REPOSITORY))
        return
    job = Job.open(folder, env=Environment(model_id=ANIMATE_2_REPOSITORY))
    assert job.kind == ("clips" if model == "animate" and "clips" in files else "raw")
    generate, preprocess = job.generate_settings(), job.preprocess_settings()
    assert generate.model == preprocess.model == model
    first = model == "animate"
    assert (generate.pose_strength, preprocess.max_gap) == ((0.5, 1) if first else (1, 0.5))
    assert (generate.sampling_steps, generate.clip_len) == ((20, 77) if first else (10, 81))


def test_who_decides_on_the_model_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = raw(tmp_path / "job", "driving.mp4", "reference.png")
    assert Job.open(folder).generate_settings(model="animate-2").model == "animate-2"
    monkeypatch.setenv("WAN_DEFAULT_MODEL", "animate-2")
    job = Job.open(folder)
    assert (job.generate_settings().model, job.generate_settings(model="animate").model) == ("animate-2", "animate")
    (folder / "job.yaml").write_text("generate: {model: animate, guide_scale: 2}")
    job = Job.open(folder)
    assert job.preprocess_settings().model == "animate"
    with pytest.raises(BadInput, match=r"^model: found animate-2, but mode replace is for model animate"):
        job.generate_settings(model="animate-2", mode="replace")
    with pytest.raises(BadInput, match=r"^pose_strength: found 0\.5, but it does not apply to model animate-2"):
        job.generate_settings(model="animate-2", pose_strength=0.5)
    assert job.generate_settings(model="auto").model == "animate", "of the configured weights"
