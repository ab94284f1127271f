"""What a check found: a table, and the smallest counterexample of each failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spigot.polytopes.arrays import numbers

__all__ = ["Counterexample", "Finding", "Report", "whole_table"]


@dataclass(frozen=True, eq=False)
class Counterexample:
    """One instance on which a road is wrong."""

    case: str
    scores: Tensor
    keep: Tensor | None
    found: Tensor
    expected: Tensor | None
    reason: str

    def __str__(self) -> str:
        lines = [f"  case      {self.case}: {self.reason}", f"  scores    {_show(self.scores)}"]
        if self.keep is not None:
            lines.append(f"  keep      {_show(self.keep.int())}")
        lines.append(f"  found     {_show(self.found)}")
        if self.expected is not None:
            lines.append(f"  expected  {_show(self.expected)}")
        return "\n".join(lines)


def _show(tensor: Tensor) -> str:
    return str(numbers(torch.round(tensor.double(), decimals=6)))


@dataclass(frozen=True, eq=False)
class Finding:
    """One row: a verb by one road, over all cases.

    Attributes:
        verb: the verb checked.
        regularizer: of which problem; empty for MAP.
        road: what ran.
        cases: how many instances were compared.
        error: the largest difference to the reference, nan without one.
        certificate: the largest gap, nan where there is none.
        stopped: how many instances raised or reported that they did not converge.
        counterexample: of a failure.

    Example:
        >>> from spigot.polytopes import Simplex
        >>> from spigot.testing import check
        >>> finding = check(Simplex(2), count=1).findings[0]
        >>> finding.verb, finding.road, finding.verdict
        ('maximize', 'argmax', 'ok')
    """

    verb: str
    regularizer: str
    road: str
    cases: int
    error: float
    certificate: float
    stopped: int = 0
    counterexample: Counterexample | None = None

    @property
    def verdict(self) -> str:
        """`ok`, `ok, n stopped`, or `WRONG`."""
        if self.counterexample is not None:
            return "WRONG"
        return f"ok, {self.stopped} stopped" if self.stopped else "ok"


@dataclass(frozen=True, eq=False)
class Report:
    """All rows of a check; prints as a table.

    Attributes:
        subject: the polytope.
        findings: the rows.
        notes: what is not wrong but worth knowing, such as fractional vertices.

    Example:
        >>> from spigot.polytopes import Simplex
        >>> from spigot.testing import check
        >>> report = check(Simplex(2), count=1)
        >>> report.passed, str(report).splitlines()[-1]
        (True, 'passed')
        >>> max(finding.error for finding in report.findings if finding.verb == "project") < 1e-6
        True
    """

    subject: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether no row is wrong."""
        return all(finding.counterexample is None for finding in self.findings)

    def __str__(self) -> str:
        lines = [self.subject, _table(_HEADER, [_row(finding) for finding in self.findings])]
        lines += self.failures()
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        wrong = sum(finding.counterexample is not None for finding in self.findings)
        verdict = "passed" if self.passed else f"FAILED: {wrong} of {len(self.findings)} rows"
        return "\n".join([*lines, "", verdict])

    def failures(self) -> list[str]:
        """The wrong rows with their counterexamples, as lines."""
        lines: list[str] = []
        for finding in self.findings:
            if finding.counterexample is not None:
                name = f" with {finding.regularizer}" if finding.regularizer else ""
                lines += ["", f"{self.subject}: {finding.verb}{name} by {finding.road} is WRONG:"]
                lines.append(str(finding.counterexample))
        return lines


def whole_table(reports: Mapping[str, Report], brief: bool = False) -> str:
    """One table of many reports, by the structure's name, with what is wrong below; or that alone."""
    rows = [(name, *_row(finding)) for name, report in reports.items() for finding in report.findings]
    lines = [] if brief else [_table(("structure", *_HEADER), rows)]
    for report in reports.values():
        lines += report.failures()
    failed = [name for name, report in reports.items() if not report.passed]
    verdict = f"FAILED: {', '.join(failed)}" if failed else f"all {len(reports)} structures passed"
    return "\n".join([*lines, *([""] if lines else []), verdict])


_HEADER = ("verb", "regularizer", "road", "cases", "worst error", "worst gap", "verdict")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _row(finding: Finding) -> tuple[str, ...]:
    return (
        finding.verb,
        finding.regularizer,
        finding.road,
        str(finding.cases),
        _number(finding.error),
        _number(finding.certificate),
        finding.verdict,
    )


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.1e}"
