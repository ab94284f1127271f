"""Gibbs: the partition function, entropy, the best structures, samples, and peaked scores."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from spigot.polytopes import Gibbs, Polytope, UnsupportedProblem
from spigot.testing.bench import Bench, worst
from spigot.testing.cases import Case
from spigot.testing.report import Counterexample, Finding

__all__ = ["check_peaked", "check_samples", "check_values"]

SCALES = (1.0, 10.0, 100.0, 1000.0)
GIBBS = str(Gibbs())


def _road(polytope: Polytope) -> str:
    """The road of Gibbs; empty where there is none."""
    try:
        return polytope.which(Gibbs()).rule
    except UnsupportedProblem:
        return ""


def check_values(bench: Bench, instances: list[Case]) -> Iterator[Finding]:
    """log_partition, entropy and top_k against sums over the listed structures."""
    road = _road(bench.polytope)
    if not road or bench.listed() is None:
        return
    verbs = {"log_partition": _log_partition, "entropy": _entropy, "top_k": _best_scores}
    for verb, expect in verbs.items():
        errors: list[float] = []
        example: Counterexample | None = None
        for case in instances:
            points = bench.listed(case.keep)
            assert points is not None
            energies = (points * case.scores).flatten(1).sum(1)
            found, expected = expect(bench.polytope, case, energies)
            errors.append(float((found - expected).abs().max()))
            if not errors[-1] <= 1e-6 * (1 + float(case.scores.abs().max())) and example is None:
                reason = f"{verb} differs from the sum over structures"
                example = Counterexample(case.name, case.scores, case.keep, found, expected, reason)
        yield Finding(verb, GIBBS, road, len(errors), worst(errors), torch.nan, 0, example)


def _log_partition(polytope: Polytope, case: Case, energies: Tensor) -> tuple[Tensor, Tensor]:
    return polytope.log_partition(case.scores, keep=case.keep), energies.logsumexp(0)


def _entropy(polytope: Polytope, case: Case, energies: Tensor) -> tuple[Tensor, Tensor]:
    logits = energies.log_softmax(0)
    return polytope.entropy(case.scores, keep=case.keep), -(logits.exp() * logits).sum()


def _best_scores(polytope: Polytope, case: Case, energies: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the best few: ties leave open which structures those are."""
    k = min(3, len(energies))
    try:
        best = polytope.top_k(case.scores, k, keep=case.keep)
    except UnsupportedProblem:
        return energies.new_zeros(1), energies.new_zeros(1)
    found = (best * case.scores).flatten(1).sum(1)
    return found, energies.sort(descending=True).values[:k]


def check_peaked(bench: Bench) -> Iterator[Finding]:
    """Marginals at every scale of scores, in both precisions, are finite, in range and right."""
    road = _road(bench.polytope)
    points = bench.listed()
    if not road or points is None:
        return
    low, high = points.amin(0), points.amax(0)
    rng = torch.Generator().manual_seed(4)
    errors: list[float] = []
    example: Counterexample | None = None
    for scale, (dtype, limit) in product(SCALES, ((torch.float64, 1e-6), (torch.float32, 1e-5))):
        scores = (scale * torch.randn(bench.polytope.event_shape, generator=rng)).to(dtype)
        energies = (points * scores.double()).flatten(1).sum(1)
        expected = torch.einsum("m,m...->...", energies.softmax(0), points)
        leaf = scores.requires_grad_()
        found = bench.polytope.marginals(leaf)
        weight = torch.randn(found.shape, generator=rng)
        (gradient,) = torch.autograd.grad((found * weight).sum(), leaf)
        value = found.detach().double()
        errors.append(float((value - expected).abs().max()))
        outside = bool(((value < low - limit) | (value > high + limit)).any())
        finite = bool(torch.isfinite(gradient).all())
        if (not errors[-1] <= limit or outside or not finite) and example is None:
            reason = (
                f"marginals in {dtype} at scale {scale:g}, gradient {'' if finite else 'not '}finite"
            )
            example = Counterexample("peaked", scores.detach(), None, value, expected, reason)
    yield Finding("peaked", GIBBS, road, len(errors), worst(errors), torch.nan, 0, example)


def check_samples(bench: Bench, instances: list[Case], count: int = 4000) -> Iterator[Finding]:
    """The mean of samples is the marginals, within six standard errors; samples are vertices."""
    polytope = bench.polytope
    if not _road(polytope):
        return
    rng = torch.Generator().manual_seed(2)
    worst, example = 0.0, None
    chosen = [case for case in instances if case.generic][:4]
    for case in chosen:
        drawn = polytope.sample(case.scores, (count,), keep=case.keep, generator=rng)
        marginals = polytope.marginals(case.scores, keep=case.keep)
        spread = drawn.std(0) / count**0.5 + 1 / count
        error = float(((drawn.mean(0) - marginals).abs() / spread).max())
        worst = max(worst, float((drawn.mean(0) - marginals).abs().max()))
        inside = bool(polytope.contains(drawn[:50], keep=case.keep).all())
        if (error > 6 or not inside) and example is None:
            reason = "the mean of samples is not the marginals" if inside else "a sample outside M"
            example = Counterexample(case.name, case.scores, case.keep, drawn.mean(0), marginals, reason)
    yield Finding("sample", GIBBS, _road(polytope), len(chosen), worst, torch.nan, 0, example)
