"""What the phantom-edit experiments stand on: prompts, injected forms, the task of self-training, its remedies."""

import numpy as np
import pytest
import torch

from tokenarium.methods.tokenizers import betrayal_lab as lab
from tokenarium.methods.tokenizers import betrayal_results as results
from tokenarium.methods.tokenizers import betrayal_training as training
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.tokenizer_betrayal import ends_a_word
from tokenarium.methods.tokenizers.valid_encodings import Codec

SENTENCES = [
    "The people of the city saw a great house.",
    "And the servant gave an answer to the king.",
    "Every document has a section about the error.",
    "This package will replace the old software.",
]
WORDS = ("harbor", "garden", "window", "bridge", "forest", "market", "silver", "wonder")
TEXTS = [*SENTENCES * 20, *(f"{name} and {other}" for name in WORDS for other in WORDS)]


@pytest.fixture(scope="module")
def speaker():
    from transformers import LlamaConfig, LlamaForCausalLM

    trained = bpe.train([*TEXTS, *(each.format(word="city") for each in lab.INSTRUCTIONS.values())], 700)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(trained.vocabulary), **shape, bos_token_id=None, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    return lab.Speaker(model, trained.tokenizer(), list(trained.vocabulary), "<", "\nAnswer:\n", None)


@pytest.fixture
def target(speaker, monkeypatch):
    monkeypatch.setattr(lab, "plain_sentences", lambda root: iter(SENTENCES))
    found = lab.targets(speaker, None, 20, least=3)
    assert len(found) >= 4
    assert len({each.word for each in found}) == len(found)
    return found[0]


def test_a_prompt_differs_from_plain_text_in_the_injected_target_alone(speaker, target):
    shapes = lab.forms(target, speaker)
    assert list(shapes) == list(lab.FORMS)
    assert {len(each) for each in list(shapes.values())[:3]} == {1, 2, 3}
    assert speaker.token_bytes[shapes["blank detached"][0]] == b" "
    for instruction in lab.INSTRUCTIONS:
        plain = lab.prompt(speaker, target, instruction, target.canonical)
        text = b"".join(speaker.token_bytes[index] for index in plain)
        assert plain == speaker.encode(text.decode())
        assert text.count(f" {target.word}".encode()) == 2
        for form in shapes.values():
            made = lab.prompt(speaker, target, instruction, form)
            assert b"".join(speaker.token_bytes[index] for index in made) == text
            assert len(made) == len(plain) + 2 * (len(form) - 1)


def test_masses_are_the_models_own_probabilities(speaker, target):
    form = lab.forms(target, speaker)["two pieces"]
    ends = ends_a_word(speaker.token_bytes)
    masses, each, missed = lab.injected_masses(speaker, target, "replace", form, ends, 0.0)
    assert missed == 0
    assert masses.sum() == pytest.approx(1)
    context = [*lab.prompt(speaker, target, "replace", form), *lab.answer_so_far(target)]
    for ids, mass in zip(target.segmentations, each, strict=True):
        with torch.inference_mode():
            p = speaker.model(torch.tensor([[*context, *ids]])).logits[0].double().softmax(-1)
        expected = np.prod([float(p[len(context) - 1 + place, index]) for place, index in enumerate(ids)])
        assert mass == pytest.approx(expected * float(p[-1, torch.from_numpy(ends)].sum()), rel=1e-4)
    assert masses[lab.SAME_IDS] == each[target.segmentations.index(form)]


def test_a_word_read_as_itself_has_no_gap(speaker, target):
    gap = lab.reading_gap(speaker, target, {"same": target.canonical, "other": target.segmentations[0]})
    assert gap["kl"][0] == pytest.approx(0, abs=1e-9)
    assert gap["kl"][1] > 0
    assert gap["cosine"][0] == pytest.approx(1)
    assert gap["hidden"].shape == (3, 16)


def test_answers_of_a_batch_are_those_of_each_prompt_alone(speaker, target):
    prompts = [lab.prompt(speaker, target, name, target.canonical) for name in lab.INSTRUCTIONS]
    together = lab.answers(speaker, prompts, 5, sample=False, seed=0)
    assert together == [lab.answers(speaker, [each], 5, sample=False, seed=0)[0] for each in prompts]


# Self-training


@pytest.fixture(scope="module")
def tokenizer():
    made = bpe.train(TEXTS * 3, 420).tokenizer()
    made.add_special_tokens(["<fill>"])
    return made


@pytest.fixture(scope="module")
def task(tokenizer):
    return training.make_task(tokenizer, tokenizer.token_to_id("<fill>"), 6, 2, 5, 3, seed=1)


def new_model(task):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(task.token_bytes), **shape, bos_token_id=None, eos_token_id=None)
    return LlamaForCausalLM(config)


def test_half_of_the_words_have_replacements_and_none_is_the_word_itself(task, tokenizer):
    assert sorted(len(each) for each in task.allowed.values()) == [0, 0, 0, 2, 2, 2]
    for word, allowed in task.allowed.items():
        assert word not in allowed
        assert set(allowed) <= set(task.words)
        assert len(task.encode(word.decode())) == 1
    with pytest.raises(ValueError, match="are asked for"):
        training.make_task(tokenizer, task.fill, 5000, 2, 5, 3, seed=1)


