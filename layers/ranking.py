"""Sorting and ranking with a gradient."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from spigot.polytopes import Euclidean, Permutahedron, Regularizer, Shannon
from spigot.polytopes.posing import pose
from spigot.polytopes.structures import isotonic

__all__ = ["SoftRank", "SoftSort"]


class _SoftOrder(nn.Module):
    """A regularizer, its strength, and which end comes first."""

    def __init__(
        self,
        regularizer: Regularizer | None = None,
        strength: float = 1.0,
        descending: bool = False,
    ) -> None:
        super().__init__()
        regularizer = Euclidean() if regularizer is None else regularizer
        if not isinstance(regularizer, Euclidean | Shannon) or regularizer not in (
            Euclidean(),
            Shannon(),
        ):
            raise TypeError(
                f"{type(self).__name__} takes the regularizers Euclidean() and Shannon(), got "
                f"{regularizer!r}."
            )
        if not 0 < strength < torch.inf:
            raise ValueError(
                f"{type(self).__name__}: strength must be a positive number, got {strength!r}."
            )
        self.regularizer = regularizer
        self.strength = strength
        self.descending = descending

    def __repr__(self) -> str:
        order = ", descending=True" if self.descending else ""
        return f"{type(self).__name__}({self.regularizer}, strength={self.strength}{order})"

    def _strong(self, scores: Tensor) -> Tensor:
        """The scores over the strength, in the order asked for."""
        return scores / (-self.strength if self.descending else self.strength)


@lru_cache(maxsize=64)
def _ranks(d: int) -> Permutahedron:
    """The weights 1 to d, in order once."""
    return Permutahedron.of_ranks(d)


def _values(values: Tensor) -> Tensor:
    """In a type that counts to d exactly."""
    if values.dim() == 0:
        raise ValueError("values must have at least one dimension, (*batch, d).")
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class SoftSort(_SoftOrder):
    """Sorted values with a gradient: the projection of (1, ..., d) / strength onto P(values).

    As strength goes to 0 this is `torch.sort(values)`, at a positive strength already where
    neighbours differ by less than 1 / strength; as it grows every place tends to the mean. With
    `Shannon()` it is the logarithm of the KL projection of exp((1, ..., d) / strength) onto
    P(exp(values)), so that values may have any sign.

    Args:
        regularizer: `Euclidean()`, the default, or `Shannon()`.
        strength: above 0.
        descending: the largest value first.

    Raises:
        TypeError: another regularizer.
        ValueError: a strength that is not positive; values that are not finite, when called.

    Example:
        >>> import torch
        >>> from spigot.layers import SoftSort
        >>> values = torch.tensor([2.0, -1.0, 0.5])
        >>> SoftSort()(values)
        tensor([-0.5000,  0.5000,  1.5000])
        >>> SoftSort(strength=0.1, descending=True)(values)
        tensor([ 2.0000,  0.5000, -1.0000])

    References:
        Blondel, Teboul, Berthet and Djolonga, "Fast differentiable sorting and ranking" (ICML 2020),
        section 4; theirs is `descending=True`.
    """

    def forward(self, values: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The sorted values, `(*batch, d)`.

        Args:
            values: `(*batch, d)`, floating.
            lengths: `(*batch,)`: sorts the first values of each instance; zeros follow.

        Raises:
            ValueError: values without a dimension or not finite, or a length out of range.
        """
        weights = _values(values)
        d = weights.shape[-1]
        scores = self._strong(torch.arange(1, d + 1).to(weights)).expand(weights.shape)
        polytope, own = _ranks(d), {"w": weights}
        if isinstance(self.regularizer, Euclidean):
            return polytope.project(scores, lengths=lengths, params=own).to(values.dtype)
        problem = pose(polytope, scores, Euclidean(), lengths, params=own)
        logs = isotonic.log_projection(problem.scores, problem.params["w"], problem.lengths)
        return logs.reshape(scores.shape).to(values.dtype)


class SoftRank(_SoftOrder):
    """Ranks with a gradient, 1 for the smallest: the projection of values / strength onto P(1, ..., d).

    As strength goes to 0 these are the ranks, exactly so where neighbours in order differ by at
    least `strength`; as it grows every rank tends to (d + 1) / 2. With `Shannon()` it is the KL
    projection of exp(values / strength) onto P(1, ..., d).

    Args:
        regularizer: `Euclidean()`, the default, or `Shannon()`.
        strength: above 0.
        descending: rank 1 for the largest value.

    Raises:
        TypeError: another regularizer.
        ValueError: a strength that is not positive; values that are not finite, when called.

    Example:
        >>> import torch
        >>> from spigot.layers import SoftRank
        >>> values = torch.tensor([2.0, -1.0, 0.5])
        >>> SoftRank()(values)
        tensor([3., 1., 2.])
        >>> SoftRank(strength=2.0)(values)
        tensor([2.7500, 1.2500, 2.0000])

    References:
        Blondel, Teboul, Berthet and Djolonga, "Fast differentiable sorting and ranking" (ICML 2020),
        section 4; theirs is `descending=True`.
    """

    def forward(self, values: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The ranks, `(*batch, d)`.

        Args:
            values: `(*batch, d)`, floating.
            lengths: `(*batch,)`: ranks the first values of each instance; zeros follow.

        Raises:
            ValueError: values without a dimension or not finite, or a length out of range.
        """
        scores = self._strong(_values(values))
        return (
            _ranks(scores.shape[-1]).maximize(scores, self.regularizer, lengths=lengths).to(values.dtype)
        )
