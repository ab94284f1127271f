"""Bad input gets a clear error and never a wrong number; ties give one vertex, always the same."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax, FenchelYoungLoss, Relaxed
from spigot.polytopes import (
    ConvergenceError,
    Euclidean,
    Facets,
    FermiDirac,
    Gibbs,
    Hull,
    Hypercube,
    InfeasiblePolytope,
    IntegerHull,
    NoStructure,
    Oracle,
    Polytope,
    Regularizer,
    Shannon,
    Simplex,
    Status,
    Subset,
    Tsallis,
    UnboundedPolytope,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import ActiveSet, Clarabel, FrankWolfe, Highs
from spigot.pullback import SPIGOT, SPIGOTSparseMAP
from spigot.testing.cases import REGULARIZERS
from tests.references import Reference, subsets
from tests.tensors import near as close
from tests.tensors import normal

NAN, INF = float("nan"), float("inf")


def diamond(y: Any) -> list[Any]:
    return [cp.norm1(y) <= 1]


def cover(y: Any) -> list[Any]:
    """One of the first two parts at least."""
    return [y >= 0, y <= 1, y[0] + y[1] >= 1]


def doubly_stochastic(y: Any) -> list[Any]:
    return [y >= 0, cp.sum(y, axis=0) == 1, cp.sum(y, axis=1) == 1]


def best_of_two(scores: np.ndarray) -> np.ndarray:
    """Part 0 or part 1."""
    return np.eye(3)[scores[:2].argmax()]


def signed_corner(scores: np.ndarray) -> np.ndarray:
    best = int(np.abs(scores).argmax())
    return np.eye(3)[best] * (1.0 if scores[best] >= 0 else -1.0)


CORNERS = torch.cat([torch.eye(3), -torch.eye(3)])
PAIRS = subsets(6, [2])
BY_FACT: dict[str, Polytope] = {
    "fast rules": Subset(3, 2),
    "constraints": Facets(cover, (3,)),
    "oracle": Oracle(best_of_two, (3,)),
    "vertices": Hull([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]]),
    "integers": IntegerHull(cover, (3,)),
}
every_fact = pytest.mark.parametrize("fact", BY_FACT)

Use = Callable[..., Any]
CENTRE = torch.full((3,), 1 / 3)
VERBS: dict[str, Use] = {
    "maximize": lambda m, s, **masks: m.maximize(s, **masks),
    "project": lambda m, s, **masks: m.project(s, **masks),
    "marginals": lambda m, s, **masks: m.marginals(s, **masks),
    "conjugate": lambda m, s, **masks: m.conjugate(s, Euclidean(), **masks),
    "log_partition": lambda m, s, **masks: m.log_partition(s, **masks),
    "entropy": lambda m, s, **masks: m.entropy(s, **masks),
    "sample": lambda m, s, **masks: m.sample(s, (2,), **masks),
    "top_k": lambda m, s, **masks: m.top_k(s, 1, **masks),
    "solve": lambda m, s, **masks: m.solve(s, Euclidean(), **masks),
    "gap": lambda m, s, **masks: m.gap(CENTRE.expand(2, 3, 3), s, Euclidean(), **masks),
    "Argmax": lambda m, s, **masks: Argmax(m, SPIGOT())(s, **masks),
    "Relaxed": lambda m, s, **masks: Relaxed(m, Gibbs())(s, **masks),
    "FenchelYoungLoss": lambda m, s, **masks: FenchelYoungLoss(m, Gibbs())(
        s, CENTRE.expand(2, 3, 3), **masks
    ),
}
every_verb = pytest.mark.parametrize("verb", VERBS)


# --- scores --------------------------------------------------------------------------------------


@every_verb
@pytest.mark.parametrize("polytope", [Simplex(3), Hull(torch.eye(3))], ids=str)
def test_nan_names_its_instances(verb: str, polytope: Polytope) -> None:
    scores = normal(2, 3, 3)
    scores[0, 2, 1] = scores[1, 1, 0] = NAN
    with pytest.raises(ValueError, match=r"scores.*NaN in instances \(0, 2\), \(1, 1\)\."):
        VERBS[verb](polytope, scores)


@every_verb
def test_plus_infinity_names_its_instance(verb: str) -> None:
    scores = normal(2, 3, 3)
    scores[1, 0, 2] = INF
    with pytest.raises(ValueError, match=r"scores.*\+inf in instance \(1, 0\)\."):
        VERBS[verb](Simplex(3), scores)


@every_fact
@pytest.mark.parametrize("bad", [NAN, INF])
def test_not_finite_by_every_fact(fact: str, bad: float) -> None:
    polytope = BY_FACT[fact]
    single, batch = normal(3), normal(4, 3)
    single[1] = batch[2, 0] = batch[3, 1] = bad
    for omega in (None, Euclidean()):
        with pytest.raises(ValueError, match=r"in the only instance"):
            polytope.maximize(single, omega)
        with pytest.raises(ValueError, match=r"in instances 2, 3\."):
            polytope.maximize(batch, omega)


def test_infinities_that_cancel_are_seen() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [INF, -INF, 0.0]])
    with pytest.raises(ValueError, match=r"\+inf in instance 1"):
        Simplex(3).maximize(scores)


def test_a_sum_that_overflows_is_no_bad_score() -> None:
    scores = torch.tensor([[3e38, 2e38, -1e38], [1.0, 3.0, 0.0]])
    best = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert Simplex(3).maximize(scores).tolist() == best
    assert Simplex(3).marginals(scores)[0].tolist() == best[0]
    assert Simplex(3).project(scores).tolist() == best


@pytest.mark.parametrize("omega", REGULARIZERS, ids=str)
@pytest.mark.parametrize("low", [-1e4, -1e9, -1e30, None], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_very_low_score_is_a_mask_by_every_fast_rule(
    dtype: torch.dtype, low: float | None, omega: Regularizer | None
) -> None:
    low = torch.finfo(dtype).min if low is None else low
    scores = normal(20, 6).to(dtype)
    keep = torch.tensor([True] * 4 + [False] * 2)
    for polytope in (Simplex(6), Subset(6, 2), Subset(6, 2, at_most=True), Hypercube(6)):
        masked = polytope.maximize(scores, omega, keep=keep)
        close(polytope.maximize(scores.masked_fill(~keep, low), omega), masked, 1e-5)


@pytest.mark.parametrize("omega", REGULARIZERS[:-1], ids=str)
@pytest.mark.parametrize("low", [-1e4, -1e9, -1e30], ids=str)
@pytest.mark.parametrize("name", ["constraints", "vertices"])
def test_a_very_low_score_is_a_mask_or_an_error_by_every_generic_road(
    name: str, low: float, omega: Regularizer | None
) -> None:
    declared = {"constraints": Facets(Subset(6, 2).constraints, (6,)), "vertices": Hull(PAIRS)}
    scores = normal(20, 6)
    keep = torch.tensor([True] * 4 + [False] * 2)
    masked = Subset(6, 2).maximize(scores, omega, keep=keep)
    try:
        value = declared[name].maximize(scores.masked_fill(~keep, low), omega)
    except ConvergenceError:
        assert omega is not None or low < -1e20  # a maximum of sums of such numbers has an answer
        return
    close(value, masked, 1e-4)


def test_many_bad_instances_are_counted() -> None:
    with pytest.raises(ValueError, match=r"instances 0, 1, 2, 3, 4 and 4 more"):
        Simplex(3).maximize(torch.full((9, 3), NAN))


@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (2, 3, 4)], ids=str)
@every_verb
def test_a_wrong_shape_names_both(verb: str, shape: tuple[int, ...]) -> None:
    match = r"scores of shape .*Simplex\(d=3\).*event shape \(3,\)"
    if verb == "FenchelYoungLoss":
        match += r"|target of shape \(2, 3, 3\).*scores' shape"
    with pytest.raises(ValueError, match=match):
        VERBS[verb](Simplex(3), torch.zeros(shape))


def test_a_wrong_event_of_two_dimensions() -> None:
    polytope = Facets(doubly_stochastic, (3, 3))
    for shape in ((3,), (9,), (3, 4), (3, 3, 2)):
        with pytest.raises(ValueError, match=r"last 2 dimension.*\(3, 3\)"):
            polytope.maximize(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64], ids=str)
@every_verb
def test_a_dtype_that_is_not_floating_is_named(verb: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"scores.*floating.*{dtype}"):
        VERBS[verb](Simplex(3), torch.zeros(2, 3, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("scores", "kind"),
    [([[0.0, 1.0, 2.0]], "list"), (np.zeros((2, 3)), "ndarray"), (None, "NoneType")],
)
@every_verb
def test_what_is_no_tensor_is_named(verb: str, scores: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"scores must be a torch\.Tensor, got {kind}"):
        VERBS[verb](Simplex(3), scores)


def test_points_are_checked_like_scores() -> None:
    simplex = Simplex(3)
    bad = torch.tensor([[0.5, 0.5, 0.0], [NAN, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"y .*NaN in instance 1"):
        simplex.contains(bad)
    with pytest.raises(ValueError, match=r"y .*NaN in instance 1"):
        simplex.gap(bad, torch.zeros(2, 3), Euclidean())
    with pytest.raises(ValueError, match=r"target .*NaN in instance 1"):
        FenchelYoungLoss(simplex, Gibbs())(torch.zeros(2, 3), bad)
    for call in (
        lambda y: simplex.contains(y),
        lambda y: simplex.gap(y, torch.zeros(3)),
        lambda y: FenchelYoungLoss(simplex)(torch.zeros(3), y),
    ):
        with pytest.raises(ValueError, match=r"event shape \(3,\)"):
            call(torch.zeros(4))
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
            call([0.0, 1.0, 0.0])


def test_a_certificate_for_gibbs_names_the_check_that_works() -> None:
    with pytest.raises(UnsupportedProblem, match=r"Simplex\(d=3\)(.|\n)*Gibbs(.|\n)*sample"):
        Simplex(3).gap(CENTRE, torch.zeros(3), Gibbs())


# --- masks ---------------------------------------------------------------------------------------


@every_verb
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8], ids=str)
def test_a_mask_of_another_dtype_is_refused(verb: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"keep.*bool.*{dtype}"):
        VERBS[verb](Simplex(3), normal(2, 3, 3), keep=torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("keep", [[True, False, True], np.array([True, False, True])], ids=type)
def test_a_mask_that_is_no_tensor_is_named(keep: Any) -> None:
    with pytest.raises(TypeError, match=rf"keep.*torch\.Tensor.*{type(keep).__name__}"):
        Simplex(3).maximize(torch.zeros(3), keep=keep)


@pytest.mark.parametrize("shape", [(4,), (2, 1), (2, 3), (5, 2, 3, 3)], ids=str)
@every_verb
def test_a_mask_that_does_not_broadcast_names_both_shapes(verb: str, shape: tuple[int, ...]) -> None:
    match = rf"keep of shape {re.escape(str(shape))} does not broadcast.*\(2, 3, 3\)"
    with pytest.raises(ValueError, match=match):
        VERBS[verb](Simplex(3), normal(2, 3, 3), keep=torch.ones(shape, dtype=torch.bool))


def test_a_mask_broadcasts_over_the_batch() -> None:
    keep, scores = torch.tensor([False, True, True]), normal(2, 3, 3)
    close(
        Simplex(3).project(scores, keep=keep),
        Simplex(3).project(scores, keep=keep.expand(2, 3, 3)),
        0.0,
    )


MASKED = [
    (fact, omega)
    for fact in BY_FACT
    for omega in REGULARIZERS
    if not isinstance(omega, Gibbs) or fact in ("fast rules", "vertices")
]


@pytest.mark.parametrize("way", ["keep", "-inf"])
@pytest.mark.parametrize(("fact", "omega"), MASKED, ids=str)
def test_a_mask_that_leaves_no_structure_names_its_instance(
    fact: str, omega: Regularizer | None, way: str
) -> None:
    polytope = BY_FACT[fact]
    keep = torch.ones(2, 3, 3, dtype=torch.bool)
    keep[0, 1, 2] = False  # leaves some, where part 2 may be left out
    keep[1, 2, :2] = False  # leaves none
    scores = normal(2, 3, 3)
    masks: dict[str, Any] = {"keep": keep} if way == "keep" else {}
    scores = scores if masks else scores.masked_fill(~keep, -INF)
    for call in (polytope.solve, polytope.maximize, polytope.conjugate):
        with pytest.raises(NoStructure, match=r"instance \(1, 2\)"):
            call(scores, omega, **masks)
    single = torch.tensor([-INF, -INF, 0.0])
    with pytest.raises(NoStructure, match="the only instance"):
        polytope.maximize(single, omega)
    assert issubclass(NoStructure, ValueError)


@every_fact
def test_a_mask_that_leaves_no_structure_in_a_layer(fact: str) -> None:
    keep = torch.tensor([[True, True, True], [False, False, True]])
    for layer in (Argmax(BY_FACT[fact], SPIGOT()), Relaxed(BY_FACT[fact], Euclidean())):
        with pytest.raises(NoStructure, match=r"instance 1\b"):
            layer(normal(2, 3), keep=keep)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("gap",)])
def test_a_mask_that_leaves_nothing_by_every_verb(verb: str) -> None:
    keep = torch.ones(2, 3, 3, dtype=torch.bool)
    keep[1, 1] = False
    with pytest.raises(ValueError, match=r"instance \(1, 1\)"):
        VERBS[verb](Hull(torch.eye(3)), normal(2, 3, 3), keep=keep)


def test_structures_that_may_be_empty_lose_every_part_without_harm() -> None:
    scores = torch.full((2, 3), -INF)
    for polytope in (Hypercube(3), Subset(3, 2, at_most=True), Hull([[0.0, 0, 0], [1, 1, 1]])):
        for omega in REGULARIZERS:
            assert polytope.maximize(scores, omega).tolist() == [[0.0] * 3] * 2


NEGATIVE: dict[str, Polytope] = {
    "constraints": Facets(diamond, (3,)),
    "vertices": Hull(CORNERS),
    "oracle": Oracle(signed_corner, (3,)),
    "integers": IntegerHull(lambda y: [y >= -1, y <= 1], (3,)),
}


@pytest.mark.parametrize("fact", NEGATIVE)
def test_a_part_that_can_be_negative_cannot_be_excluded(fact: str) -> None:
    polytope = NEGATIVE[fact]
    match = r"excludes part \(1,\)(.|\n)*low as -1(.|\n)*facts:"
    keep = torch.tensor([True, False, True])
    for omega in (None, Euclidean()):
        with pytest.raises(UnsupportedProblem, match=match):
            polytope.maximize(torch.tensor([0.5, -INF, 0.2]), omega)
        with pytest.raises(UnsupportedProblem, match=match):
            polytope.maximize(torch.tensor([[0.5, 0.1, 0.2]]), omega, keep=keep)
    with pytest.raises(UnsupportedProblem, match=match):
        Argmax(polytope, SPIGOT())(torch.zeros(2, 3), keep=keep)


@pytest.mark.parametrize("fact", NEGATIVE)
def test_a_mask_that_keeps_everything_is_no_mask(fact: str) -> None:
    polytope, scores = NEGATIVE[fact], normal(4, 3)
    kept = polytope.project(scores, keep=torch.ones(3, dtype=torch.bool))
    close(kept, polytope.project(scores), 0.0)


def test_only_the_part_that_can_be_negative_is_refused() -> None:
    polytope = Facets(lambda y: [y[0] >= -1, y[1:] >= 0, y <= 1], (3,))
    masked = polytope.maximize(torch.tensor([-1.0, -INF, 1.0]))
    assert masked.tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(UnsupportedProblem, match=r"part \(0,\)"):
        polytope.maximize(torch.tensor([-INF, 1.0, 1.0]))


# --- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 4, 100])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "gap"])
def test_lengths_out_of_range_name_their_instance(verb: str, wrong: int) -> None:
    lengths = torch.tensor([[1, 2, 3], [3, wrong, 3]])
    match = rf"lengths.*1\.\.3.*Simplex\(d=3\).*instance \(1, 1\) has {wrong}\b"
    with pytest.raises(ValueError, match=match):
        VERBS[verb](Simplex(3), normal(2, 3, 3), lengths=lengths)


def test_every_instance_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"instance 0 has 9\. Also wrong: instances 2, 3\.$"):
        Simplex(3).project(torch.zeros(4, 3), lengths=torch.tensor([9, 3, 4, 0]))


def test_a_subset_needs_room_for_its_parts() -> None:
    with pytest.raises(ValueError, match=r"2\.\.4.*instance 1 has 1"):
        Subset(4, 2).project(torch.zeros(2, 4), lengths=torch.tensor([2, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_lengths_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"lengths.*integer.*{dtype}"):
        Simplex(3).project(torch.zeros(2, 3), lengths=torch.ones(2).to(dtype))


@pytest.mark.parametrize("lengths", [[1, 2], 2, np.array([1, 2])], ids=type)
def test_lengths_that_are_no_tensor_are_named(lengths: Any) -> None:
    with pytest.raises(TypeError, match=rf"lengths.*torch\.Tensor.*{type(lengths).__name__}"):
        Simplex(3).project(torch.zeros(2, 3), lengths=lengths)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)], ids=str)
def test_lengths_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"lengths of shape .*batch shape \(2,\)"):
        Simplex(3).project(torch.zeros(2, 3), lengths=torch.ones(shape, dtype=torch.int64))


def test_lengths_of_a_structure_without_a_size() -> None:
    lengths = torch.tensor([2, 3])
    for polytope in (Facets(cover, (3,)), Hull(torch.eye(3)), Oracle(best_of_two, (3,))):
        with pytest.raises(UnsupportedProblem, match=r"lengths(.|\n)*facts:(.|\n)*keep"):
            polytope.project(torch.zeros(2, 3), lengths=lengths)


# --- declarations --------------------------------------------------------------------------------


def test_a_class_without_a_fact_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"Empty declares no fact.*argmax.*constraints.*vertices"):

        class Empty(Polytope):  # pyright: ignore[reportUnusedClass]
            @property
            def event_shape(self) -> tuple[int, ...]:
                return (3,)

    with pytest.raises(TypeError, match="Misspelt declares no fact"):

        class Misspelt(Polytope):  # pyright: ignore[reportUnusedClass]
            def constraint(self, y: cp.Variable) -> list[Any]:
                return [y >= 0]


def test_facts_are_inherited_and_an_abstract_class_may_have_none() -> None:
    class Family(Polytope, abstract=True):
        @property
        def event_shape(self) -> tuple[int, ...]:
            return (2,)

    class Member(Family):
        def vertices(self) -> Tensor:
            return torch.eye(2)

    class Child(Member):
        pass

    assert Child().facts == {"vertices"}
    assert Child().maximize(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_a_class_without_an_event_shape_is_named() -> None:
    class Shapeless(Polytope):
        def argmax(self, scores: Tensor) -> Tensor:
            return scores

    with pytest.raises(NotImplementedError, match=r"Shapeless must define event_shape.* \(3,\)"):
        Shapeless().maximize(torch.zeros(3))


UNDECLARED: dict[str, tuple[Use, str]] = {
    "argmax": (lambda m: m.argmax(torch.zeros(1, 3)), r"Use maximize\(scores\)"),
    "constraints": (lambda m: m.constraints(cp.Variable(3)), r"`def constraints\(self, y\): .*Facets\("),
    "vertices": (lambda m: m.vertices(), r"`def vertices\(self\): .*Hull\("),
    "at": (lambda m: m.at(2), r"beside `length_range`.*`def at\(self, length\): "),
}


@pytest.mark.parametrize("fact", UNDECLARED)
def test_what_is_not_declared_says_how_to(fact: str) -> None:
    use, match = UNDECLARED[fact]
    polytope = Facets(cover, (3,)) if fact in ("argmax", "vertices") else Hull(torch.eye(3))
    with pytest.raises(UnsupportedProblem, match=rf"`{fact}` is not declared(.|\n)*{match}"):
        use(polytope)


MADE: dict[str, tuple[Callable[[], object], str]] = {
    "k > d": (lambda: Subset(3, 4), r"Subset\(d=3, k=4\).*0\.\.3"),
    "k < 0": (lambda: Subset(3, -1), r"Subset\(d=3, k=-1\).*0\.\.3"),
    "k > d at most": (lambda: Subset(3, 4, at_most=True), r"k must lie in 0\.\.3"),
    "subset of nothing": (lambda: Subset(0, 0), r"Subset\(d=0\).*at least 1"),
    "simplex of nothing": (lambda: Simplex(0), r"Simplex\(d=0\).*at least 1"),
    "hypercube of nothing": (lambda: Hypercube(0), r"Hypercube\(d=0\).*at least 1"),
    "no points": (lambda: Hull([]), r"m >= 1.*\(0,\)"),
    "no points of three parts": (lambda: Hull(torch.zeros(0, 3)), r"m >= 1.*\(0, 3\)"),
    "points without an event": (lambda: Hull([1.0, 2.0]), r"\(m, \*event\)"),
    "points of NaN": (lambda: Hull([[NAN, 1.0]]), "finite"),
    "points of inf": (lambda: Hull([[INF, 1.0]]), "finite"),
    "no shape": (lambda: Facets(diamond, ()), "event shape"),
    "an empty shape": (lambda: Facets(diamond, (0,)), "event shape"),
    "a negative shape": (lambda: Oracle(best_of_two, (-1,)), "event shape"),
    "integers without a shape": (lambda: IntegerHull(cover, (2, 0)), "event shape"),
    "Tsallis(1)": (lambda: Tsallis(1.0), r"alpha=1\.0.*above 1.*Shannon\(\)"),
    "Tsallis(0.5)": (lambda: Tsallis(0.5), r"alpha=0\.5.*above 1"),
    "Tsallis(nan)": (lambda: Tsallis(NAN), r"alpha=nan.*finite"),
    "Tsallis(inf)": (lambda: Tsallis(INF), r"alpha=inf.*finite"),
}


@pytest.mark.parametrize(("make", "match"), MADE.values(), ids=MADE.keys())
def test_sizes_out_of_range_are_refused_when_made(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("shape", [(3,), (2, 2)], ids=str)
def test_constraints_that_conflict_are_named(shape: tuple[int, ...]) -> None:
    def conflicting(y: Any) -> list[Any]:
        first = y[(0,) * len(shape)]
        return [y >= 0, first <= 0.5, cp.sum(y) == 7, y <= 1, first >= 0.1]

    for omega in (None, Euclidean(), Shannon()):
        with pytest.raises(InfeasiblePolytope, match="conflict") as caught:
            Facets(conflicting, shape).maximize(torch.zeros(shape), omega)
        listed = [line.strip()[:3] for line in str(caught.value).splitlines()[1:]]
        assert listed == ["[2]", "[3]"]
        assert "Sum(" in str(caught.value)
        assert "conflicting" in str(caught.value)


def test_bounds_that_cross_are_named() -> None:
    polytope = Facets(lambda y: [y >= 1, y[2] >= 0, y <= 0], (3,))
    with pytest.raises(InfeasiblePolytope) as caught:
        polytope.project(torch.zeros(3))
    listed = [line.strip()[:3] for line in str(caught.value).splitlines()[1:]]
    assert listed == ["[0]", "[2]"]


UNBOUNDED: dict[str, tuple[Callable[[Any], list[Any]], tuple[int, ...], set[str], set[str]]] = {
    "a cone": (lambda y: [y >= 0, y[0] <= 1], (3,), {"y[1] grows", "y[2] grows"}, {"y[0]"}),
    "a line": (lambda y: [cp.sum(y) == 0, y[2] == 0], (3,), {"y[0]", "y[1]"}, {"y[2]"}),
    "downwards": (lambda y: [y <= 1, y[1] >= 0], (2,), {"y[0] falls"}, {"y[1]"}),
    "nothing": (lambda _: [], (2,), {"y[0]", "y[1]"}, set()),
    "of two dimensions": (
        lambda y: [y >= 0, y[0, :] <= 1, y[1, 0] <= 1],
        (2, 2),
        {"y[1, 1] grows"},
        {"y[0, 0]", "y[0, 1]", "y[1, 0]"},
    ),
    "through an auxiliary variable": (
        lambda y: [y >= 0, cp.sum(y) <= cp.Variable(nonneg=True)],
        (2,),
        {"grows"},
        set(),
    ),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_constraints_name_the_parts(name: str) -> None:
    constraints, shape, named, unnamed = UNBOUNDED[name]
    for omega in (None, Euclidean()):
        with pytest.raises(UnboundedPolytope, match="ray") as caught:
            Facets(constraints, shape).maximize(torch.zeros(shape), omega)
        assert all(part in str(caught.value) for part in named), str(caught.value)
        assert not any(part in str(caught.value) for part in unnamed), str(caught.value)


def test_an_auxiliary_variable_may_be_unbounded() -> None:
    polytope = Facets(lambda y: [y >= 0, y <= 1, cp.Variable() >= cp.sum(y)], (3,))
    assert polytope.maximize(torch.tensor([1.0, -1.0, 1.0])).tolist() == [1.0, 0.0, 1.0]


NOT_LINEAR: dict[str, tuple[Callable[[Any], list[Any]], str]] = {
    "a ball": (lambda y: [cp.norm2(y) <= 1], "second-order"),
    "a sum of squares": (lambda y: [cp.sum_squares(y) <= 1], "second-order"),
    "an exponential": (lambda y: [cp.exp(y) <= 1, y >= -1], "exponential"),
    "an entropy": (lambda y: [y >= 0, y <= 1, cp.sum(cp.entr(y)) >= 0.1], "exponential"),
    "a sphere": (lambda y: [cp.sum_squares(y) == 1], "not convex"),
    "outside a ball": (lambda y: [cp.norm1(y) >= 1, y <= 1, y >= -1], "not convex"),
    "a product": (lambda y: [y[0] * y[1] <= 1, y >= 0, y <= 2], "not convex"),
    "boolean": (lambda y: [y >= 0, y <= cp.Variable(2, boolean=True)], r"integer(.|\n)*IntegerHull"),
    "integer": (lambda y: [y >= 0, y <= cp.Variable(integer=True), y <= 3], r"(.|\n)*IntegerHull"),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_constraints_that_are_not_linear_say_so(name: str) -> None:
    constraints, match = NOT_LINEAR[name]
    polytope = Facets(constraints, (2,))
    for call in (
        lambda: polytope.maximize(torch.zeros(2)),
        lambda: polytope.project(torch.zeros(2)),
        lambda: Argmax(polytope, SPIGOT())(torch.zeros(2)),
    ):
        with pytest.raises(UnsupportedProblem, match=rf"Facets(.|\n)*{match}"):
            call()


def test_semidefinite_constraints_say_so() -> None:
    polytope = Facets(lambda y: [y >> 0, cp.trace(y) == 1], (2, 2))
    with pytest.raises(UnsupportedProblem, match="semidefinite"):
        polytope.maximize(torch.zeros(2, 2))


def test_integer_hulls_say_what_is_wrong_too() -> None:
    zeros = torch.zeros(2)
    with pytest.raises(InfeasiblePolytope, match="no integer point"):
        IntegerHull(lambda y: [y >= 0.2, y <= 0.8], (2,)).maximize(zeros)
    with pytest.raises(UnsupportedProblem, match="not convex"):
        IntegerHull(lambda y: [cp.norm1(y) >= 1, y <= 1], (2,)).maximize(zeros)
    with pytest.raises(UnsupportedProblem, match="not linear"):
        IntegerHull(lambda y: [cp.norm2(y) <= 1], (2,)).maximize(zeros)


def test_an_integer_hull_without_bounds_is_not_called_empty() -> None:
    with pytest.raises(UnboundedPolytope):
        IntegerHull(lambda y: [y >= 0], (2,)).maximize(torch.ones(2))


def test_a_parameter_without_a_value_is_not_taken_for_zero() -> None:
    polytope = Facets(lambda y: [y >= 0, cp.sum(y) == cp.Parameter(name="size")], (3,))
    with pytest.raises(Exception, match=r"(?i)parameter"):
        polytope.maximize(torch.ones(3))


# --- what oracles and lists hand back ------------------------------------------------------------

ANSWERS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "another shape": (lambda _: np.zeros(4), ValueError, r"shape \(4,\).*event shape \(3,\)"),
    "a batch": (lambda _: np.zeros((1, 3)), ValueError, r"shape \(1, 3\).*event shape \(3,\)"),
    "NaN": (lambda _: np.full(3, NAN), ValueError, "NaN or inf"),
    "inf": (lambda _: np.array([INF, 0, 0]), ValueError, "NaN or inf"),
    "nothing": (lambda _: None, ValueError, r"event shape \(3,\)"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_oracle_that_answers_badly_is_named(name: str) -> None:
    fn, error, match = ANSWERS[name]
    for use in (
        lambda m: m.maximize(torch.zeros(2, 3)),
        lambda m: m.project(torch.zeros(2, 3)),
        lambda m: Argmax(m, SPIGOT())(torch.zeros(2, 3)),
    ):
        with pytest.raises(error, match=rf"Oracle\(.*{match}"):
            use(Oracle(fn, (3,)))


@pytest.mark.parametrize(("points", "match"), [([[0.0], [NAN]], "nan"), ([[1.0], [-INF]], "-inf")])
def test_points_that_are_not_finite_are_named(points: list[list[float]], match: str) -> None:
    with pytest.raises(ValueError, match=rf"point 1 holds {match}\."):
        Hull(points)

    class Listed(Polytope):
        @property
        def event_shape(self) -> tuple[int, ...]:
            return (1,)

        def vertices(self) -> Tensor:
            return torch.tensor(points)

    with pytest.raises(ValueError, match="NaN or inf, first in structure 1"):
        Listed().maximize(torch.zeros(1))


BATCHED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "an array": (lambda s: s.numpy(), TypeError, "torch.Tensor, got ndarray"),
    "nothing": (lambda _: None, TypeError, "torch.Tensor, got NoneType"),
    "a list": (lambda s: s.tolist(), TypeError, "torch.Tensor, got list"),
    "another shape": (lambda s: s[:, :2], ValueError, r"\(2, 2\).*\(2, 3\)"),
    "one instance": (lambda s: s[0], ValueError, r"\(3,\).*\(2, 3\)"),
    "NaN": (lambda s: s * torch.tensor([[1.0], [NAN]]), ValueError, "NaN or inf for instance 1"),
}


@pytest.mark.parametrize("name", BATCHED)
def test_an_argmax_that_answers_badly_is_named(name: str) -> None:
    fn, error, match = BATCHED[name]

    class Chosen(Polytope):
        @property
        def event_shape(self) -> tuple[int, ...]:
            return (3,)

        def argmax(self, scores: Tensor) -> Tensor:
            return fn(scores)

    for polytope in (Oracle(fn, (3,), batched=True), Chosen()):
        with pytest.raises(error, match=rf"(Oracle|Chosen).*argmax.*{match}"):
            polytope.maximize(torch.zeros(2, 3))


def test_an_oracle_never_sees_what_is_not_finite() -> None:
    seen: list[np.ndarray] = []

    def watched(scores: np.ndarray) -> np.ndarray:
        seen.append(scores.copy())
        return np.eye(3)[scores.argmax()]

    scores = torch.tensor([[1.0, -INF, 2.0], [3.0, 5.0, 9.0]])
    keep = torch.tensor([[True, True, True], [True, True, False]])
    polytope = Oracle(watched, (3,))
    assert polytope.maximize(scores, keep=keep).tolist() == [[0, 0, 1], [0, 1, 0]]
    polytope.project(scores, keep=keep)
    assert seen
    assert all(np.isfinite(row).all() for row in seen)


def test_an_oracle_may_scribble_on_its_argument() -> None:
    def scribbling(scores: np.ndarray) -> np.ndarray:
        best = np.eye(3)[scores.argmax()]
        scores[:] = -1
        return best

    scores = normal(4, 3)
    before = scores.clone()
    value = Oracle(scribbling, (3,)).maximize(scores)
    close(value, Simplex(3).maximize(scores), 0.0)
    close(scores, before, 0.0)


class Listed(Polytope):
    """conv of whatever it is handed, unchecked."""

    def __init__(self, points: Any) -> None:
        self.points = points

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3,)

    def vertices(self) -> Tensor:
        return self.points


LISTS: dict[str, tuple[Any, type[Exception]]] = {
    "another event": (torch.zeros(2, 4), ValueError),
    "no batch": (torch.zeros(3), ValueError),
    "no structure": (torch.zeros(0, 3), ValueError),
    "NaN": (torch.tensor([[NAN, 0, 0], [0, 1, 0]]), ValueError),
    "inf": (torch.tensor([[INF, 0, 0], [0, 1, 0]]), ValueError),
    "a list": ([[0.0, 0.0, 1.0]], TypeError),
    "an array": (np.eye(3), TypeError),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("omega", [None, Euclidean(), Gibbs()], ids=str)
def test_vertices_that_are_no_list_of_structures_are_named(name: str, omega: Regularizer | None) -> None:
    points, error = LISTS[name]
    with pytest.raises(error, match="vertices"):
        Listed(points).maximize(torch.ones(3), omega)


def test_vertices_of_integers_are_vertices() -> None:
    value = Listed(torch.eye(3, dtype=torch.int64)).project(normal(4, 3))
    close(value, Simplex(3).project(normal(4, 3)), 1e-10)


# --- what cannot be computed ---------------------------------------------------------------------


def test_a_regularizer_outside_its_domain_names_the_part_and_its_range() -> None:
    for polytope in NEGATIVE.values():
        for omega in (Shannon(), Tsallis(1.5)):
            match = r"part \(0,\) ranges over \[-1, 1\](.|\n)*\[0, inf\](.|\n)*Euclidean\(\)"
            with pytest.raises(UnsupportedProblem, match=match):
                polytope.maximize(torch.zeros(3), omega)
            with pytest.raises(UnsupportedProblem, match=match):
                polytope.conjugate(torch.zeros(3), omega)
            with pytest.raises(UnsupportedProblem, match=match):
                Relaxed(polytope, omega)


def test_binary_entropies_need_parts_up_to_one() -> None:
    boxes = {
        "constraints": Facets(lambda y: [y[0] <= 1, y >= 0, y <= 2], (3,)),
        "vertices": Hull([[0.0, 0, 0], [1, 2, 0]]),
        "integers": IntegerHull(lambda y: [y[0] <= 1, y >= 0, y <= 2], (3,)),
    }
    match = r"part \(1,\) ranges over \[0, 2\](.|\n)*\[0, 1\]"
    for polytope in boxes.values():
        with pytest.raises(UnsupportedProblem, match=match):
            polytope.maximize(torch.zeros(3), FermiDirac())


def test_gibbs_needs_a_list_or_a_rule() -> None:
    calls: list[Callable[[Polytope], Any]] = [
        lambda m: m.marginals(torch.zeros(3)),
        lambda m: m.log_partition(torch.zeros(3)),
        lambda m: m.entropy(torch.zeros(3)),
        lambda m: m.sample(torch.zeros(3)),
        lambda m: m.top_k(torch.zeros(3), 2),
        lambda m: m.which(Gibbs()),
    ]
    for polytope in (BY_FACT["constraints"], BY_FACT["oracle"], BY_FACT["integers"]):
        for call in calls:
            with pytest.raises(UnsupportedProblem, match=r"Gibbs(.|\n)*facts:(.|\n)*`vertices`"):
                call(polytope)


def test_more_structures_than_there_are() -> None:
    keep = torch.tensor([[True, True, True], [True, False, True]])
    for polytope in (Simplex(3), Hull(torch.eye(3))):
        assert polytope.top_k(normal(2, 3), 3).shape == (3, 2, 3)
        with pytest.raises(ValueError, match=r"k = 4.*only 3 structure"):
            polytope.top_k(normal(2, 3), 4)
        with pytest.raises(ValueError, match=r"k = 3.*only 2 structure"):
            polytope.top_k(normal(2, 3), 3, keep=keep)
        with pytest.raises(ValueError, match=r"k >= 1, got 0"):
            polytope.top_k(normal(2, 3), 0)
    repeated = Hull([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"k = 3.*only 2 structure"):
        repeated.top_k(torch.zeros(2), 3)


# --- labels --------------------------------------------------------------------------------------

LABELS: dict[str, tuple[Polytope, Any, type[Exception], str]] = {
    "a class too many": (Simplex(3), [0, 3], ValueError, r"0\.\.2"),
    "a class below none": (Simplex(3), [-1], ValueError, r"0\.\.2"),
    "a class in floats": (Simplex(3), [1.0], TypeError, "float"),
    "a part twice": (Subset(4, 2), [[1, 1]], ValueError, "distinct"),
    "too few parts": (Subset(4, 2), [[1, -1]], ValueError, "sets of 2 distinct"),
    "too many parts": (Subset(4, 1), [[0, 1]], ValueError, "sets of 1 distinct"),
    "too many parts at most": (Subset(4, 1, at_most=True), [[0, 1]], ValueError, "0 to 1"),
    "a part too many": (Subset(4, 2), [[1, 4]], ValueError, "below 4"),
    "a part below padding": (Subset(4, 2), [[1, -2]], ValueError, "below 4"),
    "parts in floats": (Subset(4, 2), [[1.0, 2.0]], TypeError, "float"),
    "a part of the cube twice": (Hypercube(2), [[1, 1]], ValueError, "distinct"),
    "a point too many": (Hull(torch.eye(3)), [3], ValueError, r"0\.\.2"),
    "a point below none": (Hull(torch.eye(3)), [-1], ValueError, r"0\.\.2"),
    "a point in floats": (Hull(torch.eye(3)), [1.0], TypeError, "indices"),
    "another event": (Facets(cover, (3,)), [[1, 0]], ValueError, r"event shape \(3,\)"),
    "no structure": (Facets(cover, (3,)), [[5, 0, 0]], ValueError, "label"),
    "no structure of an oracle": (Oracle(best_of_two, (3,)), [[0, 0, 1]], ValueError, "label"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_structure(name: str) -> None:
    polytope, labels, error, match = LABELS[name]
    with pytest.raises(error, match=match):
        polytope.encode(torch.tensor(labels))


def test_labels_beyond_their_length() -> None:
    lengths = torch.tensor([3, 2])
    with pytest.raises(ValueError, match="label"):
        Simplex(3).encode(torch.tensor([2, 2]), lengths)
    with pytest.raises(ValueError, match="label"):
        Subset(3, 1).encode(torch.tensor([[2], [2]]), lengths)


FIRST_WRONG: dict[str, tuple[Polytope, list[Any], str]] = {
    "a class": (Simplex(3), [0, 3], r"0\.\.2.*; instance 1 has 3\."),
    "a part": (Subset(4, 2), [[0, 1], [1, 4]], r"below 4.*; instance 1 has 4 at position 1\."),
    "a repeat": (Subset(4, 2), [[0, 1], [3, 3]], r"listed twice; instance 1 has 3 at position 0\."),
    "a small set": (Subset(4, 2), [[0, 1], [3, -1]], r"sets of 2 .*; instance 1 has \[3, -1\]\."),
    "a large set": (
        Subset(4, 1, at_most=True),
        [[0, -1], [2, 3]],
        r"sets of 0 to 1 .*; instance 1 has \[2, 3\]\.",
    ),
    "a corner": (Hypercube(2), [[0, 1], [2, -1]], r"below 2.*; instance 1 has 2 at position 0\."),
    "a point": (Hull(torch.eye(3)), [0, 3], r"0\.\.2 of the points; instance 1 has 3\."),
    "a vertex": (
        Facets(cover, (3,)),
        [[1, 0, 0], [0, 0.25, 1]],
        r"lie in Facets\(.*; instance 1 has \[0\.0, 0\.25, 1\.0\]\.",
    ),
}


@pytest.mark.parametrize("name", FIRST_WRONG)
def test_labels_name_the_first_wrong_value_and_the_instances(name: str) -> None:
    polytope, labels, message = FIRST_WRONG[name]
    batch = torch.tensor(labels)
    with pytest.raises(ValueError, match=rf"labels must .*{message}$"):
        polytope.encode(batch)
    grid = torch.stack([batch[:1].repeat(2, *[1] * (batch.dim() - 1)), batch, batch])
    nested = message.replace("instance 1", r"instance \(1, 1\)")
    with pytest.raises(ValueError, match=rf"{nested} Also wrong: instance \(2, 1\)\.$"):
        polytope.encode(grid)
    with pytest.raises(ValueError, match="the only instance"):
        polytope.encode(batch[1])


def test_labels_beyond_their_length_name_it() -> None:
    lengths = torch.tensor([3, 2])
    with pytest.raises(ValueError, match=r"below their length.*; instance 1 \(length 2\) has 2\."):
        Simplex(3).encode([2, 2], lengths)
    with pytest.raises(ValueError, match=r"instance 1 \(length 2\) has 2 at position 1\."):
        Subset(3, 2).encode([[0, 2], [0, 2]], lengths)


def test_long_labels_are_cut() -> None:
    with pytest.raises(ValueError, match=r"has \[0, 1, .*, 15, \.\.\.\]\.$"):
        Subset(40, 2).encode(list(range(20)))


@pytest.mark.parametrize("labels", [[True, False], torch.tensor([1.0]), [[0], [1, 2]], "ab"], ids=str)
def test_labels_that_are_no_indices(labels: Any) -> None:
    for polytope in (Simplex(3), Hull(torch.eye(3))):
        with pytest.raises(TypeError, match="labels must be"):
            polytope.encode(labels)


@pytest.mark.parametrize(
    "polytope", [Simplex(3), Subset(3, 2), Hypercube(3), Hull(torch.eye(3))], ids=str
)
def test_vertices_of_another_event_are_not_decoded(polytope: Polytope) -> None:
    with pytest.raises(ValueError, match=r"event shape \(3,\)"):
        polytope.decode(torch.zeros(2, 4))


# --- solvers that stop early ---------------------------------------------------------------------

WIDE = Subset(12, 5)


def test_a_solver_that_did_not_converge_raises_and_says_so() -> None:
    scores = normal(2, 3, 12)
    exact = WIDE.project(scores)
    solver = ActiveSet(max_steps=2)
    solution = WIDE.solve(scores, Euclidean(), solver=solver, throw=False)
    stopped = (solution.status == Status.STOPPED).nonzero().tolist()
    assert stopped
    names = ", ".join(f"({i}, {j})" for i, j in stopped[:5]).replace("(", r"\(").replace(")", r"\)")
    match = rf"active set.*did not converge.*{names}.*Subset.*Euclidean(.|\n)*gap(.|\n)*throw=False"
    for call in (WIDE.solve, WIDE.maximize, WIDE.conjugate):
        with pytest.raises(ConvergenceError, match=match):
            call(scores, Euclidean(), solver=solver)

    assert solution.gap is not None
    assert torch.equal(solution.converged, solution.status == Status.CONVERGED)
    assert bool((solution.iterations <= 2).all())
    assert bool((solution.gap[~solution.converged] > 1e-9).all())
    error = ((solution.value - exact) ** 2).sum(-1)
    assert bool((error <= solution.gap + 1e-12).all())  # the certificate's promise
    assert bool((error[~solution.converged] > 1e-9).all())
    close(solution.value.sum(-1), torch.full((2, 3), 5.0).double(), 1e-12)
    assert bool((solution.value >= -1e-12).all())
    assert bool((solution.value <= 1 + 1e-12).all())


def test_a_looser_tolerance_converges() -> None:
    scores = normal(20, 12)
    solution = WIDE.solve(scores, Euclidean(), solver=ActiveSet(tolerance=1e-2))
    assert bool(solution.converged.all())
    assert solution.gap is not None
    scale = 1 + (scores * solution.value).sum(-1).abs()
    assert bool((solution.gap <= 1e-2 * scale).all())
    assert bool(((solution.value - WIDE.project(scores)) ** 2).sum(-1).max() <= 0.2)
    fine = WIDE.solve(scores, Euclidean(), solver=ActiveSet())
    assert int(solution.iterations.sum()) < int(fine.iterations.sum())


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_budget_through_a_relaxed_layer_stays_inside(steps: int) -> None:
    layer = Relaxed(WIDE, Euclidean(), solver=ActiveSet(max_steps=steps))
    scores = normal(10, 12).requires_grad_()
    value = layer(scores)
    assert bool(WIDE.contains(value).all())
    inside = Reference(WIDE.constraints, (12,)).batch(value, 1)
    close(inside, value.detach())
    assert not torch.allclose(value, WIDE.project(scores), atol=1e-3) or steps > 2
    (grad,) = torch.autograd.grad(value, scores, normal(10, 12, seed=1))
    assert bool(grad.isfinite().all())


def test_a_budget_through_an_argmax_layer_stays_inside() -> None:
    layer = Argmax(WIDE, SPIGOTSparseMAP(forward=Euclidean()), solver=ActiveSet(max_steps=2))
    scores = normal(10, 12).requires_grad_()
    value, solution = layer(scores, return_solution=True)
    close(Reference(WIDE.constraints, (12,)).batch(value, 1), value.detach())
    assert bool((solution.status == Status.STOPPED).any())
    assert solution.gap is not None
    assert float(solution.gap.max()) > 1e-3
    value.backward(normal(10, 12, seed=1))
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


def test_a_budget_in_the_pull_back_stays_inside() -> None:
    layer = Argmax(WIDE, SPIGOT(step_size=2.0, reduction="sum", solver=ActiveSet(max_steps=2)))
    scores, upstream = normal(10, 12).requires_grad_(), normal(10, 12, seed=1)
    z = layer(scores)
    z.backward(upstream)
    assert scores.grad is not None
    target = z.detach() - scores.grad
    close(Reference(WIDE.constraints, (12,)).batch(target, 1), target)
    exact = WIDE.project(z.detach() - 2 * upstream)
    assert not torch.allclose(target, exact, atol=1e-3)
    assert bool((((target - exact) ** 2).sum(1) < ((z.detach() - exact) ** 2).sum(1)).all())


def test_a_budget_of_frank_wolfe_stays_inside() -> None:
    points = subsets(5, [2])
    scores = normal(6, 5, scale=2.0)
    for omega in (Shannon(), Tsallis(1.5)):
        value = Relaxed(Hull(points), omega, solver=FrankWolfe(max_steps=0))(scores)
        close(Reference(Subset(5, 2).constraints, (5,)).batch(value, 1), value)
        assert not torch.allclose(value, Subset(5, 2).maximize(scores, omega), atol=1e-4)


def test_a_simplex_method_cut_short_is_no_vertex() -> None:
    """A linear program stopped early may not even be feasible: it must not pass for a structure."""
    polytope, scores = Facets(doubly_stochastic, (4, 4)), normal(20, 4, 4)
    layer = Argmax(polytope, SPIGOT(), solver=Highs(max_steps=1))
    try:
        value = layer(scores)
    except ConvergenceError:
        return
    close(value.sum(1), torch.ones(20, 4).double(), 1e-6)
    close(value.sum(2), torch.ones(20, 4).double(), 1e-6)


def test_a_simplex_method_cut_short_claims_no_certificate() -> None:
    polytope, scores = Facets(doubly_stochastic, (4, 4)), normal(20, 4, 4)
    solution = polytope.solve(scores, solver=Highs(max_steps=1), throw=False)
    best = (polytope.maximize(scores) * scores).sum((1, 2))
    short = best - (solution.value * scores).sum((1, 2))
    assert bool((~solution.converged).any())
    assert solution.gap is not None
    assert bool((solution.gap >= short - 1e-9).all())
    with pytest.raises(ConvergenceError, match=r"HiGHS.*did not converge.*instances 0"):
        polytope.solve(scores, solver=Highs(max_steps=1))


def test_an_interior_point_cut_short_raises_even_where_a_budget_was_set() -> None:
    polytope, scores = Facets(doubly_stochastic, (3, 3)), normal(2, 3, 3)
    with pytest.raises(ConvergenceError, match=r"Clarabel.*instances 0, 1 of Facets"):
        Relaxed(polytope, Euclidean(), solver=Clarabel(max_steps=2))(scores)
    solution = polytope.solve(scores, Euclidean(), solver=Clarabel(max_steps=2), throw=False)
    assert solution.value.shape == (2, 3, 3)
    assert bool((solution.status == Status.INACCURATE).all())


# --- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 13])
def test_a_tie_of_everything_is_a_vertex(d: int) -> None:
    value = Facets(diamond, (d,)).maximize(torch.zeros(d))
    assert value.abs().sort().values.tolist() == [0.0] * (d - 1) + [1.0]


def test_ties_never_mix() -> None:
    """Scores with many equal entries: each answer is a permutation, and a best one."""
    polytope = Facets(doubly_stochastic, (4, 4))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (40, 4, 4), generator=generator).double()
    value = polytope.maximize(scores)
    assert bool(((value == 0) | (value == 1)).all())
    assert bool((value.sum(1) == 1).all())
    assert bool((value.sum(2) == 1).all())
    from scipy.optimize import linear_sum_assignment

    for z, s in zip(value, scores, strict=True):
        rows, columns = linear_sum_assignment(-s.numpy())
        assert float((z * s).sum()) == float(s.numpy()[rows, columns].sum())


def tied(event: tuple[int, ...]) -> Tensor:
    """50 instances: all zero, few values, and copies of one another."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(-1, 2, (50, *event), generator=generator).double()
    scores[0] = 0
    scores[25:] = scores[:25].flip(0)
    return scores


