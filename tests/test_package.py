"""The package as a user meets it: imports, documentation that runs, names."""

from __future__ import annotations

import ast
import builtins
import doctest
import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

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


# --- what the docstring of a public name has to say --------------------------------------------------

DOCUMENTED = ["spigot", *PACKAGES, "spigot.pullback.diagnostics"]
PUBLIC: dict[str, Any] = {
    f"{package}.{name}": getattr(module, name)
    for package in DOCUMENTED
    for module in [importlib.import_module(package)]
    for name in module.__all__
    if not isinstance(getattr(module, name), types.ModuleType | str)
}

# A name, a rule that it need not keep, and why.
EXEMPT = {
    ("spigot.pullback.Geometry", "docstring"): "an alias of types: nothing to make or call",
    ("spigot.pullback.diagnostics.default_estimators", "Raises"): "only estimators of its own are asked",
    **{
        (f"spigot.polytopes.solvers.{name}", "shape"): "settings alone: tensors go to the verb it is for"
        for name in (
            "BatchedNewton",
            "Clarabel",
            "Consensus",
            "Cvxpy",
            "CvxpyLayers",
            "Enumerate",
            "Newton",
            "PDHG",
        )
    },
}

SHAPE = re.compile(r"`\((|\*\w+|[^()`]*,[^()`]*)\)`")  # symbols: `(*batch, d)`, `(*event)`, `()`
PARTS = re.compile(rf"\bParts: [^.]*{SHAPE.pattern}")  # of a structure


