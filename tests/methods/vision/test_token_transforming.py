import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import ViTConfig, ViTForImageClassification

from tokenarium.methods.vision.baselines import (
    AveragePool,
    ClsTopK,
    EViTFuse,
    RandomPrune,
    split_by_class_attention,
)
from tokenarium.methods.vision.harness import run
from tokenarium.methods.vision.pitome import PiToMe, pitome_assignment, pitome_match, seeded_generator
from tokenarium.methods.vision.token_transforming import (
    TokenTransforming,
    as_matrix,
    extra_flops,
    importance,
    matrix_structure,
    reconstruction_error,
    restore,
    schedule_s3,
    schedule_s12,
    transform_matrix,
    transport_matrix,
)
from tokenarium.methods.vision.tome import (
    Assignment,
    ToMe,
    bsm_assignment,
    bsm_match,
    merge_closures,
    merge_wavg,
)

LAYERS = 6
GRID = (6, 6)
TOKENS = 1 + GRID[0] * GRID[1]


def random_case(seed, tokens, dim, batch=None, dtype=torch.float32):
    """metric, importance (positive, sum 1) and size of one image, or of a batch."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    metric = torch.randn(*lead, tokens, dim, generator=generator, dtype=dtype)
    scores = torch.rand(*lead, tokens, generator=generator, dtype=dtype) + 0.01
    size = 0.25 + 5 * torch.rand(*lead, tokens, generator=generator, dtype=dtype)
    return metric, scores / scores.sum(-1, keepdim=True), size


def block_case(seed, batch=3, tokens=TOKENS, dim=10, head_dim=5, heads=2):
    """What a block hands to `reduce`: x, metric, real-valued sizes, attention probabilities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, dim, generator=generator)
    metric = torch.randn(batch, tokens, head_dim, generator=generator)
    size = 0.25 + 5 * torch.rand(batch, tokens, 1, generator=generator)
    attention = (2 * torch.randn(batch, heads, tokens, tokens, generator=generator)).softmax(-1)
    return x, metric, size, attention


def cosine(a, b):
    norm_a, norm_b = math.sqrt(sum(v * v for v in a)), math.sqrt(sum(v * v for v in b))
    return sum(u * v for u, v in zip(a, b, strict=True)) / (norm_a * norm_b)


def reference_transform(metric, scores, size, m, tau, weighting, assignment="soft", selfkeep=True):
    """Anchors, P and W by loops over Python floats (float64)."""
    metric, scores, size = metric.double().tolist(), scores.double().tolist(), size.double().tolist()
    tokens = len(scores)
    anchors = sorted(sorted(range(tokens), key=lambda j: (-scores[j], j))[:m])
    P = [[0.0] * tokens for _ in range(m)]
    for j in range(tokens):
        if j in anchors and (selfkeep or assignment != "soft"):
            P[anchors.index(j)][j] = 1.0
            continue
        if assignment == "prune":
            continue
        similarity = [cosine(metric[i], metric[j]) for i in anchors]
        if assignment == "hard":
            P[similarity.index(max(similarity))][j] = 1.0
            continue
        powers = [math.exp((s - max(similarity)) / tau) for s in similarity]
        for i in range(m):
            P[i][j] = powers[i] / sum(powers)
    W = []
    for row in P:
        mass = [row[j] * size[j] * (scores[j] if weighting == "imp" else 1) for j in range(tokens)]
        W.append([value / sum(mass) for value in mass])
    return anchors, torch.tensor(P, dtype=torch.float64), torch.tensor(W, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=24,
        patch_size=4,
        num_channels=1,
        num_labels=5,
        initializer_range=0.3,
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 1, 24, 24, generator=torch.Generator().manual_seed(1))


shapes = {
    "seed": st.integers(0, 10**6),
    "tokens": st.integers(1, 14),
    "dim": st.integers(1, 6),
    "weighting": st.sampled_from(["size", "imp"]),
    "data": st.data(),
}


