import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.vision.tome import (
    ToMe,
    bsm_assignment,
    bsm_match,
    fractional_r,
    merge_closures,
    merge_source,
    merge_wavg,
    parse_r,
    random_assignment,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in u) * sum(float(b) ** 2 for b in v))


def reference_pairs(tokens: torch.Tensor, r: int, class_token: bool, distill_token: bool) -> dict[int, int]:
    """Position that leaves -> position it joins, by loops over one sequence (tokens, dim)."""
    n = len(tokens)
    r = min(r, (n - class_token - distill_token) // 2)
    if r <= 0:
        return {}
    edges = []
    for a in range(0, n, 2):
        if a == 0 and class_token:
            continue
        best, partner = -math.inf, None
        for b in range(1, n, 2):
            if b == 1 and distill_token:
                continue
            similarity = cosine(tokens[a], tokens[b])
            if similarity > best:
                best, partner = similarity, b
        edges.append((best, a, partner))
    edges.sort(key=lambda edge: -edge[0])
    return {a: b for _, a, b in edges[:r]}


def pairs_of(match, row: int) -> dict[int, int]:
    return {2 * int(s): 2 * int(d) + 1 for s, d in zip(match.src_idx[row], match.dst_idx[row], strict=True)}


sequences = {
    "batch": st.integers(1, 3),
    "tokens": st.integers(1, 17),
    "dim": st.integers(2, 5),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=80, deadline=None)
@given(r=st.integers(-2, 20), protect=st.sampled_from([(False, False), (True, False), (True, True)]), **sequences)
def test_matching_equals_a_loop_over_all_pairs(batch, tokens, dim, seed, r, protect):
    metric = noise(batch, tokens, dim, seed=seed)
    match = bsm_match(metric, r, *protect)
    for row in range(batch):
        expected = reference_pairs(metric[row], r, *protect)
        assert pairs_of(match, row) == expected
        stays = set(range(0, tokens, 2)) - set(expected)
        assert sorted(2 * int(u) for u in match.unm_idx[row]) == sorted(stays)


def test_float32_finds_the_pairs_of_float64():
    metric = noise(4, 51, 16)
    exact, single = bsm_match(metric, 12, True), bsm_match(metric.float(), 12, True)
    assert [pairs_of(single, row) for row in range(4)] == [pairs_of(exact, row) for row in range(4)]


def test_matching_ignores_the_length_of_the_metric_vectors():
    metric = noise(2, 20, 6)
    scaled = metric * (noise(2, 20, 1, seed=1).abs() + 0.1)
    assert [pairs_of(bsm_match(scaled, 5), b) for b in range(2)] == [
        pairs_of(bsm_match(metric, 5), b) for b in range(2)
    ]


def test_equal_partners_go_to_the_first_and_equal_edges_keep_their_order():
    axis = torch.eye(3)
    metric = torch.stack([axis[0], axis[1], axis[2], axis[2], axis[2], axis[2]])[None]
    match = bsm_match(metric, 2)
    # A = (0, 2, 4), B = (1, 3, 5): 2 and 4 equal both 3 and 5
    assert match.src_idx.tolist() == [[1, 2]]
    assert match.dst_idx.tolist() == [[1, 1]]


def test_r_beyond_half_is_capped_and_the_class_token_stays():
    for tokens, expected in ((2, 0), (3, 1), (8, 3), (9, 4)):
        match = bsm_match(noise(1, tokens, 4), 100, class_token=True)
        assert match.src_idx.shape[1] == expected
        assert match.unm_idx[0, 0] == 0
    assert bsm_match(noise(1, 7, 4), 100).src_idx.shape[1] == 3


def test_no_positive_r_leaves_every_token_of_a_unmerged():
    for r in (0, -3):
        match = bsm_match(noise(2, 7, 4), r)
        assert match.unm_idx.tolist() == [[0, 1, 2, 3]] * 2
        assert match.src_idx.shape == match.dst_idx.shape == (2, 0)


def test_a_distillation_token_is_never_a_destination_even_when_all_prefer_it():
    metric = noise(1, 10, 4)
    metric[0, 2::2] = metric[0, 1]
    match = bsm_match(metric, 3, class_token=True, distill_token=True)
    assert match.src_idx.shape == (1, 3)
    assert (match.dst_idx > 0).all()


def test_a_distillation_token_without_a_class_token_is_refused():
    with pytest.raises(ValueError, match="class token"):
        bsm_match(noise(1, 6, 4), 1, class_token=False, distill_token=True)


def test_a_match_of_another_length_is_refused():
    with pytest.raises(ValueError, match="half of 9"):
        bsm_assignment(bsm_match(noise(1, 6, 4), 1), 9)


def closures(metric, r, class_token=True, distill_token=False):
    match = bsm_match(metric, r, class_token, distill_token)
    return merge_closures(bsm_assignment(match, metric.shape[1], distill_token))


@pytest.mark.parametrize("tokens", [8, 9, 14, 15])
def test_output_order_is_unmerged_a_in_order_then_all_of_b(tokens):
    metric = noise(1, tokens, 4)
    merge, _ = closures(metric, 2)
    gone = set(reference_pairs(metric[0], 2, True, False))
    source = merge_source(merge, metric)[0]
    anchors = [a for a in range(0, tokens, 2) if a not in gone] + list(range(1, tokens, 2))
    assert source.shape == (len(anchors), tokens)
    assert all(source[row, position] == 1 for row, position in enumerate(anchors))


def test_with_a_distillation_token_the_output_starts_with_class_and_distillation():
    metric = noise(1, 12, 4)
    merge, _ = closures(metric, 3, distill_token=True)
    gone = reference_pairs(metric[0], 3, True, True)
    anchors = [0, 1, *(a for a in range(2, 12, 2) if a not in gone), *range(3, 12, 2)]
    expected = [{a, *(s for s, d in gone.items() if d == a)} for a in anchors]
    source = merge_source(merge, metric)[0]
    assert [set(row.nonzero().flatten().tolist()) for row in source] == expected


@settings(max_examples=50, deadline=None)
@given(r=st.integers(0, 9), distill=st.booleans(), **sequences)
def test_weighted_merge_equals_the_mean_of_each_group_by_loops(batch, tokens, dim, seed, r, distill):
    metric, x = noise(batch, tokens, dim, seed=seed), noise(batch, tokens, 3, seed=seed + 1)
    size = torch.randint(1, 5, (batch, tokens, 1), generator=torch.Generator().manual_seed(seed)).double()
    merge, _ = closures(metric, r, distill_token=distill)
    y, total = merge_wavg(merge, x, size)
    for row in range(batch):
        pairs = reference_pairs(metric[row], r, True, distill)
        groups = [[b, *(s for s, d in pairs.items() if d == b)] for b in range(tokens) if b not in pairs]
        expected = []
        for group in groups:
            mass = sum(float(size[row, i]) for i in group)
            mean = sum(size[row, i] * x[row, i] for i in group) / mass
            expected.append((*mean.tolist(), mass))
        actual = [(*y[row, i].tolist(), float(total[row, i])) for i in range(y.shape[1])]
        # compared as multisets: the output order has tests of its own
        assert torch.allclose(torch.tensor(sorted(actual)), torch.tensor(sorted(expected)), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(rounds=st.integers(1, 4), r=st.integers(0, 6), **sequences)
def test_merging_preserves_the_weighted_sum_and_the_total_size(batch, tokens, dim, seed, rounds, r):
    x, size = noise(batch, tokens, dim, seed=seed), torch.ones(batch, tokens, 1, dtype=torch.float64)
    before = x.sum(dim=1)
    for step in range(rounds):
        merge, _ = closures(noise(batch, x.shape[1], 4, seed=seed + step), r)
        x, size = merge_wavg(merge, x, size)
    assert torch.allclose((x * size).sum(dim=1), before, atol=1e-9)
    assert size.sum(dim=1).flatten().tolist() == [tokens] * batch


def test_sizes_default_to_ones():
    metric = noise(2, 9, 4)
    merge, _ = closures(metric, 3)
    x, size = merge_wavg(merge, metric)
    ones = merge_wavg(merge, metric, torch.ones(2, 9, 1, dtype=torch.float64))
    assert torch.equal(x, ones[0])
    assert torch.equal(size, ones[1])


def test_several_sources_may_join_one_destination():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    metric = torch.stack([other, one, one, other, one, other])[None]  # positions 2 and 4 both join 1
    merge, unmerge = closures(metric, 2)
    x = torch.tensor([[[0.0], [10.0], [20.0], [3.0], [60.0], [5.0]]])
    assert merge(x).flatten().tolist() == [0, 30, 3, 5]
    assert merge(x, "sum").flatten().tolist() == [0, 90, 3, 5]
    assert merge(x, "amax").flatten().tolist() == [0, 60, 3, 5]
    assert unmerge(merge(x)).flatten().tolist() == [0, 30, 30, 3, 30, 5]


@settings(max_examples=40, deadline=None)
@given(r=st.integers(0, 9), distill=st.booleans(), **sequences)
def test_unmerge_puts_the_group_mean_back_to_every_original_position(batch, tokens, dim, seed, r, distill):
    metric = noise(batch, tokens, dim, seed=seed)
    merge, unmerge = closures(metric, r, distill_token=distill)
    restored = unmerge(merge(metric, "mean"))
    for row in range(batch):
        pairs = reference_pairs(metric[row], r, True, distill)
        for position in range(tokens):
            anchor = pairs.get(position, position)
            group = [anchor, *(s for s, d in pairs.items() if d == anchor)]
            mean = sum(metric[row, i] for i in group) / len(group)
            assert torch.allclose(restored[row, position], mean, atol=1e-9)


def test_sources_of_two_merges_partition_the_original_tokens():
    metric = noise(2, 15, 4)
    first, _ = closures(metric, 4)
    source = merge_source(first, metric)
    merged = first(metric)
    second, _ = closures(merged, 3)
    both = merge_source(second, merged, source)
    assert both.shape == (2, 8, 15)
    assert torch.equal(both.sum(dim=1), torch.ones(2, 15, dtype=torch.float64))
    assert torch.equal(both, merge_source(second, merged) @ source)
    assert torch.equal(both.sum(dim=2, keepdim=True), second(first(torch.ones_like(metric[..., :1]), "sum"), "sum"))


def test_schedule_constant_list_and_inflection():
    assert parse_r(4, 5) == [5, 5, 5, 5]
    assert parse_r(4, [3, 2]) == [3, 2, 0, 0]
    assert parse_r(5, (8, -1.0)) == [16, 12, 8, 4, 0]
    assert parse_r(5, (8, 1.0)) == [0, 4, 8, 12, 16]
    assert parse_r(4, (8, 0.0)) == [8, 8, 8, 8]
    assert parse_r(4, (5, -0.5)) == [7, 5, 4, 3]  # min 7, max 3, step -4/3
    assert parse_r(1, (8, -1.0)) == [16]
    with pytest.raises(ValueError, match="5 entries for 4 layers"):
        parse_r(4, [1] * 5)


@given(r=st.floats(0, 20), num_layers=st.integers(1, 30))
def test_fractional_r_differs_by_at_most_one_and_adds_up(r, num_layers):
    schedule = fractional_r(r, num_layers)
    assert len(schedule) == num_layers
    assert sum(schedule) == math.floor(num_layers * r)
    assert max(schedule) - min(schedule) <= 1


def test_fractional_r_spreads_evenly():
    assert fractional_r(2.5, 4) == [2, 3, 2, 3]
    assert fractional_r(0.25, 8) == [0, 0, 0, 1, 0, 0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    r=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    distill=st.booleans(),
    seed=st.integers(0, 999),
)
def test_reducer_lengths_are_the_lengths_it_produces(tokens, r, distill, seed):
    reducer = ToMe(tuple(r), distill_token=distill)
    x, size = noise(2, tokens, 4, seed=seed), torch.ones(2, tokens, 1, dtype=torch.float64)
    first = x[:, 0].clone()
    for layer, length in enumerate(reducer.lengths(tokens, len(r))):
        x, size, _ = reducer.reduce(layer, x, noise(2, x.shape[1], 4, seed=seed + layer), size, None)
        assert x.shape == (2, length, 4)
        assert size.shape == (2, length, 1)
    assert torch.equal(x[:, 0], first)
    assert size[:, 0].flatten().tolist() == [1, 1]


def test_reducer_protects_the_distillation_token_in_every_block():
    reducer = ToMe((4, 4, 4), distill_token=True)
    x, size = noise(2, 18, 4), torch.ones(2, 18, 1, dtype=torch.float64)
    start = x[:, :2].clone()
    for layer in range(3):
        x, size, _ = reducer.reduce(layer, x, noise(2, x.shape[1], 4, seed=layer), size, None)
    assert torch.equal(x[:, :2], start)


def test_reducer_needs_one_r_for_every_layer():
    with pytest.raises(ValueError, match="3 entries for 4 layers"):
        ToMe((1, 2, 3)).lengths(10, 4)


def flops_share(lengths: list[int], tokens: int, dim: int) -> float:
    """Attention 4 N C^2 + 2 N^2 C at the input length and MLP 8 N C^2 at the merged length, over the full."""
    inputs = [tokens, *lengths[:-1]]
    spent = sum(4 * n * dim**2 + 2 * n**2 * dim + 8 * m * dim**2 for n, m in zip(inputs, lengths, strict=True))
    return spent / (len(lengths) * (12 * tokens * dim**2 + 2 * tokens**2 * dim))


@pytest.mark.parametrize(
    ("r", "dim", "share"),
    [(8, 64, 0.707), (10, 64, 0.641), (12, 64, 0.578), (14, 64, 0.518), (16, 64, 0.461), (13, 384, 0.582)],
)
def test_lengths_give_the_known_share_of_flops(r, dim, share):
    assert flops_share(ToMe(tuple(parse_r(12, r))).lengths(197, 12), 197, dim) == pytest.approx(share, abs=6e-4)


def test_random_assignment_is_a_partition_that_moves_every_token_sometimes():
    generator = torch.Generator().manual_seed(3)
    assignment = random_assignment(200, 9, 4, generator)
    everyone = torch.cat([assignment.anchor, assignment.src], dim=1).sort(dim=1).values
    assert torch.equal(everyone, torch.arange(9).expand(200, -1))
    assert torch.equal(assignment.anchor, assignment.anchor.sort(dim=1).values)
    removed = torch.bincount(assignment.src.flatten(), minlength=9) / 200
    assert ((removed - 4 / 9).abs() < 0.15).all()
    joined = torch.bincount(assignment.dst.flatten(), minlength=5) / 800
    assert joined.shape == (5,)
    assert ((joined - 1 / 5).abs() < 0.06).all()


@pytest.mark.parametrize("r", [-1, 5, 6])
def test_random_assignment_leaves_at_least_one_token(r):
    with pytest.raises(ValueError, match="between 0 and 4"):
        random_assignment(1, 5, r, torch.Generator())
