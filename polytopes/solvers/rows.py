"""The canonical form as one stack of rows, and which of them bind at an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from spigot.polytopes.canonical import Canonical
from spigot.polytopes.faces import Face, Hyperplanes

__all__ = ["Rows", "stacked_rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """matrix x + slack = limits: equalities, inequalities, lower bounds, upper bounds in order."""

    form: Canonical
    matrix: Any  # csr
    limits: np.ndarray
    auxiliary: np.ndarray  # the columns that are not parts of y

    def binding(self, multipliers: np.ndarray, slacks: np.ndarray) -> np.ndarray:
        """Equalities, and rows whose multiplier is far above their slack.

        An interior point ends in the relative interior of the optimal faces: a row with a multiplier
        has (almost) no slack there and the reverse; where both vanish they are alike.
        """
        equalities = self.form.A.shape[0]
        bind = multipliers > np.maximum(1e3 * slacks, 1e-9 * (1 + np.abs(multipliers).max(initial=0)))
        bind[:equalities] = True
        return bind

    def at_bounds(self, x: np.ndarray, binding: np.ndarray) -> np.ndarray:
        """x with the variables that a binding row fixes alone set to that value exactly."""
        single = binding & (np.diff(self.matrix.indptr) == 1)
        rows, exact = self.matrix[single], x.copy()
        exact[rows.indices] = self.limits[single] / rows.data + 0.0
        return exact

    def face(self, binding: np.ndarray) -> Face:
        """The directions along which the binding rows do not change."""
        single = np.diff(self.matrix.indptr)[binding] == 1
        active = self.matrix[binding]
        columns = active[single].indices
        is_fixed = np.zeros(self.form.variables, dtype=bool)
        is_fixed[columns] = True
        general = active[~single]
        general = general[np.diff(general.indptr) > 0]
        tail = self.auxiliary[~is_fixed[self.auxiliary]]
        return Hyperplanes(
            general[:, self.form.columns],
            general[:, tail] if len(tail) else None,
            is_fixed[self.form.columns],
        )


def stacked_rows(form: Canonical) -> Rows:
    """One sparse matrix for all rows; infinite bounds make none."""
    identity = sp.identity(form.variables, format="csr")
    low, high = np.isfinite(form.lower), np.isfinite(form.upper)
    matrix = sp.vstack([form.A, form.G, -identity[low], identity[high]], format="csr")
    limits = np.concatenate([form.b, form.h, -form.lower[low], form.upper[high]])
    is_part = np.zeros(form.variables, dtype=bool)
    is_part[form.columns] = True
    return Rows(form, matrix, limits, np.flatnonzero(~is_part))
