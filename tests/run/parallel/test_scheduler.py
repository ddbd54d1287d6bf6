"""The scheduler starts what is ready, packs what fits, puts the longest chain first, and drops what fails."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.run.parallel.scheduler import Job, Node, Scheduler, simulate
from tokenarium.run.resources import Resources

ONE = Resources(cpus=1, memory_gb=0)
TWO_CORES = Node("n", 2, 8)


def needs(cpus=1, memory=0, gpu=0):
    return Resources(cpus=cpus, memory_gb=memory, gpu_memory_gb=gpu)


def job(name, *upstream, seconds=1.0, needs=ONE):
    return Job(name, frozenset(upstream), needs, seconds)


def admitted(jobs, nodes, slots):
    state = Scheduler(jobs, nodes, slots)
    for name in list(state.undecided):
        state.admit(name)
    return state


def started(state, now=0.0):
    return [name for name, _ in iter(lambda: state.start(now), None)]


@st.composite
def graphs(draw):
    """Up to twelve jobs, each after some of those before it, and one to three nodes on which each fits."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    jobs = []
    for index in range(rng.randrange(1, 13)):
        before = rng.sample(range(index), rng.randrange(min(index, 3) + 1))
        asked = needs(rng.choice([0.5, 1, 2]), rng.choice([0, 2, 4]), rng.choice([0, 0, 4, 10, 20]))
        jobs.append(job(f"j{index}", *(f"j{each}" for each in before), seconds=rng.choice([0, 1, 2, 7]), needs=asked))
    nodes = [Node("big", 2, 4, (10.0, 10.0)), Node("small", 1, 2), Node("other", 2, 8, (16.0,))]
    return jobs, nodes[: rng.randrange(1, 4)], rng.randrange(1, 5)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_every_job_runs_once_after_its_upstream_and_within_what_its_node_has(graph):
    jobs, nodes, slots = graph
    state, clock, ends, done = Scheduler(jobs, nodes, slots), 0.0, {}, []
    asked = {each.name: each for each in jobs}
    while not state.over:
        for name in list(state.undecided):
            state.admit(name)
        while begun := state.start(clock):
            assert asked[begun[0]].upstream <= set(done)
            ends[begun[0]] = clock + asked[begun[0]].seconds
        assert 0 < len(ends) <= slots
        for node in nodes:
            here = [asked[name].needs for name, run in state.running.items() if run.node == node.name]
            assert sum(each.cpus for each in here) <= node.cpus
            assert sum(each.memory_gb for each in here) <= node.memory_gb
            assert sum(each.gpu_memory_gb for each in here) <= sum(node.gpus)
        name = min(ends, key=lambda name: (ends[name], name))  # at the same time, by name
        clock = ends.pop(name)
        state.settle(name)
        done.append(name)
    assert sorted(done) == sorted(asked)
    assert clock == simulate(jobs, nodes, slots)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_a_run_is_no_shorter_than_its_longest_chain_or_its_work_and_no_longer_than_one_at_a_time(graph):
    jobs, nodes, slots = graph
    longest = {}
    for each in jobs:
        longest[each.name] = each.seconds + max((longest[name] for name in each.upstream), default=0)
    total = sum(each.seconds for each in jobs)
    took = simulate(jobs, nodes, slots)
    assert max(*longest.values(), total / slots) - 1e-9 <= took <= total + 1e-9
    assert simulate(jobs, nodes, 1) == pytest.approx(total)


def test_with_room_for_all_a_run_takes_as_long_as_its_longest_chain():
    jobs = [job("a", seconds=3), job("b", "a", seconds=4), job("c", "a", seconds=1), job("d", "b", "c", seconds=2)]
    assert simulate(jobs, [Node("n", 8, 8)], 8) == 9


def test_the_longest_chain_goes_first():
    jobs = [job("alone", seconds=5), job("first", seconds=1), job("second", "first", seconds=9)]
    assert started(admitted(jobs, [TWO_CORES], 1)) == ["first"]
    assert simulate(jobs, [TWO_CORES], 2) == 10


def test_no_more_jobs_run_than_there_are_slots():
    assert len(started(admitted([job(f"j{i}") for i in range(5)], [Node("n", 8, 8)], 3))) == 3


@pytest.mark.parametrize(
    ("asked", "fit"),
    [
        (needs(gpu=10), 2),  # one on each device
        (needs(gpu=5), 4),
        (needs(gpu=6), 2),  # 8 GB are free after two, but 4 on each device
        (needs(gpu=4), 4),
        (needs(gpu=20), 1),  # both devices, whole
        (needs(memory=3), 2),
        (needs(cpus=3), 2),
    ],
)
def test_cores_memory_and_devices_are_shared_as_far_as_they_go(asked, fit):
    jobs = [job(f"j{i}", needs=asked) for i in range(6)]
    assert len(started(admitted(jobs, [Node("n", 8, 8, (10.0, 10.0))], 6))) == fit


