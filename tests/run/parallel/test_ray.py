"""Ray runs the commands: on the loopback interface alone, within what stages ask for, and without leaving anything."""

import os
import signal
import threading
import time

import psutil
import pytest
from dvc_projects import contents, plain_repro, ran, random_project, status

from tokenarium.errors import TokenariumError
from tokenarium.run.parallel import driver
from tokenarium.run.parallel.executors import RayExecutor
from tokenarium.run.resources import Resources


@pytest.fixture(scope="module")
def cluster():
    """One Ray of two cores for all tests of this module."""
    executor = RayExecutor(cpus=2)
    executor.open()
    yield executor
    executor.close()


def told(path):
    """The number in a file that is about to be written."""
    for _ in range(600):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def gone(pid):
    """Whether a process ends within ten seconds."""
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_random_graph_on_ray_ends_as_after_plain_dvc_repro(cluster, tmp_path, view):
    plain, parallel = (random_project(tmp_path / name, 11) for name in ("plain", "parallel"))
    for step in range(2):
        plain_repro(plain)
        driver.run(parallel, (), 2, executor=cluster, view=view)
        assert ran(parallel) == ran(plain)
        assert contents(parallel) == contents(plain)
        assert status(parallel) == status(plain)
        for tree in (plain, parallel):
            (tree / "src/0.txt").write_text(f"{step}\n")


def test_nothing_listens_beyond_the_loopback_interface(cluster):
    processes = psutil.Process().children(recursive=True)
    assert any("raylet" in process.name() for process in processes)
    listening = [
        connection.laddr.ip
        for process in [psutil.Process(), *processes]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}


def test_stages_see_nothing_of_ray_and_the_threads_that_they_asked_for(cluster, project, view):
    tree = project({"s": {"cmd": "env > s; nice > priority", "outs": ["s"]}})
    driver.run(tree, (), 2, needs=lambda stage: Resources(cpus=2, memory_gb=1), executor=cluster, view=view)
    seen = (tree / "s").read_text().splitlines()
    assert "OMP_NUM_THREADS=2" in seen
    assert int((tree / "priority").read_text()) == os.nice(0)
    assert f"DVC_ROOT={tree}" in seen
    assert not [line for line in seen if line.startswith("RAY_") and line.split("=")[0] not in os.environ]


def test_a_killed_worker_is_a_failed_stage_that_leaves_no_process_and_the_rest_goes_on(cluster, project, view):
    tree = project(
        {
            "victim": {"cmd": "sleep 100 & echo $! > pid; sleep 1; kill -9 $PPID; wait", "outs": ["victim"]},
            "other": {"cmd": "echo 1 > other", "outs": ["other"]},
        }
    )
    with pytest.raises(TokenariumError, match=r"1 of the stages failed: victim$"):
        driver.run(tree, (), 1, executor=cluster, view=view)
    assert "victim  its worker was killed" in view.text()
    assert gone(told(tree / "pid"))
    assert set(status(tree)) == {"victim"}


def test_after_ctrl_c_no_process_is_left_and_the_next_run_goes_on(cluster, project, view):
    tree = project(
        {
            "quick": {"cmd": "echo quick >> ran; echo 1 > quick", "outs": ["quick"]},
            "slow": {
                "cmd": "echo slow >> ran; test -e free || { sleep 100 & echo $! > pid; wait; }; echo 1 > slow",
                "deps": ["quick"],
                "outs": [{"slow": {"persist": True}}],
            },
            "after": {"cmd": "echo after >> ran; cat slow > after", "deps": ["slow"], "outs": ["after"]},
        }
    )

    def interrupt():
        told(tree / "pid")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        driver.run(tree, (), 2, executor=cluster, view=view)
    assert "interrupted: ending slow" in view.text()
    assert gone(told(tree / "pid"))
    assert ran(tree) == ["quick", "slow"]
    assert set(status(tree)) == {"slow", "after"}
    (tree / "free").write_text("")
    driver.run(tree, (), 2, executor=cluster, view=view)
    assert ran(tree) == ["after", "slow"]
    assert status(tree) == {}


def test_a_cluster_that_does_not_answer_is_one_line(cluster, monkeypatch):
    import ray  # not before `cluster`: it reads its settings when it is imported

    def silent(**options):
        raise ConnectionError("nobody there\nat all")

    monkeypatch.setattr(ray, "init", silent)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(TokenariumError, match=r"^Ray does not answer at 127.0.0.1:1: nobody there$"):
        RayExecutor("127.0.0.1:1").open()
