import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.vision.baselines import (
    AveragePool,
    ClsTopK,
    EnergyPrune,
    EViTFuse,
    RandomMerge,
    RandomPrune,
)
from tokenarium.methods.vision.pitome import PiToMe, pitome_match

S3 = (3, 6, 9)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(tokens: int, batch: int = 2, dim: int = 5, seed: int = 0):
    """Random x, metric, integer sizes and attention of one block."""
    size = torch.randint(1, 5, (batch, tokens, 1), generator=torch.Generator().manual_seed(seed)).double()
    attention = noise(batch, 3, tokens, tokens, seed=seed + 2).softmax(dim=-1)
    return noise(batch, tokens, dim, seed=seed), noise(batch, tokens, 4, seed=seed + 1), size, attention


def removed(patches: int, ratio: float) -> int:
    return min(math.floor(patches - patches * ratio), patches - 1)


MAKERS = {
    "random prune": RandomPrune,
    "random merge": RandomMerge,
    "class top k": ClsTopK,
    "evit": EViTFuse,
    "average pool": AveragePool,
}


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ratio=st.floats(0.05, 1.0),
    layers=st.none() | st.sets(st.integers(0, 3)).map(tuple),
    seed=st.integers(0, 999),
)
def test_lengths_are_the_lengths_produced_and_the_class_token_stays(name, grid, ratio, layers, seed):
    tokens = 1 + math.prod(grid)
    extra = {"grid": grid} if name == "average pool" else {}
    reducer = MAKERS[name](ratio, layers, **extra)
    x, _, size, _ = state(tokens, seed=seed)
    first, mass = (x[:, 0], size[:, 0]), size.sum(dim=1)
    for layer, length in enumerate(reducer.lengths(tokens, 4)):
        _, metric, _, attention = state(x.shape[1], seed=seed + layer)
        before, before_size = x, size
        x, size, source = reducer.reduce(layer, x, metric, size, attention)
        assert x.shape == (2, length, 5)
        assert size.shape == (2, length, 1)
        assert length >= 2
        transport = source()
        assert transport.shape == (2, length, before.shape[1])
        assert torch.allclose(transport @ before_size, size)
        assert torch.equal(transport[:, 0], torch.eye(before.shape[1], dtype=x.dtype)[0].expand(2, -1))
        if layers is not None and layer not in layers:
            assert x is before
    assert torch.allclose(x[:, 0], first[0])
    assert torch.equal(size[:, 0], first[1])
    if name not in ("random prune", "class top k"):
        assert torch.allclose(size.sum(dim=1), mass)


@pytest.mark.parametrize("maker", [RandomPrune, RandomMerge, ClsTopK])
def test_each_reducing_block_removes_the_floor_of_its_patches(maker):
    assert maker(0.9).lengths(197, 3) == [178, 161, 145]  # 196 - 19, 177 - 17, 160 - 16
    assert maker(0.7, layers=S3).lengths(197, 12) == [197] * 3 + [139] * 3 + [98] * 3 + [69] * 3
    assert maker(0.01).lengths(6, 3) == [2, 2, 2]


def test_evit_counts_the_token_it_adds():
    assert EViTFuse(0.7, layers=S3).lengths(197, 12) == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3


@pytest.mark.parametrize("maker", [*MAKERS.values(), EnergyPrune])
def test_ratio_one_leaves_the_tokens_alone(maker):
    x, metric, size, attention = state(197)
    reduction = maker(1.0).reduce(0, x, metric, size, attention)
    assert reduction.x is x
    assert reduction.size is size
    assert torch.equal(reduction.source(), torch.eye(197, dtype=torch.float64).expand(2, -1, -1))


@pytest.mark.parametrize("maker", [*MAKERS.values(), EnergyPrune])
@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5])
def test_a_ratio_that_is_no_share_is_refused(maker, ratio):
    with pytest.raises(ValueError, match="kept ratio"):
        maker(ratio)


