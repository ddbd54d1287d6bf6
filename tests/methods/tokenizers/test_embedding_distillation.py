"""The distillation: pairs say the same and keep to their split, tokenizers are trained on training pages alone."""

import json

import pytest

from tokenarium.data import text
from tokenarium.methods.tokenizers.experiments import embedding_distillation as experiment
from tokenarium.study.parameters import Parameters

PAGES = [f"page{number}" for number in range(40)]


@pytest.fixture
def root(tmp_path):
    """Forty pages of two paragraphs each; the second has no English, and one paragraph is the declaration's."""
    english = [(f"{page}#par1", f"english of {page}") for page in PAGES]
    text.write(tmp_path / "data" / "libreoffice-help", {"en-US": english})
    rows = [{"id": "udhr#preamble", "text": "insan hakları"}]
    for page in PAGES:
        rows += [{"id": f"{page}#par{part}", "text": f"türkçe {page} " + part * int(page[4:])} for part in "12"]
    folder = tmp_path / "data" / "turkish-text"
    folder.mkdir()
    (folder / "paragraphs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return tmp_path


def parameters(**changed):
    return Parameters({"data": "libreoffice-help", "shortest": 1, "longest": 99} | changed, "test")


def test_pairs_are_of_one_split_and_say_the_same(root):
    found = {split: experiment.find_pairs(root, split, parameters()) for split in text.SPLITS}
    assert sum(map(len, found.values())) == len(PAGES)
    assert found["train"]
    assert found["test"]
    for split, pairs in found.items():
        for english, turkish in pairs:
            page = english.removeprefix("english of ")
            assert turkish.startswith(f"türkçe {page} ")
            assert text.split_of(page) == split


def test_pairs_keep_to_the_lengths_of_the_turkish_side(root):
    pairs = experiment.find_pairs(root, "train", parameters(shortest=20, longest=30))
    assert pairs
    assert {len(turkish) for _, turkish in pairs} <= set(range(20, 31))


def test_tokenizers_are_trained_on_training_pages_alone_and_within_their_characters(root):
    everything = experiment._training_texts(root, 10**6)
    pages = {page for page in PAGES if text.split_of(page) == "train"}
    assert {line.split()[1] for line in everything if line.startswith("türkçe")} == pages
    some = experiment._training_texts(root, 200)
    assert some == everything[: len(some)]
    assert 0 < sum(map(len, some)) <= 200
