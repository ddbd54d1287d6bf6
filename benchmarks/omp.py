"""OMP for a whole vocabulary in batches against scikit-learn's OrthogonalMatchingPursuit token by token: `make bench`.

The size is that of a real transplant: 20,000 new tokens, 10,000 shared ones, 576 dimensions, 64 points a token. Both
sides compute in float32. The reference runs on a sample, and its time for all tokens is taken to be proportional to
their number; so is the batched side's while `--tokens` asks for fewer. Before anything is timed, both must choose the
same points on the sample, or make residuals of the same length where rounding settled a close choice otherwise.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.methods.tokenizers.omp_transplant import combine, solve

TOKENS, ANCHORS, DIM, K = 20_000, 10_000, 576, 64
CHUNK = 512
SAMPLE = 5
AIM = 20
TOLERANCE = 0.02  # of a residual's length


def example(tokens: int, anchors: int, dim: int) -> tuple[Tensor, Tensor]:
    """Rows like embeddings, (tokens, dim) and (anchors, dim) float32, of unequal spread and with a mean."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, dim + 1).float().pow(-0.5)
    rows = torch.randn(tokens + anchors, dim, generator=generator) * spread + 0.1
    return rows[:tokens], rows[tokens:]


def by_scikit_learn(target: Tensor, points: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, coefficients) of one target. It goes by raw inner products, too."""
    from sklearn.linear_model import OrthogonalMatchingPursuit

    model = OrthogonalMatchingPursuit(n_nonzero_coefs=k, fit_intercept=False, precompute=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns where it stops early
        model.fit(points.T.numpy(), target.numpy())
    indices = np.flatnonzero(model.coef_)
    return indices, model.coef_[indices]


def check(targets: Tensor, points: Tensor, k: int) -> int:
    """On how many targets both choose the same points. Raises ValueError where one leaves more than the other."""
    indices, coefficients, _ = solve(targets, points, k)
    left = (targets - combine(indices, coefficients, points)).norm(dim=1)
    same = 0
    for target, found, residual in zip(targets, indices, left, strict=True):
        chosen, weights = by_scikit_learn(target, points, k)
        other = (target - torch.from_numpy(weights).to(points) @ points[chosen]).norm()
        if abs(residual - other) > TOLERANCE * target.norm():
            raise ValueError(f"the two leave {residual:.4f} and {other:.4f} of a target of length {target.norm():.4f}")
        same += set(found.tolist()) == set(chosen.tolist())
    return same


def timed(tokens: int, sample: int, anchors: int = ANCHORS, dim: int = DIM, k: int = K) -> tuple[float, Interval, int]:
    """Seconds of one batched call for `tokens` tokens, seconds of the reference for one, and `check`'s number."""
    targets, points = example(max(tokens, sample), anchors, dim)
    points = points / points.norm(
        dim=1, keepdim=True
    )  # scikit-learn's rule is the tool's only for atoms alike in length
    same = check(targets[:sample], points, k)
    start = time.perf_counter()
    solve(targets[:tokens], points, k, CHUNK)
    batched = time.perf_counter() - start
    single = []
    for target in targets[:sample]:
        start = time.perf_counter()
        by_scikit_learn(target, points, k)
        single.append(time.perf_counter() - start)
    return batched, bootstrap(single, lambda s: np.median(s, axis=1), over="tokens"), same


def main(arguments: list[str] | None = None) -> None:
    """Check and time both, and print what they take."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.omp")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="how many the batched side solves")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="how many scikit-learn solves")
    asked = parser.parse_args(arguments)
    batched, single, same = timed(asked.tokens, asked.sample)
    each = batched / asked.tokens
    console = Console()
    size = f"{ANCHORS:,} anchors of {DIM} dimensions, k = {K}"
    console.print(f"OMP, {asked.tokens:,} tokens in one call, {size}: {batched:.1f} s, {1000 * each:.1f} ms a token")
    if asked.tokens != TOKENS:
        console.print(f"that is {TOKENS * each:.0f} s for {TOKENS:,}, were all alike")
    console.print(f"scikit-learn, one token at a time: {1000 * single.value:.0f} ms [{1000 * single.low:.0f}, ", end="")
    console.print(f"{1000 * single.high:.0f}], the same points on {same} of {asked.sample}")
    ratio = [single.value / each, single.low / each, single.high / each]
    console.print("loop / batched: {:.1f} [{:.1f}, {:.1f}], aim {}".format(*ratio, AIM))
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")


if __name__ == "__main__":
    main()
