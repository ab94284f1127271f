r"""Faces of a polytope and the derivative of a maximiser on them.

With Omega separable and y in the relative interior of a face F whose directions are the subspace
U, the maximiser moves inside F, and its Jacobian is J = U (U' H U)^+ U' with H = phi''(y): the
orthogonal projector onto U for `Euclidean`.

Which face? The *exposed* one, where <s - grad Omega(y), .> is largest over M. Under strict
complementarity it is the minimal face that holds y, and J is the Jacobian. Elsewhere (ties: y on
a bound that has no multiplier) J is the limit of Jacobians at nearby scores whose answer lies
inside the exposed face, an element of the B-subdifferential. Every road uses this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import library, tensor

if TYPE_CHECKING:
    from spigot.polytopes.linear import LinearMap

__all__ = [
    "DENSE_ENTRIES",
    "BatchFace",
    "Face",
    "Hyperplanes",
    "Span",
    "pull_through_faces",
    "pull_through_map",
    "tie_tolerance",
]


def tie_tolerance(dtype: torch.dtype) -> float:
    """How close to zero a multiplier counts as zero."""
    return 2e-9 if dtype == torch.float64 else 4e-6


class Face(Protocol):
    """The directions of a face of M."""

    def pull(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """J grad, with 1 / phi'' given as `spread`; all `(d,)`."""
        ...


@dataclass(frozen=True, eq=False)
class BatchFace:
    """The faces of a whole batch by the rows and bounds that bind, on the scores' device."""

    rows: Tensor  # (n, rows), bool
    parts: Tensor  # (n, d), bool: held by a bound
    sure: Tensor  # (n,), bool: which faces are known


@dataclass(frozen=True)
class Span:
    """Directions that span the face, `(r, d)`, dependent ones allowed."""

    directions: np.ndarray

    def pull(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """D^(1/2) times the part of D^(1/2) grad that is orthogonal to D^(1/2) times the normals."""
        if not len(self.directions):
            return np.zeros_like(grad)
        _, size, right = np.linalg.svd(self.directions, full_matrices=True)
        rank = int((size > 1e-9 * size[0]).sum())
        if bool((spread == 1).all()):
            basis = right[:rank]
            return basis.T @ (basis @ grad)
        return Hyperplanes(right[rank:]).pull(grad, spread)


@dataclass(frozen=True)
class Hyperplanes:
    """{dy : normals dy + auxiliary dt = 0 for some dt, dy_i = 0 where fixed}, sparse or dense rows.

    The row space is what counts, so rows may be redundant. `J grad = D^(1/2) e`, where e minimises
    |e - D^(1/2) grad|^2 / 2 subject to the rows: a regularised sparse KKT system with iterative
    refinement, or a dense least-squares problem where that is smaller.
    """

    normals: Any  # (rows, d)
    auxiliary: Any = None  # (rows, t)
    fixed: np.ndarray | None = None  # (d,), bool

    def pull(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """D^(1/2) e."""
        spread = spread if self.fixed is None else np.where(self.fixed, 0.0, spread)
        root = np.sqrt(spread)
        if self.normals.shape[0] == 0:
            return spread * grad
        target = root * grad
        if self.auxiliary is None and self.normals.shape[0] * len(grad) <= DENSE_ENTRIES:
            return root * _residual(self._dense(), root, target)
        return root * self._solve(root, target)

    def _dense(self) -> np.ndarray:
        normals: Any = self.normals
        return normals.toarray() if hasattr(normals, "toarray") else normals

    def _solve(self, root: np.ndarray, target: np.ndarray) -> np.ndarray:
        sp = library("scipy.sparse")
        rows = sp.csr_matrix(self.normals).multiply(root).tocsr()
        m, d = rows.shape
        tail = sp.csr_matrix((m, 0)) if self.auxiliary is None else sp.csr_matrix(self.auxiliary)
        t = tail.shape[1]
        exact = sp.bmat(
            [
                [sp.identity(d), sp.csr_matrix((d, t)), rows.T],
                [sp.csr_matrix((t, d)), sp.csr_matrix((t, t)), tail.T],
                [rows, tail, sp.csr_matrix((m, m))],
            ],
            format="csc",
        )
        shift = np.concatenate([np.zeros(d), np.full(t, DELTA), np.full(m, -DELTA)])
        factor = library("scipy.sparse.linalg").splu((exact + sp.diags(shift)).tocsc())
        rhs = np.concatenate([target, np.zeros(t + m)])
        x = factor.solve(rhs)
        for _ in range(REFINEMENTS):
            residual = rhs - exact @ x
            if np.abs(residual).max() <= 1e-14 * (1 + np.abs(rhs).max()):
                break
            x += factor.solve(residual)
        return x[:d]


DENSE_ENTRIES = 20_000
DELTA = 1e-8
REFINEMENTS = 20


def _residual(rows: np.ndarray, root: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The part of target orthogonal to the rows, each column scaled by its root."""
    size, right = np.linalg.svd(rows * root, full_matrices=False)[1:]
    noise = 1e-12 * np.abs(rows).max() * root.max() * len(root)
    basis = right[size > noise]
    return target - basis.T @ (basis @ target)


def pull_through_faces(
    faces: tuple[Face, ...], grad: Tensor, spread: Tensor, keep: Tensor | None
) -> Tensor:  # (n, d) -> (n, d)
    """J grad for every instance; parts excluded by `keep` get exactly 0."""
    grads = grad.detach().double().cpu().numpy()
    spreads = spread.double().clamp_min(0).cpu().numpy()  # y may be rounded out of the domain
    pulled = np.zeros_like(grads)
    for i, face in enumerate(faces):
        if grads[i].any():
            kept = slice(None) if keep is None else keep[i].cpu().numpy()
            pulled[i, kept] = face.pull(grads[i, kept], spreads[i, kept])
    return tensor(pulled).to(grad)


def pull_through_map(
    faces: tuple[Face, ...], grad: Tensor, of: LinearMap, keep: Tensor | None
) -> Tensor:  # (n, *event) -> (n, *event)
    r"""U (U' T'T U)^+ U' grad: the derivative for |T y|^2 / 2, U spanning the face's directions."""
    pulled = torch.zeros(grad.shape, dtype=torch.float64)
    for i, face in enumerate(faces):
        assert isinstance(face, Span)
        kept = torch.ones(grad[i].numel(), dtype=torch.bool) if keep is None else keep[i].flatten().cpu()
        directions = torch.zeros(len(face.directions), grad[i].numel(), dtype=torch.float64)
        directions[:, kept] = tensor(face.directions)
        image = of.apply(directions.reshape(-1, *grad.shape[1:])).flatten(1)
        along = directions @ grad[i].flatten().double().cpu()
        inverse: Tensor = cast(Any, torch.linalg).pinv(image @ image.T, rtol=1e-9, hermitian=True)
        weights = inverse @ along
        pulled[i] = (directions.T @ weights).reshape(grad.shape[1:])
    return pulled.to(grad)
