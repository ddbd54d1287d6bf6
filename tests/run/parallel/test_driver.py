"""A parallel run leaves a checkout as plain `dvc repro` does, and comes back from what goes wrong."""

import json
import subprocess
import sys

import pytest
from dvc_projects import change, contents, plain_repro, ran, random_project, status
from filelock import FileLock

from tokenarium.errors import TokenariumError
from tokenarium.run.parallel import driver
from tokenarium.run.parallel.history import durations_path, estimates, record_durations
from tokenarium.run.parallel.scheduler import Node
from tokenarium.run.resources import Resources

COPY = "echo $DVC_STAGE >> ran; cat {0} > {1}"


def copying(reads, out, **rest):
    """A stage that copies the file `reads` to `out`, in one command."""
    return {"cmd": COPY.format(reads, out), "deps": [reads], "outs": [out], **rest}


@pytest.fixture
def chain(project):
    """a -> b -> c, and d beside them."""
    stages = {
        "a": copying("source", "a.txt"),
        "b": {"cmd": "echo b >> ran; head -c 1 a.txt > b.txt", "deps": ["a.txt"], "outs": ["b.txt"]},
        "c": copying("b.txt", "c.txt"),
        "d": copying("other", "d.txt"),
    }
    return project(stages, files={"source": "one\n", "other": "1\n"})


def agree(plain, parallel):
    """Both trees ran the same stages and are the same, dvc.lock and its order included."""
    assert ran(parallel) == ran(plain)
    assert contents(parallel) == contents(plain)
    assert status(parallel) == status(plain)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_graph_ends_as_after_plain_dvc_repro(tmp_path, threads, view, seed):
    plain, parallel = (random_project(tmp_path / name, seed) for name in ("plain", "parallel"))
    for step in range(3):
        plain_repro(plain)
        driver.run(parallel, (), 3, executor=threads(), view=view)
        agree(plain, parallel)
        for tree in (plain, parallel):
            change(tree, 10 * seed + step)


def test_nothing_to_do_starts_no_executor(chain, threads, view):
    driver.run(chain, (), 2, executor=threads(), view=view)
    again = threads()
    summary = driver.run(chain, (), 2, executor=again, view=view)
    assert again.opened == 0
    assert summary.unchanged == ["a", "b", "c", "d"]
    assert "0 stages ran, 4 were up to date" in view.text()


def test_a_stage_whose_rerun_upstream_changed_nothing_is_skipped(chain, threads, view):
    driver.run(chain, (), 2, executor=threads(), view=view)
    ran(chain)
    (chain / "source").write_text("only the first letter of this counts\n")
    summary = driver.run(chain, (), 2, executor=threads(), view=view)
    assert (summary.ran, sorted(summary.unchanged)) == (["a", "b"], ["c", "d"])
    assert ran(chain) == ["a", "b"]
    assert status(chain) == {}


def test_what_the_run_cache_holds_is_restored_without_running(chain, threads, view):
    driver.run(chain, (), 2, executor=threads(), view=view)
    before = contents(chain)
    (chain / "source").write_text("two\n")
    driver.run(chain, (), 2, executor=threads(), view=view)
    (chain / "source").write_text("one\n")
    ran(chain)
    summary = driver.run(chain, (), 2, executor=threads(), view=view)
    assert (summary.restored, summary.ran) == (["a", "b", "c"], [])
    assert ran(chain) == []
    assert contents(chain) == before


def test_targets_bring_what_they_need_and_what_is_named_alone_comes_without(chain, threads, view):
    assert driver.run(chain, ["b"], 2, executor=threads(), view=view).ran == ["a", "b"]
    assert driver.run(chain, ["a"], 2, alone=["d"], executor=threads(), view=view).ran == ["d"]
    assert set(status(chain)) == {"c"}


def test_an_unknown_target_is_one_line(chain, threads, view):
    with pytest.raises(TokenariumError, match=r"Stage 'e' not found inside 'dvc\.yaml' file") as error:
        driver.run(chain, ["e"], 2, executor=threads(), view=view)
    assert "\n" not in str(error.value)


