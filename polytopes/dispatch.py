"""Which road a problem takes: the table of fast rules, then the generic solvers.

A road is anything that answers `Problem -> Solution`, with its derivative beside it. A fast rule
is a road registered for a (polytope type, regularizer type) pair; the most specific pair wins.
A solver is a road for every polytope that declares the facts it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from spigot.polytopes import curvature, limits
from spigot.polytopes.arrays import first_part
from spigot.polytopes.bounds import part_range, parts_outside
from spigot.polytopes.errors import check_budget, unsupported
from spigot.polytopes.groups import Group, gather, members, merge, regroup, scatter
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import (
    Convex,
    Euclidean,
    EuclideanOf,
    Gibbs,
    Regularizer,
    Separable,
)
from spigot.polytopes.tally import spend

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = [
    "SIZED",
    "Road",
    "Route",
    "Routed",
    "Solver",
    "check_types",
    "choose",
    "fast_rule",
    "rule",
    "which",
]


SIZED = frozenset({"lengths"})
"""`native` of a road that reads each instance's size itself."""


class Road:
    """One way to solve one kind of problem. Scores are `(n, *event)`, n > 0."""

    name: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    native: ClassVar[frozenset[str]] = frozenset()
    """Which of "lengths" and "params" it reads itself; the others are split into groups for it."""
    accelerated: ClassVar[type[Road] | None] = None
    """The road to take instead where the scores are not on the CPU."""

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What keeps this road from that problem; empty when nothing does.

        Args:
            polytope: M.
            regularizer: Omega; None for MAP.
        """
        return ""

    def reads(self, problem: Problem) -> frozenset[str]:
        """`native` for this problem: of "lengths" and "params" those that need no groups."""
        return self.native

    def solve(self, problem: Problem) -> Solution:
        """The maximisers of a batch of problems."""
        raise NotImplementedError

    def conjugate(self, problem: Problem) -> Solution:
        """`solve` where the objective alone is asked for: the solution's value may be left out."""
        return self.solve(problem)

    def residual(self, problem: Problem, solution: Solution) -> Tensor | None:
        """By how much the answer may leave M, `(n,)`, where the road works from rows.

        Args:
            problem: the batch.
            solution: its answer by this road.
        """
        return None

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The Jacobian of the maximiser by the scores, transposed, times grad `(n, *event)`.

        Args:
            problem: the batch.
            solution: its answer by this road.
            grad: `(n, *event)`.

        Raises:
            UnsupportedProblem: the road has no derivative.
        """
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"the road {self.name} has no derivative.",
            "Use spigot.layers.Argmax with a pull-back to train through it.",
        )

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The gradient by the scores of <v, J u>, J their Jacobian, `(n, *event)`.

        Args:
            problem: the batch.
            solution: its answer by this road.
            u: `(n, *event)`.
            v: `(n, *event)`.

        Raises:
            UnsupportedProblem: the road has no second derivative.
        """
        omega = problem.regularizer
        if isinstance(omega, Euclidean | EuclideanOf):
            return torch.zeros_like(u)
        if isinstance(omega, Separable):

            def product(grad: Tensor) -> Tensor:
                return self.vjp(problem, solution, grad)

            return curvature.separable(omega, solution.value, product, u, v)
        raise unsupported(
            problem.polytope,
            omega,
            f"the road {self.name} has no second derivative.",
            "Use Euclidean(), or a separable regularizer such as Shannon(), which have one on every "
            "road; or differentiate once (create_graph=False).",
        )

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """The maximiser's Jacobian by the floating parameters, transposed, times grad.

        Args:
            problem: the batch.
            solution: its answer by this road.
            grad: `(n, *event)`.

        Raises:
            UnsupportedProblem: the road has no derivative by parameters.
        """
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"the road {self.name} has no derivative by {_names(problem.params)}.",
            "Detach the parameters.",
        )

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """The gradient of the maximum by the floating parameters, `(n, *shape)` each.

        Args:
            problem: the batch.
            solution: its answer by this road.

        Raises:
            UnsupportedProblem: the road has no derivative by parameters.
        """
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"the road {self.name} has no derivative of its value by {_names(problem.params)}.",
            "Detach the parameters.",
        )

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """`count` exact samples an instance from p(z) ~ exp<s, z>, `(count, n, *event)`.

        Args:
            problem: the batch.
            count: how many.
            generator: for the draws.

        Raises:
            UnsupportedProblem: the road has no samples.
        """
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"the road {self.name} cannot draw exact samples.",
            "Declare `vertices` for a small structure.",
        )

    def entropy(self, problem: Problem) -> Tensor | None:
        """The entropies of p(z) ~ exp<s, z>, `(n,)`, where the road has a sum without cancellation."""
        return None

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The k best vertices, best first, `(k, n, *event)`.

        Args:
            problem: the batch.
            k: how many.

        Raises:
            UnsupportedProblem: the road lists none.
        """
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"the road {self.name} cannot list the {k} best structures.",
            "Declare `vertices` for a small structure.",
        )


def _names(params: Mapping[str, Tensor]) -> str:
    return ", ".join(params)


class Solver(Road):
    """A generic road. `needs` is the fact it works from.

    Raises:
        ValueError: when made, for a `tolerance` that cannot be reached, or a negative `max_steps`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __post_init__(self) -> None:
        check_budget(self, getattr(self, "tolerance", None), getattr(self, "max_steps", None))

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What keeps this solver from that problem; empty when nothing does."""
        if not any(_is(regularizer, kind) for kind in self.solves):
            return f"{self.name} does not solve it."
        if not self.needs & polytope.facts:
            return f"{self.name} needs {' or '.join(sorted(self.needs))}."
        return ""


class Routed(Road):
    """A road with the batch laid out for it: on a device that it knows, in groups that it can take.

    Instances whose sizes or parameters the road does not read itself are grouped by them, and each
    group goes its own polytope's best road.
    """

    def __init__(self, road: Road, solver: Solver | None) -> None:
        self.road = road
        self.solver = solver
        self.name: str = road.name  # pyright: ignore[reportIncompatibleVariableOverride]

    def _placed(self, problem: Problem) -> tuple[Road, Problem]:
        kind = problem.scores.device.type
        road = _on(self.road, kind, problem.polytope, problem.regularizer)
        return road, problem if kind in road.devices else problem.moved("cpu")

    def _split(self, road: Road, problem: Problem) -> tuple[Group, ...] | None:
        """None where the road takes the whole batch."""
        asked = {"lengths"} if problem.lengths is not None else set[str]()
        asked |= {"params"} if problem.params else set()
        reads = road.reads(problem) if asked else asked
        if asked <= reads and problem.polytope.parted(problem) is None:
            return None
        pieces = members(problem, frozenset(reads))
        return regroup(pieces, lambda polytope: choose(polytope, problem.regularizer, self.solver))

    def solve(self, problem: Problem) -> Solution:
        """Each group's own answer, put together."""
        road, problem = self._placed(problem)
        with spend(problem.regularizer, problem.size):
            groups = self._split(road, problem)
            if groups is None:
                return road.solve(problem)
            return merge(problem, tuple(group.solved() for group in groups))

    def conjugate(self, problem: Problem) -> Solution:
        """The road's own, where it takes the whole batch."""
        road, placed = self._placed(problem)
        if self._split(road, placed) is not None:
            return self.solve(problem)
        with spend(placed.regularizer, placed.size):
            return road.conjugate(placed)

    def residual(self, problem: Problem, solution: Solution) -> Tensor | None:
        """Each group's own."""
        road, problem = self._placed(problem)
        if solution.groups is None:
            return road.residual(problem, solution)
        whole = torch.zeros(problem.size, dtype=torch.float64)
        for group in solution.groups:
            assert group.solution is not None
            part = group.road.residual(group.problem, group.solution)
            if part is None:
                return None
            whole[group.rows] = part
        return whole

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Each group's own."""

        def derived(road: Road, part: Problem, answer: Solution, along: tuple[Tensor, ...]) -> Tensor:
            return road.vjp(part, answer, *along)

        return self._each(problem, solution, derived, grad)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """Each group's own."""

        def derived(road: Road, part: Problem, answer: Solution, along: tuple[Tensor, ...]) -> Tensor:
            return road.curve(part, answer, *along)

        return self._each(problem, solution, derived, u, v)

    def _each(
        self,
        problem: Problem,
        solution: Solution,
        derived: Callable[[Road, Problem, Solution, tuple[Tensor, ...]], Tensor],
        *along: Tensor,
    ) -> Tensor:
        """One of the roads' derivatives, along tensors `(n, *event)`."""
        road, problem = self._placed(problem)
        along = tuple(grad.to(problem.scores.device) for grad in along)
        if solution.groups is None:
            return derived(road, problem, solution, along)
        whole = torch.zeros_like(along[0])
        for group in solution.groups:
            assert group.solution is not None
            mine = tuple(gather(group, grad) for grad in along)
            scatter(group, whole, derived(group.road, group.problem, group.solution, mine))
        return whole

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """The road's own; by the rows' limits where the parameters were put into the polytope."""
        road, problem = self._placed(problem)
        if solution.groups is not None:
            return limits.pull_groups(problem, solution.groups, grad)
        return road.vjp_params(problem, solution, grad.to(problem.scores.device))

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """Likewise."""
        road, problem = self._placed(problem)
        if solution.groups is not None:
            return limits.envelope_groups(problem, solution.groups)
        return road.envelope(problem, solution)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Each group's own samples, the groups one after the other."""
        with spend("sample", count * problem.size):
            return self._listed(problem, count, lambda road, part: road.sample(part, count, generator))

    def entropy(self, problem: Problem) -> Tensor | None:
        """The road's own, where it takes the whole batch."""
        road, problem = self._placed(problem)
        return road.entropy(problem) if self._split(road, problem) is None else None

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Each group's own."""
        return self._listed(problem, k, lambda road, part: road.top_k(part, k))

    def _listed(
        self, problem: Problem, count: int, verb: Callable[[Road, Problem], Tensor]
    ) -> Tensor:  # (count, n, *event)
        road, problem = self._placed(problem)
        groups = self._split(road, problem)
        if groups is None:
            return verb(road, problem)
        whole = problem.scores.new_zeros(count, *problem.scores.shape)
        for group in groups:
            scatter(group, whole, verb(group.road, group.problem))
        return whole


