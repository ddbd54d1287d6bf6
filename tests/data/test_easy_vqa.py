"""easy-VQA: pictures and questions of both splits, kept in their order."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenarium.data import easy_vqa
from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)


def test_pictures_keep_their_numbers_and_questions_their_order(tmp_path):
    members = {}
    asked = [["what is the red shape?", "circle", 1], ["is there a red shape?", "no", 10]]
    for split in easy_vqa.SPLITS:
        folder = tmp_path / split
        folder.mkdir()
        for number in range(12):
            path = folder / f"{number}.png"
            Image.new("RGB", (64, 64), (number, 0, 255)).save(path)
            members[f"easy_vqa/data/{split}/images/{number}.png"] = path
        (folder / "questions.json").write_text(json.dumps(asked))
        members[f"easy_vqa/data/{split}/questions.json"] = folder / "questions.json"
    output = tmp_path / "data" / "easy-vqa"
    output.mkdir(parents=True)
    easy_vqa.DATASET.normalise(members, output)
    assert {path.name for path in output.iterdir()} == set(easy_vqa.DATASET.files)
    held = easy_vqa.load(tmp_path, "test")
    assert held.images.shape == (12, 64, 64, 3)
    assert held.images.dtype == np.uint8
    assert held.images[:, 5, 5, 0].tolist() == list(range(12))
    assert held.questions == tuple(map(tuple, asked))


def test_loading_names_the_mend_and_refuses_other_splits(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data easy-vqa"):
        easy_vqa.load(tmp_path, "test")
    with pytest.raises(ValueError, match="split"):
        easy_vqa.load(tmp_path, "validation")


def test_the_fetched_questions_have_13_answers_about_one_shape_each():
    try:
        held = easy_vqa.load(ROOT, "test")
    except TokenariumError as error:
        pytest.skip(str(error))
    assert held.images.shape == (1000, 64, 64, 3)
    assert len(held.questions) == 9673
    assert len({answer for _, answer, _ in held.questions}) == 13
    assert {index for _, _, index in held.questions} == set(range(1000))
