"""What is installed, for a report of something that went wrong."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["show_versions"]

PACKAGES = (
    "spigot-layers",
    "torch",
    "numpy",
    "scipy",
    "cvxpy",
    "cvxpylayers",
    "clarabel",
    "highspy",
    "networkx",
    "numba",
    "llvmlite",
    "matplotlib",
)


def show_versions() -> None:
    """Prints the versions of Python, the system and the packages, and what torch runs on.

    Example:
        >>> import spigot
        >>> spigot.show_versions()  # doctest: +ELLIPSIS
        python ...
    """
    system = platform.system(), platform.release(), platform.machine(), f"{os.cpu_count()} cores"
    facts = {
        "python": sys.version.split()[0],
        "system": ", ".join(system),
        **{name: _installed(name) for name in PACKAGES},
        "threads": f"{torch.get_num_threads()} of torch's",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    width = max(map(len, facts))
    print("\n".join(f"{name:{width}}  {fact}" for name, fact in facts.items()))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
