"""Statistics of vocabulary expansion against arithmetic by hand, and the reading of experiments."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tokenarium.measure.bootstrap import Interval
from tokenarium.methods.tokenizers import expansion_results as results
from tokenarium.study.experiments import Results

BYTES = np.array([100, 200, 50, 120])
BITS = np.array([[200.0, 300.0, 90.0, 240.0], [220.0, 340.0, 110.0, 260.0]])


def test_seeds_are_pooled_by_their_mean_and_documents_by_their_sums():
    assert results.per_byte(BITS, BYTES, 100).value == pytest.approx((210 + 320 + 100 + 250) / 470)
    assert results.per_byte(BITS[0], BYTES, 100).value == pytest.approx(830 / 470)


def test_below_and_above_are_shares_of_the_reference():
    assert results.percent_below(BITS * 0.9, BITS, 100).value == pytest.approx(10)
    assert results.percent_above(BITS * 1.1, BITS, 100).value == pytest.approx(10)
    same_everywhere = results.percent_below(BITS * 0.9, BITS, 100)
    assert (same_everywhere.low, same_everywhere.high) == pytest.approx((10, 10))


def test_a_difference_is_per_byte_and_its_interval_is_paired():
    shifted = results.difference(BITS + 3 * BYTES, BITS, BYTES, 100)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((3, 3, 3))


def test_slopes_are_those_of_a_line_through_bits_per_byte():
    sizes = [100, 500, 1000, 5000]
    x = np.log10(sizes)
    steep = [BITS * (1 + value) for value in (0.1, 0.4, 0.2, 0.9)]
    flat = [BITS * (1 + value) for value in (0.3, 0.2, 0.2, 0.1)]
    totals = [[results.per_byte(each, BYTES, 10).value for each in arm] for arm in (steep, flat)]
    expected = np.polyfit(x, totals[0], 1)[0] - np.polyfit(x, totals[1], 1)[0]
    assert results.slope_difference(steep, flat, sizes, BYTES, 100).value == pytest.approx(expected)


def test_a_reference_that_does_not_change_with_the_size_leaves_slopes_alone():
    sizes, arms = [10, 100, 1000], [BITS * value for value in (1, 1.2, 1.5)]
    flat = [BITS] * 3
    before = results.slope_difference(arms, flat, sizes, BYTES, 100)
    after = results.slope_difference(
        [arm - 7 * BYTES for arm in arms], [arm - 7 * BYTES for arm in flat], sizes, BYTES, 100
    )
    assert before.value == pytest.approx(after.value)


def test_the_worst_of_several_numbers_keeps_the_ends_of_their_intervals():
    several = [Interval(3, 1, 5, "a"), Interval(2, 1.5, 2.5, "a"), Interval(4, 3, 9, "a")]
    smallest, largest = results.worst(several), results.worst(several, max)
    assert (smallest.value, smallest.low, smallest.high) == (2, 1, 2.5)
    assert (largest.value, largest.low, largest.high) == (4, 3, 9)
    assert smallest.how == "smallest of 3, each by a"


def test_a_method_is_not_taken_for_one_whose_name_begins_alike(tmp_path):
    for name, value in (
        ("el-10-mean-0", 1.0),
        ("el-10-mean-official-0", 2.0),
        ("el-10-random-0", 3.0),
        ("el-10-random-1", 4.0),
    ):
        save_file({"bits": np.array([value, value])}, tmp_path / f"{name}.safetensors")
    (tmp_path / "experiment.json").write_text(json.dumps({}))
    made = Results("expansion-start", tmp_path, {})
    assert results.start_bits(made, "el", 10, "mean").tolist() == [[1, 1]]
    assert results.start_bits(made, "el", 10, "mean-official").tolist() == [[2, 2]]
    assert results.start_bits(made, "el", 10, "random").tolist() == [[3, 3], [4, 4]]
