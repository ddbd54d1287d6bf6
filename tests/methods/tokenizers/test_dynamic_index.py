"""The approximate index against an exhaustive search."""

import numpy as np

from tokenarium.methods.tokenizers.dynamic_index import Index, exact_best


def rows_and_states(count=400, dim=12, states=30):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((size, dim), dtype=np.float32) for size in (count, states))


def cosines(rows, states):
    return np.array([[row @ state / np.linalg.norm(row) / np.linalg.norm(state) for row in rows] for state in states])


def test_all_lists_searched_give_the_rows_of_greatest_cosine():
    rows, states = rows_and_states()
    rows *= np.linspace(0.1, 3, len(rows), dtype=np.float32)[:, None]
    near = Index(rows, lists=8, probes=8).neighbours(states, 5)
    assert np.array_equal(np.sort(near), np.sort(np.argsort(-cosines(rows, states))[:, :5]))


def test_with_all_rows_as_neighbours_the_best_is_the_exact_one_whatever_the_norms():
    rows, states = rows_and_states()
    rows *= np.linspace(0.1, 3, len(rows), dtype=np.float32)[:, None]
    expected = [max(range(len(rows)), key=lambda index: rows[index] @ state) for state in states]
    assert Index(rows, lists=8, probes=8).best(states, len(rows)).tolist() == expected
    assert exact_best(rows, states, at_once=7).tolist() == expected


def test_the_best_of_few_neighbours_is_chosen_by_exact_logit():
    rows, states = rows_and_states()
    rows *= np.linspace(0.1, 3, len(rows), dtype=np.float32)[:, None]
    index = Index(rows, lists=8, probes=2)
    for near, best, state in zip(index.neighbours(states, 6), index.best(states, 6), states, strict=True):
        assert best == max(near, key=lambda each: rows[each] @ state)


def test_fewer_rows_than_neighbours_are_no_trouble():
    rows, states = rows_and_states(count=40)
    index = Index(rows, lists=8, probes=1)
    assert (index.neighbours(states, 40) == -1).any()
    assert (index.best(states, 40) >= 0).all()


def test_scored_are_the_centres_the_lists_searched_and_the_neighbours():
    rows, states = rows_and_states()
    index = Index(rows, lists=8, probes=8)
    assert index.sizes.sum() == len(rows)
    assert index.rows_scored(states, 5).tolist() == [8 + 400 + 5] * len(states)
    fewer = Index(rows, lists=8, probes=2).rows_scored(states, 5)
    assert (fewer < 8 + 400 + 5).all()
    two_largest = np.sort(Index(rows, lists=8, probes=2).sizes)[-2:].sum()
    assert fewer.max() <= 8 + two_largest + 5


def test_an_index_is_the_same_each_time_it_is_made():
    rows, states = rows_and_states()
    first, second = (Index(rows, lists=8, probes=2, seed=3).neighbours(states, 5) for _ in range(2))
    assert np.array_equal(first, second)
