import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.vlm.experiments import hiprune_cells
from tokenarium.methods.vlm.harness import select
from tokenarium.methods.vlm.harness.substrate import open_substrate
from tokenarium.methods.vlm.hiprune import HiPrune, dispersion, hiprune_select, num_anchors, overlap, top_patches

N, WIDTH = 144, 12


@pytest.fixture(scope="module")
def substrate():
    return open_substrate(None, {"model": "tiny", "data": "scenes", "questions": 5}, seed=0)


def scores(*top, total=N):
    """Small distinct scores, lowest at the end, except for `top`, which come first in this order."""
    values = torch.linspace(0.01, 0.001, total)
    for rank, patch in enumerate(top):
        values[patch] = 0.9 - 0.01 * rank
    return values


def reference(a_obj, a_deep, budget, alpha, width):
    """Loops over plain numbers: anchors, buffers by index with clamping, registers among the rest."""
    total = len(a_obj)
    count = round(budget * alpha / 5)
    anchors = set(sorted(range(total), key=lambda j: -a_obj[j])[:count])
    buffers = set()
    for anchor in anchors:
        for step in (-1, 1, -width, width):
            buffers.add(max(0, min(total - 1, anchor + step)))
    buffers -= anchors
    if len(anchors) + len(buffers) > budget:
        buffers = set(sorted(buffers, key=lambda j: -a_obj[j])[: budget - len(anchors)])
    rest = sorted(set(range(total)) - anchors - buffers, key=lambda j: -a_deep[j])
    return anchors, buffers, set(rest[: budget - len(anchors) - len(buffers)])


@given(st.integers(2, 12), st.integers(2, 12), st.data())
@settings(max_examples=150, deadline=None)
def test_the_selection_is_that_of_a_plain_loop(height, width, data):
    total = height * width
    budget = data.draw(st.integers(1, total))
    alpha = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    a_obj, a_deep = (generator.permutation(total) / (total + 1) for _ in range(2))
    found = hiprune_select(torch.tensor(a_obj).float(), torch.tensor(a_deep).float(), budget, alpha, width)
    expected = reference(a_obj.tolist(), a_deep.tolist(), budget, alpha, width)
    assert tuple(set(part.tolist()) for part in found[:3]) == expected
    assert set(found[3].nonzero()[:, 0].tolist()) == set.union(*expected)
    assert int(found[3].sum()) == budget


def test_neighbours_wrap_to_the_next_row_at_the_images_border():
    anchor = 3 * WIDTH  # first patch of the fourth row
    anchors, buffers, _, _ = hiprune_select(scores(anchor), scores(), 48, 0.1, WIDTH)
    assert anchors.tolist() == [anchor]
    assert buffers.tolist() == [anchor - WIDTH, anchor - 1, anchor + 1, anchor + WIDTH]
    assert (anchor - 1) // WIDTH == 2  # the last patch of the row above


@pytest.mark.parametrize(
    ("corner", "buffers"), [(0, [1, 12]), (11, [0, 10, 12, 23]), (132, [120, 131, 133, 143]), (143, [131, 142])]
)
def test_neighbours_outside_are_clamped_and_counted_once(corner, buffers):
    anchors, found, registers, keep = hiprune_select(scores(corner), scores(), 48, 0.1, WIDTH)
    assert anchors.tolist() == [corner]
    assert found.tolist() == buffers
    assert len(registers) == 48 - 1 - len(buffers)
    assert int(keep.sum()) == 48


def test_neighbouring_anchors_share_their_buffers():
    anchors, buffers, _, keep = hiprune_select(scores(50, 51), scores(), 96, 0.1, WIDTH)
    assert anchors.tolist() == [50, 51]
    assert buffers.tolist() == [38, 39, 49, 52, 62, 63]
    assert int(keep.sum()) == 96


@pytest.mark.parametrize(("budget", "count"), [(96, 2), (48, 1), (32, 1), (16, 0), (8, 0), (192, 4), (128, 3), (64, 1)])
def test_the_defaults_give_as_many_anchors_as_the_card_says(budget, count):
    assert num_anchors(budget, 0.1) == count


def test_half_an_anchor_rounds_to_the_even_number():
    assert [num_anchors(budget, 1.0) for budget in (2, 3, 7, 8, 12, 13)] == [0, 1, 1, 2, 2, 3]
    assert [num_anchors(budget, 0.5) for budget in (5, 15, 25, 35)] == [0, 2, 2, 4]


