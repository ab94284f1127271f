r"""Logic factors: 0/1 parts that fulfil one clause, with every answer in closed form.

A factor says that its inputs fulfil a clause ("exactly one", "at least one"), for some with an
output: a part that says whether they do. Negated parts are reflected, z_i = 1 - y_i, which turns all
the factors into the two clauses and their gated forms (see `clauses`):

    factor      clause on z         gate         reflected
    Xor         exactly one         -            -
    Or          at least one        -            -
    AtMostOne   exactly one         hidden       -
    Imply       at least one        -            the premises
    XorOut      exactly one         -            the output
    OrOut       at least one        the output   -
    AndOut      at least one        the output   every part
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.curvature import NEVER, derivative
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import logic as kernels
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs
from spigot.polytopes.structures.clauses import ANY, ONE, SOME, Clause, Directions, softplus
from spigot.polytopes.structures.index_sets import decode_sets, encode_sets

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["AndOut", "AtMostOne", "Imply", "Logic", "Or", "OrOut", "Xor", "XorOut"]

GATES = ("none", "hidden", "last")
LISTED = 10  # parts up to which the 2^d candidates are listed
T = TypeVar("T", bound="tuple[Tensor, ...]")


@dataclass(frozen=True)
class Form:
    """One row of the table above.

    Attributes:
        clause: what the inputs fulfil where the gate is open.
        gate: "none" (always open), "hidden" (no part of the event) or "last" (the last part).
        inputs: whether all parts but the last are reflected.
        last: whether the last part is.
    """

    clause: Clause
    gate: str = "none"
    inputs: bool = False
    last: bool = False


@dataclass(frozen=True)
class Logic(Polytope, abstract=True):
    """conv of the 0/1 vectors of d parts that fulfil a clause. Labels are index sets, padded with -1.

    Args:
        d: how many parts, at least 1; at least 2 where the last one is special.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d is too small, or the flags are not d.
    """

    form: ClassVar[Form]

    d: int
    negated: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        whole_numbers(self, d=self.d)
        name = type(self).__name__
        if self.d < self.length_range[0]:
            raise ValueError(f"{name}(d={self.d}): d must be at least {self.length_range[0]}.")
        flags = tuple(self.negated)
        if not all(isinstance(flag, bool) for flag in flags):  # pyright: ignore
            raise TypeError(f"{name}: negated must hold bools, got {self.negated!r}.")
        if len(flags) not in (0, self.d):
            raise ValueError(f"{name}: negated must have d = {self.d} entries, got {len(flags)}.")
        object.__setattr__(self, "negated", flags)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (self.d,)

    @property
    def facts(self) -> frozenset[str]:
        """All three; without the vertices where there are too many."""
        listed = {"vertices"} if self.d <= LISTED else set[str]()
        return frozenset({"argmax", "constraints"} | listed)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.d).double(), torch.ones(self.d).double()

    @property
    def length_range(self) -> tuple[int, int]:
        """One part, or two where the last one is special, to d."""
        return (2 if self.form.gate == "last" or self.form.inputs != self.form.last else 1), self.d

    def at(self, length: int) -> Logic:
        """The same factor over the first parts; the special one is then the last of them."""
        return replace(self, d=length, negated=self.negated[:length])

    def reflected(self, lengths: Tensor) -> Tensor:  # (n,) -> (n, d)
        """The parts that enter the clause as 1 - y."""
        part = torch.arange(self.d, device=lengths.device)
        last = part == lengths[:, None] - 1
        own = torch.tensor(self.negated or [False] * self.d, device=lengths.device)
        return torch.where(last, self.form.last, self.form.inputs) ^ own

    def argmax(self, scores: Tensor) -> Tensor:
        """The best fulfilling assignment, the first one at ties."""
        return BestAssignment().solve(Problem(self, scores, None)).value.to(scores)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The box and the clause's facets."""
        cp = library("cvxpy")

        sign = 1 - 2 * self.reflected(torch.tensor([self.d]))[0].double().numpy()
        z = cp.multiply(sign, y) + (1 - sign) / 2
        inputs, box = (z[:-1] if self.form.gate == "last" else z), [y >= 0, y <= 1]
        total: Any = cp.sum(inputs)
        if self.form.gate == "last":
            return [*box, inputs <= z[-1], total >= z[-1]]
        if self.form.gate == "hidden":
            return [*box, total <= 1]
        return [*box, total == 1 if self.form.clause is ONE else total >= 1]

    def vertices(self) -> Tensor:
        """Every fulfilling assignment."""
        points = torch.tensor(list(product([0.0, 1.0], repeat=self.d)), dtype=torch.float64)
        return points[self.fulfilled(points, torch.full((len(points),), self.d))]

    def fulfilled(self, y: Tensor, lengths: Tensor) -> Tensor:  # (n, d), (n,) -> (n,)
        """Whether 0/1 vectors fulfil the clause."""
        inside = torch.arange(self.d, device=y.device) < lengths[:, None]
        z = ((y > 0.5) ^ self.reflected(lengths)) & inside
        last = z.gather(1, lengths[:, None] - 1)[:, 0]
        count = z.sum(1) - (last.long() if self.form.gate == "last" else 0)
        if self.form.gate == "last":
            return last == (count > 0)
        most = count <= 1 if self.form.clause is ONE else count >= 0
        return most & ((count >= 1) | (self.form.gate == "hidden")) & ~((y > 0.5) & ~inside).any(1)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 vectors `(*batch, d)` of index sets, padded with -1.

        Raises:
            TypeError: indices that are no whole numbers.
            ValueError: an index out of range or listed twice, or a set that does not fulfil the clause.
        """
        index = whole_labels(labels, "part indices")
        batch = index.shape[:-1]
        sizes = label_sizes(self, batch, lengths, torch.device("cpu"))
        vertices = encode_sets(index, self.d, lengths)
        wrong = ~self.fulfilled(vertices.reshape(-1, self.d).cpu(), sizes.reshape(-1)).reshape(batch)
        must = f"must be the parts that are 1 in a structure of {self}"
        refuse_labels(must, wrong, index, batch, lengths)
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Index sets `(*batch, d)`, ascending, padded with -1 at their end."""
        return decode_sets(self, vertices, self.d)


