"""Experiments: parts are made once, an interrupted run goes on, and a failure leaves the last good results alone."""

import json
import sys
import types

import numpy as np
import pytest
from filelock import FileLock

from tokenarium.errors import TokenariumError
from tokenarium.run.experiments import run_experiment
from tokenarium.study.experiments import Experiment, open_results
from tokenarium.study.parameters import load_params

MODULE = "tokenarium.methods.toys.experiments.long"


@pytest.fixture
def runs(monkeypatch):
    """Let the experiment `long` be this function."""

    def runs(function):
        for length in range(3, 6):
            name = ".".join(MODULE.split(".")[:length])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[MODULE].run = function

    return runs


def steps(made, stop=None):
    """An experiment of `steps` parts that notes what it makes and may be interrupted before step `stop`."""

    def run(experiment: Experiment):
        for step in range(experiment.parameters.steps):
            if step == stop:
                raise KeyboardInterrupt

            def make(step=step):
                made.append(step)
                return {"squares": np.arange(step + 1) ** 2}

            experiment.arrays(f"step-{step}", make)
        experiment.record("seeds", lambda: {"sum": sum(experiment.seeds)})

    return run


def results(project, profile="cpu"):
    return open_results(project, load_params(project), "long", profile)


def test_parts_come_back_as_they_were_made(project, runs):
    runs(steps([]))
    assert run_experiment(project, "long") == project / "experiments" / "tiny" / "long"
    found = results(project)
    assert found.parts == ["seeds", "step-0", "step-1", "step-2"]
    assert found.record("seeds") == {"sum": 7}
    assert found.arrays("step-2")["squares"].tolist() == [0, 1, 4]
    assert found.parameters["steps"] == 3


def test_an_interrupted_run_goes_on_from_its_finished_parts(project, runs):
    made = []
    runs(steps(made, stop=2))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(project, "long")
    assert not (project / "experiments").exists()
    runs(steps(made))
    run_experiment(project, "long")
    assert made == [0, 1, 2]
    run_experiment(project, "long")
    assert made == [0, 1, 2, 0, 1, 2]


def test_parts_of_other_parameters_are_made_again(project, runs, change):
    made = []
    runs(steps(made, stop=1))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(project, "long")
    change(project / "params.yaml", r"\*long, steps: 3", "*long, steps: 2")
    runs(steps(made))
    run_experiment(project, "long")
    assert made == [0, 0, 1]
    assert results(project).parts == ["seeds", "step-0", "step-1"]


def test_parts_of_other_code_are_made_again(project, runs):
    code = project / "lib" / "tokenarium" / "methods" / "toys" / "experiments" / "long.py"
    code.parent.mkdir(parents=True)
    code.write_text("one")
    made = []
    runs(steps(made, stop=1))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(project, "long")
    code.write_text("two")
    runs(steps(made))
    run_experiment(project, "long")
    assert made == [0, 0, 1, 2]


def test_a_failure_leaves_the_last_good_results(project, runs):
    runs(steps([]))
    folder = run_experiment(project, "long")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    runs(lambda experiment: experiment.record("bad", lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run_experiment(project, "long")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_results_of_another_profile_are_not_read(project, runs):
    runs(steps([]))
    run_experiment(project, "long")
    with pytest.raises(TokenariumError, match="of profile cpu, not smoke: use `tokenarium repro tiny --profile smoke`"):
        results(project, "smoke")


def test_results_that_are_not_there_name_their_stage(project):
    with pytest.raises(TokenariumError, match="experiments/tiny/long is missing: run `dvc repro experiment@long`"):
        results(project)


def test_an_unknown_part_names_the_known_ones(project, runs):
    runs(steps([]))
    run_experiment(project, "long")
    with pytest.raises(TokenariumError, match="has no part 'step-9'; there are seeds, step-0, step-1, step-2"):
        results(project).arrays("step-9")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a"])
def test_a_part_has_a_plain_name(project, runs, name):
    runs(lambda experiment: experiment.record(name, dict))
    with pytest.raises(TokenariumError, match="cannot name a part"):
        run_experiment(project, "long")


def test_a_study_reads_its_experiments(project, runs):
    from tokenarium.study import open_study

    runs(steps([]))
    run_experiment(project, "long")
    study = open_study("tiny", root=project)
    assert study.experiment("long").arrays("step-1")["squares"].tolist() == [0, 1]
    with pytest.raises(TokenariumError, match="no experiment 'lang'; did you mean long"):
        study.experiment("lang")


def test_the_index_says_what_it_was_made_with(project, runs):
    runs(steps([]))
    folder = run_experiment(project, "long")
    assert json.loads((folder / "experiment.json").read_text()) == {
        "name": "long",
        "profile": "cpu",
        "seeds": [3, 4],
        "parameters": {"images": 8, "budgets": [0.5], "resamples": 10, "steps": 3},
    }


def test_a_missing_module_is_named(project):
    with pytest.raises(TokenariumError, match=r"toys/experiments/long\.py is missing: write the experiment long"):
        run_experiment(project, "long")


def test_a_module_without_run_is_named(project, runs):
    runs(None)
    del sys.modules[MODULE].run
    with pytest.raises(TokenariumError, match="has no function `run`"):
        run_experiment(project, "long")


def test_two_runs_of_one_experiment_do_not_meet(project, runs):
    runs(steps([]))
    locks = project / ".tokenarium" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / "experiment-long.lock"), pytest.raises(TokenariumError, match="already running here"):
        run_experiment(project, "long")


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        ("paper: tiny", "paper: tinny", "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (r"gpu: \*long", "gpu: {<<: *long, stop: 2}", "experiments.long.gpu has an unknown key 'stop'"),
    ],
)
def test_a_wrong_entry_is_refused(project, change, pattern, replacement, said):
    change(project / "params.yaml", pattern, replacement)
    with pytest.raises(TokenariumError, match=said):
        load_params(project)
