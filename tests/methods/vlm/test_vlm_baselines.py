import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.vlm.baselines import Blind, ClsTopK, Grid, Random, even_grid
from tokenarium.methods.vlm.fastv import FastV, fastv_at_vbar, fastv_select
from tokenarium.methods.vlm.harness import BUDGETS, Method, Shape, evaluate, matched, prefill_flops, select, vbar
from tokenarium.methods.vlm.harness.substrate import open_substrate
from tokenarium.methods.vlm.visionzip import VisionZip, contextual_tokens, dominant_tokens

N = 144


@pytest.fixture(scope="module")
def substrate():
    return open_substrate(None, {"model": "tiny", "data": "scenes", "questions": 5}, seed=0)


def patches(substrate, method):
    return [visual.patches.tolist() for visual in select(substrate, method, substrate.questions)]


@pytest.mark.parametrize("make", [Random, Grid, ClsTopK])
@pytest.mark.parametrize("budget", [*BUDGETS, 1, N])
def test_a_baseline_keeps_its_budget_of_different_patches_in_raster_order(substrate, make, budget):
    for kept in patches(substrate, make(budget=budget)):
        assert len(kept) == budget
        assert kept == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < N


def test_random_draws_differ_by_image_and_seed_and_repeat(substrate):
    draws = [kept for seed in (0, 1) for kept in patches(substrate, Random(budget=16, seed=seed))]
    assert len(set(map(tuple, draws))) == 10
    assert patches(substrate, Random(budget=16, seed=1)) == draws[5:]


def test_cls_top_k_takes_the_patches_that_cls_looks_at(substrate):
    for view, kept in zip(substrate.views(substrate.questions), patches(substrate, ClsTopK(budget=9)), strict=True):
        scores = [sum(head[0, 1 + patch].item() for head in view.attention(-2)) for patch in range(N)]
        assert kept == sorted(sorted(range(N), key=lambda patch: -scores[patch])[:9])


@given(st.integers(1, 14), st.integers(1, 14), st.data())
@settings(max_examples=50, deadline=None)
def test_an_even_grid_has_the_points_asked_for_inside_the_image(height, width, data):
    count = data.draw(st.integers(1, height * width))
    points = even_grid(height, width, count).tolist()
    assert len(set(points)) == count
    assert points == sorted(points)
    assert 0 <= points[0] <= points[-1] < height * width


