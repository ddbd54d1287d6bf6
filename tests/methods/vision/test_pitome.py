import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from tokenarium.methods.vision.pitome import (
    PiToMe,
    encode_text,
    energy,
    laplacian_spectrum,
    lifted_graph,
    margin_schedule,
    mergeable_pairs,
    order_modes,
    pitome_assignment,
    pitome_match,
    pitome_text_match,
    removed_tokens,
    spectral_distance,
    text_energy,
    text_margin_schedule,
    token_graph,
)
from tokenarium.methods.vision.tome import (
    bsm_assignment,
    bsm_match,
    merge_closures,
    merge_source,
    normalised,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(tokens: torch.Tensor) -> list[list[float]]:
    def dot(u, v):
        return sum(a * b for a, b in zip(u.tolist(), v.tolist(), strict=True))

    norms = [math.sqrt(dot(u, u)) for u in tokens]
    return [[dot(u, v) / (norms[i] * norms[j]) for j, v in enumerate(tokens)] for i, u in enumerate(tokens)]


def reference_energy(tokens: torch.Tensor, margin: float, alpha: float, form: str) -> list[float]:
    energies = []
    for row in cosines(tokens):
        total = 0.0
        for s in row:
            if s < margin:
                total += alpha * (math.exp(s - margin) - 1)
            else:
                total += s - margin if form == "code" else s
        energies.append(total / len(row))
    return energies


def best_partner(similarity: list[float], candidates: list[int]) -> int:
    return max(candidates, key=lambda j: similarity[j])


def reference_match(patches, ratio, margin, alpha, mode, form="code", inverse=False):
    """Order by energy and {patch that leaves: patch it joins} of one sequence (patches, dim), by loops."""
    count, similarity = len(patches), cosines(patches)
    r = math.floor(count - count * ratio)
    energies = reference_energy(patches, margin, alpha, form)
    order = sorted(range(count), key=lambda i: energies[i] if inverse else -energies[i])
    if mode == "protect":
        a, b = order[: 2 * r][0::2], order[: 2 * r][1::2]
        return order, {i: best_partner(similarity[i], b) for i in a}
    a, b = order[0::2], order[1::2]
    partner = {i: best_partner(similarity[i], b) for i in a} if b else {}
    ranked = sorted(partner, key=lambda i: -similarity[i][partner[i]])
    return order, {i: partner[i] for i in ranked[:r]}


def pairs_of(match, row: int) -> dict[int, int]:
    b = match.b_idx[row].tolist()
    return {int(a): b[int(d)] for a, d in zip(match.a_idx[row], match.dst_idx[row], strict=True)}


sequences = {
    "batch": st.integers(1, 3),
    "patches": st.integers(1, 16).filter(lambda count: count != 2),  # two tokens always tie in energy
    "dim": st.integers(2, 6),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=40, deadline=None)
@given(
    margin=st.floats(-0.5, 0.95),
    alpha=st.sampled_from([1.0, 0.5, 2.0]),
    form=st.sampled_from(["code", "paper"]),
    **sequences,
)
def test_energy_equals_a_loop_over_all_pairs(batch, patches, dim, seed, margin, alpha, form):
    metric = noise(batch, patches, dim, seed=seed)
    actual = energy(normalised(metric), margin, alpha, form)
    expected = torch.tensor([reference_energy(row, margin, alpha, form) for row in metric], dtype=torch.float64)
    assert torch.allclose(actual, expected, atol=1e-9)


def test_tokens_of_a_cluster_have_more_energy_than_isolated_ones():
    cluster = torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.05 * noise(6, 6)
    lonely = torch.eye(6, dtype=torch.float64)[1:5]
    energies = energy(normalised(torch.cat([lonely, cluster])[None]), margin=0.75)[0]
    assert energies[4:].min() > energies[:4].max()


def test_larger_clusters_have_more_energy():
    axes = torch.eye(3, dtype=torch.float64)
    tokens = torch.cat([axes[:1].repeat(5, 1), axes[1:2].repeat(3, 1), axes[2:]])[None]
    energies = energy(tokens, margin=0.5)[0]
    assert energies[0] > energies[5] > energies[8]


def test_an_unknown_energy_form_is_refused():
    with pytest.raises(ValueError, match="'code' or 'paper'"):
        energy(noise(1, 3, 2), 0.5, form="book")


@settings(max_examples=80, deadline=None)
@given(
    ratio=st.floats(0.5, 1.0),
    margin=st.floats(0.0, 0.9),
    mode=st.sampled_from(["protect", "bsm"]),
    form=st.sampled_from(["code", "paper"]),
    inverse=st.booleans(),
    class_token=st.booleans(),
    **sequences,
)
def test_match_equals_a_loop_over_energies(batch, patches, dim, seed, ratio, margin, mode, form, inverse, class_token):
    metric = noise(batch, patches + class_token, dim, seed=seed)
    match = pitome_match(metric, ratio, margin, 1.0, class_token, mode, form, inverse)
    r = math.floor(patches - patches * ratio)
    assert match.a_idx.shape == match.dst_idx.shape == (batch, r)
    for row in range(batch):
        order, pairs = reference_match(metric[row, int(class_token) :], ratio, margin, 1.0, mode, form, inverse)
        assert match.order[row].tolist() == order
        assert pairs_of(match, row) == pairs


@pytest.mark.parametrize("mode", ["protect", "bsm"])
def test_float32_finds_the_pairs_of_float64(mode):
    metric = noise(3, 50, 16)
    exact = pitome_match(metric, 0.8, 0.5, mode=mode)
    single = pitome_match(metric.float(), 0.8, 0.5, mode=mode)
    assert [pairs_of(single, row) for row in range(3)] == [pairs_of(exact, row) for row in range(3)]


@settings(max_examples=30, deadline=None)
@given(ratio=st.floats(0.5, 1.0), **sequences)
def test_bsm_mode_is_plain_bipartite_matching_on_the_sequence_sorted_by_energy(batch, patches, dim, seed, ratio):
    metric = noise(batch, patches, dim, seed=seed)
    match = pitome_match(metric, ratio, 0.6, class_token=False, mode="bsm")
    for row in range(batch):
        order = match.order[row]
        plain = bsm_match(metric[row, order][None], removed_tokens(patches, ratio))
        src, dst = order[2 * plain.src_idx[0]].tolist(), order[2 * plain.dst_idx[0] + 1].tolist()
        assert pairs_of(match, row) == dict(zip(src, dst, strict=True))


def test_the_class_token_has_no_influence_on_the_match():
    metric = noise(2, 20, 5)
    changed = metric.clone()
    changed[:, 0] = 100 * noise(2, 5, seed=9)
    for one, other in zip(pitome_match(metric, 0.7, 0.5), pitome_match(changed, 0.7, 0.5), strict=True):
        assert torch.equal(one, other)


def test_protect_never_touches_low_energy_patches_and_inverse_never_touches_high_ones():
    metric = noise(2, 31, 5)
    energies = energy(normalised(metric[:, 1:]), 0.5)
    for inverse in (False, True):
        match = pitome_match(metric, 0.8, 0.5, inverse=inverse)
        touched = torch.cat([match.a_idx, match.b_idx], dim=1)
        spared = torch.ones_like(energies).scatter(1, touched, 0).bool()
        for row in range(2):
            low, high = energies[row][spared[row]], energies[row][touched[row]]
            if inverse:
                low, high = high, low
            assert low.max() < high.min()


def test_neighbours_in_energy_rank_are_on_opposite_sides():
    match = pitome_match(noise(1, 21, 5), 0.7, 0.5)
    assert match.order[0, :12:2].tolist() == match.a_idx[0].tolist()
    assert match.order[0, 1:12:2].tolist() == match.b_idx[0].tolist()


@pytest.mark.parametrize("mode", ["protect", "bsm"])
def test_ratio_one_merges_nothing(mode):
    match = pitome_match(noise(2, 9, 4), 1.0, 0.5, mode=mode)
    assert match.a_idx.shape == match.dst_idx.shape == (2, 0)
    assignment = pitome_assignment(match)
    assert torch.equal(assignment.anchor.sort(dim=1).values, torch.arange(9).expand(2, -1))


@pytest.mark.parametrize("mode", ["protect", "bsm"])
def test_two_patches_of_equal_energy_merge_into_their_mean(mode):
    metric = noise(1, 3, 4)
    merge, _ = merge_closures(pitome_assignment(pitome_match(metric, 0.5, 0.5, mode=mode)))
    expected = torch.stack([metric[0, 0], (metric[0, 1] + metric[0, 2]) / 2])
    assert torch.allclose(merge(metric)[0], expected)


def test_removing_more_than_half_is_refused():
    assert mergeable_pairs(10, 0.5) == 5
    with pytest.raises(ValueError, match="more than half"):
        pitome_match(noise(1, 11, 4), 0.4, 0.5)
    with pytest.raises(ValueError, match="more than half"):
        PiToMe(0.4).lengths(11, 12)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        PiToMe(ratio)


def test_removed_tokens_is_the_floor():
    assert [removed_tokens(196, q) for q in (1.0, 0.95, 0.9, 0.5)] == [0, 9, 19, 98]


def test_an_unknown_mode_order_form_or_metric_is_refused():
    with pytest.raises(ValueError, match="mode must be"):
        pitome_match(noise(1, 5, 4), 0.8, 0.5, mode="tome")
    with pytest.raises(ValueError, match="order must be one of"):
        PiToMe(0.9, order="vit-order")
    with pytest.raises(ValueError, match="'code' or 'paper'"):
        PiToMe(0.9, form="book")
    with pytest.raises(ValueError, match="'keys' or 'hidden'"):
        PiToMe(0.9, metric="values")


@settings(max_examples=40, deadline=None)
@given(ratio=st.floats(0.5, 1.0), mode=st.sampled_from(["protect", "bsm"]), **sequences)
def test_output_is_class_then_untouched_by_energy_then_all_of_b(batch, patches, dim, seed, ratio, mode):
    metric = noise(batch, patches + 1, dim, seed=seed)
    match = pitome_match(metric, ratio, 0.5, mode=mode)
    merge, _ = merge_closures(pitome_assignment(match))
    source = merge_source(merge, metric)
    for row in range(batch):
        order, pairs = reference_match(metric[row, 1:], ratio, 0.5, 1.0, mode)
        b = match.b_idx[row].tolist()
        untouched = [p for p in order if p not in pairs and p not in b]
        expected = [{0}] + [{p + 1} for p in untouched]
        expected += [{p + 1, *(s + 1 for s, d in pairs.items() if d == p)} for p in b]
        assert [set(line.nonzero().flatten().tolist()) for line in source[row]] == expected


def test_unmerge_restores_group_means_to_their_positions():
    metric = noise(1, 15, 4)
    match = pitome_match(metric, 0.7, 0.5)
    merge, unmerge = merge_closures(pitome_assignment(match))
    restored = unmerge(merge(metric))[0]
    _, pairs = reference_match(metric[0, 1:], 0.7, 0.5, 1.0, "protect")
    assert len(pairs) == 4
    assert torch.equal(restored[0], metric[0, 0])
    for patch in range(14):
        anchor = pairs.get(patch, patch)
        group = [anchor, *(s for s, d in pairs.items() if d == anchor)]
        mean = sum(metric[0, p + 1] for p in group) / len(group)
        assert torch.allclose(restored[patch + 1], mean)


def test_margin_falls_linearly_and_never_reaches_zero():
    assert margin_schedule(3, 0.9) == pytest.approx([0.9, 0.6, 0.3])
    assert margin_schedule(12, 0.75)[0] == 0.75
    assert margin_schedule(12, 0.75)[-1] == pytest.approx(0.0625)
    assert text_margin_schedule(5) == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7])


