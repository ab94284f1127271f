"""A regularized structure with its exact derivative."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spigot.polytopes import Euclidean, Polytope, Regularizer, Solution, implicit, opaque
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.posing import pose
from spigot.polytopes.settings import SHARE
from spigot.polytopes.start import CachedSupports
from spigot.pullback.roads import road

__all__ = ["Relaxed"]


class Relaxed(opaque.Opaque):
    """y(s) = argmax over y in M of <s, y> - Omega(y), differentiable.

    `Relaxed(M, Euclidean())` is SparseMAP, `Relaxed(M, Gibbs())` marginals. The backward is the
    exact Jacobian on the exposed face; where strict complementarity fails (ties), it is the limit of
    Jacobians from inside that face, the same by every road.

    The Jacobian J is zero for parts that their bounds hold, and small where an entropy has
    saturated: they receive no gradient. With `damping` the gradient is that of

        (1 - damping) y(s) + damping P s

    while the value stays y(s): (1 - damping) J + damping P instead of J, where P projects onto the
    directions of M's affine hull, that is J for `Euclidean` if M had no inequalities. Then every part
    that can vary receives gradient, at degenerate points too, and none leaves those directions; at
    damping = 1 it is the straight-through estimator with the scores' redundant directions taken
    out. P is the same by every road, and costs one more MAP and one more projection.

    It may be differentiated twice in the scores: exactly for `Euclidean`, whose Jacobian is locally
    constant, and for every separable regularizer, by three products with J; for `Gibbs`, by the third
    cumulant. `Convex` has first derivatives only.

    Args:
        polytope: M.
        regularizer: Omega.
        solver: forces a generic road; its budget (`max_steps`) may truncate the answer.
        damping: from 0, the exact Jacobian, to 1.

    Raises:
        TypeError: a polytope, regularizer or solver that is none, or a damping that is no number.
        UnsupportedProblem: when the layer is made, if no road leads there; when it is differentiated
            twice, if there is no second derivative.
        ValueError: damping outside [0, 1].

    Example:
        >>> import torch
        >>> from spigot.layers import Relaxed
        >>> from spigot.polytopes import Euclidean, Simplex
        >>> sparsemax = Relaxed(Simplex(3), Euclidean())
        >>> sparsemax
        Relaxed(Simplex(d=3), Euclidean())
        >>> scores = torch.tensor([0.5, 0.25, -2.0], requires_grad=True)
        >>> sparsemax(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.5000, -0.5000,  0.0000])
        >>> scores.grad = None
        >>> Relaxed(Simplex(3), Euclidean(), damping=0.1)(scores)[2].backward()
        >>> scores.grad
        tensor([-0.0333, -0.0333,  0.0667])

    References:
        Niculae, Martins, Blondel and Cardie, "SparseMAP" (ICML 2018), proposition 2.
    """

    def __init__(
        self,
        polytope: Polytope,
        regularizer: Regularizer,
        *,
        solver: Solver | None = None,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        if regularizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError(
                "Relaxed needs a regularizer, such as Euclidean(): without one the answer is a vertex, "
                "whose gradient is zero. Use Argmax(polytope, SPIGOT()) to train through vertices."
            )
        self.polytope = polytope
        self.regularizer = regularizer
        self.solver = solver
        self.damping = damping
        SHARE.check(self, damping=damping)
        road(polytope, regularizer, solver)
        if damping:
            road(polytope, Euclidean())

    def __repr__(self) -> str:
        solver = "" if self.solver is None else f", solver={self.solver}"
        damping = f", damping={self.damping}" if self.damping else ""
        return f"Relaxed({self.polytope}, {self.regularizer}{solver}{damping})"

    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        start: Solution | CachedSupports | None = None,
    ) -> Tensor:
        """The maximiser, `(*batch, *event)`.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names.
            start: where to begin, as for `Polytope.solve`: a `Solution` of the same batch, or
                `SupportCache.at(ids)`. The answer does not depend on it; inside torch.compile and
                torch.func it goes unused.

        Raises:
            TypeError, ValueError: bad input as for `Polytope.solve`.
            ConvergenceError: a solver did not converge (running out of a budget is no error here).
        """
        if opaque.transformed():
            return opaque.answer(self, scores, keep, lengths, params)
        return self.answer(scores, keep, lengths, params, start=start)

    def answer(
        self,
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        params: Mapping[str, Tensor] | None,
        draws: Tensor | None = None,
        folded: int = 0,
        start: Solution | CachedSupports | None = None,
    ) -> Tensor:
        """The maximiser, also as one operation in a traced graph: see `Opaque`.

        Args:
            scores: `(*batch, *event)`.
            keep: broadcasts to the scores.
            lengths: `(*batch,)` or `(*batch, 2)`.
            params: by name, broadcast to `(*batch, *shape)`.
            draws: none.
            folded: without effect: instances do not depend on each other.
            start: as for `forward`.
        """
        rule = road(self.polytope, self.regularizer, self.solver)
        problem = pose(self.polytope, scores, self.regularizer, lengths, keep, params, start)
        value = implicit.damped(problem, implicit.maximize(problem, rule), self.damping)
        return value.reshape(scores.shape).to(scores.dtype)
