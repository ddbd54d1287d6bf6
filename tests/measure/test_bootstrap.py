import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenarium.measure.bootstrap import (
    Interval,
    across_seeds,
    bootstrap,
    bootstrap_columns,
    paired_bootstrap,
)


def normals(n, seed=0, **kwargs):
    return np.random.default_rng(seed).normal(size=n, **kwargs)


def scipy_interval(data, statistic, **kwargs):
    result = stats.bootstrap(
        data, statistic, method="percentile", n_resamples=10_000, rng=np.random.default_rng(7), **kwargs
    )
    return result.confidence_interval


def assert_close_to(interval, reference):
    # Two independent sets of resamples: quantiles of 10,000 draws differ by a few percent of the width.
    width = reference.high - reference.low
    assert interval.low == pytest.approx(reference.low, abs=0.06 * width)
    assert interval.high == pytest.approx(reference.high, abs=0.06 * width)


def test_mean_agrees_with_scipy():
    samples = np.random.default_rng(1).exponential(size=200)
    interval = bootstrap(samples)
    assert interval.value == pytest.approx(samples.mean(), rel=1e-12)
    assert_close_to(interval, scipy_interval((samples,), np.mean))


def test_median_agrees_with_scipy():
    samples = np.random.default_rng(2).exponential(size=101)
    interval = bootstrap(samples, statistic=lambda s: np.median(s, axis=1))
    assert interval.value == np.median(samples)
    assert_close_to(interval, scipy_interval((samples,), np.median))


def test_ratio_of_means_agrees_with_scipy():
    rng = np.random.default_rng(3)
    denominator = rng.uniform(1, 2, size=150)
    numerator = denominator * 0.5 + rng.normal(size=150) * 0.1
    interval = bootstrap(
        np.stack([numerator, denominator], axis=1), statistic=lambda s: s[..., 0].mean(1) / s[..., 1].mean(1)
    )
    reference = scipy_interval(
        (numerator, denominator),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
    )
    assert interval.value == pytest.approx(numerator.mean() / denominator.mean())
    assert_close_to(interval, reference)


def test_paired_difference_agrees_with_scipy():
    a = normals(120, seed=4)
    b = a + 0.2 + 0.1 * normals(120, seed=5)
    interval = paired_bootstrap(a, b)
    assert interval.value == pytest.approx(a.mean() - b.mean())
    reference = scipy_interval((a, b), lambda x, y: np.mean(x) - np.mean(y), paired=True, vectorized=False)
    assert_close_to(interval, reference)


def test_pairing_removes_what_both_have_in_common():
    common, noise = 10 * normals(300, seed=1), 0.1 * normals(300, seed=2)
    a, b = common + noise, common
    paired = paired_bootstrap(a, b)
    assert paired.high - paired.low < 0.05
    assert bootstrap(a).high - bootstrap(a).low > 1


def test_both_ways_of_resampling_draw_the_same_resamples():
    samples = normals(501, seed=3)
    by_counts = bootstrap(samples, resamples=5001, seed=4)
    by_rows = bootstrap(samples, statistic=lambda s: s.mean(axis=1), resamples=5001, seed=4)
    both = bootstrap(np.stack([samples, samples], 1), lambda s: s[..., 1].mean(axis=1), resamples=5001, seed=4)
    for other in (by_rows, both):
        assert (by_counts.low, by_counts.high) == pytest.approx((other.low, other.high), rel=1e-9)


def test_columns_share_their_resamples():
    x = normals(80, seed=6)
    first, second, shifted = bootstrap_columns(np.stack([x, -x, 3 * x + 1], axis=1), seed=9)
    assert (second.low, second.high) == pytest.approx((-first.high, -first.low))
    assert (shifted.low, shifted.high) == pytest.approx((3 * first.low + 1, 3 * first.high + 1))
    assert (first.low, first.high) == pytest.approx((bootstrap(x, seed=9).low, bootstrap(x, seed=9).high))


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    trials = normals((60, 400), seed=11)  # 60 samples of mean 0 in each of 400 experiments
    covered = [i.low <= 0 <= i.high for i in bootstrap_columns(trials, resamples=1000)]
    # 400 experiments, percentile interval at n=60: about 94 %, standard error 1.2 %.
    assert 0.90 <= np.mean(covered) <= 0.98
    half = bootstrap_columns(trials[:, :1], resamples=1000, level=0.5)[0]
    assert half.high - half.low < 0.6 * (bootstrap(trials[:, 0]).high - bootstrap(trials[:, 0]).low)


