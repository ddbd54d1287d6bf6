import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTConfig, ViTForImageClassification

from tokenarium.methods.vision.baselines import (
    AveragePool,
    ClsTopK,
    EnergyPrune,
    EViTFuse,
    RandomMerge,
    RandomPrune,
)
from tokenarium.methods.vision.harness import Reducer, Reduction, identity_source, run
from tokenarium.methods.vision.pitome import PiToMe
from tokenarium.methods.vision.tome import ToMe

LAYERS, TOKENS = 4, 26

REDUCERS = [
    ToMe((5, 4, 0, 3)),
    *(
        PiToMe(0.8, order=order, num_layers=LAYERS)
        for order in ("protect-all", "bsm-all", "deit-order", "mae-order", "clip-order")
    ),
    PiToMe(0.8, num_layers=LAYERS, inverse=True, layers=(1, 2)),
    PiToMe(0.8, num_layers=LAYERS, metric="hidden", form="paper"),
    RandomMerge(0.8),
    AveragePool(0.7, grid=(5, 5)),
    EViTFuse(0.7, layers=(0, 2)),
    RandomPrune(0.8),
    EnergyPrune(0.8, num_layers=LAYERS),
    ClsTopK(0.8),
]
MERGES = REDUCERS[:11]
NO_OPS = [
    None,
    Reducer(),
    ToMe((0,) * LAYERS),
    *(PiToMe(1.0, order=order, num_layers=LAYERS) for order in ("protect-all", "bsm-all", "clip-order")),
    PiToMe(0.7, num_layers=LAYERS, layers=()),
    RandomMerge(1.0),
    RandomPrune(0.5, layers=()),
    EnergyPrune(1.0, num_layers=LAYERS),
    ClsTopK(1.0),
    EViTFuse(1.0),
    AveragePool(1.0, grid=(5, 5)),
]


def tiny_vit(dtype: torch.dtype = torch.float32, attention: str = "sdpa", **config) -> ViTForImageClassification:
    torch.manual_seed(0)
    options = {"image_size": 20, "num_hidden_layers": LAYERS, "num_labels": 7} | config
    model = ViTForImageClassification(
        ViTConfig(
            patch_size=4,
            num_channels=1,
            hidden_size=16,
            num_attention_heads=2,
            intermediate_size=32,
            attn_implementation=attention,
            **options,
        )
    )
    with torch.no_grad():  # the default initialisation is close to a linear model and its biases are zero
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model.eval().to(dtype)


def images(batch: int = 3, side: int = 20) -> torch.Tensor:
    return torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    return tiny_vit()


@pytest.fixture(scope="module")
def vit64() -> ViTForImageClassification:
    return tiny_vit(torch.float64)


@pytest.mark.parametrize("reducer", NO_OPS, ids=repr)
@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("proportional", [False, True])
def test_a_reducer_that_keeps_all_tokens_gives_the_models_own_logits(vit, reducer, trace, proportional):
    with torch.no_grad():
        expected = vit(images()).logits
    result = run(vit, images(), reducer, proportional_attention=proportional, trace=trace)
    assert torch.allclose(result.logits, expected, atol=1e-5)
    assert (result.trace is not None) == trace


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
def test_a_reducer_that_removes_tokens_changes_the_logits(vit, reducer):
    assert not torch.allclose(run(vit, images(), reducer).logits, run(vit, images()).logits, atol=1e-3)


def test_the_class_feature_is_what_the_classifier_sees(vit):
    result = run(vit, images(), ToMe((5,) * LAYERS))
    assert result.cls_feature.shape == (3, 16)
    assert torch.allclose(vit.classifier(result.cls_feature), result.logits)


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
@pytest.mark.parametrize("proportional", [False, True])
def test_explicit_and_fused_attention_agree(vit64, reducer, proportional):
    fused = run(vit64, images(), reducer, proportional)
    explicit = run(vit64, images(), reducer, proportional, trace=True)
    assert torch.allclose(fused.logits, explicit.logits, atol=1e-9)


