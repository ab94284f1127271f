"""The families of workloads, one file a kind of structure."""

from __future__ import annotations

from benchmarks.families import (
    anytime,
    engine,
    matching,
    paths,
    ranking,
    sequences,
    simplex,
    startup,
    trees,
)
from benchmarks.workload import Family

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (
    *simplex.FAMILIES,
    *ranking.FAMILIES,
    *engine.FAMILIES,
    *trees.FAMILIES,
    *anytime.FAMILIES,
    *sequences.FAMILIES,
    *matching.FAMILIES,
    *paths.FAMILIES,
    *startup.FAMILIES,
)
"""In the order in which they are measured."""
