"""The report for people, through rich: it knows terminals, their widths and NO_COLOR. It comes with the `cli` extra."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastapi_otpless_session.doctor.findings import Finding, Report, Status

STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.SKIPPED: "dim"}
PLURALS = {Status.PROBLEM: "problem{s}", Status.WARNING: "warning{s}", Status.OK: "ok", Status.SKIPPED: "skipped"}
SHOWN_FIRST = (Status.PROBLEM, Status.WARNING)
GAP = 2
"""Spaces between columns."""


def show(report: Report, console: Console, *, everything: bool) -> None:
    """Print the findings, and how many there are of each kind; what was skipped only if `everything` is asked for."""
    table = Table.grid(padding=(0, GAP))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for row in _rows(report, everything=everything):
        table.add_row(*row)
    console.print(table)
    console.print()
    console.print(_summary(report, everything=everything))


def show_unwrapped(report: Report, console: Console, *, everything: bool) -> None:
    """Print the same with a line for each finding and each fix, however long: for files, and for what reads lines."""
    rows = _rows(report, everything=everything)
    widths = [max((len(row[number]) for row in rows), default=0) + GAP for number in range(2)]
    for status, name, text in rows:
        status.pad_right(widths[0] - len(status))
        name.pad_right(widths[1] - len(name))
        console.print(Text.assemble(status, name, text), soft_wrap=True)
    console.print()
    console.print(_summary(report, everything=everything), soft_wrap=True)


def _rows(report: Report, *, everything: bool) -> list[tuple[Text, Text, Text]]:
    return [
        row
        for finding in report.findings
        if everything or finding.outcome.status is not Status.SKIPPED
        for row in _of(finding)
    ]


def _of(finding: Finding) -> Iterator[tuple[Text, Text, Text]]:
    outcome = finding.outcome
    yield Text(outcome.status.value, STYLES[outcome.status]), Text(finding.id), Text(outcome.finding)
    if outcome.fix is not None:
        yield Text(), Text(), Text("fix: ", "bold").append(outcome.fix, "not bold")


def _summary(report: Report, *, everything: bool) -> Text:
    parts = [
        Text(f"{count} {PLURALS[status].format(s='s' * (count != 1))}", STYLES[status])
        for status in (*SHOWN_FIRST, Status.OK, Status.SKIPPED)
        if (count := report.count(status)) or status in SHOWN_FIRST
    ]
    hides_some = report.count(Status.SKIPPED) and not everything
    return Text(", ").join(parts).append(" (--all shows them)" if hides_some else "")