@pytest.mark.parametrize("asked", [needs(cpus=3), needs(memory=9), needs(gpu=1)])
def test_what_fits_no_node_is_told_before_anything_runs(asked):
    state = Scheduler([job("small"), job("large", needs=asked)], [TWO_CORES], 2)
    assert state.unfit() == ["large"]


def test_two_large_jobs_of_different_sorts_find_their_nodes():
    jobs = [job("wide", needs=needs(cpus=4)), job("gpu", needs=needs(gpu=8))]
    state = admitted(jobs, [Node("cpus", 4, 8), Node("gpus", 1, 8, (8.0,))], 2)
    assert dict(iter(lambda: state.start(0.0), None)) == {"wide": "cpus", "gpu": "gpus"}


def test_a_small_job_passes_a_large_one_only_where_it_does_not_delay_it():
    large = job("large", seconds=100, needs=needs(cpus=2))
    state = admitted(
        [job("running", seconds=10), large, job("short", seconds=9), job("long", seconds=50)], [TWO_CORES], 4
    )
    state.ready = ["running"]
    assert started(state) == ["running"]
    state.ready = ["large", "short", "long"]
    assert started(state) == ["short"]  # ends before `running` does
    state.settle("short")
    state.settle("running")
    assert started(state, now=10.0) == ["large"]


def test_what_comes_after_a_failure_is_dropped_and_named_once_and_the_rest_goes_on():
    jobs = [job("a"), job("b", "a"), job("c", "b"), job("d", "b", "e"), job("e"), job("f", "e")]
    state = admitted(jobs, [Node("n", 8, 8)], 8)
    started(state)
    assert sorted(state.drop("a")) == ["b", "c", "d"]
    assert state.drop("e") == ["f"]
    assert state.over


def test_a_job_with_nothing_to_do_takes_no_room_and_lets_the_next_be_decided():
    state = Scheduler([job("a"), job("b", "a")], [TWO_CORES], 1)
    state.settle("a")
    assert state.undecided == ["b"]
    assert not state.running


def test_a_forecast_changes_nothing_and_counts_what_already_ran():
    state = admitted([job("a", seconds=10), job("b", "a", seconds=5)], [TWO_CORES], 1)
    started(state)
    before = (list(state.undecided), list(state.ready), dict(state.running), set(state.settled))
    assert [state.forecast(now) for now in (0.0, 4.0, 30.0)] == [15.0, 11.0, 5.0]
    assert (list(state.undecided), list(state.ready), dict(state.running), set(state.settled)) == before
    assert state._rooms["n"].cpus == 1


@pytest.mark.parametrize(
    ("jobs", "slots", "said"),
    [
        ([job("a"), job("a")], 1, "a is there twice"),
        ([job("a", "b")], 1, "a waits for b, which is no job"),
        ([job("a", "b"), job("b", "a"), job("c")], 1, "a, b wait for one another in a circle"),
        ([job("a")], 0, "slots must be at least 1, got 0"),
    ],
)
def test_a_graph_that_is_none_is_refused(jobs, slots, said):
    with pytest.raises(ValueError, match=said):
        Scheduler(jobs, [TWO_CORES], slots)


def test_longest_chain_first_comes_close_to_the_best_order():
    """The best of all orders of one chain of three among five independent jobs, on two cores."""
    jobs = [job("a", seconds=2), job("b", "a", seconds=2), job("c", "b", seconds=2)]
    jobs += [job(f"x{i}", seconds=seconds) for i, seconds in enumerate([1, 2, 3])]
    best = min(_list_schedule(order) for order in itertools.permutations(jobs))
    assert simulate(jobs, [TWO_CORES], 2) == best == 6


def _list_schedule(order):
    """Two cores, each job as soon as its upstream is done and a core is free, in this order of preference."""
    cores, ended, waiting = [0.0, 0.0], {}, list(order)
    while waiting:
        options = []
        for place, each in enumerate(waiting):
            if each.upstream <= set(ended):
                core = min(range(2), key=cores.__getitem__)
                begin = max([cores[core], *(ended[name] for name in each.upstream)])
                options.append((begin, place, core))
        begin, place, core = min(options)
        each = waiting.pop(place)
        cores[core] = ended[each.name] = begin + each.seconds
    return max(ended.values())
