"""What a partition was made of, for runs over several: there Dagster leaves the noting to the asset."""

from collections.abc import Mapping

import dagster as dg

OBSERVED = ("job_inputs", "job_settings")
"""Assets that are observed, not materialized."""
INPUTS = "wan/job_inputs"
TAG_LENGTH = 63


def provenance(
    version: str, code_version: str, made_of: Mapping[str, str], pointers: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Tags of a materialization that Dagster compares with what there is now.

    `made_of` are data versions by asset, `pointers` the events that said so: of partitioned assets Dagster compares the
    version at that event with the latest.
    """
    tags = {
        "dagster/data_version": version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version,
    }
    for name, input_version in made_of.items():
        tags[f"dagster/input_data_version/{name}"] = input_version
        tags[f"dagster/input_event_pointer/{name}"] = str((pointers or {}).get(name, "NULL"))
    return tags


def pointers(instance: dg.DagsterInstance, key: str, *assets: str) -> dict[str, int]:
    """The latest event of each asset about a job, for `provenance`."""
    found = {}
    for name in assets:
        record = instance.get_latest_data_version_record(dg.AssetKey(name), name in OBSERVED, key)
        if record is not None:
            found[name] = record.storage_id
    return found


def inputs_tag(version: str) -> dict[str, str]:
    """Tag of clips that says of which version of `job_inputs` they were made.

    What Dagster itself notes of a partitioned asset goes by materializations, and inputs are observed.
    """
    return {INPUTS: version[:TAG_LENGTH]}


def made_of(tags: Mapping[str, str], code_version: str, inputs: str) -> bool:
    """Whether clips with these tags were made by this code of these inputs. Other weights do not make them stale."""
    expected = {"dagster/code_version": code_version, **inputs_tag(inputs)}
    return expected.items() <= tags.items()


def last_tags(context: dg.AssetExecutionContext, asset: str, key: str) -> tuple[Mapping[str, str], str] | None:
    """Tags of a partition's latest materialization, and the run that made it; None where it was never made."""
    records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key])
    for record in context.instance.fetch_materializations(records, limit=1).records:
        made = record.asset_materialization
        return (made.tags or {}) if made else {}, record.run_id
    return None
