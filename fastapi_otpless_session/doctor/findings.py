"""What the doctor says: outcomes of checks, and the report that they make."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

JSON_FORMAT = 1
"""Grows when a key of the JSON report changes its name or meaning; new keys and new checks don't count."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found, in a sentence, and what to write or do."""

    status: Status
    finding: str
    fix: str | None = None


def ok(finding: str) -> Outcome:
    """All is well."""
    return Outcome(Status.OK, finding)


def warning(finding: str, fix: str) -> Outcome:
    """It works, but not always or not for everybody."""
    return Outcome(Status.WARNING, finding, fix)


def problem(finding: str, fix: str) -> Outcome:
    """It does not work."""
    return Outcome(Status.PROBLEM, finding, fix)


def skipped(why: str) -> Outcome:
    """It could not be looked at, or there is nothing to look at."""
    return Outcome(Status.SKIPPED, why)


class NotApplicableError(Exception):
    """A check cannot be made; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's outcome, under the check's name."""

    id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(each.outcome.status is status for each in self.findings)

    def exit_status(self, *, strict: bool) -> int:
        """0 or, where there is a problem, 1; `strict` takes warnings for problems."""
        return int(self.count(Status.PROBLEM) > 0 or (strict and self.count(Status.WARNING) > 0))

    def as_json(self) -> str:
        """Return the report for machines: an object with `format`, `counts` and `checks`."""
        checks = [
            {
                "id": each.id,
                "status": each.outcome.status.value,
                "finding": each.outcome.finding,
                "fix": each.outcome.fix,
            }
            for each in self.findings
        ]
        counts = {status.value: self.count(status) for status in Status}
        return json.dumps({"format": JSON_FORMAT, "counts": counts, "checks": checks}, indent=2)

    def without(self, secrets: Iterable[str]) -> Report:
        """Return the report with secrets blotted out, wherever an error's text may have brought one along."""
        known = sorted((secret for secret in secrets if secret), key=len, reverse=True)
        return Report(tuple(replace(each, outcome=_blotted(each.outcome, known)) for each in self.findings))


def _blotted(outcome: Outcome, secrets: list[str]) -> Outcome:
    finding, fix = outcome.finding, outcome.fix
    for secret in secrets:
        finding = finding.replace(secret, "***")
        fix = fix and fix.replace(secret, "***")
    return replace(outcome, finding=finding, fix=fix)
