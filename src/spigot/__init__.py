"""Declare a discrete structure once, and train through it.

- `spigot.polytopes`: what a structure is, its argmax, projections and marginals;
- `spigot.pullback`: the surrogate gradients, SPIGOT and its relatives;
- `spigot.layers`: the `torch.nn` modules and losses;
- `spigot.testing`: checks a polytope's declaration;
- `spigot.plot`: pictures, where matplotlib is installed.
"""

from importlib.metadata import PackageNotFoundError, version

from spigot import layers, polytopes, pullback
from spigot.versions import show_versions

__all__ = ["__version__", "layers", "polytopes", "pullback", "show_versions"]

try:
    __version__: str = version("spigot-layers")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"