def kept_positions(source: torch.Tensor) -> list[int]:
    """Input position of each output token of a pruning transport matrix (kept, tokens)."""
    assert set(source.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(source.sum(dim=1), torch.ones(len(source), dtype=source.dtype))
    return source.argmax(dim=1).tolist()


def test_random_prune_copies_random_tokens_in_order():
    x, metric, size, _ = state(30)
    reduction = RandomPrune(0.6, seed=4).reduce(2, x, metric, size, None)
    for row in range(2):
        positions = kept_positions(reduction.source()[row])
        assert positions == sorted(set(positions))
        assert torch.equal(reduction.x[row], x[row, positions])
        assert torch.equal(reduction.size[row], size[row, positions])


def test_random_choices_differ_between_images_layers_and_seeds_and_repeat_otherwise():
    x, metric, size, _ = state(60)

    def choice(seed: int, layer: int) -> torch.Tensor:
        return RandomPrune(0.5, seed=seed).reduce(layer, x, metric, size, None).source()

    first = choice(0, 0)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(first, choice(0, 0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, choice(0, 1))
    assert not torch.equal(first, choice(1, 0))


def test_random_reducers_leave_the_global_generator_alone():
    x, metric, size, _ = state(20)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    RandomPrune(0.5).reduce(0, x, metric, size, None)
    RandomMerge(0.5).reduce(0, x, metric, size, None)
    assert torch.equal(torch.rand(3), expected)


def test_random_merge_averages_by_size_and_removes_what_random_prune_removes():
    x, metric, size, _ = state(30)
    reduction = RandomMerge(0.4, seed=4).reduce(1, x, metric, size, None)
    source = reduction.source()
    assert torch.equal(source.sum(dim=1), torch.ones(2, 30, dtype=torch.float64))
    assert source[:, 0].sum(dim=1).tolist() == [1, 1]
    pruned = RandomPrune(0.4, seed=4).reduce(1, x, metric, size, None).source()
    assert ((source - pruned) >= 0).all()
    for row in range(2):
        for i, line in enumerate(source[row]):
            group = line.nonzero().flatten().tolist()
            mass = sum(float(size[row, j]) for j in group)
            assert float(reduction.size[row, i]) == mass
            assert torch.allclose(reduction.x[row, i], sum(size[row, j] * x[row, j] for j in group) / mass)


@pytest.mark.parametrize("order", ["protect-all", "bsm-all", "clip-order"])
def test_energy_prune_drops_exactly_the_tokens_that_pitome_merges_away(order):
    x, metric, size, _ = state(31)
    dropped = EnergyPrune(0.7, order=order).reduce(1, x, metric, size, None)
    merged = PiToMe(0.7, order=order).reduce(1, x, metric, size, None)
    assert EnergyPrune(0.7, order=order).lengths(31, 12) == PiToMe(0.7, order=order).lengths(31, 12)
    assert ((merged.source() - dropped.source()) >= 0).all()
    for row in range(2):
        positions = kept_positions(dropped.source()[row])
        assert len(set(positions)) == dropped.x.shape[1]
        assert torch.equal(dropped.x[row], x[row, positions])
        assert torch.equal(dropped.size[row], size[row, positions])


def test_energy_prune_drops_a_of_the_match():
    x, metric, size, _ = state(31)
    gone = pitome_match(metric, 0.7, 0.9).a_idx + 1
    source = EnergyPrune(0.7).reduce(0, x, metric, size, None).source()
    for row in range(2):
        assert set(range(31)) - set(kept_positions(source[row])) == set(gone[row].tolist())


def class_scores(attention: torch.Tensor) -> list[float]:
    """Mean over heads of the class token's attention to each token of one image (heads, tokens, tokens)."""
    heads, tokens, _ = attention.shape
    return [sum(float(attention[h, 0, j]) for h in range(heads)) / heads for j in range(tokens)]


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 20), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_class_top_k_keeps_the_most_attended_in_raster_order(tokens, ratio, seed):
    x, metric, size, attention = state(tokens, seed=seed)
    keep = tokens - 1 - removed(tokens - 1, ratio)
    reduction = ClsTopK(ratio).reduce(0, x, metric, size, attention)
    for row in range(2):
        scores = class_scores(attention[row])
        ranked = sorted(range(1, tokens), key=lambda j, scores=scores: -scores[j])
        positions = [0, *sorted(ranked[:keep])]
        assert torch.equal(reduction.x[row], x[row, positions])
        assert torch.equal(reduction.size[row], size[row, positions])
        assert kept_positions(reduction.source()[row]) == positions


def test_equal_attention_keeps_the_first_patches():
    x, metric, size, _ = state(11)
    attention = torch.full((2, 3, 11, 11), 1 / 11, dtype=torch.float64)
    source = ClsTopK(0.6).reduce(0, x, metric, size, attention).source()
    assert kept_positions(source[0]) == [0, 1, 2, 3, 4, 5, 6]


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 20), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_evit_appends_the_attention_weighted_mean_of_the_dropped(tokens, ratio, seed):
    x, metric, size, attention = state(tokens, seed=seed)
    r = removed(tokens - 1, ratio)
    reduction = EViTFuse(ratio).reduce(0, x, metric, size, attention)
    for row in range(2):
        scores = class_scores(attention[row])
        ranked = sorted(range(1, tokens), key=lambda j, scores=scores: -scores[j])
        keep, drop = [0, *sorted(ranked[: tokens - 1 - r])], ranked[tokens - 1 - r :]
        assert torch.equal(reduction.x[row, : len(keep)], x[row, keep])
        assert torch.equal(reduction.size[row, : len(keep)], size[row, keep])
        if drop:
            mean = sum(scores[j] * x[row, j] for j in drop) / sum(scores[j] for j in drop)
            assert torch.allclose(reduction.x[row, -1], mean)
            assert float(reduction.size[row, -1]) == sum(float(size[row, j]) for j in drop)
            members = torch.zeros(tokens, dtype=torch.float64)
            members[drop] = 1
            assert torch.equal(reduction.source()[row, -1], members)