def test_t_interval_covers_the_true_mean_about_as_often_as_it_says():
    trials = normals((2000, 3), seed=12)
    covered = [i.low <= 0 <= i.high for i in map(across_seeds, trials)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_seeds_interval_agrees_with_scipy():
    values = {0: 0.81, 1: 0.84, 2: 0.80, 5: 0.83}
    numbers = list(values.values())
    low, high = stats.t.interval(0.95, 3, loc=np.mean(numbers), scale=stats.sem(numbers))
    interval = across_seeds(values)
    assert (interval.value, interval.low, interval.high) == pytest.approx((np.mean(numbers), low, high))
    assert interval.how == "t interval over 4 seeds"
    assert across_seeds(numbers) == interval


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(2, 50))
def test_constant_samples_have_no_uncertainty(constant, n):
    interval = bootstrap(np.full(n, constant), resamples=50)
    assert interval.low == interval.value == interval.high == constant


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=40), st.integers(0, 5))
def test_interval_of_hits_lies_in_range_and_is_repeatable(hits, seed):
    interval = bootstrap(hits, resamples=200, seed=seed)
    assert -1e-12 <= interval.low <= interval.high <= 1 + 1e-12
    assert interval == bootstrap(hits, resamples=200, seed=seed)


def test_another_seed_draws_other_resamples():
    samples = normals(100)
    assert bootstrap(samples, seed=0).low != bootstrap(samples, seed=1).low


def test_interval_says_how_it_was_made():
    assert bootstrap([1, 2, 3], resamples=20, over="queries").how == "bootstrap over 3 queries, 20 resamples"
    assert paired_bootstrap(np.arange(1000), np.zeros(1000)).how == (
        "paired bootstrap over 1000 images, 10000 resamples"
    )


def test_tensors_are_taken_as_they_are():
    samples = torch.arange(10.0, requires_grad=True)
    assert bootstrap(samples) == bootstrap(np.arange(10.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"samples\[2\] is"):
        bootstrap([0.0, 1.0, bad])
    with pytest.raises(ValueError, match=r"b\[0\] is"):
        paired_bootstrap([0.0, 1.0], [bad, 1.0])
    with pytest.raises(ValueError, match=r"samples\[1, 0\] is"):
        bootstrap_columns([[0.0, 1.0], [bad, 1.0]])
    with pytest.raises(ValueError, match=r"values\[1\] is"):
        across_seeds([0.0, bad, 1.0])


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap([1.0])
    with pytest.raises(ValueError, match="at least 2"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="at least 3"):
        across_seeds([1.0, 2.0])


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="a has 3 samples, b has 2"):
        paired_bootstrap([1, 2, 3], [1, 2])


def test_statistic_that_fails_on_a_resample_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        bootstrap([0.0, 0.0, 1.0], statistic=lambda s: 1 / s.sum(axis=1))
    with pytest.raises(ValueError, match="one number per resample"):
        bootstrap([0.0, 0.0, 1.0], statistic=np.mean)
    with pytest.raises(ValueError, match="need a statistic"):
        bootstrap([[0.0, 1.0], [1.0, 2.0]])


def test_ten_thousand_resamples_of_a_thousand_images_are_quick():
    samples = normals((1000, 5))
    best = min(_seconds(lambda: bootstrap_columns(samples)) for _ in range(3))
    assert best < 1.0  # about 0.1 s on a free core; the limit leaves room for a busy one


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["value", "low", "high"])
def test_interval_refuses_nan_by_name(name):
    numbers = {"value": 1.0, "low": 0.0, "high": 2.0} | {name: float("nan")}
    with pytest.raises(ValueError, match=f"{name} is nan"):
        Interval(**numbers, how="typed")


def test_interval_refuses_ends_in_the_wrong_order():
    with pytest.raises(ValueError, match="above high"):
        Interval(1.0, 2.0, 0.0, how="typed")


def test_interval_reads_back_from_its_dictionary():
    interval = bootstrap([1, 2, 4])
    assert Interval(**interval.to_dict()) == interval
    assert str(Interval(1.25, 1.0, 1.5, how="typed")) == "1.25 [1, 1.5]"
    assert Interval.exact(197).low == Interval.exact(197).high == 197