@settings(max_examples=150, deadline=None)
@given(
    **shapes,
    tau=st.sampled_from([1e-4, 0.001, 0.03, 0.3, 5.0]),
    assignment=st.sampled_from(["soft", "prune"]),
    selfkeep=st.booleans(),
)
def test_transform_matrix_equals_the_loop_reference(seed, tokens, dim, weighting, data, tau, assignment, selfkeep):
    m = data.draw(st.integers(1, tokens))
    metric, scores, size = random_case(seed, tokens, dim, dtype=torch.float64)
    anchors, P, W = transform_matrix(metric, scores, size, m, tau, weighting, assignment=assignment, selfkeep=selfkeep)
    expected = reference_transform(metric, scores, size, m, tau, weighting, assignment, selfkeep)
    assert anchors.tolist() == expected[0]
    torch.testing.assert_close(P, expected[1], atol=1e-9, rtol=0)
    torch.testing.assert_close(W, expected[2], atol=1e-9, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    **shapes,
    tau=st.sampled_from([1e-30, 1e-4, 0.001, 0.03, 0.3, 1e6]),
    assignment=st.sampled_from(["soft", "hard"]),
    selfkeep=st.booleans(),
)
def test_rows_of_w_and_columns_of_p_sum_to_one(seed, tokens, dim, weighting, data, tau, assignment, selfkeep):
    m = data.draw(st.integers(1, tokens))
    anchors, P, W = transform_matrix(
        *random_case(seed, tokens, dim), m, tau, weighting, assignment=assignment, selfkeep=selfkeep
    )
    assert anchors.shape == (m,)
    assert P.shape == W.shape == (m, tokens)
    assert anchors.dtype == torch.int64
    assert P.dtype == W.dtype == torch.float32
    assert (P >= 0).all()
    assert (W >= 0).all()
    torch.testing.assert_close(P.sum(0), torch.ones(tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(W.sum(1), torch.ones(m), atol=1e-5, rtol=0)


def test_row_softmax_would_fail_where_column_softmax_conserves_mass():
    # Two anchors, the second one lonely: the crowd's four tokens all belong to the first.
    metric = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [1, 0.1], [1, 0.1], [1, 0.1]])
    scores = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    _, P, _ = transform_matrix(metric, scores, torch.ones(6), 2, 0.03)
    torch.testing.assert_close(P.sum(1), torch.tensor([5.0, 1.0]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 20), data=st.data(), weighting=shapes["weighting"])
