"""What is made of the counts of tokenizer inequities: spreads over draws of text, the permuted control, the tables."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenarium.data import libreoffice_help, udhr
from tokenarium.data.text import split_of
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import premiums
from tokenarium.methods.tokenizers import tokenizer_inequities as inequities
from tokenarium.methods.tokenizers.inequities import results, sources

RANDOM = np.random.default_rng(0)


def test_seeds_are_pooled_by_the_mean_of_their_counts():
    samples = {seed: RANDOM.uniform(1, 9, size=12) for seed in (0, 1, 2)}
    pooled, seeds = results.over_seeds(samples, premiums.cv, resamples=100)
    assert pooled.value == pytest.approx(premiums.cv(np.mean(list(samples.values()), axis=0)))
    assert {seed: each.value for seed, each in seeds.items()} == pytest.approx(
        {seed: float(premiums.cv(each)) for seed, each in samples.items()}
    )


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=3, max_size=9))
def test_statistics_of_two_columns(rows):
    first, second = np.array(rows, dtype=float).T
    if second.std() > 0:
        expected = (first.std(ddof=1) / first.mean()) / (second.std(ddof=1) / second.mean())
        assert results.cv_ratio(np.array(rows)[None])[0] == pytest.approx(expected)
    assert results.mean_gain(np.array(rows)[None])[0] == pytest.approx(1 - first.sum() / second.sum())
    assert results.cv_change(np.array(rows)[None])[0] == pytest.approx(premiums.cv(first) - premiums.cv(second))


def test_the_permuted_gap_is_the_mean_over_all_permutations():
    matrix = RANDOM.integers(50, 150, size=(4, 4))
    matrix[np.diag_indices(4)] = 100
    cvs = [premiums.cv([matrix[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(4))]
    gap = results.permuted_gap(matrix, resamples=4000)
    assert gap.value == pytest.approx(np.mean(cvs), abs=0.01)  # the own sizes have no spread at all
    assert 0 <= gap.low <= gap.high <= max(cvs)


def test_a_pair_correlation_leaves_the_diagonal_out():
    a = RANDOM.normal(size=(8, 8))
    b = 2 * a + RANDOM.normal(size=(8, 8))
    off = ~np.eye(8, dtype=bool)
    expected = np.corrcoef(a[off], b[off])[0, 1]
    a[np.diag_indices(8)], b[np.diag_indices(8)] = 1e6, -1e6
    found = results.pair_correlation(a, b, resamples=200)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_a_row_names_the_language_that_costs_most():
    row = results.table_row("BPE", "8192", ["en", "el", "km"], {"test": np.array([10, 20, 40])})
    assert (row["worst, test"], row["max/min, test"], row["languages"]) == ("km", 4, 3)
    assert row["far above, test"] == pytest.approx(1 / 3)


def test_the_regression_table_has_a_line_for_each_term():
    y = RANDOM.normal(size=(10, 4))
    rows = inequities.design(y, {"a": RANDOM.normal(size=(10, 1)), "b": RANDOM.normal(size=(1, 4))})
    table = results.regression_table(rows, {"one": ["a"], "two": ["a", "b"]}, resamples=50)
    assert table.term.tolist() == ["one", "two"]
    assert table["partial R2"][0] == pytest.approx(inequities.partial_r2(rows, ["a"])[0])
    assert (table["partial R2_low"] <= table["partial R2_high"]).all()


# Sources


@pytest.fixture
def pages(monkeypatch):
    """Pages whose paragraphs one language has all and the other has but for every third."""
    rows = [{"id": f"page{page}#{part}", "text": f"{page} {part}"} for page in range(60) for part in range(3)]
    held = {"en-US": rows, "tr": [row | {"text": f"tr {row['text']}"} for row in rows if not row["id"].endswith("2")]}

    def load(root, language, split=None):
        return [row for row in held[language] if split is None or split_of(row["id"]) == split]

    monkeypatch.setattr(libreoffice_help, "load", load)
    return held


def test_evaluation_paragraphs_are_aligned_and_of_their_split(pages, tmp_path):
    found = sources.open_help(tmp_path, ["en-US", "tr"], 1000)
    assert set(found) == {sources.FITTED, sources.TEST}
    for split, texts in found.items():
        assert texts["tr"] == [f"tr {text}" for text in texts["en-US"]]
        wanted = [row["text"] for row in pages["en-US"] if split_of(row["id"]) == split and not row["id"].endswith("2")]
        assert texts["en-US"] == wanted
        assert wanted
    assert len(sources.open_help(tmp_path, ["en-US", "tr"], 3)[sources.TEST]["tr"]) == 3


def test_training_text_is_of_the_training_split_and_long_enough(pages, tmp_path):
    texts = sources.open_training(tmp_path, "tr", 200, seed=0)
    training = {row["text"] for row in pages["tr"] if split_of(row["id"]) == "train"}
    assert set(texts) <= training
    assert sum(map(len, texts)) >= 200
    with pytest.raises(TokenariumError, match=r"the help in 'tr' is too short: .* lower train_bytes"):
        sources.open_training(tmp_path, "tr", 10**6, seed=0)


def test_a_decomposed_declaration_is_composed(monkeypatch, tmp_path):
    monkeypatch.setattr(udhr, "parallel", lambda root, codes: {code: ["e\u0323\u0302 mo\u0323\nha"] for code in codes})
    assert sources.open_outside("udhr", tmp_path, {"vi": "vie"}) == {"vi": ["\u1ec7 m\u1ecd", "ha"]}


def test_scaled_text_has_the_same_content_and_unscaled_the_same_bytes():
    premium = sources.byte_premiums({"en-US": ["ab"], "el": ["αβ"]})
    assert premium == {"en-US": 1, "el": 2}
    assert [sources.training_bytes(rule, 2.0, 100) for rule in (sources.SCALED, sources.UNSCALED)] == [200, 100]