TIED: dict[str, Polytope] = {
    "simplex": Simplex(6),
    "subset": Subset(6, 3),
    "diamond": Facets(diamond, (4,)),
    "permutations": Facets(doubly_stochastic, (3, 3)),
    "vertices": Hull(subsets(6, [2, 3])),
    "integers": IntegerHull(lambda y: [y >= 0, y <= 2, cp.sum(y) <= 3], (3,)),
}
every_tied = pytest.mark.parametrize("name", TIED)


@every_tied
def test_a_tie_does_not_depend_on_the_batch(name: str) -> None:
    polytope = TIED[name]
    scores = tied(polytope.event_shape)
    together = polytope.maximize(scores)
    for i in range(len(scores)):
        assert torch.equal(polytope.maximize(scores[i]), together[i])
        assert torch.equal(polytope.maximize(scores[i : i + 1])[0], together[i])
    assert torch.equal(together[25:], together[:25].flip(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(polytope.maximize(scores[order]), together[order])


@every_tied
def test_a_tie_does_not_depend_on_earlier_calls(name: str) -> None:
    polytope = TIED[name]
    first = polytope.maximize(torch.zeros(polytope.event_shape).double())
    polytope.maximize(normal(20, *polytope.event_shape))
    assert torch.equal(polytope.maximize(torch.zeros(polytope.event_shape).double()), first)


@every_tied
def test_a_tie_does_not_depend_on_threads(name: str) -> None:
    polytope = TIED[name]
    scores = tied(polytope.event_shape)
    together, nearest = polytope.maximize(scores), polytope.project(scores)

    def work(_: int) -> tuple[Tensor, Tensor]:
        return polytope.maximize(scores), polytope.project(scores)

    with ThreadPoolExecutor(4) as pool:
        for value, projected in pool.map(work, range(4)):
            assert torch.equal(value, together)
            close(projected, nearest, 1e-12)


def test_a_polytope_may_be_met_first_by_four_threads_at_once() -> None:
    scores = normal(8, 3, 3)
    expected = Facets(doubly_stochastic, (3, 3)).maximize(scores)
    for _ in range(5):
        fresh = Facets(doubly_stochastic, (3, 3))
        with ThreadPoolExecutor(4) as pool:
            for value in pool.map(fresh.maximize, [scores] * 4):
                assert torch.equal(value, expected)


def _in_a_child(name: str, results: Any) -> None:
    torch.set_num_threads(1)
    polytope = TIED[name]
    scores = tied(polytope.event_shape)
    leaf = scores.clone().requires_grad_()
    z = Argmax(polytope, SPIGOT(step_size=0.5))(leaf)
    z.backward(normal(*leaf.shape, seed=3))
    results.put((z.detach().numpy(), leaf.grad.numpy() if leaf.grad is not None else None))


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@every_tied
def test_a_tie_does_not_depend_on_a_fork(name: str) -> None:
    polytope = TIED[name]
    scores = tied(polytope.event_shape)
    leaf = scores.clone().requires_grad_()
    z = Argmax(polytope, SPIGOT(step_size=0.5))(leaf)
    z.backward(normal(*leaf.shape, seed=3))

    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    child = context.Process(target=_in_a_child, args=(name, results))
    child.start()
    try:
        value, grad = results.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert leaf.grad is not None
    assert torch.equal(torch.from_numpy(value), z.detach())
    close(torch.from_numpy(grad), leaf.grad, 1e-12)
