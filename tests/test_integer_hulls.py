"""The example of integer hulls runs, with and without its data, and its step helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_demo import load


def test_the_integer_hulls_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPIGOT_DATA", str(tmp_path))  # a folder without the data set
    load("integer_hulls").main(["--items", "10"])
    printed = capsys.readouterr().out
    assert "Knapsack (generated): 10 half-hours" in printed
    assert "the shortest tour uses the roads" in printed
    steps = [line.split("best by")[1].split() for line in printed.splitlines() if "SPIGOT" in line]
    assert len(steps) == 2
    assert all(float(after) <= float(before) for before, _, after, *_ in steps)
