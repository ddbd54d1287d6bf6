"""Numbers read off recorded answers, on a made-up experiment whose results are known by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tokenarium.methods.context import frugal_results as results
from tokenarium.methods.context.frugal.arms import TOKENS, Arm
from tokenarium.study.experiments import Results

ITEMS = [
    {"passage": "a b c d", "question": "", "options": ["1", "2"], "gold": 0},
    {"passage": "e f g h", "question": "", "options": ["1", "2"], "gold": 1},
]


@pytest.fixture
def folder(tmp_path):
    def answers(name, total, mean, tokens):
        arrays = {"total": total, "mean": mean, "tokens": tokens, "words": tokens}
        save_file({key: np.array(value) for key, value in arrays.items()}, tmp_path / f"{name}.safetensors")

    for task in ("facts", "topics"):
        (tmp_path / f"{task}-items.json").write_text(json.dumps(ITEMS))
        answers(f"{task}-answers-full", [[-1.0, -2.0], [-3.0, -1.0]], [[-1.0, -2.0], [-3.0, -1.0]], [4, 4])
        answers(f"{task}-answers-random-50-words-0", [[-2.0, -1.0], [-3.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]], [2, 1])
        answers(f"{task}-answers-random-50-words-1", [[-1.0, -2.0], [-3.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]], [2, 3])
    answers("topics-answers-nothing", [[0.0, 0.0]] * 2, [[-3.0, -2.0], [-3.0, -5.0]], [0, 0])
    save_file(
        {"scores": np.array([[4, 3, 2, 1.0], [1, 2, 3, 4]], dtype=np.float32)}, tmp_path / "facts-scores-x.safetensors"
    )
    return Results("made-up", tmp_path, {})


def test_accuracy_is_the_mean_of_the_seeds_of_a_random_arm(folder):
    facts = results.Answers(folder, "facts", "Q", (0, 1))
    assert facts.arms() == ["full", "random-50-words"]
    assert facts.accuracy("full").tolist() == [100, 100]
    assert facts.accuracy("random-50-words").tolist() == [50, 100]
    assert facts.saved("random-50-words").tolist() == [50, 50]
    with pytest.raises(KeyError):
        facts.accuracy("random-80-words")


def test_nats_of_an_answer_are_among_its_options(folder):
    facts = results.Answers(folder, "facts", "Q", (0, 1))
    expected = np.log(np.exp(-1) / (np.exp(-1) + np.exp(-2)))
    assert facts.nats("full")[0] == pytest.approx(expected)


def test_topics_are_measured_above_no_passage(folder):
    topics = results.Answers(folder, "topics", "D", (0, 1))
    assert topics.nats("full").tolist() == [2.0, 4.0]
    assert topics.accuracy("full").tolist() == [100, 100]  # gains are (2, 0) and (0, 4)
    assert topics.chance == 50


def test_chosen_words_are_those_of_the_arm(folder):
    facts = results.Answers(folder, "facts", "Q", (0, 1))
    assert facts.chosen(Arm("x", "top", 50)) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="not recorded"):
        facts.chosen(Arm("x", "top", 50, TOKENS))


def test_a_relative_drop_is_one_when_only_chance_is_left():
    full, short = np.full(40, 100.0), np.tile([100.0, 0, 0, 0], 10)
    assert results.relative_drop(full, short, 25.0, 200).value == pytest.approx(1.0)
    assert results.relative_drop(full, full, 25.0, 200).high == 0


def test_drops_of_two_tasks_are_drawn_apart():
    generator = np.random.default_rng(0)
    full = np.full(60, 100.0)
    much, little = (100.0 * (generator.random(60) > share) for share in (0.6, 0.1))
    found = results.relative_drop_gap((full, much, 25.0), (full[:50], little[:50], 25.0), 500)
    assert found.low < found.value < found.high
    alone = (
        results.relative_drop(full, much, 25.0, 500).value - results.relative_drop(full, little[:50], 25.0, 500).value
    )
    assert found.value == pytest.approx(alone)
    assert found.low > 0


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_rouge_equals_a_recursive_definition(a, b):
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    found = results.rouge_l(" ".join(a), " ".join(b))
    expected = 2 * longest(0, 0) / (len(a) + len(b)) if a and b else float(a == b)
    assert found == pytest.approx(expected)
    assert found == pytest.approx(results.rouge_l(" ".join(b), " ".join(a)))


def test_kinds_of_words():
    words = ["Do", "not", "take", "3", "of", "Anna's", "plates,", "she", "can't.", "Tom", "(v2)", "stays"]
    found = {kind: [words[place] for place in places] for kind, places in results.kinds(words).items()}
    # Tom begins a sentence, so nothing tells that it is a name
    assert found == {"numerals": ["3", "(v2)"], "negations": ["not", "can't."], "names": ["Anna's"]}


def test_kept_numerals_are_counted(folder):
    facts = results.Answers(folder, "facts", "Q", (0, 1))
    facts.items[0]["passage"] = "a 2 c 4"
    assert results.kept_of_kind(facts, Arm("x", "top", 50), "numerals") == [(1, 2)]
    assert results.ratio([(1, 2), (1, 2)], 50).value == 50


def test_a_constant_score_has_no_rank():
    assert results.rank_correlation(np.ones(3), np.arange(3)) == 0
    assert results.rank_correlation(np.arange(4), np.arange(4) ** 2) == pytest.approx(1)
