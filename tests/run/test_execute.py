"""Notebooks through papermill: results are put in their place whole, and a failure is one line and changes nothing."""

import json
import os

import pytest
from filelock import FileLock
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


def test_a_failing_cell_leaves_the_last_good_results(project, write, results, failure):
    write("x = 1", "print('so far')", "raise ValueError('the first line\\nthe second')", "x = 2")
    message = failure()
    # the parameters cell and the one that papermill puts behind it count
    assert message == (
        "tiny failed at cell 5: ValueError: the first line; the notebook up to there is .tokenarium/failed/tiny.ipynb"
    )
    assert results()
    failed = (project / ".tokenarium" / "failed" / "tiny.ipynb").read_text()
    assert "so far" in failed
    assert "the second" in failed


def test_an_error_in_finish_leaves_the_last_good_results(project, write, results, failure):
    write(OPEN.format(slug="tiny"), "study.finish()")
    assert failure().startswith("tiny failed at cell 4: TokenariumError: tiny: nothing was recorded; call")
    assert results()


def test_a_notebook_without_finish_is_named(project, write, results, failure):
    write("x = 1")
    assert failure() == "notebooks/toys/tiny.ipynb ended without study.finish(): make it the last cell"
    assert results()


def test_a_kernel_that_dies_is_one_line_and_keeps_the_notebook(project, write, results, failure):
    write("print('so far')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    message = failure()
    assert message.startswith("tiny failed at cell 4: DeadKernelError: the kernel died: killed from outside, out of")
    assert message.endswith("; the notebook up to there is .tokenarium/failed/tiny.ipynb")
    assert results()
    assert "so far" in (project / ".tokenarium" / "failed" / "tiny.ipynb").read_text()


def test_a_missing_notebook_is_named(project, failure):
    assert failure() == "notebooks/toys/tiny.ipynb is missing: write the notebook of tiny there"
    assert failure("arena/toys").startswith("notebooks/arena/toys.ipynb is missing")


def test_a_damaged_notebook_is_named(project, write, results, failure):
    write().write_text("{")
    assert failure() == "notebooks/toys/tiny.ipynb is no notebook: restore it from git"
    assert results()


def test_unknown_names_get_the_nearest(project, failure):
    assert failure("tinny") == "params.yaml has no paper 'tinny'; did you mean tiny?"
    assert failure("arena/toy") == "params.yaml has no arena 'toy'; did you mean toys?"
    with pytest.raises(TokenariumError, match="unknown profile 'gpus'; did you mean gpu"):
        run_study(project, "tiny", profile="gpus")


def test_papers_and_arenas_have_notebooks_of_their_own(project, write):
    paper, arena = write(), write(name="arena/toys")
    params = load_params(project)
    assert notebook_path(project, params, "tiny") == paper
    assert notebook_path(project, params, "arena/toys") == arena


def test_two_runs_of_one_paper_at_once_are_refused(project, write, results, failure):
    write("x = 1")
    lock = project / ".tokenarium" / "locks" / "tiny.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert failure() == "tiny is already running here: wait for it to end, then run it again"
    assert results()
    assert "ended without study.finish()" in failure()


def test_what_a_killed_run_left_behind_is_no_obstacle(project, write, failure):
    left = project / ".tokenarium" / "running" / "tiny" / "results"
    left.mkdir(parents=True)
    (left / "evidence.json").write_text("{}")
    write("x = 1")
    assert "ended without study.finish()" in failure()
