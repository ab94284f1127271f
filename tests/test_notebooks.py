"""Notebooks run from beginning to end, each in a process of its own, without windows and data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    environment.pop("SPIGOT_DATA", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_notebooks_begin_with_a_title() -> None:
    assert NOTEBOOKS
    for name in NOTEBOOKS:
        cells = (FOLDER / f"{name}.py").read_text().split("# %%")
        assert cells[0].startswith("# ---\n# jupyter:"), name
        assert cells[1].startswith(" [markdown]\n# # "), name
