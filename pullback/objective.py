"""`Objective`: layers that estimate an expected loss instead of returning a structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Loss", "Objective", "loss_at"]

Loss = Callable[[Tensor], Tensor]
"""mu `(*batch, *event)` -> each instance's own loss `(*batch,)`, never divided by the batch size."""


class Objective(nn.Module):
    """layer(scores, loss) -> `(*batch,)`: an estimate of an expected loss, to average and train on.

    Its gradient by the scores estimates that of the expectation; what the loss closes over, such as a
    decoder's parameters, gets the gradient of the estimate itself.

    Example:
        One of your own is a module with `forward`:

        >>> import torch
        >>> from spigot.pullback import Objective
        >>> class AtTheSoftmax(Objective):  # biased: the loss at the mean
        ...     def forward(self, scores, loss, **masks):
        ...         return loss(scores.softmax(-1))
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> AtTheSoftmax()(scores, lambda mu: mu[..., 0]).backward()
        >>> scores.grad
        tensor([ 0.2500, -0.2500])
    """

    def forward(
        self,
        scores: Tensor,
        loss: Loss,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The estimate, `(*batch,)`.

        Args:
            scores: `(*batch, *event)`.
            loss: mu `(*batch, *event)` -> each instance's own loss `(*batch,)`; called once a sample.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names.
            generator: for what is random.
        """
        raise NotImplementedError


def loss_at(loss: Loss, structures: Tensor, scores: Tensor) -> Tensor:  # (n, *event) -> (*batch)
    """Each instance's loss at its structure, handed over in the scores' shape and dtype.

    Raises:
        ValueError: the loss returned another shape than the batch's.
    """
    event = structures.dim() - 1
    batch_shape = tuple(scores.shape[: scores.dim() - event])
    value = loss(structures.reshape(scores.shape).to(scores.dtype))
    if tuple(value.shape) != batch_shape:
        raise ValueError(
            f"loss must return each instance's own loss, of shape {batch_shape}; it returned shape "
            f"{tuple(value.shape)}. Do not reduce over the batch inside it."
        )
    return value if value.is_floating_point() else value.to(scores.dtype)