def test_without_anchors_the_top_of_the_deep_layer_is_kept():
    deep = scores(7, 100, 3)
    anchors, buffers, registers, keep = hiprune_select(scores(60), deep, 16, 0.1, WIDTH)
    assert len(anchors) == len(buffers) == 0
    expected = sorted(sorted(range(N), key=lambda j: -deep[j].item())[:16])
    assert registers.tolist() == keep.nonzero()[:, 0].tolist() == expected


def test_registers_are_never_patches_already_chosen():
    top = [50, 49, 51, 38, 62]
    anchors, buffers, registers, keep = hiprune_select(scores(50), scores(*top), 48, 0.1, WIDTH)
    assert not set(registers.tolist()) & {*anchors.tolist(), *buffers.tolist()}
    assert int(keep.sum()) == 48


def test_the_default_width_is_that_of_llava():
    _, buffers, _, _ = hiprune_select(scores(300, total=576), scores(total=576), 64)
    assert buffers.tolist() == [276, 299, 301, 324]


@pytest.mark.parametrize(("budget", "alpha"), [(0, 0.1), (145, 0.1), (8, -0.1), (8, 1.1)])
def test_what_cannot_be_is_refused(budget, alpha):
    with pytest.raises(ValueError, match="must be between"):
        hiprune_select(scores(), scores(), budget, alpha, WIDTH)


def test_scores_are_mean_attention_over_heads_and_all_queries(substrate):
    (view,) = substrate.views(substrate.questions[:1])
    method = HiPrune(budget=48, alpha=0.3, object_layer=3)
    a_obj, a_deep = (
        torch.tensor([[view.attention(block)[:, :, 1 + j].mean().item()] for j in range(N)])[:, 0] for block in (2, -2)
    )
    found, expected = method.parts(view), hiprune_select(a_obj, a_deep, 48, 0.3, WIDTH)
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("change", [{}, *hiprune_cells.ARMS.values()])
@pytest.mark.parametrize("budget", [96, 48, 16])
def test_every_arm_keeps_its_budget_in_raster_order(substrate, change, budget):
    for visual in select(substrate, HiPrune(budget=budget, alpha=0.3, object_layer=3, **change), substrate.questions):
        kept = visual.patches.tolist()
        assert len(kept) == budget
        assert kept == sorted(set(kept))


def test_the_arms_take_their_tokens_from_the_layers_they_name(substrate):
    (view,) = substrate.views(substrate.questions[:1])
    a_obj, a_deep = view.received(2), view.received(-2)

    def arm(**change):
        return [part.tolist() for part in HiPrune(budget=48, alpha=0.3, object_layer=3, **change).parts(view)]

    def top(values, count):
        return sorted(sorted(range(N), key=lambda j: -values[j].item())[:count])

    assert arm(tokens="anchors")[:3] == [top(a_obj, 48), [], []]
    assert arm(tokens="registers")[:3] == [[], [], top(a_deep, 48)]
    anchors, buffers, registers, _ = arm(tokens="no-buffers")
    assert (anchors, buffers) == (top(a_obj, 3), [])
    assert registers == sorted([j for j in sorted(range(N), key=lambda j: -a_deep[j].item()) if j not in anchors][:45])
    assert arm(anchors_from="deep")[0] == top(a_deep, 3)
    assert arm(registers_from="object")[0] == top(a_obj, 3)


def test_overlap_and_dispersion_are_those_of_hand_counts():
    objects = torch.zeros(16, dtype=torch.bool)
    objects[[0, 1, 4, 5]] = True
    assert overlap(torch.tensor([1, 2, 5]), objects) == pytest.approx(2 / 5)
    pairs = [math.dist((0, 1), (0, 2)), math.dist((0, 1), (1, 1)), math.dist((0, 2), (1, 1))]
    assert dispersion(torch.tensor([1, 2, 5]), 4) == pytest.approx(sum(pairs) / 3)
    assert top_patches(scores(70, 20), 0.1).tolist() == [*range(12), 20, 70]


def test_the_hierarchy_has_a_line_for_each_image_and_a_column_for_each_layer(substrate):
    found = hiprune_cells.hierarchy(substrate)
    assert found["iou"].shape == found["distance"].shape == (5, 8)
    (view,) = substrate.views(substrate.questions[:1])
    objects = torch.tensor(substrate.objects[0])
    assert found["iou"][0, 2] == pytest.approx(overlap(top_patches(view.received(2)), objects))
