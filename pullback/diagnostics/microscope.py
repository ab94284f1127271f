"""The microscope on a live model: what the gradients of a layer look like as training goes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from spigot.polytopes import Polytope
from spigot.polytopes.settings import counts
from spigot.pullback.diagnostics.bench import Bench, seeded
from spigot.pullback.diagnostics.measure import cosine_of, norm_of, null_share, ratio, sizes
from spigot.pullback.diagnostics.stated import Exact, ExpectedLoss, Stated
from spigot.pullback.diagnostics.table import data_frame, fixed_width, html_table, share, short, signed
from spigot.pullback.objective import Loss, Objective
from spigot.pullback.reduction import Reduction, check_reduction, divisor

__all__ = ["Glance", "Microscope", "watch"]


@dataclass(frozen=True)
class Glance:
    r"""A layer's gradients at one training step, those of each instance's own loss.

    The last four are NaN where no loss is known; `upstream` where the layer is an `Objective`.

    Attributes:
        step: how many training calls of the layer came before.
        upstream: the size of the loss's gradient at the structure, in the mean over the instances.
        surrogate: that of the gradient handed to the scores.
        null: the share of surrogates that are exactly 0, among the instances whose exact gradient is
            not; where no loss is known, whose upstream gradient is not.
        objective: the stated objective, in the mean.
        cosine: of the surrogate with the exact gradient, in the mean over the instances that have one.
        norm: \|surrogate\| / \|exact gradient\| over the batch.
        error: the standard error of the exact gradient over its norm; 0 where it is exact.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STEMarginals
        >>> from spigot.pullback.diagnostics import watch
        >>> layer, scores = Argmax(Simplex(2), STEMarginals()), torch.zeros(2, requires_grad=True)
        >>> def loss(mu):
        ...     return mu[..., 0]
        >>> with watch(layer, every=1, loss=loss) as seen:
        ...     loss(layer(scores)).backward()
        >>> round(seen.glances[0].cosine, 6), seen.glances[0].null
        (1.0, 0.0)
    """

    step: int
    upstream: float
    surrogate: float
    null: float
    objective: float = torch.nan
    cosine: float = torch.nan
    norm: float = torch.nan
    error: float = torch.nan


class Microscope(AbstractContextManager["Microscope"]):
    """What `watch` returns: glances at a layer's gradients until it is removed; prints as a table.

    Args:
        layer, every, loss, objective, reduction: as for `watch`.
        polytope: M.

    Attributes:
        glances: one every N training steps.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback.diagnostics import watch
        >>> layer, scores = nn.Softmax(-1), torch.zeros(3, requires_grad=True)
        >>> seen = watch(layer, every=1, polytope=Simplex(3))
        >>> for step in range(4):
        ...     layer(scores)[0].backward()
        ...     if step == 1:
        ...         seen.remove()
        >>> [glance.step for glance in seen.glances]
        [0, 1]
    """

    def __init__(
        self,
        layer: nn.Module,
        polytope: Polytope,
        every: int,
        loss: Loss | None,
        objective: Stated,
        reduction: Reduction,
    ) -> None:
        self.glances: list[Glance] = []
        self._polytope, self._every = polytope, every
        self._loss, self._objective, self._reduction = loss, objective, reduction
        self._calls = 0
        self._look: _Look | None = None
        self._handles = [
            layer.register_forward_pre_hook(self._before, with_kwargs=True),
            layer.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off the layer; the glances stay."""
        for handle in self._handles:
            handle.remove()

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __str__(self) -> str:
        return fixed_width(*self._table())

    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def to_pandas(self) -> Any:
        """The glances as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame([asdict(glance) for glance in self.glances])

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        header = tuple(each.name for each in fields(Glance))
        shown: dict[str, Any] = {"step": str, "null": share, "cosine": signed}
        rows = [
            tuple(shown.get(name, short)(getattr(glance, name)) for name in header)
            for glance in self.glances
        ]
        return header, rows

    # The scores pass through an alias: its gradient is that of this layer alone, whoever else uses
    # the scores. The layer computes, and hands on, what it would without.

    def _before(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._look = None
        scores: Any = args[0] if args else kwargs.get("scores")
        if not isinstance(scores, Tensor) or not (torch.is_grad_enabled() and scores.requires_grad):
            return None
        step, self._calls = self._calls, self._calls + 1
        if step % self._every:
            return None
        self._look = _Look(step, scores.detach())
        alias = scores.view_as(scores)
        cast(Any, alias).register_hook(partial(self._arrived, self._look))
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "scores": alias})

    def _after(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        look, self._look = self._look, None
        if look is None:
            return
        look.masks = {name: kwargs.get(name) for name in ("lengths", "keep", "params")}
        look.loss = self._loss
        if isinstance(layer, Objective):
            look.loss = look.loss or (args[1] if len(args) > 1 else kwargs.get("loss"))
            return
        look.loss = look.loss or kwargs.get("downstream")
        point = cast(Any, output)[0] if isinstance(output, tuple) else output
        if isinstance(point, Tensor) and point.requires_grad:
            cast(Any, point).register_hook(look.came)

    def _arrived(self, look: _Look, surrogate: Tensor) -> None:
        with torch.no_grad(), seeded(0, surrogate.device):
            self.glances.append(self._glance(look, surrogate))

    def _glance(self, look: _Look, surrogate: Tensor) -> Glance:
        event = len(self._polytope.event_shape)
        n = surrogate.shape[: surrogate.dim() - event].numel()
        scale = divisor(self._reduction, n, surrogate.double())
        found = scale * surrogate.double().reshape(n, -1)
        upstream = None if look.upstream is None else scale * look.upstream.double().reshape(n, -1)
        exact = self._exact(look)
        wanted = upstream if exact is None else exact.gradient.flatten(1)
        return Glance(
            look.step,
            torch.nan if upstream is None else sizes(upstream).mean().item(),
            sizes(found).mean().item(),
            null_share(found[None], torch.ones_like(found) if wanted is None else wanted),
            *(() if exact is None else _against(found, exact)),
        )

    def _exact(self, look: _Look) -> Exact | None:
        if look.loss is None or not look.scores.numel():
            return None
        return self._objective.exact(Bench.of(self._polytope, look.scores, look.loss, **look.masks))


def _against(found: Tensor, exact: Exact) -> tuple[float, float, float, float]:
    """Glance's last four."""
    true = exact.gradient.flatten(1)
    size = norm_of(true)
    return (
        exact.here.mean().item(),
        cosine_of(found[None], true),
        ratio(norm_of(found), size),
        ratio(norm_of(exact.error), size),
    )


