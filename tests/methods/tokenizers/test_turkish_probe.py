"""The probe: labels where all readings agree, roots on one side, and an accuracy in which classes count alike."""

import numpy as np
import pytest

from tokenarium.methods.tokenizers import turkish_probe as probe


@pytest.fixture(scope="module")
def tagger():
    return probe.Tagger()


@pytest.mark.parametrize(
    ("word", "number", "case"),
    [
        ("kitaplarda", "A3pl", "Loc"),
        ("belgeye", "A3sg", "Dat"),
        ("belgeden", "A3sg", "Abl"),
        ("belgenin", "A3sg", "Gen"),
        ("pencerelere", "A3pl", "Dat"),
        ("belge", "A3sg", "Nom"),
    ],
)
def test_number_and_case_of_plain_nouns(tagger, word, number, case):
    assert tagger.noun(word)[:3] == (word, number, case)


@pytest.mark.parametrize("word", ["geldim", "evin", "ayarları", "kullanılan", "xqzt"])
def test_verbs_adjectives_and_words_of_two_readings_are_left_out(tagger, word):
    assert tagger.noun(word) is None


def test_forms_of_a_root_are_on_the_same_side(tagger):
    sides = [
        {tagger.noun(root + ending).held_out for ending in ("den", "ye", "lerde")} for root in ("belge", "pencere")
    ]
    assert all(len(side) == 1 for side in sides)


def test_nouns_come_in_the_order_of_the_words_and_no_more_than_wanted(tagger):
    words = ["geldim", "kitaplarda", "belgeye", "belgeden"]
    assert [noun.word for noun in probe.nouns(tagger, words, 2)] == ["kitaplarda", "belgeye"]
    assert [noun.word for noun in probe.nouns(tagger, words, 9)] == words[1:]


def test_separable_classes_are_told_apart_and_noise_is_not():
    generator = np.random.default_rng(0)
    labels = ["a", "b", "c", "c"] * 100
    held_out = np.arange(400) % 10 < 4
    noise = generator.normal(size=(400, 5))
    states = noise + 20 * np.array([["abc".index(label)] * 5 for label in labels])
    assert probe.balanced_accuracy(states, labels, held_out, 5) == 1
    assert probe.balanced_accuracy(noise, labels, held_out, 5) == pytest.approx(1 / 3, abs=0.12)


def test_classes_that_are_rare_on_a_side_are_left_out():
    labels = ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    held_out = [True, True, False, False, False, False] * 2 + [True, False, False, False, False, False]
    assert probe.classes_of(labels, held_out, 2) == ["a", "b"]
    assert probe.classes_of(labels, held_out, 1) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="found 0"):
        probe.balanced_accuracy(np.zeros((18, 2)), labels, held_out, 5)
