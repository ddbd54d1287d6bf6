"""KL3M's tokenizers: custom tokens, room in the vocabulary, short tokens, and boundaries carried through errors."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.data import reporters
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, kl3m
from tokenarium.study.parameters import project_root

CITATIONS = {
    "reporters": {"A.K. Marsh.": [{"name": "Kentucky", "variations": {"Mar. Rep.": "A.K. Marsh."}}]},
    "laws": {"Ala. Laws": [{"name": "Alabama", "variations": ["Al. L"]}]},
    "journals": {"X": [{"name": "X", "variations": []}]},
    "names": {"Adver.": ["Advertising"]},
}
TEXTS = ["The licensee shall not remove the notice in 1066 or sell the licensed work. " * 8, "the other theatre " * 9]
WORDS = st.text("abc lrn5", min_size=1, max_size=40)


# Tokens per character


def test_tokens_per_char_sums_before_it_divides():
    assert kl3m.tokens_per_char(lambda text: [0] * len(text.split()), ["a b", "cccc", ""]) == 3 / 7


def test_tokens_per_char_counts_characters_and_not_bytes():
    assert kl3m.tokens_per_char(lambda text: list(text.encode()), ["é§"]) == 2


def test_tokens_per_char_of_nothing_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        kl3m.tokens_per_char(lambda _: [], [""])


# Custom tokens


def test_custom_tokens_are_sorted_unique_and_longer_than_a_character():
    found = kl3m.custom_tokens(**CITATIONS)
    assert found == sorted(set(found))
    assert min(map(len, found)) == 2


def test_custom_tokens_hold_every_group():
    found = set(kl3m.custom_tokens(**CITATIONS))
    assert {"A.K.", "Marsh.", "Mar.", "Rep.", "Ala.", "Laws", "Al.", "Adver.", "Advertising"} <= found
    assert not {"L", "X", "Kentucky", "Alabama"} & found
    assert {"1776", "2049", "10", "999", "(a)", "(Z)", "(99)", "(ii)", "(IX)"} <= found
    assert not {"1775", "2050", "9", "1000", "(i)", "(100)"} & (found - {"(i)"})
    assert {"  ", " " * 8, "\n\n", "\t\t", "----", "********", '{"', '":"', "<div", "</DIV>", " href="} <= found
    assert not {" " * 9, "-" * 9} & found


def test_lower_case_custom_tokens_have_no_capitals():
    found = kl3m.custom_tokens(**CITATIONS, lowercase=True)
    assert found == sorted({token.lower() for token in kl3m.custom_tokens(**CITATIONS)})


# Tokenizers


def test_there_are_thirteen_specials_in_the_published_order():
    assert len(kl3m.SPECIALS) == 13
    assert kl3m.SPECIALS[2:4] == ("<|pad|>", "<|unk|>")
    assert kl3m.SPECIALS[-1] == "<|/instruction|>"


@pytest.fixture(scope="module")
def trained():
    return bpe.train(TEXTS, 400)


def test_the_vocabulary_is_filled_to_its_size(trained):
    tokenizer = kl3m.domain_tokenizer(trained, 300, ["10", "shall"])
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 300
    assert kl3m.domain_tokenizer(trained, 300).get_vocab_size(with_added_tokens=True) == 300


def test_a_custom_token_splits_the_words_that_hold_it(trained):
    custom = kl3m.domain_tokenizer(trained, 300, ["10"]).encode("in 1066").tokens
    assert custom.index("10") < len(custom) - 1
    assert "10" not in kl3m.domain_tokenizer(trained, 300).encode("in 1066").tokens


def test_texts_are_normalised(trained):
    tokenizer = kl3m.domain_tokenizer(trained, 300)
    assert tokenizer.encode("ﬁne ①").ids == tokenizer.encode("fine 1").ids


def test_a_vocabulary_without_room_is_refused(trained):
    with pytest.raises(ValueError, match="no room for 13 specials, 40 custom tokens"):
        kl3m.domain_tokenizer(trained, 300, [f"{n}" for n in range(40)])


@pytest.mark.parametrize("max_chars", [2, 3, 4])
def test_character_tokens_are_as_long_as_allowed_and_no_longer(max_chars):
    found = kl3m.character_bpe(TEXTS, 400, max_chars)
    assert max(map(len, found.vocabulary)) == max_chars
    assert any(token.startswith(b" ") and len(token) == max_chars for token in found.vocabulary)


def test_character_tokens_are_those_of_training_that_refuses_longer_ones():
    words = bpe.count_words(TEXTS, bpe.gpt2_words())
    slow = bpe.train_words(words, 60, allowed=lambda token: len(token) <= 3)
    assert list(kl3m.character_bpe(TEXTS, 256 + 13 + 60, 3).merges) == slow


# Near-duplicates


def test_a_kept_text_shares_at_most_half_of_its_runs_with_what_was_seen():
    new = " ".join(f"new{n}" for n in range(40))
    half_old = " ".join([f"old{n}" for n in range(60)] + [f"other{n}" for n in range(12)])
    old = " ".join(f"old{n}" for n in range(60))
    assert kl3m.unseen([new, half_old, new + " more", old.upper()], [old]) == [0]


def test_the_order_of_what_was_seen_does_not_matter():
    texts = [" ".join(f"{(n * m) % 29}" for n in range(30)) for m in range(1, 9)]
    assert kl3m.unseen(texts[:4], texts[4:], length=3) == kl3m.unseen(texts[:4], texts[:3:-1], length=3)


def test_short_texts_are_compared_whole():
    assert kl3m.unseen(["a b c", "a b"], ["A  b c."]) == [1]


# Errors


def rebuilt(clean, noisy, edits):
    """The noisy text put together from the clean one and the edits alone."""
    parts, place = [], 0
    for edit in edits:
        assert place <= edit.start <= edit.end
        parts += [clean[place : edit.start], noisy[edit.noisy_start : edit.noisy_end]]
        assert sum(map(len, parts)) == edit.noisy_end
        place = edit.end
    return "".join([*parts, clean[place:]])


@settings(deadline=None)
@given(text=st.text("abc lrn5§S\nX", max_size=60), rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_edits_lead_from_the_clean_to_the_noisy_text(text, rate, seed):
    noisy, edits = kl3m.corrupt(text, rate, random.Random(seed))
    assert rebuilt(text, noisy, edits) == noisy
    assert all(text[e.start : e.end] != noisy[e.noisy_start : e.noisy_end] for e in edits)


def test_without_errors_nothing_changes():
    assert kl3m.corrupt("some text", 0, random.Random(0)) == ("some text", [])


def test_errors_come_at_their_rate_and_of_every_kind():
    text = "modern Section 50 called " * 400
    noisy, edits = kl3m.corrupt(text, 0.05, random.Random(0))
    assert 0.04 < len(edits) / len(text) < 0.06
    kinds = Counter((text[e.start : e.end], noisy[e.noisy_start : e.noisy_end]) for e in edits)
    for kind in [("rn", "m"), ("c", "e"), ("5", "S"), ("l", "1"), (" ", ""), ("", " "), ("al", "la"), ("", "d")]:
        assert kinds[kind], kind


def test_a_rate_above_one_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        kl3m.corrupt("text", 1.5, random.Random(0))


# Boundaries


def test_boundaries_are_where_tokens_start(trained):
    tokenizer = kl3m.domain_tokenizer(trained, 300)
    text = "the licensee's theatre shall"
    lengths = [len(bpe.from_characters(token)) for token in tokenizer.encode(text).tokens]
    assert kl3m.boundaries(tokenizer, text) == [sum(lengths[:n]) for n in range(1, len(lengths))]


def test_fixed_boundaries_restart_in_every_word():
    assert kl3m.fixed_boundaries("abcde fg hij", 2) == [2, 4, 5, 8, 11]


def test_random_boundaries_keep_the_blanks():
    text = "abc def ghi"
    assert kl3m.random_boundaries(text, 0, random.Random(0)) == [3, 7]
    assert kl3m.random_boundaries(text, 1, random.Random(0)) == [1, 2, 3, 5, 6, 7, 9, 10]


def every(text):
    return list(range(1, len(text)))


@settings(deadline=None)
@given(text=WORDS, seed=st.integers(0, 99), edges=st.booleans())
def test_single_characters_agree_where_no_character_came_or_went(text, seed, edges):
    noisy, edits = kl3m.corrupt(text, 0.3, random.Random(seed))
    edits_keep_length = all(e.end - e.start == e.noisy_end - e.noisy_start for e in edits)
    found = kl3m.compare(text, noisy, edits, every(text), every(noisy), edges)
    if edits_keep_length:
        assert found.missing == found.added == 0
    # A character that came adds one boundary, one that went takes one.
    assert found.added <= sum(max(0, e.noisy_end - e.noisy_start - e.end + e.start) for e in edits) * 2
    assert found.changed <= 2 * len(edits)


@settings(deadline=None)
@given(text=WORDS, seed=st.integers(0, 99), every_nth=st.integers(1, 4))
def test_every_boundary_of_a_hit_word_is_matched_missing_or_added(text, seed, every_nth):
    noisy, edits = kl3m.corrupt(text, 0.3, random.Random(seed))
    cuts, noisy_cuts = every(text)[::every_nth], every(noisy)[::2]
    found = kl3m.compare(text, noisy, edits, cuts, noisy_cuts, False)
    assert found.matched + found.missing == sum(len(clean) for _, _, clean, _ in found.positions)
    assert found.matched + found.added == sum(len(carried) for *_, carried in found.positions)
    assert found.errors == len(edits)


def test_a_word_without_errors_does_not_count():
    found = kl3m.compare("ab cd", "ab xd", [kl3m.Edit(3, 4, 3, 4)], [1, 2, 4], [2, 4], False)
    assert (found.matched, found.missing, found.added) == (1, 0, 0)
    assert found.positions == [(2, 5, [4], [4])]


@pytest.mark.parametrize(
    ("clean", "noisy", "edit", "cuts", "noisy_cuts", "expected"),
    [
        ("abcd", "abxcd", (2, 2, 2, 3), [2], [2], (1, 0, 0)),  # before what came in
        ("abcd", "abxcd", (2, 2, 2, 3), [2], [3], (1, 0, 0)),  # behind it
        ("abcd", "abxcd", (2, 2, 2, 3), [2], [2, 3], (1, 0, 1)),  # on both sides
        ("abcd", "acd", (1, 2, 1, 1), [2], [1], (1, 0, 0)),  # behind what went
        ("abcd", "acd", (1, 2, 1, 1), [1, 2], [1], (1, 1, 0)),  # two that fell together
        ("arnd", "amd", (1, 3, 1, 2), [2], [], (0, 1, 0)),  # inside what became one
        ("amd", "arnd", (1, 2, 1, 3), [], [2], (0, 0, 1)),  # inside what became two
        ("abcd", "acbd", (1, 3, 1, 3), [2], [2], (1, 0, 0)),  # between what changed places
    ],
)
def test_boundaries_are_carried_over_by_the_edit(clean, noisy, edit, cuts, noisy_cuts, expected):
    found = kl3m.compare(clean, noisy, [kl3m.Edit(*edit)], cuts, noisy_cuts, False)
    assert (found.matched, found.missing, found.added) == expected


def test_changed_tokens_are_counted_between_those_that_stay():
    # the|re|mit -> the|r|e|nit: one put in, two others
    found = kl3m.compare("theremit", "therenit", [kl3m.Edit(5, 6, 5, 6)], [3, 5], [3, 4, 5], False)
    assert found.changed == 3
    same = kl3m.compare("theremit", "theremit", [], [3, 5], [3, 5], False)
    assert (same.changed, same.errors, same.positions) == (0, 0, [])


def test_tokens_beside_what_came_in_stay():
    # ab|cd -> ab|x|cd
    found = kl3m.compare("abcd", "abxcd", [kl3m.Edit(2, 2, 2, 3)], [2], [2, 3], False)
    assert found.changed == 1


def test_the_real_citations_give_pieces_of_every_table():
    root = project_root(Path(__file__).parent)
    try:
        held = reporters.load(root)
    except TokenariumError as error:
        pytest.skip(str(error))
    found = kl3m.custom_tokens(*(held[name] for name in ("reporters", "laws", "journals", "case_name_abbreviations")))
    assert {"U.S.", "F.", "Pub.L.", "Rev.", "Int'l", "International", "of", "and"} <= set(found)
    assert found == sorted(set(found))
    assert 5000 < len(found) < 6000
