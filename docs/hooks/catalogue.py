"""Pages that are made from the code when the site is built: catalogues and the reference."""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("agg")

import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from mkdocs.plugins import event_priority  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

import spigot.polytopes as polytopes  # noqa: E402
from spigot import layers, plot, pullback, testing  # noqa: E402
from spigot.polytopes import Polytope, Regularizer, UnsupportedProblem, solvers  # noqa: E402
from tests.structures import STRUCTURES  # noqa: E402

PACKAGES = {
    "polytopes": polytopes,
    "solvers": solvers,
    "pullback": pullback,
    "layers": layers,
    "testing": testing,
    "plot": plot,
}
PROBLEMS: dict[str, Regularizer | None] = {
    "MAP": None,
    "`Euclidean()`": polytopes.Euclidean(),
    "`Gibbs()`": polytopes.Gibbs(),
    "`Shannon()`": polytopes.Shannon(),
    "`FermiDirac()`": polytopes.FermiDirac(),
    "`Tsallis(1.5)`": polytopes.Tsallis(1.5),
}


@event_priority(100)
def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures, and the notebooks, before these are executed."""
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.py")):
        place = str(path.relative_to(ROOT / "examples"))
        files.append(File(place, str(ROOT / "examples"), config.site_dir, config.use_directory_urls))
    for uri, content in made():
        files.append(File.generated(config, uri, content=content))
    return files


def made() -> Iterator[tuple[str, str | bytes]]:
    """Every generated file: its place, and what is in it."""
    drawn = {name: picture(draw) for name, draw in PICTURES.items()}
    for name, png in drawn.items():
        yield f"images/structures/{name}.png", png
    yield "structures.md", structures(set(drawn))
    yield "estimators.md", estimators()
    for name, package in PACKAGES.items():
        yield f"reference/{name}.md", reference(package)


# --- structures -----------------------------------------------------------------------------------


def structures(drawn: set[str]) -> str:
    """A section for each class: its set, its roads, its picture."""
    parts = [
        "# Structures",
        "Made from the code. Each is a set of vectors M = conv(V); *road* is what `M.which(Omega)` says "
        "runs, *cost* an instance's, and roads that are not exact end at a tolerance. Names lead to the "
        "reference.",
    ]
    for cls in classes():
        example = next((row.polytope for row in STRUCTURES if type(row.polytope) is cls), None)
        parts += [
            f"## {cls.__name__}",
            f"[`{signature(cls)}`][spigot.polytopes.{cls.__name__}]",
            opening(cls),
        ]
        if cls.__name__ in drawn:
            parts.append(f"![{cls.__name__}](images/structures/{cls.__name__}.png)")
        if example is not None:
            parts.append(roads(example))
    return "\n\n".join(parts) + "\n"


def classes() -> list[type[Polytope]]:
    found = [getattr(polytopes, name) for name in polytopes.__all__]
    return [
        cls
        for cls in found
        if inspect.isclass(cls) and issubclass(cls, Polytope) and cls is not Polytope
    ]


def signature(cls: type) -> str:
    names = [
        name if parameter.default is inspect.Parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(cls).parameters.items()
    ]
    return f"{cls.__name__}({', '.join(names)})"


def opening(thing: Any) -> str:
    """The docstring before its sections; a line that starts with { is the set."""
    text = inspect.getdoc(thing) or ""
    return re.split(r"\n\n(?=Args:|Raises:|Example|References:|Attributes:)", text)[0]


def roads(example: Polytope) -> str:
    lines = ["| problem | road | exact | cost |", "| --- | --- | --- | --- |"]
    for name, omega in PROBLEMS.items():
        try:
            route = example.which(omega)
        except UnsupportedProblem:
            continue
        lines.append(
            f"| {name} | {route.rule} | {'yes' if route.exact else 'to a tolerance'} | {route.cost} |"
        )
    return "\n".join(lines)


# --- pictures -------------------------------------------------------------------------------------


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def marginals_and_best(M: Polytope, **names: Any) -> Callable[[], Any]:
    """Cells in shades of the projection, the best structure outlined."""

    def draw() -> Any:
        s = numbers(*M.event_shape)
        return plot.cells(M.project(0.6 * s), M.maximize(s), **names)

    return draw


def grid() -> Any:
    M, costs = polytopes.GridPath(8, 12, neighbours=8), numbers(8, 12).abs() + 0.1
    return plot.grid_path(M.maximize(-costs), background=costs, source=(0, 0), target=(7, 11))


def alignment() -> Any:
    M, s = polytopes.Alignment(6, 9), numbers(6, 9)
    return plot.alignment(M.maximize(s), marginals=M.marginals(s))


def matching() -> Any:
    M, s = polytopes.Matching(5, 5), numbers(5, 5)
    return plot.matching(M.project(s), left="abcde", right="vwxyz", true=M.maximize(s))


def tree(M: Polytope) -> Callable[[], Any]:
    words = ["the", "small", "dog", "saw", "a", "cat"]

    def draw() -> Any:
        s = numbers(6, 6)
        return plot.arcs(M.marginals(s), words, other=M.maximize(s))

    return draw


PICTURES: dict[str, Callable[[], Any]] = {
    "Simplex": lambda: plot.polytope(polytopes.Simplex(3)),
    "Hypercube": lambda: plot.polytope(polytopes.Hypercube(3)),
    "Subset": lambda: plot.polytope(polytopes.Subset(4, 2)),
    "Permutahedron": lambda: plot.polytope(polytopes.Permutahedron((4.0, 3.0, 2.0, 1.0))),
    "Matching": matching,
    "Transport": marginals_and_best(polytopes.Transport((1.0, 2.0, 1.0), (2.0, 1.0, 1.0))),
    "Arborescence": tree(polytopes.Arborescence(6)),
    "ProjectiveTree": tree(polytopes.ProjectiveTree(6)),
    "Alignment": alignment,
    "GridPath": grid,
    "Xor": lambda: plot.polytope(polytopes.Xor(3)),
    "Or": lambda: plot.polytope(polytopes.Or(3)),
    "AtMostOne": lambda: plot.polytope(polytopes.AtMostOne(3)),
    "Imply": lambda: plot.polytope(polytopes.Imply(2)),
}


def picture(draw: Callable[[], Any]) -> bytes:
    ax, file = draw(), io.BytesIO()
    ax.figure.savefig(file, dpi=90, format="png")
    pyplot.close("all")
    return file.getvalue()


# --- estimators and reference ---------------------------------------------------------------------


def estimators() -> str:
    """The pull-backs' table with what each sets, then every exported estimator, layer and loss."""
    rows = pullback.PullBack.rows
    fields = ("forward", "start", "geometry", "loss", "noise")
    usual = pullback.PullBack()
    lines = [f"| estimator | {' | '.join(fields)} |", f"| --- |{' --- |' * len(fields)}"]
    for name, settings in rows.items():
        cells = [_cell(settings.get(field, getattr(usual, field))) for field in fields]
        lines.append(f"| [`{name}`][spigot.pullback.{name}] | {' | '.join(cells)} |")
    parts = [
        "# Estimators",
        "Made from the code. A pull-back takes steps from *start* against the loss's gradient, in a "
        "*geometry*, and hands back the gradient of the Fenchel-Young loss of *loss* at the target: see "
        "[pulling back](concepts/pulling-back.md).",
        "\n".join(lines),
    ]
    for package in (pullback, layers):
        parts.append(f"## spigot.{package.__name__.split('.')[-1]}")
        table = ["| name | what it is |", "| --- | --- |"]
        for name in package.__all__:
            thing = getattr(package, name)
            first = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            table.append(f"| [`{name}`][{package.__name__}.{name}] | {first} |")
        parts.append("\n".join(table))
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    return "MAP" if value is None else f"`{value}`"


def reference(package: Any) -> str:
    parts = [f"# {package.__name__}", inspect.getdoc(package) or ""]
    parts += [f"::: {package.__name__}.{name}" for name in package.__all__]
    return "\n\n".join(parts) + "\n"
