"""The package as a user meets it: imports, documentation that runs, names."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import spigot
from spigot.polytopes import Euclidean, Gibbs, Polytope, UnsupportedProblem
from tests.structures import STRUCTURES

ROOT = Path(__file__).parent.parent
PACKAGES = [
    "spigot.polytopes",
    "spigot.polytopes.solvers",
    "spigot.pullback",
    "spigot.layers",
    "spigot.plot",
    "spigot.testing",
]
MODULES = sorted(
    {
        name
        for package in PACKAGES
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        for name in (package, module.name)
    }
)


def test_import_is_quick() -> None:
    """cvxpy and the like load when first needed, not with the package, nor with a fast rule."""
    code = (
        "import sys, torch, spigot\n"
        "from spigot.polytopes import Simplex\n"
        "Simplex(3).project(torch.zeros(3))\n"
        "heavy = ('cvxpy', 'cvxpylayers', 'networkx', 'matplotlib', 'scipy.sparse', 'highspy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented_with_an_example(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(set(module.__all__), key=module.__all__.index)
    for name in module.__all__:
        thing = getattr(module, name)
        assert inspect.getdoc(thing), name
        if (
            package in ("spigot.pullback", "spigot.layers", "spigot.plot")
            and callable(thing)
            and name not in NO_EXAMPLE
        ):
            assert ">>>" in (inspect.getdoc(thing) or ""), name


NO_EXAMPLE = {"Geometry", "Unconstrained", "Noise", "Objective"}


def test_modules_have_no_relative_imports() -> None:
    for folder in ("polytopes", "pullback", "layers", "examples", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*from \.", path.read_text(), re.MULTILINE), path


def test_imports_run_one_way() -> None:
    allowed = {"polytopes": {"polytopes"}, "pullback": {"polytopes", "pullback"}}
    for folder, names in allowed.items():
        for path in (ROOT / folder).rglob("*.py"):
            used = set(re.findall(r"^\s*from spigot\.(\w+)", path.read_text(), re.MULTILINE))
            assert used <= names, (path, used - names)


PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python" in path.read_text()
]


@pytest.mark.parametrize("page", PAGES)
def test_code_on_the_page_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python blocks run in order, in one namespace; `>>>` lines are compared with their output."""
    text = (ROOT / page).read_text()
    monkeypatch.chdir(tmp_path)  # for what they save
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    namespace = module.__dict__
    for block in blocks:
        if ">>>" not in block:
            exec(compile(block, page, "exec"), namespace)
            continue
        parsed = doctest.DocTestParser().get_doctest(block, namespace, page, page, 0)
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        runner.run(parsed, clear_globs=False)
        assert runner.failures == 0, block


def test_versions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    spigot.show_versions()
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["python"] == sys.version.split()[0]
    assert shown["torch"] == torch.__version__
    assert shown["accelerator"]


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", spigot.__version__)


def catalogue() -> dict[str, list[str]]:
    """README's table of structures: the roads of MAP, Euclidean and Gibbs by the class's name."""
    lines = (ROOT / "README.md").read_text().split("## Structures")[1].split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return {name: row[2:] for row in rows for name in re.findall(r"`([A-Z]\w+)", row[0])}


OWN_ROADS = ("Product", "Masked", "Face", "Affine", "Batch", "Polytope")


@pytest.mark.parametrize("name", sorted(set(catalogue()) - set(OWN_ROADS)))
def test_the_catalogue_names_the_roads_taken(name: str) -> None:
    examples = [row.polytope for row in STRUCTURES if type(row.polytope).__name__ == name]
    assert examples, f"{name} has no row in tests/structures.py"
    for regularizer, written in zip((None, Euclidean(), Gibbs()), catalogue()[name], strict=True):
        try:
            found = examples[0].which(regularizer).rule
        except UnsupportedProblem:
            found = "-"
        assert found == written, (name, regularizer)


def test_the_catalogue_is_complete() -> None:
    classes = {
        name
        for name, item in vars(spigot.polytopes).items()
        if name in spigot.polytopes.__all__ and isinstance(item, type) and issubclass(item, Polytope)
    }
    assert classes == set(catalogue())
