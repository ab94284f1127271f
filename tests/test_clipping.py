"""The compiled maps onto budgets against the road in torch, and at a million parts."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from torch import Tensor

from spigot.polytopes import Euclidean, NoStructure, Polytope, Simplex, Subset, Tsallis
from spigot.polytopes.dispatch import Road, choose
from spigot.polytopes.kernels.sets import selection
from spigot.polytopes.posing import pose
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.structures.budget import BudgetRule
from tests.tensors import normal


def adversarial(d: int, seed: int) -> dict[str, Tensor]:
    spike = normal(3, d, seed=seed)
    spike[:, d // 2] = 1e9
    return {
        "normal": normal(3, d, seed=seed),
        "ties": (2 * normal(3, d, seed=seed)).round(),
        "equal": torch.full((3, d), 0.7, dtype=torch.float64),
        "zero": torch.zeros(3, d, dtype=torch.float64),
        "tiny": normal(3, d, seed=seed, scale=1e-12),
        "huge": normal(3, d, seed=seed, scale=1e15),
        "shifted": normal(3, d, seed=seed) + 1e6,
        "negative": -normal(3, d, seed=seed).abs() - 2,
        "spike": spike,
        "grid": torch.arange(3 * d).reshape(3, d).flip(1).double() / 8,
    }


SIMPLICES: list[Polytope] = [Simplex(d) for d in (1, 2, 5, 40)]
SUBSETS: list[Polytope] = [
    Subset(d, k, at_most)
    for d in (1, 2, 7, 60)
    for k in sorted({0, 1, d // 2, d})
    for at_most in (False, True)
]
SETS = SIMPLICES + SUBSETS


def both(problem: Problem) -> list[tuple[Road, Solution]]:
    compiled = choose(problem.polytope, problem.regularizer).road
    assert compiled.accelerated is not None
    portable = compiled.accelerated()
    assert isinstance(portable, BudgetRule)
    return [(road, road.solve(problem)) for road in (compiled, portable)]


CASES: list[tuple[Polytope, Separable]] = [
    *((polytope, Euclidean()) for polytope in SETS),
    *((simplex, Tsallis(alpha)) for simplex in SIMPLICES for alpha in (1.1, 1.5, 2.0, 3.0)),
]


@pytest.mark.parametrize(("polytope", "omega"), CASES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_both_roads_agree(polytope: Polytope, omega: Separable, masked: bool) -> None:
    (d,) = polytope.event_shape
    for name, scores in adversarial(d, 0).items():
        if (name, omega) == ("grid", Tsallis(3.0)):
            continue  # a part right at the threshold: y is the root of what rounding leaves
        keep = None
        if masked:
            keep = normal(3, d, seed=1) > 0
            keep[:, : max(1, polytope.length_range[0])] = True
        problem = pose(polytope, scores, omega, keep=keep)
        (road, found), (other, expected) = both(problem)
        scale = 1 + (1e-7 * scores.abs().max().item() if name in ("shifted", "spike") else 0.0)
        torch.testing.assert_close(found.value, expected.value, atol=1e-9 * scale, rtol=0)
        assert found.objective is not None and expected.objective is not None
        torch.testing.assert_close(found.objective, expected.objective, msg=name)
        grad = normal(3, d, seed=2) if keep is None else normal(3, d, seed=2) * keep
        torch.testing.assert_close(
            road.vjp(problem, found, grad), other.vjp(problem, expected, grad), msg=name
        )


@pytest.mark.parametrize("polytope", SETS, ids=str)
def test_the_largest_parts_are_those_of_a_stable_sort(polytope: Polytope) -> None:
    (d,) = polytope.event_shape
    for scores in adversarial(d, 1).values():
        assert torch.equal(polytope.maximize(scores), polytope.argmax(scores))
        single = scores.float()
        assert torch.equal(polytope.maximize(single), polytope.argmax(single))


@pytest.mark.parametrize("d", [1, 31, 33, 1000])
def test_kth_largest(d: int) -> None:
    bins = torch.zeros(selection.BINS, dtype=torch.int64).numpy()
    for scores in adversarial(d, 2).values():
        row = scores[0].clone()
        row[:1] *= -1e300 if d > 1 else 1.0
        ordered = row.sort(descending=True).values
        for k in {1, 2, d // 3, d - 1, d} & set(range(1, d + 1)):
            found = selection.kth_largest(row.clone().numpy(), d, k, bins)
            assert found == ordered[k - 1].item()


def test_each_instance_has_its_own_size_and_number() -> None:
    scores = normal(5, 8)
    lengths, numbers = torch.tensor([8, 5, 4, 6, 8]), torch.tensor([3, 5, 0, 1, 8])
    for at_most in (False, True):
        polytope = Subset(8, 0, at_most)
        for regularizer in (None, Euclidean()):
            found = polytope.maximize(scores, regularizer, lengths=lengths, params={"k": numbers})
            for i in range(5):
                m = int(lengths[i])
                alone = Subset(m, int(numbers[i]), at_most).maximize(scores[i, :m], regularizer)
                torch.testing.assert_close(found[i, :m], alone)
                assert not found[i, m:].any()
    with pytest.raises(NoStructure, match="needs 5, in instances 1, 4"):
        Subset(8, 0).project(scores, params={"k": numbers}, keep=torch.arange(8) < 4)
    with pytest.raises(ValueError, match=r"k=9\): k must lie in 0..8, in instance 0"):
        Subset(8, 0).project(scores[:1], params={"k": torch.tensor([9])})
    with pytest.raises(TypeError, match="whole number"):
        Subset(8, 0).project(scores[:1], params={"k": torch.tensor([1.0])})


def test_gradcheck() -> None:
    scores = normal(3, 7, seed=4).requires_grad_()
    for polytope in (Simplex(7), Subset(7, 3), Subset(7, 3, at_most=True)):
        assert torch.autograd.gradcheck(polytope.project, scores)


def test_a_million_parts_are_quick() -> None:
    d = 1_000_000
    scores = normal(1, d).float().requires_grad_()
    for polytope in (Simplex(d), Subset(d, d // 10)):
        polytope.project(scores).sum().backward()
        start = time.perf_counter()
        value = polytope.project(scores)
        value.square().sum().backward()
        polytope.maximize(scores.detach())
        assert time.perf_counter() - start < 1.0
        total = float(value.detach().double().sum())
        assert abs(total - (1 if isinstance(polytope, Simplex) else d // 10)) < 1e-3


MEMORY = """
import resource, torch
from spigot.polytopes import Simplex, Subset
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
d = 1_000_000
for make in (Simplex, lambda d: Subset(d, d // 10)):
    for verb in (lambda p, s: p.maximize(s), lambda p, s: p.project(s)):
        verb(make(10), torch.zeros(1, 10))
scores = torch.randn(1, d)
before = peak()
for make in (Simplex, lambda d: Subset(d, d // 10)):
    make(d).maximize(scores)
    make(d).project(scores)
print((peak() - before) / (2 * scores.nbytes))
"""


def test_a_million_parts_take_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10  # times input and output


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("d", [3, 63, 65, 66, 1000])
def test_wide_supports_have_the_whole_jacobian(alpha: float, d: int) -> None:
    """D - D 1 1' D / 1' D 1 with D = y^(2 - alpha), around where the list of parts ends."""
    scores = normal(1, d, seed=6, scale=1e-8)[0].requires_grad_()
    y = Simplex(d).maximize(scores, Tsallis(alpha))
    assert bool((y > 0).all())
    grad = normal(1, d, seed=7)[0]
    y.backward(grad)
    spread = y.detach() ** (2 - alpha)
    expected = spread * (grad - (spread * grad).sum() / spread.sum())
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize("omega", [Euclidean(), Tsallis(1.5)], ids=str)
def test_the_answer_is_the_users_to_write_into(omega: Separable) -> None:
    scores = normal(2, 9, seed=8)
    expected, found = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    weights = normal(2, 9, seed=9)
    for leaf, factor in ((expected, 1.0), (found, 2.0)):
        y = Simplex(9).maximize(leaf, omega)
        y *= factor
        torch.autograd.grad((y * weights).sum(), leaf, create_graph=True)[0].sin().sum().backward()
    first = torch.autograd.grad((Simplex(9).maximize(found, omega) * weights).sum(), found)[0]
    once = torch.autograd.grad((Simplex(9).maximize(expected, omega) * weights).sum(), expected)[0]
    torch.testing.assert_close(first, once)
    assert found.grad is not None and bool(found.grad.isfinite().all())


def test_bad_gradients_stay_with_their_instance() -> None:
    scores = normal(3, 6, seed=10).requires_grad_()
    grad = normal(3, 6, seed=11)
    (clean,) = torch.autograd.grad(Simplex(6).project(scores), scores, grad)
    grad[1, 2] = torch.inf
    (found,) = torch.autograd.grad(Simplex(6).project(scores), scores, grad)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
