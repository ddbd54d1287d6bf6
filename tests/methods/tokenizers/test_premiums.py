"""Premiums and their spread over languages."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenarium.methods.tokenizers import bpe, premiums

COUNTS = st.lists(st.integers(1, 10**6), min_size=2, max_size=20)


@given(COUNTS)
def test_cv_is_the_standard_deviation_by_the_mean(counts):
    assert premiums.cv(counts) == pytest.approx(statistics.stdev(counts) / statistics.mean(counts))


@given(COUNTS, st.floats(0.1, 100))
def test_spreads_do_not_depend_on_the_unit(counts, factor):
    scaled = np.array(counts) * factor
    assert premiums.cv(scaled) == pytest.approx(premiums.cv(counts), abs=1e-12)
    assert premiums.max_over_min(scaled) == pytest.approx(max(counts) / min(counts))


def test_the_share_far_above_the_median():
    assert premiums.share_far_above([[10, 10, 10, 15, 16], [1, 1, 1, 1, 1]]).tolist() == [0.2, 0.0]


def test_lines_are_counted_one_by_one():
    tokenizer = bpe.train(["ab ab ab cd"], 300).tokenizer()
    lines = ["ab cd", "", "xyz"]
    assert premiums.line_token_counts(tokenizer, lines).tolist() == [len(tokenizer.encode(line).ids) for line in lines]
    assert premiums.line_bytes(["ab", "語"]).tolist() == [2, 3]


def test_a_premium_is_the_ratio_of_all_tokens_with_the_reference_at_one():
    counts = {"en": [2, 4, 6], "xx": [4, 4, 4], "yy": [4, 8, 12]}
    found = premiums.premium_intervals(counts, "en", resamples=200)
    assert (found["en"].low, found["en"].value, found["en"].high) == (1, 1, 1)
    assert (found["yy"].low, found["yy"].value, found["yy"].high) == (2, 2, 2)
    assert found["xx"].value == 1
    assert found["xx"].low < 1 < found["xx"].high


def test_lines_that_are_not_parallel_are_refused():
    with pytest.raises(ValueError, match="as many in every language"):
        premiums.premium_intervals({"en": [1, 2], "xx": [1, 2, 3]}, "en")