def test_the_budgets_are_rectangles():
    for budget, (rows, columns) in zip(BUDGETS, [(8, 12), (6, 8), (4, 8), (4, 4), (2, 4)], strict=True):
        points = even_grid(12, 12, budget)
        assert (len(set((points // 12).tolist())), len(set((points % 12).tolist()))) in [
            (rows, columns),
            (columns, rows),
        ]


def test_blind_sees_nothing(substrate):
    cell = evaluate(substrate, Blind())
    assert not cell["visual"].any()
    assert not cell["kept"].any()
    others = replace(substrate, pixels=lambda numbers: substrate.pixels([0] * len(numbers)))
    assert (evaluate(others, Blind())["log_probability"] == cell["log_probability"]).all()


def test_fastv_keeps_what_the_last_token_looks_at():
    attention = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    means = [sum(attention[head, 6, 2 + token].item() for head in range(3)) for token in range(4)]
    assert fastv_select(attention, slice(2, 6), 2).tolist() == sorted(sorted(range(4), key=lambda t: -means[t])[:2])
    assert fastv_select(attention, slice(2, 6), 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fastv_runs_k_layers_on_all_tokens(substrate, k):
    assert evaluate(substrate, FastV(keep=16, k=k))["visual"].tolist() == [[N] * k + [16] * (8 - k)] * 5


def test_fastv_meets_vbar_where_it_can():
    found = {budget: fastv_at_vbar(budget, N, 8) for budget in BUDGETS}
    assert found == {96: FastV(keep=80), 48: FastV(keep=16), 32: FastV(keep=16, k=1), 16: None, 8: None}
    for budget, method in found.items():
        if method:
            assert vbar([N] * method.k + [method.keep] * (8 - method.k)) == pytest.approx(budget, rel=0.02)


def test_visionzip_sums_the_rest_into_its_targets():
    """Against loops: every token left goes to its most similar target, a contextual token is target + mean."""
    generator = torch.Generator().manual_seed(1)
    metric, features = (torch.randn(11, 4, generator=generator) for _ in range(2))
    tokens, targets, assigned = contextual_tokens(metric, features, 3)
    assert targets.tolist() == [0, 3, 6]  # 11 // 3 = 3 apart, the first three
    for number, target in enumerate([0, 3, 6]):
        members = []
        for token in range(11):
            if token not in (0, 3, 6):
                cosines = [torch.cosine_similarity(metric[token], metric[t], dim=0).item() for t in (0, 3, 6)]
                if max(range(3), key=cosines.__getitem__) == number:
                    members.append(token)
                    assert assigned[token] == number
        expected = features[target] + (sum(features[m] for m in members) / len(members) if members else 0)
        torch.testing.assert_close(tokens[number], expected)


def test_visionzip_guards_few_tokens_and_empty_groups():
    one = torch.eye(3)
    tokens, targets, _ = contextual_tokens(one, one, 5)
    assert targets.tolist() == [0, 1, 2]
    torch.testing.assert_close(tokens, one)
    tokens, targets, _ = contextual_tokens(one, one, 0)
    assert (tokens.shape, len(targets)) == ((0, 3), 0)


def test_dominant_tokens_are_those_with_the_largest_sum_over_heads():
    attention = torch.tensor([[0.1, 0.6, 0.1, 0.2], [0.7, 0.0, 0.05, 0.25]])
    assert dominant_tokens(attention, 2).tolist() == [0, 1]
    assert dominant_tokens(attention, 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("include_cls", [True, False])
def test_visionzip_spends_its_budget_on_dominant_tokens_then_contextual_ones(substrate, budget, include_cls):
    num_dominant = round(budget * 54 / 64)
    for visual in select(substrate, VisionZip(budget=budget, include_cls=include_cls), substrate.questions):
        kept = visual.patches.tolist()
        assert len(kept) == len(visual.tokens) == budget
        assert (kept[0] == -1) == include_cls
        dominant, contextual = kept[include_cls:num_dominant], kept[num_dominant:]
        assert dominant == sorted(dominant)
        assert contextual == sorted(contextual)
        assert len(set(kept)) == budget
        assert visual.source.sum().item() == N  # every patch is in one token
    (view,) = substrate.views(substrate.questions[:1])
    if include_cls:
        (first, *_) = select(substrate, VisionZip(budget=budget), substrate.questions[:1])
        torch.testing.assert_close(first.tokens[0], view.project(view.cls[None])[0])


def test_prefill_flops_add_matrices_and_attention_of_every_layer(substrate):
    shape = substrate.shape
    text = len(substrate.questions[0].before) + len(substrate.questions[0].after)
    cell = evaluate(substrate, FastV(keep=16))
    total = 0
    for layer, tokens in enumerate([N, N, *[16] * 6]):
        module = substrate.model.model.language_model.layers[layer]
        linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
        total += sum(2 * (text + tokens) * m.in_features * m.out_features for m in linear)
        total += 2 * 2 * (text + tokens) ** 2 * shape.dim
    assert cell["gflops"][0] == pytest.approx(total / 1e9, rel=1e-6)
    assert prefill_flops([10, 20], shape) == prefill_flops([10], shape) + prefill_flops([20], shape)
    assert prefill_flops([10], shape, [30]) - prefill_flops([10], shape) == 4 * (30**2 - 10**2) * shape.dim


def test_a_methods_own_operations_are_counted(substrate):
    class Costly(Method):
        def overhead_flops(self, shape: Shape) -> float:
            return 5e9

    assert evaluate(substrate, Costly())["gflops"] == pytest.approx(evaluate(substrate, Method())["gflops"] + 5)


@given(st.floats(0.1, 200), st.floats(0, 50), st.floats(1, 400))
@settings(max_examples=100, deadline=None)
def test_matching_finds_the_closest_whole_number_or_says_that_there_is_none(slope, start, target):
    found = matched(lambda n: start + slope * n, target, 144)
    best = min(range(145), key=lambda n: abs(start + slope * n - target))
    error = abs(start + slope * best - target)
    if found is None:
        assert error > 0.02 * target * (1 - 1e-9)
    else:
        assert math.isclose(abs(start + slope * found - target), error, abs_tol=1e-9)
