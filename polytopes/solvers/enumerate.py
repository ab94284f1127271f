"""Everything that can be had by listing the structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from spigot.polytopes.arrays import rows_where, tensor
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.listing import distinct_vertices
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs, Regularizer
from spigot.polytopes.solvers.tie_rule import generic_objective

if TYPE_CHECKING:
    pass

__all__ = ["Enumerate"]

TIE = 1e-12  # relative: scores of two vertices this close are equal


@dataclass(frozen=True)
class Enumerate(Solver):
    """MAP and Gibbs by the score of every vertex, with samples and the k best.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Gibbs, Hull
        >>> from spigot.polytopes.solvers import Enumerate
        >>> corners = Hull([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
        >>> corners.maximize(torch.zeros(2), Gibbs(), solver=Enumerate())
        tensor([0.6667, 0.3333])
    """

    name: ClassVar[str] = "enumeration of the vertices"
    cost: ClassVar[str] = "O(m d) for m vertices"
    needs: ClassVar[frozenset[str]] = frozenset({"vertices"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (None, Gibbs)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def solve(self, problem: Problem) -> Solution:
        """The best vertex, or the mean of all."""
        vertices, energies = _scored(problem)
        if problem.regularizer is None:
            best = _argmax(vertices, energies)
            value, objective = vertices[best], energies.gather(1, best[:, None])[:, 0]
        else:
            value, objective = energies.softmax(1) @ vertices, energies.logsumexp(1)
        value = value.to(problem.scores).reshape(problem.scores.shape)
        return Solution.closed_form(value, objective.to(problem.scores))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """E[v <v, g>] - E[v] E[<v, g>], no covariance matrix formed."""
        vertices, energies = _scored(problem)
        chance = energies.softmax(1)
        along = grad.double().flatten(1) @ vertices.t()  # (n, m)
        centred = along - (chance * along).sum(1, keepdim=True)
        return ((chance * centred) @ vertices).to(grad).reshape(grad.shape)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """E[(z - E z) <u, z - E z> <v, z - E z>]."""
        vertices, energies = _scored(problem)
        chance = energies.softmax(1)

        def centred(grad: Tensor) -> Tensor:  # (n, m)
            along = grad.double().flatten(1) @ vertices.t()
            return along - (chance * along).sum(1, keepdim=True)

        joint = chance * centred(u) * centred(v)
        moment = (joint - chance * joint.sum(1, keepdim=True)) @ vertices
        return moment.to(u).reshape(u.shape)

    def entropy(self, problem: Problem) -> Tensor:
        """The sum over the list, in which nothing cancels."""
        _, energies = _scored(problem)
        chance = energies.softmax(1)
        return -torch.xlogy(chance, chance).sum(1)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent draws from the list."""
        vertices, energies = _scored(problem)
        drawn = torch.multinomial(energies.softmax(1), count, True, generator=generator)
        return vertices[drawn.t()].to(problem.scores).reshape(count, *problem.scores.shape)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The k largest scores of the list."""
        vertices, energies = _scored(problem)
        problem.check_enough(k, energies.isfinite().sum(1))
        order = energies.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return vertices[order.t()].to(problem.scores).reshape(k, *problem.scores.shape)


def _scored(problem: Problem) -> tuple[Tensor, Tensor]:  # (m, d), (n, m)
    """The vertices and their scores, -inf at those that use an excluded part."""
    vertices = distinct_vertices(problem.polytope).to(problem.scores.device)
    energies = problem.flat_scores.detach().double() @ vertices.t()
    keep = problem.flat_keep
    if keep is None:
        return vertices, energies
    uses = (vertices.abs() > 1e-12).double()
    energies = energies.masked_fill((~keep).double() @ uses.t() > 0, -torch.inf)
    empty = energies.isneginf().all(1)
    if bool(empty.any()):
        rows = rows_where(empty)
        raise problem.no_structure(rows)
    return vertices, energies


def _argmax(vertices: Tensor, energies: Tensor) -> Tensor:  # (n,)
    """Of the vertices that tie, the one that a fixed generic objective likes best: it is extreme."""
    best = energies.amax(1, keepdim=True)
    tied = energies >= best - TIE * (1 + best.abs())
    generic = tensor(generic_objective(vertices.shape[1])).to(vertices)
    return (vertices @ generic).expand_as(energies).masked_fill(~tied, -torch.inf).argmax(1)