def test_orders_switch_after_half_of_the_blocks():
    assert order_modes("protect-all", 3) == ["protect"] * 3
    assert order_modes("bsm-all", 3) == ["bsm"] * 3
    assert order_modes("deit-order", 5) == ["bsm"] * 3 + ["protect"] * 2
    assert order_modes("mae-order", 5) == ["protect"] * 3 + ["bsm"] * 2
    assert order_modes("clip-order", 24) == ["tome"] * 13 + ["protect"] * 11
    assert order_modes("clip-order", 12) == ["tome"] * 12


def drive(reducer, x, size, seed):
    """Reduce in every block with a fresh random metric; yields (layer, x before, metric, reduction)."""
    for layer in range(reducer.num_layers):
        metric = noise(x.shape[0], x.shape[1], 4, seed=seed + layer)
        reduction = reducer.reduce(layer, x, metric, size, None)
        yield layer, x, metric, reduction
        x, size = reduction.x, reduction.size


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(1, 40),
    ratio=st.floats(0.5, 1.0),
    order=st.sampled_from(["protect-all", "bsm-all", "deit-order", "mae-order", "clip-order"]),
    layers=st.none() | st.sets(st.integers(0, 3)).map(tuple),
    seed=st.integers(0, 999),
)
def test_reducer_lengths_are_the_lengths_it_produces(tokens, ratio, order, layers, seed):
    reducer = PiToMe(ratio, order=order, num_layers=4, layers=layers)
    lengths = reducer.lengths(tokens, 4)
    x, size = noise(2, tokens, 4, seed=seed), torch.ones(2, tokens, 1, dtype=torch.float64)
    for layer, before, _, reduction in drive(reducer, x, size, seed):
        assert reduction.x.shape == (2, lengths[layer], 4)
        assert torch.equal(reduction.x[:, 0], x[:, 0])
        assert torch.allclose(reduction.size.sum(dim=1), torch.full((2, 1), float(tokens), dtype=torch.float64))
        if layers is not None and layer not in layers:
            assert reduction.x is before


