import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.measure.flops import flops, fraction, match_budget, transformer_flops

DEIT_GRID = {"tokens": 197, "num_layers": 12}
SMALL = DEIT_GRID | {"dim": 64, "intermediate": 256}
DEIT_S = DEIT_GRID | {"dim": 384, "intermediate": 1536}


@dataclass(frozen=True)
class ConstantCount:
    """ToMe's schedule: r tokens less in every block, at most half of the patch tokens."""

    r: int

    def lengths(self, tokens, num_layers):
        lengths = []
        for _ in range(num_layers):
            tokens -= min(self.r, (tokens - 1) // 2)
            lengths.append(tokens)
        return lengths


@dataclass(frozen=True)
class ConstantRatio:
    """PiToMe's schedule: floor(T - T q) of the T patch tokens less in every block."""

    q: float

    def lengths(self, tokens, num_layers):
        lengths = []
        for _ in range(num_layers):
            patches = tokens - 1
            tokens -= math.floor(patches - patches * self.q)
            lengths.append(tokens)
        return lengths


@dataclass(frozen=True)
class WithOverhead(ConstantCount):
    def overhead_flops(self, layer, tokens, kept, dim, head_dim):
        return (tokens - kept) * head_dim + layer * dim


@dataclass(frozen=True)
class Fixed:
    given: tuple[int, ...]

    def lengths(self, tokens, num_layers):
        return list(self.given)


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        (ConstantRatio(0.95), 0.710),
        (ConstantRatio(0.925), 0.607),
        (ConstantRatio(0.9), 0.518),
        (ConstantRatio(0.85), 0.390),
        (ConstantCount(8), 0.707),
        (ConstantCount(10), 0.641),
        (ConstantCount(12), 0.578),
        (ConstantCount(14), 0.518),
        (ConstantCount(16), 0.461),
    ],
)
def test_known_budgets_of_the_small_vit(reducer, expected):
    # The published value is rounded to three places, and .5775 may be rounded either way.
    assert fraction(reducer, **SMALL) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [(ConstantRatio(0.9), 0.559), (ConstantCount(13), 0.582), (ConstantCount(16), 0.492)],
)
def test_known_budgets_of_deit_small(reducer, expected):
    assert fraction(reducer, **DEIT_S) == pytest.approx(expected, abs=5.1e-4)


@settings(deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    dim=st.integers(1, 8),
    intermediate=st.integers(1, 20),
)
def test_account_counts_every_product_of_the_matrices_in_a_block(blocks, dim, intermediate):
    def product(rows, inner, columns):
        return rows * inner * columns

    expected = 0
    for tokens, kept in blocks:
        expected += 4 * product(tokens, dim, dim)  # query, key, value and output projections
        expected += product(tokens, dim, tokens)  # scores, all heads together
        expected += product(tokens, tokens, dim)  # probabilities times values
        expected += product(kept, dim, intermediate) + product(kept, intermediate, dim)
    lengths_in, lengths_out = zip(*blocks, strict=True)
    assert transformer_flops(lengths_in, lengths_out, dim, intermediate) == expected


def test_deit_small_costs_its_published_gigaflops():
    # 4.6 G in the DeiT paper, patch embedding (0.06 G) and classifier included.
    assert transformer_flops([197] * 12, [197] * 12, 384, 1536) == pytest.approx(4.54e9, rel=0.01)


def test_attention_is_charged_at_the_length_before_the_reduction_and_the_mlp_after():
    attention_only = transformer_flops([10], [10], 4, 0)
    assert flops(Fixed((5,)), 10, 1, 4, 16) == attention_only + 2 * 5 * 4 * 16


def test_keeping_every_token_costs_everything():
    assert fraction(ConstantCount(0), **SMALL) == 1.0


def test_overhead_of_the_method_is_added_per_block():
    expected_overhead = sum(10 * 32 + layer * 64 for layer in range(12))
    with_overhead = flops(WithOverhead(10), **SMALL, head_dim=32)
    assert with_overhead - flops(ConstantCount(10), **SMALL) == expected_overhead


def test_overhead_without_head_dim_is_refused():
    with pytest.raises(ValueError, match="head_dim"):
        flops(WithOverhead(10), **SMALL)


@pytest.mark.parametrize("lengths", [(197,) * 11, (198,) * 12, (197,) * 11 + (0,), (100, 101) + (50,) * 10])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match=r"lengths|must keep"):
        flops(Fixed(lengths), **SMALL)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 in and 1 out"):
        transformer_flops([4, 4], [4], 8, 32)


@pytest.mark.parametrize("target", [0.85, 0.70, 0.60, 0.50, 0.40])
def test_ratio_method_reaches_every_budget_to_one_percent(target):
    reducer = match_budget(ConstantRatio, target, 0.5, 1.0, **SMALL)
    assert abs(fraction(reducer, **SMALL) - target) <= 0.01


@settings(deadline=None)
@given(target=st.floats(0.32, 1.0))
def test_whole_number_knob_finds_the_closest_of_all_settings(target):
    closest = min(range(31), key=lambda r: abs(fraction(ConstantCount(r), **SMALL) - target))
    found = match_budget(lambda r: ConstantCount(round(r)), target, 0, 30, **SMALL, tolerance=1.0)
    best, reached = (abs(fraction(reducer, **SMALL) - target) for reducer in (ConstantCount(closest), found))
    assert reached == best


@settings(deadline=None)
@given(target=st.floats(0.25, 1.0))
def test_closest_ratio_beats_a_fine_grid(target):
    found = match_budget(ConstantRatio, target, 0.5, 1.0, **SMALL, tolerance=1.0)
    reached = abs(fraction(found, **SMALL) - target)
    for q in (0.5 + step / 400 for step in range(201)):
        assert reached <= abs(fraction(ConstantRatio(q), **SMALL) - target) + 1e-12


def test_ends_may_be_given_in_either_order():
    assert match_budget(ConstantRatio, 0.6, 1.0, 0.5, **SMALL) == match_budget(ConstantRatio, 0.6, 0.5, 1.0, **SMALL)


def test_matched_ratio_is_a_short_decimal_between_the_ends():
    q = match_budget(ConstantRatio, 0.518, 0.5, 1.0, **SMALL).q
    assert len(repr(q)) <= 7
    assert 0.5 <= q <= 1.0


def test_unreachable_budget_names_the_target_and_the_closest():
    with pytest.raises(ValueError, match=r"costs 0\.2 .*closest reached is 0\.\d+, by ConstantRatio\(q=0\.8\)"):
        match_budget(ConstantRatio, 0.2, 0.8, 1.0, **SMALL)


def test_coarse_knob_that_misses_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"costs 0\.5 "):
        match_budget(lambda r: ConstantCount(round(r)), 0.5, 0, 30, **SMALL)


def test_overhead_counts_against_the_budget():
    plain = match_budget(lambda r: ConstantCount(round(r)), 0.6, 0, 40, **SMALL, tolerance=0.1)

    @dataclass(frozen=True)
    class Costly(ConstantCount):
        def overhead_flops(self, layer, tokens, kept, dim, head_dim):
            return 20 * tokens * dim * head_dim

    costly = match_budget(lambda r: Costly(round(r)), 0.6, 0, 40, **SMALL, head_dim=32, tolerance=0.1)
    assert costly.r > plain.r
