"""From what a user hands over to a `Problem`: shapes, dtypes, NaN, masks, sizes, parameters, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spigot.polytopes.arrays import first_part, numbers, rows_where
from spigot.polytopes.bounds import parts_outside
from spigot.polytopes.errors import describe_instances, describe_wrong, unsupported
from spigot.polytopes.finite import all_finite
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.start import CachedSupports, started

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.regularizers import Regularizer

__all__ = [
    "check_event",
    "check_excludable",
    "check_finite",
    "check_lengths",
    "detached",
    "pose",
    "size_range",
]


def pose(
    polytope: Polytope,
    scores: Tensor,
    regularizer: Regularizer | None,
    lengths: Tensor | None = None,
    keep: Tensor | None = None,
    params: Mapping[str, Tensor] | None = None,
    start: Solution | CachedSupports | None = None,
) -> Problem:
    """The flattened problem: finite scores `(n, *event)`, zero at excluded parts and in padding.

    Gradients flow from the problem's scores and floating parameters to the user's, exactly 0 at
    excluded parts.

    Raises:
        TypeError: scores, lengths, keep or params are not tensors of the right dtype.
        ValueError: a wrong shape, NaN or +inf, named by instance; parameters unknown or missing; a
            start of another batch or polytope.
        UnsupportedProblem: masks where a part can be negative, or lengths without a size.
    """
    batch_shape = check_event(polytope, scores, "scores")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    n, event = batch_shape.numel(), polytope.event_shape
    keep = _mask(scores, batch_shape, keep)
    problem = Problem(
        polytope,
        scores.reshape(n, *event),
        regularizer,
        None if keep is None else keep.reshape(n, *event),
        None if lengths is None else check_lengths(polytope, batch_shape, lengths, scores.device),
        _checked_params(polytope, batch_shape, params or {}, scores),
        batch_shape=tuple(batch_shape),
    )
    if not polytope.varies:
        check_excludable(problem)
    if start is not None:
        problem = started(problem, start)
    mask = problem.mask
    return problem if mask is None else problem.with_scores(torch.where(mask, problem.scores, 0.0))


def check_event(polytope: Polytope, tensor: Tensor, name: str) -> torch.Size:
    """The batch shape of a floating tensor whose last dimensions must be the event's."""
    _check_tensor(tensor, name)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {tensor.dtype}; call .float().")
    event = polytope.event_shape
    if not event:
        raise ValueError(f"{polytope} has the event shape (); it needs at least one dimension.")
    split = tensor.dim() - len(event)
    if split < 0 or tuple(tensor.shape[split:]) != event:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} cannot fit {polytope}: the last "
            f"{len(event)} dimension(s) must be its event shape {event}."
        )
    return tensor.shape[:split]


def _check_tensor(thing: object, name: str) -> None:
    if not isinstance(thing, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(thing).__name__}.")


def _mask(scores: Tensor, batch_shape: torch.Size, keep: Tensor | None) -> Tensor | None:
    masks = [_excluded_by_scores(scores, batch_shape)]
    if keep is not None:
        masks.append(_checked_keep(scores, keep))
    masks = [mask for mask in masks if mask is not None and not bool(mask.all())]
    if not masks:
        return None
    return torch.stack(masks).all(0) if len(masks) > 1 else masks[0]


def detached(problem: Problem) -> Problem:
    """The same without a gradient."""
    return problem.with_scores(problem.scores.detach())


def check_finite(tensor: Tensor, batch_shape: torch.Size, name: str, below: bool = True) -> None:
    """Raises ValueError for NaN, +inf and (if `below`) -inf, naming the instances."""
    if all_finite(tensor):
        return
    kinds = [(tensor.isnan(), "NaN"), (tensor.isposinf(), "+inf")]
    kinds += [(tensor.isneginf(), "-inf")] if below else []
    for bad, kind in kinds:
        if bool(bad.any()):
            rows = rows_where(bad.reshape(batch_shape.numel(), -1).any(1))
            raise ValueError(f"{name} hold {kind} in {describe_instances(rows, batch_shape)}.")


def _excluded_by_scores(scores: Tensor, batch_shape: torch.Size) -> Tensor | None:
    """Where the scores are not -inf; None where all are finite."""
    scores = scores.detach()
    if all_finite(scores):
        return None
    check_finite(scores, batch_shape, "scores", below=False)
    return ~scores.isneginf()


