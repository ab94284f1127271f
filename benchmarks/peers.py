"""The peers: where each comes from, and which of them are here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PEERS", "Peer", "interpreter", "missing", "peer"]


@dataclass(frozen=True)
class Peer:
    """A library to compare with: the module's name and what to do where it is missing.

    One that lives `apart` has an environment of its own, and `interpreter` says where.
    """

    module: str
    install: str
    apart: bool = False


PEERS = {
    "entmax": Peer("entmax", "pip install entmax"),
    "torch-struct": Peer("torch_struct", "pip install torch-struct"),
    "pytorch-crf": Peer("torchcrf", "pip install pytorch-crf"),
    "POT": Peer("ot", "pip install pot"),
    "torchsort": Peer(
        "torchsort", "pip install --no-build-isolation torchsort, with no nvcc on the PATH"
    ),
    "cvxpylayers": Peer("cvxpylayers", "pip install cvxpylayers"),
    "proxsuite": Peer("proxsuite", "pip install proxsuite"),
    "OSQP": Peer("osqp", "pip install osqp"),
    "qpth": Peer(
        "qpth", "make bench, or an environment with qpth and SPIGOT_QPTH=its python", apart=True
    ),
    "ufal.chu_liu_edmonds": Peer("ufal.chu_liu_edmonds", "pip install ufal.chu_liu_edmonds"),
    "networkx": Peer("networkx", "pip install networkx"),
    "scipy": Peer("scipy", "pip install scipy"),
    "pyepo": Peer("pyepo", "pip install pyepo"),
    "OR-Tools": Peer("ortools.linear_solver.pywraplp", "pip install ortools"),
    "jaxopt": Peer("jaxopt", "pip install jaxopt"),
    "lp-sparsemap": Peer("lpsmap", "pip install lp-sparsemap, where it builds"),
}

BROKEN: dict[str, str] = {}
"""Peers that are installed and were asked for, and what their import said."""


@functools.cache
def peer(name: str, submodule: str = "") -> Any | None:
    """The peer's module, or one of its submodules; None where it is not installed."""
    module = ".".join(filter(None, [PEERS[name].module, submodule]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        if _installed(name):
            BROKEN[name] = f"installed, but does not load here: {error}"
    return None


def _installed(name: str) -> bool:
    """Whether it can be found; it is not loaded, for some cannot be loaded beside others."""
    package = PEERS[name].module.partition(".")[0]
    return importlib.util.find_spec(package) is not None


def interpreter(name: str) -> Path | None:
    """The Python of a peer that lives apart: what SPIGOT_NAME says, or NAME/ in this environment."""
    given = os.environ.get(f"SPIGOT_{name.upper()}")
    python = Path(given) if given else Path(sys.prefix) / name / "bin" / "python"
    return python if python.exists() else None


def missing() -> dict[str, str]:
    """The peers that are not installed and how to install them, and those that did not load."""
    absent = {
        name: own.install
        for name, own in PEERS.items()
        if not (interpreter(name) if own.apart else _installed(name))
    }
    return absent | BROKEN