@pytest.mark.parametrize(
    ("ratio", "dim", "share"),
    [(0.95, 64, 0.710), (0.925, 64, 0.607), (0.9, 64, 0.518), (0.85, 64, 0.390), (0.9, 384, 0.559)],
)
def test_lengths_give_the_known_share_of_flops(ratio, dim, share):
    lengths = PiToMe(ratio).lengths(197, 12)
    inputs = [197, *lengths[:-1]]
    spent = sum(4 * n * dim**2 + 2 * n**2 * dim + 8 * m * dim**2 for n, m in zip(inputs, lengths, strict=True))
    assert spent / (12 * (12 * 197 * dim**2 + 2 * 197**2 * dim)) == pytest.approx(share, abs=1e-3)


def source_of(match) -> torch.Tensor:
    merge, _ = merge_closures(pitome_assignment(match))
    count = 1 + match.order.shape[1]
    return merge_source(merge, torch.ones(match.order.shape[0], count, 1, dtype=torch.float64))


def test_reducer_uses_the_margin_the_alpha_and_the_mode_of_its_block():
    x, size = noise(1, 25, 6), torch.ones(1, 25, 1, dtype=torch.float64)
    metric = 0.4 + noise(1, 25, 6, seed=3)
    reducer = PiToMe(0.8, margin=0.75, alpha=0.5, order="deit-order", num_layers=3)
    constant = PiToMe(0.8, margin=0.75, alpha=0.5, order="deit-order", num_layers=3, constant_margin=True)
    for layer, (margin, mode) in enumerate([(0.75, "bsm"), (0.5, "bsm"), (0.25, "protect")]):
        expected = source_of(pitome_match(metric, 0.8, margin, 0.5, True, mode))
        assert torch.equal(reducer.reduce(layer, x, metric, size, None).source(), expected)
        expected = source_of(pitome_match(metric, 0.8, 0.75, 0.5, True, mode))
        assert torch.equal(constant.reduce(layer, x, metric, size, None).source(), expected)


