"""Instances in a batch are as if alone, whatever their sizes, and their labels come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes import ConvergenceError, Polytope, Regularizer, UnsupportedProblem
from spigot.polytopes.arrays import numbers
from spigot.testing.bench import Bench, worst
from spigot.testing.cases import REGULARIZERS, Case
from spigot.testing.report import Counterexample, Finding

__all__ = ["check_batch", "check_labels", "check_sizes"]

RAGGED = 5  # instances of different sizes in a batch


def check_batch(bench: Bench, instances: list[Case]) -> Iterator[Finding]:
    """MAP of an instance does not depend on the batch it is in, and is the same the second time."""
    plain = [case for case in instances if case.keep is None]
    scores = torch.stack([case.scores for case in plain])
    together = bench.polytope.maximize(scores)
    again = bench.polytope.maximize(scores.flip(0)).flip(0)
    example, worst = None, 0.0
    for i, case in enumerate(plain):
        alone = bench.polytope.maximize(case.scores)
        error = max(float((alone - other[i]).abs().max()) for other in (together, again))
        worst = max(worst, error)
        if error > 0 and example is None:
            reason = "MAP alone differs from MAP in a batch"
            example = Counterexample(case.name, case.scores, None, together[i], alone, reason)
    yield Finding("batch", "", "maximize", len(plain), worst, torch.nan, 0, example)


def check_labels(bench: Bench, instances: list[Case]) -> Iterator[Finding]:
    """encode(decode(z)) = z."""
    worst, example = 0.0, None
    for case in instances:
        vertex = bench.polytope.maximize(case.scores, keep=case.keep)
        again = bench.polytope.encode(bench.polytope.decode(vertex)).to(vertex)
        error = float((again - vertex).abs().max())
        worst = max(worst, error)
        if error > 1e-6 and example is None:
            reason = "encode(decode(z)) is another structure"
            example = Counterexample(case.name, case.scores, case.keep, again, vertex, reason)
    yield Finding("labels", "", "decode, encode", len(instances), worst, torch.nan, 0, example)


def check_sizes(bench: Bench) -> Iterator[Finding]:
    """`lengths=`, with and without `keep`, against each instance alone on the structure of its size."""
    polytope = bench.polytope
    try:
        lowest, highest = polytope.length_range
    except UnsupportedProblem:
        return
    rng = torch.Generator().manual_seed(3)
    lengths = _random_sizes(lowest, highest, rng)
    scores = torch.randn(RAGGED, *polytope.event_shape, generator=rng, dtype=torch.float64)
    keep = (torch.rand(scores.shape, generator=rng) < 0.7) | _used(polytope, -scores, lengths)
    for regularizer in REGULARIZERS:
        try:
            road = polytope.which(regularizer).rule
        except UnsupportedProblem:
            continue
        errors: list[float] = []
        example: Counterexample | None = None
        for mask in (None, keep):
            together = _value_and_gradient(polytope, regularizer, scores, lengths=lengths, keep=mask)
            for i in range(RAGGED if together is not None else 0):
                alone = _alone(
                    polytope, regularizer, scores[i], lengths[i], mask if mask is None else mask[i]
                )
                if alone is None:
                    continue
                assert together is not None
                errors.append(float((together[:, i] - alone).abs().max()))
                if not errors[-1] <= 1e-6 and example is None:
                    reason = f"with lengths {numbers(lengths)} instance {i} differs from itself alone"
                    example = Counterexample("sizes", scores[i], mask, together[:, i], alone, reason)
        name = "" if regularizer is None else str(regularizer)
        yield Finding("sizes", name, road, len(errors), worst(errors), torch.nan, 0, example)


def _random_sizes(lowest: Any, highest: Any, rng: torch.Generator) -> Tensor:  # (RAGGED,) or (RAGGED, 2)
    low = torch.as_tensor(lowest).clamp_min(1)
    share = torch.rand(RAGGED, *low.shape, generator=rng)
    return (low + share * (torch.as_tensor(highest) - low + 1)).long()


def _block(polytope: Polytope, length: Tensor) -> tuple[slice, ...]:
    return tuple(slice(size) for size in polytope.sized(length).event_shape)


def _used(polytope: Polytope, scores: Tensor, lengths: Tensor) -> Tensor:
    """The parts of each instance's best structure, so that a mask leaves one."""
    used = torch.zeros(scores.shape, dtype=torch.bool)
    for parts, row, length in zip(used, scores, lengths, strict=True):
        block = _block(polytope, length)
        parts[block] = polytope.sized(length).maximize(row[block]) > 0
    return used


def _alone(
    polytope: Polytope,
    regularizer: Regularizer | None,
    scores: Tensor,
    length: Tensor,
    keep: Tensor | None,
) -> Tensor | None:  # (2, *event)
    """An instance's value and gradient on the structure of its own size, zero in the padding."""
    block = _block(polytope, length)
    mask = None if keep is None else keep[block][None]
    found = _value_and_gradient(polytope.sized(length), regularizer, scores[block][None], keep=mask)
    if found is None:
        return None
    padded = torch.zeros(2, *scores.shape, dtype=torch.float64)
    padded[(slice(None), *block)] = found[:, 0]
    return padded


def _value_and_gradient(
    polytope: Polytope, regularizer: Regularizer | None, scores: Tensor, **masks: Any
) -> Tensor | None:  # (2, n, *event)
    leaf = scores.clone().requires_grad_()
    try:
        value = polytope.maximize(leaf, regularizer, **masks)
        if regularizer is None:
            return torch.stack([value, torch.zeros_like(value)])
        (gradient,) = torch.autograd.grad((value * scores).sum(), leaf)
    except (ConvergenceError, UnsupportedProblem):
        return None
    return torch.stack([value.detach(), gradient])
