"""Several characters in one job: each gets clips of its own, made from its own person."""

import numpy as np
import pytest
import yaml

from mini.group import Group, two_figures
from mini.jobs import write_group
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import JOINTS, check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.protocol.messages import CharacterRequest
from wan_orchestration.video.reader import FrameReader


@pytest.fixture(scope="module")
def crossing() -> Group:
    return two_figures(7, 24, crossing=True)


@pytest.fixture
def job(tmp_path, crossing):
    """The folder of a job with two figures who change sides."""
    return write_group(tmp_path / "job", crossing)


def make(folder, tmp_path, progress=lambda *_: None):
    job = Job.open(folder)
    return preprocess(
        job.inputs["driving"],
        job.inputs["reference"],
        tmp_path / "clips",
        job.preprocess_settings(),
        snapshot=None,
        models_root=tmp_path / "models",
        others=[CharacterRequest(reference=picture, settings=one) for picture, one in job.other_characters()],
        progress=progress,
    )


def edit(folder, **content):
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | content))


def test_each_character_gets_the_clips_of_its_person_also_where_they_cross(job, crossing, tmp_path):
    seen, corner = [], {"mask_hints": ["point:0.02,0.02#2", "not:0.5,0.5@99#2"]}
    edit(job, preprocess=yaml.safe_load((job / "job.yaml").read_text())["preprocess"] | corner)
    result = make(job, tmp_path, lambda *progress: seen.append(progress))
    clips = check_clips(tmp_path / "clips", "replace")
    assert len(clips.characters) == len(result.characters) == 1
    for index, one in enumerate([clips, *clips.characters]):
        joints = np.load(one.folder / JOINTS)["body"]
        expected = np.stack([crossing.poses(t)[index].body for t in crossing.frames])
        assert np.abs(joints - expected).max() < 1
        with FrameReader(one.mask.path) as masks:
            for t in (0, 12, 23):
                mask = masks.read([t])[0, :, :, 0] > 0
                own, other = (crossing.mask(each, t) > 0 for each in (index, 1 - index))
                assert mask[own].mean() > 0.97 and mask[other].mean() < 0.1
                assert t or mask[2, 3] == (index == 1), "the hint is for the second character"
    assert seen[-1] == ("clips", 96, 96)
    (late,) = result.characters[0].warnings
    assert late.text.startswith("character 2: mask_hints: not:0.5,0.5@99 is not used") and result.warnings == [late]
    assert clips.version != check_clips(clips.characters[0].folder, "replace").version


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mode": "animate"}, "characters: found mode animate, expected mode: replace"),
        ({"preprocess": {"person": "largest"}}, "person: each of characters names its own person"),
        (
            {"characters": [{"picture": "anna.png", "person": "index:1"}]},
            "no file anna.png, which characters.0.picture",
        ),
        (
            {"characters": [{"picture": f"character_{n}.png", "person": "index:1"} for n in (1, 2)]},
            "characters 1 and 2 both replace the person index:1",
        ),
        (
            {"characters": [{"picture": "mask_1.mp4", "person": "index:1"}]},
            r"mask_1\.mp4: found .*, expected a picture",
        ),
        ({"characters": [{"picture": "character_1.png", "person": "tall"}]}, r"characters\.0\.person: found 'tall'"),
    ],
)
def test_characters_that_cannot_be_used(change, message, job):
    edit(job, **change)
    with pytest.raises(BadInput, match=message):
        Job.open(job)


def test_characters_whom_the_video_does_not_show(job, tmp_path):
    def with_people(*persons):
        files = [{"picture": f"character_{n}.png", "mask": f"mask_{n}.mp4"} for n in (1, 2)]
        edit(job, characters=[file | {"person": person} for file, person in zip(files, persons)])

    with_people("point:0.26,0.39", "index:3")
    with pytest.raises(BadInput, match="'index:3', but no frame shows more than 2"):
        make(job, tmp_path)
    with_people("point:0.26,0.39", "point:0.27,0.4")
    with pytest.raises(BadInput, match=r"characters 1 and 2 mean the same person: point:0\.26,0\.39 and"):
        make(job, tmp_path)
    assert not (tmp_path / "clips").exists()
