"""A paper that is begun: four files from its names, which run, are well formed, and fail until somebody writes them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tokenarium.errors import TokenariumError
from tokenarium.measure.claims import load_claims
from tokenarium.run import new
from tokenarium.run.execute import notebook_path
from tokenarium.run.new import add_entry, fill_reads, new_paper, paper_files
from tokenarium.run.notebook_check import check_notebooks
from tokenarium.run.papers import paper_state
from tokenarium.study.catalogue import catalogue, find_paper
from tokenarium.study.parameters import load_params, project_root

ROOT = project_root(Path(__file__).parent)
BEGUN = ("context", "fasa")


def copy_of_the_code(root):
    """The code, parameters and notebooks of this repository, without data and results."""
    for name in ("lib", "notebooks", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy2(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A copy of the repository's code in which one paper of a new family is begun."""
    root = copy_of_the_code(tmp_path_factory.mktemp("begun") / "tree")
    new_paper(root, *BEGUN)
    return root


def python(root, *arguments):
    """Run a Python module on the copy's own code."""
    environment = os.environ | {"PYTHONPATH": str(root / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_the_four_files_and_the_parameters_are_there(begun):
    for name in (
        "lib/tokenarium/methods/context/fasa.py",
        "notebooks/context/fasa.ipynb",
        "notebooks/context/fasa.claims.yaml",
        "tests/methods/context/test_fasa.py",
    ):
        assert (begun / name).is_file()
    params = load_params(begun)
    assert params["papers"]["fasa"]["family"] == "context"
    assert params["families"]["context"]["cpu"]
    assert notebook_path(begun, params, "fasa") == begun / "notebooks/context/fasa.ipynb"


def test_the_claims_are_well_formed_and_say_that_they_must_be_written(begun):
    claims = load_claims(begun / "notebooks/context/fasa.claims.yaml")
    paper = find_paper("fasa")
    assert (claims.paper, claims.title, claims.arxiv) == ("fasa", paper.title, paper.arxiv)
    assert tuple(claim.id for claim in claims.claims) == paper.claims
    assert all("must still be written" in claim.statement for claim in claims.claims)


def test_the_notebook_check_says_what_is_missing_and_nothing_else(begun):
    assert [str(problem) for problem in check_notebooks(begun)] == [
        "notebooks/context/fasa.ipynb: has claims that are not written (C1, C2, C3, C4, C5, C6): "
        "write them in fasa.claims.yaml",
        "notebooks/context/fasa.ipynb: has no idea with equations: say in a markdown cell, with $...$, what the method "
        "does",
    ]


def test_a_begun_paper_is_listed_as_begun_and_not_as_written(begun):
    assert paper_state(begun, find_paper("fasa")).state == "begun"


def test_its_study_fails_in_the_first_cell_of_the_experiment_with_one_line(begun):
    done = python(begun, "tokenarium.run.cli", "study", "fasa")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert "NotImplementedError: not written yet: lib/tokenarium/methods/context/fasa.py" in said
    assert "Traceback" not in done.stderr
    assert not (begun / "reports").exists()


def test_its_test_fails_until_the_method_is_written(begun):
    done = python(begun, "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/context/test_fasa.py")
    assert done.returncode == 1
    assert "not written yet: lib/tokenarium/methods/context/fasa.py" in done.stdout


def test_the_pipeline_knows_it_and_its_reads_are_in_order(begun):
    done = python(begun, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_pipeline.py", "-k", "reads or places")
    assert done.returncode == 0, done.stdout
    done = python(begun, "dvc", "--cd", str(begun), "stage", "list", "--name-only")
    assert "paper@fasa" in done.stdout or "not inside of a DVC repository" in done.stderr


def test_every_surveyed_paper_begins_as_clean_code(tmp_path):
    for paper in catalogue().values():
        for name, text in paper_files(paper).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in ("measure/bootstrap.py", "study/figures.py"):  # ruff sorts imports by what it finds
        (tmp_path / "lib/tokenarium" / name).parent.mkdir()
        (tmp_path / "lib/tokenarium" / name).touch()
    shutil.copy2(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *arguments, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    for path in tmp_path.rglob("*.claims.yaml"):
        load_claims(path)


# All or nothing


@pytest.fixture
def tree(project):
    """The small project with dvc.yaml's places and code to read."""
    shutil.copy2(ROOT / "dvc.yaml", project / "dvc.yaml")
    for name in ("methods/__init__.py", "measure", "study/figures.py"):
        source, target = ROOT / "lib/tokenarium" / name, project / "lib/tokenarium" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    return project


def snapshot(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", range(4))
def test_a_file_that_exists_is_left_alone_and_nothing_is_written(tree, number):
    name = list(paper_files(find_paper("fasa")))[number]
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text("mine")
    before = snapshot(tree)
    with pytest.raises(TokenariumError, match=f"{name} exists already: nothing was written"):
        new_paper(tree, *BEGUN)
    assert snapshot(tree) == before


def test_a_paper_that_has_parameters_already_is_left_alone(tree, change):
    new_paper(tree, *BEGUN)
    for name in paper_files(find_paper("fasa")):
        (tree / name).unlink()
    before = snapshot(tree)
    with pytest.raises(TokenariumError, match=r"params\.yaml has the paper fasa already: nothing was written"):
        new_paper(tree, *BEGUN)
    assert snapshot(tree) == before


@pytest.mark.parametrize("failing", [2, 4, 6])
def test_a_write_that_fails_leaves_nothing_behind(tree, monkeypatch, failing):
    count, write = iter(range(1, 9)), new.write_whole

    def sometimes(path):
        if next(count) == failing:
            raise TokenariumError("cannot write: disk full")
        return write(path)

    monkeypatch.setattr(new, "write_whole", sometimes)
    before = snapshot(tree)
    with pytest.raises(TokenariumError, match="disk full"):
        new_paper(tree, *BEGUN)
    assert snapshot(tree) == before


def test_an_unknown_paper_writes_nothing(tree):
    before = snapshot(tree)
    with pytest.raises(TokenariumError, match="did you mean fasa"):
        new_paper(tree, "context", "fassa")
    assert snapshot(tree) == before


def test_a_second_paper_of_a_family_changes_nothing_of_the_first(tree):
    new_paper(tree, "context", "fasa")
    before = snapshot(tree)
    new_paper(tree, "context", "keyformer")
    after = snapshot(tree)
    params = tree / "params.yaml"
    assert {path: text for path, text in after.items() if path in before and path != params} == {
        path: text for path, text in before.items() if path != params
    }
    assert after[params].count(b"\n  context:\n") == 1
    assert load_params(tree)["papers"].keys() == {"tiny", "fasa", "keyformer"}


# params.yaml


@pytest.mark.parametrize("text", ["", "  # two more\n\n", "\n# The arenas.\n\n"])
def test_an_entry_is_added_and_every_other_line_stays(text):
    before = f"papers:  # all\n  a: {{x: 1}}  # one\n{text}arenas: {{}}\n"
    after = add_entry(before, "papers", "  b:\n    x: 2\n")
    assert yaml.safe_load(after) == {"papers": {"a": {"x": 1}, "b": {"x": 2}}, "arenas": {}}
    lines = after.splitlines()
    added = [lines.index("  b:"), lines.index("    x: 2")]
    assert [line for number, line in enumerate(lines) if number not in added] == before.splitlines()


def test_an_entry_is_added_to_an_empty_section_and_at_the_end_of_the_file():
    assert yaml.safe_load(add_entry("papers: {}\nz: 1\n", "papers", "  b: 2\n")) == {"papers": {"b": 2}, "z": 1}
    assert yaml.safe_load(add_entry("z: 1\npapers:\n  a: 1", "papers", "  b: 2\n")) == {
        "papers": {"a": 1, "b": 2},
        "z": 1,
    }


@pytest.mark.parametrize("text", ["papers: {a: 1}\n", "papers:\n      a: 1\n", "z: 1\n"])
def test_an_unusual_layout_is_refused(text):
    with pytest.raises(TokenariumError, match="add b by hand"):
        add_entry(text, "papers", "  b: 2\n")


def test_the_repositorys_own_parameters_keep_every_line():
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = add_entry(text, "papers", "  zz:\n    family: vision\n")
    assert changed.replace("  zz:\n    family: vision\n", "") == text


def test_places_that_are_left_over_repeat_the_last_entry():
    own = "lib/tokenarium/methods/vision/pitome.py"
    reads = fill_reads(ROOT, [own])
    assert len(reads) == 20
    assert reads[0] == own
    assert len(set(reads)) == len(reads) - reads.count(reads[-1]) + 1


def test_more_reads_than_places_are_refused():
    with pytest.raises(TokenariumError, match="places for what a paper reads"):
        fill_reads(ROOT, [f"lib/tokenarium/{number}.py" for number in range(20)])
