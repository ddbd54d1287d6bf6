"""Prompts and rows, on a tiny model and texts made here."""

import copy
import json

import pandas as pd
import pytest
import torch

from tokenarium.data import debian_reference, licences, man_pages
from tokenarium.data.text import split_of
from tokenarium.errors import TokenariumError
from tokenarium.methods.context import kvlab, kvlab_results
from tokenarium.methods.context.kvlab import opening, tasks

WORDS = "The printer accepts any file that it can read and prints it at once. "
TOKENS = 500


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return opening.open_model(tmp_path_factory.mktemp("root"), opening.TINY)


@pytest.fixture
def corpora(monkeypatch):
    """Enough long documents of the split test in each source, with names as the real ones."""
    names = [name for name in (f"doc{number}" for number in range(400)) if split_of(name) == "test"]
    rows = [{"id": f"{name}#0", "section": name, "text": f"{name} begins. {WORDS * 20}"} for name in names]
    monkeypatch.setattr(licences, "load", lambda root, split: rows)
    monkeypatch.setattr(man_pages, "load", lambda root, split: rows)
    monkeypatch.setattr(debian_reference, "load", lambda root: rows)


def test_prompts_have_the_exact_length_and_hold_their_needles(opened, corpora):
    tokenizer, _ = opened
    for task in ("T1", "T2", "T3", "T4"):
        for prompt in tasks.make("", tokenizer, task, 5, TOKENS):
            assert len(prompt.context) == TOKENS
            assert (len(prompt.answer) > 0) == (task != "T4")
    for prompt in tasks.make("", tokenizer, "T2", 5, TOKENS):
        needles = [tokenizer.decode(prompt.context[start:end]) for start, end in prompt.spans]
        assert len(needles) == len(set(needles)) == tasks.NEEDLES
        lead = tokenizer.decode(prompt.question).split("\n")[-1].removeprefix("Answer:")
        assert needles[0] == f"{lead}{tokenizer.decode(prompt.answer)}."
        assert len({needle.split()[-1] for needle in needles}) == tasks.NEEDLES


def test_prompts_are_the_same_every_time_and_more_of_them_only_add(opened, corpora):
    tokenizer, _ = opened
    few, many = (tasks.make("", tokenizer, "T2", count, TOKENS) for count in (4, 9))
    assert few == many[:4]
    assert few != tasks.make("", tokenizer, "T2", 4, TOKENS, seed=1)
    assert {prompt.source for prompt in many} == set(tasks.SOURCES)
    assert len({tuple(prompt.context) for prompt in many}) == 9


def test_the_next_tokens_go_on_where_the_text_stops(opened, corpora):
    tokenizer, _ = opened
    for prompt in tasks.make("", tokenizer, "T3", 3, TOKENS):
        text = tokenizer.decode([*prompt.ids[1:], *prompt.answer])
        assert text in next(each for each in tasks.texts("")[prompt.source] if each.startswith(text[:8]))
        assert len(prompt.answer) == tasks.ANSWER_TOKENS
        assert prompt.ids[0] == tokenizer.bos_token_id


def test_short_documents_are_joined_where_long_ones_run_out(opened):
    tokenizer, _ = opened
    held = {"licences": ["long " * 60, "a few words " * 9, "some more words " * 9, "and these " * 9]}
    one, two = tasks.make("", tokenizer, "T3", 2, 100, held=held)
    assert tokenizer.decode(one.ids[1:]).startswith("long long")
    assert "\n\n" in tokenizer.decode([*two.ids[1:], *two.answer])


def test_too_few_long_texts_are_named(opened, corpora):
    tokenizer, _ = opened
    with pytest.raises(TokenariumError, match=r"only \d+ texts of 50064 tokens"):
        tasks.make("", tokenizer, "T3", 2, 50000)
    with pytest.raises(ValueError, match="T1, T2, T3, T4"):
        tasks.make("", tokenizer, "T5", 2)


def test_rows_have_one_of_each_cell_and_the_whole_budget_costs_nothing(opened, corpora):
    tokenizer, model = opened
    prompt = tasks.make("", tokenizer, "T2", 1, TOKENS)[0]
    policies = {"h2o": kvlab.H2O(), "oracle": kvlab.Oracle()}
    rows = kvlab.evaluate(model, prompt, policies, [0.1, TOKENS + 200], full=True)
    assert len(rows) == 2 * (1 + 2 * 2)
    table = pd.DataFrame(json.loads(json.dumps(rows)))
    for protocol in kvlab.PROTOCOLS:
        full = kvlab_results.values(table, "T2", protocol, "full", None, "logprob")
        for method in policies:
            some = kvlab_results.values(table, "T2", protocol, method, TOKENS + 200, "logprob")
            assert some.to_numpy() == pytest.approx(full.to_numpy(), abs=1e-4)
    small = table[table.budget == 50]
    assert small[small.method == "h2o"].stored.tolist() == [50, 50]
    assert small[small.method == "oracle"].stored.tolist() == [TOKENS, TOKENS + len(prompt.question) - 1]
    assert small.attended.tolist() == pytest.approx([50] * 4)