def test_no_more_stages_run_at_a_time_than_asked_for_or_than_fit(project, threads, view):
    stages = {f"s{i}": {"cmd": f"sleep 0.3; echo {i} > {i}", "outs": [str(i)]} for i in range(6)}
    tree = project(stages)
    executor = threads()
    driver.run(tree, (), 3, executor=executor, view=view)
    assert executor.most == 3
    for name in stages:
        (tree / name[1:]).unlink()
    subprocess.run(["rm", "-rf", tree / ".dvc/cache"], check=True)
    executor = threads(Node("n", 4, 8))
    driver.run(tree, (), 6, needs=lambda stage: Resources(cpus=2, memory_gb=1), executor=executor, view=view)
    assert executor.most == 2


def test_a_command_gets_as_many_threads_as_cores_and_what_the_caller_sets(project, threads, view):
    tree = project({"s": {"cmd": "echo $OMP_NUM_THREADS $WHO $DVC_STAGE > s", "outs": ["s"]}})
    asked = Resources(cpus=3, memory_gb=1)
    driver.run(tree, (), 1, needs=lambda stage: asked, environment={"WHO": "me"}, executor=threads(), view=view)
    assert (tree / "s").read_text() == "3 me s\n"


def test_a_failure_stops_what_comes_after_it_and_nothing_else(project, threads, view):
    tree = project(
        {
            "bad": {"cmd": ["echo why it failed", "exit 3"], "outs": ["bad.txt"]},
            "after": copying("bad.txt", "after.txt"),
            "last": copying("after.txt", "last.txt"),
            "lazy": {"cmd": "true", "outs": ["never.txt"]},
            "good": copying("source", "good.txt"),
        },
        files={"source": "x"},
    )
    with pytest.raises(TokenariumError) as error:
        driver.run(tree, (), 2, executor=threads(), view=view)
    said = str(error.value)
    assert said.startswith("2 of the stages failed: ")
    assert set(said.split("failed: ")[1].split(";")[0].split(", ")) == {"bad", "lazy"}
    assert said.endswith("; not run, because they come after: after, last")
    assert "bad: `exit 3` ended with exit code 3\n  why it failed\n" in view.text()
    assert "output 'never.txt' does not exist" in view.text()
    assert (tree / "good.txt").exists()
    assert set(status(tree)) == {"bad", "after", "last", "lazy"}
    assert set(estimates(tree, ["good", "bad"])[1]) == {"bad"}


def test_outputs_that_persist_survive_a_failure_and_others_do_not(project, threads, view):
    command = "test ! -e broken && echo new > {0}"
    tree = project(
        {
            "kept": {"cmd": command.format("kept"), "deps": ["source"], "outs": [{"kept": {"persist": True}}]},
            "gone": {"cmd": command.format("gone"), "deps": ["source"], "outs": ["gone"]},
        },
        files={"source": "x"},
    )
    driver.run(tree, (), 2, executor=threads(), view=view)
    (tree / "broken").write_text("")
    (tree / "source").write_text("y")
    with pytest.raises(TokenariumError, match="2 of the stages failed"):
        driver.run(tree, (), 2, executor=threads(), view=view)
    assert (tree / "kept").read_text() == "new\n"
    assert not (tree / "gone").exists()
    (tree / "broken").unlink()
    driver.run(tree, (), 2, executor=threads(), view=view)
    assert status(tree) == {}


def test_a_stage_that_asks_for_more_than_there_is_fails_with_one_line_and_the_rest_runs(chain, threads, view):
    def needs(stage):
        return Resources(cpus=64 if stage == "b" else 1, memory_gb=1)

    with pytest.raises(TokenariumError, match="1 of the stages failed: b; not run, because they come after: c"):
        driver.run(chain, (), 2, needs=needs, executor=threads(), view=view)
    said = "b asks for 64 cores, 1 GB of memory, but the largest machine has 4 cores, 16 GB of memory, no GPU"
    assert f"{said}: lower it under `resources` in params.yaml\n" in view.text()
    assert ran(chain) == ["a", "d"]