def test_a_temperature_of_1e_minus_4_equals_hard_assignment(seed, tokens, data, weighting):
    m = data.draw(st.integers(1, tokens - 1))
    metric, scores, size = random_case(seed, tokens, 4)
    anchors, P, W = transform_matrix(metric, scores, size, m, 1e-4, weighting)
    expected, P_loop, W_loop = reference_transform(metric, scores, size, m, None, weighting, "hard")
    for j in set(range(tokens)) - set(expected):
        ranked = sorted(cosine(metric[i].tolist(), metric[j].tolist()) for i in expected)
        # Closer than 20 temperatures is a tie that soft assignment shares out.
        assume(m == 1 or ranked[-1] - ranked[-2] > 0.002)
    hard = transform_matrix(metric, scores, size, m, weighting=weighting, assignment="hard")
    assert anchors.tolist() == hard[0].tolist() == expected
    torch.testing.assert_close(hard[1].double(), P_loop, atol=0, rtol=0)
    torch.testing.assert_close(P, hard[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(W, hard[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(W.double(), W_loop, atol=1e-6, rtol=0)


def test_hard_assignment_breaks_ties_by_the_first_anchor_and_keeps_twin_anchors_apart():
    metric = torch.tensor([[1.0, 0], [2.0, 0], [0.5, 0], [0, 4.0]])
    scores = torch.tensor([0.3, 0.3, 0.1, 0.3])
    for selfkeep in (True, False):
        anchors, P, _ = transform_matrix(metric, scores, torch.ones(4), 3, assignment="hard", selfkeep=selfkeep)
        assert anchors.tolist() == [0, 1, 3]
        assert P.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    soft = transform_matrix(metric, scores, torch.ones(4), 3, 1e-4)[1]
    torch.testing.assert_close(soft[:, 2], torch.tensor([0.5, 0.5, 0.0]))


def test_equally_important_tokens_give_the_lower_index_as_anchor_in_raster_order():
    metric = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
    for m, expected in [(1, [3]), (2, [1, 3]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])]:
        assert transform_matrix(metric, scores, torch.ones(6), m)[0].tolist() == expected
    many = torch.full((500,), 1 / 500)
    assert transform_matrix(torch.randn(500, 3), many, torch.ones(500), 99)[0].tolist() == list(range(99))


@pytest.mark.parametrize("weighting", ["size", "imp"])
@pytest.mark.parametrize("selfkeep", [True, False])
@pytest.mark.parametrize("tau", [1e-4, 0.03])
@pytest.mark.parametrize("scale", [0.0, 1e-18, 1.0, 1e15])
def test_degenerate_tokens_give_finite_matrices(scale, tau, selfkeep, weighting):
    metric = scale * torch.cat([torch.ones(5, 4), -torch.ones(5, 4), torch.zeros(2, 4)])
    scores = torch.zeros(12)
    scores[3] = 1.0
    _, P, W = transform_matrix(metric, scores, torch.ones(12), 4, tau, weighting, selfkeep=selfkeep)
    torch.testing.assert_close(P.sum(0), torch.ones(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(W.sum(1), torch.ones(4), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(**shapes, selfkeep=st.booleans(), assignment=st.sampled_from(["soft", "hard", "prune"]))
def test_a_batch_equals_its_images_one_by_one(seed, tokens, dim, weighting, data, selfkeep, assignment):
    m = data.draw(st.integers(1, tokens))
    # Random directions of two dimensions or more leave no tie that rounding could break differently.
    batch = random_case(seed, tokens, dim + 1, batch=3, dtype=torch.float64)
    options = {"assignment": assignment, "selfkeep": selfkeep}
    together = transform_matrix(*batch, m, 0.1, weighting, **options)
    for image in range(3):
        alone = transform_matrix(*(tensor[image] for tensor in batch), m, 0.1, weighting, **options)
        for whole, single in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[image], single, atol=1e-9, rtol=0)


def test_selfkeep_makes_anchor_columns_one_hot_and_without_it_anchors_are_mixed():
    metric, scores, size = random_case(0, 12, 4)
    anchors, kept, _ = transform_matrix(metric, scores, size, 5, 0.3)
    assert torch.equal(kept[:, anchors], torch.eye(5))
    _, mixed, _ = transform_matrix(metric, scores, size, 5, 0.3, selfkeep=False)
    assert (mixed[:, anchors].amax(0) < 0.999).all()
    others = [j for j in range(12) if j not in anchors.tolist()]
    assert torch.equal(kept[:, others], mixed[:, others])


def test_masking_p_to_its_anchor_columns_gives_pruning():
    metric, scores, size = random_case(1, 15, 4)
    anchors, P, _ = transform_matrix(metric, scores, size, 6, 0.1)
    mask = torch.zeros(15)
    mask[anchors] = 1
    x = torch.randn(15, 7)
    pruned = as_matrix(P * mask, size)
    assert torch.equal(pruned @ x, x[anchors])
    assert torch.equal(pruned, transform_matrix(metric, scores, size, 6, assignment="prune")[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, "m must be between 1 and 8"),
        ({"m": 9}, "m must be between 1 and 8"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": math.nan}, "tau must be positive"),
        ({"weighting": "sizes"}, "weighting must be one of size, imp"),
        ({"assignment": "knn"}, "assignment must be one of soft, hard, prune"),
    ],
)
def test_transform_matrix_names_the_wrong_argument(change, message):
    metric, scores, size = random_case(0, 8, 3)
    with pytest.raises(ValueError, match=message):
        transform_matrix(metric, scores, size, **({"m": 3} | change))


def nobody(batch):
    return torch.empty(batch, 0, dtype=torch.int64)


def matching_of_pruning(x, metric, attention):
    keep, _ = split_by_class_attention(attention, 12)
    return Assignment(keep, nobody(len(x)), nobody(len(x)))


def matching_of_evit(x, metric, attention):
    keep, drop = split_by_class_attention(attention, 12)
    # The fused row has no token of its own: the first dropped token opens it, and the others join.
    last = torch.full_like(drop[:, 1:], keep.shape[1])
    return Assignment(torch.cat([keep, drop[:, :1]], dim=1), drop[:, 1:], last)


def matching_of_tome(x, metric, attention):
    return bsm_assignment(bsm_match(metric, 9, class_token=True), x.shape[1])


def matching_of_pitome(x, metric, attention):
    return pitome_assignment(pitome_match(metric, 2 / 3, margin=0.4))


def matching_of_pooling(x, metric, attention):
    positions = torch.arange(36).view(6, 6) + 1
    cells = [positions[r : r + 2, c : c + 2].flatten() for r in (0, 2, 4) for c in (0, 2, 4)]
    anchor = torch.stack([torch.tensor(0)] + [cell[0] for cell in cells])
    src = torch.cat([cell[1:] for cell in cells])
    dst = torch.arange(1, 10).repeat_interleave(3)
    return Assignment(*(index.expand(len(x), -1) for index in (anchor, src, dst)))


SPECIAL_FORMS = {
    "prune": (ClsTopK(2 / 3), matching_of_pruning),
    "evit": (EViTFuse(2 / 3), matching_of_evit),
    "tome": (ToMe((9,)), matching_of_tome),
    "pitome": (PiToMe(2 / 3, margin=0.4, constant_margin=True), matching_of_pitome),
    "pool": (AveragePool(1 / 4, grid=GRID), matching_of_pooling),
}


@pytest.mark.parametrize("name", SPECIAL_FORMS)
@pytest.mark.parametrize("fresh", [True, False])
def test_the_token_matrix_of_each_special_form_reproduces_the_method(name, fresh):
    reducer, matching = SPECIAL_FORMS[name]
    x, metric, size, attention = block_case(3)
    size = torch.ones_like(size) if fresh else size
    reduction = reducer.reduce(0, x, metric, size, attention if reducer.needs_attention else None)
    assert reduction.x.shape[1] < x.shape[1]
    assignment = matching(x, metric, attention)
    weight = attention.mean(dim=1)[:, 0] if name == "evit" else size[..., 0]
    W = as_matrix(assignment, weight)
    assert (W @ x - reduction.x).abs().max() <= 1e-5
    P = transport_matrix(assignment, x.shape[1])
    torch.testing.assert_close(P @ size, reduction.size)
    torch.testing.assert_close(P, reduction.source())
    torch.testing.assert_close(as_matrix(reduction.source(), weight), W)
    for matrix in W:
        structure = matrix_structure(matrix)
        assert structure["max_nonzeros"] == 1
        assert structure["row_sum_error"] <= 1e-5
        assert structure["rank"] == len(matrix)


def test_only_the_many_to_many_matrix_has_columns_with_several_entries():
    _, metric, size, attention = block_case(4)
    for assignment, expected in [("soft", True), ("hard", False), ("prune", False)]:
        reducer = TokenTransforming(0.6, layers=(0,), assignment=assignment)
        _, _, W = reducer.transform(0, metric, size, attention)
        assert (matrix_structure(W[0])["max_nonzeros"] > 1) == expected


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 20), r=st.integers(0, 12), class_token=st.booleans())
def test_the_matrix_of_tomes_pairs_equals_merge_wavg(seed, tokens, r, class_token):
    metric, _, size = random_case(seed, tokens, 3, batch=2)
    x = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(seed))
    assignment = bsm_assignment(bsm_match(metric, r, class_token=class_token), tokens)
    merge, _ = merge_closures(assignment)
    merged, merged_size = merge_wavg(merge, x, size[..., None])
    torch.testing.assert_close(as_matrix(assignment, size) @ x, merged)
    torch.testing.assert_close(transport_matrix(assignment, tokens) @ size[..., None], merged_size)


def test_as_matrix_equals_the_loop_over_groups():
    assignment = Assignment(torch.tensor([[0, 4, 2]]), torch.tensor([[1, 5, 3]]), torch.tensor([[2, 1, 2]]))
    size = torch.tensor([[1.0, 2.0, 3.0, 5.0, 4.0, 12.0]])
    expected = torch.tensor([[[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.75], [0, 0.2, 0.3, 0.5, 0, 0]]])
    torch.testing.assert_close(as_matrix(assignment, size), expected)


def test_importances_equal_their_loops_and_sum_to_one():
    _, metric, _, attention = block_case(5, batch=2, tokens=9)
    batch, heads, tokens, _ = attention.shape
    a, k = attention.double().tolist(), metric.double().tolist()
    for b in range(batch):
        cls = [sum(a[b][h][0][j] for h in range(heads)) for j in range(1, tokens)]
        recv = [sum(a[b][h][i][j] for h in range(heads) for i in range(tokens)) for j in range(1, tokens)]
        for kind, scores in [("cls", cls), ("recv", recv)]:
            expected = torch.tensor([score / sum(scores) for score in scores])
            torch.testing.assert_close(importance(attention, metric, kind)[b], expected)
        energies = []
        for i in range(1, tokens):
            excess = [cosine(k[b][i], k[b][j]) - 0.5 for j in range(1, tokens)]
            energies.append(sum(e if e > 0 else math.exp(e) - 1 for e in excess) / (tokens - 1))
        powers = [math.exp(-energy) for energy in energies]
        unique = importance(None, metric, "unique")[b]
        torch.testing.assert_close(unique, torch.tensor([power / sum(powers) for power in powers]))
        assert unique.argsort().tolist() == sorted(range(8), key=lambda i: -energies[i])


def test_importance_without_a_class_token_covers_all_tokens():
    _, metric, _, attention = block_case(6, batch=2, tokens=9)
    received = importance(attention, metric, "recv", class_token=False)
    torch.testing.assert_close(received, attention.mean(dim=1).sum(dim=1) / 9)
    assert importance(None, metric, "unique", class_token=False).shape == (2, 9)


def test_random_importance_follows_its_generator_alone():
    metric = torch.zeros(2, 30, 4)
    draw = [importance(None, metric, "rand", generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(draw[0][0], draw[0][1])
    torch.testing.assert_close(draw[0].sum(-1), torch.ones(2))


def test_importance_says_what_it_misses():
    _, metric, _, attention = block_case(7, tokens=5)
    with pytest.raises(ValueError, match="'cls' reads the attention"):
        importance(None, metric)
    with pytest.raises(ValueError, match="'cls' needs a class token"):
        importance(attention, metric, class_token=False)
    with pytest.raises(ValueError, match="'rand' draws from a generator"):
        importance(None, metric, "rand")
    with pytest.raises(ValueError, match="importance must be one of cls, recv, unique, rand, got 'norm'"):
        importance(attention, metric, "norm")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(2, 30),
    ratio=st.floats(0.05, 1.0),
    layers=st.sets(st.integers(0, 5), max_size=4),
    kind=st.sampled_from(["cls", "recv", "unique", "rand"]),
    assignment=st.sampled_from(["soft", "hard", "prune"]),
)
def test_lengths_are_the_real_lengths_and_follow_the_ratio(seed, tokens, ratio, layers, kind, assignment):
    reducer = TokenTransforming(ratio, tuple(sorted(layers)), importance=kind, assignment=assignment)
    lengths = reducer.lengths(tokens, 6)
    x, _, size, _ = block_case(seed, batch=1, tokens=tokens)
    for layer in range(6):
        before = x.shape[1]
        _, metric, _, attention = block_case(seed + layer, batch=1, tokens=before)
        reduction = reducer.reduce(layer, x, metric, size, attention if reducer.needs_attention else None)
        x, size = reduction.x, reduction.size
        assert x.shape[1] == size.shape[1] == lengths[layer]
        assert reduction.source().shape == (1, lengths[layer], before)
        patches = before - 1
        removed = math.floor(patches - patches * ratio) if layer in layers else 0
        assert lengths[layer] - 1 == max(1, patches - removed)


@pytest.mark.parametrize("kind", ["cls", "recv", "unique", "rand"])
@pytest.mark.parametrize("weighting", ["size", "imp"])
@pytest.mark.parametrize("selfkeep", [True, False])
def test_reduce_equals_the_loop_reference_on_the_patches(kind, weighting, selfkeep):
    x, metric, size, attention = block_case(8)
    options = {"importance": kind, "weighting": weighting, "selfkeep": selfkeep}
    reducer = TokenTransforming(0.6, (0,), tau=0.2, seed=4, **options)
    reduction = reducer.reduce(0, x, metric, size, attention if reducer.needs_attention else None)
    anchors, P, _ = reducer.transform(0, metric, size, attention)
    scores = importance(attention, metric, kind, generator=seeded_generator(4, 0))
    m = 36 - math.floor(36 - 36 * 0.6)
    for b in range(len(x)):
        expected = reference_transform(metric[b, 1:], scores[b], size[b, 1:, 0], m, 0.2, weighting, "soft", selfkeep)
        assert anchors[b].tolist() == expected[0]
        torch.testing.assert_close(P[b].double(), expected[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(reduction.x[b, 1:], (expected[2] @ x[b, 1:].double()).float())
        mass = expected[1] @ size[b, 1:].double()
        torch.testing.assert_close(reduction.size[b, 1:], mass.float())


@pytest.mark.parametrize("assignment", ["soft", "hard", "prune"])
@pytest.mark.parametrize("selfkeep", [True, False])
def test_the_class_token_is_untouched_and_touches_nothing(assignment, selfkeep):
    x, metric, size, attention = block_case(9)
    reducer = TokenTransforming(0.5, (0,), assignment=assignment, selfkeep=selfkeep)
    plain = reducer.reduce(0, x, metric, size, attention)
    assert torch.equal(plain.x[:, 0], x[:, 0])
    assert torch.equal(plain.size[:, 0], size[:, 0])
    source = plain.source()
    assert (source[:, 0, 0] == 1).all()
    assert source[:, 0, 1:].abs().max() == 0
    assert source[:, 1:, 0].abs().max() == 0
    shifted = [tensor.clone() for tensor in (x, metric, size)]
    for tensor in shifted:
        tensor[:, 0] += 100
    other = reducer.reduce(0, *shifted, attention)
    assert torch.equal(other.x[:, 1:], plain.x[:, 1:])
    assert torch.equal(other.size[:, 1:], plain.size[:, 1:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighting": "imp", "selfkeep": False, "tau": 0.3},
        {"importance": "recv", "assignment": "hard"},
        {"importance": "unique"},
        {"importance": "rand"},
    ],
)
@pytest.mark.parametrize("layers", [(1, 3, 4), None])
def test_mass_is_conserved_over_several_reductions_of_a_model(model, images, options, layers):
    reducer = TokenTransforming(0.7, layers, **options)
    trace = run(model, images, reducer, proportional_attention=True, trace=True).trace
    assert [size.shape[1] for size in trace.size] == reducer.lengths(TOKENS, LAYERS)
    for layer, size in enumerate(trace.size):
        total = trace.total_source(layer)
        torch.testing.assert_close(total.sum(dim=1), torch.ones(3, TOKENS))
        torch.testing.assert_close(total.sum(dim=2, keepdim=True), size)
        torch.testing.assert_close(size.sum(dim=1), torch.full((3, 1), float(TOKENS)))
    assert trace.size[-1].shape[1] < TOKENS
    assert trace.size[-1].max() > 1


def test_pruning_keeps_sizes_at_one_and_equals_the_pruning_baselines(model, images):
    layers = (1, 3, 4)
    for ours, baseline in [
        (TokenTransforming(0.7, layers, assignment="prune"), ClsTopK(0.7, layers)),
        (
            TokenTransforming(0.7, layers, assignment="prune", importance="rand", seed=5),
            RandomPrune(0.7, layers, seed=5),
        ),
    ]:
        first, second = (run(model, images, reducer, trace=True) for reducer in (ours, baseline))
        torch.testing.assert_close(first.logits, second.logits)
        for a, b in zip(first.trace.source, second.trace.source, strict=True):
            assert torch.equal(a, b)
        assert all((size == 1).all() for size in first.trace.size)


def test_controls_share_the_anchors_of_the_method_and_random_ones_do_not():
    _, metric, size, attention = block_case(10)
    soft, hard, prune = (
        TokenTransforming(0.5, (2, 3), assignment=name).transform(2, metric, size, attention)[0]
        for name in ("soft", "hard", "prune")
    )
    assert torch.equal(soft, hard)
    assert torch.equal(soft, prune)
    drawn = [
        TokenTransforming(0.5, (2, 3), importance="rand", seed=seed).transform(layer, metric, size, None)[0]
        for seed, layer in [(0, 2), (0, 2), (1, 2), (0, 3)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in (drawn[2], drawn[3], soft))


def test_the_smallest_ratio_keeps_one_patch():
    x, metric, size, attention = block_case(14)
    reducer = TokenTransforming(1e-20, None)
    assert reducer.lengths(TOKENS, 3) == [2, 2, 2]
    reduction = reducer.reduce(0, x, metric, size, attention)
    mean = (x * size)[:, 1:].sum(dim=1) / size[:, 1:].sum(dim=1)
    torch.testing.assert_close(reduction.x[:, 1], mean)


def test_a_ratio_of_one_is_the_model_itself(model, images):
    full = run(model, images).logits
    kept = run(model, images, TokenTransforming(1.0, None, importance="unique", selfkeep=False)).logits
    assert torch.equal(kept, full)


def test_attention_is_asked_for_only_where_the_anchor_rule_reads_it():
    asked = {kind: TokenTransforming(importance=kind).needs_attention for kind in ("cls", "recv", "unique")}
    assert asked == {"cls": True, "recv": True, "unique": False}
    assert not TokenTransforming(importance="rand").needs_attention


def test_half_precision_tokens_stay_half_precision():
    x, metric, size, attention = (tensor.bfloat16() for tensor in block_case(11))
    reduction = TokenTransforming(0.5, (0,)).reduce(0, x, metric, size, attention)
    assert reduction.x.dtype == reduction.size.dtype == torch.bfloat16
    assert reduction.x.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.0},
        {"ratio": 1.2},
        {"tau": -1.0},
        {"importance": "norm"},
        {"assignment": "knn"},
        {"weighting": "mass"},
    ],
)
def test_a_reducer_refuses_values_it_cannot_run(options):
    with pytest.raises(ValueError, match=r"ratio|tau|must be one of"):
        TokenTransforming(**options)


def test_restore_equals_its_loop_and_mixes_by_columns():
    metric, scores, size = random_case(12, 10, 3)
    _, P, W = transform_matrix(metric, scores, size, 4, 0.3)
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    y = W @ x
    restored = restore(P, y)
    error = norm = 0.0
    for j in range(10):
        for c in range(5):
            value = sum(float(P[i, j]) * float(y[i, c]) for i in range(4))
            assert float(restored[j, c]) == pytest.approx(value, abs=1e-5)
            error += (float(x[j, c]) - value) ** 2
            norm += float(x[j, c]) ** 2
    assert float(reconstruction_error(x, P, y)) == pytest.approx(math.sqrt(error / norm), abs=1e-5)


@pytest.mark.parametrize("assignment", ["soft", "hard", "prune"])
@pytest.mark.parametrize("weighting", ["size", "imp"])
def test_keeping_every_token_restores_the_input_exactly(assignment, weighting):
    metric, scores, size = random_case(13, 9, 3, batch=2)
    x = torch.randn(2, 9, 4)
    _, P, W = transform_matrix(metric, scores, size, 9, 0.5, weighting, assignment=assignment)
    assert torch.equal(restore(P, W @ x), x)
    assert reconstruction_error(x, P, W @ x).tolist() == [0.0, 0.0]


def test_groups_of_equal_tokens_are_restored_through_several_reductions():
    directions = torch.eye(5)
    group = torch.randint(5, (2, 40), generator=torch.Generator().manual_seed(2))
    group[:, :5] = torch.arange(5)
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    metric, x, size = directions[group], values[group], torch.ones(2, 40)
    # The first five tokens are one of each group, and always anchors.
    scores = torch.linspace(1, 0.1, 40).expand(2, -1)
    total, y = torch.eye(40).expand(2, -1, -1), x
    for m in (20, 10, 5):
        anchors, P, W = transform_matrix(metric, scores, size, m, 1e-3)
        y, size, total = W @ y, (P @ size[..., None])[..., 0], P @ total
        metric, scores = metric.gather(1, anchors[..., None].expand(-1, -1, 5)), scores.gather(1, anchors)
    torch.testing.assert_close(restore(total, y), x)
    assert reconstruction_error(x, total, y).max() < 1e-5
    shuffled = x[:, torch.randperm(40, generator=torch.Generator().manual_seed(4))]
    assert reconstruction_error(shuffled, total, y).min() > 0.1


def test_matrix_structure_of_a_matrix_worked_out_by_hand():
    # Orthogonal rows of length sqrt(1/2) and 1: those are the singular values.
    structure = matrix_structure(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))
    assert structure["max_nonzeros"] == 1
    assert structure["mean_nonzeros"] == 0.75
    assert structure["row_sum_error"] == 0
    assert structure["rank"] == 2
    assert structure["condition"] == pytest.approx(math.sqrt(2))
    shares = [1 / (1 + math.sqrt(0.5)), math.sqrt(0.5) / (1 + math.sqrt(0.5))]
    assert structure["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_matrix_structure_sees_many_to_many_columns_deficient_rank_and_bad_rows():
    mixed = torch.tensor([[0.9995, 0.0005, 0.0], [0.2, 0.4, 0.4]])
    many = matrix_structure(mixed)
    assert many["max_nonzeros"] == 2
    assert many["mean_nonzeros"] == pytest.approx(4 / 3)
    assert matrix_structure(mixed, threshold=1e-4)["mean_nonzeros"] == pytest.approx(5 / 3)
    twins = matrix_structure(torch.tensor([[0.1, 0.3, 0.6]] * 3))
    assert twins["rank"] == 1
    assert twins["condition"] == 1
    assert twins["effective_rank"] == pytest.approx(1)
    assert matrix_structure(torch.tensor([[0.5, 0.75], [0.5, 0.5]]))["row_sum_error"] == 0.25
    identity = matrix_structure(torch.eye(6))
    assert identity["effective_rank"] == pytest.approx(6)
    assert identity["condition"] == 1
    with pytest.raises(ValueError, match="one \\(kept, tokens\\) matrix"):
        matrix_structure(torch.eye(3)[None])


def test_the_cost_counts_patches_of_reducing_blocks_only():
    assert extra_flops(4, 3, dim=5, head_dim=2) == 2 * 24 + 60
    reducer = TokenTransforming(0.75, layers=(1,))
    assert reducer.lengths(5, 3) == [5, 4, 4]
    steps = enumerate([(5, 5), (5, 4), (4, 4)])
    assert [reducer.overhead_flops(layer, *pair, 5, 2) for layer, pair in steps] == [0, 108, 0]
    assert TokenTransforming(0.75, assignment="prune").overhead_flops(3, 5, 4, 5, 2) == 0


def test_schedules_are_in_proportion_to_depth():
    assert schedule_s3(12) == (3, 6, 9) == TokenTransforming().layers
    assert schedule_s3(24) == (6, 12, 18)
    assert schedule_s3(8) == (2, 4, 6)
    assert schedule_s3(2) == (0, 1)
    assert schedule_s12(3) == (0, 1, 2)
