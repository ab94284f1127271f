"""The checker finds what is broken, and says it so that one can act on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from spigot.polytopes import Gibbs, Hull, Polytope, Simplex, Subset
from spigot.polytopes.dispatch import rule
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.structures.budget import BudgetRule
from spigot.polytopes.structures.simplex import Softmax
from spigot.testing import check, installed
from spigot.testing.__main__ import main


class BrokenProjection(Subset):
    """Its rule forgets the largest part where three scores tie."""


@rule(BrokenProjection, Separable)
class _Forgetful(BudgetRule):
    def solve(self, problem: Problem) -> Solution:
        solution = super().solve(problem)
        scores = problem.flat_scores
        tied = (scores == scores.amax(1, keepdim=True)).sum(1) >= 3
        return replace(solution, value=torch.where(tied[:, None], 0.0, solution.value))


class BrokenDerivative(Simplex):
    """Its softmax's derivative is only the Jacobian's diagonal."""


@rule(BrokenDerivative, Gibbs)
class _Diagonal(Softmax):
    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        return solution.value * (1 - solution.value) * grad


class BrokenMask(Simplex):
    """Its argmax rule does not look at `keep`."""


@rule(BrokenMask, None)
class _Blind(Softmax):
    name = "blind argmax"

    def solve(self, problem: Problem) -> Solution:
        value = problem.polytope.argmax(problem.scores)
        return Solution.closed_form(value, (value * problem.scores).sum(1))


class BrokenSampler(Simplex):
    """Its samples ignore the scores."""


@rule(BrokenSampler, Gibbs)
class _Uniform(Softmax):
    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        flat = replace(problem, scores=torch.zeros_like(problem.scores))
        return super().sample(flat, count, generator)


@dataclass(frozen=True)
class Disagreeing(Polytope):
    """Two of three by its constraints, and by its oracle a greedy choice that stops too early."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3,)

    def constraints(self, y: cp.Variable) -> list[Any]:
        return [y >= 0, y <= 1, cp.sum(y) <= 2]

    def argmax(self, scores: Tensor) -> Tensor:
        best = Subset(3, 1, at_most=True).argmax(scores)
        return torch.where((scores > 1).any(1, keepdim=True), best, Subset(3, 2, True).argmax(scores))


class Fractional(Polytope):
    """The odd cycle's relaxation."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3,)

    def constraints(self, y: cp.Variable) -> list[Any]:
        return [y >= 0, y[0] + y[1] <= 1, y[1] + y[2] <= 1, y[0] + y[2] <= 1]


class BrokenTies(Simplex):
    """Its argmax shares the choice among parts that tie."""


@rule(BrokenTies, None)
class _Shared(Softmax):
    name = "shared argmax"

    def solve(self, problem: Problem) -> Solution:
        scores = problem.scores
        tied = (scores == scores.amax(1, keepdim=True)).to(scores)
        value = tied / tied.sum(1, keepdim=True)
        return Solution.closed_form(value, (value * scores).sum(1))


BROKEN = [
    (BrokenProjection(4, 2), "project", "Euclidean()"),
    (BrokenDerivative(3), "gradient", "Gibbs()"),
    (BrokenMask(3), "maximize", ""),
    (BrokenSampler(3), "sample", "Gibbs()"),
    (Disagreeing(), "maximize", ""),
]


@pytest.mark.parametrize(("polytope", "verb", "regularizer"), BROKEN, ids=str)
def test_broken_rules_are_found(polytope: Polytope, verb: str, regularizer: str) -> None:
    report = check(polytope, count=6)
    assert not report.passed
    wrong = [finding for finding in report.findings if finding.verdict == "WRONG"]
    assert (verb, regularizer) in {(finding.verb, finding.regularizer) for finding in wrong}
    text = str(report)
    assert "FAILED" in text
    assert "scores" in text
    assert "expected" in text


def test_the_counterexample_is_small() -> None:
    report = check(BrokenProjection(4, 2))
    wrong = next(f for f in report.findings if f.verb == "project" and f.counterexample)
    assert wrong.counterexample is not None
    scores = wrong.counterexample.scores
    assert wrong.counterexample.keep is None
    assert torch.equal(scores, torch.zeros(4).double()), scores


def test_an_answer_that_is_no_vertex_is_compared_with_none() -> None:
    report = check(BrokenTies(3), count=2)
    wrong = next(f for f in report.findings if f.road == "shared argmax" and f.counterexample)
    assert wrong.counterexample is not None
    assert wrong.counterexample.reason == "not a vertex"
    assert wrong.counterexample.expected is None
    text = str(wrong.counterexample)
    assert "found" in text
    assert "expected" not in text


def test_a_wrong_oracle_is_found_against_another_declaration() -> None:
    from spigot.polytopes import Oracle

    shy = Oracle(lambda s: s.clamp(0, 1).round(), (2,), batched=True)  # 0.3 is not enough for it
    assert "only `argmax` is declared" in str(check(shy, count=2))
    square = Hull([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert not check(shy, square).passed
    assert check(Oracle(lambda s: (s > 0).to(s), (2,), batched=True), square).passed


def test_fractional_vertices_are_reported() -> None:
    report = check(Fractional(), count=20)
    assert report.passed
    assert any("fractional" in note for note in report.notes), str(report)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spigot.polytopes:Subset", "--args", "4", "k=2", "--count", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Subset(d=4, k=2, at_most=False)\nverb")
    assert printed.rstrip().endswith("passed")
    assert main(["tests.test_checker:BrokenProjection", "--args", "4", "2", "--count", "2"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "found" in printed


def test_without_a_name_a_few_are_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "FEW", [Hull(torch.eye(2)), BrokenTies(3)])
    assert main(["--count", "1", "--brief"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "Hull(2 points of shape (2,)): passed\nBrokenTies(d=3): FAILED\n"
    assert "worst error" not in printed.out, "there is no table"
    assert "not a vertex" in printed.out
    assert printed.out.endswith("FAILED: BrokenTies(d=3)\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["spigot.polytopes"], "package.module:Name"),
        (["spigot.nowhere:Thing"], "No module named"),
        (["spigot.polytopes:Nothing"], "Nothing"),
        (["spigot.polytopes:Subset", "--args", "4", "9"], "k must lie in 0..4"),
        (["spigot.polytopes:Status", "--args", "0"], "not a Polytope"),
    ],
)
def test_command_line_mistakes(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
