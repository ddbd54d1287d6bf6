"""Scores by block: ratios and their intervals against loops."""

import math

import numpy as np
import pytest

from tokenarium.methods.tokenizers import tokenadapt_scores as scores


def arms(seed=0, sets=3, blocks=8, factor=1.1):
    generator = np.random.default_rng(seed)
    one = generator.uniform(50, 150, size=(sets, blocks))
    return one, one * factor * generator.uniform(0.98, 1.02, size=one.shape)


# Blocks


def test_a_tokens_bits_are_spread_over_its_bytes_and_the_rest_of_a_text_is_left_out():
    lengths, bits = np.array([200, 112, 300]), np.array([4.0, 56.0, 60.0])
    parts = {
        "T.text": {"a.ids": np.array([7, 8, 9]), "a.bytes": lengths},
        "T.hybrid": {"a": bits},
        "original.text": {"a.ids": np.array([1, 1]), "a.bytes": np.array([306, 306])},
        "original": {"a": np.array([1.0, 2.0])},
    }
    per_byte = [value / length for value, length in zip(bits, lengths, strict=True) for _ in range(length)]
    one, two = (scores.Scores(parts, ["a"], count) for count in (1, 2))
    np.testing.assert_allclose(one.bits("T", "hybrid"), [[sum(per_byte[:256])]])
    np.testing.assert_allclose(two.bits("T", "hybrid"), [[sum(per_byte[:256]), sum(per_byte[256:512])]])
    np.testing.assert_allclose(one.tokens("T"), [[1 + 56 / 112]])
    np.testing.assert_allclose(one.bits(scores.ORIGINAL), [[256 / 306]])
    with pytest.raises(ValueError, match="'a' has no 3 blocks"):
        scores.Scores(parts, ["a"], 3).bits("T", "hybrid")


# Ratios


def test_a_ratio_keeps_the_order_of_its_logarithms():
    ratio = scores.as_ratio(scores.log_ratio(*arms(), resamples=50))
    one, other = arms()
    assert ratio.low < ratio.value < ratio.high < 1
    assert ratio.value == pytest.approx(math.exp(scores.log_ratio(one, other, resamples=50).value))


def test_the_log_ratio_is_that_of_the_geometric_mean_over_sets():
    one, other = arms()
    expected = sum(math.log(sum(a) / sum(b)) for a, b in zip(one, other, strict=True)) / len(one)
    found = scores.log_ratio(one, other, resamples=200)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high < 0


def test_targets_share_their_draws_and_are_averaged():
    one, other = arms()
    alone = scores.log_ratio(one, other, resamples=200)
    twice = scores.log_ratio([one, one], [other, other], resamples=200)
    assert (twice.value, twice.low, twice.high) == pytest.approx((alone.value, alone.low, alone.high))
    mixed = scores.log_ratio([one, other], [other, one], resamples=200)
    assert (mixed.value, mixed.low, mixed.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_blocks_are_drawn_within_their_set():
    one, other = arms(blocks=6)
    rng = np.random.default_rng(5)
    slow = []
    for _ in range(2000):
        draws = [rng.integers(6, size=6) for _ in one]
        logs = [math.log(a[d].sum() / b[d].sum()) for a, b, d in zip(one, other, draws, strict=True)]
        slow.append(sum(logs) / len(logs))
    found = scores.log_ratio(one, other, resamples=2000)
    width = np.quantile(slow, 0.975) - np.quantile(slow, 0.025)
    assert found.low == pytest.approx(np.quantile(slow, 0.025), abs=0.1 * width)
    assert found.high == pytest.approx(np.quantile(slow, 0.975), abs=0.1 * width)


def test_the_least_of_several_arms_is_taken_anew_each_draw():
    one, other = arms(factor=1.0)
    both = scores.least_log_ratio([one, other], [other, one], resamples=500)
    assert both.value == pytest.approx(-abs(scores.log_ratio(one, other, resamples=10).value))
    assert both.high <= 0


def test_perplexities_are_per_token_and_averaged_over_sets_as_they_are():
    one, other = arms()
    original, tokens, original_tokens = one * 0.8, np.full(one.shape, 60.0), np.full(one.shape, 50.0)
    ratios = [0.0, 0.0]
    for place, arm in enumerate((one, other)):
        for index in range(len(one)):
            ppl = 2 ** (arm[index].sum() / tokens[index].sum())
            ratios[place] += ppl / 2 ** (original[index].sum() / original_tokens[index].sum()) / len(one)
    found = scores.perplexity_quotient(one, other, original, tokens, original_tokens, resamples=100)
    assert found.value == pytest.approx(ratios[0] / ratios[1])
    assert scores.perplexity_ratio(one, tokens, original, original_tokens) == pytest.approx(ratios[0])


def test_a_saving_pools_the_sources():
    few, many = np.array([[10.0, 20.0, 30.0], [5.0, 5.0, 6.0]]), np.array([[20.0, 30.0, 40.0], [8.0, 8.0, 9.0]])
    found = scores.saving(few, many, resamples=300)
    assert found.value == pytest.approx(100 * (1 - 76 / 115))
    assert found.low < found.value < found.high
    same = scores.saving(many, many, resamples=300)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_unlike_shapes_and_blocks_without_bits_are_refused():
    one, other = arms()
    with pytest.raises(ValueError, match="same sets and blocks"):
        scores.log_ratio(one, other[:2])
    with pytest.raises(ValueError, match="above 0"):
        scores.log_ratio(one * 0, other)
    with pytest.raises(ValueError, match="same sets and blocks"):
        scores.perplexity_quotient(one, other, one[:1], one, one)
    with pytest.raises(ValueError, match="same blocks"):
        scores.saving(one, other[:2])


# Tables


def test_groups_have_their_mean_and_error_and_small_ones_are_left_out():
    table = scores.by_group([1, 1, 2, 2, 2, 3], [1.0, 3.0, 0.0, 0.0, 3.0, 9.0], {1: "one", 2: "two", 3: "three"})
    assert table.group.tolist() == ["one", "two"]
    assert table["mean"].tolist() == [2.0, 1.0]
    assert table.error.tolist() == pytest.approx([1.0, 1.0])


def test_a_dial_is_turned_alone():
    default = {"lam": 0.3, "k": 3, "features": "encoder"}
    arms = {
        "hybrid": {},
        "k1": {"k": 1, "texts": ["a"]},
        "same": {"k": 3, "texts": ["a"]},
        "both": {"k": 1, "lam": 0.1},
        "local": {"lam": 0.0},
        "shuffled": {"features": "shuffled"},
    }
    rows = scores.one_dial_at_a_time(default, arms, ("lam", "k"))
    assert [tuple(row.values()) for row in rows] == [
        ("lam", 0.0, "local"),
        ("lam", 0.3, "hybrid"),
        ("k", 1, "k1"),
        ("k", 3, "hybrid"),
    ]


def test_the_published_table_divides_the_hybrid_by_each_other():
    rows = {"a": {"x": {"hybrid": 2.0, "retok": 4.0}, "y": {"hybrid": 3.0, "local": 2.0}}}
    table = scores.published_table(rows)
    assert table["hybrid/retok"].tolist()[:1] == [0.5]
    assert math.isnan(table["hybrid/local"][0])
    assert table["hybrid/local"][1] == 1.5