@dataclass(frozen=True)
class Xor(Logic):
    """{0 <= y <= 1 : sum y = 1}: exactly one of d; `Simplex(d)` with negations.

    Parts: `(d,)`. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 1.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 1, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Xor
        >>> Xor(3).project(torch.tensor([0.5, 0.25, -1.0]))
        tensor([0.6250, 0.3750, 0.0000])
        >>> Xor(3, negated=(True, True, True)).maximize(torch.zeros(3))  # all but one
        tensor([0., 1., 1.])

    References:
        Martins, Figueiredo, Aguiar, Smith and Xing, "AD3: alternating directions dual decomposition
        for MAP inference in graphical models" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(ONE)


@dataclass(frozen=True)
class Or(Logic):
    """{0 <= y <= 1 : sum y >= 1}: at least one of d.

    Parts: `(d,)`. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 1.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 1, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Or
        >>> Or(3).maximize(torch.tensor([-2.0, -1.0, -3.0]))
        tensor([0., 1., 0.])
        >>> Or(2).log_partition(torch.zeros(2)).exp()
        tensor(3.)

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(SOME)


@dataclass(frozen=True)
class AtMostOne(Logic):
    """{y >= 0 : sum y <= 1}: one of d or none; `Subset(d, 1, at_most=True)` with negations.

    Parts: `(d,)`. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 1.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 1, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import AtMostOne
        >>> AtMostOne(3).project(torch.tensor([0.5, 0.25, -1.0]))
        tensor([0.5000, 0.2500, 0.0000])

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(ONE, gate="hidden")


@dataclass(frozen=True)
class Imply(Logic):
    """{0 <= y <= 1 : sum of (1 - y_i) over i < d, plus y_d, >= 1}: y_1 and ... and y_{d-1} imply y_d.

    Parts: `(d,)`, the conclusion last. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 2.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 2, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Imply
        >>> Imply(3).maximize(torch.tensor([2.0, 2.0, -1.0]))
        tensor([1., 1., 1.])
        >>> Imply(3).maximize(torch.tensor([2.0, 0.5, -1.0]))
        tensor([1., 0., 0.])

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(SOME, inputs=True)


@dataclass(frozen=True)
class XorOut(Logic):
    """{0 <= y <= 1 : y_1 + ... + y_{d-1} = y_d}: at most one of the inputs, and y_d says whether one.

    Parts: `(d,)`, the output last. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 2.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 2, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import XorOut
        >>> XorOut(3).maximize(torch.tensor([1.0, 2.0, -1.5]))
        tensor([0., 1., 1.])

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(ONE, last=True)


@dataclass(frozen=True)
class OrOut(Logic):
    """{0 <= y_i <= y_d <= 1, y_1 + ... + y_{d-1} >= y_d}: y_d = y_1 or ... or y_{d-1}.

    Parts: `(d,)`, the output last. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 2.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 2, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import OrOut
        >>> OrOut(3).project(torch.tensor([0.5, 0.25, 1.0]))
        tensor([0.5833, 0.3333, 0.9167])

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(SOME, gate="last")


