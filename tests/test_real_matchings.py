"""The CMU house and hotel: matchings of 30 landmarks between frames of a film."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spigot.polytopes import Euclidean, Matching, Shannon

FOLDER = Path(os.environ.get("SPIGOT_DATA", "")) / "matching_cmu_house_hotel"
EXAMPLES = Path(__file__).parent.parent / "examples"
POINTS = 30
pytestmark = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ or not FOLDER.is_dir(),
    reason="SPIGOT_DATA names no folder that holds matching_cmu_house_hotel",
)


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def frames() -> Any:
    return load("data").house_and_hotel(FOLDER)


@pytest.fixture(scope="module")
def shuffles() -> Tensor:
    """Ten orders in which a second frame's landmarks may come."""
    rng = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(POINTS, generator=rng) for _ in range(10)])


def similarities(frames: Any, gap: int) -> Tensor:
    """Minus squared distances of shape contexts in frames so far apart, `(pairs, 30, 30)`."""
    contexts = frames.contexts.sqrt()
    return -torch.cdist(contexts[: len(contexts) - gap], contexts[gap:]).square()


def test_sizes(frames: Any) -> None:
    assert frames.house.shape == (111, POINTS, 2)
    assert frames.hotel.shape == (101, POINTS, 2)
    assert frames.contexts.shape == (111, POINTS, 60)


def test_gold_matchings_are_vertices_and_labels_round_trip(shuffles: Tensor) -> None:
    matching = Matching(POINTS)
    vertices = matching.encode(shuffles).double()
    assert bool(matching.contains(vertices).all())
    assert torch.equal(matching.maximize(vertices), vertices)
    assert torch.equal(matching.decode(vertices), shuffles)
    noise = torch.rand(vertices.shape, generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(matching.decode(matching.maximize(noise + 30 * vertices)), shuffles)


@pytest.mark.parametrize("gap", [1, 30, 90])
@pytest.mark.parametrize("perfect", [True, False])
def test_map_has_the_value_that_scipy_finds(frames: Any, gap: int, perfect: bool) -> None:
    scores = similarities(frames, gap)
    if not perfect:
        scores = scores - scores.median()  # so that some corners are better left unmatched
    best = Matching(POINTS, perfect=perfect).maximize(scores)
    gains = scores.numpy() if perfect else scores.clamp_min(0).numpy()
    for row, found in zip(gains, (scores * best).sum((1, 2)).tolist(), strict=True):
        rows, columns = linear_sum_assignment(row, maximize=True)
        assert found == pytest.approx(float(row[rows, columns].sum()), rel=1e-12)


def test_neighbouring_frames_match_their_landmarks(frames: Any, shuffles: Tensor) -> None:
    """Also where the film is the hotel and all that is known of a landmark is its place."""
    matching = Matching(POINTS)
    gold = torch.arange(POINTS)
    assert bool((matching.decode(matching.maximize(similarities(frames, 1))) == gold).all())
    for film in (frames.house, frames.hotel):
        scores = -torch.cdist(film[:-1], film[1:]).square()
        found = matching.decode(matching.maximize(scores))
        assert float((found == gold).double().mean()) > 0.97
    hidden = similarities(frames, 1)[:10].gather(
        2, shuffles.argsort(1)[:, None].expand(10, POINTS, POINTS)
    )
    assert torch.equal(matching.decode(matching.maximize(hidden)), shuffles)


def test_points_without_a_partner(frames: Any) -> None:
    """The first 20 landmarks of one frame among all 30 of the next, and among 12: lengths."""
    scores = similarities(frames, 1)[:2]
    best = Matching(POINTS).maximize(scores, lengths=torch.tensor([[20, 30], [20, 12]]))
    assert best[0, :20].sum() == 20
    assert best[1, :, :12].sum() == 12
    assert torch.equal(Matching(POINTS).decode(best)[0, :20], torch.arange(20))


@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon()], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_relaxations_are_certified(frames: Any, regularizer: Any, scale: float) -> None:
    scores = scale * similarities(frames, 60)
    solution = Matching(POINTS).solve(scores, regularizer)
    assert solution.gap is not None
    value = (scores * solution.value).sum((1, 2)).abs()
    assert float((solution.gap.abs() / (1 + value)).max()) < 1e-10


def test_the_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    load("data")  # the example imports it by this name
    rows = load("matchings").main(["--data", str(FOLDER), "--steps", "40"])
    assert "best assignment" in capsys.readouterr().out
    accuracy = {name: found for name, _, found in rows}
    nearest, best = accuracy.pop("each corner's nearest"), accuracy.pop("best assignment")
    assert nearest[-1] < best[-1] < 0.75
    assert all(found[-1] > 0.9 for found in accuracy.values())
