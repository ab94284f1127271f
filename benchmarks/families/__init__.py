"""The families of workloads, one file a kind of structure."""

from __future__ import annotations

from benchmarks.families import engine, sequences, simplex, trees
from benchmarks.workload import Family

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (
    *simplex.FAMILIES,
    *engine.FAMILIES,
    *trees.FAMILIES,
    *sequences.FAMILIES,
)
"""In the order in which they are measured."""
