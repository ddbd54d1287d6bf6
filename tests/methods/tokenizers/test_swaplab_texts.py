"""Texts of the transplants: evaluation and pool share no document, and sizes are kept."""

from pathlib import Path

import pytest

from tokenarium.data.text import split_of
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import swaplab_texts
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)
ROWS = [
    {"id": f"page{page}#{part}", "text": f"page {page} part {part} " + "x" * page}
    for part in (0, 1)
    for page in range(60)
]


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(swaplab_texts, "_ROWS", {"pages": lambda root: ROWS})
    return lambda *sizes, **options: swaplab_texts.texts("root", *sizes, names=["pages"], **options)


def pages(text):
    return {line.split()[1] for line in text.split("\n") if line}


def test_evaluation_texts_come_from_test_documents_and_the_pool_from_others(made):
    found = made(10**6, 10**6)
    tested = {str(page) for page in range(60) if split_of(f"page{page}") == "test"}
    assert pages(found.evaluation["pages"]) == tested
    assert set().union(*map(pages, found.pool["pages"])) == {str(page) for page in range(60)} - tested


@pytest.mark.parametrize("size", [40, 150, 400])
def test_sizes_are_kept_and_lines_stay_whole(made, size):
    found = made(size, size)
    assert 0 < len(found.evaluation["pages"].encode()) <= size
    assert sum(len(text.encode()) for text in found.pool["pages"]) <= size
    lines = {row["text"] for row in ROWS}
    assert {line for line in found.evaluation["pages"].split("\n") if line} <= lines


def test_the_seed_draws_the_documents(made):
    assert made(150) == made(150)
    assert len({made(60, seed=seed).evaluation["pages"] for seed in range(8)}) > 1


@pytest.mark.parametrize("name", swaplab_texts.NAMES)
def test_every_text_has_the_size_asked_for(name):
    try:
        found = swaplab_texts.texts(ROOT, 6000, 20000, names=[name])
    except TokenariumError as error:
        pytest.skip(str(error))
    assert 4500 <= len(found.evaluation[name].encode()) <= 6000
    assert 10000 <= sum(len(text.encode()) for text in found.pool[name]) <= 20000