def _on(road: Road, device: str, polytope: Polytope, regularizer: Regularizer | None) -> Road:
    """The road itself, or the one to take instead on that kind of device."""
    if device == "cpu" or road.accelerated is None:
        return road
    other = road.accelerated()
    return road if other.lacks(polytope, regularizer) else other


def _is(regularizer: Regularizer | None, kind: type[Regularizer] | None) -> bool:
    return regularizer is None if kind is None else isinstance(regularizer, kind)


@dataclass(frozen=True)
class Route:
    """What would run: the answer of `Polytope.which`.

    Attributes:
        rule: the road's name.
        facts: the facts that the polytope declares.
        exact: whether the road ends at the exact answer (up to rounding), not at a tolerance.
        cost: its cost an instance.
        native: whether it runs on the device asked about; otherwise the problem is solved on
            the CPU and the answer copied back.

    Example:
        >>> from spigot.polytopes import Euclidean, Matching
        >>> route = Matching(5).which(Euclidean(), device="cuda")
        >>> route.rule
        'semismooth Newton on the row and column multipliers'
        >>> route.exact, route.native
        (True, False)
    """

    rule: str
    facts: tuple[str, ...]
    exact: bool
    cost: str
    native: bool


_RULES: dict[tuple[type, type[Regularizer] | None], Road] = {}


