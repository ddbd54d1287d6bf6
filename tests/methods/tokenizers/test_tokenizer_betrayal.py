"""Phantom edits: outcomes, classes, segmentations, alignment, exact masses."""

import random
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import tokenizer_betrayal as betrayal

TEXTS = ["the quick brown fox and the lazy dog", "a fox, a dog and the other fox", "brown dogs do not jump at noon"]


def slot(before, after):
    """classify_slot on spelled tokens; the same spelling has the same id."""
    vocabulary = list(dict.fromkeys([*before, *after]))
    return betrayal.classify_slot(
        [vocabulary.index(each) for each in before], [vocabulary.index(each) for each in after], vocabulary
    )


# Outcomes


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ([b" dog"], [b" dog"], "copy"),
        ([b" dog"], [b" do", b"g"], "phantom"),
        ([b" dog"], [b" cat"], "real"),
        ([b" dog"], ["ğ".encode()], "real"),
        ([b" dog"], [], "invalid"),
        ([b" dog"], [b" 42"], "invalid"),
        ([b" dog"], [b"\n"], "invalid"),
        ([b" dog"], [b" do", b"\xc3"], "invalid"),
        ([b" dog"], [b"dog"], "real"),
    ],
)
def test_a_slot_is_compared_on_ids_and_on_bytes(before, after, outcome):
    assert slot(before, after)[0] == outcome


@given(st.lists(st.integers(0, 5), max_size=5), st.lists(st.integers(0, 5), max_size=5))
def test_a_phantom_has_other_ids_and_the_same_bytes_and_nothing_else_has_a_class(ids_in, ids_out):
    token_bytes = [b"a", b"b", b"ab", b"ba", b" ", b" a"]
    outcome, kind = betrayal.classify_slot(ids_in, ids_out, token_bytes)
    spelled = [b"".join(token_bytes[each] for each in ids) for ids in (ids_in, ids_out)]
    assert (outcome == "phantom") == (bool(ids_out) and ids_in != ids_out and spelled[0] == spelled[1])
    assert (kind in betrayal.ARTIFACTS) == (outcome == "phantom")


# Classes


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([b" dog"], [b" ", b"dog"], "A1"),
        ([b"a ", b"dog"], [b"a", b" dog"], "A1"),
        ([b" dog"], [b" d", b"og"], "A2"),
        ([b" dog", b"."], [b" dog."], "A3"),
        ([b" dog\n"], [b" dog", b"\n"], "A3"),
        ([b"don", b"'t"], [b"don'", b"t"], "A3"),
        ([b"123", b"4"], [b"1", b"234"], "A4"),
        (["é".encode()], [b"\xc3", b"\xa9"], "A5"),
        ([b" red", b" dog"], [b" red dog"], "A6"),
        ([b" US", b"A"], [b" USA"], "A7"),
        ([b" Dog"], [b" D", b"og"], "A7"),
        ([b" Dog"], [b" Do", b"g"], "A2"),
        ([b"<|end|>"], [b"<|", b"end", b"|>"], "A8"),
        ([b"[MASK]"], [b"[", b"MASK", b"]"], "A8"),
    ],
)
def test_classes_by_example_and_the_same_from_both_sides(before, after, kind):
    assert slot(before, after) == ("phantom", kind)
    assert slot(after, before) == ("phantom", kind)


def test_two_ids_of_one_spelling_are_an_added_token():
    assert betrayal.classify_slot([0], [1], [b"dog", b"dog"]) == ("phantom", "A8")


def test_the_first_rule_wins_where_several_match():
    assert slot([" é1".encode()], [b" ", b"\xc3", b"\xa9", b"1"])[1] == "A5"
    assert slot([b" 12"], [b" ", b"1", b"2"])[1] == "A4"
    assert slot([b" dog."], [b" ", b"dog", b"."])[1] == "A1"


def test_made_up_cases_are_named_as_they_were_made():
    cases = betrayal.labelled_cases(30, seed=3)
    assert [betrayal.named(case) for case in cases] == [case.label for case in cases]
    assert {case.label for case in cases} == set(betrayal.ARTIFACTS)
    assert all(b"".join(case.before) == b"".join(case.after) for case in cases)


# Segmentations


def brute(s, vocab, most):
    """Every set of places to cut, in the order of piece lengths."""
    found = []
    for pieces in range(1, most + 1):
        for places in combinations(range(1, len(s)), pieces - 1):
            edges = [0, *places, len(s)]
            parts = [s[first:last] for first, last in pairwise(edges)]
            if all(part in vocab for part in parts):
                found.append(([len(part) for part in parts], [vocab[part] for part in parts]))
    return [ids for _, ids in sorted(found)]


@given(st.binary(min_size=1, max_size=7).map(lambda s: bytes(each % 2 + 97 for each in s)), st.integers(1, 5))
def test_segmentations_are_those_of_brute_force_in_its_order(s, most):
    pieces = [bytes(each) for size in (1, 2, 3) for each in product(b"ab", repeat=size)]
    vocab = {piece: index for index, piece in enumerate(pieces) if piece != b"ba"}
    assert betrayal.enumerate_segmentations(s, vocab, most) == brute(s, vocab, most)


