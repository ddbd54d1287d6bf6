"""Commands of a stage get DVC's environment, leave a log, and end with their worker, however that ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tokenarium.run.parallel import worker
from tokenarium.run.parallel.worker import Task


@pytest.fixture
def task(tmp_path):
    def task(*commands, **environment):
        shell = tuple(("/bin/sh", "-c", command) for command in commands)
        return Task("s", shell, str(tmp_path), {"PATH": os.environ["PATH"], **environment}, str(tmp_path / "log/s.log"))

    return task


def gone(pid):
    """Whether a process ends within five seconds."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def told(path):
    """The number in a file that is about to be written."""
    for _ in range(200):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def test_commands_run_in_their_folder_with_their_environment_and_what_they_print_is_kept(task, tmp_path):
    outcome = worker.run(task("pwd", "echo $WHO >&2; cat", WHO="me"))
    assert outcome.error is None
    assert (tmp_path / "log/s.log").read_text() == f"{tmp_path}\nme\n"


@pytest.mark.parametrize(
    ("command", "said"), [("exit 3", "ended with exit code 3"), ("kill -9 $$", "was ended by SIGKILL")]
)
def test_a_failing_command_is_named_and_the_next_does_not_run(task, tmp_path, command, said):
    outcome = worker.run(task("true", command, "touch after"))
    assert outcome.error == f"`{command}` {said}"
    assert not (tmp_path / "after").exists()


def test_devices_that_the_worker_was_granted_are_passed_on_only_when_asked_for(task, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for gpus, said in ((True, "1"), (False, "all")):
        worker.run(task("echo ${CUDA_VISIBLE_DEVICES-all}"), gpus=gpus)
        assert (tmp_path / "log/s.log").read_text() == f"{said}\n"


def test_an_interrupt_reaches_the_command_and_kills_what_stays(task, tmp_path):
    """A shell leaves at SIGINT; what it started in the background ignores that, as shells have it."""
    commands = task("sleep 100 & echo $! > pid; trap 'echo bye > left; exit 1' INT; wait")

    def interrupt():
        told(tmp_path / "pid")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        worker.run(commands)
    assert (tmp_path / "left").read_text() == "bye\n"
    assert gone(told(tmp_path / "pid"))


@pytest.mark.parametrize("children_first", [False, True])
def test_a_worker_that_is_killed_takes_its_command_along(tmp_path, children_first):
    """A Ray worker that loses its Ray kills its children first, and leaves those below them."""
    script = (
        "from tokenarium.run.parallel.worker import *; import os;"
        "run(Task('s', (('/bin/sh', '-c', 'sleep 100 & echo $! > pid; wait'),), '.', dict(os.environ), 'log'))"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
        child = told(tmp_path / "pid")
        assert psutil.pid_exists(child)
        if children_first:
            process.send_signal(signal.SIGSTOP)
            for each in psutil.Process(process.pid).children():
                each.kill()
        process.kill()
    assert gone(child)


def test_what_a_command_leaves_running_on_purpose_outlives_its_worker(task, tmp_path):
    assert worker.run(task("sleep 100 & echo $! > pid")).error is None
    child = told(tmp_path / "pid")
    time.sleep(0.3)
    assert psutil.pid_exists(child)
    os.kill(child, signal.SIGKILL)
