"""`python -m spigot.testing package.module:Name --args ...`: a check from the shell."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from typing import Any

from spigot.polytopes import Polytope
from spigot.testing.checks import check

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """0 if the check passes, 1 if it fails, 2 if the arguments are off."""
    parser = argparse.ArgumentParser(
        prog="python -m spigot.testing",
        description="Checks every fact and fast rule of a polytope against the generic roads and cvxpy.",
    )
    parser.add_argument("target", help="package.module:Name, a Polytope or a class of them")
    parser.add_argument("--args", nargs="*", default=[], help="its arguments: 8 8 12, or k=3")
    parser.add_argument("--against", help="package.module:Name of another declaration of the same set")
    parser.add_argument("--against-args", nargs="*", default=[], help="its arguments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=8, help="how many random scores")
    options = parser.parse_args(arguments)
    try:
        polytope = _load(options.target, options.args)
        against = _load(options.against, options.against_args) if options.against else None
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(str(error))
    report = check(polytope, against, seed=options.seed, count=options.count)
    print(report)
    return 0 if report.passed else 1


def _load(target: str, words: list[str]) -> Polytope:
    module, colon, name = target.partition(":")
    if not colon:
        raise ValueError(f"{target!r} is not of the form package.module:Name")
    found: Any = getattr(importlib.import_module(module), name)
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