def test_segmentations_at_the_edges():
    assert betrayal.enumerate_segmentations(b"", {}) == [[]]
    assert betrayal.enumerate_segmentations(b"abc", {b"ab": 0}) == []
    assert betrayal.enumerate_segmentations(b"ab", {b"a": 0, b"b": 1, b"ab": 2}, max_pieces=0) == []
    assert betrayal.enumerate_segmentations(b"ab", {b"a": 0, b"b": 1, b"ab": 2}) == [[0, 1], [2]]


# Sentences


def test_the_slot_is_found_by_words():
    source = "The old dog sleeps, and the dog dreams."
    assert find(source, 2, "The old cat sleeps, and the dog dreams.") == " cat"
    assert find(source, 2, "Sure! The old dog sleeps, and the dog dreams.") == " dog"
    assert find(source, 2, "The old very big dog-like thing sleeps, and the dog dreams.") is not None
    assert find(source, 2, "The old sleeps, and the dog dreams.") is None
    assert find(source, 2, "") is None


def find(source, target, answer):
    span = betrayal.find_slot(source, target, answer)
    return span and answer[slice(*span)]


TOKENS = [b"The", b" old", b" dog", b" do", b"g", b" cat", b" sleeps", b".", b" sleep", b"s", b'"', None, b" sits"]


@pytest.mark.parametrize(
    ("answer", "trial"),
    [
        ([0, 1, 2, 6, 7], ("copy", None, "same ids")),
        ([0, 1, 3, 4, 6, 7], ("phantom", "A2", "same ids")),
        ([0, 1, 5, 6, 7], ("real", None, "same ids")),
        ([0, 1, 5, 8, 9, 7], ("real", None, "same text")),
        ([10, 0, 1, 5, 6, 7, 10], ("real", None, "same text")),
        ([0, 1, 2, 12, 7], ("copy", None, "changed")),
        ([0, 1, 6, 7], ("invalid", None, "changed")),
        ([], ("invalid", None, "changed")),
    ],
)
def test_an_answer_is_judged_by_its_slot_and_by_what_stands_around_it(answer, trial):
    assert betrayal.classify_answer("The old dog sleeps.", 2, [0, 1, 2, 6, 7], answer, TOKENS) == betrayal.Trial(*trial)


def test_the_exact_interval_agrees_with_the_binomial_distribution():
    interval = betrayal.clopper_pearson(3, 40)
    chance = np.random.default_rng(0).random((200_000, 40))
    assert np.mean((chance < interval.low).sum(1) >= 3) == pytest.approx(0.025, abs=0.003)
    assert np.mean((chance < interval.high).sum(1) <= 3) == pytest.approx(0.025, abs=0.003)
    assert betrayal.clopper_pearson(0, 10).low == 0
    assert betrayal.clopper_pearson(10, 10).high == 1
    with pytest.raises(ValueError, match="at least one trial"):
        betrayal.clopper_pearson(0, 0)


# Masses


class Chain:
    """A model that looks at the last id only; what TreeLogits offers."""

    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(size, size, generator=generator).log_softmax(-1)
        self.prefix = (0,)

    def prefetch(self, contexts):
        assert all(context[0] == 0 for context in contexts)

    def __call__(self, ids):
        return self.rows[ids[-1]]


def test_masses_are_products_of_probabilities_and_pruning_is_bounded():
    token_bytes = [None, b"a", b"b", b"ab", b" ", b".", b"c", "é".encode(), b"\xa9"]
    ends = betrayal.ends_a_word(token_bytes)
    assert ends.tolist() == [True, False, False, False, True, True, False, False, True]
    vocab = {each: index for index, each in enumerate(token_bytes) if each}
    segmentations = betrayal.enumerate_segmentations(b"abab", vocab)
    model = Chain(len(token_bytes), 1)
    p = model.rows.double().exp()
    expected = []
    for ids in segmentations:
        value, last = 1.0, 0
        for index in ids:
            value, last = value * float(p[last, index]), index
        expected.append(value * sum(float(p[last, end]) for end in range(len(ends)) if ends[end]))
    masses, missed = betrayal.slot_masses(model, segmentations, ends)
    assert missed == 0
    assert masses.tolist() == pytest.approx(expected, rel=1e-6)
    cut, missed = betrayal.slot_masses(model, segmentations, ends, floor=0.005)
    assert (cut == 0).any()
    assert sum(expected) - cut.sum() <= missed + 1e-12
    assert all(value == 0 or value == pytest.approx(each) for value, each in zip(cut, expected, strict=True))


# BPE-dropout


def test_without_dropout_the_canonical_encoding_comes_out_and_with_it_any_other():
    trained = bpe.train(TEXTS, 320)
    ranks = {pair: rank for rank, pair in enumerate(trained.merges)}
    vocabulary, tokenizer = trained.vocabulary, trained.tokenizer()
    seen = set()
    for word in (" brown", " other", " lazy", " dogs"):
        canonical = [vocabulary[index] for index in tokenizer.encode(word).ids]
        assert betrayal.dropout_encode(word.encode(), ranks, 0, random.Random(0)) == canonical
        assert betrayal.dropout_encode(word.encode(), ranks, 1, random.Random(0)) == [bytes([b]) for b in word.encode()]
        for seed in range(20):
            pieces = betrayal.dropout_encode(word.encode(), ranks, 0.3, random.Random(seed))
            assert b"".join(pieces) == word.encode()
            assert set(pieces) <= set(vocabulary)
            seen.add((word, tuple(pieces)))
    assert len(seen) > 8
