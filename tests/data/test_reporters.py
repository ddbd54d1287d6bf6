"""Citations: fetched whole, read by name, and as large as the package says."""

import json
from pathlib import Path

import pytest

from tokenarium.data import reporters
from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)


def test_every_file_is_kept_under_its_name(tmp_path):
    members = {}
    for name, digest in reporters.DATASET.packages[0].members.items():
        members[name] = tmp_path / Path(name).name
        members[name].write_text(json.dumps({Path(name).stem: []}), encoding="utf-8")
        assert len(digest) == 64
    output = tmp_path / "data" / "reporters"
    output.mkdir(parents=True)
    reporters.DATASET.normalise(members, output)
    assert {path.name for path in output.iterdir()} == set(reporters.DATASET.files)
    assert reporters.load(tmp_path) == {name: {name: []} for name in reporters.NAMES}


def test_loading_before_fetching_names_the_mend(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data reporters"):
        reporters.load(tmp_path)


def test_the_fetched_citations_have_variations():
    try:
        held = reporters.load(ROOT)
    except TokenariumError as error:
        pytest.skip(str(error))
    assert {name: len(found) for name, found in held.items()} == {
        "reporters": 1236,
        "laws": 371,
        "journals": 797,
        "case_name_abbreviations": 189,
    }
    assert "Marsh.A.K." in held["reporters"]["A.K. Marsh."][0]["variations"]
    assert held["case_name_abbreviations"]["Adver."] == ["Advertising"]
