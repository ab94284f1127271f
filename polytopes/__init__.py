"""What a structure is: polytopes, regularizers, and the verbs that join them."""

from spigot.polytopes.algebra.affine import Affine
from spigot.polytopes.algebra.batch import Batch
from spigot.polytopes.algebra.intersection import Intersection
from spigot.polytopes.algebra.masked import Face, Masked
from spigot.polytopes.algebra.product import Product
from spigot.polytopes.base import Polytope
from spigot.polytopes.declared import Facets, Hull, IntegerHull, Oracle
from spigot.polytopes.dispatch import Route
from spigot.polytopes.errors import (
    ConvergenceError,
    InfeasiblePolytope,
    NoStructure,
    OracleError,
    UnboundedPolytope,
    UnsupportedProblem,
)
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
from spigot.polytopes.structures.alignment import Alignment
from spigot.polytopes.structures.constituency import ConstituencyTree
from spigot.polytopes.structures.graph_matching import GraphMatching
from spigot.polytopes.structures.grid_path import GridPath
from spigot.polytopes.structures.hypergraph import Hypergraph
from spigot.polytopes.structures.logic import AndOut, AtMostOne, Imply, Or, OrOut, Xor, XorOut
from spigot.polytopes.structures.matching import Matching
from spigot.polytopes.structures.path import Path
from spigot.polytopes.structures.permutahedron import Permutahedron
from spigot.polytopes.structures.projective import ProjectiveTree
from spigot.polytopes.structures.semimarkov import SemiMarkov
from spigot.polytopes.structures.sequence import Sequence
from spigot.polytopes.structures.simplex import Simplex
from spigot.polytopes.structures.spanning_tree import SpanningTree
from spigot.polytopes.structures.subset import Hypercube, Subset
from spigot.polytopes.structures.tagging import Tagging
from spigot.polytopes.structures.transport import Transport
from spigot.polytopes.structures.tree import Arborescence

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
    "OracleError",
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
    "Tagging",
    "Transport",
    "Tsallis",
    "UnboundedPolytope",
    "UnsupportedProblem",
    "Xor",
    "XorOut",
]
