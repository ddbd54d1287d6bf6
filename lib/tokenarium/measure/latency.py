"""How much longer one function takes than another. Information only: no claim may rest on a wall clock."""

import time
from collections.abc import Callable

import numpy as np
import torch

from tokenarium.measure.bootstrap import Interval, bootstrap


def ratio(
    function_a: Callable[[], object],
    function_b: Callable[[], object],
    repeats: int = 15,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Interval:
    """Time of `function_a` over time of `function_b`: the median over pairs, with its bootstrap interval.

    The two run in turns, A B A B, so that a busy neighbour or a changing clock rate slows both alike and
    drops out of each pair's ratio. Work queued on a GPU is waited for. Raises ValueError unless repeats >= 2
    and warmup >= 0.
    """
    if repeats < 2 or warmup < 0:
        raise ValueError(f"at least 2 repeats and 0 warm-up rounds are needed, got {repeats} and {warmup}")

    def seconds(function: Callable[[], object]) -> float:
        _finish_queued_work()
        start = clock()
        function()
        _finish_queued_work()
        return clock() - start

    pairs = [(seconds(function_a), seconds(function_b)) for _ in range(warmup + repeats)][warmup:]
    if any(b <= 0 for _, b in pairs):
        raise ValueError("function_b is too quick for the clock: let it do its work several times")
    return bootstrap(
        [a / b for a, b in pairs],
        statistic=lambda resampled: np.median(resampled, axis=1),
        over="timed pairs",
    )


def _finish_queued_work() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
