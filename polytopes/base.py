"""`Polytope`: a discrete structure, declared by at least one of three facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from spigot.polytopes import dispatch, implicit
from spigot.polytopes.arrays import distinct, numbers, rows_where
from spigot.polytopes.bounds import declared_bounds
from spigot.polytopes.dispatch import Road, Route, Solver
from spigot.polytopes.errors import ConvergenceError, unsupported, whole_numbers
from spigot.polytopes.labels import refuse_labels
from spigot.polytopes.posing import check_event, check_finite, detached, pose
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, Gibbs, Regularizer, Smooth
from spigot.polytopes.start import CachedSupports

if TYPE_CHECKING:
    import cvxpy as cp

    from spigot.polytopes.canonical import Canonical

__all__ = ["Checked", "Polytope", "certificate", "check_converged", "empty_or"]

Params = Mapping[str, Tensor] | None
Start = Solution | CachedSupports | None
FACTS = ("argmax", "constraints", "vertices")


class Polytope:
    """M = conv(V), the hull of a finite set V of structures, each a vector of parts.

    A subclass gives `event_shape` and declares at least one fact by defining its method:

    - `argmax(scores)`: `(n, *event) -> (n, *event)`, a vertex of largest score each;
    - `constraints(y)`: cvxpy constraints whose solutions are exactly M;
    - `vertices()`: all of V, `(m, *event)`.

    Every verb takes scores `(*batch, *event_shape)` and, by keyword,

    - `lengths`, integers `(*batch,)` (or `(*batch, 2)`, for structures with two sizes): each
      instance's size, where the class defines `length_range` and `at`; padding comes back as zeros;
    - `keep`, a bool tensor that broadcasts to the scores: `keep=False` on part i leaves the
      structures with y_i = 0, and so does a score of -inf;
    - `params`, a dict of tensors `(*batch, *shape)`: each instance's own value of what the class
      names in `parameters`, such as `{"capacity": ()}`. A parameter that is no attribute of the
      object has no default; `argmax`, `constraints` and `vertices` get it as a keyword argument.

    Raises:
        TypeError: when a class is made that declares no fact.

    Example:
        >>> from dataclasses import dataclass
        >>> import cvxpy as cp
        >>> import torch
        >>> from spigot.polytopes import Polytope
        >>> @dataclass(frozen=True)
        ... class Ordered(Polytope):  # 1 >= y_1 >= ... >= y_d >= 0
        ...     size: int
        ...
        ...     @property
        ...     def event_shape(self):
        ...         return (self.size,)
        ...
        ...     def constraints(self, y):
        ...         return [y[0] <= 1, y[:-1] >= y[1:], y[-1] >= 0]
        >>> Ordered(3).maximize(torch.tensor([1.0, -0.5, 0.25]))
        tensor([1., 0., 0.])
        >>> Ordered(3).project(torch.tensor([0.5, 0.75, 0.25]))
        tensor([0.6250, 0.6250, 0.2500])
    """

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """What may differ from instance to instance: the shape of each, by name."""
    _declared: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._declared = frozenset(
            name for name in FACTS if getattr(cls, name) is not getattr(Polytope, name)
        )
        if not cls._declared and not abstract:
            raise TypeError(
                f"{cls.__name__} declares no fact. Define at least one of argmax(self, scores), "
                "constraints(self, y) and vertices(self)."
            )

    # --- what a structure declares ---------------------------------------------------------

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one structure's parts."""
        raise NotImplementedError(
            f"{type(self).__name__} must define event_shape: a property, such as (3,) for three parts."
        )

    @property
    def facts(self) -> frozenset[str]:
        """The names of the declared facts."""
        return self._declared

    # (`*args: Any, **kwargs: Any` lets a class with `parameters` name them as arguments of its own.)

    def argmax(self, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A vertex of largest score each: `(n, *event) -> (n, *event)`. Scores are finite.

        Raises:
            UnsupportedProblem: it is not declared.
        """
        raise unsupported(self, None, "`argmax` is not declared.", "Use maximize(scores).")

    def argmax_for(self, problem: Problem, scores: Tensor) -> Tensor:
        """`argmax` of a problem's instances, for a class whose errors can name them.

        Args:
            problem: the batch, whose `describe` names instances.
            scores: `(n, *event)`, finite.
        """
        return self.argmax(scores)

    def constraints(self, y: cp.Variable, *args: Any, **kwargs: Any) -> list[Any]:
        """Cvxpy constraints on y, of `event_shape`, that hold exactly on M.

        Raises:
            UnsupportedProblem: they are not declared.
        """
        raise unsupported(
            self,
            None,
            "`constraints` is not declared.",
            "Define it, such as `def constraints(self, y): return [y >= 0, cp.sum(y) == 1]`, or use "
            "Facets(constraints, event_shape).",
        )

    def vertices(self, *args: Any, **kwargs: Any) -> Tensor:
        """Every structure, `(m, *event)`.

        Raises:
            UnsupportedProblem: they are not declared.
        """
        raise unsupported(
            self,
            None,
            "`vertices` is not declared.",
            "Define it, such as `def vertices(self): return torch.eye(3)`, or use Hull(points).",
        )

    @property
    def length_range(self) -> tuple[Any, Any]:
        """The smallest and the largest of `lengths`: numbers, or pairs where there are two sizes.

        Raises:
            UnsupportedProblem: there is no size.
        """
        raise unsupported(
            self, None, "it has no size that `lengths` could shorten.", "Use `keep` to mask parts."
        )

    def at(self, length: Any) -> Polytope:
        """The same structure of another size: a number, or a pair where there are two sizes.

        Its event is the leading block of this one's. Declared together with `length_range`.

        Raises:
            UnsupportedProblem: it is not declared.
        """
        raise unsupported(
            self,
            None,
            "`at` is not declared.",
            "Define it beside `length_range`, such as `def at(self, length): return Mine(length)`.",
        )

    def sized(self, length: Tensor) -> Polytope:
        """`at` that length, made once an object."""
        key = tuple(numbers(length.reshape(-1)))
        made: dict[tuple[int, ...], Polytope] = self.scratch.setdefault("sized", {})
        if key not in made:
            made[key] = self.at(key if length.dim() else key[0])
        return made[key]

    def padding(self, lengths: Tensor) -> Tensor:
        """The parts `(n, *event)` that structures of these lengths, `(n,)` or `(n, 2)`, use, as bool."""
        sizes, which = distinct(lengths.cpu())
        found = [self.sized(length).event_shape for length in sizes]
        shapes = torch.tensor(found, dtype=torch.int64).reshape(len(found), len(self.event_shape))
        inside = torch.ones((), dtype=torch.bool)
        for dim, size in enumerate(self.event_shape):
            fits = torch.arange(size) < shapes[which, dim][:, None]
            inside = inside[..., None] & fits.reshape(len(which), *[1] * dim, size)
        return inside.to(lengths.device)

    @property
    def unbound(self) -> tuple[str, ...]:
        """The parameters without a value of the object's own: `params` must give them."""
        return tuple(name for name in self.parameters if not hasattr(self, name))

    @property
    def varies(self) -> bool:
        """Whether an instance must be seen to know its polytope, as where a parameter has no value."""
        return bool(self.unbound)

    def parted(self, problem: Problem) -> Sequence[tuple[Tensor, Polytope]] | None:
        """Rows and their polytope, where instances have polytopes of their own; else None."""
        return None

    def given(self, values: Mapping[str, Tensor]) -> Polytope:
        """The same structure with these values of its parameters, the same for all instances."""
        from spigot.polytopes.given import Given

        if set(values) <= self._own:
            return replace(cast(Any, self), **{name: _plain(value) for name, value in values.items()})
        return Given(self, {name: value.detach().cpu() for name, value in values.items()})

    def constraints_with(self, y: cp.Variable, values: Mapping[str, Any]) -> list[Any]:
        """The constraints at these values of the parameters, which may be `cp.Parameter` objects.

        Args:
            y: a cvxpy variable of `event_shape`.
            values: by the parameters' names.
        """
        if set(values) <= self._own:
            return replace(cast(Any, self), **values).constraints(y)
        return self.constraints(y, **values)

    @property
    def _own(self) -> set[str]:
        """The names of the fields, where the class is a dataclass."""
        return {field.name for field in fields(self)} if is_dataclass(self) else set()

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices `(*batch, *event)` from labels in the structure's own form.

        Unless a structure says otherwise its labels are the vertices themselves.

        Args:
            labels: in the form that the class describes.
            lengths: `(*batch,)`, or `(*batch, 2)` where there are two sizes, integers; the largest
                where there are none.

        Raises:
            ValueError: a label that is no structure, with the instances.
        """
        vertices: Tensor = torch.as_tensor(labels)
        vertices = vertices if vertices.is_floating_point() else vertices.to(torch.get_default_dtype())
        batch_shape = check_event(self, vertices, "labels")
        inside = self.contains(vertices, tolerance=1e-4)
        refuse_labels(f"must lie in {self}", ~inside, vertices, batch_shape)
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Any:
        """Labels from vertices `(*batch, *event)`: `decode(encode(labels))` is `labels`.

        Args:
            vertices: `(*batch, *event)`.
            lengths: as for `encode`, where padding cannot be told by the vertices alone.
        """
        check_event(self, vertices, "vertices")
        return vertices

    # --- what follows from the facts, once an object -----------------------------------------

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Valid lower and upper bounds of each part over M, `(*event)` float64 each."""
        if "bounds" not in self.scratch:
            self.scratch["bounds"] = declared_bounds(self)
        return self.scratch["bounds"]

    @cached_property
    def canonical(self) -> Canonical:
        """The constraints as sparse rows, made and checked once.

        Raises:
            InfeasiblePolytope, UnboundedPolytope: the constraints are no polytope.
        """
        from spigot.polytopes.canonical import canonicalise

        return canonicalise(self)

    @cached_property
    def scratch(self) -> dict[Any, Any]:
        """Compiled forms that solvers keep with this object; dropped by pickling."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the caches."""
        caches = {
            name
            for owner in type(self).__mro__
            for name, attribute in vars(owner).items()
            if isinstance(attribute, cached_property)
        }
        return {name: value for name, value in self.__dict__.items() if name not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Works for frozen dataclasses too."""
        self.__dict__.update(state)

    # --- verbs ------------------------------------------------------------------------------

    def solve(
        self,
        scores: Tensor,
        regularizer: Regularizer | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        solver: Solver | None = None,
        start: Start = None,
        throw: bool = True,
    ) -> Solution:
        """argmax over y in M of <s, y> - Omega(y), with what the solver can say about it.

        Args:
            scores: `(*batch, *event)`.
            regularizer: Omega; None for a vertex (MAP).
            lengths: `(*batch,)`, or `(*batch, 2)` where there are two sizes, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names, `(*batch, *shape)` each.
            solver: forces a generic road.
            start: where to begin: a `Solution` of the same batch, or `SupportCache.at(ids)`. The
                answer does not depend on it. `ActiveSet` begins with the vertices of its support
                that the masks leave; the other roads have no use for it.
            throw: whether an instance that did not converge raises.

        Returns:
            A detached `Solution` in the scores' batch shape, dtype and device.

        Raises:
            TypeError: scores, lengths, keep or params that are no tensors of the right dtype; a class
                or a name where an object belongs.
            ValueError: NaN, +inf, a wrong shape, lengths out of range, a mask that leaves nothing
                (`NoStructure`), a start of another batch or polytope.
            UnsupportedProblem: the declared facts do not answer this.
            ConvergenceError: with `throw`, where the solver stopped early.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Euclidean, Simplex
            >>> solution = Simplex(3).solve(torch.tensor([1.0, 0.5, -3.0]), Euclidean())
            >>> solution.value
            tensor([0.7500, 0.2500, 0.0000])
            >>> bool(solution.converged), solution.gap
            (True, tensor(0.))
        """
        road = dispatch.choose(self, regularizer, solver)
        problem = detached(pose(self, scores, regularizer, lengths, keep, params, start))
        solution = empty_or(road, problem)
        if regularizer is None or isinstance(regularizer, Smooth):
            solution = _certified(problem, solution)
        if problem.size:
            solution = replace(solution, residual=road.residual(problem, solution))
        if throw:
            check_converged(road, problem, solution)
        return solution.batched(problem, scores.dtype, scores.device)

    def maximize(
        self,
        scores: Tensor,
        regularizer: Regularizer | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        solver: Solver | None = None,
        start: Start = None,
    ) -> Tensor:
        """argmax over y in M of <s, y> - Omega(y): `(*batch, *event)`.

        With a regularizer it is differentiable; without one (MAP) it is a detached vertex, always
        the same one at ties: to train through it use `spigot.layers.Argmax`.

        Args:
            scores: `(*batch, *event)`.
            regularizer: Omega; None for a vertex (MAP).
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.
            solver: forces a generic road.
            start: where to begin, as for `solve`.

        Raises:
            TypeError, ValueError, UnsupportedProblem, ConvergenceError: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Subset
            >>> Subset(4, 2).maximize(torch.tensor([0.1, 3.0, -1.0, 0.2]))
            tensor([0., 1., 0., 1.])
        """
        road = dispatch.choose(self, regularizer, solver)
        problem = pose(self, scores, regularizer, lengths, keep, params, start)
        value = implicit.maximize(problem, Checked(road))
        return value.reshape(scores.shape).to(scores.dtype)

    def project(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        start: Start = None,
    ) -> Tensor:
        """The Euclidean projection onto M, differentiable: `maximize(scores, Euclidean())`.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.
            start: where to begin, as for `solve`.

        Returns:
            `(*batch, *event)`, points of M.

        Raises:
            TypeError, ValueError, UnsupportedProblem, ConvergenceError: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Hypercube
            >>> Hypercube(2).project(torch.tensor([0.3, 4.0]))
            tensor([0.3000, 1.0000])
        """
        masks: dict[str, Any] = {"lengths": lengths, "keep": keep, "params": params}
        return self.maximize(scores, Euclidean(), start=start, **masks)

    def marginals(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
    ) -> Tensor:
        """The mean of p(z) ~ exp<s, z> over the structures, differentiable: `Gibbs()`.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.

        Returns:
            `(*batch, *event)`, points of M.

        Raises:
            TypeError, ValueError, UnsupportedProblem: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Subset
            >>> Subset(3, 2).marginals(torch.zeros(3))
            tensor([0.6667, 0.6667, 0.6667])
        """
        return self.maximize(scores, Gibbs(), lengths=lengths, keep=keep, params=params)

    def conjugate(
        self,
        scores: Tensor,
        regularizer: Regularizer | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        solver: Solver | None = None,
        start: Start = None,
    ) -> Tensor:
        """The maximum of <s, y> - Omega(y) over M, `(*batch,)`; its gradient is the maximiser.

        Args:
            scores: `(*batch, *event)`.
            regularizer: Omega; None for the largest score.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.
            solver: forces a generic road.
            start: where to begin, as for `solve`.

        Raises:
            TypeError, ValueError, UnsupportedProblem, ConvergenceError: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Euclidean, Simplex
            >>> Simplex(2).conjugate(torch.tensor([2.0, 0.0]), Euclidean())
            tensor(1.5000)
        """
        road = dispatch.choose(self, regularizer, solver)
        problem = pose(self, scores, regularizer, lengths, keep, params, start)
        value = implicit.conjugate(problem, Checked(road))
        return value.reshape(problem.batch_shape).to(scores.dtype)

    def log_partition(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
    ) -> Tensor:
        """log of the sum over structures of exp<s, z>, `(*batch,)`; its gradient is `marginals`.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.

        Raises:
            TypeError, ValueError, UnsupportedProblem: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Subset
            >>> Subset(4, 2).log_partition(torch.zeros(4)).exp()
            tensor(6.)
        """
        return self.conjugate(scores, Gibbs(), lengths=lengths, keep=keep, params=params)

    def entropy(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
    ) -> Tensor:
        """The entropy of p(z) ~ exp<s, z> in nats, `(*batch,)`, differentiable.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.

        Raises:
            TypeError, ValueError, UnsupportedProblem: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Hypercube
            >>> Hypercube(3).entropy(torch.zeros(3)) / torch.tensor(2.0).log()
            tensor(3.)
        """
        road = dispatch.choose(self, Gibbs())
        problem = pose(self, scores, Gibbs(), lengths, keep, params)
        problem = problem.with_scores(problem.scores.double())  # a difference of two large numbers
        marginals = implicit.maximize(problem, road).flatten(1)
        energy = (problem.flat_scores * marginals).sum(1)
        difference = implicit.conjugate(problem, road) - energy  # its gradient loses no digits
        exact = road.entropy(detached(problem)) if problem.size else None
        value = difference.detach().clamp_min(0.0) if exact is None else exact.to(difference)
        value = difference + (value - difference.detach())
        return value.reshape(problem.batch_shape).to(scores.dtype)

    def sample(
        self,
        scores: Tensor,
        sample_shape: tuple[int, ...] = (),
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact samples of p(z) ~ exp<s, z>: `(*sample_shape, *batch, *event)`, detached vertices.

        To train through samples use a layer of `spigot.layers` (`Argmax` for a single choice).

        Args:
            scores: `(*batch, *event)`.
            sample_shape: a tuple; `()` for one sample an instance.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.
            generator: for the draws.

        Raises:
            TypeError: `sample_shape` is no tuple.
            ValueError, UnsupportedProblem: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Simplex
            >>> rng = torch.Generator().manual_seed(0)
            >>> Simplex(3).sample(torch.zeros(3), (1000,), generator=rng).mean(0).round(decimals=1)
            tensor([0.3000, 0.3000, 0.3000])
        """
        if not isinstance(sample_shape, tuple | list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"sample_shape must be a tuple, such as (5,), got {sample_shape!r}.")
        road = dispatch.choose(self, Gibbs())
        problem = detached(pose(self, scores, Gibbs(), lengths, keep, params))
        count = torch.Size(sample_shape).numel()
        drawn = (
            road.sample(problem, count, generator)
            if problem.size and count
            else problem.scores.new_zeros(count, *problem.scores.shape)
        )
        return drawn.reshape(*sample_shape, *scores.shape).to(scores.device, scores.dtype)

    def top_k(
        self,
        scores: Tensor,
        k: int,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
    ) -> Tensor:
        """The k best structures, best first: `(k, *batch, *event)`, detached vertices.

        Args:
            scores: `(*batch, *event)`.
            k: how many, at least 1.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.

        Raises:
            TypeError: k is no whole number.
            ValueError: k < 1, or some instance has fewer than k structures.
            UnsupportedProblem: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Simplex
            >>> Simplex(3).top_k(torch.tensor([0.0, 2.0, 1.0]), 2)
            tensor([[0., 1., 0.],
                    [0., 0., 1.]])
        """
        whole_numbers(self, k=k)
        if k < 1:
            raise ValueError(f"top_k needs k >= 1, got {k}.")
        road = dispatch.choose(self, Gibbs())
        problem = detached(pose(self, scores, Gibbs(), lengths, keep, params))
        best = (
            road.top_k(problem, k)
            if problem.size
            else problem.scores.new_zeros(k, *problem.scores.shape)
        )
        return best.reshape(k, *scores.shape).to(scores.device, scores.dtype)

    def contains(
        self,
        y: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
        tolerance: float = 1e-6,
    ) -> Tensor:
        """Whether y lies within `tolerance` of M (of the face that the masks leave), `(*batch,)`.

        Args:
            y: `(*batch, *event)`.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.
            tolerance: of each part, to the nearest point of M.

        Raises:
            TypeError, ValueError, UnsupportedProblem, ConvergenceError: as for `solve`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Simplex
            >>> Simplex(2).contains(torch.tensor([[0.5, 0.5], [0.7, 0.7]]))
            tensor([ True, False])
        """
        batch_shape = check_event(self, y, "y")
        check_finite(y, batch_shape, "y")
        masks: dict[str, Any] = {"lengths": lengths, "keep": keep, "params": params}
        nearest = self.maximize(y.detach().double(), Euclidean(), **masks)
        distance = (nearest - y.detach()).abs().flatten(len(batch_shape)).amax(-1)
        return distance <= tolerance

    def gap(
        self,
        y: Tensor,
        scores: Tensor,
        regularizer: Regularizer | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Params = None,
    ) -> Tensor:
        """The certificate max over v in M of <s - grad Omega(y), v - y>, `(*batch,)`, for y in M.

        It bounds how far y is from optimal; for `Euclidean`, |y - y*|^2.

        Args:
            y: `(*batch, *event)`.
            scores: of the same shape.
            regularizer: Omega; None for MAP.
            lengths: `(*batch,)`, integers, as for `solve`.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `parameters` names.

        Raises:
            ValueError: y and the scores differ in shape; else as for `solve`.
            UnsupportedProblem: for Gibbs, whose marginals are checked by moments instead.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Euclidean, Simplex
            >>> s, y = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.5])
            >>> Simplex(2).gap(y, s, Euclidean())
            tensor(1.)
        """
        if regularizer is not None and not isinstance(regularizer, Smooth):
            raise unsupported(
                self,
                regularizer,
                "its gradient is not a function of y in closed form.",
                "Check marginals by their moments: compare with the mean of sample(scores, (n,)).",
            )
        batch_shape = check_event(self, y, "y")
        check_finite(y, batch_shape, "y")
        check_event(self, scores, "scores")
        if y.shape != scores.shape:
            raise ValueError(
                f"y of shape {tuple(y.shape)} must have the scores' shape {tuple(scores.shape)}."
            )
        y = y.detach()
        problem = detached(pose(self, scores, regularizer, lengths, keep, params))
        value = certificate(problem, y.reshape(batch_shape.numel(), *self.event_shape))
        return value.reshape(batch_shape).to(y.dtype)

    def which(
        self,
        regularizer: Regularizer | None = None,
        device: str | torch.device = "cpu",
        *,
        solver: Solver | None = None,
    ) -> Route:
        """What would run: the road, the facts, whether it is exact, and its cost.

        Args:
            regularizer: Omega; None for MAP.
            device: where the scores would be.
            solver: as for `solve`.

        Raises:
            TypeError: a class or a name where an object belongs.
            UnsupportedProblem: no road leads there.

        Example:
            >>> from spigot.polytopes import Euclidean, Simplex
            >>> Simplex(3).which(Euclidean()).rule
            'Newton on the multiplier of sum(y)'
        """
        return dispatch.which(self, regularizer, torch.device(device), solver)


class Checked(Road):
    """A road that raises where an instance did not converge.

    Args:
        road: the road.
        truncated: whether an answer that ran out of steps will do, as where the user set a budget.
    """

    def __init__(self, road: Road, truncated: bool = False) -> None:
        self.road = road
        stopped = (Status.STOPPED,) if truncated else ()
        self.accepted: tuple[Status, ...] = (Status.CONVERGED, *stopped)

    def solve(self, problem: Problem) -> Solution:
        """The same, checked."""
        solution = self.road.solve(problem)
        check_converged(self.road, problem, solution, self.accepted)
        return solution

    def conjugate(self, problem: Problem) -> Solution:
        """The same, checked."""
        solution = self.road.conjugate(problem)
        check_converged(self.road, problem, solution, self.accepted)
        return solution

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The same."""
        return self.road.vjp(problem, solution, grad)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The same."""
        return self.road.curve(problem, solution, u, v)

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """The same."""
        return self.road.vjp_params(problem, solution, grad)

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """The same."""
        return self.road.envelope(problem, solution)


def _plain(value: Tensor) -> Any:
    """A number, or nested tuples of them: what a dataclass's field holds."""
    return value.item() if value.dim() == 0 else tuple(_plain(row) for row in value)


def check_converged(
    road: Road,
    problem: Problem,
    solution: Solution,
    accepted: tuple[Status, ...] = (Status.CONVERGED,),
) -> None:
    """Raises a ConvergenceError that names the instances and the gaps reached."""
    if not bool(solution.status.any()):  # Status.CONVERGED is 0
        return
    # ints, for torch.compile finds no tensor in a comparison with an enumeration's member
    wrong = torch.stack([solution.status.ne(int(status)) for status in accepted]).all(0)
    if not bool(wrong.any()):
        return
    rows = rows_where(wrong)
    status = Status(int(solution.status[rows[0]]))
    gap = "" if solution.gap is None else f", gap {solution.gap[rows[0]].item():.2g}"
    raise ConvergenceError(
        f"{road.name} did not converge for {problem.describe(rows)} of "
        f"{problem.polytope} with {problem.regularizer} (status {status.name}, "
        f"{int(solution.iterations[rows[0]])} iterations{gap}).\n"
        "Give the solver a looser tolerance or more steps (solver=...), rescale the scores, or take "
        "the best point found from solve(..., throw=False)."
    )


def certificate(problem: Problem, y: Tensor, gradient: Tensor | None = None) -> Tensor:  # (n,)
    """max over v of <s - grad Omega(y), v - y>, one MAP call; y is `(n, *event)`.

    A solver's own `gradient` is better than the one at y, where y is rounded to 0 or 1.
    """
    n = problem.size
    if n == 0:
        return y.new_zeros(0)
    slope = problem.scores
    if isinstance(problem.regularizer, Smooth):
        gradient = problem.regularizer.gradient(y) if gradient is None else gradient.to(y)
        slope = (slope - gradient).nan_to_num(posinf=1e15, neginf=-1e15)
    if problem.mask is not None:
        slope = torch.where(problem.mask, slope, 0.0)
    linear = problem.linear(slope)
    best = dispatch.choose(problem.polytope, None).solve(linear).value.to(y)
    return (slope * (best - y)).flatten(1).sum(1)


def _certified(problem: Problem, solution: Solution) -> Solution:
    """With the certificate and the objective, where the road left them out."""
    exact = problem.with_scores(problem.scores.double())  # float32 alone would round the gap away
    value = solution.value.to(exact.scores)
    if solution.gap is None:
        solution = replace(solution, gap=certificate(exact, value, solution.gradient))
    omega = exact.regularizer
    if solution.gradient is None and isinstance(omega, Smooth):
        solution = replace(solution, gradient=omega.gradient(solution.value))
    if solution.objective is None:
        penalty = omega.total(value) if isinstance(omega, Smooth) else 0.0
        energy = (exact.scores * value).flatten(1).sum(1)
        solution = replace(solution, objective=energy - penalty)
    return solution


def empty_or(road: Road, problem: Problem) -> Solution:
    """The road's solution, or the empty one of an empty batch."""
    if problem.size:
        return road.solve(problem)
    none = problem.scores.new_zeros(0)
    return Solution.closed_form(problem.scores, none, torch.zeros_like(problem.scores))
