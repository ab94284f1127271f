"""A polytope whose parameters have been given their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from spigot.polytopes.base import Polytope

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Given"]


@dataclass(frozen=True, eq=False)
class Given(Polytope):
    """The polytope with these values handed to its facts as keyword arguments.

    `argmax` gets a tensor `(n, *shape)` of each, `constraints` an array, `vertices` a tensor.
    """

    polytope: Polytope
    values: Mapping[str, Tensor]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The polytope's."""
        return self.polytope.event_shape

    @property
    def facts(self) -> frozenset[str]:
        """The polytope's."""
        return self.polytope.facts

    def argmax(self, scores: Tensor) -> Tensor:
        """The polytope's, with the values repeated for every instance."""
        values = {
            name: value.to(scores.device).expand(len(scores), *value.shape)
            for name, value in self.values.items()
        }
        return self.polytope.argmax(scores, **values)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The polytope's at these values."""
        return self.polytope.constraints(y, **{name: v.numpy() for name, v in self.values.items()})

    def vertices(self) -> Tensor:
        """The polytope's at these values."""
        return self.polytope.vertices(**self.values)
