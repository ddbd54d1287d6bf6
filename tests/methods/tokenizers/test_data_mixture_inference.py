"""Data mixture inference: against the program with all constraints written out, and on mixtures known exactly."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import data_mixture_inference as dmi

LETTERS = (b"abcde", b"defgh", b"ghija", b"aeiou")


def made_up_words(letters, seed, size=60):
    """Counts of words of 2 to 7 letters from a long-tailed vocabulary."""
    draw = random.Random(seed)
    words = {bytes(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(size)}
    return Counter({word: draw.randint(1, 40) for word in sorted(words)})


CATEGORIES = [made_up_words(letters, seed) for seed, letters in enumerate(LETTERS)]


def mixed(parts):
    """The training data that hold category i `parts[i]` times."""
    total = Counter()
    for words, part in zip(CATEGORIES, parts, strict=False):
        total.update({word: part * count for word, count in words.items()})
    return total


def num_pairs(words):
    return sum((len(word) - 1) * count for word, count in words.items())


def true_alpha(parts):
    """Shares of pairs: what the program estimates."""
    pairs = np.array([part * num_pairs(words) for words, part in zip(CATEGORIES, parts, strict=False)], dtype=float)
    return pairs / pairs.sum()


def replayed(parts, num_merges=80):
    merges = bpe.train_words(mixed(parts), num_merges)
    return merges, bpe.replay(merges, CATEGORIES[: len(parts)])


def full_program(replay, pair_slack=True):
    """The optimum with every constraint written out, dense."""
    n, num_steps, num_pairs_ = replay.initial.shape[1], replay.num_steps, len(replay.pairs)
    scale = replay.num_pairs_at_start
    rows = []
    for step, counts in enumerate(replay.counts()):
        merge = replay.merge_pair[step]
        if merge < 0 or not counts[merge].any():
            continue
        for pair in range(num_pairs_):
            if pair != merge:
                row = np.zeros(n + num_steps + num_pairs_)
                row[:n] = (counts[pair] - counts[merge]) / scale
                row[n + step] = -1
                row[n + num_steps + pair] = -1
                rows.append(row)
    upper = [None] * n + [None] * num_steps + [None if pair_slack else 0] * num_pairs_
    cost = np.r_[np.zeros(n), np.ones(num_steps + num_pairs_)]
    found = linprog(
        cost,
        A_ub=np.array(rows),
        b_ub=np.zeros(len(rows)),
        A_eq=[np.r_[np.ones(n), np.zeros(len(cost) - n)]],
        b_eq=[1],
        bounds=[(0, top) for top in upper],
    )
    return found.x[:n], found.fun


@pytest.mark.parametrize("parts", [(1, 1), (5, 2), (3, 1, 2), (7, 1, 1, 4)])
def test_the_exact_training_counts_violate_nothing(parts):
    _, replay = replayed(parts)
    found = dmi.infer(replay)
    assert found.objective == pytest.approx(0, abs=1e-9)
    true = true_alpha(parts)
    for step, counts in enumerate(replay.counts()):
        values = counts / replay.num_pairs_at_start @ true
        assert values[replay.merge_pair[step]] >= values.max() - 1e-12


@pytest.mark.parametrize("parts", [(5, 2), (3, 1, 2), (7, 1, 1, 4)])
def test_the_mixture_is_found_from_its_own_counts(parts):
    _, replay = replayed(parts, 150)
    assert np.abs(dmi.infer(replay).alpha - true_alpha(parts)).max() < 0.03


@pytest.mark.parametrize("pair_slack", [True, False])
@pytest.mark.parametrize("parts", [(1, 2), (4, 1, 2)])
def test_lazy_constraints_reach_the_optimum_of_all_of_them(parts, pair_slack):
    merges, _ = replayed(parts, 25)
    # Words other than those of the training, so that no mixture fits all steps.
    other = [made_up_words(letters, 100 + seed) for seed, letters in enumerate(LETTERS[: len(parts)])]
    replay = bpe.replay(merges, other)
    alpha, optimum = full_program(replay, pair_slack)
    found = dmi.infer(replay, pair_slack=pair_slack, tolerance=1e-10)
    assert optimum > 1e-4
    assert found.objective == pytest.approx(optimum, rel=1e-6)
    np.testing.assert_allclose(found.alpha, alpha, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.integers(0, 6), min_size=2, max_size=4).filter(any),
    per_round=st.sampled_from([1, 5, 100, None]),
    per_step=st.sampled_from([1, 3, 10]),
)
def test_the_optimum_does_not_depend_on_how_constraints_are_collected(parts, per_round, per_step):
    merges = bpe.train_words(mixed(parts), 15)
    replay = bpe.replay(merges, [made_up_words(letters, 50) for letters in LETTERS[: len(parts)]])
    reference = dmi.infer(replay, tolerance=1e-9)
    found = dmi.infer(replay, tolerance=1e-9, per_round=per_round, per_step=per_step, max_rounds=10_000)
    assert found.objective == pytest.approx(reference.objective, abs=1e-6)


def test_the_solution_keeps_every_constraint_to_the_tolerance():
    merges, _ = replayed((3, 1, 2), 40)
    replay = bpe.replay(merges, [made_up_words(letters, 9) for letters in LETTERS[:3]])
    found = dmi.infer(replay, tolerance=1e-6)
    assert found.alpha.sum() == pytest.approx(1)
    assert min(found.alpha.min(), found.v_t.min(), found.v_p.min()) >= -1e-12
    for step, counts in enumerate(replay.counts()):
        merge = replay.merge_pair[step]
        if merge < 0 or not counts[merge].any():
            continue
        values = counts / replay.num_pairs_at_start @ found.alpha
        others = np.delete(values - found.v_p, merge)
        assert others.max() <= values[merge] + found.v_t[step] + 1.01e-6


def test_a_merge_that_occurs_nowhere_is_skipped():
    merges, replay = replayed((3, 1), 30)
    strange = [*merges[:10], (b"\x00", b"\x01"), *merges[10:]]
    found = dmi.infer(bpe.replay(strange, CATEGORIES[:2]))
    np.testing.assert_allclose(found.alpha, dmi.infer(replay).alpha, atol=1e-9)
    assert found.v_t[10] == 0
    assert 10 not in found.steps


def test_merges_that_all_occur_nowhere_say_nothing():
    found = dmi.infer(bpe.replay([(b"\x00", b"\x01"), (b"\x02", b"\x03")], CATEGORIES[:2]))
    np.testing.assert_allclose(found.alpha, 0.5)
    assert found.objective == 0


def test_merges_that_mostly_occur_nowhere_are_no_trouble():
    merges, replay = replayed((3, 1), 30)
    strange = [(bytes([a]), bytes([b])) for a in range(10) for b in range(10)]
    found = dmi.infer(bpe.replay([*merges, *strange], CATEGORIES[:2]))
    np.testing.assert_allclose(found.alpha, dmi.infer(replay).alpha, atol=1e-9)


def test_a_category_that_was_not_used_gets_nothing():
    _, replay = replayed((1, 0, 0), 120)
    assert dmi.infer(replay).alpha[0] > 0.97


def test_denominators_must_fit():
    _, replay = replayed((1, 1), 5)
    for denoms in ([1.0], [1.0, 0.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="denoms must be 2 positive numbers"):
            dmi.infer(replay, denoms)


def test_too_few_rounds_are_an_error():
    merges, _ = replayed((3, 1, 2), 40)
    replay = bpe.replay(merges, [made_up_words(letters, 9) for letters in LETTERS[:3]])
    with pytest.raises(RuntimeError, match="still violated after 1 rounds"):
        dmi.infer(replay, max_rounds=1)


# Dictionaries of counts


def slow_counts(word_counts, merges):
    """Pair counts before each merge, counted anew."""
    words = [([bytes([byte]) for byte in word], times) for word, times in word_counts.items()]
    rank = bpe.ranks(merges)
    for step in range(len(merges)):
        known = {pair: place for pair, place in rank.items() if place < step}
        counts = Counter()
        for word, times in words:
            symbols = bpe.segment(b"".join(word), known)
            for left, right in zip(symbols, symbols[1:], strict=False):  # noqa: RUF007 (the obvious way)
                counts[left, right] += times
        yield counts


def test_listed_counts_add_up_to_all_counts_before_each_merge():
    merges = bpe.train_words(mixed((1, 1)), 40)
    state = {}
    for listed, expected in zip(dmi.replay(merges, CATEGORIES[0]), slow_counts(CATEGORIES[0], merges), strict=True):
        assert all(state.get(pair, 0) != count for pair, count in listed.items())
        state.update(listed)
        assert {pair: count for pair, count in state.items() if count} == dict(expected)


@pytest.mark.parametrize("by_step", [False, True])
def test_the_program_over_dictionaries_is_the_same(by_step):
    merges, _ = replayed((4, 1, 2), 60)
    samples = [made_up_words(letters, 77) for letters in LETTERS[:3]]
    replay = bpe.replay(merges, samples)
    counts = [dmi.replay(merges, words) for words in samples]
    listed = [list(step) for step in zip(*counts, strict=True)] if by_step else counts
    alpha, v_t, v_p = dmi.mixture_lp(merges, listed, replay.num_pairs_at_start.tolist())
    expected = dmi.infer(replay)
    assert v_t.sum() + sum(v_p.values()) == pytest.approx(expected.objective, abs=1e-6)
    np.testing.assert_allclose(alpha, expected.alpha, atol=1e-4)
    assert alpha.dtype == v_t.dtype == np.float64
    assert v_t.shape == (len(merges),)
    assert all(value > 0 for value in v_p.values())


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must hold 2 categories with 1 steps each"):
        dmi.mixture_lp([(b"a", b"b")], [[{}, {}], [{}, {}]], [1.0, 1.0])


# Shares, errors, random mixtures


def test_pair_shares_become_byte_shares():
    words = CATEGORIES[:3]
    parts = (4, 1, 2)
    num_bytes = [sum(len(word) * count for word, count in each.items()) for each in words]
    true_bytes = np.array(parts) * num_bytes / np.dot(parts, num_bytes)
    shares = dmi.byte_shares(true_alpha(parts), num_bytes, [num_pairs(each) for each in words])
    np.testing.assert_allclose(shares, true_bytes)


def test_the_error_is_the_log_of_the_mean_square():
    assert dmi.log_mse([0.5, 0.5], [0.4, 0.6]) == pytest.approx(-2)
    assert dmi.log_mse([0.5, 0.5], [0.5, 0.5]) == -16


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(0, 100))
def test_random_mixtures_lie_on_the_grid_of_the_simplex(n, seed):
    shares = dmi.random_mixture(n, np.random.default_rng(seed))
    assert shares.shape == (n,)
    assert shares.sum() == pytest.approx(1)
    steps = shares * 10_000
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert steps.min() > 0.5


def test_random_mixtures_are_uniform_on_the_simplex():
    generator = np.random.default_rng(0)
    drawn = np.array([dmi.random_mixture(3, generator) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=0.015)
    np.testing.assert_allclose(drawn.var(axis=0), 1 / 18, atol=0.004)  # Dirichlet(1, 1, 1)


# Baselines


def test_each_token_votes_for_the_category_where_it_is_most_frequent():
    counts = [[10, 0], [9, 1], [5, 2], [0, 3], [0, 0]]  # frequencies of the third: 5/24 and 2/6
    np.testing.assert_allclose(dmi.token_shares(counts), [0.5, 0.5])


def test_efficiency_of_one_categorys_own_tokenizer_gives_it_all():
    single = np.array([[4.0, 2.0, 2.0], [2.5, 5.0, 2.0], [1.5, 2.0, 3.0]])
    for category in range(3):
        shares = dmi.efficiency_shares(single[category], single)
        assert shares[category] >= 1 / 2
        assert shares.argmax() == category
    halfway = (np.diag(single) + (single.sum(axis=0) - np.diag(single)) / 2) / 2
    np.testing.assert_allclose(dmi.efficiency_shares(halfway, single), 1 / 3)


def test_efficiency_no_better_than_foreign_gives_equal_shares():
    single = np.array([[4.0, 2.0], [2.5, 5.0]])
    np.testing.assert_allclose(dmi.efficiency_shares([1.0, 1.0], single), 0.5)


def test_the_nearest_known_mixture_is_taken():
    known, shares = [[4.0, 2.0], [3.0, 3.0], [2.0, 4.0]], [[1, 0], [0.5, 0.5], [0, 1]]
    np.testing.assert_allclose(dmi.nearest_shares([2.9, 3.2], known, shares), [0.5, 0.5])