def rule(
    polytope: type[Polytope], *regularizers: type[Regularizer] | None
) -> Callable[[type[Road]], type[Road]]:
    """Registers a fast rule for the pairs of a polytope type with regularizer types."""

    def register(road: type[Road]) -> type[Road]:
        for regularizer in regularizers:
            _RULES[polytope, regularizer] = road()
        return road

    return register


def fast_rule(polytope: Polytope, regularizer: Regularizer | None) -> Road | None:
    """The most specific fast rule that can take the problem, by the polytope's type first."""
    for road in _fast_rules(polytope, regularizer):
        if not road.lacks(polytope, regularizer):
            return road
    return None


def _fast_rules(polytope: Polytope, regularizer: Regularizer | None) -> Iterator[Road]:
    """Those registered for the types of the two, the most specific first."""
    kinds = [None] if regularizer is None else type(regularizer).__mro__
    for owner in type(polytope).__mro__:
        for kind in kinds:
            if (owner, kind) in _RULES:
                yield _RULES[owner, kind]


def generic_roads() -> tuple[Solver, ...]:
    """The generic solvers, in the order in which they are tried."""
    from spigot.polytopes import solvers

    return (
        solvers.OracleCall(),
        solvers.Enumerate(),
        solvers.Highs(),
        solvers.ActiveSet(),
        solvers.FrankWolfe(),
        solvers.Newton(),
        solvers.Clarabel(),
        solvers.Cvxpy(),
        solvers.BatchedNewton(),
        solvers.ProvenPDHG(),
        solvers.CvxpyLayers(),
    )


