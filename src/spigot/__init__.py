"""Declare a discrete structure once, and train through it.

- `spigot.polytopes`: what a structure is, its argmax, projections and marginals;
- `spigot.pullback`: the surrogate gradients, SPIGOT and its relatives;
- `spigot.layers`: the `torch.nn` modules and losses.
"""

from importlib.metadata import PackageNotFoundError, version

from spigot import layers, polytopes, pullback

__all__ = ["__version__", "layers", "polytopes", "pullback"]

try:
    __version__: str = version("spigot-layers")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"
