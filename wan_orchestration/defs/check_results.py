"""What checks find, as Dagster is told of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import dagster as dg

from wan_orchestration.errors import validate
from wan_orchestration.settings.service import CheckSettings


@dataclass
class Finding:
    """What one check found."""

    passed: bool
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    quality: bool = False
    """Of quality rather than integrity: the settings say how severe it is."""


def at_least(value: float | None, least: float, what: str, why_unknown: str = "") -> Finding:
    """A number of quality that should not be less; what could not be measured passes, and says so."""
    if value is None:
        return Finding(True, f"not measured: {why_unknown}", quality=True)
    return Finding(value >= least, f"{what}: {value:g}, expected {least:g} or more", {"value": value}, quality=True)


def at_most(value: float | None, most: float, what: str, why_unknown: str = "") -> Finding:
    """A number of quality that should not be more; what could not be measured passes, and says so."""
    if value is None:
        return Finding(True, f"not measured: {why_unknown}", quality=True)
    return Finding(value <= most, f"{what}: {value:g}, expected {most:g} or less", {"value": value}, quality=True)


def evaluations(
    asset: dg.AssetKey, key: str, findings: Mapping[str, Finding], checks: Mapping[str, str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """One for each finding about a job; `checks` says by name what is right."""
    severity = dg.AssetCheckSeverity[validate(CheckSettings, {}).severity.upper()]
    for name, found in findings.items():
        yield dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=name,
            passed=found.passed,
            description=found.reason if found.quality or not found.passed else checks[name],
            metadata=found.numbers,
            partition=key,
            severity=severity if found.quality else dg.AssetCheckSeverity.ERROR,
        )


def results(found: Iterator[dg.AssetCheckEvaluation]) -> Iterator[dg.AssetCheckResult]:
    """The same as results of a check's own step, which knows its job by its partition."""
    for one in found:
        yield dg.AssetCheckResult(
            check_name=one.check_name,
            asset_key=one.asset_key,
            passed=one.passed,
            description=one.description,
            metadata=one.metadata,
            severity=one.severity,
        )
