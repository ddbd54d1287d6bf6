"""TokenAdapt: rows against loops in plain Python, neighbours against a full sort, super-tokens on small text."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.tokenizers import tokenadapt

TEXT = [
    "the cat sat on the mat and the cat sat on the hat",
    "the dog sat on the mat and the dog sat on the log",
    "on the mat and on the hat, on the log and in the fog",
] * 8


def slow_softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def slow_cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_row(phi_s, phi_pieces, piece_lens, full_len, rows, similarities, neighbours, tau, lam, threshold):
    first = slow_softmax([slow_cosine(phi_s, piece) for piece in phi_pieces])
    mixed = [(w + length / full_len) / 2 for w, length in zip(first, piece_lens, strict=True)]
    local_weights = slow_softmax([value / tau for value in mixed])
    local = [sum(w * row[i] for w, row in zip(local_weights, rows, strict=True)) for i in range(len(rows[0]))]
    weights = slow_softmax([value / tau for value in similarities])
    kept = [w if value >= threshold else 0 for w, value in zip(weights, similarities, strict=True)]
    if sum(kept) == 0:
        return local
    kept = [w / sum(kept) for w in kept]
    outer = [sum(w * row[i] for w, row in zip(kept, neighbours, strict=True)) for i in range(len(rows[0]))]
    return [(1 - lam) * a + lam * b for a, b in zip(local, outer, strict=True)]


def drawn(seed, m=3, k=3, features=8, width=5):
    generator = np.random.default_rng(seed)
    return {
        "phi_s": generator.normal(size=features),
        "phi_pieces": generator.normal(size=(m, features)),
        "piece_lens": generator.integers(1, 6, size=m),
        "full_len": int(generator.integers(5, 12)),
        "E_pieces": generator.normal(size=(m, width)),
        "phi_nbr_sim": np.sort(generator.uniform(-0.5, 1, size=k))[::-1],
        "E_nbr": generator.normal(size=(k, width)),
    }


# Rows


@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 6),
    k=st.integers(1, 8),
    tau=st.sampled_from([0.1, 0.30001, 0.6]),
    lam=st.sampled_from([0.0, 0.2, 0.3, 1.0]),
    threshold=st.sampled_from([-1.0, 0.0, 0.5]),
)
def test_a_row_is_that_of_the_loop(seed, m, k, tau, lam, threshold):
    given_ = drawn(seed, m, k)
    row = tokenadapt.tokenadapt_row(**given_, tau=tau, lam=lam, threshold=threshold)
    expected = slow_row(*given_.values(), tau, lam, threshold)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_the_defaults_are_the_papers():
    given_ = drawn(1)
    expected = slow_row(*given_.values(), tau=0.30001, lam=0.3, threshold=0.0)
    np.testing.assert_allclose(tokenadapt.tokenadapt_row(**given_), expected, rtol=1e-5, atol=1e-6)


def test_an_infinite_temperature_without_the_global_part_is_the_plain_mean():
    given_ = drawn(2, m=4)
    row = tokenadapt.tokenadapt_row(**given_, tau=math.inf, lam=0.0)
    np.testing.assert_allclose(row, given_["E_pieces"].mean(axis=0), rtol=1e-6)


def test_the_second_softmax_keeps_pieces_of_equal_length_closer_than_one_alone():
    phi = np.eye(2)
    weights = tokenadapt.local_weights(phi[0], phi, [3, 3], 6)
    alone = np.exp(np.array([1, 0]) / 0.3)
    assert weights[0] > weights[1]
    assert weights[0] - weights[1] < 0.4 < 0.9 < (alone[0] - alone[1]) / alone.sum()


def test_a_longer_piece_weighs_more():
    weights = tokenadapt.local_weights([1, 0], [[1, 0], [1, 0]], [7, 1], 8)
    assert weights[0] > weights[1]


def test_without_neighbours_the_row_is_local_whatever_lambda_says():
    given_ = drawn(3)
    local = tokenadapt.tokenadapt_row(**given_, lam=0.0)
    none_near = given_ | {"phi_nbr_sim": np.full(3, -0.2)}
    nothing = given_ | {"phi_nbr_sim": np.empty(0), "E_nbr": np.empty((0, 5))}
    np.testing.assert_array_equal(tokenadapt.tokenadapt_row(**none_near), local)
    np.testing.assert_array_equal(tokenadapt.tokenadapt_row(**nothing), local)


def test_without_pieces_the_row_is_global_whatever_lambda_says():
    given_ = drawn(4)
    outer = tokenadapt.tokenadapt_row(**given_, lam=1.0)
    nothing = given_ | {"phi_pieces": np.empty((0, 8)), "piece_lens": [], "E_pieces": np.empty((0, 5))}
    np.testing.assert_array_equal(tokenadapt.tokenadapt_row(**nothing), outer)
    with pytest.raises(ValueError, match="a piece or a neighbour"):
        tokenadapt.tokenadapt_row(**(nothing | {"phi_nbr_sim": [-1.0] * 3}))


def test_a_neighbour_at_the_threshold_stays_and_one_below_drops_out():
    weights = tokenadapt.neighbour_weights([0.9, 0.5, 0.4], tau=0.3, threshold=0.5)
    expected = slow_softmax([0.9 / 0.3, 0.5 / 0.3])
    np.testing.assert_allclose(weights, [*expected, 0], rtol=1e-12)


def test_features_of_zero_and_an_empty_string_give_finite_weights():
    weights = tokenadapt.local_weights(np.zeros(3), np.zeros((2, 3)), [0, 0], 0)
    np.testing.assert_allclose(weights, [0.5, 0.5])


# Neighbours


@given(seed=st.integers(0, 1000), n=st.integers(1, 300), k=st.integers(1, 5))
@settings(max_examples=30)
def test_the_nearest_are_those_of_a_full_sort(seed, n, k):
    generator = np.random.default_rng(seed)
    queries = generator.normal(size=(n, 6))
    index = np.concatenate([generator.normal(size=(40, 6)), np.zeros((1, 6))])
    places, cosines = tokenadapt.nearest(queries, index, k)
    for query, row, found in zip(queries[:5], places, cosines, strict=False):
        slow = [slow_cosine(query, each) if any(each) else 0.0 for each in index.tolist()]
        expected = sorted(range(len(slow)), key=lambda place: -slow[place])[:k]
        assert row.tolist() == expected
        np.testing.assert_allclose(found, [slow[place] for place in expected], atol=1e-6)


def test_equal_neighbours_come_by_their_place():
    index = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    places, cosines = tokenadapt.nearest([[3.0, 0.0]], index, 2)
    assert places.tolist() == [[1, 2]]
    assert cosines.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("k", [0, 3])
def test_more_neighbours_than_rows_are_refused(k):
    with pytest.raises(ValueError, match="between 1 and 2"):
        tokenadapt.nearest([[1.0]], [[1.0], [2.0]], k)


# Super-tokens


@given(n_chars=st.integers(0, 300), seed=st.integers(0, 100))
def test_chunks_use_up_the_text_and_only_the_last_may_be_short(n_chars, seed):
    lengths = tokenadapt.chunk_lengths(n_chars, tokenadapt.CHUNKS, random.Random(seed))
    assert sum(lengths) == n_chars
    assert all(4 <= length <= 23 for length in lengths[:-1])
    assert all(1 <= length <= 23 for length in lengths[-1:])


def test_lengths_follow_the_normalised_weights():
    lengths = tokenadapt.chunk_lengths(400_000, tokenadapt.CHUNKS, random.Random(0))[:-1]
    assert sum(tokenadapt.CHUNKS.values()) == pytest.approx(1.1)
    for (low, high), weight in tokenadapt.CHUNKS.items():
        for length in (low, high):
            share, expected = lengths.count(length) / len(lengths), weight / 1.1 / 2
            assert abs(share - expected) < 5 * math.sqrt(expected / len(lengths))


def test_lengths_may_be_given_one_by_one():
    assert tokenadapt.chunk_lengths(10, {4: 1.0}, random.Random(0)) == [4, 4, 2]
    drawn_ = tokenadapt.chunk_lengths(1000, {2: 3.0, 5: 0.0, 7: 1.0}, random.Random(1))
    assert set(drawn_[:-1]) == {2, 7}


@pytest.mark.parametrize("dist", [{0: 1.0}, {(0, 3): 1.0}, {3: -1.0, 4: 2.0}, {3: 0.0}])
def test_lengths_and_weights_that_make_no_sense_are_refused(dist):
    with pytest.raises(ValueError, match="chunk"):
        tokenadapt.chunk_lengths(10, dist, random.Random(0))


@given(st.text(st.sampled_from("abc ü\n"), max_size=40), st.integers(0, 20))
def test_separators_stand_between_the_chunks_and_nowhere_else(text, seed):
    lengths = tokenadapt.chunk_lengths(len(text), {(1, 4): 1.0}, random.Random(seed))
    cut = tokenadapt.separated(text, lengths).split(tokenadapt.SEPARATOR)
    assert "".join(cut) == text
    assert [len(piece) for piece in cut] == (lengths or [0])


def test_a_text_that_holds_the_separator_is_refused():
    with pytest.raises(ValueError, match="separator"):
        tokenadapt.separated("a\ue000b", [3])


def test_super_tokens_cross_blanks_and_come_back_as_the_text():
    tokenizer = tokenadapt.train_supertokens(TEXT, 400, seed=0)
    tokens = [tokenizer.decode([index]) for index in range(tokenizer.get_vocab_size())]
    assert any(" " in token.strip() for token in tokens)
    assert tokenadapt.SEPARATOR not in "".join(tokens)
    assert max(len(token) for token in tokenizer.get_vocab()) <= 30
    encoded = tokenizer.encode(TEXT[0], add_special_tokens=False)
    assert tokenizer.decode(encoded.ids) == TEXT[0]
    assert len(encoded.ids) < len(TEXT[0].split())


def test_the_seed_decides_the_cuts():
    first, again, other = (tokenadapt.train_supertokens(TEXT, 340, seed).get_vocab() for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)


def test_runs_of_seven_are_left_out_and_shorter_ones_are_learnt():
    texts = ["-" * 9 + "=" * 5] * 20
    vocabulary = tokenadapt.train_supertokens(texts, 400, seed=0, dist={14: 1.0}).get_vocab()
    assert "=====" in vocabulary
    assert "-" * 4 not in vocabulary
