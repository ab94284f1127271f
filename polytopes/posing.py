"""From what a user hands over to a `Problem`: shapes, dtypes, NaN, masks and lengths, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spigot.polytopes.arrays import first_part, rows_where
from spigot.polytopes.bounds import parts_outside
from spigot.polytopes.errors import describe_instances, unsupported
from spigot.polytopes.problem import Problem

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.regularizers import Regularizer

__all__ = ["check_event", "check_finite", "detached", "pose"]


def pose(
    polytope: Polytope,
    scores: Tensor,
    regularizer: Regularizer | None,
    lengths: Tensor | None = None,
    keep: Tensor | None = None,
) -> Problem:
    """The flattened problem: finite scores `(n, *event)`, zero at the parts that `keep` excludes.

    Gradients flow from the problem's scores to the user's, exactly 0 at excluded parts.

    Raises:
        TypeError: scores, lengths or keep are not tensors of the right dtype.
        ValueError: a wrong shape, NaN or +inf, named by instance.
        UnsupportedProblem: masks where a part can be negative, or lengths without a size.
    """
    batch_shape = check_event(polytope, scores, "scores")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    keep = _mask(polytope, scores, batch_shape, regularizer, lengths, keep)
    if keep is not None:
        scores = torch.where(keep, scores, 0.0)
    n = batch_shape.numel()
    event = polytope.event_shape
    return Problem(
        polytope,
        scores.reshape(n, *event),
        regularizer,
        None if keep is None else keep.reshape(n, *event),
        tuple(batch_shape),
    )


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
            f"{name} of shape {tuple(tensor.shape)} do not fit {polytope}: the last "
            f"{len(event)} dimension(s) must be its event shape {event}."
        )
    return tensor.shape[:split]


def _check_tensor(thing: object, name: str) -> None:
    if not isinstance(thing, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(thing).__name__}.")


def _mask(
    polytope: Polytope,
    scores: Tensor,
    batch_shape: torch.Size,
    regularizer: Regularizer | None,
    lengths: Tensor | None,
    keep: Tensor | None,
) -> Tensor | None:
    masks = [_excluded_by_scores(scores, batch_shape)]
    if keep is not None:
        masks.append(_checked_keep(scores, keep))
    masks = [mask for mask in masks if mask is not None and not bool(mask.all())]
    if masks:
        _check_excludable(polytope, regularizer, masks, len(batch_shape))
    if lengths is not None:
        masks.append(_checked_lengths(polytope, scores, batch_shape, lengths))
    if not masks:
        return None
    return torch.stack(masks).all(0) if len(masks) > 1 else masks[0]


def detached(problem: Problem) -> Problem:
    """The same without a gradient."""
    return problem.with_scores(problem.scores.detach())


def check_finite(tensor: Tensor, batch_shape: torch.Size, name: str, below: bool = True) -> None:
    """Raises ValueError for NaN, +inf and (if `below`) -inf, naming the instances."""
    kinds = [(tensor.isnan(), "NaN"), (tensor.isposinf(), "+inf")]
    kinds += [(tensor.isneginf(), "-inf")] if below else []
    for bad, kind in kinds:
        if bool(bad.any()):
            rows = rows_where(bad.reshape(batch_shape.numel(), -1).any(1))
            raise ValueError(f"{name} hold {kind} in {describe_instances(rows, batch_shape)}.")


def _excluded_by_scores(scores: Tensor, batch_shape: torch.Size) -> Tensor | None:
    """Where the scores are not -inf; None where all are finite."""
    scores = scores.detach()
    if bool(torch.isfinite(scores.sum())):  # one pass, in the usual case
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


def _check_excludable(
    polytope: Polytope, regularizer: Regularizer | None, masks: list[Tensor], batch_dims: int
) -> None:
    """Excluding part i is a face of M only where M lies in {y_i >= 0}."""
    excluded = torch.stack(masks).logical_not().flatten(0, batch_dims).any(0).cpu()
    negative = parts_outside(polytope, 0.0, torch.inf, excluded)
    if bool(negative.any()):
        part = first_part(negative)
        raise unsupported(
            polytope,
            regularizer,
            f"keep (or a score of -inf) excludes part {part}, which can be as low as "
            f"{polytope.bounds[0][part].item():g}; a part can be excluded only where it is never "
            "negative.",
            "Declare a polytope with that part fixed instead.",
        )


def _checked_lengths(
    polytope: Polytope, scores: Tensor, batch_shape: torch.Size, lengths: Tensor
) -> Tensor:
    _check_tensor(lengths, "lengths")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be an integer tensor, got {lengths.dtype}.")
    if tuple(lengths.shape) != tuple(batch_shape):
        raise ValueError(
            f"lengths of shape {tuple(lengths.shape)} must have the batch shape {tuple(batch_shape)}."
        )
    lowest, highest = polytope.length_range
    wrong = (lengths < lowest) | (lengths > highest)
    if bool(wrong.any()):
        rows = rows_where(wrong)
        raise ValueError(
            f"lengths must lie in {lowest}..{highest} for {polytope}; "
            f"{describe_instances(rows, batch_shape)} has {lengths[wrong][0].item()}."
        )
    return polytope.padding(lengths.to(scores.device)).expand(scores.shape)
