"""Sums and how they are cut: tokenizers that differ in numbers alone, data without leaks, answers read as text."""

import pytest
import torch

from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import omp_numbers as numbers

TEXT = "and the waters were gathered together unto one place, and the dry land appeared\n" * 3
RECIPE = {
    "dim": 32,
    "layers": 1,
    "heads": 2,
    "window": 24,
    "batch_size": 8,
    "digits": 1,
    "steps": 120,
    "muon_learning_rate": 0.02,
    "adamw_learning_rate": 0.01,
    "warmup": 0.1,
}


@pytest.fixture(scope="module")
def digits():
    return numbers.digit_tokenizer([TEXT], 300)


@pytest.fixture(scope="module")
def chunks():
    return numbers.number_tokenizer([TEXT], 300)


def tokens(tokenizer, text):
    return [tokenizer.id_to_token(index) for index in tokenizer.encode(text, add_special_tokens=False).ids]


def test_digits_stand_alone_or_numbers_are_whole(digits, chunks):
    assert tokens(digits, "7+12=345\n")[:-1] == ["7", "+", "1", "2", "=", "3", "4", "5"]
    assert tokens(chunks, "7+12=345\n")[:-1] == ["7", "+", "12", "=", "345"]
    assert tokens(chunks, "1998") == ["199", "8"]


def test_every_number_below_a_thousand_is_one_token(chunks):
    assert all(len(tokens(chunks, str(number))) == 1 for number in range(1000))


def test_the_two_tokenizers_cut_text_alike(digits, chunks):
    assert tokens(digits, TEXT) == tokens(chunks, TEXT)
    assert chunks.get_vocab_size() == digits.get_vocab_size() + 990
    assert digits.token_to_id(numbers.START) == digits.get_vocab_size() - 1


def test_lines_with_digits_are_left_out():
    assert numbers.without_digits("one\nversion 2\n\nthree") == "one\n\nthree"


def test_sums_are_right_and_of_the_length_asked_for():
    lines = numbers.draw_sums(500, 3, seed=1)
    for line in lines:
        terms, result = line.split("=")
        a, b = terms.split("+")
        assert int(a) + int(b) == int(result)
    lengths = [len(line.split("+")[0]) for line in lines]
    assert all(120 < lengths.count(length) < 215 for length in (1, 2, 3))
    assert lines == numbers.draw_sums(500, 3, seed=1) != numbers.draw_sums(500, 3, seed=2)


def test_sums_held_out_are_never_drawn():
    unseen = numbers.held_out_sums(40, 1, seed=0)
    assert len(set(unseen)) == 40
    assert not set(unseen) & set(numbers.draw_sums(2000, 1, seed=3, without=frozenset(unseen)))


def test_windows_begin_with_whole_sums(digits):
    rows = numbers._packed(digits, 2, 6, 20, seed=0, unseen=frozenset())
    assert rows.shape == (6, 20)
    symbols = token_bytes(digits)
    for row in rows.tolist():
        first = b"".join(symbols[index] for index in row).split(b"\n")[0].decode()
        assert numbers.exact([first.partition("=")[2]], [first]) == [1]
        assert eval_sum(first)


def eval_sum(line):
    terms, result = line.split("=")
    return sum(map(int, terms.split("+"))) == int(result)


def test_training_is_repeatable_and_learns_the_form(digits):
    unseen = numbers.held_out_sums(5, 1, seed=0)
    model = numbers.train(digits, TEXT, RECIPE, 0, unseen)
    again = numbers.train(digits, TEXT, RECIPE, 0, unseen)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    start = model.get_input_embeddings().weight[digits.token_to_id(numbers.START)].detach()
    written = numbers.answers(model, digits, start, ["1+2=3", "4+4=8"])
    assert all(each.isdigit() for each in written)
    fresh = numbers.untrained(digits, RECIPE, 0)
    assert not all(each.isdigit() for each in numbers.answers(fresh, digits, start, ["1+2=3", "4+4=8"]))


def test_answers_are_those_of_one_prompt_at_a_time(digits):
    model = numbers.untrained(digits, RECIPE, 3)
    start = model.get_input_embeddings().weight[5].detach()
    lines = ["1+2=3", "12+4=16", "3+3=6"]
    symbols = token_bytes(digits)
    for line, found in zip(lines, numbers.answers(model, digits, start, lines, longest=3), strict=True):
        ids = [5, *digits.encode(line.partition("=")[0] + "=", add_special_tokens=False).ids]
        made = b""
        for _ in range(3):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            made += symbols[ids[-1]] or b"\n"
        assert found == made.partition(b"\n")[0].decode("utf-8", "replace")


def test_only_the_whole_sum_is_exact():
    assert numbers.exact(["12", "1", "12 ", ""], ["5+7=12"] * 4).tolist() == [1, 0, 0, 0]
