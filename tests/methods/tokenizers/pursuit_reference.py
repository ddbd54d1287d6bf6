"""Random points, and a matching pursuit of one target and one point at a time, for the tests of the batched ones."""

import numpy as np
import torch


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_omp(target, points, k):
    """One target in float64: the best point by inner product, then least squares over all points taken so far."""
    target, points = np.asarray(target, dtype=np.float64), np.asarray(points, dtype=np.float64)
    residual, taken = target, []
    for _ in range(k):
        best, place = -1.0, None
        for index, point in enumerate(points):
            score = abs(float(residual @ point))
            if index not in taken and score > best + 1e-12:
                best, place = score, index
        taken.append(place)
        coefficients = np.linalg.lstsq(points[taken].T, target, rcond=None)[0]
        residual = target - points[taken].T @ coefficients
    return taken, coefficients
