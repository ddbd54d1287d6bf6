"""The bench of ZeTT: targets split every text without loss, and bits are the model's own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tokenarium.methods.tokenizers import bpe, zett, zett_lab, zett_results

TEXTS = ["the cat sat on the mat\n", "a cat and a hat, that is that\n"] * 3


def spelt(target, text):
    return "".join(target.tokens[index] for index in target.encode(text))


def some_targets():
    trained = bpe.train(TEXTS, 290)
    larger = bpe.train([*TEXTS, "other words altogether"], 330).tokenizer()
    return [
        zett_lab.bpe_target("bpe", trained),
        zett_lab.restricted_target("restricted", larger, TEXTS),
        zett_lab.word_target("words", TEXTS, 264),
    ]


@settings(max_examples=30, deadline=None)
@given(text=st.text("cathé \n,x", max_size=20))
def test_every_target_keeps_every_byte(text):
    for target in some_targets():
        assert spelt(target, text) == "".join(zett.byte_words(text))


def test_restricted_merges_split_their_texts_as_the_whole_tokenizer_does_and_hold_nothing_else():
    whole = bpe.train([*TEXTS, "other words altogether"], 330).tokenizer()
    target = zett_lab.restricted_target("restricted", whole, TEXTS[:1])
    for text in TEXTS[:1]:
        assert [target.tokens[index] for index in target.encode(text)] == whole.encode(text).tokens
    assert not {"Ġwords", "Ġaltogether"} & set(target.tokens)
    assert len(target.tokens) < whole.get_vocab_size()


def test_a_word_that_is_not_listed_is_split_into_the_longest_tokens_from_its_front():
    target = zett_lab.word_target("words", ["cat cat the"], 259)
    assert [target.tokens[index] for index in target.encode("catthe cat")] == ["cat", "t", "h", "e", "Ġcat"]
    assert len(target.tokens) == 259


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_bits_of_documents_are_the_models_own_window_by_window(model):
    rows = (model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach())
    documents = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22]]
    found = zett_lab.document_bits(model.model, rows, documents, window=4, batch_size=2)
    for bits, ids in zip(found, documents, strict=True):
        expected = 0.0
        for start in range(0, len(ids), 3):
            window = torch.tensor([[0, *ids[start : start + 3]]])
            with torch.no_grad():
                log_probabilities = model(window).logits[0].log_softmax(-1)
            expected -= sum(
                float(log_probabilities[place, window[0, place + 1]]) for place in range(window.shape[1] - 1)
            )
        assert bits == pytest.approx(expected / math.log(2), rel=1e-4)


def test_passages_come_from_the_middle_and_begin_with_a_line(monkeypatch):
    text = "\n".join(f"line {number:03d}" for number in range(100))
    monkeypatch.setattr(zett_lab.lm_tiny, "documents", lambda root, kinds, split: [text, "short"])
    (passage,) = zett_lab.passages(None, {"python": 5}, 90)
    assert passage.startswith("line 0")
    assert len(passage) == 90
    assert 40 <= int(passage[5:8]) <= 50


# The FOCUS-like baseline


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_sparsemax_is_the_nearest_probability_vector(scores):
    scores = np.array(scores)
    found = zett_lab.sparsemax(scores[None])[0]
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    for other in rng.dirichlet(np.ones(len(scores)), 200):
        assert np.sum((found - scores) ** 2) <= np.sum((other - scores) ** 2) + 1e-9


def test_vectors_of_words_used_alike_are_alike_and_of_absent_ones_zero():
    rng = np.random.default_rng(0)
    # 0 and 1 stand between 2 and 3, 4 stands between 5 and 6; 7 is absent.
    texts = [[2, int(rng.integers(2)), 3] if rng.random() < 0.5 else [5, 4, 6] for _ in range(400)]
    vectors, seen = zett_lab.ppmi_vectors(texts, 8, dimensions=4)
    assert seen.tolist() == [True] * 7 + [False]
    assert not vectors[7].any()
    assert vectors[0] @ vectors[1] > 0.9
    assert abs(vectors[0] @ vectors[4]) < 0.3


def test_a_new_token_takes_the_row_of_the_shared_one_that_is_used_alike():
    rng = np.random.default_rng(0)
    texts = [[2, int(rng.integers(2)), 3] if rng.random() < 0.5 else [5, 4, 6] for _ in range(400)]
    target = SimpleNamespace(tokens=list("abcdefg"), encode=lambda ids: ids)
    pieces = [[10], [11, 12], [13], [14], [15], [16], [17]]  # only 1 is new
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    made = zett_lab.focus_rows(target, texts, pieces, rows, seed=0, dimensions=4)
    torch.testing.assert_close(made[1], rows[10], atol=0.2, rtol=0)
    assert torch.equal(made[[0, 2, 3, 4, 5, 6]], rows[[10, 13, 14, 15, 16, 17]])


# Shares of the loss


def test_shares_are_zero_for_the_original_and_one_for_fvt():
    original, fvt = np.array([1.0, 2, 3]), np.array([2.0, 4, 5])
    for method, share in ((original, 0), (fvt, 1), ((original + fvt) / 2, 0.5)):
        found = zett_results.share_of_loss(method, fvt, original, 100)
        assert (found.value, found.low, found.high) == pytest.approx((share, share, share))
    both = zett_results.mean_share_of_loss([original, fvt], [fvt, fvt], original, 100)
    assert both.value == pytest.approx(0.5)


def test_seeds_are_pooled_by_document_and_shown_each():
    by_seed = {3: np.array([1.0, 3]), 5: np.array([3.0, 5])}
    pooled, each = zett_results.with_seeds([3, 5], lambda pick: zett_results.ratio(pick(by_seed), [1, 1], 50))
    assert pooled.value == pytest.approx(3)
    assert {seed: interval.value for seed, interval in each.items()} == pytest.approx({3: 2.0, 5: 4.0})