def test_two_runs_in_one_checkout_exclude_one_another(chain, threads, view):
    (chain / ".tokenarium/locks").mkdir(parents=True)
    refused = pytest.raises(TokenariumError, match=r"another parallel run goes on in .*: wait for it to end")
    with FileLock(chain / ".tokenarium/locks/repro.lock"), refused:
        driver.run(chain, (), 2, executor=threads(), view=view)
    assert ran(chain) == []


def test_other_dvc_commands_may_not_touch_what_a_running_stage_reads_or_writes(project, threads, view):
    """A stage asks DVC itself while it runs: its own output is busy, that of another stage is not."""
    ask = f"{sys.executable} -m dvc status {{0}} 2> {{0}}.told; test $? -ne 0; echo $? > {{0}}.refused"
    tree = project(
        {
            "done": {"cmd": "echo 1 > done", "outs": ["done"]},
            "busy": {"cmd": [ask.format("busy"), ask.format("done"), "echo 1 > busy"], "outs": ["busy"]},
        }
    )
    driver.run(tree, (), 1, executor=threads(), view=view)
    (tree / "busy").write_text("changed")
    driver.run(tree, ["busy"], 1, executor=threads(), view=view)
    assert "is busy" in (tree / "busy.told").read_text()
    assert [(tree / f"{name}.refused").read_text() for name in ("busy", "done")] == ["0\n", "1\n"]
    assert status(tree) == {}


def test_a_plan_names_what_runs_and_what_may_with_times_of_past_runs_and_changes_nothing(chain, view, threads):
    driver.run(chain, (), 2, executor=threads(), view=view)
    ran(chain)
    durations_path(chain).unlink()
    record_durations(chain, {"a": 600, "b": 1200})
    (chain / "source").write_text("two\n")
    before = contents(chain)
    plan = driver.show_plan(chain, (), 2, view=view)
    assert (plan.stale, plan.perhaps, plan.fresh) == (["a"], ["b", "c"], ["d"])
    told = view.text().split("up to date")[-2] + view.text().split("up to date")[-1]
    assert "runs     a  about 10 min, 1 cores, 0 GB of memory\n" in told
    assert "may run  b  about 20 min, 1 cores, 0 GB of memory\n" in told
    assert "may run  c  about 15 min (a guess), 1 cores, 0 GB of memory\n" in told
    assert "1 stages run, 2 after them may, 1 are " in told
    assert "about 45 min with -j 2, 45 min one at a time" in told
    assert (contents(chain), ran(chain)) == (before, [])


def test_times_come_from_past_runs_then_provenance_then_the_like(tmp_path):
    folder = tmp_path / "reports/arena/vision"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps({"seconds": 7.5}))
    record_durations(tmp_path, {"paper@a": 10.0, "paper@b": 30.0, "model@m": 100.0})
    names = ["paper@a", "paper@b", "paper@c", "arena@vision", "model@m", "report"]
    seconds, guessed = estimates(tmp_path, names)
    assert list(seconds.values()) == [10, 30, 20, 7.5, 100, 20]
    assert guessed == {"paper@c", "report"}


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"a": "b"}', '{"a": null}'])
def test_an_unreadable_record_of_past_runs_is_no_obstacle(tmp_path, kept):
    durations_path(tmp_path).parent.mkdir()
    durations_path(tmp_path).write_text(kept)
    assert estimates(tmp_path, ["a"]) == ({"a": 60.0}, {"a"})
    record_durations(tmp_path, {"a": 2.0})
    assert estimates(tmp_path, ["a"]) == ({"a": 2.0}, set())


def test_without_a_terminal_every_line_stands_alone_and_counts(chain, threads, view):
    driver.run(chain, ["a"], 1, executor=threads(), view=view)
    lines = view.text().splitlines()
    assert lines[0] == "running  a"
    assert lines[1].startswith("done     a  ")
    assert "(0 running, 0 waiting, 1 done, 0 failed, about 0.0 s left)" in lines[1]
    assert "\x1b" not in view.text()
