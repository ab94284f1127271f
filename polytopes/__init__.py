"""What a structure is: polytopes, regularizers, and the verbs that join them."""

from spigot.polytopes.affine import Affine
from spigot.polytopes.alignment import Alignment
from spigot.polytopes.base import Polytope
from spigot.polytopes.batch import Batch
from spigot.polytopes.constituency import ConstituencyTree
from spigot.polytopes.declared import Facets, Hull, IntegerHull, Oracle
from spigot.polytopes.dispatch import Route
from spigot.polytopes.errors import (
    ConvergenceError,
    InfeasiblePolytope,
    NoStructure,
    UnboundedPolytope,
    UnsupportedProblem,
)
from spigot.polytopes.graph_matching import GraphMatching
from spigot.polytopes.grid_path import GridPath
from spigot.polytopes.hypergraph import Hypergraph
from spigot.polytopes.intersection import Intersection
from spigot.polytopes.logic import AndOut, AtMostOne, Imply, Or, OrOut, Xor, XorOut
from spigot.polytopes.masked import Face, Masked
from spigot.polytopes.matching import Matching
from spigot.polytopes.path import Path
from spigot.polytopes.permutahedron import Permutahedron
from spigot.polytopes.problem import Solution, Status
from spigot.polytopes.product import Product
from spigot.polytopes.projective import ProjectiveTree
from spigot.polytopes.regularizers import (
    Convex,
    Euclidean,
    FermiDirac,
    Gibbs,
    Regularizer,
    Shannon,
    Tsallis,
)
from spigot.polytopes.semimarkov import SemiMarkov
from spigot.polytopes.sequence import Sequence
from spigot.polytopes.simplex import Simplex
from spigot.polytopes.spanning_tree import SpanningTree
from spigot.polytopes.subset import Hypercube, Subset
from spigot.polytopes.transport import Transport
from spigot.polytopes.tree import Arborescence

__all__ = [
    "Affine",
    "Alignment",
    "AndOut",
    "Arborescence",
    "AtMostOne",
    "Batch",
    "ConstituencyTree",
    "ConvergenceError",
    "Convex",
    "Euclidean",
    "Face",
    "Facets",
    "FermiDirac",
    "Gibbs",
    "GraphMatching",
    "GridPath",
    "Hull",
    "Hypercube",
    "Hypergraph",
    "Imply",
    "InfeasiblePolytope",
    "IntegerHull",
    "Intersection",
    "Masked",
    "Matching",
    "NoStructure",
    "Or",
    "OrOut",
    "Oracle",
    "Path",
    "Permutahedron",
    "Polytope",
    "Product",
    "ProjectiveTree",
    "Regularizer",
    "Route",
    "SemiMarkov",
    "Sequence",
    "Shannon",
    "Simplex",
    "Solution",
    "SpanningTree",
    "Status",
    "Subset",
    "Transport",
    "Tsallis",
    "UnboundedPolytope",
    "UnsupportedProblem",
    "Xor",
    "XorOut",
]
