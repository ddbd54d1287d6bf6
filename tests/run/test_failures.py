"""Things that break in a run: results stay whole, one line says what happened, the next run repairs it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokenarium.run.execute import run_study, warm_kernels
from tokenarium.run.failures import last_failure

OPEN = 'import tokenarium\nstudy = tokenarium.open_study("tiny", profile=profile)'
RECORD = """\
import numpy as np, pandas as pd, matplotlib.pyplot as plt
study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
study.metric("top1", 90.0, (80.0, 100.0), how="by hand")
study.evaluation("ToMe|0.6|3", np.arange(3))
study.tensor("energy", np.arange(6.0).reshape(2, 3), ("image", "token"), "made up")
study.table("names", pd.DataFrame({"name": sorted({"b", "a", "c"}), "x": [1.5, 1e-9, 1e9]}), "Names")
figure, axes = plt.subplots()
axes.plot([0, 1], label="a line")
axes.legend()
study.figure("line", figure, "A line");
"""
GOOD = (OPEN, RECORD, "study.finish()")
# The notebook says which process it is, then waits to be disturbed for as long as the file `wait` is there.
DISTURBED = """\
import os, pathlib, time
root = pathlib.Path.cwd().parents[1]
(root / "pid.partial").write_text(str(os.getpid()))
(root / "pid.partial").rename(root / "pid")
while (root / "wait").exists():
    time.sleep(0.05)