@dataclass(frozen=True)
class AndOut(Logic):
    """{0 <= y_d <= y_i <= 1, y_d >= y_1 + ... + y_{d-1} - (d - 2)}: y_d = y_1 and ... and y_{d-1}.

    Parts: `(d,)`, the output last. Labels are index sets `(*batch, d)`, padded with -1.

    Args:
        d: how many parts, at least 2.
        negated: d flags, or none: parts that stand negated in the clause.

    Raises:
        TypeError: d is no whole number, or a flag no bool.
        ValueError: d < 2, or the flags are not d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import AndOut
        >>> AndOut(3).maximize(torch.tensor([1.0, 1.0, -3.0]))
        tensor([0., 1., 0.])

    References:
        Martins et al., "AD3" (JMLR 2015), section 5.3.
    """

    form: ClassVar[Form] = Form(SOME, gate="last", inputs=True, last=True)


CLAUSES = (ANY, ONE, SOME)


@dataclass(frozen=True)
class Reduced:
    """A batch in terms of z, parts that `keep` fixes taken out.

    Attributes:
        flipped: parts that are reflected, `(n, d)`.
        inputs: parts that are free inputs, `(n, d)`.
        output: the free output, one-hot or all false, `(n, d)`.
        fixed: the other parts that are 1 in every structure, `(n, d)`.
        which: the index in `CLAUSES` of what the free inputs fulfil, `(n,)`.
        gated: whether a gate is free, `(n,)`.
        visible: whether the gate is a part of the event.
    """

    flipped: Tensor
    inputs: Tensor
    output: Tensor
    fixed: Tensor
    which: Tensor
    gated: Tensor
    visible: bool

    def entering(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the inputs `(n, d)`, -inf elsewhere, and of the gate `(n,)`, 0 if hidden."""
        gate = torch.where(self.output, values, 0.0).sum(1)
        return values.masked_fill(~self.inputs, -torch.inf), gate

    def scores(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of inputs and gate, and the constant that <s, y> has besides."""
        signed = torch.where(self.flipped, -scores, scores)
        constant = torch.where(self.flipped, scores, 0.0).sum(1)
        constant = constant + torch.where(self.fixed, signed, 0.0).sum(1)
        return *self.entering(signed), constant

    def leaving(self, inputs: Tensor, gate: Tensor) -> Tensor:
        """y from z of the inputs `(*, n, d)` and of the gate `(*, n)`."""
        z = torch.where(self.output, gate[..., None], torch.where(self.inputs, inputs, 0.0))
        z = torch.where(self.fixed, 1.0, z)
        return torch.where(self.flipped, 1 - z, z)

    def pulled(self, inputs: Tensor, gate: Tensor) -> Tensor:
        """A derivative by y, from one by z (the reflections of both ends cancel)."""
        moved = torch.where(self.output, gate[:, None], torch.where(self.inputs, inputs, 0.0))
        return torch.where(self.flipped, -moved, moved)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """A gradient by y as one by the inputs, 0 elsewhere, and by the gate."""
        signed = torch.where(self.flipped, -grad, grad)
        gate = torch.where(self.output, signed, 0.0).sum(1)
        return torch.where(self.inputs, signed, 0.0), gate

    def each(self, verb: Callable[..., T], *arguments: Tensor) -> T:
        """verb(clause, *arguments) for the instances of each clause, put together."""
        found: list[tuple[Tensor, T]] = []
        for i, clause in enumerate(CLAUSES):
            rows = (self.which == i).nonzero()[:, 0]
            if len(rows) == len(self.which):
                return verb(clause, *arguments)
            if len(rows):
                found.append((rows, verb(clause, *(argument[rows] for argument in arguments))))
        whole = tuple(part.new_zeros(len(self.which), *part.shape[1:]) for part in found[0][1])
        for rows, parts in found:
            for into, part in zip(whole, parts, strict=True):
                into[rows] = part
        return whole  # pyright: ignore[reportReturnType]


def reduced(problem: Problem) -> Reduced:
    """The clauses that are left, by what `keep` fixes.

    A negated part that is excluded stands in the clause as 1. One input that is 1 opens the gate and
    fulfils "at least one" (the others are free) and "exactly one" (the others are 0).

    Raises:
        NoStructure: nothing fulfils what is left.
    """
    polytope = problem.polytope
    assert isinstance(polytope, Logic)
    form, shape, device = polytope.form, problem.scores.shape, problem.scores.device
    whole = torch.full(shape[:1], polytope.d, device=device)
    lengths = whole if problem.lengths is None else problem.lengths
    part = torch.arange(polytope.d, device=device)
    inside = part < lengths[:, None]
    kept = inside if problem.keep is None else inside & problem.keep
    flipped = polytope.reflected(lengths) & inside
    is_output = (part == lengths[:, None] - 1) & (form.gate == "last")
    ones = flipped & ~kept & inside
    one, free = ((parts & ~is_output).sum(1) for parts in (ones, kept))
    closable = torch.full_like(one, form.gate != "none", dtype=torch.bool)
    output_on = (ones & is_output).any(1)
    output_off = (is_output & inside & ~kept & ~ones).any(1)
    undecided = closable & ~output_on & ~output_off
    shut = output_off | (undecided & (one == 0) & (free == 0))
    gated = undecided & (one == 0) & (free > 0)
    impossible = (shut & (one > 0)) | (~shut & ~gated & (one + free == 0))
    impossible |= (one > 1) & (form.clause is ONE)
    if bool(impossible.any()):
        raise problem.no_structure(rows_where(impossible))
    done = shut | ((one == 1) & (form.clause is ONE))
    code = CLAUSES.index(form.clause)
    return Reduced(
        flipped,
        kept & ~is_output & ~done[:, None],
        is_output & gated[:, None],
        torch.where(is_output, (~shut & ~gated)[:, None], ones),
        torch.where(done | (one > 0), 0, code),
        gated,
        form.gate == "last",
    )


def _opened(gated: Tensor, lift: Tensor) -> Tensor:  # (n,)
    """The chance that the gate is open."""
    return torch.where(gated, lift.sigmoid(), 1.0)


@rule(Logic, None)
class BestAssignment(Road):
    """The best inputs, and whether they are worth opening the gate."""

    name = "best assignment"
    cost = "O(d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """0/1 vectors."""
        form = reduced(problem)
        inputs, gate, constant = form.scores(problem.scores.double())
        z, value = form.each(_best, inputs)
        opened = ~form.gated | (gate + value > 0)
        objective = constant + torch.where(form.gated, (gate + value).clamp_min(0), value)
        y = form.leaving(z * opened[:, None], opened.to(z))
        return Solution.closed_form(y, objective)


@rule(Logic, Gibbs)
class LogicMarginals(Road):
    """Sums over the fulfilling assignments."""

    name = "closed-form sum over assignments"
    cost = "O(d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """The mean and the log-partition."""
        form = reduced(problem)
        inputs, gate, constant = form.scores(problem.scores.double())
        mean, total = form.each(_mean_and_total, inputs)
        lift = gate + total
        opened = _opened(form.gated, lift)
        objective = constant + torch.where(form.gated, softplus(lift), total)
        return Solution.closed_form(form.leaving(opened[:, None] * mean, opened), objective)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The covariance times grad: that behind the gate, and the gate's own."""
        form = reduced(problem)
        inputs, gate, _ = form.scores(problem.scores.double())
        mean, total = form.each(_mean_and_total, inputs)
        lift = gate + total
        by_inputs, by_gate = form.gradient(grad.double())
        (within,) = form.each(_covariance, inputs, mean, by_inputs)
        spread = torch.where(form.gated, lift.sigmoid() * (-lift).sigmoid(), 0.0)
        swing = spread * ((mean * by_inputs).sum(1) + by_gate)
        opened = _opened(form.gated, lift)[:, None]
        return form.pulled(opened * within + swing[:, None] * mean, swing)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The third derivative of the log-partition, by torch."""
        form = reduced(problem)

        def log_partition(scores: Tensor) -> Tensor:
            inputs, gate, constant = form.scores(scores)
            (total,) = form.each(_total, inputs.clamp_min(NEVER))
            return constant + torch.where(form.gated, softplus(gate.clamp_min(NEVER) + total), total)

        return derivative(log_partition, problem.scores, u, v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """The gate, then the inputs behind it."""
        form = reduced(problem)
        inputs, gate, _ = form.scores(problem.scores.double())
        n, d = inputs.shape
        uniform = torch.rand(
            n, count, d + 2, generator=generator, dtype=inputs.dtype, device=inputs.device
        )
        z, total = form.each(_draw, inputs, uniform[..., :-1])
        opened = uniform[..., -1] < _opened(form.gated, gate + total)[:, None]
        drawn = z * opened[..., None]
        return form.leaving(drawn.transpose(0, 1), opened.t().to(drawn))

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The best inputs, and z = 0 where a gate may close."""
        form = reduced(problem)
        inputs, gate, _ = form.scores(problem.scores.double())

        def listed(clause: Clause, scores: Tensor) -> tuple[Tensor, Tensor]:
            z, value = clause.list_best(scores, k)
            missing = k - value.shape[1]
            return (
                torch.nn.functional.pad(z, (0, 0, 0, missing)),
                torch.nn.functional.pad(value, (0, missing), value=-torch.inf),
            )

        z, value = form.each(listed, inputs)
        closed = torch.where(form.gated, 0.0, -torch.inf)[:, None]
        value = torch.cat([value + torch.where(form.gated, gate, 0.0)[:, None], closed], 1)
        ranked = value.sort(dim=1, descending=True, stable=True)
        problem.check_enough(k, value.isfinite().sum(1))
        chosen = ranked.indices[:, :k]
        z = torch.cat([z, torch.zeros_like(z[:, :1])], 1)
        z = z.gather(1, chosen[:, :, None].expand(-1, -1, z.shape[2]))
        return form.leaving(z.transpose(0, 1), (chosen < k).t().to(z))


def _best(clause: Clause, scores: Tensor) -> tuple[Tensor, Tensor]:
    return clause.best(scores)


def _projected(clause: Clause, targets: Tensor) -> tuple[Tensor]:
    return (clause.project(targets),)


def _mean_and_total(clause: Clause, scores: Tensor) -> tuple[Tensor, Tensor]:
    return clause.marginals(scores), clause.log_partition(scores)


def _total(clause: Clause, scores: Tensor) -> tuple[Tensor]:
    return (clause.log_partition(scores),)


def _covariance(clause: Clause, scores: Tensor, mean: Tensor, grad: Tensor) -> tuple[Tensor]:
    return (clause.covariance(scores, mean, grad),)


def _draw(clause: Clause, scores: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    return clause.sample(scores, uniform.transpose(0, 1)).transpose(0, 1), clause.log_partition(scores)


class BatchedProjection(Road):
    """A box or a simplex, found by one comparison; behind a visible gate by two. Plain torch."""

    name = "closed-form projection"
    cost = "O(d log d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """The projection of z's targets, reflected back."""
        form = reduced(problem)
        scores = problem.scores.double()
        inputs, gate = form.entering(torch.where(form.flipped, 1 - scores, scores))
        (z,) = form.each(_projected, inputs)
        opened = torch.ones_like(gate)
        if bool(form.gated.any()):
            behind, passed = _project_visible(inputs, gate) if form.visible else _project_hidden(inputs)
            z = torch.where(form.gated[:, None], behind, z)
            opened = torch.where(form.gated, passed, opened)
        y = form.leaving(z, opened)
        return Solution.closed_form(y, (scores * y - 0.5 * y * y).sum(1), y)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The orthogonal projection onto the directions of the face that s - y exposes."""
        form = reduced(problem)
        scores = problem.scores.double()
        slope = torch.where(form.flipped, -1.0, 1.0) * (scores - solution.value.double())
        inputs, gate = form.entering(slope)
        tie = _tie(problem)[:, None]
        free, held, linked, value = form.each(_directions, inputs, tie)
        directions = Directions(free, held, linked, value)
        by_inputs, by_gate = form.gradient(grad.double())
        lift = gate + value
        moved = directions.project(by_inputs)
        both, swung = _through_gate(directions, by_inputs, by_gate, form.visible)
        ajar = (form.gated & (lift.abs() <= tie[:, 0]))[:, None]
        shut = (form.gated & (lift < -tie[:, 0]))[:, None]
        moved = torch.where(ajar, both, torch.where(shut, 0.0, moved))
        return form.pulled(moved, torch.where(ajar[:, 0], swung, 0.0))


@rule(Logic, Euclidean)
class LogicProjection(Road):
    """The same as `BatchedProjection`, compiled."""

    name = "closed-form projection"
    cost = "O(d)"
    devices = ("cpu",)
    native = SIZED
    accelerated = BatchedProjection

    def solve(self, problem: Problem) -> Solution:
        """The projection of z's targets, reflected back."""
        scores = problem.scores
        y = np.zeros(scores.shape)
        empty = np.zeros(problem.size, dtype=bool)
        over_instances(kernels.project, problem.size, contiguous(scores), *_shared(problem), y, empty)
        if empty.any():
            raise problem.no_structure(rows_where(tensor(empty)))
        value = tensor(y)
        return Solution.closed_form(value, (scores.double() * value - 0.5 * value * value).sum(1), value)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The orthogonal projection onto the directions of the face that s - y exposes."""
        slopes = problem.scores.double() - solution.value.double()
        pulled = np.zeros(slopes.shape)
        over_instances(
            kernels.pull,
            problem.size,
            contiguous(slopes),
            contiguous(grad.double()),
            contiguous(_tie(problem)),
            *_shared(problem),
            pulled,
        )
        return tensor(pulled)


def _tie(problem: Problem) -> Tensor:  # (n,)
    """The slope that counts as zero: rounding adds to it where scores are large."""
    noise = 4 * torch.finfo(torch.float64).eps * problem.scores.double().abs().amax(1)
    return tie_tolerance(problem.scores.dtype) + noise


def _shared(problem: Problem) -> tuple[Any, ...]:
    """What both kernels read of the polytope, the mask and the sizes."""
    polytope = problem.polytope
    assert isinstance(polytope, Logic)
    n, d = problem.scores.shape
    form = polytope.form
    keep, lengths = problem.keep, problem.lengths
    return (
        np.zeros((n, 0), dtype=bool) if keep is None else contiguous(keep),
        np.full(n, d) if lengths is None else contiguous(lengths),
        np.array(polytope.negated or [False] * d),
        (form.inputs, form.last),
        form.clause is ONE,
        GATES.index(form.gate),
    )


def _directions(clause: Clause, slope: Tensor, tie: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = clause.directions(slope, tie)
    return found.free, found.held, found.linked, found.value


def _project_hidden(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """{z >= 0 : sum z <= 1}: the positive parts where that will do, else the simplex."""
    box = inputs.clamp_min(0)
    z = torch.where(box.sum(1, keepdim=True) <= 1, box, _one_where_any(inputs))
    return z, torch.ones_like(z[:, 0])


def _one_where_any(inputs: Tensor) -> Tensor:
    """The simplex's answer; 0 for instances without an input."""
    some = ~inputs.isneginf().all(1, keepdim=True)
    return ONE.project(torch.where(some, inputs, 0.0)) * some


def _project_visible(inputs: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """{0 <= z_i <= b <= 1, sum z >= b}: first without the last row; where that fails, it binds.

    Without it, b is the mean of its own target and of the inputs' targets above b. Where it binds,
    sum z = b makes z_i <= b hold by itself, and (z, 1 - b) lies in the simplex.
    """
    ranked = inputs.sort(dim=1, descending=True).values
    count = torch.arange(2, inputs.shape[1] + 2, device=inputs.device)
    means = (ranked.cumsum(1) + gate[:, None]) / count
    above = ranked > torch.cat([gate[:, None], means[:, :-1]], 1)
    size = above.cumprod(1).sum(1, keepdim=True)
    level = torch.cat([gate[:, None], means], 1).gather(1, size).clamp(0, 1)
    z = inputs.clamp_min(0).minimum(level)
    tight = ONE.project(torch.cat([inputs, 1 - gate[:, None]], 1))
    binds = z.sum(1, keepdim=True) < level
    return (
        torch.where(binds, tight[:, :-1], z),
        torch.where(binds, 1 - tight[:, -1:], level)[:, 0],
    )


def _through_gate(
    directions: Directions, by_inputs: Tensor, by_gate: Tensor, visible: bool
) -> tuple[Tensor, Tensor]:
    """The projection onto the span of (v, 1), v in the face behind the gate; of v, if it is hidden.

    Linked inputs: u_gate = the sum of u over the free ones. Others: the free ones, and the gate with
    the inputs that are held.
    """
    free, held, linked = directions.free, directions.held, directions.linked
    alone = torch.where(free, by_inputs, 0.0)
    if not visible:
        return alone, by_gate
    excess = (alone.sum(1) - by_gate) / (free.sum(1) + 1)
    group = (torch.where(held, by_inputs, 0.0).sum(1) + by_gate) / (held.sum(1) + 1)
    moved = torch.where(
        linked[:, None],
        torch.where(free, by_inputs - excess[:, None], 0.0),
        torch.where(held, group[:, None], alone),
    )
    return moved, torch.where(linked, by_gate + excess, group)
