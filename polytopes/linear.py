"""Linear maps that a structure declares: `Sequence.tags` takes arcs to tag marginals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor

from spigot.polytopes.arrays import library

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["LinearMap", "SizeAndMap", "with_maps"]

P = TypeVar("P", bound="type[Polytope]")

CHUNK = 1024  # parts whose images are made in one call, so that no dense matrix is held


@dataclass(frozen=True)
class LinearMap:
    """T, from parts to what a quadratic regularizer weighs: `Euclidean(of=T)` is |T y|^2 / 2.

    Args:
        name: how it prints, such as "Sequence.tags".
        apply: T, `(n, *event) -> (n, *image)`.
        adjoint: T', `(n, *image)` and the event shape `-> (n, *event)`.

    Example:
        >>> import torch
        >>> from spigot.polytopes.linear import LinearMap
        >>> sums = LinearMap("sums", lambda y: y.sum(2), lambda u, e: u[:, :, None].expand(-1, *e))
        >>> sums
        sums
        >>> sums.apply(torch.eye(2)[None])
        tensor([[1., 1.]])
        >>> sums.adjoint(torch.tensor([[1.0, 2.0]]), (2, 2))
        tensor([[[1., 1.],
                 [2., 2.]]])
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor, tuple[int, ...]], Tensor]

    def __repr__(self) -> str:
        return self.name

    def fits(self, event_shape: tuple[int, ...]) -> bool:
        """Whether T takes parts of this shape, by the shapes alone."""
        try:
            image = self.apply(torch.empty(2, *event_shape, device="meta"))
            return tuple(self.adjoint(image, event_shape).shape) == (2, *event_shape)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False

    def gram(self, y: Tensor) -> Tensor:
        """T'T y, `(n, *event)`."""
        return self.adjoint(self.apply(y), tuple(y.shape[1:]))

    def rows(self, event_shape: tuple[int, ...]) -> Any:
        """T as a sparse matrix (csr), images by flat parts."""
        sp = library("scipy.sparse")
        d = torch.Size(event_shape).numel()
        columns: list[Any] = []
        for first in range(0, d, CHUNK):
            size = min(CHUNK, d - first)
            units = torch.zeros(size, d, dtype=torch.float64)
            units[torch.arange(size), first + torch.arange(size)] = 1.0
            image = self.apply(units.reshape(-1, *event_shape)).flatten(1)
            columns.append(sp.csr_matrix(image.numpy()))
        return sp.vstack(columns).T.tocsr()


class SizeAndMap:
    """A field that names both a size and a linear map: `Sequence(9, 4).tags` is 4, `Sequence.tags` T.

    A dataclass annotates `tags: SizeAndMap`, which makes it an argument without a default, and
    `@with_maps(tags=T)` above `@dataclass` binds the map.
    """

    def __init__(self, name: str, linear_map: LinearMap) -> None:
        self.name = name
        self.linear_map = linear_map

    @overload
    def __get__(self, instance: None, owner: type[Polytope]) -> LinearMap: ...

    @overload
    def __get__(self, instance: Polytope, owner: type[Polytope]) -> int: ...

    def __get__(self, instance: Polytope | None, owner: type[Polytope]) -> LinearMap | int:
        return self.linear_map if instance is None else instance.__dict__[self.name]

    def __set__(self, instance: Polytope, value: int) -> None:
        instance.__dict__[self.name] = value


def with_maps(**maps: LinearMap) -> Callable[[P], P]:
    """Binds linear maps to the fields of a dataclass that are annotated `SizeAndMap`.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from spigot.polytopes import Hypercube
        >>> from spigot.polytopes.linear import LinearMap, SizeAndMap, with_maps
        >>> total = LinearMap("Bag.items", torch.Tensor.neg, lambda u, event: -u)
        >>> @with_maps(items=total)
        ... @dataclass(frozen=True)
        ... class Bag(Hypercube):
        ...     items: SizeAndMap
        >>> Bag(3, items=3), Bag.items
        (Bag(d=3, items=3), Bag.items)
    """

    def bind(owner: P) -> P:
        for name, linear_map in maps.items():
            setattr(owner, name, SizeAndMap(name, linear_map))
        return owner

    return bind
