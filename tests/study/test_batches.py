"""Work that runs out of memory goes on with half the batch, a few times, where that changes no result."""

import gc
import weakref

import pytest
import torch

from tokenarium.errors import TokenariumError
from tokenarium.study import open_study
from tokenarium.study.batches import halving

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.94 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
]


class Work:
    """Fails above `largest` examples a batch; `tried` keeps the batch sizes."""

    def __init__(self, largest, error=OUT_OF_MEMORY[0]):
        self.largest, self.error, self.tried = largest, error, []

    def __call__(self, batch_size):
        self.tried.append(batch_size)
        if batch_size > self.largest:
            raise self.error
        return f"done at {batch_size}"


def explain(batch_size):
    return f"too little at {batch_size}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_batch_is_halved_until_it_fits(error, capsys):
    work = Work(8, error)
    assert halving(work, 50, 3, explain) == "done at 6"
    assert work.tried == [50, 25, 12, 6]
    assert capsys.readouterr().out.splitlines()[0] == "out of memory at batch size 50: again with 25"


@pytest.mark.parametrize(
    ("batch_size", "retries", "tried"), [(256, 3, [256, 128, 64, 32]), (256, 0, [256]), (2, 3, [2, 1])]
)
def test_there_is_an_end_to_halving(batch_size, retries, tried):
    work = Work(0)
    with pytest.raises(TokenariumError, match=f"too little at {tried[-1]}$"):
        halving(work, batch_size, retries, explain)
    assert work.tried == tried


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("no"), KeyboardInterrupt()])
def test_every_other_failure_passes_unchanged(error):
    work = Work(0, error)
    with pytest.raises(type(error)) as caught:
        halving(work, 8, 3, explain)
    assert caught.value is error
    assert work.tried == [8]


def test_tensors_of_a_failed_try_are_gone_before_the_next():
    seen = []

    def work(batch_size):
        tensor = torch.zeros(batch_size)
        seen.append(weakref.ref(tensor))
        if batch_size == 8:
            raise OUT_OF_MEMORY[0]
        gc.disable()
        return [reference() is None for reference in seen]

    try:
        assert halving(work, 8, 3, explain) == [True, False]
    finally:
        gc.enable()


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_holds_an_example(batch_size):
    with pytest.raises(ValueError, match="at least 1 example"):
        halving(Work(9), batch_size, 3, explain)


def test_a_study_tries_again_where_it_says_that_the_batch_changes_nothing(project):
    study = open_study("tiny", root=project)
    assert study.batched(Work(8), 64, independent=True) == "done at 8"
    message = r"^tiny is out of memory on \w+ at batch size 64: lower it, or run it on a larger machine$"
    with pytest.raises(TokenariumError, match=message):
        study.batched(Work(8), 64, independent=False)


def test_with_a_lease_the_mend_is_to_declare_more(project):
    for slug, stage in (("tiny", "paper@tiny"), ("arena/toys", "arena@toys")):
        study = open_study(slug, root=project)
        study.lease = object()
        with pytest.raises(TokenariumError, match=f"declare more gpu_memory_gb for {stage} under `resources`"):
            study.batched(Work(0), 1, independent=True)
