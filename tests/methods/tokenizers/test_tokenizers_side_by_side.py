"""The arena of tokenizers: counts, premiums and ranking of tokenizers small enough to be counted by hand."""

import numpy as np
import pandas as pd
import pytest

from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, premiums, side_by_side

ENGLISH = ["the cat sat", "the dog sat on the mat", "a cat"]
TEXTS = side_by_side.Texts(
    {"en-US": ENGLISH, "el": ["η γάτα κάθισε", "ο σκύλος κάθισε στο χαλί", "μια γάτα"]},
    {"eng": ["the right to rest", "all"], "ell": ["το δικαίωμα", "όλοι"]},
    {"code": ["def f(x):\n    return x", "import os"], "legal": ["the licence", "as is"]},
)
BYTES = bpe.Bpe((), bpe.gpt2_words())
ENGLISH_BPE = bpe.train(ENGLISH * 3, 290)


@pytest.fixture(scope="module")
def entries():
    return [
        side_by_side.enter("bytes", BYTES.tokenizer(), TEXTS),
        side_by_side.enter("English BPE", ENGLISH_BPE.tokenizer(), TEXTS),
    ]


def test_a_tokenizer_of_bytes_has_the_byte_premium_and_one_token_per_byte(entries):
    found = entries[0]
    assert found.premiums["el"] == pytest.approx(premiums.byte_premium(TEXTS.help["el"], ENGLISH))
    assert found.declaration_premiums["ell"] == pytest.approx(
        len("το δικαίωμαόλοι".encode()) / len("the right to restall")
    )
    assert found.premiums["en-US"] == found.declaration_premiums["eng"] == 1
    for name, lines in TEXTS.others.items():
        interval = side_by_side.tokens_per_byte(found.others[name], lines, resamples=50)
        assert (interval.low, interval.value, interval.high) == (1, 1, 1)


def test_a_tokenizer_trained_on_english_is_dearer_for_others_than_bytes_are(entries):
    assert entries[1].premiums["el"] > entries[0].premiums["el"]


def test_the_field_names_the_language_that_costs_most(entries):
    three = [
        side_by_side.Entry(
            each.name,
            each.vocabulary,
            each.help | {"km": each.help["el"] * 3},
            each.declarations | {"khm": 10**6},
            each.others,
        )
        for each in entries
    ]
    table = side_by_side.field_table(three, TEXTS, resamples=50).set_index("tokenizer")
    assert table.loc["bytes", "of"] == "Khmer"
    assert table.loc["bytes", "largest"] == pytest.approx(3 * entries[0].premiums["el"])
    assert table.loc["bytes", "mean premium"] == pytest.approx(2 * entries[0].premiums["el"])
    assert table.loc["bytes", "vocabulary"] == 256
    assert table.loc["bytes", "declarations, above 2"] == pytest.approx(1 / 3)


def test_the_ranking_puts_fewer_tokens_first_and_leads_are_differences(entries):
    table = side_by_side.ranking(entries, resamples=200)
    assert table.tokenizer.tolist() == ["English BPE", "bytes"]
    means = table["tokens per paragraph"]
    assert means[1] == pytest.approx(np.mean([[len(x.encode()) for x in lines] for lines in TEXTS.help.values()]))
    assert table["to next"][0] == pytest.approx(means[0] - means[1])
    assert table.settled[0] == "yes"
    assert pd.isna(table.settled[1])


def test_pieces_join_to_the_text_and_show_the_bytes_of_broken_characters():
    assert "".join(side_by_side.pieces(ENGLISH_BPE.tokenizer(), "the cat")) == "the cat"
    assert side_by_side.pieces(BYTES.tokenizer(), "aé") == ["a", "<C3>", "<A9>"]


def test_a_missing_study_of_turkish_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="run `dvc repro paper@turkish-standards`"):
        side_by_side.turkish_table(tmp_path, ["gpt2"])


def test_the_turkish_table_keeps_those_that_entered_the_best_boundaries_first(tmp_path):
    path = tmp_path / side_by_side.TURKISH
    path.parent.mkdir(parents=True)
    path.write_text(
        "tokenizer,tokens/char,%TR independent,%Pure independent,F1\na,1,2,3,0.1\nb,1,2,3,0.3\nc,1,2,3,0.2\n"
    )
    assert side_by_side.turkish_table(tmp_path, ["a", "b", "unknown"]).tokenizer.tolist() == ["b", "a"]


def test_decomposed_declarations_are_composed(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side.libreoffice_help, "parallel", lambda root, languages: {"en-US": ["a"]})
    monkeypatch.setattr(side_by_side.udhr, "manifest", lambda root: {"eng": {}, "vie": {}})
    monkeypatch.setattr(side_by_side.udhr, "parallel", lambda root, codes: {code: ["e\u0323\u0302"] for code in codes})
    for module in (side_by_side.python_source, side_by_side.licences):
        monkeypatch.setattr(module, "load", lambda root, split: [{"text": "a"}])
    texts = side_by_side.open_texts(tmp_path, ["en-US"], 1, 2, 1)
    assert texts.declarations == {"eng": ["\u1ec7"], "vie": ["\u1ec7"]}


def test_every_language_of_the_help_has_a_name():
    from tokenarium.data.libreoffice_help import _DIGESTS

    assert set(side_by_side.LANGUAGES) == set(_DIGESTS)
