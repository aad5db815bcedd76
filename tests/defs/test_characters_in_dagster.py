"""A job with several characters as Dagster knows it: its clips, their version, their checks."""

from mini.group import two_figures
from mini.jobs import write_group
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.jobs.folder import Job


def test_clips_of_all_characters_are_one_asset(data_root, materialize):
    folder = write_group(data_root / "jobs" / "pair", two_figures(7, 4))
    result = materialize("preprocessed_clips", key="pair")
    assert result.success
    (event,) = result.asset_materializations_for_node("preprocessed_clips")
    assert event.metadata["characters"].value == 2
    assert {"contact_sheet", "contact_sheet_2"} <= event.metadata.keys()
    assert (data_root / "clips" / "pair" / "character_2" / "src_mask.mp4").is_file()

    before = JobVersion.of(Job.open(folder))
    file = folder / "job.yaml"
    swapped = file.read_text().replace("character_1", "character_0").replace("character_2", "character_1")
    file.write_text(swapped.replace("character_0", "character_2"))
    after = JobVersion.of(Job.open(folder))
    assert (before.inputs != after.inputs, before.content != after.content) == (True, True), "who replaces whom counts"
