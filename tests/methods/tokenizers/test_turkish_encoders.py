"""Encoders for models of Turkish: ids stay below the rows, controls keep what they should keep."""

from collections import Counter

import pytest

from tokenarium.methods.tokenizers import turkish_encoders as encoders
from tokenarium.methods.tokenizers.turkish.hybrid import Hybrid

DICTIONARIES = {
    "roots": {"<uppercase>": 0, "<unknown>": 1, " ": 2, "\n": 3, "\t": 4, "ev": 5, "kitap": 6, "kitab": 6},
    "suffixes": {"lar": 7, "ler": 7, "ı": 8},
    "bpe": {"k": 9, "x": 10},
}
TEXTS = ["kitaplar ve evler", "evler kitabı", "Kitap evi ve ev kitabı evlerde kitaplarda", "dört ev beş kitap"] * 3
NAMES = ["hybrid", "hybrid-no-sharing", "characters", "bpe-280", "unigram-40"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_stay_below_the_rows_also_on_unseen_text(name):
    encoder = encoders.open_encoder(name, TEXTS, DICTIONARIES)
    for text in [*TEXTS, "Ğ€xq 漢"]:
        ids = encoder.encode(text)
        assert ids
        assert all(0 <= index < encoder.rows for index in ids)


@pytest.mark.parametrize("name", ["wordpiece-40", "bpe", "unigram-many", "hybrid-1"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"no tokenizer is named '{name}'"):
        encoders.open_encoder(name, TEXTS, DICTIONARIES)


def test_the_hybrid_tokenizer_shares_ids_and_its_control_does_not():
    shared, own = (encoders.open_encoder(name, TEXTS, DICTIONARIES) for name in NAMES[:2])
    assert shared.encode("kitapler") == [6, 7]
    assert shared.encode("kitablar") == [6, 7]
    assert len({*own.encode("kitapler"), *own.encode("kitablar")}) == 4
    assert own.rows == sum(map(len, DICTIONARIES.values()))
    assert own.encode("Ev q")[0] == 0
    assert own.encode("q") == [1]


def test_trained_tokenizers_keep_to_their_size_and_repeat():
    for name, size in (("bpe-280", 280), ("unigram-40", 40)):
        first, second = (encoders.trained(name, TEXTS) for _ in range(2))
        assert first.get_vocab_size() <= size
        assert [first.encode(text).tokens for text in TEXTS] == [second.encode(text).tokens for text in TEXTS]


def test_characters_have_an_id_each_and_one_for_the_unknown():
    encoder = encoders.open_encoder("characters", ["ab"], DICTIONARIES)
    assert (encoder.rows, encoder.encode("aba?")) == (3, [1, 2, 1, 0])


def test_random_dictionaries_keep_lengths_and_markers_and_draw_from_the_words():
    hybrid = Hybrid(*DICTIONARIES.values())
    words = ["abcdefgh", "ıjklmnop", "rstuvyz"]
    found = encoders.random_dictionaries(hybrid, words, seed=0)
    for drawn, original in zip((found.roots, found.suffixes, found.bpe), DICTIONARIES.values(), strict=True):
        lengths = [Counter(len(key) for key in table if key not in encoders.MARKERS) for table in (drawn, original)]
        assert lengths[0] == lengths[1]
        assert all(any(key in word for word in words) for key in drawn if key not in encoders.MARKERS)
    ids = [*found.roots.values(), *found.suffixes.values(), *found.bpe.values()]
    assert ids == list(range(len(ids)))
    assert [piece.surface for piece in found.pieces("? ")] == ["<unknown>", " "]
    again, other = (encoders.random_dictionaries(hybrid, words, seed) for seed in (0, 1))
    assert (again.roots, again.bpe) == (found.roots, found.bpe)
    assert other.roots != found.roots
