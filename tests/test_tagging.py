"""Taggings: the image of sequences under the sum over positions, at every scale."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from spigot.polytopes import Euclidean, Gibbs, NoStructure, Sequence, Tagging
from spigot.polytopes.solvers import ActiveSet, Clarabel
from tests.tensors import normal


def image(arcs: Tensor) -> Tensor:
    """Counts of transitions above tags."""
    return torch.cat([arcs[..., 1:, :, :].sum(-3), arcs.sum(-2)], -2)


def parts(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unary, transition = normal(4, 5, 3), normal(3, 3, seed=1)
    return scale * unary, scale * transition, scale * normal(3, seed=2), scale * normal(3, seed=3)


SIZES = torch.tensor([5, 1, 3, 2])


def test_packed_scores_add_up_to_those_of_the_sequence() -> None:
    unary, transition, start, end = parts()
    chain = Tagging(5, 3)
    ids = torch.tensor([[0, 0, 0, 2, 1], [2, -1, -1, -1, -1], [1, 0, 1, -1, -1], [2, 2, -1, -1, -1]])
    z = chain.encode(ids, SIZES)
    torch.testing.assert_close(chain.decode(z), ids)
    found = (Tagging.pack(unary, transition, start, end, lengths=SIZES) * z).sum((1, 2))
    for b, size in enumerate(SIZES.tolist()):
        tags = ids[b, :size].tolist()
        expected = start[tags[0]] + end[tags[-1]] + sum(unary[b, t, k] for t, k in enumerate(tags))
        expected = expected + sum((transition[i, j] for i, j in pairwise(tags)), torch.zeros(()))
        torch.testing.assert_close(found[b], expected)


@pytest.mark.parametrize("scale", [1.0, 20.0, 60.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_the_image_of_the_chain_over_arcs(scale: float, dtype: torch.dtype) -> None:
    unary, transition, start, end = (part.to(dtype) for part in parts(scale))
    chain, over = Tagging(5, 3), Sequence(5, 3)
    scores = Tagging.pack(unary, transition, start, end, lengths=SIZES)
    arcs = Sequence.pack(unary, transition, start, end, lengths=SIZES).double()
    near = 1e-12 if dtype == torch.float64 else 2e-6
    for keep in (None, torch.rand(4, 8, 3, generator=torch.Generator().manual_seed(3)) > 0.2):
        kept = None
        if keep is not None:
            keep[:, 3:, 0] = keep[:, 0, 0] = True  # tag 0 all along
            kept = keep[:, None, :3] & keep[:, 3:, None]
            kept[:, 0] = keep[:, 3, None]
        mine: dict[str, Any] = {"lengths": SIZES, "keep": keep}
        theirs: dict[str, Any] = {"lengths": SIZES, "keep": kept}
        for omega in (None, Gibbs()):
            found = chain.maximize(scores, omega, **mine)
            torch.testing.assert_close(
                found.double(), image(over.maximize(arcs, omega, **theirs)), atol=near, rtol=near
            )
        log_z = chain.log_partition(scores, **mine).double()
        torch.testing.assert_close(log_z, over.log_partition(arcs, **theirs), atol=near, rtol=near)


def test_derivatives_are_those_of_the_chain_over_arcs() -> None:
    unary, transition, *_ = parts()
    pull = normal(4, 8, 3, seed=9)
    pulled: list[Tensor] = []
    for chain in (Tagging, Sequence):
        leaves = [unary.clone().requires_grad_(), transition.clone().requires_grad_()]
        found = chain(5, 3).marginals(chain.pack(*leaves), lengths=SIZES)
        ((found if chain is Tagging else image(found)) * pull).sum().backward()
        pulled += [leaf.grad for leaf in leaves if leaf.grad is not None]
    torch.testing.assert_close(pulled[:2], pulled[2:], atol=1e-12, rtol=1e-12)
    scores = Tagging.pack(unary, transition)[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: Tagging(5, 3).log_partition(s), scores)
    assert torch.autograd.gradgradcheck(lambda s: Tagging(5, 3).log_partition(s), scores)


def test_projections_agree_by_every_road() -> None:
    scores = normal(3, 7, 3)
    chain = Tagging(4, 3)
    found = chain.project(scores)
    for solver in (ActiveSet(), Clarabel()):
        other = chain.maximize(scores, Euclidean(), solver=solver)
        torch.testing.assert_close(found, other, atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [0.01, 0.1])
def test_projections_of_small_scores_end(scale: float) -> None:
    """The face has more sequences than directions: they change places in the last digits for ever."""
    chain, scores = Tagging(8, 4), scale * normal(20, *Tagging(8, 4).event_shape, seed=1)
    ours = chain.solve(scores, Euclidean())
    assert int(ours.iterations.max()) < 200
    other = chain.solve(scores, Euclidean(), solver=Clarabel())
    torch.testing.assert_close(ours.value, other.value, rtol=0, atol=1e-9)


def test_projections_end_where_rounding_holds_their_gap() -> None:
    """These words' scores are of rank 2, as of a network at its start: of 280 vertices some stayed
    undecided while the gap was 1e-12, four times as many steps as there are vertices."""
    torch.manual_seed(4)
    mean, words, tags = torch.randn(13), torch.randn(4, 21, 2), torch.randn(4, 2, 13)
    unary = 0.1 * mean + 0.1 * words @ tags + 0.5 * (torch.arange(13) == 12)
    transition = 0.01 * torch.randn(13, 13)
    found = Tagging(21, 13).solve(Tagging.pack(unary, transition)[2], Euclidean())
    assert found.gap is not None
    assert found.weights is not None
    assert found.gap <= 1e-10
    assert found.iterations <= 2 * (found.weights > 0).sum()


def test_ties_go_to_the_lowest_tags_from_the_last_one_back() -> None:
    chain = Tagging(3, 2)
    assert chain.decode(chain.maximize(torch.zeros(5, 2))).tolist() == [0, 0, 0]
    best = max(product(range(2), repeat=3), key=lambda tags: (tags[2] == 0, tags[1] == 1))
    scores = torch.zeros(5, 2)
    scores[3, 1] = 1.0  # the middle
    assert chain.decode(chain.maximize(scores)).tolist() == list(best)


def test_masks_without_a_sequence_are_named() -> None:
    keep = torch.ones(2, 5, 2, dtype=torch.bool)
    keep[1, :2] = False  # no transition
    with pytest.raises(NoStructure, match="instance 1"):
        Tagging(3, 2).maximize(torch.zeros(2, 5, 2), keep=keep)
    with pytest.raises(NoStructure, match="instance 1"):
        Tagging(3, 2).log_partition(torch.zeros(2, 5, 2), keep=keep)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        Tagging.pack(torch.zeros(4, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 1"):
        Tagging(0, 2)
