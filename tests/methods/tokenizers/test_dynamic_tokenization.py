"""Dynamic tokenization: merging against a recount from scratch, boundaries by example, rows made once and padded."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tokenarium.methods.tokenizers import bpe, zett
from tokenarium.methods.tokenizers import dynamic_tokenization as dt

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
batches = st.lists(st.lists(st.sampled_from(["a", "b", "c", "ab", "Ġ"]), max_size=12), min_size=1, max_size=5)


def anything(left, right):
    return True


def no_blank_inside(left, right):
    return "Ġ" not in (left + right)[1:]


def slow_dynamic_bpe(batch, n_merges, is_valid):
    """Count all, take the first of the most frequent, join, begin anew; returns the pairs too."""
    batch, pairs = [list(tokens) for tokens in batch], []
    for _ in range(n_merges):
        counter = Counter()
        for tokens in batch:
            for place in range(len(tokens) - 1):
                if is_valid(tokens[place], tokens[place + 1]):
                    counter[tokens[place], tokens[place + 1]] += 1
        if not counter:
            break
        best = max(counter, key=counter.get)
        pairs.append(best)
        for row, tokens in enumerate(batch):
            out = []
            while tokens:
                if len(tokens) > 1 and (tokens[0], tokens[1]) == best:
                    out.append(tokens[0] + tokens[1])
                    tokens = tokens[2:]
                else:
                    out.append(tokens[0])
                    tokens = tokens[1:]
            batch[row] = out
    return batch, pairs


# Merging


@settings(max_examples=400, deadline=None)
@given(batch=batches, n_merges=st.integers(0, 15), is_valid=st.sampled_from([anything, no_blank_inside]))
def test_merging_equals_a_recount_from_scratch_before_every_merge(batch, n_merges, is_valid):
    expected, pairs = slow_dynamic_bpe(batch, n_merges, is_valid)
    assert dt.dynamic_bpe(batch, n_merges, is_valid) == expected
    assert dt.learnt_merges(batch, n_merges, is_valid) == pairs


def test_merging_equals_the_recount_on_text():
    texts = ["the cat sat on the mat, and that was that", "a cat, a hat; the cats' hats", "that's the hat"] * 2
    batch = [[character for word in zett.byte_words(text) for character in word] for text in texts]
    is_valid = dt.pretokens(GPT2)
    for n_merges in (1, 5, 20, 1000):
        assert dt.dynamic_bpe(batch, n_merges, is_valid) == slow_dynamic_bpe(batch, n_merges, is_valid)[0]


def test_of_equally_frequent_pairs_the_one_that_stands_first_is_merged():
    assert dt.dynamic_bpe([["x"], ["c", "d"], ["a", "b"]], 1, anything) == [["x"], ["cd"], ["a", "b"]]
    # (b, c) and (c, b) stand twice each; after one merge (a, b) stands before all others.
    assert dt.dynamic_bpe([["a", "b", "c", "b", "c"]], 1, anything) == [["a", "bc", "bc"]]
    assert dt.dynamic_bpe([["a", "b", "c", "b", "c"]], 2, anything) == [["abc", "bc"]]


def test_overlapping_pairs_all_count_but_are_merged_from_the_left():
    # (a, a) stands twice in "aaa", as often as (b, c), and first.
    assert dt.dynamic_bpe([["a", "a", "a"], ["b", "c"], ["b", "c"]], 1, anything) == [
        ["aa", "a"],
        ["b", "c"],
        ["b", "c"],
    ]


def test_a_pair_is_what_its_strings_are_however_they_came_about():
    # "ab" from a merge and "ab" from the tokenizer are the same token.
    assert dt.dynamic_bpe([["a", "b", "x"], ["ab", "x"], ["a", "b"]], 2, anything) == [["abx"], ["abx"], ["ab"]]


def test_no_valid_pair_ends_the_merging_and_the_batch_given_stays_as_it_was():
    batch = [["a", "Ġb"], [], ["Ġ"]]
    assert dt.dynamic_bpe(batch, 5, no_blank_inside) == batch
    batch = [["a", "b"]]
    assert dt.dynamic_bpe(batch, 5, anything) == [["ab"]]
    assert batch == [["a", "b"]]


def test_a_negative_number_of_merges_is_refused():
    with pytest.raises(ValueError, match="negative"):
        dt.dynamic_bpe([["a"]], -1, anything)


@given(batch=batches, n_merges=st.integers(0, 15))
def test_merging_keeps_the_text_of_every_example(batch, n_merges):
    made = dt.dynamic_bpe(batch, n_merges, no_blank_inside)
    assert ["".join(tokens) for tokens in made] == ["".join(tokens) for tokens in batch]


@given(batch=batches, share=st.floats(0, 1), seed=st.integers(0, 3))
def test_controls_reach_the_length_asked_for_and_are_the_same_for_the_same_seed(batch, share, seed):
    whole = sum(map(len, batch))
    wanted = int(share * whole)
    random = [dt.random_merges(batch, wanted, anything, np.random.default_rng(seed)) for _ in range(2)]
    assert random[0] == random[1]
    assert sum(map(len, random[0])) <= max(wanted, len(batch))
    assert ["".join(tokens) for tokens in random[0]] == ["".join(tokens) for tokens in batch]
    fewer = dt.dropped(batch, wanted, np.random.default_rng(seed))
    assert sum(map(len, fewer)) == max(wanted, sum(map(bool, batch)))
    for kept, tokens in zip(fewer, batch, strict=True):
        remaining = iter(tokens)
        assert all(token in remaining for token in kept)  # in their order
        assert bool(kept) == bool(tokens)


def test_random_merges_stop_where_no_pair_is_valid():
    assert dt.random_merges([["a", "Ġ", "b"]], 1, no_blank_inside, np.random.default_rng(0)) == [["a", "Ġb"]]


@given(batch=batches, n_merges=st.integers(0, 15))
def test_stored_merges_applied_to_their_own_text_cover_at_least_what_they_were_learnt_from(batch, n_merges):
    pairs = dt.learnt_merges(batch, n_merges, anything)
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    made = [dt.static_bpe(tokens, ranks) for tokens in batch]
    assert ["".join(tokens) for tokens in made] == ["".join(tokens) for tokens in batch]
    assert sum(map(len, made)) <= sum(map(len, dt.dynamic_bpe(batch, n_merges, anything)))


def test_stored_merges_are_applied_in_the_order_of_learning():
    assert dt.static_bpe(["a", "b", "c"], {("b", "c"): 0, ("a", "b"): 1}) == ["a", "bc"]
    assert dt.static_bpe(["a", "b", "c"], {("b", "c"): 1, ("a", "b"): 0, ("ab", "c"): 2}) == ["abc"]


# How many merges


@given(batch=batches)
def test_lengths_are_those_after_each_number_of_merges(batch):
    lengths = dt.merge_lengths(batch, anything)
    for n_merges, length in enumerate(lengths):
        assert sum(map(len, dt.dynamic_bpe(batch, n_merges, anything))) == length
    assert sum(map(len, dt.dynamic_bpe(batch, 1000, anything))) == lengths[-1]


def test_the_map_of_merges_averages_over_all_examples_and_keeps_exhausted_batches_at_their_end():
    lengths = dt.mean_lengths([[["a", "b", "c"], ["a"]], [["a", "b"], ["c"], ["d"]]], anything)
    assert lengths.tolist() == [8 / 5, 6 / 5, 5 / 5]


def test_the_fewest_merges_that_reach_a_share_of_the_reduction():
    lengths = np.array([10.0, 7.0, 5.0, 4.0, 4.0])
    assert [dt.merges_for(lengths, share) for share in (0, 0.4, 0.5, 0.51, 1)] == [0, 1, 1, 2, 3]
    assert dt.merges_for(np.array([3.0]), 1.0) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        dt.merges_for(lengths, 1.1)


# Boundaries

BOUNDARIES = {
    "pretokens": dt.pretokens(GPT2, {"<s>"}),
    "word": dt.word({"<s>"}),
    "word_hyphen": dt.word_hyphen({"<s>"}),
    "sentence": dt.sentence({"<s>"}),
}


@pytest.mark.parametrize(
    ("left", "right", "allowed_by"),
    [
        ("Ġre", "open", {"pretokens", "word", "word_hyphen", "sentence"}),
        ("the", "Ġcat", {"sentence"}),  # across words
        ("Ġ", "cat", {"pretokens", "word", "word_hyphen", "sentence"}),
        ("cat", "Ċ", {"sentence"}),
        ("cat", "ĉ", {"sentence"}),
        ("Ġcat", ".", {"word", "sentence"}),  # punctuation is a pretoken of its own
        ("Ġwell", "-", {"word", "word_hyphen", "sentence"}),
        ("don", "'t", {"word", "sentence"}),
        ("abc", "123", {"word", "word_hyphen", "sentence"}),
        ("ĠĠ", "Ġ", {"pretokens", "word", "word_hyphen", "sentence"}),  # indentation
        ("ĠĠ", "Ġcat", {"sentence"}),
        ("Ċ", "Ċ", {"sentence"}),  # never two line ends
        ("Ċ", "ĠĠ", {"pretokens", "word", "word_hyphen", "sentence"}),
        (".", ".", {"pretokens", "word", "sentence"}),
        ("<s>", "cat", set()),
        ("cat", "<s>", set()),
    ],
)
def test_what_each_boundary_allows(left, right, allowed_by):
    assert {name for name, is_valid in BOUNDARIES.items() if is_valid(left, right)} == allowed_by


def test_parts_of_a_character_may_grow_together():
    symbols = [bpe.to_characters(bytes([byte])) for byte in "€".encode()]
    for is_valid in BOUNDARIES.values():
        assert is_valid(symbols[0], symbols[1])
        assert is_valid(symbols[0] + symbols[1], symbols[2])


@settings(deadline=None)
@given(words=st.lists(st.text("abé.,-'1", min_size=1, max_size=8), min_size=1, max_size=6))
def test_all_merges_within_words_end_at_the_blanks(words):
    symbols = [bpe.to_characters(bytes([byte])) for byte in " ".join(words).encode()]
    made = dt.dynamic_bpe([symbols], 1000, BOUNDARIES["word"])[0]
    assert bpe.from_characters("|".join(made).replace("|", "Ċ")).decode() == "\n ".join(words)


# Rows on the fly


class Maker:
    def __init__(self):
        self.asked = []

    def __call__(self, tokens):
        self.asked += tokens
        return torch.tensor([[float(len(token)), float(ord(token[0]))] for token in tokens])


def test_rows_are_made_once_while_they_are_kept_and_the_longest_unused_goes_first():
    maker = Maker()
    rows = dt.RowCache(maker, size=2)
    assert rows(["a", "bb", "a"]).tolist() == [[1, 97], [2, 98], [1, 97]]
    assert maker.asked == ["a", "bb"]
    rows(["a"])
    rows(["c"])  # takes the place of "bb"
    assert len(rows) == 2
    rows(["a", "c"])
    assert maker.asked == ["a", "bb", "c"]
    assert rows(["bb"]).tolist() == [[2, 98]]
    assert maker.asked == ["a", "bb", "c", "bb"]


def test_more_tokens_than_the_cache_keeps_still_get_their_rows():
    rows = dt.RowCache(Maker(), size=1)
    assert rows(["a", "bb", "ccc"])[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_start_symbol_stands_in_front_of_each_example_and_padding_is_masked(side):
    start = torch.tensor([9.0, 9.0])
    inputs, mask = dt.embed([["a", "bb"], ["bb"], []], Maker(), start, side)
    assert inputs.shape == (3, 3, 2)
    for row, tokens in enumerate([[9, 1, 2], [9, 2], [9]]):
        assert inputs[row][mask[row].bool()][:, 0].tolist() == tokens
        padding = inputs[row][~mask[row].bool()]
        assert not padding.any()
    assert mask[2].tolist() == ([1, 0, 0] if side == "right" else [0, 0, 1])


def test_padding_goes_to_one_of_two_sides():
    with pytest.raises(ValueError, match="side"):
        dt.embed([["a"]], Maker(), torch.zeros(2), "middle")


# The large vocabulary


def test_the_longest_known_token_is_taken_from_the_front_of_each_word():
    alphabet = [bpe.to_characters(symbol) for symbol in bpe.BYTE_ALPHABET]
    tokens = [*alphabet, "Ġthe", "Ġther", "re", "apy"]
    tokenizer = dt.longest_prefix_tokenizer(tokens)
    assert tokenizer.encode(" therapy the é").tokens == ["Ġther", "apy", "Ġthe", "Ġ", "Ã", "©"]
    assert tokenizer.decode(tokenizer.encode(" therapy the é").ids) == " therapy the é"


def test_a_vocabulary_without_all_bytes_is_refused():
    with pytest.raises(ValueError, match="single bytes"):
        dt.longest_prefix_tokenizer(["a", "b"])
