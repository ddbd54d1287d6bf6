"""Notebooks through papermill: results are put in their place whole, and a failure is one line and changes nothing."""

import json
import os

import nbformat
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.numpy import load_file

from tokenarium.errors import TokenariumError
from tokenarium.run.execute import notebook_path, run_study
from tokenarium.study import OUTPUT_VARIABLE
from tokenarium.study.parameters import load_params

OPEN = "import tokenarium\nstudy = tokenarium.open_study({slug!r}, profile=profile)"
RECORD = """\
study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
study.metric("top1", study.parameters.images + 80.0, (80.0, 100.0), how="by hand")
study.evaluation("ToMe|0.6|3", __import__("numpy").arange(3))
"""


@pytest.fixture
def write(project):
    """Write a notebook of these cells after the parameters cell; returns its path."""

    def write(*sources, name="toys/tiny"):
        parameters = new_code_cell("profile = None", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[parameters, *map(new_code_cell, sources)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = project / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


@pytest.fixture
def results(project):
    """The last good results of `tiny`: a function that says whether they still stand as they were."""
    good = {
        project / "reports" / "tiny" / "evidence.json": "good",
        project / "evaluations" / "toys" / "tiny" / "results.safetensors": "good too",
    }
    for path, text in good.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def stand():
        folders = {folder for path in good for folder in (path.parent,)}
        names = {path for folder in folders for path in folder.iterdir()}
        return names == set(good) and all(path.read_text() == text for path, text in good.items())

    return stand


def failure(project, slug="tiny"):
    with pytest.raises(TokenariumError) as error:
        run_study(project, slug)
    message = str(error.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_good_run_replaces_results_and_evaluations(project, write, results, monkeypatch):
    monkeypatch.delenv(OUTPUT_VARIABLE, raising=False)
    source = write(OPEN.format(slug="tiny"), RECORD, "study.finish()")
    before = source.read_bytes()
    folder = run_study(project, "tiny", profile="smoke")
    assert folder == project / "reports" / "tiny"
    assert not results()
    assert sorted(path.name for path in folder.iterdir()) == [
        "evidence.json",
        "figures",
        "metrics.json",
        "notebook.ipynb",
        "provenance.json",
        "tables",
        "tensors",
    ]
    assert read(folder / "evidence.json")["profile"] == "smoke"
    assert read(folder / "metrics.json")["top1"]["value"] == 84.0
    evaluations = project / "evaluations" / "toys" / "tiny"
    assert [path.name for path in evaluations.iterdir()] == ["results.safetensors"]
    assert load_file(evaluations / "results.safetensors")["ToMe|0.6|3"].tolist() == [0, 1, 2]
    executed = read(folder / "notebook.ipynb")
    assert "Verdict at profile `smoke`" in json.dumps(executed["cells"][-1]["outputs"])
    assert source.read_bytes() == before
    assert OUTPUT_VARIABLE not in os.environ
    assert list((project / ".tokenarium" / "running").iterdir()) == []


def test_an_arena_hands_no_evaluations_on(project, write):
    write(OPEN.format(slug="arena/toys"), RECORD, "study.finish()", name="arena/toys")
    folder = run_study(project, "arena/toys")
    assert folder == project / "reports" / "arena" / "toys"
    assert read(folder / "evidence.json")["profile"] == "cpu"
    assert not (folder / "evaluations").exists()
    assert not (project / "evaluations").exists()


def test_a_failing_cell_leaves_the_last_good_results(project, write, results):
    write("x = 1", "print('so far')", "raise ValueError('the first line\\nthe second')", "x = 2")
    message = failure(project)
    # the parameters cell and the one that papermill puts behind it count
    assert message == (
        "tiny failed at cell 5: ValueError: the first line; the notebook up to there is .tokenarium/failed/tiny.ipynb"
    )
    assert results()
    failed = (project / ".tokenarium" / "failed" / "tiny.ipynb").read_text()
    assert "so far" in failed
    assert "the second" in failed


def test_an_error_in_finish_leaves_the_last_good_results(project, write, results):
    write(OPEN.format(slug="tiny"), "study.finish()")
    assert failure(project).startswith("tiny failed at cell 4: TokenariumError: tiny: nothing was recorded; call")
    assert results()


def test_a_notebook_without_finish_is_named(project, write, results):
    write("x = 1")
    assert failure(project) == "notebooks/toys/tiny.ipynb ended without study.finish(): make it the last cell"
    assert results()


def test_a_kernel_that_dies_is_one_line_and_keeps_the_notebook(project, write, results):
    write("print('so far')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    message = failure(project)
    assert message.startswith("tiny failed at a cell: DeadKernelError: Kernel died")
    assert message.endswith("; the notebook up to there is .tokenarium/failed/tiny.ipynb")
    assert results()
    assert "so far" in (project / ".tokenarium" / "failed" / "tiny.ipynb").read_text()


def test_a_missing_notebook_is_named(project):
    assert failure(project) == "notebooks/toys/tiny.ipynb is missing: write the notebook of tiny there"
    assert failure(project, "arena/toys").startswith("notebooks/arena/toys.ipynb is missing")


def test_a_damaged_notebook_is_named(project, write, results):
    write().write_text("{")
    assert failure(project) == "notebooks/toys/tiny.ipynb is no notebook: restore it from git"
    assert results()


def test_unknown_names_get_the_nearest(project):
    assert failure(project, "tinny") == "params.yaml has no paper 'tinny'; did you mean tiny?"
    assert failure(project, "arena/toy") == "params.yaml has no arena 'toy'; did you mean toys?"
    with pytest.raises(TokenariumError, match="unknown profile 'gpus'; did you mean gpu"):
        run_study(project, "tiny", profile="gpus")


def test_papers_and_arenas_have_notebooks_of_their_own(project, write):
    paper, arena = write(), write(name="arena/toys")
    params = load_params(project)
    assert notebook_path(project, params, "tiny") == paper
    assert notebook_path(project, params, "arena/toys") == arena


def test_two_runs_of_one_paper_at_once_are_refused(project, write, results):
    write("x = 1")
    lock = project / ".tokenarium" / "locks" / "tiny.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert failure(project) == "tiny is already running here: wait for it to end, then run it again"
    assert results()
    assert "ended without study.finish()" in failure(project)


def test_what_a_killed_run_left_behind_is_no_obstacle(project, write):
    left = project / ".tokenarium" / "running" / "tiny" / "results"
    left.mkdir(parents=True)
    (left / "evidence.json").write_text("{}")
    write("x = 1")
    assert "ended without study.finish()" in failure(project)