"""
CLI = (sys.executable, "-m", "tokenarium.run.cli")


def snapshot(project, *folders):
    """Every file below these folders, hidden ones too, with its bytes."""
    paths = [path for folder in folders for path in (project / folder).rglob("*") if path.is_file()]
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in paths}


def gone(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


# In the notebook


def test_a_failed_run_leaves_a_record_until_one_goes_well(project, write, results, failure):
    write(OPEN, "study.metric('gain', 1)\n", "study.finish()")
    message = failure()
    assert results()
    found = last_failure(project, "tiny")
    assert (found.slug, found.cell, found.ename) == ("tiny", 4, "TokenariumError")
    assert found.evalue == "metric 'gain' needs interval=(low, high) and how it was made"
    assert message == f"tiny failed at {found.line()}; the notebook up to there is {found.notebook}"
    assert "study.metric('gain', 1)" in found.traceback
    assert "\x1b" not in found.traceback
    assert found.when.endswith("+00:00")
    assert json.loads((project / ".tokenarium/failed/tiny.json").read_text())["notebook"] == found.notebook
    shown = subprocess.run([*CLI, "show", "tiny"], cwd=project, capture_output=True, text=True, check=False)
    assert "tiny has no verdict yet" in shown.stderr
    write(*GOOD)
    run_study(project, "tiny")
    subprocess.run([*CLI, "verdict", "tiny"], cwd=project, check=True)
    good = snapshot(project, "reports", "evaluations", "verdicts")
    write(OPEN, "1 / 0")
    failure()
    shown = subprocess.run([*CLI, "show", "tiny"], cwd=project, capture_output=True, text=True, check=True)
    assert "reproduced" in shown.stdout
    assert "failed at cell 4: ZeroDivisionError: division by zero; its traceback: .tokenarium/failed/tiny.ipynb" in (
        " ".join(shown.stdout.split())
    )
    assert snapshot(project, "reports", "evaluations", "verdicts") == good
    write(*GOOD)
    run_study(project, "tiny")
    assert last_failure(project, "tiny") is None
    assert list((project / ".tokenarium/failed").iterdir()) == []


def test_a_record_that_cannot_be_read_is_no_record(project):
    path = project / ".tokenarium" / "failed" / "tiny.json"
    path.parent.mkdir(parents=True)
    for content in ("{", "[]", "{}", '{"slug": "tiny"}'):
        path.write_text(content)
        assert last_failure(project, "tiny") is None


def test_a_kernel_that_is_killed_in_a_cell_is_named(project, write, results, failure):
    write("import os, signal\nprint('so far', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)", "x = 1")
    assert failure() == (
        "tiny failed at cell 3: DeadKernelError: the kernel died: killed from outside, out of memory, or a crash in a "
        "library; the notebook up to there is .tokenarium/failed/tiny.ipynb"
    )
    assert last_failure(project, "tiny").cell == 3
    assert results()


def test_a_cell_that_hangs_is_ended_at_its_limit(project, write, results, failure):
    (project / "wait").touch()
    write("x = 1", DISTURBED)
    assert failure(cell_limit=0.05) == (
        "tiny failed at cell 4: CellTimeoutError: it took longer than 0.05 min: raise `cell_limit` of tiny in "
        "params.yaml, or mend the cell; the notebook up to there is .tokenarium/failed/tiny.ipynb"
    )
    assert results()
    assert wait_for(lambda: gone(int((project / "pid").read_text())))
    (project / "wait").unlink()
    write(*GOOD, DISTURBED)
    run_study(project, "tiny", cell_limit=5)


def test_the_limit_of_a_paper_stands_in_params(project, write, failure, change):
    (project / "wait").touch()
    write(DISTURBED)
    change(
        project / "params.yaml",
        r"^    family: toys\n    reads: \[\]$",
        "    family: toys\n    reads: []\n    cell_limit: 0.05",
    )
    assert "CellTimeoutError: it took longer than 0.05 min" in failure()
    for wrong in ("0", "soon", "true", "-1"):
        change(project / "params.yaml", r"cell_limit: .*$", f"cell_limit: {wrong}")
        assert "papers.tiny.cell_limit must be minutes above 0" in failure()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_metric_that_is_no_number_is_refused_by_name(write, results, failure, value):
    write(OPEN, f"study.metric('gain', float('{value}'), (0, 1), how='by hand')", "study.finish()")
    assert failure().startswith("tiny failed at cell 4: TokenariumError: metric 'gain': ")
    assert results()


def test_a_damaged_claims_file_is_named(project, write, results, failure):
    write(*GOOD)
    claims = project / "notebooks" / "toys" / "tiny.claims.yaml"
    good = claims.read_text()
    claims.write_text("claims: [")
    assert "TokenariumError" in (message := failure())
    assert "tiny.claims.yaml" in message
    assert results()
    claims.write_text(good)
    run_study(project, "tiny")


def test_a_damaged_params_file_runs_nothing(project, write, results, failure):
    write(*GOOD)
    (project / "params.yaml").write_text("profile: [cpu\n")
    assert failure().startswith("params.yaml line 2 is not valid YAML")
    assert results()
    assert not (project / ".tokenarium").exists()


# On the disk


@pytest.fixture
def small_files(monkeypatch):
    """No file may grow beyond a megabyte: the system refuses to write more, as it does when the disk is full."""
    monkeypatch.setenv("TOKENARIUM_WARM", "off")  # a fork server with such a limit would be one of its own
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_under_the_notebook_is_one_line(project, write, results, failure, small_files):
    write("print('x' * 3 * 2**20)")
    assert failure() == (
        f"cannot write {project}/.tokenarium/running/tiny/notebook.ipynb: File too large; "
        "free some disk space and run again"
    )
    assert results()


def test_a_disk_that_fills_up_under_the_results_is_one_line(project, write, results, failure, small_files):
    big = 'study.tensor("big", np.zeros(2**20), ("x",), "too much")'
    write(OPEN, RECORD, big, "study.finish()")
    message = failure()
    assert message.startswith("tiny failed at cell 6: TokenariumError: cannot write ")
    assert "free some disk space and run again" in message
    assert results()


def test_the_next_run_takes_away_what_a_full_disk_left(project, write, results, failure):
    left = project / ".tokenarium" / "running" / "tiny" / ".results.partial" / "tensors"
    left.mkdir(parents=True)
    (left / ".tensors.safetensors.ab12").write_bytes(b"half")
    write(*GOOD)
    run_study(project, "tiny")
    assert not results()
    assert not [name for name in snapshot(project, ".tokenarium", "reports", "evaluations") if "partial" in name]


# From outside


@pytest.fixture
def stages(project, write):
    """The paper and its verdict as DVC stages, brought up to date once; a function that runs DVC."""
    from dvc.repo import Repo

    write(OPEN, RECORD, DISTURBED, "study.finish()")
    (project / "model").write_text("weights")
    (project / "dvc.yaml").write_text(
        "stages:\n"
        "  model: {cmd: cp model made, deps: [model], outs: [made]}\n"
        "  paper:\n"
        "    cmd: tokenarium study tiny\n"
        "    deps: [notebooks/toys/tiny.ipynb, made]\n"
        "    outs:\n"
        "      - reports/tiny/notebook.ipynb: {persist: true}\n"
        "      - reports/tiny/evidence.json: {cache: false, persist: true}\n"
        "      - evaluations/toys/tiny: {persist: true}\n"
        "    metrics:\n"
        "      - reports/tiny/metrics.json: {cache: false, persist: true}\n"
        "  verdict:\n"
        "    cmd: tokenarium verdict tiny\n"
        "    deps: [reports/tiny/evidence.json]\n"
        "    outs: [verdicts/tiny.json: {cache: false, persist: true}]\n"
    )
    Repo.init(str(project), no_scm=True).close()
    folder = str(Path(sys.executable).parent)

    def dvc(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project,
            env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    assert finished(dvc("repro"))
    return dvc


def finished(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def up_to_date(project):
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        return repo.status() == {}


@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, ""), (signal.SIGINT, "interrupted; the same command")])
def test_a_run_that_is_cut_off_leaves_a_state_from_which_the_next_goes_on(project, stages, number, said):
    before = snapshot(project, "reports", "evaluations", "verdicts", "made")
    lock = (project / "dvc.lock").read_bytes()
    (project / "wait").touch()
    (project / "pid").unlink()
    running = stages("repro", "--force")
    assert wait_for((project / "pid").exists)
    os.killpg(running.pid, number)
    assert said in running.communicate(timeout=60)[0]
    assert running.returncode != 0
    assert wait_for(lambda: gone(int((project / "pid").read_text())))
    assert snapshot(project, "reports", "evaluations", "verdicts", "made") == before
    assert (project / "dvc.lock").read_bytes() == lock
    assert up_to_date(project)
    (project / "wait").unlink()
    finished(stages("repro", "--force"))
    assert up_to_date(project)


def test_after_a_restart_between_two_stages_only_what_is_missing_runs(project, stages):
    (project / "model").write_text("other weights")
    finished(stages("repro", "paper"))  # the machine goes down here: the verdict is of the run before
    said = finished(stages("repro"))
    assert "Running stage 'paper'" not in said
    assert up_to_date(project)


def test_damaged_outputs_are_made_again(project, stages):
    good = snapshot(project, "reports", "evaluations", "verdicts", "made")
    for name in ("made", "reports/tiny/metrics.json", "evaluations/toys/tiny/results.safetensors"):
        path = project / name
        path.unlink()  # it may be a link into the cache
        path.write_text("{")
    assert not up_to_date(project)
    finished(stages("repro"))
    assert up_to_date(project)
    repaired = snapshot(project, "reports", "evaluations", "verdicts", "made")
    assert set(repaired) == set(good)
    volatile = {"reports/tiny/notebook.ipynb", "reports/tiny/provenance.json"}
    assert {name for name in good if repaired[name] != good[name]} <= volatile


def test_the_second_of_two_runs_at_once_is_refused_and_the_first_goes_on(project, write, failure):
    (project / "wait").touch()
    write(OPEN, RECORD, DISTURBED, "study.finish()")
    first = subprocess.Popen([*CLI, "study", "tiny"], cwd=project, stderr=subprocess.PIPE, text=True)
    assert wait_for((project / "pid").exists)
    assert failure() == "tiny is already running here: wait for it to end, then run it again"
    (project / "wait").unlink()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert (project / "reports" / "tiny" / "evidence.json").is_file()
    run_study(project, "tiny")


# Around it


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("import socket\nsocket.create_connection(('192.0.2.1', 443), timeout=1)", "192.0.2.1"),
        ("import socket\nsocket.create_connection(('example.org', 443), timeout=1)", "example.org"),
        (
            "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            "192.0.2.1:53",
        ),
        ("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=1)", "192.0.2.1"),
    ],
)
@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_a_study_that_asks_the_network_is_refused(offline_run, source, asked, profile):
    said = offline_run(profile, source)
    assert f"TokenariumError: a study at profile {profile} works offline, but the notebook asked for {asked}" in said


@pytest.fixture(scope="module")
def offline_run():
    """What Python says at the end of these lines, in a process of its own."""

    def run(profile, source):
        code = f"from tokenarium.study.offline import keep_offline\nkeep_offline({profile!r})\n{source}\n"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return (done.stderr.strip() or "fine").splitlines()[-1]

    return run


LOCAL = """\
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1])).close()
one, other = socket.socketpair()
try:
    socket.socket(socket.AF_UNIX).connect("/nowhere")
