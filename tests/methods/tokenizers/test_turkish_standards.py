"""Turkish standards: the published counting rule, the analyser, the hybrid tokenizer, the nulls and the statistics."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenarium.methods.tokenizers import turkish_standards as standards
from tokenarium.methods.tokenizers.turkish.analyser import Analyser
from tokenarium.methods.tokenizers.turkish.hybrid import Hybrid
from tokenarium.methods.tokenizers.turkish.letters import capitalised, lower

ROOTS = {"<uppercase>": 0, "<unknown>": 1, " ": 2, "ev": 3, "kitap": 4, "kitab": 4, "k": 5}
SUFFIXES = {"lar": 10, "ler": 10, "de": 11, "da": 11, "ı": 12}
BPE = {"evi": 20, "x": 21, "y": 22}
STRINGS = st.text(st.sampled_from("ab B\nç"), max_size=4)
PARAGRAPH = "bu evler bu evde bu kitap ve bu evler ile bu kitap"


@pytest.fixture(scope="module")
def analyser():
    return Analyser()


@pytest.fixture
def hybrid():
    return Hybrid(ROOTS, SUFFIXES, BPE)


def slow_standards(id_strings, whitelist, is_word, roots_of):
    turkish, asked = {}, []
    for string in id_strings:
        if string in whitelist:
            turkish[string] = True
    for string in id_strings:
        if string not in whitelist:
            for word in string.split():
                asked.append(word)
                turkish[word] = turkish.get(word, False) or is_word(word)
    pure = 0
    for key in turkish:
        pure += key in whitelist or any(key in roots_of(word) for word in asked)
    return len(turkish), sum(turkish.values()), pure


# The measure


@given(st.lists(STRINGS, max_size=12), st.sets(STRINGS, max_size=6), st.sets(STRINGS, max_size=6))
def test_the_counts_are_those_of_one_key_at_a_time(id_strings, whitelist, words):
    def roots_of(word):
        return {word[:1]} if word in words else set()

    found = standards.token_standards(id_strings, whitelist, words.__contains__, roots_of)
    unique, turkish, pure = slow_standards(id_strings, whitelist, words.__contains__, roots_of)
    assert (found["unique"], found["turkish"], found["pure"]) == (unique, turkish, pure)
    assert found["turkish_pct"] == (round(turkish / unique, 4) if unique else 0)


def test_shares_are_rounded_as_published():
    strings = [f"w{number}" for number in range(6383)]
    turkish, pure = set(strings[:3104]), set(strings[:2365])
    found = standards.token_standards(strings, set(), turkish.__contains__, lambda word: {word} & pure)
    assert found == {"unique": 6383, "turkish": 3104, "turkish_pct": 0.4863, "pure": 2365, "pure_pct": 0.3705}


def test_the_whitelist_sees_case_and_leading_blanks_and_the_oracle_does_not_see_blanks():
    found = standards.key_verdicts(["ev", " ev", "Ev", " kitap"], {"ev"}, {"kitap"}.__contains__, lambda word: set())
    assert found == {"Ev": (False, False), "ev": (True, True), "kitap": (True, False)}


def test_a_token_with_an_inner_blank_is_two_keys_and_a_blank_none():
    found = standards.key_verdicts(["bir iki", " ", "\n"], set(), lambda word: True, lambda word: set())
    assert set(found) == {"bir", "iki"}


def test_a_root_of_one_word_makes_another_pure():
    found = standards.key_verdicts(["ev", "evler"], set(), lambda word: True, lambda word: {"ev"} - {word})
    assert found["ev"].pure
    assert not found["evler"].pure


def test_no_strings_have_no_share():
    assert standards.token_standards([], set(), bool, lambda word: set())["turkish_pct"] == 0


def test_the_word_list_has_both_cases_and_no_markers():
    assert standards.word_list(["ev", "ısı", "<pad>", "special_7", "12"], ["im"]) == {
        *("ev", "Ev", "ısı", "Isı", "im", "İm")
    }


# Letters and analyser


def test_i_with_and_without_a_dot_keep_their_dot():
    assert lower("IRMAK İzmir") == "ırmak izmir"
    assert (capitalised("ırmak"), capitalised("izmir"), capitalised("")) == ("Irmak", "İzmir", "")


def test_the_analyser_cuts_words_into_surfaces_that_spell_them(analyser):
    assert ("kitap", "lar", "ımız", "dan") in analyser.segmentations("kitaplarımızdan")
    for word in ("kitabım", "gelebilirsiniz", "evde"):
        assert all("".join(surfaces) == word for surfaces in analyser.segmentations(word))
    assert analyser.is_word("İSTANBUL")
    assert not analyser.is_word("xqz")
    assert "kitap" in analyser.roots("Kitabım")


def test_independent_verdicts_follow_the_readings(analyser):
    independent = standards.Independent.of(analyser, ["evlerde"])
    assert {"ler", "de"} <= independent.suffixes
    assert independent.verdict("ler") == (True, True)
    assert independent.verdict("masa") == (True, True)
    assert independent.verdict("gelebilirsiniz") == (True, False)
    assert independent.verdict("gelebilirs") == (False, False)


# The hybrid tokenizer


@pytest.mark.parametrize(
    ("text", "surfaces"),
    [
        ("evlerde", ["ev", "ler", "de"]),  # a longer BPE token does not matter
        ("kitabı", ["kitab", "ı"]),
        ("Ev de", ["<uppercase>", "ev", " ", "de"]),
        ("evEv", ["ev", "<uppercase>", "ev"]),
        ("xqk", ["x", "<unknown>", "k"]),
        (" ev  ", [" ", "ev", " ", " "]),
        ("", []),
    ],
)
def test_the_longest_root_then_suffix_then_bpe_token_wins(hybrid, text, surfaces):
    assert [piece.surface for piece in hybrid.pieces(text)] == surfaces


@given(st.text(st.sampled_from("evkitaplr Iİxq"), max_size=20))
def test_pieces_cover_the_text_in_order(text):
    pieces = Hybrid(ROOTS, SUFFIXES, BPE).pieces(text)
    place = 0
    for piece in pieces:
        assert piece.start == place
        place = piece.end
        if not piece.surface.startswith("<"):
            assert lower(text[piece.start : piece.end]) == piece.surface
    assert place == len(text)


def test_an_id_stands_alone_for_its_first_surface(hybrid):
    used = standards.hybrid_usage(hybrid, ["kitabı evler"], ["evler"])
    assert used.alone == {"kitap": 1, "ı": 1, " ": 1, "ev": 1, "lar": 1}
    assert used.lettered == {"ev": 1, "kitab": 1, "ler": 1, "ı": 1}
    assert used.boundaries == {"evler": {2}}
    assert used.per_paragraph.tolist() == [5]


# Null tokenizers


@given(st.text(st.sampled_from("abc "), max_size=30), st.integers(0, 5))
@settings(deadline=None)
def test_random_merges_spell_the_text_but_for_surplus_blanks(text, seed):
    null = standards.RandomMerges(["abc abc ab cab", "ab"], num_merges=4, least=2, seed=seed)
    pieces = null(text)
    assert "".join(piece for piece, _ in pieces).split() == text.split()
    for piece, start in pieces:
        assert text.startswith(piece.lstrip(" ") or " ", start)


def test_random_merges_are_frequent_when_drawn_and_differ_by_seed():
    texts = [PARAGRAPH] * 3
    ranks = [standards.RandomMerges(texts, 5, 6, seed)._rank for seed in (0, 0, 1)]
    assert ranks[0] == ranks[1] != ranks[2]
    assert len(ranks[0]) == 5
    words = [[*word] for text in texts for word, _ in standards._blanked(text)]
    for pair in ranks[0]:
        assert sum(words[i][j : j + 2] == list(pair) for i in range(len(words)) for j in range(len(words[i]))) >= 6
        words = [standards._merge(word, pair) for word in words]
    assert standards.RandomMerges(texts, 5, 10**6, 0)._rank == {}


def test_whitespace_words_have_no_inner_boundaries_and_characters_all():
    for pieces, inside in ((standards.whitespace_words, set()), (standards.characters, {1, 2, 3})):
        assert standards.usage("null", 1, [PARAGRAPH], ["evde"], pieces).boundaries == {"evde": inside}


# Boundaries


def test_boundaries_are_compared_with_the_closest_reading():
    readings = [frozenset({2}), frozenset({2, 5}), frozenset()]
    assert standards.boundary_counts(frozenset({2, 5}), readings) == (2, 0, 0)
    assert standards.boundary_counts(frozenset({5}), readings) == (1, 0, 1)  # as near as no boundary, more right
    assert standards.boundary_counts(frozenset({1}), readings) == (0, 1, 0)
    with pytest.raises(ValueError, match="at least one reading"):
        standards.boundary_counts(frozenset(), [])


def test_boundaries_are_where_surfaces_after_the_first_begin():
    assert standards.boundaries_of(("kitap", "lar", "dan")) == {5, 8}
    assert standards.boundaries_of(("ev",)) == set()


@given(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)))
def test_precision_recall_and_f1_follow_their_definitions(counts):
    right, wrong, missed = counts
    precision = right / (right + wrong) if right else 0
    recall = right / (right + missed) if right else 0
    f1 = 2 * precision * recall / (precision + recall) if right else 0
    assert standards.precision_recall_f1(counts) == pytest.approx([precision, recall, f1])


# Statistics


def test_p_is_the_share_of_orders_as_extreme():
    x, y = np.random.default_rng(3).normal(size=(2, 5))
    r = abs(stats.pearsonr(x, y)[0])
    extreme = [abs(stats.pearsonr(x, order)[0]) >= r - 1e-12 for order in permutations(y)]
    assert standards.permutation_p(x, y) == pytest.approx(np.mean(extreme))
    with pytest.raises(ValueError, match="at most 9"):
        standards.permutation_p(range(10), range(10))


def test_four_pairs_in_perfect_order_are_not_significant():
    assert standards.permutation_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)


def test_leave_one_out_names_the_extremes():
    x, y = [1, 2, 3, 9], [2, 1, 3, 0]
    each = [stats.pearsonr(np.delete(x, i), np.delete(y, i))[0] for i in range(4)]
    assert standards.leave_one_out(x, y) == pytest.approx((min(each), max(each)))


def test_correlations_and_their_differences_have_intervals_around_them():
    x, y, z = np.random.default_rng(0).normal(size=(3, 8))
    one = standards.correlation_interval(x, y, resamples=500)
    assert one.value == pytest.approx(stats.pearsonr(x, y)[0])
    assert -1 <= one.low <= one.value <= one.high <= 1
    gap = standards.correlation_interval(x, y, minus=z, resamples=500)
    assert gap.value == pytest.approx(stats.pearsonr(x, y)[0] - stats.pearsonr(z, y)[0])
    assert standards.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    assert math.isnan(standards.pearson([1, 1], [1, 2]))


def test_a_lead_is_in_points_over_the_reference():
    others = [(10, 100), (30, 60), (2, 10)]
    assert standards.lead_over((90, 100), others, np.median).value == pytest.approx(70)
    assert standards.lead_over((90, 100), others, np.max).value == pytest.approx(40)
    lead = standards.lead_over((90, 100), [(30, 60)], np.max)
    half = 196 * math.sqrt(0.9 * 0.1 / 100 + 0.5 * 0.5 / 60)  # normal approximation, in points
    assert (lead.low, lead.high) == pytest.approx((40 - half, 40 + half), abs=2)


def test_the_published_table_is_whole():
    table = standards.published().set_index("model")
    assert table.mmlu.notna().sum() == 8
    assert table.params_billions.notna().sum() == 7
    assert set(table.index[table.notebook == 1]) == {"gemma-2", "aya-expanse", "llama-3.1", "Qwen2.5"}
    assert table.loc["gpt2", "tokens_per_character"] == pytest.approx(821_139 / 1_605_376)


# All of it


def test_a_score_counts_types_and_running_tokens(analyser, hybrid):
    independent = standards.Independent.of(analyser, ["evler"])
    gold = standards.gold_boundaries(analyser, ["evler", "xqz"])
    assert set(gold) == {"evler"}
    found = standards.score(standards.hybrid_usage(hybrid, ["evler ev x"], gold), {"ev"}, independent, gold)
    assert found.hits("independent", "turkish") == (2, 3)  # ev, ler; x is nothing
    assert found.running("pure") == pytest.approx(3 / 4)
    row = found.row(characters=10)
    assert row["F1"] == 1
    assert row["tokens/char"] == pytest.approx(6 / 10)
    assert row["type length"] == pytest.approx(2)


def test_frequent_words_are_counted_in_lower_case_only():
    assert standards.frequent_words(["bu ev, Bu ev9 bu", "ev bu"]) == ["bu", "ev"]


def test_every_token_counts_in_the_word_where_it_or_its_blank_begins():
    def pieces(text):
        return [(token, text.index(token)) for token in ("ev", "ler", " den", " ", "gel", "di")]

    assert standards.tokens_per_word(pieces, "evler den  geldi").tolist() == [2, 2, 0, 2]
    assert standards.tokens_per_word(standards.characters, "ab c").tolist() == [2, 2]