def test_margin_alpha_form_and_direction_change_the_choice():
    metric = 0.4 + noise(1, 41, 6, seed=3)
    base = pitome_match(metric, 0.8, 0.75).order
    assert not torch.equal(base, pitome_match(metric, 0.8, 0.25).order)
    assert not torch.equal(base, pitome_match(metric, 0.8, 0.75, alpha=0.3).order)
    assert not torch.equal(base, pitome_match(metric, 0.8, 0.75, form="paper").order)
    assert torch.equal(base.flip(1), pitome_match(metric, 0.8, 0.75, inverse=True).order)


def test_hidden_metric_matches_on_the_tokens_themselves():
    x, metric = noise(1, 25, 6), noise(1, 25, 4, seed=1)
    size = torch.ones(1, 25, 1, dtype=torch.float64)
    hidden = PiToMe(0.8, metric="hidden").reduce(0, x, metric, size, None).source()
    assert torch.equal(hidden, PiToMe(0.8).reduce(0, x, x, size, None).source())
    assert not torch.equal(hidden, PiToMe(0.8).reduce(0, x, metric, size, None).source())


def test_clip_order_is_plain_bipartite_matching_up_to_layer_twelve():
    x, size = noise(1, 50, 6), torch.ones(1, 50, 1, dtype=torch.float64)
    metric = noise(1, 50, 4, seed=1)
    reducer = PiToMe(0.9, order="clip-order", num_layers=24)
    merge, _ = merge_closures(bsm_assignment(bsm_match(metric, 5, class_token=True), 50))  # floor(50 - 45)
    for layer in (0, 12):
        assert torch.equal(reducer.reduce(layer, x, metric, size, None).source(), merge_source(merge, metric))
    later = reducer.reduce(13, x, metric, size, None)
    assert later.x.shape[1] == 46  # floor(49 - 44.1) = 4: the class token no longer counts
    expected = source_of(pitome_match(metric, 0.9, margin_schedule(24, 0.9)[13]))
    assert torch.equal(later.source(), expected)


