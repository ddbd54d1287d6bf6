"""FrugalPrompt's attributions and its choice of words, against slow loops and the encoder's own numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tokenarium.methods.context import frugal_prompt as frugal

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def classifier():
    """A random BERT of three layers, with LayerNorms and biases that are not trivial."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
            elif "LayerNorm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def traced(classifier):
    ids = torch.tensor([1, 7, 7, 12, 30, 4, 2])
    with torch.no_grad():
        return ids, frugal.Trace(classifier.bert, ids)


# Which words stay


@given(SCORES, st.integers(0, 100))
def test_top_and_bottom_share_nothing_and_keep_the_order(scores, pct):
    words = [f"w{place}" for place in range(len(scores))]
    count = round(len(words) * pct / 100)
    top, bottom = (frugal.frugalize(words, scores, pct, mode) for mode in ("top", "bottom"))
    assert len(top) == len(bottom) == count
    assert top == [word for word in words if word in set(top)]
    if 2 * count <= len(words):
        assert not set(top) & set(bottom)
    kept = [scores[words.index(word)] for word in top]
    left = [score for word, score in zip(words, scores, strict=True) if word not in top]
    assert not kept or not left or min(kept) >= max(left)


def test_halves_are_rounded_to_even():
    assert [len(frugal.keep_indices([0.0] * n, 50)) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_of_equal_words_the_earlier_is_kept_and_the_later_goes_to_the_bottom():
    assert frugal.keep_indices([1.0, 1.0, 1.0, 1.0], 50, "top") == [0, 1]
    assert frugal.keep_indices([1.0, 1.0, 1.0, 1.0], 50, "bottom") == [2, 3]


def test_scores_are_compared_as_float32():
    assert frugal.keep_indices([1.0, 1.0 + 1e-12], 50) == [0]


def test_random_words_depend_on_the_seed_alone():
    draw = [tuple(frugal.keep_indices([0.0] * 20, 50, "random", seed)) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
    assert frugal.keep_indices(list(range(20)), 50, "random", 0) == list(draw[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], 101), "0 to 100"),
        (([1.0], -1), "0 to 100"),
        (([1.0], 50, "best"), "top, bottom, random"),
        (([math.nan], 50), "NaN"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        frugal.keep_indices(*arguments)
    with pytest.raises(ValueError, match="scores"):
        frugal.frugalize(["a"], [], 50)
    with pytest.raises(ValueError, match="costs"):
        frugal.keep_within([1.0], [], 3)


@given(SCORES, st.integers(0, 30), st.sampled_from(frugal.MODES), st.randoms())
def test_a_token_budget_is_never_exceeded_nor_left_with_room(scores, budget, mode, draw):
    costs = [draw.randint(1, 4) for _ in scores]
    kept = frugal.keep_within(scores, costs, budget, mode)
    spent = sum(costs[place] for place in kept)
    assert spent <= budget
    assert kept == sorted(set(kept))
    assert all(costs[place] > budget - spent for place in range(len(scores)) if place not in kept)


# From sub-words to words


def test_subwords_are_summed_and_special_tokens_dropped():
    found = frugal.sum_words(torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0]), [None, 0, 0, 2, None], 3)
    assert found.tolist() == [3.0, 0.0, 3.0]