def test_policies_read_in_one_batch_get_what_each_gets_alone(opened, corpora):
    tokenizer, model = opened
    prompt = tasks.make("", tokenizer, "T3", 1, 300)[0]
    policies = {
        "window": kvlab.Window(),
        "random": kvlab.Random(),
        "renumbered": kvlab.StreamingLLM(renumber=True),
        "h2o": kvlab.H2O(),
        "tova-renumbered": kvlab.TOVA(renumber=True),
    }
    together = {(row["method"], row["protocol"]): row for row in kvlab.evaluate(model, prompt, policies, [40])}
    for name, policy in policies.items():
        for row in kvlab.evaluate(model, prompt, {name: policy}, [40]):
            found = together[name, row["protocol"]]
            assert found["logprob"] == pytest.approx(row["logprob"], abs=1e-4)
    assert len({round(row["logprob"], 3) for row in together.values()}) == len(together)


def test_a_row_s_log_probability_is_the_model_s_own(opened, corpora):
    tokenizer, model = opened
    prompt = tasks.make("", tokenizer, "T2", 1, TOKENS)[0]
    ids = torch.tensor([[*prompt.ids, *prompt.answer]])
    with torch.inference_mode():
        logprobs = model(ids, use_cache=False).logits[0].double().log_softmax(dim=-1)
    start = len(prompt.ids)
    expected = sum(float(logprobs[start - 1 + k, token]) for k, token in enumerate(prompt.answer)) / len(prompt.answer)
    for row in kvlab.evaluate(model, prompt, {}, [], full=True):
        assert row["logprob"] == pytest.approx(expected, abs=1e-4)


def test_continuations_and_steps_agree_with_the_whole_cache_at_a_budget_for_all(opened, corpora):
    tokenizer, model = opened
    prompts = tasks.make("", tokenizer, "T4", 3, 300)
    policies = {"h2o": kvlab.H2O(), "oracle": kvlab.Oracle()}
    rows, reference = kvlab.evaluate_continuations(model, prompts, policies, [900, 30], 5)
    assert reference.shape == (3, 5)
    assert len(rows) == 2 * 2 * 2 * 3
    for row in rows:
        if row["budget"] == 900:
            assert row["agreement"] == row["rouge_l"] == 1
        elif row["method"] == "h2o":
            assert row["stored"] == 30
    texts = tasks.make("", tokenizer, "T3", 3, 300)
    rows = kvlab.evaluate_stepwise(model, texts, policies, [900])
    whole = {row["prompt"]: row for text in texts for row in kvlab.evaluate(model, text, {}, [], ["B"], full=True)}
    for row in rows:
        assert row["logprob"] == pytest.approx(whole[row["prompt"]]["logprob"], abs=1e-4)
        assert row["right"] == whole[row["prompt"]]["right"]


def test_a_packed_model_computes_the_same(opened):
    _, model = opened
    ids = torch.randint(250, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        packed = opening.pack(copy.deepcopy(model))
        torch.testing.assert_close(packed(ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)
    assert any(isinstance(each, opening.Packed) for each in packed.modules())


def test_comparisons_are_paired_by_prompt():
    rows = [
        {"task": "T3", "prompt": f"T3-{n}", "protocol": "B", "method": method, "budget": 8, "logprob": n + shift}
        for n in range(6)
        for method, shift in (("a", 0.5), ("b", 0.0))
    ]
    table = pd.DataFrame(rows)
    found = kvlab_results.compare(table, "T3", "B", 8, "logprob", "a", "b", resamples=100)
    assert found.value == found.low == found.high == 0.5
    assert kvlab_results.mean(table, "T3", "B", 8, "logprob", "b", resamples=100).value == 2.5
    with pytest.raises(KeyError, match="one a prompt"):
        kvlab_results.values(table, "T3", "A", "a", 8, "logprob")
    both = kvlab_results.compare(table, "T3", "B", 8, "logprob", ["a", "b"], "b", resamples=100)
    assert both.value == both.high == 0.25
    assert kvlab_results.curve(table, "T3", "B", "logprob", "a", 100)["value"].tolist() == [3.0]