def test_reducer_weighs_tokens_by_their_size():
    x, metric = noise(2, 21, 5), noise(2, 21, 4, seed=1)
    size = torch.randint(1, 6, (2, 21, 1), generator=torch.Generator().manual_seed(0)).double()
    reduction = PiToMe(0.7).reduce(0, x, metric, size, None)
    source = reduction.source()
    for row in range(2):
        for i, line in enumerate(source[row]):
            group = line.nonzero().flatten().tolist()
            mass = sum(float(size[row, j]) for j in group)
            assert float(reduction.size[row, i]) == mass
            assert torch.allclose(reduction.x[row, i], sum(size[row, j] * x[row, j] for j in group) / mass)


def test_reducer_is_bound_to_its_number_of_layers():
    with pytest.raises(ValueError, match="set up for 12 layers, the model has 6"):
        PiToMe(0.9).lengths(197, 6)
    x = noise(1, 9, 4)
    with pytest.raises(ValueError, match="layer index 12"):
        PiToMe(0.9).reduce(12, x, x, x[..., :1], None)


# text


def test_text_energy_equals_a_loop_over_all_pairs():
    metric, margin = noise(2, 7, 5), 0.8
    sigma = 0.2
    expected = [
        [
            sum(math.exp(-0.5 * ((1 - s) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) for s in row) / 7
            for row in cosines(tokens)
        ]
        for tokens in metric
    ]
    actual = text_energy(normalised(metric), margin)
    assert torch.allclose(actual, torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match="below 1"):
        text_energy(metric, 1.0)


def reference_text_pairs(tokens: torch.Tensor, ratio: float, margin: float) -> dict[int, int]:
    """{token that leaves: token it joins} of one sequence (tokens, dim) without [CLS], by loops."""
    similarity, sigma = cosines(tokens), 1 - margin
    energies = [sum(math.exp(-0.5 * ((1 - s) / sigma) ** 2) for s in row) for row in similarity]
    order = sorted(range(len(tokens)), key=lambda i: -energies[i])
    r = math.floor(len(tokens) - len(tokens) * ratio)
    return {i: best_partner(similarity[i], order[r : 2 * r]) for i in order[:r]}


@settings(max_examples=40, deadline=None)
@given(ratio=st.floats(0.5, 1.0), class_token=st.booleans(), **sequences)
def test_text_match_equals_a_loop_over_energies(batch, patches, dim, seed, ratio, class_token):
    metric = noise(batch, patches + class_token, dim, seed=seed)
    match = pitome_text_match(metric, ratio, 0.65, class_token)
    for row in range(batch):
        expected = reference_text_pairs(metric[row, int(class_token) :], ratio, 0.65)
        assert pairs_of(match, row) == expected
    r = match.a_idx.shape[1]
    assert torch.equal(match.order[:, : 2 * r], torch.cat([match.a_idx, match.b_idx], dim=1))


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.4,
    )
    model = BertModel(config).eval().double()
    with torch.no_grad():  # the default zero biases would hide a forgotten one
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model


