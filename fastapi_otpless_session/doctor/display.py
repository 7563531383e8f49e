"""The report for people, through rich: it knows terminals, their widths and NO_COLOR. It comes with the `cli` extra."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastapi_otpless_session.doctor.findings import Finding, Report, Status

STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.SKIPPED: "dim"}
PLURALS = {Status.PROBLEM: "problem{s}", Status.WARNING: "warning{s}", Status.OK: "ok", Status.SKIPPED: "skipped"}
SHOWN_FIRST = (Status.PROBLEM, Status.WARNING)


def show(report: Report, console: Console, *, everything: bool) -> None:
    """Print the findings, and how many there are of each kind; what was skipped only if `everything` is asked for."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for finding in report.findings:
        if everything or finding.outcome.status is not Status.SKIPPED:
            _add(table, finding)
    console.print(table)
    console.print()
    console.print(_summary(report, everything=everything))


def _add(table: Table, finding: Finding) -> None:
    outcome = finding.outcome
    style = STYLES[outcome.status]
    table.add_row(Text(outcome.status.value, style), finding.id, Text(outcome.finding))
    if outcome.fix is not None:
        table.add_row("", "", Text("fix: ", "bold").append(outcome.fix, "not bold"))


def _summary(report: Report, *, everything: bool) -> Text:
    parts = [
        Text(f"{count} {PLURALS[status].format(s='s' * (count != 1))}", STYLES[status])
        for status in (*SHOWN_FIRST, Status.OK, Status.SKIPPED)
        if (count := report.count(status)) or status in SHOWN_FIRST
    ]
    hides_some = report.count(Status.SKIPPED) and not everything
    return Text(", ").join(parts).append(" (--all shows them)" if hides_some else "")
