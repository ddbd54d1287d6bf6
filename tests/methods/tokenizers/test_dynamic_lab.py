"""The bench of dynamic tokenization on a tiny random model: rows by arm, bits, budgets, passages, the classifier."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from tokenarium.methods.tokenizers import dynamic_lab, zett
from tokenarium.methods.tokenizers import dynamic_results as results
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.methods.tokenizers.experiments import dynamic_encoder
from tokenarium.models import hypernet_tiny, lm_tiny

TEXTS = ["the cat sat on the mat\n", "a cat and a hat, that is that\n"] * 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """lm/seed1 and hn/seed1 below a folder."""
    root = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    tokenizer = lm_tiny.train_tokenizer(TEXTS, 270)
    model = LlamaForCausalLM(lm_tiny.config(len(tokenizer), 64, layers=2, width=64))
    model.save_pretrained(root / "lm" / "seed1")
    tokenizer.save_pretrained(root / "lm" / "seed1")
    rows = hypernet_tiny.source_rows(model)
    params = zett.initial_params(rows, 64, 4, 64, 32, 1, 1, torch.Generator().manual_seed(0))
    (root / "hn" / "seed1").mkdir(parents=True)
    save_file(params, root / "hn" / "seed1" / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def base(root):
    return dynamic_lab.Base(root, 1, "lm", "hn")


def rows_of(base, arm):
    return base.rows(arm, 100)


def test_unmerged_tokens_have_the_models_own_rows_unless_all_are_predicted(base):
    own = base.tokens("the cat and a hat")
    expected = torch.stack([base.rows_in[base.tokenizer.token_to_id(token)] for token in own])
    for arm in ("original", "FVT", "mixed"):
        torch.testing.assert_close(rows_of(base, arm)(own), expected)
    assert not torch.allclose(rows_of(base, "hypernet")(own), expected)


def test_merged_tokens_are_means_of_pieces_or_predicted(base):
    token = "sathat"
    pieces = base.tokenizer.encode(token).ids
    assert len(pieces) > 1
    torch.testing.assert_close(rows_of(base, "FVT")([token])[0], base.rows_in[pieces].mean(dim=0))
    torch.testing.assert_close(rows_of(base, "mixed")([token]), rows_of(base, "hypernet")([token]))
    forms = torch.tensor([(pieces + [1] * 4)[:4]])
    source = torch.cat([base.rows_in, base.rows_out], dim=1)
    rows_in, rows_out, _ = zett.hypernet_forward(forms, source, base._hypernet.params)
    torch.testing.assert_close(base.predicted([token]), (rows_in, rows_out))


def test_bits_of_a_continuation_are_those_of_the_model_itself(base, root):
    model = LlamaForCausalLM.from_pretrained(root / "lm" / "seed1").eval()
    contexts = [base.tokens("the cat sat on"), base.tokens("a hat, that is")[:3]]
    follow = [base.tokens(" the mat and that")[:3], base.tokens(" that cat sat")[:3]]
    bits = dynamic_lab.continuation_bits(base, contexts, rows_of(base, "original"), follow, batch_size=2)
    for context, tokens, found in zip(contexts, follow, bits, strict=True):
        ids = torch.tensor([[0, *base.ids(context), *base.ids(tokens)]])
        with torch.no_grad():
            log_probabilities = model(ids).logits[0].log_softmax(dim=-1)
        expected = 0.0
        for place in range(len(context), len(context) + 3):
            expected -= float(log_probabilities[place, ids[0, place + 1]]) / math.log(2)
        assert found == pytest.approx(expected, rel=1e-4)


def test_bits_do_not_depend_on_what_stands_beside_a_prompt(base):
    contexts = [base.tokens("the cat sat on"), base.tokens("a"), base.tokens("that hat is that cat")]
    follow = [base.tokens("the mat")[:2]] * 3
    rows = rows_of(base, "hypernet")
    together = dynamic_lab.continuation_bits(base, contexts, rows, follow, batch_size=3)
    alone = dynamic_lab.continuation_bits(base, contexts, rows, follow, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_a_prompt_is_merged_to_a_share_of_its_tokens_or_of_what_is_possible(base):
    tokens = list("abababcdcd")
    budgets = {"20": 0.2, "s50": 0.5, "s100": 1.0, "99": 0.99}

    def within_four(left, right):
        return len(left + right) <= 4

    found = dynamic_lab.merged_to(tokens, budgets, within_four)
    assert {name: len(each) for name, each in found.items()} == {"20": 7, "s50": 6, "s100": 3, "99": 3}
    assert all("".join(each) == "".join(tokens) for each in found.values())


def test_special_tokens_are_never_merged(base):
    for boundary in ("pretokens", "word"):
        assert not base.boundary(boundary)("a", lm_tiny.START)
        assert base.boundary(boundary)("a", "b")


# Passages


@pytest.fixture
def help_pages(monkeypatch):
    """Two sections in two languages; one paragraph is missing in the second."""
    english = {f"one/p{page}#{part}": "x" * 30 for page in range(6) for part in range(3)}
    english |= {f"two/q{page}#{part}": "y" * 25 for page in range(2) for part in range(3)}
    german = {name: text.upper() for name, text in english.items() if name != "one/p0#1"}

    def load(root, language, split):
        texts = {"en": english, "de": german}[language]
        return [{"id": name, "text": text} for name, text in texts.items()]

    monkeypatch.setattr(dynamic_lab.libreoffice_help, "load", load)


def test_passages_are_whole_aligned_paragraphs_of_one_page_with_their_section(help_pages):
    names = dynamic_lab.sections(None, ["en", "de"], 2)
    assert names == ["one", "two"]
    texts, labels = dynamic_lab.help_passages(None, ["en", "de"], names, "test", 62, 6)
    assert np.bincount(labels).tolist() == [6, 2]
    for english, german, label in zip(texts["en"], texts["de"], labels, strict=True):
        assert german == english.upper()
        assert set(english) == {"xy"[label], "\n"}
    lengths = [len(text.replace("\n", "")) for text in texts["en"]]
    assert sorted(lengths) == [60, 75, 75, 90, 90, 90, 90, 90]  # the first page lacks a paragraph in one language


def test_what_is_left_of_a_page_is_no_passage_if_it_is_shorter_than_half(help_pages, monkeypatch):
    texts, _ = dynamic_lab.help_passages(None, ["en", "de"], ["two"], "test", 50, 6)
    assert sorted(map(len, texts["en"])) == [25, 25, 51, 51]
    texts, _ = dynamic_lab.help_passages(None, ["en"], ["one"], "test", 60, 20)
    assert sorted(set(map(len, texts["en"]))) == [30, 61]
    pages = {"page/a#0": "x" * 40, "page/a#1": "x" * 10}
    monkeypatch.setattr(
        dynamic_lab.libreoffice_help,
        "load",
        lambda *_: [{"id": name, "text": text} for name, text in pages.items()],
    )
    assert dynamic_lab.help_passages(None, ["en"], ["page"], "test", 30, 6)[0]["en"] == ["x" * 40]


def test_passages_are_the_same_each_time(help_pages):
    first, second = (dynamic_lab.help_passages(None, ["en", "de"], ["one"], "test", 60, 3) for _ in range(2))
    assert first[0] == second[0]


# The classifier


def test_lora_starts_as_the_model_itself_and_trains_nothing_else_but_the_head(base):
    torch.manual_seed(0)
    classifier = dynamic_encoder.Classifier(base.body, 3, rank=2, dropout=0.5).eval()
    inputs, mask = dt.embed([base.tokens("the cat"), base.tokens("a")], rows_of(base, "original"), base.start)
    states = base.body(inputs_embeds=inputs, use_cache=False).last_hidden_state
    means = torch.stack([state[: int(used.sum())].mean(dim=0) for state, used in zip(states, mask, strict=True)])
    torch.testing.assert_close(classifier(inputs, mask), classifier.head(means))
    trained = {name for name, weight in classifier.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"down", "up", "weight", "bias"}
    assert all("proj" in name or name.startswith("head") for name in trained)
    classifier(inputs, mask).sum().backward()
    assert all(weight.grad is None for weight in base.body.parameters())


def test_lora_adds_the_product_of_its_two_matrices():
    torch.manual_seed(0)
    lora = dynamic_encoder.Lora(torch.nn.Linear(5, 4), rank=2, dropout=0.5).eval()
    torch.nn.init.normal_(lora.up)
    x = torch.randn(3, 5)
    expected = x @ (lora.linear.weight + lora.up @ lora.down).T + lora.linear.bias
    torch.testing.assert_close(lora(x), expected)


# Results


class Stored:
    def __init__(self, parts):
        self.parts = parts

    def arrays(self, name):
        return self.parts[name]


def test_accuracy_and_differences_pool_seeds_and_languages_by_passage():
    right = {"a-0": np.array([True, True, False, False]), "b-0": np.array([True, False, False, False])}
    better = {"a-50": np.array([True] * 4), "b-50": np.array([True, True, False, False])}
    stored = {seed: Stored({f"{seed}-x": right, f"{seed}-y": better}) for seed in (0, 1)}
    heads = results.Heads(stored, ["a", "b"], 200)
    assert heads.accuracy("x", 0).value == 3 / 8
    assert heads.accuracy("x", 0, ["a"]).value == 0.5
    pooled, each = heads.difference("y", 50, "x", 0)
    assert pooled.value == pytest.approx(3 / 8)
    assert set(each) == {0, 1}


def test_reduction_is_the_mean_over_languages():
    tokens = {
        "a-0": np.array([10, 10]),
        "a-50": np.array([5, 5]),
        "b-0": np.array([20, 20]),
        "b-50": np.array([20, 20]),
    }
    heads = results.Heads({0: Stored({"tokens": tokens})}, ["a", "b"], 200)
    assert heads.reduction(50).value == pytest.approx(0.25)
    assert heads.reduction(50, ["a"]).value == pytest.approx(0.5)


def test_a_cost_compares_the_means_of_the_seeds_on_the_same_prompts():
    bits = {(0, "x"): [2.0, 4.0], (1, "x"): [4.0, 8.0], (0, "original"): [1.0, 3.0], (1, "original"): [3.0, 5.0]}
    costs = results.Costs(lambda seed, arm, _: np.array(bits[seed, arm]), [0, 1], [1, 1], 200)
    pooled, each = costs.cost("x", "17")
    assert pooled.value == pytest.approx(18 / 12 - 1)
    assert each[0].value == pytest.approx(6 / 4 - 1)
    assert costs.per_byte("x", "17").value == pytest.approx(9 / 2)


def test_the_spread_is_the_deviation_of_mean_lengths_over_languages():
    before, after = [[10, 12], [20, 22]], [[10, 12], [14, 16]]
    assert results.spread(before, resamples=200).value == pytest.approx(5)
    assert results.spread(after, before, resamples=200).value == pytest.approx(2 - 5)


def test_the_share_of_the_first_merges_is_read_between_whole_merges():
    lengths = np.array([10.0, 6.0, 4.0, 3.0, 2.0])
    assert results.share_of_first(lengths, 0.25) == pytest.approx(4 / 8)
    assert results.share_of_first(lengths, 0.125) == pytest.approx(2 / 8)
    assert results.share_of_first(lengths, 1.0) == 1


def test_continuations_match_up_to_their_first_difference():
    exact, other = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]]), np.array([[1, 2, 3], [1, 9, 3], [9, 2, 3]])
    assert results.matches(exact, other).tolist() == [3, 1, 0]
