"""A canonical form's rows as compiled loops read them, with their order of elimination: once a form."""

from __future__ import annotations

from typing import Any

import numpy as np

from spigot.polytopes.arrays import library
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.elimination_order import least_fill
from spigot.polytopes.kernels.laplacian import Pattern, pattern_of
from spigot.polytopes.kernels.rows.elimination import System, pairs_of, plan_of

__all__ = ["DENSE_ROWS", "fits", "ordered", "row_system"]

FEW_ROWS = 64  # that many are factored dense, whatever their pattern,
SHARE = 0.4  # and those of which one part meets this share,
DENSE_ROWS = 1000  # up to this many,
A_PART = 4  # and as many a part: an interior point over the parts costs less beyond
WHOLE = 0.5  # the share of entries that are not 0 from which on rows are kept whole
PAIRS = 10_000_000  # of rows that meet in a part


def fits(form: Canonical) -> bool:
    """Whether the form's rows can be factored."""
    rows, meeting = form.A.shape[0] + form.G.shape[0], _meeting(form)
    if rows <= FEW_ROWS:
        return True
    if _fills(rows, meeting):
        return rows <= min(DENSE_ROWS, A_PART * form.variables)
    return int((meeting * (meeting - 1) // 2).sum()) <= PAIRS


def _meeting(form: Canonical) -> np.ndarray:
    """How many rows each variable is in."""
    on_a, on_g = (np.bincount(rows.indices, minlength=form.variables) for rows in (form.A, form.G))
    return on_a + on_g


def _fills(rows: int, meeting: np.ndarray) -> bool:
    return rows <= FEW_ROWS or int(meeting.max(initial=0)) >= SHARE * rows


def row_system(form: Canonical) -> System:
    """The rows, equations first, over the variables in `ordered`; kept with the form."""
    if "row system" not in form.scratch:
        form.scratch["row system"] = _made(form)
    return form.scratch["row system"]


def ordered(form: Canonical) -> np.ndarray:  # (variables,)
    """The columns of the parts in the event's order, and after them those of auxiliary variables."""
    rest = np.ones(form.variables, dtype=bool)
    rest[form.columns] = False
    return np.concatenate([form.columns, np.flatnonzero(rest)])


def _rows(form: Canonical) -> Any:
    sp = library("scipy.sparse")
    rows = sp.vstack([form.A, form.G], format="csr")[:, ordered(form)].tocsr()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    rows.sort_indices()
    return rows


def _made(form: Canonical) -> System:
    rows = _rows(form)
    columns = rows.tocsc()
    columns.sort_indices()
    count = int(rows.shape[0])
    dense = _fills(count, _meeting(form))
    low = np.where(np.arange(count) < form.A.shape[0], -np.inf, 0.0)
    first, row = _whole(columns.indptr), _whole(columns.indices)
    pattern, slot = _nothing() if dense else _pattern(first, row, count)
    return System(
        _whole(rows.indptr),
        _whole(rows.indices),
        rows.data.astype(np.float64),
        first,
        row,
        columns.data.astype(np.float64),
        low,
        np.asarray(abs(rows).sum(1), dtype=np.float64).ravel(),
        np.asarray(rows.multiply(rows).sum(1), dtype=np.float64).ravel(),
        dense,
        pattern,
        slot,
        *plan_of(pattern),
        _filled(rows),
    )


def _filled(rows: Any) -> np.ndarray:  # (rows, variables) or (0, 0)
    count, variables = rows.shape
    return rows.toarray() if rows.nnz > WHOLE * count * variables else np.zeros((0, 0))


def _pattern(first: np.ndarray, row: np.ndarray, count: int) -> tuple[Pattern, np.ndarray]:
    tails, heads, begin = pairs_of(first, row)
    pattern = pattern_of(tails, heads, least_fill(tails, heads, count))
    return pattern, np.concatenate([begin, pattern.slots])


def _nothing() -> tuple[Pattern, np.ndarray]:
    none = np.zeros(0, np.int64)
    return Pattern(none, np.zeros(1, np.int64), np.zeros(0, np.int32), none), none


def _whole(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64)
