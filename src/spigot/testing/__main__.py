"""Checks from the shell, of one structure or of a whole table of them.

`python -m spigot.testing package.module:Name --args ...` checks one; where the name is a list of
polytopes, or of items that have a `name`, a `polytope` and a `twin` (as
`tests.structures:STRUCTURES`), all of them; with no name a few, to see that an installation works.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from typing import Any, cast

from spigot.polytopes import Polytope
from spigot.testing.checks import check
from spigot.testing.report import Report, whole_table

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """0 if the check passes, 1 if it fails, 2 if the arguments are off."""
    parser = argparse.ArgumentParser(
        prog="python -m spigot.testing",
        description="Checks every fact and fast rule of a polytope against the generic roads and cvxpy.",
    )
    parser.add_argument(
        "target",
        nargs="?",
        default="spigot.testing.installed:FEW",
        help="package.module:Name: a Polytope, a class of them, or a table; else a few small ones",
    )
    parser.add_argument("--args", nargs="*", default=[], help="its arguments: 8 8 12, or k=3")
    parser.add_argument("--against", help="package.module:Name of another declaration of the same set")
    parser.add_argument("--against-args", nargs="*", default=[], help="its arguments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=8, help="how many random scores")
    parser.add_argument("--brief", action="store_true", help="of a table what is wrong alone")
    options = parser.parse_args(arguments)
    try:
        found = _named(options.target)
        rows = cast("list[Any]", found) if isinstance(found, list) else []
        polytope = None if rows else _made(options.target, found, options.args)
        against = options.against and _made(
            options.against, _named(options.against), options.against_args
        )
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(str(error))
    if polytope is None:
        return _check_all(rows, options.seed, options.count, options.brief)
    report = check(polytope, against, seed=options.seed, count=options.count)
    print(report)
    return 0 if report.passed else 1


def _check_all(rows: list[Any], seed: int, count: int, brief: bool) -> int:
    reports: dict[str, Report] = {}
    for row in rows:
        alone = isinstance(row, Polytope)
        name, polytope, twin = (str(row), row, None) if alone else (row.name, row.polytope, row.twin)
        reports[name] = check(polytope, twin, seed=seed, count=count)
        print(f"{name}: {'passed' if reports[name].passed else 'FAILED'}", file=sys.stderr)
    print(whole_table(reports, brief))
    return 0 if all(report.passed for report in reports.values()) else 1


def _named(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not colon:
        raise ValueError(
            f"{target!r} is not of the form package.module:Name, such as spigot.polytopes:Simplex"
        )
    return getattr(importlib.import_module(module), name)


def _made(target: str, found: Any, words: list[str]) -> Polytope:
    if not isinstance(found, Polytope):
        pairs = [word.partition("=") for word in words]
        positional = [_literal(key) for key, equals, _ in pairs if not equals]
        named = {key: _literal(value) for key, equals, value in pairs if equals}
        found = found(*positional, **named)
    if not isinstance(found, Polytope):
        raise TypeError(f"{target} is not a Polytope but {type(found).__name__}")
    return found


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


if __name__ == "__main__":
    sys.exit(main())
