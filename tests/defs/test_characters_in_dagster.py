"""A job with several characters as Dagster knows it: its clips, their version, their checks."""

import numpy as np

from mini.group import two_figures
from mini.jobs import write_group
from wan_orchestration.defs.clips.checks import judge
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.quality.clips_quality import quality_of, why_blocked
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.video.reader import probe
from wan_orchestration.video.writer import write_lossless


def test_clips_of_all_characters_are_one_asset(data_root, materialize):
    folder = write_group(data_root / "jobs" / "pair", two_figures(7, 4))
    result = materialize("preprocessed_clips", key="pair")
    assert result.success
    (event,) = result.asset_materializations_for_node("preprocessed_clips")
    assert event.metadata["characters"].value == 2
    assert {"contact_sheet", "contact_sheet_2"} <= event.metadata.keys()
    assert (data_root / "clips" / "pair" / "character_2" / "src_mask.mp4").is_file()

    clips = check_clips(data_root / "clips" / "pair", "replace")
    blacked = clips.characters[0].videos["src_face"].path
    info = probe(blacked)
    write_lossless(blacked, [np.zeros((512, 512, 3), np.uint8)] * info.frames, info.fps)
    face = judge(quality_of(clips), CheckSettings())["face"]
    assert not face.passed and "of character 2" in (face.description or "")
    reason = why_blocked(quality_of(clips), CheckSettings(block=["face"]), ready_clips=False)
    assert reason and reason.startswith("src_face.mp4 of character 2 shows a face in 0 %")

    before = JobVersion.of(Job.open(folder))
    file = folder / "job.yaml"
    swapped = file.read_text().replace("character_1", "character_0").replace("character_2", "character_1")
    file.write_text(swapped.replace("character_0", "character_2"))
    after = JobVersion.of(Job.open(folder))
    assert (before.inputs != after.inputs, before.content != after.content) == (True, True), "who replaces whom counts"
