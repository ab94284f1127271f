"""Omega in max <s, y> - Omega(y): what makes a choice soft.

`None` stands for no regularizer: the answer is a vertex.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from spigot.polytopes.arrays import library
from spigot.polytopes.linear import LinearMap

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = [
    "Convex",
    "Euclidean",
    "EuclideanOf",
    "FermiDirac",
    "Gibbs",
    "Regularizer",
    "Separable",
    "Shannon",
    "Smooth",
    "Tsallis",
]


class Regularizer:
    """A convex function of parts y `(*event)`; `domain` is the interval that every part must lie in.

    Example:
        >>> from spigot.polytopes import Euclidean, Regularizer, Shannon
        >>> isinstance(Euclidean(), Regularizer), Shannon().domain
        (True, (0.0, inf))
    """

    domain: ClassVar[tuple[float, float]] = (-torch.inf, torch.inf)


@dataclass(frozen=True)
class Gibbs(Regularizer):
    """Negative entropy over the structures: maximize(M, s, Gibbs()) is the mean of p(z) ~ exp<s, z>.

    Structures are the distinct points of V, M = conv(V). As a function of y `(*event)` it is minus
    the largest entropy of a distribution over V with mean y; its conjugate is the log-partition.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Gibbs, Simplex
        >>> Simplex(3).maximize(torch.zeros(3), Gibbs())
        tensor([0.3333, 0.3333, 0.3333])

    References:
        Wainwright and Jordan, "Graphical models, exponential families, and variational
        inference" (2008), section 3.6.
    """


class Smooth(Regularizer):
    """A regularizer whose value and gradient are closed forms in y."""

    def total(self, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """Omega(y) of each instance."""
        raise NotImplementedError

    def gradient(self, y: Tensor) -> Tensor:  # (n, *event)
        """Its gradient."""
        raise NotImplementedError

    def expression(self, y: cp.Expression) -> cp.Expression:
        """Omega(y) in cvxpy, y of any shape if it is separable and else of the event's."""
        raise NotImplementedError


