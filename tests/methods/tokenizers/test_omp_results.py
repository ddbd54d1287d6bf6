"""Counting what transplants do: pairs stay pairs, a text counts only if every rival loses, sums are compared whole."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tokenarium.methods.tokenizers import omp_results as results

rng = np.random.default_rng(0)
TOKENS, WINDOW = 400, 50


def made(**costs):
    """Arms whose bits are a common surprise and a cost of their own on each text."""
    lengths = {text: rng.integers(1, 6, size=TOKENS) for text in ("manual", "german")}
    common = {text: rng.gamma(2, 3, size=TOKENS) for text in lengths}
    bits = {
        arm: {
            text: common[text] + cost[place] * rng.uniform(0.5, 1.5, size=TOKENS) for place, text in enumerate(lengths)
        }
        for arm, cost in costs.items()
    }
    own = {text: np.repeat(size, 1) for text, size in lengths.items()}
    return results.Arms({results.OWN: common, **bits}, lengths, own, WINDOW, 500)


def test_differences_are_paired_and_signed():
    arms = made(a=(1, 1), b=(2, 0.2))
    wide, narrow = arms.bits_per_byte("a", ["manual"]), arms.difference("a", "b", ["manual"])
    assert narrow.high < 0
    assert narrow.high - narrow.low < wide.high - wide.low
    expected = (arms.bits["a"]["manual"].sum() - arms.bits["b"]["manual"].sum()) / arms.num_bytes["manual"].sum()
    assert narrow.value == pytest.approx(expected)
    assert arms.difference("a", "b", ["german"]).low > 0


def test_a_text_counts_only_where_every_rival_loses():
    arms = made(a=(1, 1), b=(2, 2), c=(2, 0.2))
    assert arms.beaten_everywhere("a", ["b"]) == ["manual", "german"]
    assert arms.beaten_everywhere("a", ["b", "c"]) == ["manual"]
    assert arms.beaten_everywhere("a", ["a"]) == []


def test_the_cost_of_a_swap_is_above_the_own_tokenizer():
    arms = made(a=(1, 3))
    for text, cost in (("manual", 1), ("german", 3)):
        expected = cost * TOKENS / arms.num_bytes[text].sum()
        assert arms.cost("a", [text]).value == pytest.approx(expected, rel=0.1)
    assert arms.cost(results.OWN, ["manual"]).value == 0


def test_the_table_has_every_arm_on_every_text():
    arms = made(a=(1, 1))
    table = arms.table({results.OWN: "own", "a": "A"})
    assert list(zip(table.text, table.arm, strict=True)) == [
        (text, arm) for text in ("manual", "german") for arm in ("own", "A")
    ]
    assert table[table.arm == "own"].cost.isna().all()
    assert (table.bpb_low <= table.bpb).all()


def test_the_trend_is_spearman_s_and_says_how_sure_it_is():
    falling = made(**{f"omp-{k}": (8 / k, 8 / k) for k in (1, 4, 8)})
    trend = results.sparsity_trend(falling, [1, 4, 8])
    assert trend.value == -1
    mixed = made(**{"omp-1": (1, 1), "omp-4": (3, 3), "omp-8": (2, 2)})
    assert results.sparsity_trend(mixed, [1, 4, 8]).value == pytest.approx(0.5)


def test_spearman_is_scipy_s():
    x = rng.random(60)
    y = x + rng.random(60)
    found = results.spearman(x, y, 300)
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high


def test_losses_of_new_tokens_are_gathered_by_token():
    arms = made(a=(1, 1))
    setting = {"new": np.array([5, 9]), "manual.ids": np.arange(TOKENS) % 10, "german.ids": np.zeros(TOKENS, dtype=int)}
    found = results.token_losses(arms, "a", setting, ["manual", "german"])
    assert found.place.tolist() == [0, 1]
    assert found["count"].tolist() == [40, 40]
    assert found.bits[1] == pytest.approx(arms.bits["a"]["manual"][9::10].mean())


@pytest.mark.parametrize(("token", "label"), [(" the", "␣the"), ("ö用", "öU+7528"), ("a\n", "a⏎"), ("\t$x", r"⇥\$x")])
def test_labels_show_what_cannot_be_seen(token, label):
    assert results.printable(token) == label


def test_sums_count_as_strings():
    right = results.sums_by_arm({"sums": ["1+1=2", "9+9=18"], "base": ["2", "18"], "chunk": ["02", "1"]})
    assert right["base"].tolist() == [1, 1]
    assert right["chunk"].tolist() == [0, 0]


def test_a_drop_is_relative_to_the_base():
    base, arm = np.repeat([1, 0], [80, 20]), np.repeat([1, 0], [20, 80])
    drop = results.relative_drop(base, arm, 300)
    assert drop.value == pytest.approx(0.75)
    assert results.relative_drop(base, base, 300).high == 0
    assert results.relative_drop(0 * base, 0 * base, 300).value == 0
    assert results.share(base, 300).value == pytest.approx(0.8)


def test_the_gap_of_two_text_losses_is_relative():
    sizes = np.full(2000, 4)
    base = rng.random(2000)
    part = {"base": base, "same": base + 0.4, "chunk": base + 0.5}
    part |= {f"{arm}.bytes": sizes for arm in ("base", "same", "chunk")}
    found = results.text_losses(part, 200)
    assert found["same"].value == pytest.approx(0.1)
    assert found["chunk"].value == pytest.approx(0.125)
    assert found["gap"].value == pytest.approx(0.25)