@pytest.mark.parametrize("package", DOCUMENTED)
def test_public_names_are_listed_once(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert list(module.__all__) == list(dict.fromkeys(module.__all__))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    """Arguments, shapes, what is raised, and an example, of the name and of its methods."""
    assert not [fault for fault in faults(name) if (name, fault[0]) not in EXEMPT]


@pytest.mark.parametrize(("name", "rule"), EXEMPT)
def test_exemptions_are_needed(name: str, rule: str) -> None:
    assert rule in dict(faults(name))


CUTS = [
    ("polytopes.Simplex", r"(?s).*", "docstring"),
    ("polytopes.Simplex", r">>>", "Example"),
    ("polytopes.Simplex", r"Parts: .*", "shape"),
    ("polytopes.Simplex", r"\bd:", "Args"),
    ("polytopes.Simplex", r"Raises:", "Raises"),
    ("polytopes.Simplex", r"TypeError|ValueError", "Raises"),
    ("polytopes.Xor", r"Raises:", "Raises"),
    ("polytopes.Polytope.gap", r"\bscores:", "Args"),
    ("polytopes.Polytope.gap", r"UnsupportedProblem:", "Raises"),
    ("polytopes.Polytope.bounds", r"(?s).*", "docstring"),
    ("polytopes.solvers.ActiveSet", r"Raises:", "Raises"),
    ("pullback.SPIGOT", r"\breduction:", "Args"),
    ("pullback.SPIGOT", r"Raises:", "Raises"),
    ("pullback.SPIGOT", SHAPE.pattern, "shape"),
    ("layers.Relaxed", r"TypeError:", "Raises"),
    ("layers.Relaxed.forward", SHAPE.pattern, "shape"),
    ("plot.cells", r"Raises:", "Raises"),
    ("plot.cells", SHAPE.pattern, "shape"),
]


@pytest.mark.parametrize(("name", "cut", "rule"), CUTS)
def test_a_docstring_that_is_cut_fails(
    name: str, cut: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, method = (f"spigot.{name}", "", "")
    if name not in PUBLIC:
        name, _, method = name.rpartition(".")
    thing = dict(own_methods(PUBLIC[name]))[method] if method else PUBLIC[name]
    assert rule not in dict(faults(name))
    monkeypatch.setattr(thing, "__doc__", re.sub(cut, "", thing.__doc__ or ""))
    assert rule in dict(faults(name))


def refuse(value: int) -> None:
    if value < 0:
        raise UnsupportedProblem


class Refusing:
    def __init__(self, value: int) -> None:
        self.look(value)

    def look(self, value: int) -> None:
        refuse(value)


def test_a_raise_is_found_wherever_it_stands() -> None:
    made = constructors(Refusing)
    assert raised(refuse) == {UnsupportedProblem} and not raised(made[0])
    assert may_raise(refuse) and may_raise(made[0], Refusing)
    assert not may_raise(docstring)


def faults(name: str) -> list[tuple[str, str]]:
    """The rules that a public name or a method of it breaks, and where."""
    thing, text = PUBLIC[name], docstring(PUBLIC[name])
    if not text:
        return [("docstring", name)]
    kind = thing if isinstance(thing, type) else None
    methods = own_methods(thing)
    called = [function for method, function in methods if method in ("forward", "__call__")]
    given = arguments(thing)
    stated = "\n".join([text, *map(docstring, called)])
    found = [] if ">>>" in text else [("Example", name)]
    found += [("Args", f"{name}: {missing}") for missing in sorted(given - named(text))]
    for function in constructors(thing) if given else []:
        found += unsaid(function, text, kind, helpers=True)
    for function in called:
        found += unsaid(function, stated, kind, helpers=True)
    if has_tensors(thing) and not (PARTS if is_structure(thing) else SHAPE).search(stated):
        found.append(("shape", name))
    for method, function in methods:
        found += method_faults(thing, method, function)
    return found


def method_faults(owner: type, method: str, function: types.FunctionType) -> list[tuple[str, str]]:
    """Those of a method, whose arguments may be told by the method that it overrides."""
    text, where = docstring(function), f"{owner.__name__}.{method}"
    if not text:
        return [("docstring", where)]
    given = arguments(function)
    told = {
        name
        for parent in owner.__mro__
        for name in named(docstring(function_of(vars(parent).get(method))))
    }
    lacking = sorted(given - told) if len(given) > 1 else []
    return [("Args", f"{where}: {missing}") for missing in lacking] + unsaid(function, text, owner)


def unsaid(
    function: types.FunctionType, text: str, owner: type | None, helpers: bool = False
) -> list[tuple[str, str]]:
    """What the function raises that the text does not name; with `helpers` also what it calls."""
    said = sections(text).get("Raises", "") or (text if text.startswith("Raises ") else "")
    found = [
        error.__name__
        for error in sorted(raised(function, owner), key=str)
        if not any(each.__name__ in said for each in error.__mro__[:-2])
        and not (said and error is Exception)
    ]
    if helpers and not said and not found and may_raise(function, owner):
        found = ["what it calls"]
    return [("Raises", f"{function.__qualname__}: {error}") for error in found]


def docstring(thing: Any) -> str:
    """Its own, not an inherited one."""
    documented = isinstance(thing, type | types.FunctionType)
    return inspect.cleandoc(thing.__doc__ or "") if documented else ""


def sections(text: str) -> dict[str, str]:
    """What stands below `Args:` and the like."""
    parts = re.split(r"^(Args|Attributes|Returns|Raises|Example|References):$", text, flags=re.MULTILINE)
    found: dict[str, str] = {}
    for header, body in zip(parts[1::2], parts[2::2], strict=True):
        found[header] = found.get(header, "") + body
    return found


def named(text: str) -> set[str]:
    """The arguments and attributes that it describes; one line may describe several."""
    lines = "".join(sections(text).get(header, "") for header in ("Args", "Attributes"))
    entries: list[str] = re.findall(r"^ {4}([\w*, ]+):", lines, re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(("spigot", __name__))


def function_of(thing: Any) -> types.FunctionType | None:
    """The function of ours behind a method, a property or a decorator."""
    for kind, name in ((property, "fget"), (functools.cached_property, "func")):
        thing = getattr(thing, name) if isinstance(thing, kind) else thing
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    written = isinstance(thing, types.FunctionType) and not thing.__code__.co_filename.startswith("<")
    return thing if written and ours(thing) else None


def own_methods(thing: Any) -> list[tuple[str, types.FunctionType]]:
    """The public methods and properties that a class defines itself."""
    found = (
        [(name, function_of(value)) for name, value in vars(thing).items()]
        if isinstance(thing, type)
        else []
    )
    return [
        (name, function)
        for name, function in found
        if function and (name == "__call__" or not name.startswith("_"))
    ]


def constructors(thing: Any) -> list[types.FunctionType]:
    """What runs when a class of ours is called, that of its parents too; a function itself."""
    if not isinstance(thing, type):
        return [thing]
    found = [
        function_of(vars(owner).get(name))
        for owner in thing.__mro__
        for name in ("__new__", "__init__", "__post_init__")
    ]
    return [function for function in found if function]


def arguments(thing: Any) -> set[str]:
    """The names of what is handed over."""
    if not isinstance(thing, type):
        names = inspect.signature(thing).parameters
        return {name for name in names if name not in ("self", "cls", "args", "kwargs")}
    made = [function for function in constructors(thing) if function.__name__ != "__post_init__"]
    if made:
        return arguments(made[0])
    return {field.name for field in fields(thing) if field.init} if is_dataclass(thing) else set()


@functools.cache
def source(function: types.FunctionType) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def resolved(node: ast.AST, function: types.FunctionType, owner: type | None) -> Any:
    """What a name in a function stands for, as far as modules and the class tell; else None."""
    if isinstance(node, ast.Name):
        return (
            owner
            if node.id == "self"
            else function.__globals__.get(node.id, vars(builtins).get(node.id))
        )
    if isinstance(node, ast.Attribute):
        return getattr(resolved(node.value, function, owner), node.attr, None)
    return None


def raised(function: types.FunctionType, owner: type | None = None) -> set[type[BaseException]]:
    """The errors of its own `raise` statements; `Exception` where the source does not say which."""
    found: set[type[BaseException]] = set()
    for node in ast.walk(source(function)):
        if isinstance(node, ast.Raise) and node.exc:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            error = resolved(made, function, owner)
            if isinstance(error, types.FunctionType):  # one that makes the error, and says which
                error = error.__globals__.get(str(error.__annotations__.get("return")))
            found.add(
                error if isinstance(error, type) and issubclass(error, BaseException) else Exception
            )
    return found - {NotImplementedError}


def may_raise(
    function: types.FunctionType, owner: type | None = None, seen: set[types.FunctionType] | None = None
) -> bool:
    """Whether it, or a function or class of ours that it calls by name, has a `raise` statement."""
    seen = set() if seen is None else seen
    if function in seen:
        return False
    seen.add(function)
    if raised(function, owner):
        return True
    for node in ast.walk(source(function)):
        called = resolved(node.func, function, owner) if isinstance(node, ast.Call) else None
        if called is None or not ours(called):
            continue
        inner = called if isinstance(called, type) else owner
        reached = constructors(called) if isinstance(called, type) else [function_of(called)]
        if any(each and may_raise(each, inner, seen) for each in reached):
            return True
    return False


def has_tensors(thing: Any) -> bool:
    """Whether an annotation of its own, of a field or of a public method names tensors."""
    if thing.__module__.startswith("spigot.plot"):
        return True  # anything like an array
    held = [thing] if isinstance(thing, type) else []
    held += [function for _, function in own_methods(thing)] if held else [thing]
    scope = vars(sys.modules[thing.__module__])
    words = {
        word
        for each in held
        for annotation in inspect.get_annotations(each).values()
        for word in re.findall(r"\w+", str(annotation))
    }
    return any(Tensor in within(scope.get(word)) for word in words)


def within(alias: Any) -> list[Any]:
    """A type and those that it is made of."""
    parts = alias if isinstance(alias, list) else get_args(alias)
    return [alias, *(inner for part in parts for inner in within(part))]


def is_structure(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Polytope) and thing is not Polytope
