"""Tasks, word scores and the model that answers, on tiny random models and made-up texts."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tokenarium.methods.context import frugal_prompt as method
from tokenarium.methods.context.frugal import arms, scores, tasks
from tokenarium.methods.context.frugal.reader import tiny_reader, tree

TEXT = "The cat sat on the old mat. It saw 3 birds, and they saw the cat! Nothing happened on that day"


@pytest.fixture(scope="module")
def reader():
    return tiny_reader()


@pytest.fixture(scope="module")
def encoder():
    """Characters as sub-words, so that every word has several."""
    letters = sorted(set(TEXT) | {"##" + each for each in TEXT})
    vocabulary = {name: place for place, name in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    model = BertModel(config).eval().requires_grad_(False)
    heads = [torch.nn.Linear(16, 16), torch.nn.Linear(16, 3)]
    return scores.Encoder(fast, model, *(head.requires_grad_(False) for head in heads))


# The model that answers


def slow_nats(reader, prompt, option):
    """Log-probabilities of the option's tokens, from one plain pass over prompt and option."""
    start = [reader.tokenizer.bos_token_id, *reader.encode(prompt)]
    ids = start + reader.encode(option)
    with torch.no_grad():
        table = reader.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return [float(table[place - 1, ids[place]]) for place in range(len(start), len(ids))]


@pytest.mark.parametrize("options", [[" 1", " 2", " 9"], [" Vienna", " Oslo", " Ost"], [" a"], [" a b", " a b c"]])
def test_answers_in_one_pass_equal_a_pass_for_each_option(reader, options):
    found = reader.answers("It was held in", options)
    for option, nats in zip(options, found, strict=True):
        assert nats.tolist() == pytest.approx(slow_nats(reader, "It was held in", option), abs=1e-4)


def test_a_branch_sees_the_trunk_and_itself_alone():
    mask, positions = tree(2, [1, 2])
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert positions.tolist() == [0, 1, 2, 2, 3]


def test_the_surprise_of_words_adds_up_to_that_of_the_text(reader):
    words = TEXT.split()
    found = reader.surprise(words)
    assert len(found) == len(words)
    assert float(found.sum()) == pytest.approx(-sum(slow_nats(reader, "", " ".join(words))), rel=1e-4)


def test_continuations_do_not_depend_on_the_batch(reader):
    prompts = ["The cat", "It saw the old mat on that day", "No"]
    together = reader.continuations(prompts, 5, batch_size=3)
    assert together == [reader.continuations([prompt], 5)[0] for prompt in prompts]


def test_costs_are_the_tokens_of_words_after_a_blank(reader):
    assert reader.costs(["ab", "c"]) == [3, 2]


# Scores of words


def test_sentences_cover_every_word_once_and_fit_the_encoder(encoder):
    parts = encoder.parts(TEXT)
    assert [place for part in parts for place in part.places] == list(range(len(TEXT.split())))
    assert all(len(part.input_ids) <= scores.LONGEST + 2 for part in parts)
    assert [part.places[0] for part in parts][:2] == [0, 7]
    joined = [word for part in parts for word in method.join_pieces(*encoder.pieces(part))]
    assert joined == TEXT.split()
    assert scores.joined_words(encoder, TEXT, official_truncation=True) == [
        word[0] for word in TEXT.split()
    ]  # every sub-word is a letter, so that is what the width comes to


@pytest.mark.parametrize("name", sorted(scores.SENTENCE_SCORES))
def test_every_attribution_scores_every_word(encoder, name):
    found = scores.sentence_scores(encoder, TEXT, scores.SENTENCE_SCORES[name])
    assert found.shape == (len(TEXT.split()),)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() > 0


def test_scores_are_scaled_in_each_sentence_or_over_the_text(encoder):
    one = {within: scores.sentence_scores(encoder, TEXT, scores.globenc, within) for within in ("sentence", "text")}
    assert not torch.allclose(one["sentence"], one["text"])
    weighed = scores.sentence_scores(encoder, TEXT, scores.globenc, weigh=True)
    assert not torch.allclose(one["sentence"], weighed)