except FileNotFoundError:
    pass
"""


def test_a_machine_may_talk_to_itself(offline_run):
    assert offline_run("cpu", LOCAL) == "fine"


def test_profile_gpu_may_ask_the_network(offline_run):
    ask = "import sys\nsys.audit('socket.getaddrinfo', 'example.org', 443, 0, 0, 0)"  # what a look-up does first
    assert offline_run("gpu", ask) == "fine"
    assert "asked for example.org" in offline_run("cpu", ask)


def test_the_notebook_of_a_study_is_kept_offline(write, results, failure):
    write(OPEN, "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=1)", "study.finish()")
    message = failure()
    assert message.startswith("tiny failed at cell 4: TokenariumError: a study at profile cpu works offline, but")
    assert "the notebook asked for 192.0.2.1" in message
    assert results()


def test_time_zone_locale_and_hash_seed_change_no_result(project, write, monkeypatch):
    monkeypatch.setenv("TOKENARIUM_WARM", "off")  # three fork servers would take longer
    write(*GOOD)
    made = []
    for zone, language, seed in (("Asia/Tokyo", "C", "1"), ("America/New_York", "de_DE.UTF-8", "2")):
        for name, value in (("TZ", zone), ("LC_ALL", language), ("LANG", language), ("PYTHONHASHSEED", seed)):
            monkeypatch.setenv(name, value)
        run_study(project, "tiny")
        made.append(snapshot(project, "reports", "evaluations"))
    volatile = {"reports/tiny/notebook.ipynb", "reports/tiny/provenance.json"}
    one, other = ({name: content for name, content in each.items() if name not in volatile} for each in made)
    assert len(one) >= 8
    assert one == other


def test_a_warm_kernel_gives_the_results_of_an_ordinary_one(project, write, monkeypatch):
    with warm_kernels() as installed:
        if not installed:
            pytest.skip("the package is not installed: make setup")
    torch = "import torch\nx = torch.randn(64, 64)\nvalue = float((x @ x.T).logsumexp(0).mean())"
    metric = "study.metric('mean', value, (value, value), how='by hand')"
    write(OPEN, RECORD, torch, metric, "study.finish()")
    made = []
    for switch in ("on", "off"):
        monkeypatch.setenv("TOKENARIUM_WARM", switch)
        run_study(project, "tiny")
        made.append(snapshot(project, "reports", "evaluations"))
    volatile = {"reports/tiny/notebook.ipynb", "reports/tiny/provenance.json"}
    warm, plain = ({name: content for name, content in each.items() if name not in volatile} for each in made)
    assert warm == plain


def test_an_interruption_leaves_no_kernel_behind(project, write, results):
    (project / "wait").touch()
    write(DISTURBED)
    running = subprocess.Popen([*CLI, "study", "tiny"], cwd=project, stderr=subprocess.PIPE, text=True)
    assert wait_for((project / "pid").exists)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "tokenarium: interrupted; the same command goes on from here"
    assert wait_for(lambda: gone(int((project / "pid").read_text())))
    assert results()
