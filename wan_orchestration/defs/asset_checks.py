"""Results of asset checks, made one way for a check's own step and for a step that makes what is checked."""

import warnings
from collections.abc import Iterator, Mapping

import dagster as dg

from wan_orchestration.defs.partitions import jobs
from wan_orchestration.errors import validate
from wan_orchestration.settings.service import CheckSettings

Results = dict[str, dg.AssetCheckResult]
"""By the name of the check."""


def specs(asset: dg.AssetKey, checks: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    """A check by partition for each name; the text says what is right."""
    with warnings.catch_warnings():
        # Dagster calls checks by partition a preview. Without partitions only the job checked last has results.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=asset, description=text, partitions_def=jobs) for name, text in checks.items()
        ]


def integrity(passed: bool, reason: str, numbers: Mapping[str, float] | None = None) -> dg.AssetCheckResult:
    """The result of a check that is an error where it fails. `reason` is shown then."""
    return dg.AssetCheckResult(passed=passed, description=None if passed else reason, metadata=numbers)


def quality(passed: bool, finding: str, numbers: Mapping[str, float] | None = None) -> dg.AssetCheckResult:
    """The result of a check whose severity is a setting. `finding` is shown in any case."""
    severity = dg.AssetCheckSeverity[validate(CheckSettings, {}).severity.upper()]
    return dg.AssetCheckResult(passed=passed, severity=severity, description=finding, metadata=numbers)


def at_least(value: float | None, limit: float, what: str, why_unknown: str = "") -> dg.AssetCheckResult:
    """Compares a measure of quality with its lower limit. One that could not be measured passes, and says why."""
    if value is None:
        return quality(True, f"not measured: {why_unknown}")
    return quality(value >= limit, f"{what}: {value:g}, expected {limit:g} or more", {"value": value})


def at_most(value: float | None, limit: float, what: str, why_unknown: str = "") -> dg.AssetCheckResult:
    """Compares a measure of quality with its upper limit. One that could not be measured passes, and says why."""
    if value is None:
        return quality(True, f"not measured: {why_unknown}")
    return quality(value <= limit, f"{what}: {value:g}, expected {limit:g} or less", {"value": value})


def of_step(asset: dg.AssetKey, results: Results, checks: Mapping[str, str]) -> Iterator[dg.AssetCheckResult]:
    """Results as a check's own step yields them; the step knows the partition."""
    for name, result in results.items():
        yield result._replace(asset_key=asset, check_name=name, description=result.description or checks[name])


def of_partition(
    asset: dg.AssetKey, key: str, results: Results, checks: Mapping[str, str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Results as a step yields them that makes several partitions and checks each."""
    for result in of_step(asset, results, checks):
        assert result.check_name
        yield dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=result.check_name,
            passed=result.passed,
            description=result.description,
            metadata=result.metadata,
            partition=key,
            severity=result.severity,
        )
