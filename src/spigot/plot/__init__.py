"""Pictures of structures, polytopes and pull-backs, by matplotlib: `pip install spigot-layers[plot]`.

Every function draws into the `ax` it is handed, or into a new figure's, and returns the Axes. Colours
are told apart by every eye, and by their greys in print.
"""

from spigot.plot.cells import alignment, cells, grid_path
from spigot.plot.links import arcs, matching
from spigot.plot.polytope import path, points, polytope, pull_back

__all__ = [
    "alignment",
    "arcs",
    "cells",
    "grid_path",
    "matching",
    "path",
    "points",
    "polytope",
    "pull_back",
]
