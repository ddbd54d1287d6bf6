"""Vocabulary expansion: target tokenizers, initialisations against loops, adaptation and the score."""

import copy
import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenarium.methods.tokenizers import vocab_expansion as expansion
from tokenarium.methods.tokenizers.expansion import lapt, source_model
from tokenarium.methods.tokenizers.expansion.trials import Bench, readable

ENGLISH = ["the cat sat on the mat and the rat sat on the cat", "that hat is that of the other cat"] * 3
GREEK = ["η γάτα κάθισε στο χαλί", "το χαλί της γάτας και η γάτα", "και το καπέλο της γάτας στο χαλί"] * 2
D = 6


@pytest.fixture(scope="module")
def source():
    return source_model.train_tokenizer(ENGLISH, 280)


@pytest.fixture(scope="module")
def target(source):
    return expansion.expand(source, expansion.auxiliary_merges(source, GREEK), 12)


@pytest.fixture(scope="module")
def rows(source):
    return np.random.default_rng(0).normal(size=(source.get_vocab_size(), D))


def llama(vocabulary=50, layers=5, tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


# The target tokenizer


def test_source_ids_stay_and_new_ones_follow(source, target):
    vocabulary = target.get_vocab()
    assert {token: vocabulary[token] for token in source.get_vocab()} == source.get_vocab()
    assert len(expansion.new_tokens(source, target)) == 12
    assert target.get_vocab_size() == source.get_vocab_size() + 12


def test_new_tokens_are_the_first_of_the_auxiliary_walk(source, target):
    walked = []
    for left, right in expansion.auxiliary_merges(source, GREEK):
        for piece in (left, right, left + right):
            if piece not in source.get_vocab() and piece not in walked:
                walked.append(piece)
    assert expansion.new_tokens(source, target) == walked[:12]


def test_auxiliary_merges_stand_before_the_sources(source, target):
    merges = [tuple(pair) for pair in json.loads(target.to_str())["model"]["merges"]]
    own = [tuple(pair) for pair in json.loads(source.to_str())["model"]["merges"]]
    known = set(target.get_vocab())
    accepted = [pair for pair in expansion.auxiliary_merges(source, GREEK) if {*pair, "".join(pair)} <= known]
    assert merges[: len(accepted)] == accepted
    assert merges[len(accepted) :] == [pair for pair in own if pair not in accepted]


def test_more_new_tokens_never_make_a_text_of_their_language_longer(source):
    auxiliary = expansion.auxiliary_merges(source, GREEK)
    lengths = [len(source.encode(GREEK[0]).ids)]
    lengths += [len(expansion.expand(source, auxiliary, count).encode(GREEK[0]).ids) for count in (5, 10, 20, 40)]
    assert all(a >= b for a, b in pairwise(lengths))
    assert lengths[-1] < 0.6 * lengths[0]


@pytest.mark.parametrize("text", [*ENGLISH[:2], *GREEK[:3], "mixed γάτα cat", ""])
def test_an_expanded_tokenizer_gives_the_text_back(target, text):
    assert target.decode(target.encode(text).ids) == text


def test_an_expansion_by_nothing_is_refused(source):
    with pytest.raises(ValueError, match="num_new"):
        expansion.expand(source, [], 0)


# Initialisation


def test_random_rows_are_those_of_the_whole_padded_draw(source, target, rows):
    size, new = source.get_vocab_size(), target.get_vocab_size()
    padded = math.ceil(new / 8) * 8
    state = np.random.RandomState(3)
    whole = state.normal(rows.mean(0), rows.std(0), (padded, D))
    assert np.array_equal(expansion.init_rows(rows, source, target, "random", seed=3), whole[size:new])


def test_random_rows_do_not_depend_on_how_many_are_drawn_at_once(rows, monkeypatch):
    whole = expansion.random_rows(rows, 100, 30, 1)
    monkeypatch.setattr(expansion, "_BLOCK", 7)
    assert np.array_equal(expansion.random_rows(rows, 100, 30, 1), whole)


def test_global_rows_are_the_mean_of_all(source, target, rows):
    assert np.allclose(expansion.init_rows(rows, source, target, "global"), rows.mean(0))


@pytest.mark.parametrize("official", [True, False])
def test_mean_averages_the_pieces_of_the_spelling_or_of_the_bytes(source, target, rows, official):
    made = expansion.init_rows(rows, source, target, "mean", official=official)
    for index, token in enumerate(expansion.new_tokens(source, target)):
        if official:
            pieces = source.encode(token, add_special_tokens=False).ids
        else:
            # No merge of the English source applies to two bytes of a Greek letter.
            pieces = [source.token_to_id(symbol) for symbol in token]
        assert np.allclose(made[index], np.mean([rows[piece] for piece in pieces], axis=0))
    # The spelling of a Greek letter is encoded twice.
    assert len(source.encode(expansion.new_tokens(source, target)[0], add_special_tokens=False).ids) > 2


def slow_merge(token, source, target, rows):
    vocabulary = source.get_vocab()
    if token in vocabulary:
        return rows[vocabulary[token]]
    ways = [pair for pair in json.loads(target.to_str())["model"]["merges"] if "".join(pair) == token]
    return np.mean([np.mean([slow_merge(part, source, target, rows) for part in way], axis=0) for way in ways], axis=0)


def test_merge_is_the_mean_of_means(source, target, rows):
    made = expansion.init_rows(rows, source, target, "merge")
    tokens = expansion.new_tokens(source, target)
    assert np.allclose(made, [slow_merge(token, source, target, rows) for token in tokens])
    assert any(left not in source.get_vocab() for left, _ in expansion._merges(target))  # some parts are new themselves


def small(vocabulary, merges):
    state = json.loads(source_model.train_tokenizer(["a"], 257).to_str())
    state["model"] |= {"vocab": vocabulary, "merges": merges}
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


LETTERS = {"a": 0, "b": 1, "c": 2, "d": 3}


def test_several_merges_of_a_token_are_averaged_and_one_without_parts_stays_random():
    old = small(LETTERS | {"ab": 4}, [["a", "b"]])
    # "x" is in no merge: nothing makes it.
    new = small(LETTERS | {"ab": 4, "bc": 5, "abc": 6, "x": 7}, [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]])
    matrix = np.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    made = expansion.init_rows(matrix, old, new, "merge", seed=5)
    bc = (2 + 4) / 2
    assert made[:2, 0].tolist() == [bc, ((16 + 4) / 2 + (1 + bc) / 2) / 2]
    assert made[2, 0] == expansion.init_rows(matrix, old, new, "random", seed=5)[2, 0]