def test_min_max_reaches_both_ends_and_survives_equal_scores():
    assert frugal.min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert frugal.min_max(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert frugal.min_max(torch.zeros(0)).tolist() == []


def test_released_joining_cuts_words_to_the_longest_subword():
    pieces, owners = ["seas", "##hell", "##s", "on", "the", "sh", "##ore"], [0, 0, 0, 1, 2, 3, 3]
    assert frugal.join_pieces(pieces, owners) == ["seashells", "on", "the", "shore"]
    assert frugal.join_pieces(pieces, owners, official_truncation=True) == ["seas", "on", "the", "shor"]


def test_a_lone_continuation_is_refused():
    with pytest.raises(ValueError, match="begins a word"):
        frugal.join_pieces(["a", "##b"], [0, 1])


# Attributions


def test_a_trace_is_what_the_encoder_computes(classifier, traced):
    ids, trace = traced
    with torch.no_grad():
        true = classifier.bert(ids[None], output_hidden_states=True).hidden_states
    for ours, theirs in zip(trace.hidden, true, strict=True):
        assert torch.allclose(ours, theirs[0], atol=1e-5)


def test_decomposed_layer_norm_adds_up_to_the_layer_norm_less_its_bias():
    torch.manual_seed(1)
    norm = nn.LayerNorm(8, eps=1e-3)
    nn.init.uniform_(norm.weight)
    u = torch.randn(3, 5, 8)
    parts = frugal.ln_decompose(u, u.sum(dim=1), norm.weight, norm.eps)
    assert torch.allclose(parts.sum(dim=1), norm(u.sum(dim=1)) - norm.bias, atol=1e-5)


def test_globenc_norms_equal_loops_over_positions_and_heads(classifier, traced):
    ids, trace = traced
    with torch.no_grad():
        found = frugal.globenc_norms(trace)
        layer = classifier.bert.encoder.layer[1]
        x, own, size = trace.hidden[1], layer.attention.self, len(ids)
        dim = x.shape[1] // own.num_attention_heads
        for i in range(size):
            for j in range(size):
                u = torch.zeros(x.shape[1])
                for head in range(own.num_attention_heads):
                    part = slice(head * dim, (head + 1) * dim)
                    value = own.value.weight[part] @ x[j]
                    moved = layer.attention.output.dense.weight[:, part] @ value
                    u += trace.attention[1][head, i, j] * moved
                if i == j:
                    u += x[i]
                for true, norm in (
                    (trace.sums1[1][i], layer.attention.output.LayerNorm),
                    (trace.sums2[1][i], layer.output.LayerNorm),
                ):
                    deviation = math.sqrt(float(((true - true.mean()) ** 2).mean()) + norm.eps)
                    u = (u - u.mean()) / deviation * norm.weight
                assert float(found[1, i, j]) == pytest.approx(float(u.norm()), rel=1e-3)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 5))
def test_the_rollout_follows_every_path_through_the_layers(count, size, seed):
    layers = torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) + 0.01
    flow = [float(place == 0) for place in range(size)]
    for layer in reversed(range(count)):
        flow = [sum(flow[i] * float(layers[layer, i, j]) for i in range(size)) for j in range(size)]
    saliency = frugal.globenc_rollout(layers)
    assert saliency.tolist() == pytest.approx([each / max(flow) for each in flow], rel=1e-4)


def test_decompx_adds_up_to_the_logits(classifier, traced):
    ids, trace = traced
    with torch.no_grad():
        parts = frugal.decompx(trace, classifier.bert.pooler.dense, classifier.classifier)
        logits = classifier(ids[None]).logits[0]
    assert parts.shape == (len(ids), 3)
    assert float((parts.sum(dim=0) - logits).abs().max()) <= 1e-3


def test_decompx_of_an_encoder_that_mixes_nothing_credits_the_first_token_alone(classifier, traced):
    ids, _ = traced
    with torch.no_grad():
        model = BertForSequenceClassification(classifier.config).eval()
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.weight.zero_()
        parts = frugal.decompx(frugal.Trace(model.bert, ids), model.bert.pooler.dense, model.classifier)
    assert float(parts[1:].abs().max()) <= 1e-6 < float(parts[0].abs().max())


def test_a_spread_bias_is_all_there():
    torch.manual_seed(2)
    parts, bias = torch.randn(4, 3, 6), torch.randn(6)
    assert torch.allclose(frugal.spread_bias(parts, bias).sum(dim=1), parts.sum(dim=1) + bias, atol=1e-5)


def test_lexrank_is_stationary_and_prefers_the_sentence_most_like_the_others():
    similarity = torch.tensor([[1.0, 0.6, 0.5], [0.6, 1.0, 0.0], [0.5, 0.0, 1.0]])
    weights = frugal.lexrank(similarity)
    walk = similarity / similarity.sum(dim=1, keepdim=True)
    assert torch.allclose(weights @ walk, weights, atol=1e-5)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert int(weights.argmax()) == 0
