"""Work on batches that goes on with smaller ones when memory runs out."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from tokenarium.errors import TokenariumError

T = TypeVar("T")


def halving(work: Callable[[int], T], batch_size: int, retries: int, explain: Callable[[int], str]) -> T:
    """The result of `work(batch_size)`; each time that memory runs out, at most `retries` times, half the batch.

    What counts as running out of memory is accelerate's list, for CUDA and other devices; every other exception passes
    unchanged. explain: the smallest batch size tried -> what to tell the user.
    Raises TokenariumError when there is nothing left to try, and ValueError for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least 1 example, got {batch_size}")
    while True:
        try:
            return work(batch_size)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if retries == 0 or batch_size == 1:
                raise TokenariumError(explain(batch_size)) from error
            traceback.clear_frames(error.__traceback__)  # the tensors of the failed call live in its frames
        print(f"out of memory at batch size {batch_size}: again with {batch_size // 2}")
        batch_size, retries = batch_size // 2, retries - 1
        _clear()


def _out_of_memory(error: RuntimeError) -> bool:
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _clear() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