def test_the_released_head_takes_new_parts_from_input_rows():
    old = small(LETTERS, [])
    new = small(LETTERS | {"ab": 4, "abc": 5}, [["a", "b"], ["ab", "c"]])
    inputs, outputs = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([[10.0], [20.0], [40.0], [80.0]])
    official = expansion.init_head_rows(inputs, outputs, old, new, "merge")
    corrected = expansion.init_head_rows(inputs, outputs, old, new, "merge", official_head=False)
    assert official[:, 0].tolist() == [15, (1.5 + 40) / 2]
    assert corrected[:, 0].tolist() == [15, (15 + 40) / 2]


def slow_map(source, target, lines):
    found = {}
    for line in lines:
        old, new = (each.encode(line, add_special_tokens=False) for each in (source, target))
        mapping = {}
        for index, (low, high) in zip(new.ids, new.offsets, strict=True):
            if index >= source.get_vocab_size():
                mapping[index] = tuple(
                    piece
                    for piece, (start, end) in zip(old.ids, old.offsets, strict=True)
                    if (low <= start and end <= high) or (start <= low and high <= end)
                )
        for index, pieces in mapping.items():
            if pieces:
                found.setdefault(index, Counter())[pieces] += 1
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["γάτα", "χαλί", "cat", "το", " της", "στο", "x", " ", "ά"]), max_size=12))
def test_the_alignment_is_that_of_one_token_at_a_time(source, target, words):
    lines = ["".join(words), *GREEK[:2]]
    assert expansion.align_map(source, target, lines) == slow_map(source, target, lines)


def test_a_line_counts_the_last_place_of_a_token_only():
    old = small(LETTERS | {"da": 4}, [["d", "a"]])
    new = small(LETTERS | {"da": 4, "ab": 5}, [["a", "b"], ["d", "a"]])
    assert new.encode("abdab").tokens == ["ab", "d", "ab"]
    # The last "ab" lies under "da" and "b": of these only "b" lies in it.
    assert expansion.align_map(old, new, ["abdab"]) == {5: Counter({(1,): 1})}
    assert expansion.align_map(old, new, ["abdab", "ab"]) == {5: Counter({(1,): 1, (0, 1): 1})}