@dataclass(eq=False)
class _Look:
    """One forward that is looked at."""

    step: int
    scores: Tensor
    upstream: Tensor | None = None
    loss: Loss | None = None
    masks: dict[str, Any] = field(default_factory=dict[str, Any])

    def came(self, gradient: Tensor) -> None:
        """The upstream gradient, kept for when the layer's own arrives."""
        self.upstream = gradient.detach()


def watch(
    layer: nn.Module,
    every: int = 100,
    *,
    loss: Loss | None = None,
    objective: Stated | None = None,
    reduction: Reduction = "mean",
    polytope: Polytope | None = None,
) -> Microscope:
    """Glances at the gradients of a layer on every N-th training call, without influence on it.

    A training call is one whose scores need a gradient. Sizes and null gradients are always seen; the
    exact gradient where the loss is known: the layer's own `downstream=` (or an `Objective`'s loss),
    or `loss`. The loss is then evaluated once a structure in the backward, without a graph and under
    a random state of its own; modules in it that count their calls, such as batch norms, will notice.

    Args:
        layer: an `Argmax`, or any module from scores to a structure, or an `Objective`.
        every: N.
        loss: mu `(*batch, *event)` -> each instance's own loss `(*batch,)`, of the batch in training.
        objective: whose gradient is the exact one; `ExpectedLoss()` unless told.
        reduction: what the training loss is divided by, as for the estimators.
        polytope: M; the layer's own unless told.

    Returns:
        A `Microscope`, a context manager too.

    Raises:
        TypeError: the layer has no polytope, and none was given.
        ValueError: every below 1, or a reduction that is none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback.diagnostics import watch
        >>> layer, scores = nn.Softmax(-1), torch.zeros(2, 3, requires_grad=True)
        >>> with watch(layer, every=2, polytope=Simplex(3)) as seen:
        ...     for _ in range(4):
        ...         layer(scores)[..., 0].mean().backward()
        >>> print(seen)
        step  upstream  surrogate  null  objective  cosine  norm  error
        ----  --------  ---------  ----  ---------  ------  ----  -----
        0     1         0.27       0%    -          -       -     -
        2     1         0.27       0%    -          -       -     -
    """
    counts("watch", every=every)
    check_reduction(reduction)
    polytope = polytope or getattr(layer, "polytope", None)
    if not isinstance(polytope, Polytope):
        raise TypeError(
            f"{type(layer).__name__} has no polytope of its own: watch(layer, polytope=...)."
        )
    return Microscope(layer, polytope, every, loss, objective or ExpectedLoss(), reduction)
