"""Projections onto dependency trees and their derivative: from a `Problem` to the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, numbers, tensor
from spigot.polytopes.faces import Face, tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.trees.tree_projection import project_trees, pull_trees
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.structures.tree_sums import Arcs, derivative, marginals

__all__ = ["project", "pull"]

ROOM = 32  # for cuts that join before others leave: n - 1 are enough in the end
CHECK = 60.0  # log-weight that a tree loses at each cut that it does not meet with equality
SUMS = 1e9  # operations: about a second
RANK = 1e-9  # a probability or a variance below it is rounding


@dataclass(frozen=True)
class TreeFace:
    """The exposed face of one projection: arcs whose bound has no multiplier, sets whose cut has one.

    Its trees use free arcs alone and have |S| - 1 arcs inside each set.
    """

    free: np.ndarray  # (n, n): 1 in use, 2 at 0 (a tie)
    sets: np.ndarray  # (q, n), bool
    single_root: bool

    @property
    def tied(self) -> bool:
        """Whether an arc at 0 is free."""
        return bool((self.free == 2).any())

    @property
    def listed(self) -> bool:
        """Whether its directions come from its trees: at ties, where these are not too many to sum."""
        words = int(self.free.any(0).sum())
        return self.tied and int((self.free > 0).sum()) * words**3 <= SUMS

    def settled(self) -> TreeFace:
        """The same face without the free arcs that none of its trees uses."""
        if not self.tied:
            return self
        chance = marginals(self.copies(1))[0][0].numpy()
        free = self.free.copy()
        size = len(chance)
        free[:size, :size][chance <= RANK] = 0
        return replace(self, free=free)

    def copies(self, count: int) -> Arcs:
        """Scores at which the face's trees are all equally likely and no other tree is likely."""
        size = int(self.free.any(0).sum())  # padding has no arcs
        sets = self.sets[:, :size]
        pairs = (sets[:, :, None] & sets[:, None, :]).sum(0)
        np.fill_diagonal(pairs, 0)
        scores = np.where(self.free[:size, :size] > 0, CHECK * pairs, -np.inf)
        same = np.ascontiguousarray(np.broadcast_to(scores, (count, size, size)))
        return Arcs(same, np.full(count, size), self.single_root)

    def pull(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """The projection of `grad` `(n, n)` onto the face's directions."""
        face = self.settled()
        return _pull_tied(face, grad) if face.listed else _pull_plain([face], grad[None])[0]


def project(problem: Problem, arcs: Arcs) -> Solution:
    """Projections by cutting planes; where rounding stops these, by the active set."""
    scores = arcs.scores
    count, n = scores.shape[:2]
    out, free = np.zeros_like(scores), np.zeros(scores.shape, dtype=np.uint8)
    sets, binding = np.zeros((count, n + ROOM, n), dtype=bool), np.zeros(count, dtype=np.int64)
    steps = np.zeros(count, dtype=np.int64)
    tie = tie_tolerance(torch.float64)  # that is what the kernels compute in
    over_instances(project_trees, count, *arcs, tie, out, free, sets, binding, steps)
    value = tensor(out)
    faces: list[Face] = [
        TreeFace(free[i], sets[i, : binding[i]].copy(), arcs.single_root) for i in range(count)
    ]
    solution = Solution.closed_form(value, _objective(problem, value), value)
    solution = replace(solution, iterations=tensor(steps), faces=tuple(faces))
    left = np.flatnonzero(steps < 0)
    return _finish(problem, solution, tensor(left)) if len(left) else solution


def _objective(problem: Problem, value: Tensor) -> Tensor:  # (n,)
    exact = value.double()
    return (exact * problem.scores.double() - 0.5 * exact.square()).sum((1, 2))


def _finish(problem: Problem, solution: Solution, rows: Tensor) -> Solution:
    """These rows by the generic road, which asks for a tree at a time."""
    from spigot.polytopes.solvers.active_set import ActiveSet
    from spigot.polytopes.solvers.completion import exposed_faces

    part = problem.take(rows)
    answer = ActiveSet().solve(part)
    value, status = solution.value.clone(), solution.status.clone()
    iterations = solution.iterations.clone()
    value[rows], status[rows] = answer.value.to(value), answer.status
    iterations[rows] = answer.iterations
    assert solution.faces is not None
    faces = list(solution.faces)
    for row, face in zip(numbers(rows), exposed_faces(part.on_cpu(), answer), strict=True):
        faces[row] = face
    return replace(
        solution,
        value=value,
        status=status,
        iterations=iterations,
        objective=_objective(problem, value),
        gradient=value,
        faces=tuple(faces),
    )


def pull(problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
    """The vector-Jacobian product: grad projected onto the directions of the exposed faces."""
    assert solution.faces is not None
    grads = contiguous(grad.double())
    pulled = np.zeros_like(grads)
    keep = None if problem.keep is None else contiguous(problem.keep)
    plain: dict[int, TreeFace] = {}
    for i, face in enumerate(solution.faces):
        if not isinstance(face, TreeFace):
            kept = np.ones_like(grads[i], dtype=bool) if keep is None else keep[i]
            pulled[i, kept] = face.pull(grads[i, kept], np.ones(int(kept.sum())))
            continue
        settled = face.settled()
        if settled.listed:
            pulled[i] = _pull_tied(settled, grads[i])
        else:
            plain[i] = settled
    if plain:
        pulled[list(plain)] = _pull_plain(list(plain.values()), grads[list(plain)])
    return tensor(pulled).to(grad)


def _pull_plain(faces: list[TreeFace], grads: np.ndarray) -> np.ndarray:
    """Where no arc is tied the face is what its equations say."""
    most = max(max(len(face.sets) for face in faces), 1)
    sets = np.zeros((len(faces), most, grads.shape[1]), dtype=bool)
    binding = np.zeros(len(faces), dtype=np.int64)
    for i, face in enumerate(faces):
        sets[i, : len(face.sets)], binding[i] = face.sets, len(face.sets)
    free = np.stack([face.free for face in faces])
    lengths = np.full(len(faces), grads.shape[1])
    out = np.zeros_like(grads)
    over_instances(pull_trees, len(faces), grads, lengths, free, sets, binding, out)
    return out


def _pull_tied(face: TreeFace, grad: np.ndarray) -> np.ndarray:
    """By the covariance of the face's trees, all equally likely: its range is the face's directions."""
    heads, words = np.nonzero(face.free)
    arcs = face.copies(len(heads))
    direction = torch.zeros(arcs.scores.shape, dtype=torch.float64)
    direction[range(len(heads)), heads, words] = 1.0
    covariance = derivative(arcs, direction).numpy()[:, heads, words]
    sizes, vectors = np.linalg.eigh(covariance)
    basis = vectors[:, sizes > RANK]
    pulled = np.zeros_like(grad)
    pulled[heads, words] = basis @ (basis.T @ grad[heads, words])
    return pulled