def roads(polytope: Polytope, regularizer: Regularizer | None) -> Iterator[Road]:
    """Every road that can take the problem, the preferred one first."""
    quick = fast_rule(polytope, regularizer)
    if quick is not None:
        yield quick
    for solver in generic_roads():
        if not solver.lacks(polytope, regularizer):
            yield solver


def choose(polytope: Polytope, regularizer: Regularizer | None, solver: Solver | None = None) -> Routed:
    """The road that a problem takes.

    Raises:
        TypeError: a class or a name was given where an object belongs.
        UnsupportedProblem: the polytope leaves the regularizer's domain, or no road exists, or
            `solver` cannot take it.
    """
    check_types(polytope, regularizer, solver)
    check_domain(polytope, regularizer)
    return Routed(_chosen(polytope, regularizer, solver), solver)


def _chosen(polytope: Polytope, regularizer: Regularizer | None, solver: Solver | None) -> Road:
    if solver is not None:
        lack = solver.lacks(polytope, regularizer)
        if lack:
            raise unsupported(polytope, regularizer, lack, "Leave `solver` out, or name another.")
        return solver
    for road in roads(polytope, regularizer):
        return road
    reasons = [road.lacks(polytope, regularizer) for road in _fast_rules(polytope, regularizer)]
    raise unsupported(
        polytope, regularizer, " ".join(["no road leads there.", *reasons]), _WAY_OUT[_kind(regularizer)]
    )


def check_types(polytope: object, regularizer: object, solver: object) -> None:
    """Raises TypeError for what is of another kind, such as a class in the place of its object."""
    from spigot.polytopes.base import Polytope

    if not isinstance(polytope, Polytope):
        raise TypeError(f"polytope must be a Polytope object, such as Simplex(3); got {polytope!r}.")
    if not isinstance(regularizer, Regularizer | None):
        raise TypeError(
            f"regularizer must be an object such as Euclidean(), or None; got {regularizer!r}."
        )
    if not isinstance(solver, Solver | None):
        raise TypeError(f"solver must be a solver object, such as ActiveSet(), or None; got {solver!r}.")


def _kind(regularizer: Regularizer | None) -> type[Regularizer] | None:
    for kind in (Gibbs, Convex):
        if isinstance(regularizer, kind):
            return kind
    return None


_WAY_OUT: dict[type[Regularizer] | None, str] = {
    Gibbs: "Declare `vertices` to sum over the structures, or use Shannon() or Euclidean().",
    Convex: "Declare `constraints` or `vertices`: a convex regularizer is solved as a cone program.",
    None: "Declare `argmax`, `constraints` or `vertices`.",
}


def check_domain(polytope: Polytope, regularizer: Regularizer | None) -> None:
    """Refuses a regularizer whose domain does not hold the polytope, naming the part and its range."""
    if isinstance(regularizer, EuclideanOf) and not regularizer.of.fits(polytope.event_shape):
        raise unsupported(
            polytope,
            regularizer,
            f"{regularizer.of} does not take parts of shape {polytope.event_shape}.",
            "Use a linear map that the polytope's own class declares.",
        )
    if not isinstance(regularizer, Separable) or regularizer.domain == (-torch.inf, torch.inf):
        return
    if polytope.varies:
        return  # until its parameters are known
    known = ("inside", regularizer.domain)
    if known in polytope.scratch:
        return
    outside = parts_outside(polytope, *regularizer.domain)
    if bool(outside.any()):
        part = first_part(outside)
        lower, upper = part_range(polytope, part)
        lowest, highest = regularizer.domain
        raise unsupported(
            polytope,
            regularizer,
            f"part {part} ranges over [{lower:g}, {upper:g}], outside the regularizer's domain "
            f"[{lowest:g}, {highest:g}].",
            "Use Euclidean(), or declare constraints that keep every part in the domain.",
        )
    polytope.scratch[known] = True


def which(
    polytope: Polytope, regularizer: Regularizer | None, device: torch.device, solver: Solver | None
) -> Route:
    """What would run."""
    road = _on(choose(polytope, regularizer, solver).road, device.type, polytope, regularizer)
    return Route(
        rule=road.name,
        facts=tuple(sorted(polytope.facts)),
        exact=road.exact,
        cost=road.cost,
        native=device.type in road.devices,
    )
