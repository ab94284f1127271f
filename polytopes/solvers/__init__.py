"""The generic roads: solvers that work from the declared facts alone.

Hand one to a verb or a layer as `solver=` to force it, with its own tolerance and step limit.
"""

from spigot.polytopes.solvers.active_set import ActiveSet
from spigot.polytopes.solvers.batched_newton import BatchedNewton
from spigot.polytopes.solvers.clarabel import Clarabel
from spigot.polytopes.solvers.cone import Cvxpy
from spigot.polytopes.solvers.consensus import Consensus
from spigot.polytopes.solvers.cvxpylayers import CvxpyLayers
from spigot.polytopes.solvers.enumerate import Enumerate
from spigot.polytopes.solvers.frank_wolfe import FrankWolfe
from spigot.polytopes.solvers.highs import Highs
from spigot.polytopes.solvers.newton import Newton
from spigot.polytopes.solvers.oracle_call import OracleCall
from spigot.polytopes.solvers.pdhg import PDHG, ProvenPDHG
from spigot.polytopes.start import SupportCache

__all__ = [
    "PDHG",
    "ActiveSet",
    "BatchedNewton",
    "Clarabel",
    "Consensus",
    "Cvxpy",
    "CvxpyLayers",
    "Enumerate",
    "FrankWolfe",
    "Highs",
    "Newton",
    "OracleCall",
    "ProvenPDHG",
    "SupportCache",
]