def test_evit_treats_the_fused_token_like_any_other_next_time():
    x, metric, size, attention = state(9)
    first = EViTFuse(0.5).reduce(0, x, metric, size, attention)
    tokens = first.x.shape[1]
    ignored = torch.full((2, 3, tokens, tokens), 1.0, dtype=torch.float64)
    ignored[..., -1] = 0.01
    second = EViTFuse(0.5).reduce(1, first.x, metric[:, :tokens], first.size, ignored)
    assert second.source()[0, -1, -1] == 1  # fused into the new fused token
    assert float(second.size.sum()) == float(size.sum())


def test_evit_survives_tokens_that_get_no_attention_at_all():
    x, metric, size, attention = state(9)
    attention[..., 5:] = 0
    reduction = EViTFuse(0.5).reduce(0, x, metric, size, attention)
    assert reduction.x.isfinite().all()


def test_only_attention_based_baselines_ask_for_attention():
    asking = {name for name, maker in MAKERS.items() if maker.needs_attention}
    assert asking == {"class top k", "evit"}
    assert not EnergyPrune.needs_attention


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.25), ((7, 5), 0.5), ((6, 6), 0.7), ((3, 1), 0.2)])
def test_average_pool_equals_the_mean_over_rectangles_by_loops(grid, ratio):
    rows, columns = grid
    x, metric, size, _ = state(1 + rows * columns)
    reducer = AveragePool(ratio, grid=grid)
    new_rows, new_columns = reducer.grid_after(0)
    reduction = reducer.reduce(0, x, metric, size, None)
    assert torch.equal(reduction.x[:, 0], x[:, 0])
    for i in range(new_rows):
        for j in range(new_columns):
            group = [
                1 + r * columns + c
                for r in range(rows)
                for c in range(columns)
                if math.floor(r * new_rows / rows) == i and math.floor(c * new_columns / columns) == j
            ]
            out = 1 + i * new_columns + j
            mass = size[:, group].sum(dim=1)
            assert torch.allclose(reduction.size[:, out], mass)
            assert torch.allclose(reduction.x[:, out], (size[:, group] * x[:, group]).sum(dim=1) / mass)


def test_average_pool_halves_each_side_at_a_quarter_and_follows_the_ratio_over_many_blocks():
    assert AveragePool(0.25, layers=S3).lengths(197, 12) == [197] * 3 + [50] * 3 + [17] * 3 + [5] * 3
    final = AveragePool(0.95).lengths(197, 12)[-1] - 1
    assert final == pytest.approx(196 * 0.95**12, rel=0.1)


def test_average_pool_refuses_another_grid():
    x, metric, size, _ = state(50)
    with pytest.raises(ValueError, match="14 x 14"):
        AveragePool(0.5).reduce(0, x, metric, size, None)
    with pytest.raises(ValueError, match="14 x 14"):
        AveragePool(0.5).lengths(50, 12)
