"""What a structure is: polytopes, regularizers, and the verbs that join them."""

from spigot.polytopes.base import Polytope
from spigot.polytopes.declared import Facets, Hull, IntegerHull, Oracle
from spigot.polytopes.dispatch import Route
from spigot.polytopes.errors import (
    ConvergenceError,
    InfeasiblePolytope,
    NoStructure,
    UnboundedPolytope,
    UnsupportedProblem,
)
from spigot.polytopes.logic import AndOut, AtMostOne, Imply, Or, OrOut, Xor, XorOut
from spigot.polytopes.permutahedron import Permutahedron
from spigot.polytopes.problem import Solution, Status
from spigot.polytopes.regularizers import (
    Convex,
    Euclidean,
    FermiDirac,
    Gibbs,
    Regularizer,
    Shannon,
    Tsallis,
)
from spigot.polytopes.sequence import Sequence
from spigot.polytopes.simplex import Simplex
from spigot.polytopes.subset import Hypercube, Subset

__all__ = [
    "AndOut",
    "AtMostOne",
    "ConvergenceError",
    "Convex",
    "Euclidean",
    "Facets",
    "FermiDirac",
    "Gibbs",
    "Hull",
    "Hypercube",
    "Imply",
    "InfeasiblePolytope",
    "IntegerHull",
    "NoStructure",
    "Or",
    "OrOut",
    "Oracle",
    "Permutahedron",
    "Polytope",
    "Regularizer",
    "Route",
    "Sequence",
    "Shannon",
    "Simplex",
    "Solution",
    "Status",
    "Subset",
    "Tsallis",
    "UnboundedPolytope",
    "UnsupportedProblem",
    "Xor",
    "XorOut",
]
