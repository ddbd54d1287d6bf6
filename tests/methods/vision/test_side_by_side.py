"""Batches side by side give what batches one after the other give, in order, and leave torch as it was."""

import threading

import pytest
import torch

from tokenarium.methods.vision.harness.batches import over_batches

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(two_threads):
    first_waits = threading.Event()

    def square(number):
        if number == 0:
            assert first_waits.wait(10)  # passes only when another item runs beside it
        first_waits.set() if number else None
        return number * number

    assert over_batches(square, iter(range(5)), CPU) == [0, 1, 4, 9, 16]


def test_every_item_runs_on_one_thread_and_the_caller_keeps_its_own(two_threads):
    assert over_batches(lambda _: torch.get_num_threads(), range(4), CPU) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_a_failing_item_raises_and_the_caller_keeps_its_threads(two_threads):
    with pytest.raises(ZeroDivisionError):
        over_batches(lambda number: 1 / number, [1, 0], CPU)
    assert torch.get_num_threads() == 2


def test_another_device_gets_one_item_after_the_other(two_threads):
    names = over_batches(lambda _: threading.current_thread().name, range(3), torch.device("meta"))
    assert set(names) == {threading.current_thread().name}
