"""What a comparison found, as a table: on the terminal, in a notebook, in pandas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from spigot.polytopes.arrays import library
from spigot.pullback.diagnostics.figure import draw
from spigot.pullback.diagnostics.measure import Row

__all__ = ["Comparison", "LeftOut", "data_frame", "fixed_width", "html_table", "share", "short"]


@dataclass(frozen=True)
class LeftOut:
    """An estimator that a polytope cannot do, and why.

    Attributes:
        case: the problem's name.
        estimator: its name.
        reason: why.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Oracle, Simplex
        >>> from spigot.pullback import SPIGOT, SPIGOTCE
        >>> from spigot.pullback.diagnostics import RelaxedLoss, compare
        >>> best = Oracle(Simplex(3).argmax, (3,), batched=True)
        >>> scores, costs = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.0, 0.0])
        >>> ways, stated = {"SPIGOT": SPIGOT(), "CE": SPIGOTCE()}, RelaxedLoss(Euclidean())
        >>> found = compare(best, scores, lambda mu: mu @ costs, ways, objective=stated)
        >>> [each.estimator for each in found.left_out]  # an oracle alone has no marginals
        ['CE']
    """

    case: str
    estimator: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Estimators against the exact gradient; prints as a table.

    Attributes:
        captions: a line a case: the polytope, the batch, and what the exact gradient is of.
        rows: one an estimator and case.
        left_out: what could not be compared.
        note: how the measuring was done.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOT, STEIdentity
        >>> from spigot.pullback.diagnostics import compare
        >>> scores, costs = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.0, 0.0])
        >>> ways = {"SPIGOT": SPIGOT(), "identity": STEIdentity()}
        >>> found = compare(Simplex(3), scores, lambda mu: mu @ costs, ways)
        >>> found.row("identity").cosine < found.row("SPIGOT").cosine
        True
        >>> [record["estimator"] for record in found.records()]
        ['SPIGOT', 'identity']
    """

    captions: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    note: str

    def row(self, estimator: str, case: str | None = None) -> Row:
        """One row by its name, and by its case where there are several.

        Args:
            estimator: its name.
            case: the problem's name.

        Raises:
            KeyError: no such row, or several.
        """
        found = [row for row in self.rows if row.estimator == estimator and case in (None, row.case)]
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(row.estimator for row in self.rows))
            raise KeyError(f"{len(found)} rows for {estimator!r} and case {case!r}; rows: {names}.")
        return found[0]

    def __str__(self) -> str:
        parts = ["\n".join(self.captions), fixed_width(*self._main())]
        header, cells = self._sensitivity()
        if cells and len(header) > self._names:
            parts.append("Sensitivity\n" + fixed_width(header, cells))
        if self.left_out:
            parts.append("\n".join(self._missing()))
        return "\n\n".join([*parts, self.note])

    def _repr_html_(self) -> str:
        shown = [f"<p>{'<br>'.join(escape(line) for line in self.captions)}</p>"]
        shown += [html_table(*self._main()), html_table(*self._sensitivity())]
        lines = [*self._missing(), *self.note.splitlines()]
        return "".join([*shown, f"<p>{'<br>'.join(escape(line) for line in lines)}</p>"])

    def records(self) -> list[dict[str, Any]]:
        """A flat dict a row, the readings and solves among its entries."""
        return [_record(row) for row in self.rows]

    def to_pandas(self) -> Any:
        """The records as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame(self.records())

    def figure(self) -> Any:
        """A matplotlib Figure: cosine, norm, null gradients and steps that help, a mark a case."""
        return draw(self.rows)

    @property
    def _names(self) -> int:
        """How many columns say which row it is."""
        return 2 if any(row.case for row in self.rows) else 1

    def _labels(self, row: Row) -> tuple[str, ...]:
        return (row.case, row.estimator)[-self._names :]

    def _main(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        header = (*("case", "estimator")[-self._names :], *_COLUMNS)
        return header, [(*self._labels(row), *_cells(row)) for row in self.rows]

    def _sensitivity(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Cosine and null share by step size, change by batch size and tolerance."""
        settings = list(dict.fromkeys((r.knob, r.value) for row in self.rows for r in row.readings))
        settings.sort(key=lambda setting: (list(_SHOWN).index(setting[0]), setting[1]))
        header = ("case", "estimator")[-self._names :]
        for knob, value in settings:
            header += tuple(f"{name} {value:g}" for name in _SHOWN[knob])
        cells: list[Sequence[str]] = []
        for row in self.rows:
            line = self._labels(row)
            for knob, value in settings:
                reading = row.reading(knob, value)
                line += tuple(
                    "-" if reading is None else show(getattr(reading, field))
                    for field, show in _SHOWN[knob].values()
                )
            if row.readings:
                cells.append(line)
        return header, cells

    def _missing(self) -> list[str]:
        return [
            f"left out: {each.estimator}{f' on {each.case}' if each.case else ''}: {each.reason}"
            for each in self.left_out
        ]


_COLUMNS = (
    "bias",
    "+-",
    "variance",
    "cosine",
    "one draw",
    "norm",
    "null",
    "falls",
    "solves an instance",
    "ms",
)


def _cells(row: Row) -> tuple[str, ...]:
    solves = " + ".join(f"{short(count)} {kind}" for kind, count in row.solves)
    return (
        short(row.bias),
        short(row.bias_error),
        short(row.variance),
        signed(row.cosine),
        signed(row.draw_cosine),
        short(row.norm),
        share(row.null),
        share(row.falls),
        solves or "-",
        f"{1000 * row.seconds:.1f}",
    )


def short(value: float) -> str:
    """Two or three digits; 0 for what is rounding; a dash for NaN."""
    if value != value:
        return "-"
    return "0" if abs(value) < 1e-9 else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def signed(value: float) -> str:
    """A cosine."""
    return "-" if value != value else f"{value:+.2f}"


def share(value: float) -> str:
    """A part of all."""
    return "-" if value != value else f"{100 * value:.0f}%"


_SHOWN = {
    "step size": {"cos, step": ("cosine", signed), "null, step": ("null", share)},
    "batch": {"change, batch": ("change", short)},
    "tolerance": {"change, tolerance": ("change", short)},
}


def fixed_width(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns padded with spaces, a line of dashes below the header."""
    table = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a notebook."""
    lines = ["<table><tr>", *(f"<th>{escape(cell)}</th>" for cell in header), "</tr>"]
    for row in rows:
        lines += ["<tr>", *(f"<td>{escape(cell)}</td>" for cell in row), "</tr>"]
    return "".join([*lines, "</table>"])


def data_frame(records: list[dict[str, Any]]) -> Any:
    """A pandas.DataFrame.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        pandas = library("pandas")
    except ModuleNotFoundError as error:
        raise ImportError(
            "to_pandas needs pandas, which is not installed: pip install pandas, or use records(), "
            "a list of dicts."
        ) from error
    return pandas.DataFrame(records)


def _record(row: Row) -> dict[str, Any]:
    record = asdict(row)
    del record["solves"], record["readings"]
    record |= {f"solves {kind}": count for kind, count in row.solves}
    for reading in row.readings:
        where = f"at {reading.knob} {reading.value:g}"
        record |= {f"{name} {where}": getattr(reading, name) for name in ("cosine", "null", "change")}
    return record
