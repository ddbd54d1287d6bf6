"""OMP for a whole vocabulary in batches against scikit-learn's OrthogonalMatchingPursuit token by token: `make bench`.

The size is that of a real transplant: 20,000 new tokens, 10,000 shared ones, 576 dimensions, 64 points a token. Both
sides compute in float32; the batched one (`omp_screened`) finds the few points that may win a step in bfloat16 first.
The reference is the ordinary loop, one `fit` a token with the points as they are. It runs on a sample, half of it
before the batched call and half after, and its time for all tokens is taken to be proportional to their number; so is
the batched side's while `--tokens` asks for fewer. Before anything is timed, both must choose the same points on the
sample, or make residuals of the same length where rounding settled a close choice otherwise.

What bounds the batched side is the product of all residuals with all points in every step, 2 x 20,000 x 10,000 x 576 x
64 operations. The last lines say how long that product alone takes here in float32 and in bfloat16.
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
from tokenarium.methods.tokenizers.omp_screened import solve
from tokenarium.methods.tokenizers.omp_transplant import combine

TOKENS, ANCHORS, DIM, K = 20_000, 10_000, 576, 64
CHUNK = 512
SAMPLE = 20
PRODUCTS = 9  # of a chunk with all points, timed
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
    halves = targets[: sample // 2], targets[sample // 2 : sample]
    single = _seconds_each(halves[0], points, k)
    start = time.perf_counter()
    solve(targets[:tokens], points, k, CHUNK)
    batched = time.perf_counter() - start
    single += _seconds_each(halves[1], points, k)
    return batched, bootstrap(single, lambda s: np.median(s, axis=1), over="tokens"), same


def _seconds_each(targets: Tensor, points: Tensor, k: int) -> list[float]:
    found = []
    for target in targets:
        start = time.perf_counter()
        by_scikit_learn(target, points, k)
        found.append(time.perf_counter() - start)
    return found


def product_rate(dtype: torch.dtype, anchors: int = ANCHORS, dim: int = DIM) -> float:
    """Operations a second of the product of a chunk of residuals with all points: the median of several."""
    residuals, points = example(CHUNK, anchors, dim)
    residuals, points = residuals.to(dtype), points.to(dtype)
    found = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        residuals @ points.T
        found.append(time.perf_counter() - start)
    return 2 * CHUNK * anchors * dim / float(np.median(found))


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
    operations = 2 * TOKENS * ANCHORS * DIM * K
    for dtype in (torch.float32, torch.bfloat16):
        rate, name = product_rate(dtype), str(dtype).removeprefix("torch.")
        bound = operations / rate
        line = f"{operations / 1e12:.1f} TFLOP of products at {rate / 1e9:.0f} GFLOP/s in {name}: {bound:.0f} s"
        console.print(f"{line}, so a loop / batched of {TOKENS * single.value / bound:.0f} at most")
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")


if __name__ == "__main__":
    main()