def test_align_weighs_tuples_by_frequency_and_leaves_unseen_tokens_at_merge(source, target, rows):
    line = GREEK[0]
    made = expansion.init_rows(rows, source, target, "align", [line, line, GREEK[1]])
    merged = expansion.init_rows(rows, source, target, "merge")
    counted = slow_map(source, target, [line, line, GREEK[1]])
    for index in range(12):
        counts = counted.get(source.get_vocab_size() + index)
        if counts is None:
            assert np.array_equal(made[index], merged[index])
        else:
            weighted = sum(n * np.mean([rows[i] for i in ids], axis=0) for ids, n in counts.items())
            assert np.allclose(made[index], weighted / sum(counts.values()))
    unseen = expansion.init_rows(rows, source, target, "align", [])
    assert np.array_equal(unseen, merged)


@pytest.mark.parametrize("method", ["align", "focus"])
def test_methods_that_read_text_ask_for_it(source, target, rows, method):
    with pytest.raises(ValueError, match="corpus_lines"):
        expansion.init_rows(rows, source, target, method)


@pytest.mark.parametrize("method", ["random", "mean", "merge", "align"])
def test_fast_tokenizers_of_transformers_give_the_same_rows(source, target, rows, method):
    wrapped = (PreTrainedTokenizerFast(tokenizer_object=each) for each in (source, target))
    expected = expansion.init_rows(rows, source, target, method, GREEK, 2)
    assert np.array_equal(expansion.init_rows(rows, *wrapped, method, GREEK, 2), expected)


def test_an_unknown_method_is_refused(source, target, rows):
    with pytest.raises(ValueError, match="random, global"):
        expansion.init_rows(rows, source, target, "wechsel")


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_sparsemax_is_the_closest_point_of_the_simplex(scores):
    made = expansion.sparsemax([scores])[0]
    assert made.min() >= 0
    assert made.sum() == pytest.approx(1)
    low, high = min(scores) - 1, max(scores)  # bisect for the threshold that the projection subtracts
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(np.array(scores) - middle, 0).sum() > 1 else (low, middle)
    assert np.allclose(made, np.maximum(np.array(scores) - low, 0), atol=1e-9)


def slow_ppmi(sentences, window):
    pairs = Counter()
    for sentence in sentences:
        for i, a in enumerate(sentence):
            for j, b in enumerate(sentence):
                if i != j and abs(i - j) <= window:
                    pairs[a, b] += 1
    total, margin = sum(pairs.values()), Counter()
    for (a, _), count in pairs.items():
        margin[a] += count
    return {(a, b): max(0, math.log(n * total / (margin[a] * margin[b]))) for (a, b), n in pairs.items()}


def test_vectors_are_the_truncated_svd_of_the_ppmi_matrix():
    generator = np.random.default_rng(0)
    sentences = [generator.integers(3, 12, size=length).tolist() for length in (9, 4, 1, 15)]
    seen, vectors = expansion.ppmi_vectors(sentences, window=2, dimensions=4)
    dense = np.zeros((len(seen), len(seen)))
    place = {index: row for row, index in enumerate(seen.tolist())}
    for (a, b), value in slow_ppmi(sentences, 2).items():
        dense[place[a], place[b]] = value
    left, values, _ = np.linalg.svd(dense)
    expected = left[:, :4] * np.sqrt(values[:4])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-6)


def test_focus_mixes_rows_of_tokens_that_occur(source, target, rows):
    made = expansion.init_rows(rows, source, target, "focus", GREEK)
    ids = {index for encoding in target.encode_batch(GREEK) for index in encoding.ids}
    old = rows[[index for index in sorted(ids) if index < source.get_vocab_size()]]
    random = expansion.init_rows(rows, source, target, "random")
    for index, row in enumerate(made):
        if index + source.get_vocab_size() in ids:
            assert (row <= old.max(0) + 1e-9).all()
            assert (row >= old.min(0) - 1e-9).all()
        else:
            assert np.array_equal(row, random[index])