def test_decompx_parts_add_up_to_the_logit_of_every_sentence(encoder):
    for part in encoder.parts(TEXT):
        parts, logits = scores.decompx_parts(encoder, method.Trace(encoder.model, part.input_ids))
        assert float((parts.sum(dim=0) - logits).abs().max()) <= 1e-3


def test_gradient_input_equals_a_finite_difference(encoder):
    part = encoder.parts(TEXT)[0]
    trace = method.Trace(encoder.model, part.input_ids)
    found = scores.gradient_input(encoder, trace)
    label, place, step = int(encoder.logits(trace.hidden[-1][0]).argmax()), 4, 1e-2

    def logit(scale):
        state = trace.hidden[0].clone()
        state[place] *= scale
        for layer in encoder.model.encoder.layer:
            state = layer(state[None]) if state.dim() == 2 else layer(state)
        return float(encoder.logits(state.reshape(-1, 16)[0])[label])

    slope = (logit(1 + step) - logit(1 - step)) / (2 * step)
    assert float(found[place]) == pytest.approx(abs(slope), rel=0.05, abs=1e-3)


def test_a_rare_word_weighs_more_than_one_of_every_text():
    found = scores.tfidf(["the harbour was old", "the ship was new", "the mat was red"])
    assert found[0][1] > found[0][0] == found[0][2]


def test_stop_words_go_whatever_marks_they_have():
    assert scores.content_words(["The", "cat", "was", '"it".', "7", "not"]) == [1, 4]


# Tasks


@given(st.integers(0, 50), st.sampled_from([tasks.count_items, tasks.sum_items]))
def test_numbers_are_in_the_passage_and_only_one_answer_is_right(seed, make):
    (item,) = make(1, seed)
    told = [int(word) for word in item.passage.split() if word.isdigit()]
    right = item.gold + 1
    assert item.options[item.gold] == f" {right}"
    if make is tasks.sum_items:
        assert sum(told) == right <= 9
    else:
        assert len(set(told)) == len(told) == 3
        thing = item.question.split("How many ")[1].split()[0]
        words = item.passage.split()
        assert words[words.index(thing) - 1] == str(right)


def test_windows_do_not_overlap_and_take_every_document_first():
    draw = random.Random(0)
    long = [f"Word{chr(97 + n % 26)}." for n in range(40)]
    runs = tasks.windows([long, ["Alpha", "beta."] * 5], 8, 4, draw)
    assert [len(run) for run in runs] == [8] * 4
    assert runs[1][0] == "Alpha"
    with pytest.raises(ValueError, match="are needed"):
        tasks.windows([["Too", "short."]], 8, 1, draw)


def test_sentences_end_at_marks_and_at_the_longest():
    words = ["One", "two.", "Three", "(four!)", "five", "six", "seven"]
    assert [list(each) for each in tasks.sentences(words, longest=2)] == [[0, 1], [2, 3], [4, 5], [6]]


def test_docstrings_are_read_and_code_is_not():
    source = '"""Module text."""\nx = 1\ndef f():\n    """Function\n    text."""\n'
    assert tasks.docstrings(source) == "Module text. Function text."
    assert tasks.docstrings("def (") == ""


# Arms


def test_arms_have_names_of_their_own_and_keep_what_they_say():
    every = arms.headline([0, 1, 2]) + arms.grid([0, 1, 2])
    assert len({arm.name for arm in every}) == len(every)
    values, costs = np.linspace(0, 1, 10).tolist(), [1, 3] * 5
    for arm in every:
        kept = arm.kept(values, costs, item=4)
        if arm.unit == arms.WORDS:
            assert len(kept) == arm.pct / 10
        else:
            assert sum(costs[place] for place in kept) <= sum(costs) * arm.pct / 100
    draws = {
        tuple(arm.kept(values, costs, item)) for arm in arms.random_arms(50, arms.WORDS, [0, 1, 2]) for item in (0, 1)
    }
    assert len(draws) > 1
