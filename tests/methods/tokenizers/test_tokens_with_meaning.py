"""Tokens with meaning: parity with the package, the choice among forms, what does not come back, the statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenarium.methods.tokenizers import tokens_with_meaning as meaning
from tokenarium.methods.tokenizers.turkish.hybrid import Hybrid
from tokenarium.methods.tokenizers.turkish_encoders import unshared

LETTERS = "abcçdeğhıiklmnoöprsştuüvyzâABÇEIİÖŞÜ"
TEXTS = st.text(st.sampled_from(LETTERS + " \n\t.,9'€ßẞ\u0307"), max_size=24)

# Ids are those of the package, because the decoder goes by them.
ROOTS = {"<uppercase>": 0, "<unknown>": 1, " ": 2, "\n": 3, "kitap": 150, "kitab": 150, "izle": 2305, "izli": 2305}
ROOTS |= {"ev": 3000, "baba": 3001, "okul": 3002, "göz": 3003, "saat": 3004, "sokak": 3005}
FORMS = {
    20000: "lar ler",
    20013: "ım im um üm",
    20023: "la le yla yle",
    20024: "da de ta te",
    20026: "dı di du dü tı ti tu tü",
    20029: "lık lik luk lük lığ liğ luğ lüğ",
    20030: "cık cik cuk cük çık çik çuk çük cığ ciğ cuğ cüğ çığ çiğ çuğ çüğ",
    20031: "mak mek may mey",
    20032: "acak ecek acağ eceğ yacak yecek yacağ yeceğ",
    20034: "ı",
    20037: "a",
    20041: "yor",
}
SUFFIXES = {form: index for index, forms in FORMS.items() for form in forms.split()}
REVERSE = meaning.surfaces_by_id(ROOTS, SUFFIXES, {"x": 20300})


@pytest.fixture(scope="module")
def package():
    """The authors' tokenizer."""
    import turkish_tokenizer

    return turkish_tokenizer.TurkishTokenizer()


@pytest.fixture(scope="module")
def hybrid(package):
    return Hybrid(package.roots, package.suffixes, package.bpe_tokens)


# Parity with the package


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_text_is_encoded_as_by_the_package(package, text):
    found = meaning.hybrid_encode(text, package.roots, package.suffixes, package.bpe_tokens)
    assert found == package.encode(text)


def test_ids_are_decoded_as_by_the_package_in_every_neighbourhood(package, hybrid):
    """Ids of every group in random order, those whose form is chosen and those that the choice looks at more often."""
    reverse = meaning.surfaces_by_id(hybrid.roots, hybrid.suffixes, hybrid.bpe)
    generator = np.random.default_rng(0)
    groups = [range(100), range(100, 2400), range(2400, 20000), range(20000, 20045), range(20000, 20256)]
    groups += [range(20256, 32768), [2, 2, 3, 4, 0]]
    for _ in range(8_000):
        chosen = generator.integers(len(groups), size=generator.integers(1, 7))
        ids = [int(generator.choice(groups[group])) for group in chosen]
        assert meaning.hybrid_decode(ids, reverse) == package.decode(ids), ids


# The choice among forms


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([3000, 20000], "evler"),
        ([3001, 20000, 20013], "babalarım"),
        ([3003, 20013], "gözüm"),
        ([3002, 20013], "okulum"),
        ([3004, 20000], "saatler"),  # against the harmony
        ([3004, 20013], "saatım"),  # the exception is not known four ways
        ([3005, 20024], "sokakta"),
        ([3001, 20024], "babada"),
        ([3005, 20026], "sokaktı"),
        ([3001, 20023], "babayla"),
        ([3001, 20023, 2, 3000], "babayla ev"),
        ([3001, 20023, 3000], "babalaev"),
        ([3000, 20032, 20037], "eveceğa"),
        ([3001, 20032], "babayacak"),
        ([3000, 20029, 20037], "evliğa"),
        ([3000, 20029], "evlık"),  # the first surface at the end of a text
        ([3000, 20031, 2], "evmek "),
        ([3005, 20030, 20037], "sokakçığa"),
        ([150, 20037], "kitaba"),
        ([150, 20000], "kitaplar"),
        ([150], "kitap"),
        ([2305, 20041], "izliyor"),
        ([2305, 20037], "izlea"),
        ([0, 3000, 20000], "Evlar"),  # a capital is no vowel
        ([0, 150, 20037], "Kitapa"),
        ([3000, 2, 20000], "ev ler"),  # blanks are looked over
        ([1, 20300], "▁u▁x"),
        ([99_999], "▁"),
        ([0], "<uppercase>"),
        ([], ""),
    ],
)
def test_forms_follow_what_stands_around_them(ids, text):
    assert meaning.hybrid_decode(ids, REVERSE) == text