def test_shuffled_rows_are_the_same_rows_at_other_places(rows):
    mixed = expansion.shuffled(rows, 0)
    assert not np.array_equal(mixed, rows)
    assert np.array_equal(np.sort(mixed, axis=0), np.sort(rows, axis=0))


def test_the_nearest_token_of_a_row_is_its_own(rows):
    names = {index: f"t{index}" for index in range(5)}
    assert expansion.nearest_tokens(2 * rows[3], rows, names, 1) == ["t3"]


# Adaptation


@pytest.mark.parametrize("tied", [True, False])
def test_an_expanded_model_scores_old_tokens_as_before(tied):
    model = llama(tied=tied)
    new = np.full((3, 16), 0.5)
    longer = lapt.expanded(model, new, None if tied else 2 * new)
    ids = torch.arange(12)[None]
    before, after = model(ids).logits, longer(ids).logits
    assert after.shape[-1] == 53
    assert torch.allclose(after[..., :50], before, atol=1e-6)
    assert np.allclose(longer.get_output_embeddings().weight[50:].detach(), new if tied else 2 * new)
    assert (longer.get_output_embeddings().weight is longer.get_input_embeddings().weight) == tied
    assert longer(torch.tensor([[51, 52]])).logits.isfinite().all()
    assert model.config.vocab_size == 50


def test_head_rows_belong_to_untied_models():
    with pytest.raises(ValueError, match="head_rows"):
        lapt.expanded(llama(), np.zeros((1, 16)), np.zeros((1, 16)))


def test_bits_are_those_of_one_window_at_a_time(source):
    model, start = llama(source.get_vocab_size()), source_model.start_id(source)
    documents = [ENGLISH[0], GREEK[0], "a", ENGLISH[1] * 3]
    found = lapt.document_bits(model, source, documents, start, window=20, batch=3)
    for document, bits in zip(documents, found, strict=True):
        ids, expected = source.encode(document).ids, 0.0
        for begin in range(0, len(ids), 20):
            part = ids[begin : begin + 20]
            logits = model(torch.tensor([[start, *part]])).logits[0].detach().double()
            for place, index in enumerate(part):
                expected -= float(logits[place].log_softmax(-1)[index]) / math.log(2)
        assert bits == pytest.approx(expected, rel=1e-5)


def test_only_the_ends_are_trained():
    model = llama(layers=6)
    trained = {id(each) for each in lapt.freeze(model, "ends")}
    names = {name for name, each in model.named_parameters() if id(each) in trained}
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1", "4", "5"}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= names
    before = copy.deepcopy(model.state_dict())
    batches = np.random.default_rng(0).integers(50, size=(2, 2, 12))
    lapt.adapt(model, batches, lapt.Recipe(learning_rate=0.01), 3)
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert {name.split(".")[2] for name in changed if ".layers." in name} == {"0", "1", "4", "5"}


def test_an_extra_head_predicts_one_place_further():
    model = llama()
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    head = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    hidden = model.model(ids).last_hidden_state.detach().double()
    weight = model.get_output_embeddings().weight.detach().double()
    expected = 0.0
    for ahead, matrix in ((1, weight), (2, head.double())):
        terms = [
            -(hidden[row, place] @ matrix.T).log_softmax(-1)[ids[row, place + ahead]]
            for row in range(2)
            for place in range(9 - ahead)
        ]
        expected += float(sum(terms)) / len(terms)
    assert lapt.loss(model, ids, [head]).item() == pytest.approx(expected, rel=1e-5)
    assert lapt.loss(model, ids).item() < expected


@pytest.mark.parametrize("layers", ["all", "ends"])
def test_adaptation_lowers_the_loss_and_looks_at_every_step(layers):
    model, seen = llama(), []
    batches = np.tile(np.arange(40).reshape(1, 2, 20), (3, 1, 1))
    before = lapt.loss(model, torch.as_tensor(batches[0])).item()
    lapt.adapt(model, batches, lapt.Recipe(layers=layers, learning_rate=0.01), 20, seen.append)
    assert seen == list(range(21))
    assert lapt.loss(model, torch.as_tensor(batches[0])).item() < 0.8 * before


