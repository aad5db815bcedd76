"""Decides which clips and videos are up to date, by the tags of their materializations.

Dagster itself records data versions if a step makes one partition. It records none if a step makes several, and for
partitioned inputs it looks for materializations, which observed assets do not have. So the steps here write Dagster's
own tags, and one more for clips. The UI's "out of sync" marks, this module and the batch then agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from wan_orchestration.defs.jobs.versions import JobVersion

CODE_VERSIONS = {"preprocessed_clips": "2", "generated_video": "1"}
"""Raise one when the code makes something different from the same inputs: all clips or videos are then out of date."""

DATA_VERSION = "dagster/data_version"
OBSERVED = ("job_inputs", "job_settings")
"""Assets that are observed, not materialized."""
CLIPS_INPUTS = "wan/job_inputs"
"""Tag of clips: the version of `job_inputs` that they were made from."""
WEIGHTS = "wan/weights"
"""Tag of videos: the fingerprint of the snapshot that they were made with."""
TAG_LENGTH = 63
RECORDS_PER_QUERY = 500

Tags = Mapping[str, str]


@dataclass(frozen=True)
class Materialized:
    """A partition's latest materialization."""

    tags: Tags
    run_id: str


def inputs_tag(job: JobVersion) -> dict[str, str]:
    """The additional tag of clips."""
    return {CLIPS_INPUTS: job.inputs[:TAG_LENGTH]}


def clips_tags(instance: dg.DagsterInstance, job: JobVersion, version: str, weights: str) -> dict[str, str]:
    """Tags of clips that a step makes for several partitions. `version` is their data version."""
    ingredients = {"job_inputs": job.inputs, "weight_snapshot": weights}
    return inputs_tag(job) | _provenance(instance, "preprocessed_clips", job, version, ingredients)


def video_tags(
    instance: dg.DagsterInstance, job: JobVersion, version: str, clips: str, weights: str, fingerprint: str
) -> dict[str, str]:
    """Tags of a video.

    `version`, `clips` and `weights` are data versions of the video and of its ingredients; `fingerprint` is that of the
    snapshot, from which the version of `weight_snapshot` may differ.
    """
    ingredients = {"weight_snapshot": weights, **_video_ingredients(job, clips)}
    return _weights_tag(fingerprint) | _provenance(instance, "generated_video", job, version, ingredients)


def clips_are_fresh(tags: Tags, job: JobVersion) -> bool:
    """Whether clips with these tags were made by this code from these inputs. Other weights do not make them stale."""
    expected = {"dagster/code_version": CODE_VERSIONS["preprocessed_clips"], **inputs_tag(job)}
    return expected.items() <= tags.items()


def video_is_fresh(tags: Tags, job: JobVersion, clips: Tags, fingerprint: str) -> bool:
    """Whether a video with these tags was made by this code from these settings, weights and clips.

    `fingerprint` is that of the snapshot that the job needs.
    """
    expected = {_input_tag(name): tag for name, tag in _video_ingredients(job, clips.get(DATA_VERSION, "")).items()}
    # Videos of earlier versions have no tag of their own for it.
    expected |= _weights_tag(fingerprint) if WEIGHTS in tags else {_input_tag("weight_snapshot"): fingerprint}
    expected["dagster/code_version"] = CODE_VERSIONS["generated_video"]
    return expected.items() <= tags.items()


def latest(instance: dg.DagsterInstance, asset: str, key: str) -> Materialized | None:
    """A job's latest materialization of an asset; None if there is none."""
    records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key])
    for record in instance.fetch_materializations(records, limit=1).records:
        event = record.asset_materialization
        return Materialized((event.tags or {}) if event else {}, record.run_id)
    return None


def latest_of_all(instance: dg.DagsterInstance, asset: str) -> dict[str, Tags]:
    """By partition, the tags of an asset's latest materializations."""
    key, tags = dg.AssetKey(asset), {}
    ids = list(instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION).values())
    for start in range(0, len(ids), RECORDS_PER_QUERY):
        records = dg.AssetRecordsFilter(asset_key=key, storage_ids=ids[start : start + RECORDS_PER_QUERY])
        for record in instance.fetch_materializations(records, limit=RECORDS_PER_QUERY).records:
            if record.partition_key and record.asset_materialization:
                tags[record.partition_key] = record.asset_materialization.tags or {}
    return tags


def _video_ingredients(job: JobVersion, clips: str) -> dict[str, str]:
    """Those other than the weights."""
    return {"preprocessed_clips": clips, "job_settings": job.settings}


def _weights_tag(fingerprint: str) -> dict[str, str]:
    return {WEIGHTS: fingerprint[:TAG_LENGTH]}


def _provenance(
    instance: dg.DagsterInstance, asset: str, job: JobVersion, version: str, ingredients: Mapping[str, str]
) -> dict[str, str]:
    """Dagster's own tags: data version, code version, and each ingredient's version and event."""
    tags = {
        DATA_VERSION: version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": CODE_VERSIONS[asset],
    }
    for name, input_version in ingredients.items():
        tags[_input_tag(name)] = input_version
        tags[f"dagster/input_event_pointer/{name}"] = _latest_event(instance, name, job.key)
    return tags


def _input_tag(asset: str) -> str:
    return f"dagster/input_data_version/{asset}"


def _latest_event(instance: dg.DagsterInstance, asset: str, key: str) -> str:
    """Id of the event that Dagster compares with: of a partitioned asset, the job's latest. "NULL" if there is none."""
    if asset == "weight_snapshot":
        return "NULL"
    record = instance.get_latest_data_version_record(dg.AssetKey(asset), asset in OBSERVED, key)
    return "NULL" if record is None else str(record.storage_id)
