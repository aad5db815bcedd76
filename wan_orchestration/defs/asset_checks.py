"""Results of asset checks, for a check's own step and for a step that checks what it made."""

import warnings
from collections.abc import Container, Iterator, Mapping

import dagster as dg

from wan_orchestration.defs.partitions import jobs
from wan_orchestration.settings.checks import CheckSettings

Results = dict[str, dg.AssetCheckResult]
"""By the name of the check."""


def specs(asset: dg.AssetKey, checks: Mapping[str, str], blocking: Container[str] = ()) -> list[dg.AssetCheckSpec]:
    """A partitioned check for each name; the text describes what passes.

    If a check in `blocking` fails with severity ERROR, Dagster skips the steps of the run that need the asset.
    """
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster. Without partitions, only the job checked last would have results.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=asset, description=text, partitions_def=jobs, blocking=name in blocking)
            for name, text in checks.items()
        ]


def integrity(passed: bool, reason: str, numbers: Mapping[str, float] | None = None) -> dg.AssetCheckResult:
    """The result of a check whose failure is an error. `reason` is shown only then."""
    return dg.AssetCheckResult(passed=passed, description=None if passed else reason, metadata=numbers)


def quality(passed: bool, finding: str, numbers: Mapping[str, float] | None = None) -> dg.AssetCheckResult:
    """The result of a check whose severity `with_severity` sets. `finding` is always shown."""
    return dg.AssetCheckResult(passed=passed, description=finding, metadata=numbers)


def with_severity(results: Results, limits: CheckSettings) -> Results:
    """Results of quality checks with the severity of the settings. Those that keep a job from generation are errors."""
    usual = dg.AssetCheckSeverity[limits.severity.upper()]
    return {
        name: result._replace(severity=dg.AssetCheckSeverity.ERROR if name in limits.block else usual)
        for name, result in results.items()
    }


def at_least(value: float | None, limit: float, what: str, why_unknown: str = "") -> dg.AssetCheckResult:
    """Compares a measure of quality with its lower limit. A missing measure passes, and the result says why."""
    if value is None:
        return quality(True, f"not measured: {why_unknown}")
    return quality(value >= limit, f"{what}: {value:g}, expected {limit:g} or more", {"value": value})


def at_most(value: float | None, limit: float, what: str, why_unknown: str = "") -> dg.AssetCheckResult:
    """Compares a measure of quality with its upper limit. A missing measure passes, and the result says why."""
    if value is None:
        return quality(True, f"not measured: {why_unknown}")
    return quality(value <= limit, f"{what}: {value:g}, expected {limit:g} or less", {"value": value})


def of_step(asset: dg.AssetKey, results: Results, checks: Mapping[str, str]) -> Iterator[dg.AssetCheckResult]:
    """Results for a check's own step, which knows the partition."""
    for name, result in results.items():
        yield result._replace(asset_key=asset, check_name=name, description=result.description or checks[name])


def of_partition(
    asset: dg.AssetKey, key: str, results: Results, checks: Mapping[str, str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Results for a step that makes several partitions and checks each."""
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