def _checked_keep(scores: Tensor, keep: Tensor) -> Tensor:
    _check_tensor(keep, "keep")
    if keep.dtype != torch.bool:
        raise TypeError(f"keep must be a bool tensor, got {keep.dtype}.")
    try:
        return keep.to(scores.device).expand(scores.shape)
    except RuntimeError:
        raise ValueError(
            f"keep of shape {tuple(keep.shape)} does not broadcast to the scores' shape "
            f"{tuple(scores.shape)}."
        ) from None


def check_excludable(problem: Problem) -> None:
    """Excluding part i is a face of M only where M lies in {y_i >= 0}.

    Raises:
        UnsupportedProblem: otherwise, naming the part.
    """
    if problem.keep is None:
        return
    polytope = problem.polytope
    excluded = problem.keep.logical_not().any(0).cpu()
    negative = parts_outside(polytope, 0.0, torch.inf, excluded)
    if bool(negative.any()):
        part = first_part(negative)
        raise unsupported(
            polytope,
            problem.regularizer,
            f"keep (or a score of -inf) excludes part {part}, which can be as low as "
            f"{polytope.bounds[0][part].item():g}; a part can be excluded only where it is never "
            "negative.",
            "Declare a polytope with that part fixed instead.",
        )


def check_lengths(
    polytope: Polytope, batch_shape: torch.Size, lengths: Tensor, device: torch.device
) -> Tensor:  # (n,) or (n, 2)
    """Sizes within `length_range`, one an instance.

    Raises:
        TypeError: they are no tensor of whole numbers.
        ValueError: another shape than the batch's, or a size out of range, named by instance.
    """
    _check_tensor(lengths, "lengths")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be an integer tensor, got {lengths.dtype}.")
    lowest, highest = (torch.tensor(end, device=lengths.device) for end in polytope.length_range)
    expected = (*batch_shape, *lowest.shape)
    if tuple(lengths.shape) != expected:
        sizes = f"two numbers an instance, {expected}" if lowest.dim() else f"batch shape {expected}"
        raise ValueError(f"lengths of shape {tuple(lengths.shape)} must have the {sizes}.")
    wrong = (lengths < lowest) | (lengths > highest)
    if bool(wrong.any()):
        short = wrong.reshape(batch_shape.numel(), -1).any(1)
        first = numbers(lengths.reshape(batch_shape.numel(), -1)[short][0])
        has = f"has {first if lowest.dim() else first[0]}"
        raise ValueError(
            f"lengths must lie in {size_range(lowest, highest)} for {polytope}; "
            f"{describe_wrong(rows_where(short), batch_shape, has)}"
        )
    return lengths.to(device, torch.int64).reshape(batch_shape.numel(), *lowest.shape)


def size_range(lowest: Tensor, highest: Tensor) -> str:
    """The ends of `length_range`, as `1..4` or `1..3 by 1..4`."""
    pairs = zip(numbers(lowest.reshape(-1)), numbers(highest.reshape(-1)), strict=True)
    return " by ".join(f"{low}..{high}" for low, high in pairs)


def _checked_params(
    polytope: Polytope, batch_shape: torch.Size, params: Mapping[str, Tensor], scores: Tensor
) -> dict[str, Tensor]:  # (n, *shape) each
    if not params and not polytope.unbound:
        return {}
    shapes = polytope.parameters
    known = ", ".join(shapes) or "none"
    unknown = [name for name in params if name not in shapes]
    if unknown:
        raise ValueError(f"params: {polytope} has no parameter {unknown[0]!r}; its parameters: {known}.")
    missing = [name for name in polytope.unbound if name not in params]
    if missing:
        raise ValueError(
            f"{polytope} needs its parameter {missing[0]!r}: pass "
            f'params={{"{missing[0]}": tensor of shape (*batch, *{tuple(shapes[missing[0]])})}}.'
        )
    return {
        name: _checked_param(f"params[{name!r}]", values, batch_shape, tuple(shapes[name]), scores)
        for name, values in params.items()
    }


def _checked_param(
    name: str, values: Tensor, batch_shape: torch.Size, shape: tuple[int, ...], scores: Tensor
) -> Tensor:
    _check_tensor(values, name)
    try:
        values = values.expand((*batch_shape, *shape))
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} does not broadcast to (*batch, *shape) = "
            f"{(*batch_shape, *shape)}."
        ) from None
    if values.is_floating_point():
        check_finite(values.detach(), batch_shape, name)
        values = values.to(scores.dtype)
    return values.reshape(batch_shape.numel(), *shape).to(scores.device)