def test_trace_holds_the_models_own_attention_and_the_mean_key():
    model = tiny_vit(torch.float64, attention="eager")
    keys = []
    hooks = [
        block.attention.k_proj.register_forward_hook(lambda _m, _i, out: keys.append(out)) for block in model.vit.layers
    ]
    with torch.no_grad():
        expected = model(images().double(), output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    trace = run(model, images(), trace=True).trace
    for layer in range(LAYERS):
        # the model's eager attention takes its softmax in float32
        assert torch.allclose(trace.attention[layer], expected[layer], atol=1e-5)
        mean_key = (keys[layer][..., :8] + keys[layer][..., 8:]) / 2
        assert torch.allclose(trace.metric[layer], mean_key, atol=1e-5)


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
def test_the_model_runs_at_the_lengths_the_reducer_announces(vit, reducer):
    trace = run(vit, images(), reducer, trace=True).trace
    lengths = reducer.lengths(TOKENS, LAYERS)
    assert lengths[-1] < TOKENS
    inputs = [TOKENS, *lengths[:-1]]
    for layer in range(LAYERS):
        before, after = inputs[layer], lengths[layer]
        assert trace.inputs[layer].shape == (3, before, 16)
        assert trace.outputs[layer].shape == (3, after, 16)
        assert trace.metric[layer].shape == (3, before, 8)
        assert trace.attention[layer].shape == (3, 2, before, before)
        assert trace.size[layer].shape == (3, after, 1)
        assert trace.source[layer].shape == (3, after, before)


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
def test_sizes_are_the_mass_that_the_sources_transport(vit64, reducer):
    trace = run(vit64, images(), reducer, trace=True).trace
    for layer in range(LAYERS):
        total = trace.total_source(layer)
        assert torch.allclose(total.sum(dim=2, keepdim=True), trace.size[layer])
        columns = total.sum(dim=1)
        if reducer in MERGES:
            assert torch.allclose(columns, torch.ones_like(columns))
            assert torch.allclose(trace.size[layer].sum(dim=1), torch.full((3, 1), 26.0).double())
        else:
            assert set(columns.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("reducer", [r for r in MERGES if not isinstance(r, EViTFuse)], ids=repr)
def test_a_merge_is_the_mean_over_its_sources_weighted_by_size(vit64, reducer):
    trace = run(vit64, images(), reducer, trace=True).trace
    size = torch.ones(3, TOKENS, 1, dtype=torch.float64)
    for layer in range(LAYERS):
        source = trace.source[layer]
        expected = source @ (size * trace.inputs[layer]) / (source @ size)
        assert torch.allclose(trace.outputs[layer], expected, atol=1e-9)
        size = trace.size[layer]


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
def test_the_class_token_is_first_and_alone_in_every_block(vit64, reducer):
    trace = run(vit64, images(), reducer, trace=True).trace
    for layer in range(LAYERS):
        row, column = trace.source[layer][:, 0, :], trace.source[layer][:, :, 0]
        assert torch.equal(row, torch.eye(row.shape[1]).double()[0].expand_as(row))
        assert torch.equal(column, torch.eye(column.shape[1]).double()[0].expand_as(column))
        assert torch.equal(trace.outputs[layer][:, 0], trace.inputs[layer][:, 0])


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
def test_runs_are_reentrant(vit, reducer):
    class Interrupting(Reducer):
        needs_attention = reducer.needs_attention

        def reduce(self, layer, x, metric, size, attention):
            run(vit, images(1), reducer)  # a whole run of the same reducer inside a block of another
            return reducer.reduce(layer, x, metric, size, attention)

    once, again = run(vit, images(), reducer, True), run(vit, images(), reducer, True)
    assert torch.equal(once.logits, again.logits)
    assert torch.allclose(run(vit, images(), Interrupting(), True).logits, once.logits, atol=1e-6)


@pytest.mark.parametrize("reducer", REDUCERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_of_the_model_is_kept(reducer, dtype):
    result = run(tiny_vit(dtype), images(), reducer, True, trace=True)
    assert result.logits.dtype == dtype
    assert result.logits.isfinite().all()
    assert {tensor.dtype for tensor in [*result.trace.size, *result.trace.source, *result.trace.outputs]} == {dtype}


def without_positions(model: ViTForImageClassification) -> ViTForImageClassification:
    """Equal patches become equal tokens."""
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[:, 1:] = 0
    return model


def paired_images(batch: int = 3) -> torch.Tensor:
    """Images of 4 x 6 patches in which every patch stands twice, side by side."""
    half = images(batch, 24)[:, :, :16, :12].reshape(batch, 1, 16, 3, 1, 4)
    return half.expand(-1, -1, -1, -1, 2, -1).reshape(batch, 1, 16, 24).double()


@pytest.mark.parametrize(
    "reducer",
    [
        ToMe((12, 0, 0, 0)),
        PiToMe(0.5, num_layers=LAYERS, layers=(0,)),
        PiToMe(0.5, num_layers=LAYERS, layers=(0,), order="bsm-all"),
        PiToMe(0.5, num_layers=LAYERS, layers=(0,), order="clip-order"),
    ],
    ids=repr,
)
def test_merging_exact_duplicates_with_proportional_attention_changes_nothing(reducer):
    model = without_positions(tiny_vit(torch.float64, image_size=(16, 24)))
    full = run(model, paired_images()).logits
    proportional = run(model, paired_images(), reducer, proportional_attention=True).logits
    assert torch.allclose(proportional, full, atol=1e-9)
    assert not torch.allclose(run(model, paired_images(), reducer).logits, full, atol=1e-4)


@pytest.mark.parametrize("reducer", MERGES, ids=repr)
def test_any_merge_of_equal_patches_in_every_block_changes_nothing(reducer):
    model = without_positions(tiny_vit(torch.float64))
    pixels = images()[..., :4, :4].repeat(1, 1, 5, 5)
    full = run(model, pixels).logits
    assert torch.allclose(run(model, pixels, reducer, proportional_attention=True).logits, full, atol=1e-8)
    assert not torch.allclose(run(model, pixels, reducer).logits, full, atol=1e-4)


class Repeat(Reducer):
    """Drops every second copy of a patch and lets the other weigh two, without any averaging."""

    def reduce(self, layer, x, metric, size, attention):
        if layer > 0:
            return super().reduce(layer, x, metric, size, attention)
        keep = [0, *range(1, x.shape[1], 2)]
        size = torch.tensor([1.0, *[2.0] * (len(keep) - 1)], dtype=x.dtype)[None, :, None].expand(len(x), -1, -1)
        return Reduction(x[:, keep], size, lambda: identity_source(x)[:, keep])


def test_attention_to_a_token_of_size_two_is_attention_to_two_copies():
    """One block merges, the next attends: the softmax of the short sequence against the long one by loops."""
    model = without_positions(tiny_vit(torch.float64, image_size=(16, 24)))
    full = run(model, paired_images(), trace=True).trace.attention[1]
    short = run(model, paired_images(), Repeat(), proportional_attention=True, trace=True).trace.attention[1]
    for head in range(2):
        for j in range(1, 13):
            copies = float(full[0, head, 0, 2 * j - 1]) + float(full[0, head, 0, 2 * j])
            assert float(short[0, head, 0, j]) == pytest.approx(copies, abs=1e-9)


def test_proportional_attention_adds_log_size_to_the_scores(vit64):
    trace = run(vit64, images(), ToMe((8, 0, 0, 0)), True, trace=True).trace
    plain = run(vit64, images(), ToMe((8, 0, 0, 0)), False, trace=True).trace
    size, weighted, unweighted = (
        trace.size[0][0, :, 0],
        trace.attention[1][0, 0, 3],
        plain.attention[1][0, 0, 3],
    )
    scores = [math.log(float(p)) + math.log(float(s)) for p, s in zip(unweighted, size, strict=True)]
    total = sum(math.exp(score) for score in scores)
    assert len(set(size.tolist())) > 1
    assert weighted.tolist() == pytest.approx([math.exp(score) / total for score in scores])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    first=st.integers(0, 12),
    second=st.integers(0, 12),
    ratio=st.floats(0.5, 1.0),
)
def test_total_source_says_which_patches_each_token_stands_for(seed, first, second, ratio):
    """Marks every input token with its own unit vector and follows the marks through merges of merges."""
    tokens = 20
    marks = torch.eye(tokens, dtype=torch.float64)[None]
    size, total = torch.ones(1, tokens, 1, dtype=torch.float64), None
    generator = torch.Generator().manual_seed(seed)
    for layer, reducer in enumerate([ToMe((first, 0)), PiToMe(ratio), RandomMerge(ratio), ToMe((0,) * 3 + (second,))]):
        metric = torch.randn(1, marks.shape[1], 4, generator=generator, dtype=torch.float64)
        marks, size, source = reducer.reduce(layer, marks, metric, size, None)
        total = source() if total is None else source() @ total
    assert torch.allclose(marks * size, total)
    assert torch.equal(total.sum(dim=1), torch.ones(1, tokens, dtype=torch.float64))
