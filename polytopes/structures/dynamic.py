"""What every structure has whose structures are the derivations of a dynamic programme."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs
from spigot.polytopes.structures.levels import LevelwiseSums, LevelwiseViterbi
from spigot.polytopes.structures.program import Program, Targets

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["BestDerivation", "DynamicProgram", "InsideOutside", "best_derivations"]

TIE = 1e-12  # relative: scores of two derivations this close are equal, where that matters
DRAWS = 1 << 23  # uniform numbers held at once


class DynamicProgram(Polytope, abstract=True):
    """conv of the derivations of a dynamic programme, each the vector that counts its parts.

    A subclass gives `event_shape` and `declared`; MAP, sums, samples, the k best and the
    constraints follow.

    References:
        Huang, "Advanced dynamic programming in semiring and hypergraph frameworks" (COLING 2008).
        Martin, Rardin and Campbell, "Polyhedral characterization of discrete dynamic programming"
        (Operations Research 1990).
    """

    def declared(self) -> Program:
        """The compiled programme; asked for once an object."""
        raise NotImplementedError

    @property
    def program(self) -> Program:
        """The compiled programme."""
        known: Program | None = self.scratch.get("program")
        if known is None:
            known = self.scratch["program"] = self.declared()
        return known

    @property
    def repeats(self) -> bool:
        """Whether a derivation may use a part more than once."""
        return False

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1; 0 and 0 of parts that no derivation uses."""
        upper = torch.zeros(self.event_shape, dtype=torch.float64)
        upper.view(-1)[tensor(self.program.edges.slots[1:])] = 1.0
        return torch.zeros_like(upper), upper

    def argmax(self, scores: Tensor) -> Tensor:
        """The best derivation."""
        return BestDerivation().solve(Problem(self, scores, None)).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """A flow on every edge: each node derives as much as is used of it, the goal 1."""
        cp = library("cvxpy")

        balance, parts = self.program.incidence()
        source = np.zeros(balance.shape[0])
        source[int(self.program.targets(None, 1).goals[0]) - 1] = 1.0
        flow = cp.Variable(balance.shape[1])
        flat = cp.vec(y, order="C")
        slots = self.program.edges.slots[1:]
        unused = np.setdiff1d(np.arange(y.size), slots)
        rows = [flow >= 0, balance @ flow == source]
        rows += [flat[slots] == parts @ flow] if len(slots) else []
        return rows + ([flat[unused] == 0] if len(unused) else [])


def _owner(problem: Problem) -> DynamicProgram:
    assert isinstance(problem.polytope, DynamicProgram)
    return problem.polytope


def _targets(problem: Problem) -> Targets:
    return _owner(problem).program.targets(problem.lengths, problem.size)


def _scores(problem: Problem) -> Tensor:  # (n, d), float32 or float64
    scores = problem.flat_scores.detach()
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.double()


def _nothing(problem: Problem) -> Tensor:  # (n, d)
    """Zeros for a kernel to write into, in their own order whatever that of the scores is."""
    scores = _scores(problem)
    return torch.zeros(scores.shape, dtype=scores.dtype)


def _run(name: str, problem: Problem, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """A kernel: what it asks for between the goals and the scores, and after the mask."""
    function = getattr(library("spigot.polytopes.kernels.dynamic.hypergraph"), name)
    targets, keep = _targets(problem), problem.flat_keep
    scores = _scores(problem)
    kept = np.ones((0, scores.shape[1]), dtype=np.bool_) if keep is None else contiguous(keep)
    over_instances(
        function,
        problem.size,
        _owner(problem).program.edges,
        targets.goals,
        targets.used,
        *before,
        contiguous(scores),
        kept,
        *after,
    )


def _check_derived(problem: Problem, missing: np.ndarray) -> None:
    if missing.any():
        raise problem.no_structure(rows_where(tensor(missing)))


def best_derivations(problem: Problem, tolerance: float) -> tuple[Tensor, Tensor]:  # (n, d), (n,)
    """The best derivations' parts and scores.

    Of those that tie the first edges win; with a relative tolerance for ties, generic scores of the
    parts decide.
    """
    value = _nothing(problem)
    objective = np.empty(problem.size)
    generic = np.zeros(len(_owner(problem).program.edges.slots))
    if tolerance:
        generic[1:] = np.random.default_rng(0).random(len(generic) - 1)
    _run("best", problem, (generic, tolerance), (contiguous(value), objective))
    _check_derived(problem, np.isneginf(objective))
    return value, tensor(objective)


@rule(DynamicProgram, None)
class BestDerivation(Road):
    """Max-product with backpointers."""

    name = "Viterbi on the hypergraph"
    cost = "O(edges)"
    devices = ("cpu",)
    native = SIZED
    accelerated = LevelwiseViterbi

    def solve(self, problem: Problem) -> Solution:
        """The best derivation. Where parts may repeat, a tie could be no vertex: it is broken."""
        value, objective = best_derivations(problem, TIE if _owner(problem).repeats else 0.0)
        return Solution.closed_form(value.reshape(problem.scores.shape), objective)


@rule(DynamicProgram, Gibbs)
class InsideOutside(Road):
    """Sums over all derivations."""

    name = "inside-outside on the hypergraph"
    cost = "O(edges)"
    devices = ("cpu",)
    native = SIZED
    accelerated = LevelwiseSums

    def solve(self, problem: Problem) -> Solution:
        """Expected counts of the parts, and log Z."""
        value = _nothing(problem)
        objective = np.empty(problem.size)
        ceiling = np.inf if _owner(problem).repeats else 1.0
        _run("marginals", problem, (ceiling,), (contiguous(value), objective))
        _check_derived(problem, np.isneginf(objective))
        return Solution.closed_form(value.reshape(problem.scores.shape), tensor(objective))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Covariance times grad, by derivatives carried along inside and outside."""
        direction = grad.detach().flatten(1).to(_scores(problem).dtype)
        pulled = _nothing(problem)
        _run("covariance", problem, (), (contiguous(direction), contiguous(pulled)))
        return pulled.reshape(grad.shape)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """By torch's own derivatives, level by level."""
        return LevelwiseSums().curve(problem, solution, u, v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """From the goal down, each node's edge by its chance."""
        scores = _scores(problem)
        drawn = torch.zeros(count, *scores.shape, dtype=scores.dtype)
        found = np.zeros(problem.size, dtype=np.bool_)
        choices = int(_owner(problem).program.choices[_targets(problem).goals].max())
        rows = max(1, DRAWS // max(1, problem.size * choices))
        for first in range(0, count, rows):
            some = drawn[first : first + rows]
            shape = (problem.size, len(some), choices)
            uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
            _run("draw", problem, (contiguous(uniform),), (contiguous(some), found))
        _check_derived(problem, ~found)
        return drawn.reshape(count, *problem.scores.shape)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Each node's k best, from those of its tails.

        Raises:
            NoStructure, ValueError: an instance has no derivation, or fewer than k.
        """
        scores = _scores(problem)
        best = torch.zeros(k, *scores.shape, dtype=scores.dtype)
        found = np.zeros(problem.size, dtype=np.int64)
        _run("k_best", problem, (k,), (contiguous(best), found))
        problem.check_enough(k, tensor(found))
        return best.reshape(k, *problem.scores.shape)
