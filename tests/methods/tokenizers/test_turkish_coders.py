"""Coders for small models: what they lose is known, what they cut joins again, and lost words have a price."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.methods.tokenizers import turkish_coders as coders

LINES = [
    "evler ve kitaplar güzel, evlerde kitaplar var",
    "kitaplarda evler yok; (evler) 12 kitap",
    "güzel evlerde güzel kitaplar okunur.",
]
DICTIONARIES = {
    "roots": {"<uppercase>": 0, "<unknown>": 1, " ": 2, "ev": 3, "kitap": 4},
    "suffixes": {"lar": 20000, "ler": 20000},
    "bpe": {letter: 20256 + place for place, letter in enumerate("abcçdegiklnoprtuüvyz.,;()12")},
}
NAMES = ["bpe-300", "unigram-60", "wordpiece-60", "characters", "random-60", "hybrid"]


@pytest.fixture(scope="module", params=NAMES)
def coder(request):
    return coders.open_coder(request.param, LINES, DICTIONARIES, least=2, seed=0)


texts = st.text("evlrkitap güz,", min_size=1, max_size=30)


# All of them


def test_ids_of_the_training_lines_have_rows_and_leave_the_start_alone(coder):
    ids = {index for line in LINES for index in coder.encode(line)}
    assert coders.START not in ids
    assert max(ids) < coder.rows
    assert len(set(coder.tokens)) == len(coder.tokens) == coder.rows - coders.FIRST


def test_no_word_of_these_training_lines_is_lost(coder):
    assert not any(coder.lost(line).any() for line in LINES)


def test_every_word_gets_a_verdict(coder):
    for text in ("ev", "", " ", "ev  kitap ", *LINES):
        assert coder.lost(text).shape == (len(text.split(" ")),)


@pytest.mark.parametrize("name", ["unigram-60", "wordpiece-60", "characters", "random-60"])
def test_words_with_a_letter_unknown_in_training_are_lost(name):
    coder = coders.open_coder(name, LINES, DICTIONARIES, least=2, seed=0)
    assert coder.lost("ev qev kitap xx").tolist() == [False, True, False, True]
    assert coders.UNKNOWN in coder.encode("xx")


def test_a_coder_of_bytes_loses_nothing():
    coder = coders.open_coder("bpe-300", LINES, DICTIONARIES, least=2, seed=0)
    assert not coder.lost("γ 国 ev qq").any()
    assert coders.UNKNOWN not in coder.encode("γ 国")


def test_the_hybrid_coder_loses_a_form_that_its_decoder_prints_otherwise():
    coder = coders.open_coder("hybrid", ["ev kitaplar evler evlar"], DICTIONARIES, least=2, seed=0)
    assert coder.lost("kitaplar evler evlar kitapler").tolist() == [False, False, True, True]


def test_the_hybrid_coder_has_rows_for_what_the_lines_use_and_loses_the_rest():
    coder = coders.open_coder("hybrid", ["ev evler"], DICTIONARIES, least=2, seed=0)
    assert sorted(coder.tokens) == [2, 3, 20000]
    assert coder.lost("ev kitap").tolist() == [False, True]
    assert coder.encode("ev kitap")[-1] == coders.UNKNOWN
    assert coder.shown(4) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("name", ["wordpiece", "random-", "bpe", "sentencepiece-100"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=name):
        coders.open_coder(name, LINES, DICTIONARIES, least=2, seed=0)


# WordPiece


@given(texts)
def test_pieces_join_to_the_text_and_begin_where_they_say(text):
    model = coders.WordPiece(LINES, 60)
    pieces = model(text)
    assert "".join(piece for piece, _ in pieces) == text
    for piece, place in pieces:
        bare = piece[1:] if len(piece) > 1 and piece[0] == " " else piece
        assert text[place : place + len(bare)] == bare


def test_each_piece_is_the_longest_known_one():
    model = coders.WordPiece(LINES, 60)
    word = " kitaplarda"
    for piece, _ in model(word):
        longer = [word[: len(piece) + more] for more in range(1, len(word))]
        assert not {each for each in longer if len(each) > len(piece)} & set(model.tokens)
        word = word.removeprefix(piece)


def test_training_twice_gives_the_same_vocabulary_of_the_wanted_size():
    one, other = coders.WordPiece(LINES, 60), coders.WordPiece(LINES[::-1], 60)
    assert one.tokens == other.tokens
    assert len(one.tokens) == 60
    assert set("".join(LINES)) <= set(one.tokens)


def test_no_piece_reaches_over_a_blank_or_a_mark():
    for token in coders.WordPiece(LINES, 200).tokens:
        assert " " not in token[1:]
        assert not set(",;()") & set(token.lstrip()) or len(token.lstrip()) == 1


# Escape


def test_a_line_costs_a_flag_for_each_word_and_the_letters_of_those_lost():
    escape = coders.Escape(["ab b", "b"], lambda line: np.array([word == "ab" for word in line.split(" ")]))
    # One word of three is lost. Letters: a, three b and three ends, one more for each kind, and one for all others.
    yes, no = -math.log2(1.5 / 4), -math.log2(2.5 / 4)
    share = {"a": 2 / 11, "b": 4 / 11, "\n": 4 / 11}
    spelled = -sum(math.log2(share[letter]) for letter in "ab\n")
    bits, lost = escape.bits("b ab b")
    assert lost == 1
    assert bits == pytest.approx(2 * no + yes + spelled)


def test_letters_that_the_lines_lack_can_be_spelled_and_all_shares_leave_room_for_them():
    escape = coders.Escape(["ab"], lambda line: np.ones(line.count(" ") + 1, dtype=bool))
    known = sum(2.0**-bits for bits in escape._bits.values())
    assert known < 1
    unseen = escape.bits("γ")[0] - escape.flag_bits[True] - escape._bits["\n"]
    assert unseen == pytest.approx(coders.UNSEEN_BITS - math.log2(1 - known))


# Lines

words = st.text("abc", min_size=0, max_size=12)


@settings(max_examples=50)
@given(st.lists(st.lists(words, min_size=1, max_size=12).map(" ".join), max_size=4), st.integers(1, 20))
def test_lines_hold_all_words_in_order_and_keep_to_their_length(paragraphs, longest):
    lines = coders.cut(paragraphs, longest)
    assert " ".join(lines) == " ".join(paragraphs)
    assert all(len(line) <= longest or " " not in line for line in lines)


def test_the_first_bytes_end_before_the_line_that_is_too_much():
    assert coders.first_bytes(["aa", "ç", "b"], 4) == ["aa", "ç"]
    assert coders.first_bytes(["aa", "ç", "b"], 3) == ["aa"]
    assert coders.first_bytes(["aa"], 1) == []
