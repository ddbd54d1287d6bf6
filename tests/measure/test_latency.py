import pytest

from tokenarium.measure.latency import ratio


class Clock:
    """A clock that only moves when a function says how long it took."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def work(self, name, durations):
        durations = iter(durations)

        def function():
            self.calls.append(name)
            self.now += next(durations)

        return function


def test_ratio_is_the_median_over_pairs():
    clock = Clock()
    # Pairwise 2, 4, 3; the outlier moves the mean and not the median.
    a, b = clock.work("a", [2, 8, 300]), clock.work("b", [1, 2, 100])
    interval = ratio(a, b, repeats=3, warmup=0, clock=clock)
    assert interval.value == pytest.approx(3)
    assert 2 <= interval.low <= 3 <= interval.high <= 4


def test_slow_spell_of_the_machine_drops_out():
    clock = Clock()
    spell = [1, 1, 50, 50, 1, 7]
    a, b = clock.work("a", [3 * t for t in spell]), clock.work("b", spell)
    interval = ratio(a, b, repeats=6, warmup=0, clock=clock)
    assert (interval.low, interval.value, interval.high) == pytest.approx((3, 3, 3))


def test_functions_run_in_turns_and_warm_up_is_not_timed():
    clock = Clock()
    a, b = clock.work("a", [1000, 4, 4]), clock.work("b", [1, 2, 2])
    interval = ratio(a, b, repeats=2, warmup=1, clock=clock)
    assert (interval.low, interval.high) == pytest.approx((2, 2))
    assert clock.calls == ["a", "b"] * 3


def test_real_clock_tells_more_work_from_less():
    interval = ratio(lambda: sum(range(200_000)), lambda: sum(range(2_000)), repeats=7)
    assert interval.low > 3


@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (0, 0), (3, -1)])
def test_too_few_rounds_are_refused(repeats, warmup):
    with pytest.raises(ValueError, match="repeats"):
        ratio(int, int, repeats=repeats, warmup=warmup)


def test_function_quicker_than_the_clock_is_refused():
    clock = Clock()
    with pytest.raises(ValueError, match="too quick"):
        ratio(clock.work("a", [1] * 3), clock.work("b", [0] * 3), repeats=3, warmup=0, clock=clock)