@given(st.lists(st.sampled_from([*REVERSE, 99_999]), max_size=8))
def test_there_is_a_piece_for_each_id_and_it_is_one_of_its_surfaces(ids):
    pieces = meaning.decoded_pieces(ids, REVERSE)
    assert len(pieces) == len(ids)
    for index, piece in zip(ids, pieces, strict=True):
        known = [*REVERSE.get(index, []), meaning.UNKNOWN_TEXT, meaning.NO_SURFACE, ""]
        assert piece in known or piece == REVERSE[index][0].capitalize()


def test_kinds_follow_the_ranges_of_ids():
    assert [meaning.kind(index) for index in (0, 19_999, 20_000, 20_255, 20_256)] == [
        *("ROOT", "ROOT", "SUFFIX", "SUFFIX", "BPE")
    ]


# Round trips


def test_a_round_trip_names_the_token_that_printed_something_else():
    hybrid = Hybrid(ROOTS, SUFFIXES, {"x": 20300})
    texts = ["evler", "evlik", "kitaba", "Kitaba", "q", "ev\n"]
    found = meaning.round_trip(hybrid, texts)
    assert found.exact.tolist() == [True, False, True, False, False, True]
    assert found.wrong == {20029: 1, 150: 1, 1: 1}
    assert found.example[20029] == ("evlik", "evlık")
    assert found.share.value == 50
    z, share = 1.959964, 0.5
    half = z * (share * (1 - share) / 6 + z**2 / 144) ** 0.5 / (1 + z**2 / 6)  # Wilson's, around 1/2
    assert (found.share.low, found.share.high) == pytest.approx((50 - 100 * half, 50 + 100 * half), abs=1e-3)


@given(st.lists(st.sampled_from([*ROOTS, *SUFFIXES, "x"]), max_size=6))
def test_without_sharing_lower_case_comes_back(surfaces):
    text = "".join(surface for surface in surfaces if "<" not in surface)
    hybrid = unshared(Hybrid(ROOTS, SUFFIXES, {letter: 20300 + index for index, letter in enumerate(text)}))
    if all(part.strip() for part in text.split(" ")):  # a part of white space alone is dropped
        assert meaning.round_trip(hybrid, [text]).exact.all()


def test_a_line_break_between_blanks_is_lost_as_in_the_package(package):
    assert package.decode(package.encode("ev \n ev")) == "ev  ev"
    assert not meaning.round_trip(Hybrid(ROOTS, SUFFIXES, {}), ["ev \n ev"]).exact.any()


def test_the_surface_that_a_token_was_found_by_is_counted_within_its_id():
    hybrid = Hybrid(ROOTS, SUFFIXES, {})
    assert meaning.chosen_surfaces(hybrid, hybrid.pieces("kitabım evde")).tolist() == [1, 0, 0, 0, 1]


# Distilled embeddings


def test_a_query_is_retrieved_if_its_own_target_is_the_nearest():
    student, teacher = np.random.default_rng(0).normal(size=(2, 40, 6))
    student += teacher
    slow = []
    for index, query in enumerate(student):
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in teacher]
        slow.append(max(range(40), key=cosines.__getitem__) == index)
    found = meaning.retrieved(student, teacher)
    assert found.tolist() == slow
    assert 0 < found.mean() < 1
    assert meaning.retrieved(3 * teacher, teacher).all()


def test_agreement_ranks_the_cosines_of_all_pairs():
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 3))
    cosines = [
        [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(each) for b in each[i + 1 :]]
        for each in (student, teacher)
    ]
    assert meaning.similarity_agreement(student, teacher) == pytest.approx(stats.spearmanr(*cosines)[0])
    assert meaning.similarity_agreement(2 * teacher, teacher) == pytest.approx(1)


def test_the_crossed_interval_is_wider_than_one_over_queries_where_seeds_differ():
    noise = np.random.default_rng(2).normal(size=(3, 200))
    same, apart = noise + 1, noise + np.array([[0], [1], [2]])
    narrow, wide = (meaning.crossed_interval(each, 2000) for each in (same, apart))
    assert narrow.value == pytest.approx(same.mean())
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert meaning.crossed_interval(np.ones((3, 5)), 100).low == 1