def test_demonstrations_spell_an_allowed_answer_and_dropout_changes_the_ids_alone(task):
    plain = training.demonstrations(task, 60, 0.0, 3)
    for asked, answer in plain:
        text, made = (b"".join(task.token_bytes[each] for each in ids).decode() for ids in (asked, answer))
        word = b" " + text.rsplit(" ", 1)[1].encode()
        assert asked == task.encode(text)
        assert answer == task.encode(made)
        assert made.removesuffix("\n").encode() in (task.allowed[word] or (word,))
    dropped = training.demonstrations(task, 200, 0.2, 3)
    assert sum(
        answer != task.encode(b"".join(task.token_bytes[each] for each in answer).decode()) for _, answer in dropped
    ) in range(20, 181)


def test_answers_end_at_the_line_end_and_the_mask_leaves_no_phantom(task):
    model = new_model(task)
    training.train(model, task, training.demonstrations(task, 50, 0.3, 0), 25, 8, 0.01, 0)
    free = training.measured(model, task, 5, 6, 5)
    assert sum(sum(each.values()) for each in free["outcomes"].values()) == 30
    codec = Codec(task.tokenizer, task.token_bytes)
    questions = [training.question(training.HELD_OUT, word) for word in task.words for _ in range(6)]
    answers, bits = training.draw_answers(model, task, questions, 6, 5, codec)
    assert (bits >= 0).all()
    assert bits.max() > 0.1
    spelled = [b"".join(task.token_bytes[index] for index in answer) for answer in answers if answer]
    assert spelled
    for answer in filter(None, answers):
        text = b"".join(task.token_bytes[index] for index in answer)
        assert task.line_end not in answer
        assert task.encode(text.decode()) == answer


@pytest.mark.parametrize(("checker", "kept"), [("id", 2), ("text", 1)])
def test_a_checker_keeps_the_first_answer_that_it_takes_for_an_edit(task, monkeypatch, checker, kept):
    first, second = task.words[:2]
    index = {each: place for place, each in enumerate(task.token_bytes)}
    letters = [index[bytes([each])] for each in first]

    def draw(model, task, questions, most, seed, codec=None):
        made = []
        for word in task.words:
            tries = {first: [[index[first]], letters], second: [[index[second]], [index[first]]]}
            made += tries.get(word, [[index[word]], []])
        return made, np.zeros(len(made))

    monkeypatch.setattr(training, "draw_answers", draw)
    chosen = training.self_training_set(None, task, training.CHECKERS[checker], 2, 6, 0)
    assert len(chosen) == kept
    assert [answer for _, answer in chosen][-1] == [index[first], task.line_end]


def test_an_answer_with_a_special_token_or_without_an_end_is_none(task):
    class Says:
        device = torch.device("cpu")

        def generate(self, ids, **_):
            rows = [[1, 2, end, fill], [1, fill, end, fill], [1, 2, 1, 2]]
            return torch.cat([ids, torch.tensor(rows)], dim=1)

    end, fill = task.line_end, task.fill
    answers, _ = training.draw_answers(Says(), task, ["a", "b", "c"], 4, 0)
    assert answers == [[1, 2], [], []]
    assert training.judged(task, task.words[0], []) == ("invalid", None)


def test_training_lowers_the_loss_and_repeats_exactly(task):
    shown = training.demonstrations(task, 100, 0.05, 0)
    losses = [training.train(new_model(task), task, shown, 40, 8, 0.01, 0) for _ in range(2)]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 1


# Results


def test_rates_of_the_training_count_both_groups():
    measured = {"outcomes": {"free": {"real": 6, "copy": 2}, "hard": {"phantom": 2}}, "anew": {"copy": 4, "real": 6}}
    assert results.illusion(measured).value == pytest.approx(0.25)
    assert results.training_rate(measured, "real", "free").value == pytest.approx(0.75)
    assert results.training_rate(measured, "phantom").value == pytest.approx(0.2)
    assert results.anew_rate(measured).value == 0
    assert results.phantom_rate(["invalid", "phantom", "copy"]).value == pytest.approx(0.5)
    assert results.phantom_rate(["invalid"]).value == 0


def test_class_masses_leave_the_canonical_form_out():
    target = {"artifacts": [[None, "A2", "A1"], ["A2", None, "A1"], ["A1", "A1", None]]}
    masses = np.array([[0.9, 0.1, 0.1], [0.4, 0.2, 0.1], [0.1, 0.3, 0.5]])
    found = results.class_masses([target], [masses])
    assert found["A2"].tolist() == pytest.approx([0.2])
    assert found["A1"].tolist() == pytest.approx([0.25])
    assert found["A5"].tolist() == [0]


def test_alternatives_are_compared_with_the_median_synonym():
    kl = [np.array([1.0, 5.0, 2.0, 9.0]), np.array([3.0, 3.5, 4.0, 9.0])]
    labels = [["a|b", "c|d", "synonym", "random word"]] * 2
    shares, median = results.shares_above(kl, labels)
    assert median == 3
    assert shares.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="come last"):
        results.shares_above(kl, [["synonym", "a", "b", "c"]])


def test_random_edits_are_never_phantoms():
    spelled = [b" dog", b" d", b"og", b" cat", b"1", b"\n", b"og"]
    found = results.random_edits(spelled, [[0], [1, 2]], 300, 0)
    assert found["phantom"] == 0
    assert sum(found.values()) == 300