def test_the_rate_rises_then_falls_to_nothing():
    rates = [lapt._rate(step, 40, 0.05) for step in range(41)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(a >= b for a, b in pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0)


def test_a_step_costs_three_forwards_and_less_with_frozen_layers():
    config = llama(layers=6).config
    recipe = {"block": 8, "batch": 2}
    per_layer = 4 * 16 * 16 + 3 * 16 * 24
    attention = 16 * 8
    full = lapt.step_cost(config, lapt.Recipe(layers="all", ahead=0, **recipe))
    assert full == 3 * 16 * (6 * (per_layer + attention) + 50 * 16)
    ends = lapt.step_cost(config, lapt.Recipe(layers="ends", ahead=0, **recipe))
    assert full - ends == 16 * 2 * per_layer
    two_heads = lapt.step_cost(config, lapt.Recipe(layers="ends", ahead=1, **recipe))
    assert two_heads - ends == 16 * 3 * 50 * 16


def test_blocks_keep_the_order_and_a_short_stream_is_refused():
    assert lapt.blocks(np.arange(13), 3, 2).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    with pytest.raises(ValueError, match="do not fill"):
        lapt.blocks(np.arange(5), 3, 2)


def test_a_stream_holds_every_line_once_behind_a_start_symbol(source):
    ids = lapt.stream(source, GREEK[:3], 7, seed=0).tolist()
    lines = {tuple(source.encode(line).ids) for line in GREEK[:3]}
    starts = [place for place, index in enumerate(ids) if index == 7] + [len(ids)]
    assert {tuple(ids[a + 1 : b]) for a, b in pairwise(starts)} == lines


# The source model


def test_pretraining_lowers_the_loss_and_weights_can_be_put_back(source):
    model = source_model.llama(source, 16, 4, 2, 24, seed=0)
    fresh = source_model.llama(source, 16, 4, 2, 24, seed=1)
    ids = torch.tensor([source.encode(ENGLISH[0]).ids])
    before = lapt.loss(model, ids).item()
    parameters = {"block": 16, "batch": 2, "learning_rate": 0.02, "weight_decay": 0.1, "warmup": 0.1}
    source_model.pretrain(model, source, ENGLISH * 3, parameters, seed=0)
    assert lapt.loss(model, ids).item() < 0.9 * before
    restored = source_model.with_weights(fresh, source_model.weights(model))
    assert lapt.loss(restored, ids).item() == pytest.approx(lapt.loss(model, ids).item())


# Trials


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def bench(request, source):
    model = llama(source.get_vocab_size(), tied=request.param)
    return Bench(source, model, source_model.start_id(source), GREEK, GREEK[:2], auxiliary_size=400)


@pytest.mark.parametrize("method", [*expansion.METHODS, "mean-official", "shuffled"])
def test_a_bench_scores_every_initialisation_and_leaves_the_model_alone(bench, method):
    before = copy.deepcopy(bench.model.state_dict())
    assert bench.score(method, 8).shape == (2,)
    assert bench.rows(method, 8).shape == (8, 16)
    head = bench.head_rows(method, 8)
    assert (head is None) == bench.model.config.tie_word_embeddings
    assert all(torch.equal(before[name], each) for name, each in bench.model.state_dict().items())


def test_a_bench_without_new_tokens_scores_the_source(bench):
    expected = lapt.document_bits(bench.model, bench.tokenizer, bench.documents, bench.start)
    assert np.array_equal(bench.score("source", 0), expected)
    assert bench.tokens(0).tolist() == [len(bench.tokenizer.encode(each).ids) for each in bench.documents]


def test_an_adaptation_begins_at_the_score_and_repeats(bench):
    recipe = lapt.Recipe(block=16, batch=2, learning_rate=0.01)
    found = bench.adapt("random", 8, 1, recipe, 3, [0, 3])
    assert found.shape == (2, 2)
    assert np.allclose(found[0], bench.score("random", 8, 1))
    assert found[1].sum() < found[0].sum()
    assert np.array_equal(bench.adapt("random", 8, 1, recipe, 3, [0, 3]), found)


def test_tokens_are_shown_as_text_or_as_bytes(source, target):
    first = source.get_vocab_size()
    shown = [readable(target, index) for index in range(first + 12)]
    assert shown[source.token_to_id("Ġ")] == "_"
    assert shown[source.token_to_id("a")] == "a"
    assert shown[source.token_to_id("Î")] == "<ce>"
    assert any("γ" in token or "α" in token or "τ" in token for token in shown[first:])
