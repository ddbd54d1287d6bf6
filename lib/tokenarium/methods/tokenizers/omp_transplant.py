"""Tokenizer transplant by orthogonal matching pursuit: new rows from the donor's geometry, without training.

A base model takes over the tokenizer of a donor. Rows of shared tokens are copied. Every other donor token is written
in the donor's space as a sparse combination of shared tokens, and the same coefficients combine the base's rows of
those tokens.

Source: arXiv 2506.06607; conventions of mergekit-tokensurgeon (raw inner products, no centring, no scaling, k = 64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

REORTHOGONALISE = 256  # steps between two full QR factorisations


def batch_omp(targets: Tensor, points: Tensor, k: int, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """Sparse coefficients of every target over k of the points, by orthogonal matching pursuit.

    targets: (B, D) float, points: (N, D) float, on one device. Returns indices (B, k) int64 in the order of choice and
    coefficients (B, k) of the inputs' dtype (float32 where theirs is shorter): target ~ sum_i c_i points[index_i].
    Each step takes the point with the largest |inner product| with the residual; points are not normalised, the first
    of equals wins, and none is taken twice. eps: least norm of a direction.
    Raises ValueError unless 1 <= k <= min(N, D).
    """
    path = pursue(targets, points, k, eps)
    return path.indices, path.coefficients()


@dataclass(frozen=True)
class Path:
    """All steps of the pursuit of B targets. A path of k steps begins with the path of any fewer.

    indices: (B, k) int64. triangle: (B, k, k), upper triangular R of the chosen points' QR. projections: (B, k), the
    targets' coordinates in Q. norms: (B,) of the targets.
    """

    indices: Tensor
    triangle: Tensor
    projections: Tensor
    norms: Tensor

    def coefficients(self, steps: int | None = None) -> Tensor:
        """(B, steps) coefficients of the first `steps` points (all without it): R c = Q^T y."""
        part = slice(steps)
        return torch.linalg.solve_triangular(
            self.triangle[:, part, part], self.projections[:, part, None], upper=True
        ).squeeze(-1)

    def residuals(self) -> Tensor:
        """(B, k): the share of a target's norm that is left after each step; 0 for a target that is 0."""
        left = self.norms[:, None].square() - self.projections.square().cumsum(dim=1)
        share = left.clamp(min=0).sqrt() / self.norms[:, None]
        return torch.where(self.norms[:, None] > 0, share, 0.0)


@torch.no_grad()
def pursue(targets: Tensor, points: Tensor, k: int, eps: float = 1e-8) -> Path:
    """The whole path of `batch_omp`, with its arguments and errors."""
    if not 1 <= k <= min(points.shape):
        raise ValueError(f"k must be between 1 and {min(points.shape)}, got {k}")
    dtype = torch.promote_types(torch.promote_types(targets.dtype, points.dtype), torch.float32)
    targets, points = targets.to(dtype), points.to(dtype)
    size, dim = targets.shape
    # Rows of `basis` are the columns of Q: the part that a step reads lies in one piece.
    basis, triangle = targets.new_zeros(size, k, dim), targets.new_zeros(size, k, k)
    indices = torch.zeros(size, k, dtype=torch.int64, device=targets.device)
    inner_products = _inner_products(points)
    projections = targets.new_zeros(size, k)
    residual = targets
    for step in range(k):
        score = inner_products(residual).abs_()
        indices[:, step] = score.scatter_(1, indices[:, :step], -1.0).argmax(dim=1)
        atom = points[indices[:, step]]
        known = basis[:, :step]
        along = torch.bmm(known, atom[:, :, None])  # classical Gram-Schmidt: all projections of the atom itself
        atom = atom - torch.bmm(known.mT, along).squeeze(-1)
        norm = atom.norm(dim=1, keepdim=True).clamp(min=eps)
        basis[:, step] = atom / norm
        triangle[:, :step, step], triangle[:, step, step] = along.squeeze(-1), norm.squeeze(-1)
        known, stale = basis[:, : step + 1], step
        if step and step % REORTHOGONALISE == 0:
            again = torch.linalg.qr(known.mT)
            basis[:, : step + 1] = again.Q.mT
            triangle[:, : step + 1, : step + 1] = again.R @ triangle[:, : step + 1, : step + 1]
            stale = 0
        projections[:, stale : step + 1] = torch.bmm(known[:, stale:], targets[:, :, None]).squeeze(-1)
        residual = targets - torch.bmm(known.mT, projections[:, : step + 1, None]).squeeze(-1)
    return Path(indices, triangle, projections, targets.norm(dim=1))


def _inner_products(points: Tensor) -> Callable[[Tensor], Tensor]:
    """residuals (B, D) -> (B, N), their inner products with all points."""
    if points.device.type == "cpu" and points.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = points.to_mkldnn()  # oneDNN lays them out once: about twice as fast as a plain product here
        return lambda residuals: F.linear(residuals.to_mkldnn(), packed).to_dense()
    return lambda residuals: residuals @ points.T


def solve(targets: Tensor, points: Tensor, k: int, chunk: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_omp` for any number of targets, `chunk` at a time, which changes nothing but the memory that it takes.

    Returns indices (U, k), coefficients (U, k) and the residual's share of each target's norm after each step (U, k).
    """
    paths = [pursue(part, points, k) for part in targets.split(chunk)]
    indices = torch.cat([path.indices for path in paths])
    return indices, torch.cat([path.coefficients() for path in paths]), torch.cat([path.residuals() for path in paths])


def combine(indices: Tensor, coefficients: Tensor, rows: Tensor) -> Tensor:
    """New base rows (U, d): sum_i c_i rows[index_i].

    indices: (U, k) int64 into rows (N, d), the base's rows of the shared tokens; coefficients: (U, k).
    """
    return torch.einsum("uk,ukd->ud", coefficients.to(rows.dtype), rows[indices])