def text(batch: int = 3, tokens: int = 21, padded: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 60, (batch, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -6:] = 0
        mask[1, -2:] = 0
    return ids, mask


@pytest.mark.parametrize("method", ["none", "pitome", "tome", "random"])
@pytest.mark.parametrize("padded", [False, True])
def test_text_at_ratio_one_equals_the_model(bert, method, padded):
    ids, mask = text(padded=padded)
    types = (torch.arange(21) > 9).long().expand(3, -1)
    encoding = encode_text(bert, ids, mask, 1.0, method, token_type_ids=types)
    with torch.no_grad():
        expected = bert(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    assert torch.allclose(encoding.last_hidden_state, expected, atol=1e-9)
    assert torch.equal(encoding.attention_mask, mask)
    assert torch.equal(encoding.size, mask.double())


def test_text_without_merging_ignores_the_ratio(bert):
    ids, mask = text()
    assert torch.equal(
        encode_text(bert, ids, mask, 0.6, "none").last_hidden_state,
        encode_text(bert, ids, mask, 1.0, "none").last_hidden_state,
    )


def test_text_mask_defaults_to_ones(bert):
    ids, mask = text()
    given_mask, default = encode_text(bert, ids, mask, 0.8), encode_text(bert, ids, ratio=0.8)
    assert torch.equal(given_mask.last_hidden_state, default.last_hidden_state)
    assert torch.equal(given_mask.attention_mask, default.attention_mask)


@pytest.mark.parametrize("method", ["pitome", "tome", "random"])
@pytest.mark.parametrize("merge_layers", [0, 1, 3, 9])
def test_every_text_method_removes_the_same_tokens_in_the_first_layers_only(bert, method, merge_layers):
    ids, mask = text(padded=True)
    behind_cls = 20
    for _ in range(min(merge_layers, 5)):
        behind_cls -= math.floor(behind_cls - behind_cls * 0.8)
    encoding = encode_text(bert, ids, mask, 0.8, method, merge_layers)
    assert encoding.last_hidden_state.shape == (3, 1 + behind_cls, 16)
    assert encoding.attention_mask.shape == encoding.size.shape == (3, 1 + behind_cls)
    assert encoding.size.sum(dim=1).tolist() == mask.sum(dim=1).tolist()
    assert torch.equal(encoding.attention_mask, (encoding.size > 0).long())
    assert encoding.size[:, 0].tolist() == [1, 1, 1]


def reference_encoding(model, ids, ratio, merge_layers):
    """States and sizes of one text (tokens,) from the model's own layers, merging by loops over groups."""
    x = model.embeddings(input_ids=ids[None])
    counts = [1.0] * len(ids)
    for index, layer in enumerate(model.encoder.layer):
        heads = model.config.num_attention_heads
        key = layer.attention.self.key(x)[0]
        metric = sum(key.chunk(heads, dim=-1))
        x = layer.attention(x)[0]
        if index < merge_layers:
            margin = 0.9 - 0.25 * index / len(model.encoder.layer)
            pairs = reference_text_pairs(metric[1:], ratio, margin)
            anchors = [p for p in range(len(metric) - 1) if p not in pairs]
            groups = [[0]] + [[a + 1, *(s + 1 for s, d in pairs.items() if d == a)] for a in anchors]
            x = torch.stack([sum(x[0, i] for i in group) / len(group) for group in groups])[None]
            counts = [sum(counts[i] for i in group) for group in groups]
        x = layer.output(layer.intermediate(x), x)
    return x[0], counts


def test_text_encoding_equals_merging_by_loops_over_the_models_own_layers(bert):
    ids, _ = text()
    encoding = encode_text(bert, ids, ratio=0.75)
    for row in range(3):
        with torch.no_grad():
            states, counts = reference_encoding(bert, ids[row], 0.75, 3)
        assert max(counts) > 2  # tokens merged twice, so that a size-weighted mean would differ
        # attention does not see the order, only [CLS] has a fixed place
        assert torch.allclose(encoding.last_hidden_state[row, 0], states[0], atol=1e-9)
        actual = torch.cat([encoding.last_hidden_state[row], encoding.size[row, :, None]], dim=1)
        expected = torch.cat([states, torch.tensor(counts, dtype=torch.float64)[:, None]], dim=1)
        actual, expected = actual[actual[:, 0].argsort()], expected[expected[:, 0].argsort()]
        assert torch.allclose(actual, expected, atol=1e-8)


def test_random_text_merging_depends_on_the_seed_alone(bert):
    ids, mask = text()
    first = encode_text(bert, ids, mask, 0.7, "random", seed=1).last_hidden_state
    encode_text(bert, ids, mask, 0.7, "random", seed=2)
    assert torch.equal(first, encode_text(bert, ids, mask, 0.7, "random", seed=1).last_hidden_state)
    assert not torch.equal(first, encode_text(bert, ids, mask, 0.7, "random", seed=2).last_hidden_state)


def test_text_encoder_refuses_dropout_and_unknown_methods(bert):
    ids, mask = text()
    with pytest.raises(ValueError, match="method must be"):
        encode_text(bert, ids, mask, 0.8, "prune")
    bert.train()
    try:
        with pytest.raises(ValueError, match="eval mode"):
            encode_text(bert, ids, mask)
    finally:
        bert.eval()


# spectra


def test_spectrum_of_known_graphs():
    count = 6
    complete = torch.ones(count, count, dtype=torch.float64) - torch.eye(count, dtype=torch.float64)
    assert torch.allclose(
        laplacian_spectrum(complete), torch.tensor([0.0] + [count / (count - 1)] * (count - 1)).double()
    )
    cycle = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        cycle[i, (i + 1) % count] = cycle[(i + 1) % count, i] = 1
    expected = sorted(1 - math.cos(2 * math.pi * k / count) for k in range(count))
    assert torch.allclose(laplacian_spectrum(cycle), torch.tensor(expected).double(), atol=1e-12)


def test_an_isolated_node_adds_a_zero_eigenvalue():
    weights = torch.zeros(3, 3)
    weights[0, 1] = weights[1, 0] = 2.0
    assert torch.allclose(laplacian_spectrum(weights), torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)


def test_token_graph_is_the_positive_part_of_the_cosine():
    metric = noise(8, 4)
    expected = [[max(0.0, s) for s in row] for row in cosines(metric)]
    assert torch.allclose(token_graph(metric[None])[0], torch.tensor(expected, dtype=torch.float64))


def partition(groups: list[int]) -> torch.Tensor:
    source = torch.zeros(max(groups) + 1, len(groups), dtype=torch.float64)
    for node, group in enumerate(groups):
        source[group, node] = 1
    return source


def test_lifted_graph_equals_block_averages_by_loops():
    groups = [0, 1, 0, 2, 2, 2, 1]
    weights = token_graph(noise(1, 7, 3))[0]
    lifted = lifted_graph(weights, partition(groups))
    for i in range(7):
        for j in range(7):
            block = [
                float(weights[u, v])
                for u in range(7)
                for v in range(7)
                if groups[u] == groups[i] and groups[v] == groups[j]
            ]
            assert float(lifted[i, j]) == pytest.approx(sum(block) / len(block))


def test_keeping_every_token_or_merging_exact_duplicates_keeps_the_spectrum():
    tokens = noise(5, 4)
    weights = token_graph(tokens[[0, 1, 1, 2, 3, 4, 4, 4]][None])[0]
    assert float(spectral_distance(weights, torch.eye(8, dtype=torch.float64))) == pytest.approx(0, abs=1e-10)
    duplicates = partition([0, 1, 1, 2, 3, 4, 4, 4])
    assert float(spectral_distance(weights, duplicates)) == pytest.approx(0, abs=1e-6)
    strangers = partition([0, 1, 2, 1, 3, 4, 4, 0])
    assert float(spectral_distance(weights, strangers)) > 0.1


def test_spectral_distance_equals_its_definition_by_loops():
    weights, source = token_graph(noise(1, 9, 3))[0], partition([0, 0, 1, 2, 3, 3, 3, 4, 5])

    def eigenvalues(matrix):
        degree = [sum(float(v) for v in row) for row in matrix]
        laplacian = torch.eye(9, dtype=torch.float64)
        for i in range(9):
            for j in range(9):
                laplacian[i, j] -= float(matrix[i, j]) / math.sqrt(degree[i] * degree[j])
        return sorted(float(v.real) for v in torch.linalg.eigvals(laplacian))

    lifted = lifted_graph(weights, source)
    expected = sum(abs(a - b) for a, b in zip(eigenvalues(weights), eigenvalues(lifted), strict=True))
    assert float(spectral_distance(weights, source)) == pytest.approx(expected)


def test_spectral_distance_of_a_batch_is_that_of_its_graphs():
    metric = noise(3, 12, 4)
    merge, _ = merge_closures(pitome_assignment(pitome_match(metric, 0.6, 0.5, class_token=False), False))
    weights, source = token_graph(metric), merge_source(merge, metric)
    together = spectral_distance(weights, source)
    assert together.shape == (3,)
    for row in range(3):
        assert float(together[row]) == pytest.approx(float(spectral_distance(weights[row], source[row])))


def test_spectra_of_float32_graphs_stay_float32():
    weights = token_graph(noise(1, 9, 3)).float()
    source = partition([0, 0, 1, 2, 3, 3, 3, 4, 5]).float()[None]
    distance = spectral_distance(weights, source)
    assert distance.dtype == torch.float32
    assert float(distance) == pytest.approx(float(spectral_distance(weights.double(), source.double())), abs=1e-5)


def test_a_pruning_source_has_no_lifted_graph():
    with pytest.raises(ValueError, match="exactly one group"):
        lifted_graph(torch.ones(3, 3), torch.eye(3)[:2])
    with pytest.raises(ValueError, match="exactly one group"):
        lifted_graph(torch.ones(3, 3), torch.full((2, 3), 0.5))
