"""Leases among many processes: none is lost, none outlives its process, and nobody gets what is not there."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nvml_standin import StandIn

from tokenarium.errors import TokenariumError
from tokenarium.run.gpu import lease as lease_module
from tokenarium.run.gpu.lease import Leases, default_directory, duration, rooms
from tokenarium.run.gpu.nvml import Gpu

SCRIPT = Path(__file__).with_name("nvml_standin.py")
TOTAL = 10_000


def gpu(uuid="GPU-a", total=TOTAL, free=TOTAL, processes=None):
    return {"uuid": uuid, "name": "a stand-in", "total": total, "free": free, "processes": processes}


@pytest.fixture
def machine(tmp_path):
    """A machine with one empty GPU: set(...) changes it, of(user) are the leases as a user sees them."""

    class Machine:
        directory, state = tmp_path / "shared" / "leases", tmp_path / "nvml.json"

        def set(self, *gpus):
            self.state.write_text(json.dumps(gpus))

        def of(self, user="anna", limit=4):
            return Leases(self.directory, StandIn(self.state), user, limit)

        def files(self):
            return sorted(path.name for path in self.directory.iterdir() if path.name != "lock")

    machine = Machine()
    machine.set(gpu())
    return machine


@pytest.fixture
def start(machine):
    """Start a process that takes a lease; each ends with the test."""
    running = []

    def start(study, need, user="anna", limit=4):
        command = [sys.executable, SCRIPT, machine.directory, machine.state, user, study, str(need), str(limit)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def line(process, start):
    """The next line that a process prints which starts so."""
    for text in process.stdout:
        if text.startswith(start):
            return text.strip()
    raise AssertionError(f"the process ended without '{start}'")


def refused(leases, need, study="late"):
    with pytest.raises(TokenariumError, match="no GPU memory within 0 s") as error:
        leases.take(study, need, say=lambda line: None, timeout=0)
    assert "\n" not in str(error.value)
    return str(error.value)


# One process


def test_a_lease_is_a_file_for_as_long_as_it_is_held(machine):
    leases = machine.of()
    with leases.take("tiny", 4000) as lease:
        (record,) = leases.records()
        assert (record.study, record.user, record.need, record.gpu) == ("tiny", "anna", 4000, "GPU-a")
        assert record.pid == os.getpid()
        assert (lease.gpu, lease.need, lease.held) == ("GPU-a", 4000, True)
        assert machine.files() == [f"lease-{record.id}.json"]
    assert not lease.held
    assert leases.records() == []
    assert machine.files() == []
    lease.release()  # a second time does nothing


def test_all_users_can_read_and_write_whatever_the_umask(machine):
    before = os.umask(0o077)
    try:
        with machine.of().take("tiny", 1):
            assert stat.S_IMODE(machine.directory.stat().st_mode) == 0o1777
            assert stat.S_IMODE((machine.directory / "lock").stat().st_mode) == 0o666
            (name,) = machine.files()
            assert stat.S_IMODE((machine.directory / name).stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_asking_who_holds_what_makes_no_directory(machine):
    assert machine.of().records() == []
    assert not machine.directory.exists()


def test_what_is_leased_is_not_leased_twice(machine):
    with machine.of().take("first", 6000):
        message = refused(machine.of("bob"), 6000)
        assert "held by first of anna (6.3 GB, process" in message
        assert "6.3 GB needed, 4.2 GB free for leases" in message
        with machine.of("bob").take("second", 4000):
            refused(machine.of("carol"), 1)
        with machine.of("carol").take("third", 4000):
            pass


def test_a_request_that_gave_up_leaves_the_queue(machine):
    with machine.of().take("first", 6000):
        refused(machine.of("bob"), 6000)
        assert [record.study for record in machine.of().records()] == ["first"]


def test_ctrl_c_leaves_the_queue(machine):
    def interrupted(line):
        raise KeyboardInterrupt

    with machine.of().take("first", 6000):
        with pytest.raises(KeyboardInterrupt):
            machine.of("bob").take("second", 6000, say=interrupted)
        assert [record.study for record in machine.of().records()] == ["first"]


def test_more_than_the_largest_gpu_is_refused_at_once(machine):
    with pytest.raises(TokenariumError, match=r"huge declares 10\.5 GB .*the largest here has 10\.5 GB: declare less"):
        machine.of().take("huge", TOTAL + 1)


def test_memory_that_other_programs_use_is_not_leased(machine):
    machine.set(gpu(free=3000))
    assert "for programs without a lease; 4.2 GB needed, 3.1 GB free" in refused(machine.of(), 4000)
    with machine.of().take("small", 3000):
        pass


def test_a_lease_counts_in_full_before_and_while_it_is_used(machine):
    with machine.of().take("first", 6000):
        assert rooms(machine.of().records(), machine.of().nvml.gpus())[0].free == 4000
        machine.set(gpu(free=4500, processes={str(os.getpid()): 5500}))
        assert rooms(machine.of().records(), [Gpu("GPU-a", "", TOTAL, 4500, {os.getpid(): 5500})])[0].free == 4000


def test_other_programs_count_beside_a_lease_that_is_not_used_yet(machine):
    with machine.of().take("first", 6000):
        records = machine.of().records()
        (told,) = rooms(records, [Gpu("GPU-a", "", TOTAL, 7000, {1: 2900})])
        assert (told.free, told.pieces) == (1000, (6000, 2900))
        (untold,) = rooms(records, [Gpu("GPU-a", "", TOTAL, 7000, None)])
        assert (untold.free, untold.pieces) == (4000, (6000,))
        (beyond,) = rooms(records, [Gpu("GPU-a", "", TOTAL, 3500, None)])
        assert (beyond.free, beyond.pieces) == (3500, (6000, 500))


def test_the_second_gpu_is_taken_when_the_first_is_full(machine):
    machine.set(gpu("GPU-a"), gpu("GPU-b", free=9000))
    with machine.of().take("first", 6000) as one, machine.of("bob").take("second", 6000) as other:
        assert (one.gpu, other.gpu) == ("GPU-a", "GPU-b")
        refused(machine.of("carol"), 6000)


def test_a_user_holds_no_more_leases_than_allowed(machine):
    with machine.of("anna", 2).take("one", 1), machine.of("anna", 2).take("two", 1):
        assert "anna holds 2 of 2 leases: one of anna" in refused(machine.of("anna", 2), 1)
        with machine.of("bob", 2).take("three", 1):
            pass


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_whole_number_is_refused(machine, monkeypatch, text):
    monkeypatch.setenv("TOKENARIUM_GPU_LIMIT", text)
    with pytest.raises(TokenariumError, match="TOKENARIUM_GPU_LIMIT must be a whole number above 0"):
        Leases(machine.directory)


def test_the_settings_come_from_the_environment(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENARIUM_GPU_LIMIT", "7")
    monkeypatch.setenv("TOKENARIUM_GPU_LEASES", str(tmp_path / "here"))
    leases = Leases()
    assert (leases.limit, leases.directory) == (7, tmp_path / "here")


def test_the_default_directory_depends_on_the_machine_and_not_on_who_asks(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENARIUM_GPU_LEASES", raising=False)
    closed, open_to_all = tmp_path / "closed", tmp_path / "open"
    closed.mkdir(mode=0o755)
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    monkeypatch.setattr(lease_module, "SHARED", (closed, open_to_all))
    assert default_directory() == open_to_all / "tokenarium-gpu"


@pytest.mark.parametrize("make", ["link", "file"])
def test_a_directory_that_is_none_is_refused(machine, tmp_path, make):
    machine.directory.parent.mkdir()
    if make == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o1777)
        machine.directory.symlink_to(tmp_path / "elsewhere")
    else:
        machine.directory.write_text("")
    with pytest.raises(TokenariumError, match="is no directory that all users may write in"):
        machine.of().take("tiny", 1)


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (89, "89 s"), (100, "2 min"), (9000, "2.5 h"), (-3, "0 s")])
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


# Files that are not what they should be


def test_a_file_of_a_dead_process_counts_for_nothing_even_if_its_process_id_lives_again(machine):
    with machine.of().take("first", 6000):
        (name,) = machine.files()
        copy = (machine.directory / name).read_text()
    stale = machine.directory / name
    stale.write_text(copy)  # names this process, which lives, but nobody has it locked
    with machine.of("bob").take("second", TOTAL):
        assert not stale.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"gpus": 3}', b"[" * 70000, b'{"gpus": [], "id": 1}'],
)
def test_a_corrupted_file_is_no_lease_and_stops_nobody(machine, content):
    with machine.of().take("first", 1):
        pass
    for locked, name in ((True, "lease-0123456789abcdef.json"), (False, "lease-fedcba9876543210.json")):
        path = machine.directory / name
        path.write_bytes(content)
        with open(path, "rb") as file:
            if locked:
                lease_module.fcntl.flock(file, lease_module.fcntl.LOCK_EX)
            with machine.of().take("second", TOTAL):
                assert path.exists() == locked
            assert machine.of().records() == []


@pytest.mark.parametrize(
    "change",
    [
        {"need": 10**30},
        {"need": -1},
        {"need": True},
        {"since": float("nan")},
        {"since": 1e300},
        {"user": "\x1b[2J"},
        {"gpus": [1]},
        {"more": 1},
        {"ticket": "1"},
        {"id": "0" * 16},
    ],
)
def test_a_forged_record_of_a_live_process_is_no_lease(machine, change):
    with machine.of().take("first", 1):
        (name,) = machine.files()
        path = machine.directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert machine.of().records() == []
        with machine.of("bob").take("second", TOTAL):
            pass


def test_nothing_else_in_the_directory_is_touched(machine, tmp_path):
    with machine.of().take("first", 1):
        pass
    (machine.directory / "notes.txt").write_text("mine")
    (machine.directory / "lease-0123456789abcdef.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(machine.directory / "lease-fedcba9876543210.json")  # to open it must not hang
    before = machine.files()
    with machine.of().take("second", TOTAL):
        pass
    assert machine.files() == before


# Many processes


def test_a_killed_holder_gives_its_memory_back(machine, start):
    holder = start("first", 6000)
    line(holder, "holds")
    waiter = start("second", 6000, "bob")
    assert "held by first of anna (6.3 GB, process" in line(waiter, "second: waiting, 0 s so far")
    holder.send_signal(signal.SIGKILL)
    assert line(waiter, "holds") == "holds GPU-a"
    assert [record.study for record in machine.of().records()] == ["second"]


def test_a_killed_waiter_makes_way(machine, start):
    with machine.of().take("first", 6000):
        head = start("head", TOTAL)
        line(head, "head: waiting")
        later = start("later", 4000, "bob")  # fits, and would delay the head
        assert "before it in the queue: head of anna" in line(later, "later: waiting")
        head.kill()
        line(later, "holds")


def test_a_fork_of_a_killed_holder_does_not_keep_its_lease(machine, tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from nvml_standin import StandIn
from tokenarium.run.gpu.lease import Leases
lease = Leases(Path({str(machine.directory)!r}), StandIn({str(machine.state)!r}), "anna", 4).take("first", 6000)
if not os.fork():
    print(os.getpid(), flush=True)  # by now the child has dropped what it shares
time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(holder.stdout.readline())
    try:
        assert len(machine.of().records()) == 1
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # still there
        assert machine.of().records() == []
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.parametrize("name", ["rename", "fchmod", "write"])
def test_a_crash_while_a_lease_is_written_leaves_nothing_that_counts(machine, name):
    with machine.of().take("before", 1):
        pass
    child = os.fork()
    if child == 0:
        setattr(os, name, lambda *arguments: os._exit(3))
        try:
            machine.of("bob").take("first", 6000)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    (left,) = machine.files()
    assert left.startswith(".lease-")
    with machine.of().take("second", TOTAL):
        assert len(machine.files()) == 1
    assert machine.files() == []


def test_a_crash_between_waiting_and_holding_leaves_nothing_that_counts(machine):
    child = os.fork()
    if child == 0:
        renamed, calls = os.rename, []

        def once(*names):
            if str(names[1]).endswith(".json"):
                calls.append(names)
            if len(calls) == 2:
                os._exit(3)
            renamed(*names)

        os.rename = once
        try:
            machine.of("bob").take("first", 6000)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert len(machine.files()) == 2
    with machine.of().take("second", TOTAL):
        assert len(machine.files()) == 1


def test_a_full_disk_is_one_line_and_leaves_no_file(machine, monkeypatch):
    with machine.of().take("first", 1):
        pass
    monkeypatch.setattr(os, "write", lambda descriptor, content: len(content) - 1)
    with pytest.raises(TokenariumError, match="No space left on device; free some disk space"):
        machine.of().take("second", 1)
    monkeypatch.undo()
    assert machine.files() == []


def test_equal_jobs_get_the_gpu_in_the_order_in_which_they_came(machine, start):
    users = ["anna", "bob", "carol", "anna", "bob"]
    with machine.of("dora").take("first", 6000):
        jobs = []
        for place, user in enumerate(users):
            jobs.append(start(f"job{place}", 6000, user))
            line(jobs[-1], f"job{place}: waiting")
        assert [record.study for record in machine.of().records()][1:] == [f"job{place}" for place in range(5)]
    for place, job in enumerate(jobs):
        line(job, "holds")
        held = [record.study for record in machine.of().records() if record.gpu]
        assert held == [f"job{place}"]
        job.stdin.close()
        line(job, "done")


def test_a_small_job_passes_and_the_head_still_starts_when_it_would_have(machine, start):
    with machine.of("anna").take("first", 6000):
        head = start("head", 8000, "bob")
        line(head, "head: waiting")
        small = start("small", 2000, "carol")
        line(small, "holds")
        greedy = start("greedy", 2000, "dora")
        line(greedy, "greedy: waiting")
    line(head, "holds")
    assert {record.study for record in machine.of().records() if record.gpu} == {"head", "small"}


def test_many_processes_never_hold_more_than_there_is_even_when_some_are_killed(machine):
    machine.set(gpu("GPU-a"), gpu("GPU-b", total=6000, free=6000))
    sizes, users, limit, too_much = {"GPU-a": TOTAL, "GPU-b": 6000}, "abc", 2, 4

    def work(number):
        random.seed(number)
        for turn in range(4):
            leases = machine.of(users[number % 3], limit)
            need = random.choice([800, 2000, 3500, 6000, 9000])
            with leases.take(f"job{turn}", need, lambda line: None, poll=0.01) as lease:
                held = [record for record in leases.records() if record.gpu]
                if sum(record.need for record in held if record.gpu == lease.gpu) > sizes[lease.gpu]:
                    return too_much
                if sum(record.user == leases.user for record in held) > limit:
                    return too_much
                time.sleep(random.random() / 50)
                if number % 5 == 4 and turn == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
        return 0

    children = []
    for number in range(16):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = work(number)
            finally:
                os._exit(status)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [-signal.SIGKILL if number % 5 == 4 else 0 for number in range(16)]
    assert machine.of().records() == []
    with machine.of().take("all", TOTAL):
        assert len(machine.files()) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_two_users_of_the_system_share_the_directory(machine, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:3]):  # one more where several processes test
        if "pytest" in folder.as_posix():
            folder.chmod(0o755)
    stale = machine.directory / "lease-0123456789abcdef.json"
    with machine.of("root").take("first", 6000):
        stale.write_text("{}")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                leases = machine.of("nobody")
                assert [record.study for record in leases.records()] == ["first"]
                refused(leases, 6000)
                with leases.take("second", 4000):
                    assert stale.exists()  # not theirs to remove
                    assert len(leases.records()) == 2
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [record.study for record in machine.of("root").records()] == ["first"]
    assert not stale.exists()
