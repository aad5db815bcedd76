"""The snapshots that jobs need, by model family and variant."""

import dagster as dg

from wan_orchestration.defs.freshness import DATA_VERSION
from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import FAMILIES
from wan_orchestration.settings.environment import environment
from wan_orchestration.weights import hub
from wan_orchestration.weights.snapshot import Snapshot


class Snapshots:
    """The snapshots on this machine. Looks each up once and downloads nothing."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Snapshot | BadInput] = {}

    def of(self, model: str, variant: str) -> Snapshot:
        """The one that a job needs with these settings. BadInput: it is not there."""
        key = model, variant
        if key not in self._known:
            try:
                self._known[key] = hub.resolve(environment(), allow_download=False, model=model, variant=variant)
            except BadInput as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, BadInput):
            raise found
        return found

    def fingerprints(self) -> set[str]:
        """Those of all snapshots, of every family and variant."""
        found = set()
        for family in FAMILIES.values():
            for variant in family.variants:
                try:
                    found.add(self.of(family.name, variant).fingerprint)
                except BadInput:
                    continue
        return found


def asset_version(instance: dg.DagsterInstance, snapshots: Snapshots, fingerprint: str) -> str:
    """The data version of `weight_snapshot` when the snapshot of this fingerprint is made or used.

    The asset stands for the snapshots of all families, but has one version: the fingerprint of one of them. It stays as
    long as that snapshot does. With another rule, videos would be marked as out of sync because a snapshot that they
    do not need was installed.
    """
    event = instance.get_latest_materialization_event(dg.AssetKey("weight_snapshot"))
    materialization = event.asset_materialization if event else None
    version = ((materialization.tags if materialization else None) or {}).get(DATA_VERSION)
    return version if version and version in snapshots.fingerprints() else fingerprint
