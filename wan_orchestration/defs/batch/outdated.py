"""Which jobs have no video, or one that is out of date."""

from collections.abc import Mapping

import dagster as dg

from wan_orchestration.defs.clips.assets import CODE_VERSION as CLIPS_CODE_VERSION
from wan_orchestration.defs.jobs.assets import DATA_VERSION, versions
from wan_orchestration.defs.jobs.run_requests import Ask, at_work, urgency
from wan_orchestration.defs.provenance import made_of, provenance
from wan_orchestration.defs.videos.assets import CODE_VERSION
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.weights import hub

AT_ONCE = 500


def outdated(instance: dg.DagsterInstance) -> tuple[list[Ask], dict[str, str]]:
    """Jobs to make videos for, the most urgent first, and those that cannot be used, with the reason.

    Left out are jobs that have a run that waits or runs. BadInput: there are no weights.
    """
    env = environment()
    weights = hub.resolve(env, allow_download=False).fingerprint
    registered = instance.get_dynamic_partitions("jobs")
    busy = at_work(instance, registered)
    clips, videos = (_made(instance, asset) for asset in ("preprocessed_clips", "generated_video"))
    asks, unusable = [], {}
    for key in registered:
        folder = env.jobs_root / key
        if key in busy or not folder.is_dir():
            continue
        try:
            job = Job.open(folder)
            fingerprint = job.fingerprint()
            ask, of = Ask.of(job, fingerprint), versions(job, fingerprint)
        except (BadInput, OSError) as error:
            unusable[key] = str(error)
            continue
        clips_tags = clips.get(key, {})
        fresh_clips = made_of(clips_tags, CLIPS_CODE_VERSION, of["job_inputs"])
        ingredients = {
            "weight_snapshot": weights,
            "job_settings": of["job_settings"],
            "preprocessed_clips": clips_tags.get(DATA_VERSION, ""),
        }
        fresh_video = _agree(videos.get(key, {}), provenance("", CODE_VERSION, ingredients))
        if not (fresh_clips and fresh_video and (env.videos_root / key / "video.mp4").is_file()):
            asks.append(ask)
    return sorted(asks, key=urgency), unusable


def _made(instance: dg.DagsterInstance, asset: str) -> dict[str, Mapping[str, str]]:
    """By partition, the tags of the latest materialization, which say what was made of what."""
    key, tags = dg.AssetKey(asset), {}
    latest = list(instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION).values())
    for start in range(0, len(latest), AT_ONCE):
        records = dg.AssetRecordsFilter(asset_key=key, storage_ids=latest[start : start + AT_ONCE])
        for record in instance.fetch_materializations(records, limit=AT_ONCE).records:
            if record.partition_key and record.asset_materialization:
                tags[record.partition_key] = record.asset_materialization.tags or {}
    return tags


def _agree(tags: Mapping[str, str], expected: Mapping[str, str]) -> bool:
    names = ["dagster/code_version", *(name for name in expected if name.startswith("dagster/input_data_version/"))]
    return all(tags.get(name) == expected[name] for name in names)