class Separable(Smooth):
    """A sum over parts of one scalar convex function phi.

    `steep` means |phi'| grows to infinity at the domain's ends, so that an answer never reaches
    them, and a mirror step cannot start at a vertex.
    """

    steep: ClassVar[bool]

    def value(self, y: Tensor) -> Tensor:
        """phi(y), elementwise."""
        raise NotImplementedError

    def total(self, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """The sum of phi(y), parts that rounding left outside the domain put back."""
        return self.value(y.clamp(*self.domain)).flatten(1).sum(1)

    def gradient(self, y: Tensor) -> Tensor:
        """phi'(y), elementwise; infinite at the ends of a steep domain."""
        raise NotImplementedError

    def mirror(self, x: Tensor) -> Tensor:
        """The y of the domain that maximises x y - phi(y), elementwise: phi' inverted."""
        raise NotImplementedError

    def spread(self, y: Tensor) -> Tensor:
        """1 / phi''(y), elementwise: the derivative of `mirror` at phi'(y)."""
        raise NotImplementedError

    def bend(self, y: Tensor) -> Tensor:
        """The derivative of `spread`, elementwise: what second derivatives of the maximiser need."""
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class Euclidean(Separable):
    """Half the squared norm: maximize(M, s, Euclidean()) is the projection of s onto M.

    On the simplex this is sparsemax, elsewhere SparseMAP. `Euclidean(of=T)` is |T y|^2 / 2 for a
    linear map T that a structure declares, such as `Sequence.tags`: SparseMAP as usually meant,
    quadratic in what T gives and linear in the rest. It is no sum over parts, so it is an object of
    another class, `EuclideanOf`, which solvers for `Euclidean` do not take.

    Parts: `(*event)` of any shape.

    Args:
        of: T; None for y itself.

    Raises:
        TypeError: `of` is no `LinearMap`.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Simplex
        >>> Simplex(3).maximize(torch.tensor([1.0, 0.5, -3.0]), Euclidean())
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins and Astudillo, "From softmax to sparsemax" (ICML 2016), equation 2.
        Niculae, Martins, Blondel and Cardie, "SparseMAP" (ICML 2018), equation 5.
    """

    steep: ClassVar[bool] = False

    @overload
    def __new__(cls, of: None = None) -> Euclidean: ...

    @overload
    def __new__(cls, of: LinearMap) -> EuclideanOf: ...

    def __new__(cls, of: LinearMap | None = None) -> Euclidean | EuclideanOf:
        """The regularizer of y itself, or of T y."""
        return super().__new__(cls) if of is None else EuclideanOf(of)

    def value(self, y: Tensor) -> Tensor:
        """y^2 / 2."""
        return 0.5 * y * y

    def gradient(self, y: Tensor) -> Tensor:
        """Y itself."""
        return y

    def mirror(self, x: Tensor) -> Tensor:
        """X itself."""
        return x

    def spread(self, y: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(y)

    def bend(self, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def expression(self, y: cp.Expression) -> cp.Expression:
        """Half the sum of squares."""
        cp = library("cvxpy")

        return 0.5 * cp.sum_squares(y)


@dataclass(frozen=True)
class EuclideanOf(Smooth):
    """|T y|^2 / 2, made by `Euclidean(of=T)`.

    T y is unique at the maximum; y itself is a mixture of the support that the solver found. The
    certificate bounds |T (y - y*)|^2.
    """

    of: LinearMap

    def __post_init__(self) -> None:
        if not isinstance(self.of, LinearMap):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"Euclidean(of=...) takes a LinearMap that a structure declares, such as "
                f"Sequence.tags; got {self.of!r}."
            )

    def __repr__(self) -> str:
        return f"Euclidean(of={self.of})"

    def total(self, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """Half the squared norm of T y."""
        return 0.5 * self.of.apply(y).square().flatten(1).sum(1)

    def gradient(self, y: Tensor) -> Tensor:  # (n, *event)
        """T'T y."""
        return self.of.gram(y)

    def expression(self, y: cp.Expression) -> cp.Expression:
        """Half the sum of squares of T y."""
        cp = library("cvxpy")

        return 0.5 * cp.sum_squares(self.of.rows(tuple(y.shape)) @ cp.vec(y, order="C"))


@dataclass(frozen=True)
class Shannon(Separable):
    """sum y log y over the parts, y >= 0: the Kullback-Leibler projection of exp(s - 1) onto M.

    Where sum y is constant over M that is the projection of exp(s), and on the simplex it is softmax.

    Parts: `(*event)` of any shape.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Shannon, Subset
        >>> Subset(3, 2).maximize(torch.tensor([5.0, 0.0, 0.0]), Shannon())
        tensor([1.0000, 0.5000, 0.5000])
    """

    domain: ClassVar[tuple[float, float]] = (0.0, torch.inf)
    steep: ClassVar[bool] = True

    def value(self, y: Tensor) -> Tensor:
        """Y log y, 0 at 0."""
        return torch.xlogy(y, y)

    def gradient(self, y: Tensor) -> Tensor:
        """1 + log y."""
        return 1 + y.log()

    def mirror(self, x: Tensor) -> Tensor:
        """exp(x - 1)."""
        return (x - 1).exp()

    def spread(self, y: Tensor) -> Tensor:
        """Y itself."""
        return y

    def bend(self, y: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(y)

    def expression(self, y: cp.Expression) -> cp.Expression:
        """Minus the sum of cvxpy's `entr`."""
        cp = library("cvxpy")

        return -cp.sum(cp.entr(y))


@dataclass(frozen=True)
class FermiDirac(Separable):
    """sum y log y + (1 - y) log(1 - y), for M in [0, 1]^d: each part's binary entropy.

    On `Hypercube` it is the sigmoid, on `Subset` the budget-entropy layer.

    Parts: `(*event)` of any shape.

    Example:
        >>> import torch
        >>> from spigot.polytopes import FermiDirac, Hypercube
        >>> Hypercube(2).maximize(torch.tensor([0.0, 2.0]), FermiDirac())
        tensor([0.5000, 0.8808])

    References:
        Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019), equation 2.
    """

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    steep: ClassVar[bool] = True

    def value(self, y: Tensor) -> Tensor:
        """Y log y + (1 - y) log(1 - y), 0 at both ends."""
        return torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)

    def gradient(self, y: Tensor) -> Tensor:
        """Logit y."""
        return y.logit()

    def mirror(self, x: Tensor) -> Tensor:
        """The sigmoid of x."""
        return x.sigmoid()

    def spread(self, y: Tensor) -> Tensor:
        """Y (1 - y)."""
        return y * (1 - y)

    def bend(self, y: Tensor) -> Tensor:
        """1 - 2 y."""
        return 1 - 2 * y

    def expression(self, y: cp.Expression) -> cp.Expression:
        """Minus the sum of `entr(y)` and `entr(1 - y)`."""
        cp = library("cvxpy")

        return -cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))


@dataclass(frozen=True)
class Tsallis(Separable):
    """(sum y^alpha - y) / (alpha (alpha - 1)), alpha > 1, y >= 0: entmax.

    alpha = 2 is `Euclidean` minus sum(y) / 2, on y >= 0.

    Parts: `(*event)` of any shape.

    Args:
        alpha: the exponent, above 1. (alpha -> 1 is `Shannon` up to a linear term.)

    Raises:
        ValueError: alpha is not a finite number above 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex, Tsallis
        >>> Simplex(3).maximize(torch.tensor([1.0, 0.0, -2.0]), Tsallis(1.5))
        tensor([0.8307, 0.1693, 0.0000])

    References:
        Peters, Niculae and Martins, "Sparse sequence-to-sequence models" (ACL 2019), equation 10.
    """

    alpha: float = 1.5
    domain: ClassVar[tuple[float, float]] = (0.0, torch.inf)
    steep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 < self.alpha < torch.inf:
            raise ValueError(
                f"Tsallis(alpha={self.alpha}): alpha must be a finite number above 1. "
                "For alpha = 1 use Shannon()."
            )

    def value(self, y: Tensor) -> Tensor:
        """(y^alpha - y) / (alpha (alpha - 1))."""
        return (y.clamp_min(0) ** self.alpha - y) / (self.alpha * (self.alpha - 1))

    def gradient(self, y: Tensor) -> Tensor:
        """(y^(alpha - 1) - 1 / alpha) / (alpha - 1)."""
        return (y.clamp_min(0) ** (self.alpha - 1) - 1 / self.alpha) / (self.alpha - 1)

    def mirror(self, x: Tensor) -> Tensor:
        """((alpha - 1) x + 1 / alpha)_+ ^ (1 / (alpha - 1))."""
        return ((self.alpha - 1) * x + 1 / self.alpha).clamp_min(0) ** (1 / (self.alpha - 1))

    def spread(self, y: Tensor) -> Tensor:
        """y^(2 - alpha); 0 at y = 0 where that is infinite."""
        y = y.clamp_min(0)
        if self.alpha <= 2:
            return y ** (2 - self.alpha)
        return torch.where(y > 0, y.clamp_min(torch.finfo(y.dtype).tiny) ** (2 - self.alpha), 0.0)

    def bend(self, y: Tensor) -> Tensor:
        """(2 - alpha) y^(1 - alpha); 0 at y = 0 where that is infinite."""
        power = y.clamp_min(torch.finfo(y.dtype).tiny) ** (1 - self.alpha)
        return torch.where(y > 0, (2 - self.alpha) * power, 0.0)

    def expression(self, y: cp.Expression) -> cp.Expression:
        """The same by cvxpy's `power`."""
        cp = library("cvxpy")

        powers: Any = cp.power(y, self.alpha)
        return cp.sum(powers - y) / (self.alpha * (self.alpha - 1))


@dataclass(frozen=True)
class Convex(Regularizer):
    """Any convex function that cvxpy accepts; the generic road only.

    Parts: `(*event)` of any shape, as cvxpy has it.

    Args:
        function: takes a cvxpy expression of `event_shape` and returns a scalar convex one.

    Example:
        >>> import cvxpy as cp
        >>> import torch
        >>> from spigot.polytopes import Convex, Simplex
        >>> s = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> Simplex(2).maximize(s, Convex(lambda y: cp.sum_squares(y))).round(decimals=4)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    function: Callable[[Any], Any]

    def __repr__(self) -> str:
        return f"Convex({getattr(self.function, '__name__', self.function)})"

    def expression(self, y: cp.Expression) -> cp.Expression:
        """The function itself."""
        return self.function(y)

    def value(self, y: Tensor) -> Tensor:  # (*event) -> ()
        """Its value at one point."""
        cp = library("cvxpy")

        return torch.as_tensor(self.function(cp.Constant(y.detach().cpu().numpy())).value).to(y)
