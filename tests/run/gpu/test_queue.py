"""The order of the queue: first come, first served, and who passes delays nobody."""

from itertools import chain, combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.run.gpu.queue import Job, Room, plan, spare


def job(ticket, need, user="anna", limit=9, gpus=("A", "B")):
    return Job(f"job{ticket}", ticket, user, need, limit, gpus)


def test_everybody_who_fits_starts():
    assert plan([Room("A", 10)], {}, [job(1, 4), job(2, 6)]) == {"job1": "A", "job2": "A"}


def test_the_first_to_come_is_the_first_served_whatever_the_order_of_asking():
    jobs = [job(1, 6), job(2, 6), job(3, 6)]
    for order in permutations(jobs):
        assert plan([Room("A", 8)], {}, order) == {"job1": "A"}


def test_a_small_job_passes_where_the_head_has_room_to_spare():
    # the head starts when the piece of 20 ends, and leaves 5
    room = Room("A", 10, (20,))
    assert plan([room], {}, [job(1, 25), job(2, 5)]) == {"job2": "A"}
    assert plan([room], {}, [job(1, 25), job(2, 6)]) == {}


def test_a_small_job_that_fits_now_does_not_pass_where_it_would_delay_the_head():
    # either piece is enough for the head, and only just
    assert plan([Room("A", 10, (10, 10))], {}, [job(1, 20), job(2, 10)]) == {}


def test_those_who_pass_do_not_add_up_to_a_delay():
    room = Room("A", 10, (20,))
    assert plan([room], {}, [job(1, 25), job(2, 3), job(3, 3), job(4, 2)]) == {"job2": "A", "job4": "A"}


def test_a_gpu_that_the_head_cannot_use_is_free_for_all():
    rooms = [Room("A", 1, (9,)), Room("B", 4)]
    assert plan(rooms, {}, [job(1, 8, gpus=("A",)), job(2, 4)]) == {"job2": "B"}


def test_a_job_gets_the_gpu_with_the_most_room():
    assert plan([Room("A", 5), Room("B", 9), Room("C", 7)], {}, [job(1, 5)]) == {"job1": "B"}


def test_a_user_at_the_limit_is_passed_over_and_delays_nobody():
    jobs = [job(1, 20, "anna", 2), job(2, 5, "bob", 2)]
    assert plan([Room("A", 10, (10,))], {"anna": 2}, jobs) == {"job2": "A"}
    assert plan([Room("A", 10, (10,))], {"anna": 1}, jobs) == {}


def test_leases_that_start_now_count_for_the_limit():
    jobs = [job(1, 1, "anna", 2), job(2, 1, "anna", 2), job(3, 1, "bob", 2)]
    assert set(plan([Room("A", 10)], {"anna": 1}, jobs)) == {"job1", "job3"}


def test_spare_is_what_is_left_in_the_least_lucky_order():
    assert spare(Room("A", 3, (4, 9)), 7) == 0
    assert spare(Room("A", 3, (9,)), 7) == 5
    assert spare(Room("A", 3, (2, 2, 9)), 7) == 0
    assert spare(Room("A", 3, (1,)), 7) == 3  # never fits: nothing to lose


def subsets(values):
    return chain.from_iterable(combinations(values, count) for count in range(len(values) + 1))


sizes = st.integers(1, 12)


@given(st.integers(0, 12), st.lists(sizes, max_size=5), sizes)
def test_spare_agrees_with_trying_every_set_of_ends(free, pieces, more):
    need = free + more
    left = [free + sum(ended) - need for ended in subsets(pieces) if free + sum(ended) >= need]
    assert spare(Room("A", free, tuple(pieces)), need) == (min(left) if left else free)


def start_of(need, free, order):
    """After how many of the pieces, ending in this order, a job starts; None if never."""
    for ended in range(len(order) + 1):
        if free + sum(order[:ended]) >= need:
            return ended
    return None


@settings(max_examples=200)
@given(st.integers(0, 12), st.lists(sizes, max_size=4), st.lists(sizes, min_size=2, max_size=5))
def test_the_head_starts_no_later_for_those_who_pass_it(free, pieces, needs):
    jobs = [job(ticket, need, gpus=("A",)) for ticket, need in enumerate(needs)]
    started = plan([Room("A", free, tuple(pieces))], {}, jobs)
    head = next((each for each in jobs if each.id not in started), None)
    if head is None:
        return
    before = sum(each.need for each in jobs if each.id in started and each.ticket < head.ticket)
    passing = sum(each.need for each in jobs if each.id in started and each.ticket > head.ticket)
    assert before + passing <= free
    for order in permutations(pieces):
        # those before the head, and those who pass, stay for ever here: their end would only help it
        assert start_of(head.need, free - before, order) == start_of(head.need, free - before - passing, order)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.lists(sizes, max_size=6), st.integers(1, 3))
def test_nobody_gets_more_than_there_is_and_the_limit_holds(frees, needs, limit):
    rooms = [Room(f"gpu{index}", free) for index, free in enumerate(frees)]
    gpus = tuple(room.gpu for room in rooms)
    jobs = [job(ticket, need, "ab"[ticket % 2], limit, gpus) for ticket, need in enumerate(needs)]
    started = plan(rooms, {}, jobs)
    for room in rooms:
        assert sum(each.need for each in jobs if started.get(each.id) == room.gpu) <= room.free
    for user in "ab":
        assert sum(each.user == user for each in jobs if each.id in started) <= limit


def test_the_first_always_starts_on_an_empty_gpu():
    for first in range(1, 11):
        assert "job1" in plan([Room("A", 10)], {}, [job(1, first), job(2, 10)])


@pytest.mark.parametrize("pieces", [(2**14,) * 64, tuple(range(1000, 1200))])
def test_many_leases_of_a_large_gpu_are_planned_at_once(pieces):
    assert spare(Room("A", 100, pieces), 80_000) >= 0
