"""The pursuit of `omp_transplant` for whole vocabularies: bfloat16 finds who may win a step, full precision who does.

Nearly all work of a pursuit is the product of the residuals with all points. Computed in bfloat16 it costs a fraction
on processors that multiply it faster than float32, and its error has a bound: |<r, a> - <r', a'>| <= |r - r'| |a| +
|r'| |a - a'|. The few points that come within twice that bound of the largest product are compared in full precision.
So the choice is that of `omp_transplant`, but for points that its own rounding cannot tell apart. The least squares
over the chosen points go by the Cholesky factor of their Gram matrix, in float64, in place of a basis of long vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenarium.methods.tokenizers.omp_transplant import REORTHOGONALISE, Path

FOLDS = 16  # points share a place when the largest product is sought
MOST_WITH_GRAM = 16_384  # points whose Gram matrix is kept, 1 GB in float32
AT_ONCE = 16384  # candidates compared in full precision at a time
ROUNDING = 2.0**-8  # of bfloat16, relative


def solve(targets: Tensor, points: Tensor, k: int, chunk: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """What `omp_transplant.solve` returns, with its arguments: indices (U, k), coefficients (U, k), residuals (U, k).

    Raises ValueError unless 1 <= k <= min(N, D, 256).
    """
    targets, points = _alike(targets, points)
    screen = Screen(points)
    paths = [_pursue(part, screen, k) for part in targets.split(chunk)]
    indices = torch.cat([path.indices for path in paths])
    return indices, torch.cat([path.coefficients() for path in paths]), torch.cat([path.residuals() for path in paths])


def pursue(targets: Tensor, points: Tensor, k: int, eps: float = 1e-8) -> Path:
    """`omp_transplant.pursue`, with its arguments. Raises ValueError unless 1 <= k <= min(N, D, 256)."""
    targets, points = _alike(targets, points)
    return _pursue(targets, Screen(points), k, eps)


class Screen:
    """The points (N, D), float32 or float64, in full and in half precision, and how far the two may lie apart."""

    def __init__(self, points: Tensor):
        self.points = points
        self.places = -(-len(points) // FOLDS)
        half = points.bfloat16()
        self._error = (points - half.to(points)).norm(dim=1).max() if len(points) else points.new_zeros(())
        self._norm = points.norm(dim=1).max() if len(points) else points.new_zeros(())
        self._gram = self.points @ self.points.T if len(points) <= MOST_WITH_GRAM else None
        self._half = torch.cat([half, half.new_zeros(FOLDS * self.places - len(points), points.shape[1])])

    def gram(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Inner products of the points `rows` (B, t) with the point `columns` (B,), float64: (B, t)."""
        if self._gram is not None:
            return self._gram[rows, columns[:, None]].double()
        return torch.einsum("btd,bd->bt", self.points[rows].double(), self.points[columns].double())

    def combined(self, indices: Tensor, weights: Tensor) -> Tensor:
        """sum_i weights[b, i] points[indices[b, i]], (B, D): the rows are read once and written nowhere."""
        return F.embedding_bag(
            indices.contiguous(), self.points, per_sample_weights=weights.to(self.points), mode="sum"
        )

    def best(self, residuals: Tensor, taken: Tensor) -> Tensor:
        """For each residual (B, D) the point with the largest |inner product|, the first of equals: (B,) int64.

        taken: (B, t) int64, the points that are out.
        """
        half = residuals.bfloat16()
        by_place = (half @ self._half.T).abs_().view(len(residuals), FOLDS, self.places)
        largest, folds = by_place, FOLDS
        while folds > 1:  # elementwise maxima are much faster here than a reduction or a sort
            folds //= 2
            largest = torch.maximum(largest[:, :folds], largest[:, folds:])
        largest = largest[:, 0].to(residuals)
        least = self._least(residuals, half, largest.amax(dim=1))
        rows, places = (largest >= least[:, None]).nonzero(as_tuple=True)
        found, folds = (by_place[rows, :, places].to(residuals) >= least[rows, None]).nonzero(as_tuple=True)
        rows, indices = rows[found], places[found] + self.places * folds
        out = (indices[:, None] == taken[rows]).any(dim=1)
        free = ~out & (indices < len(self.points))
        best = self._first_of_largest(residuals, rows[free], indices[free])
        # Taken points are orthogonal to a residual: they come near the largest only where next to nothing is left.
        if out.any():
            hidden = rows[out].unique()
            products = (residuals[hidden] @ self.points.T).abs_()
            best[hidden] = products.scatter_(1, taken[hidden], -1.0).argmax(dim=1)
        return best

    def _least(self, residuals: Tensor, half: Tensor, largest: Tensor) -> Tensor:
        """(B,): a point whose half-precision product lies below cannot win."""
        kept = half.to(residuals)
        bound = (residuals - kept).norm(dim=1) * self._norm + kept.norm(dim=1) * self._error
        sums = residuals.shape[1] * 2.0**-23 * kept.norm(dim=1) * self._norm  # rounding of the sums, in float32
        return (largest * (1 - 2 * ROUNDING) - 2.01 * (bound + sums)).clamp(min=0)

    def _first_of_largest(self, residuals: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        parts = zip(rows.split(AT_ONCE), indices.split(AT_ONCE), strict=True)
        exact = torch.cat([self._products(residuals, row, index) for row, index in parts]).abs_()
        best = exact.new_zeros(len(residuals)).scatter_reduce_(0, rows, exact, "amax")
        wins = exact == best[rows]
        first = torch.full((len(residuals),), len(self.points), dtype=torch.int64, device=rows.device)
        return first.scatter_reduce_(0, rows[wins], indices[wins], "amin")

    def _products(self, residuals: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        return residuals.index_select(0, rows).mul_(self.points.index_select(0, indices)).sum(dim=1)


@torch.no_grad()
def _pursue(targets: Tensor, screen: Screen, k: int, eps: float = 1e-8) -> Path:
    most = min(*screen.points.shape, REORTHOGONALISE)
    if not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most}, got {k}")
    size = len(targets)
    exact = {"dtype": torch.float64, "device": targets.device}
    indices = torch.zeros(size, k, dtype=torch.int64, device=targets.device)
    # The chosen points' Gram matrix is R^T R; `inverse` holds R^-T row by row, so that no step solves a system.
    triangle, inverse = torch.zeros(size, k, k, **exact), torch.zeros(size, k, k, **exact)
    projections, weights = torch.zeros(size, k, **exact), torch.zeros(size, k, **exact)
    residual = targets
    for step in range(k):
        chosen = screen.best(residual, indices[:, :step])
        atom = screen.points.index_select(0, chosen)
        known = inverse[:, :step, :step]
        along = torch.bmm(screen.gram(indices[:, :step], chosen)[:, None], known.mT)
        left = atom.square().sum(dim=1).double() - along.square().sum(dim=(1, 2))
        norm = left.clamp(min=eps**2).sqrt()[:, None]
        row = torch.cat([-torch.bmm(along, known)[:, 0], norm.new_ones(size, 1)], dim=1) / norm
        along = along[:, 0]
        inner = (atom * targets).sum(dim=1, keepdim=True).double()
        projection = (inner - (along * projections[:, :step]).sum(dim=1, keepdim=True)) / norm
        indices[:, step], inverse[:, step, : step + 1] = chosen, row
        triangle[:, :step, step], triangle[:, step, step] = along, norm[:, 0]
        projections[:, step] = projection[:, 0]
        weights[:, : step + 1].addcmul_(row, projection)
        residual = targets - screen.combined(indices[:, : step + 1], weights[:, : step + 1])
    return Path(indices, triangle.to(targets), projections.to(targets), targets.norm(dim=1))


def _alike(targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(targets.dtype, points.dtype), torch.float32)
    return targets.to(dtype), points.to(dtype)
