"""The generic engine's memory grows with the batch and with its parts and rows, no faster."""

from __future__ import annotations

import sys

import pytest

from benchmarks.memory import measured

NUMBERS = 20  # float64 numbers for each part and row of an instance
SPARE = 4_000_000  # bytes that do not grow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks since a moment are Linux's")


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        ("facets", 4, 8192),  # the batch's square would be 537 MB,
        ("grid", 32, 16),  # and an instance's parts', 252 MB each
    ],
)
def test_memory_is_linear(name: str, size: int, batch: int) -> None:
    """A bound that is linear in both holds at sizes where a square of either would break it."""
    memory, _, unknowns = measured(name, size, batch, threads=1)
    assert 0 < memory <= SPARE + 8 * NUMBERS * unknowns * batch
