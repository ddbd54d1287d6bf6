"""Controlled mixtures: what is cut, dealt, mixed and counted, and that an attack finds what was mixed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.tokenizers import bpe, mixtures

TEXTS = ["one\ntwo three\n" * 30, "ä b ç\n" * 200, "x" * 700]


@settings(deadline=None)
@given(st.lists(st.text("abä\n \r\x0b", max_size=60), max_size=8), st.integers(1, 50))
def test_chunks_hold_all_lines_in_order(texts, size):
    chunks = mixtures.cut(texts, size)
    assert "".join(chunks) == "".join(f"{text}\n" for text in texts)
    assert all(len(chunk.encode()) >= size for chunk in chunks[:-1])


def test_halves_are_disjoint_complete_and_depend_on_the_seed():
    chunks = [str(index) for index in range(101)]
    a, b = mixtures.halves(chunks, 0)
    assert sorted(a + b, key=int) == chunks
    assert (len(a), len(b)) == (51, 50)
    assert mixtures.halves(chunks, 0) == (a, b)
    assert mixtures.halves(chunks, 1) != (a, b)


@pytest.mark.parametrize("num_bytes", [1, 1999, 2500, 4000.4])
def test_taken_text_has_the_size_that_was_asked_for(num_bytes):
    chunks = mixtures.cut(TEXTS)
    size = sum(len(text.encode()) for text in mixtures.take(chunks, num_bytes, repeat=True))
    assert abs(size - num_bytes) <= 2  # a character may have to be left out


def test_short_text_is_repeated_only_on_demand():
    assert "".join(mixtures.take(["ab", "cd"], 9, repeat=True)) == "abcdabcda"
    assert "".join(mixtures.take(["ab", "cd"], 9)) == "abcd"
    assert mixtures.take(["ab"], 0) == []
    with pytest.raises(ValueError, match="no text"):
        mixtures.take([], 5)


def test_a_mixture_has_its_shares_in_bytes():
    chunks = [["a" * 10] * 3, ["ä" * 10] * 3]
    text = "".join(mixtures.mix(chunks, [0.25, 0.75], 400))
    assert text.count("a") == 100
    assert 2 * text.count("ä") == 300


def test_a_sample_counts_words_and_bytes():
    sample = mixtures.Sample.of(["a ä a", " a"], bpe.gpt2_words())
    assert sample.words == Counter({b"a": 1, " ä".encode(): 1, b" a": 2})
    assert sample.num_bytes == len("a ä a a".encode())


@pytest.fixture(scope="module")
def made():
    """Three categories of made-up words, their halves, and a tokenizer of a known mixture."""
    generator = np.random.default_rng(0)

    def text(letters, lines=900):
        words = ["".join(generator.choice(list(letters), generator.integers(2, 7))) for _ in range(80)]
        return [" ".join(generator.choice(words, 8)) for _ in range(lines)]

    chunks = [mixtures.cut(text(letters), 500) for letters in ("abcdef", "efghij", "klmnoa")]
    a, b = zip(*(mixtures.halves(each, 0) for each in chunks), strict=True)
    truth = np.array([0.6, 0.3, 0.1])
    return a, b, truth, bpe.train(mixtures.mix(a, truth, 30_000), 356, bpe.digit_words())


def test_an_attack_recovers_the_byte_shares(made):
    _, b, truth, trained = made
    samples = [mixtures.Sample.of(half, bpe.digit_words()) for half in b]
    replay = bpe.replay(trained.merges, [sample.words for sample in samples])
    found = mixtures.attack(replay, samples, 100).against(truth)
    assert found["log_mse"] < -2.5
    assert found["largest_found"]
    assert found["max_error"] == pytest.approx(np.abs(np.array(found["shares"]) - truth).max())


def test_an_attack_on_late_merges_uses_their_counts_only(made):
    _, b, _, trained = made
    samples = [mixtures.Sample.of(half, bpe.digit_words()) for half in b]
    replay = bpe.replay(trained.merges, [sample.words for sample in samples])
    late = mixtures.attack(replay, samples, 50, start=50)
    assert late.shares.sum() == pytest.approx(1)
    assert late.constraints > 0
    assert not np.array_equal(late.shares, mixtures.attack(replay, samples, 50).shares)


def test_token_counts_are_those_of_encoding_each_text(made):
    _, b, _, trained = made
    texts = [half[:3] for half in b]
    counts, efficiency = mixtures.token_counts(trained, texts)
    rank = bpe.ranks(trained.merges)
    for category, each in enumerate(texts):
        expected = Counter()
        for text in each:
            for word, _ in trained.pre_tokenizer.pre_tokenize_str(text):
                expected.update(bpe.segment(bpe.from_characters(word), rank))
        tokens = trained.vocabulary[256:]
        assert counts[:, category].tolist() == [expected[token] for token in tokens]
        size = sum(len(text.encode()) for text in each)
        assert efficiency[category] == pytest.approx(size / expected.total())


def test_baselines_give_shares_and_are_worse_than_the_program(made):
    _, b, _, trained = made
    texts = [mixtures.take(half, 4_000) for half in b]
    library = mixtures.efficiency_library(b, texts, 356, 20_000, 4, bpe.digit_words(), seed=0)
    assert library.single.shape == (3, 3)
    assert library.known.shape == library.shares.shape == (4, 3)
    assert (library.single.argmax(axis=0) == np.arange(3)).all()  # its own tokenizer fits a category best
    for shares in mixtures.baseline_shares(trained, texts, library).values():
        assert shares.sum() == pytest.approx(1)
        assert shares.min() >= 0


def test_guesses_are_the_errors_of_knowing_nothing():
    truth = np.array([0.7, 0.2, 0.1])
    guesses = mixtures.guesses(truth, seed=0)
    expected = np.log10(np.mean((truth - 1 / 3) ** 2))
    assert guesses["uniform"] == pytest.approx(expected)
    assert guesses == mixtures.guesses(truth, seed=0)
    assert -2.5 < guesses["random"] < -0.3
