"""Warm kernels: like ordinary ones in everything that a notebook can see, and ordinary ones when anything is off."""

import asyncio
import importlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from queue import Empty

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from tokenarium.run.warm import ColdKernel, client, identity, provisioner, server
from tokenarium.run.warm.client import WarmProcess
from tokenarium.run.warm.ready import PromptClient

ROOT = Path(__file__).parents[2]
NAME, VALUE = "tokenarium-warm", "tokenarium.run.warm.provisioner:WarmProvisioner"
# A fork server that imports nothing, for what does not need its imports; the words are put in below.
BARE = """\
import tokenarium.run.warm.server as server
server.preload = lambda: {refusal!r}
server.IDLE_SECONDS, server.TICK_SECONDS = {idle}, 0.05
{more}
server.main()
"""
NUMBERS = itertools.count()
PROBE = """\
import json, locale, multiprocessing, os, resource, select, signal, sys, time
import matplotlib.pyplot, numpy, torch
from IPython import get_ipython
print(json.dumps({
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "path": sys.path,
    "arguments": [os.path.basename(sys.argv[0]), sys.argv[1], *sys.argv[3:]],
    "flags": str(sys.flags),
    "main": __name__,
    "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "umask": os.umask(0o077),
    "limits": [resource.getrlimit(which) for which in range(10)],
    "processors": sorted(os.sched_getaffinity(0)),
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
    "input": os.read(0, 1).decode(),
    "locale": [locale.getlocale(), time.tzname, sys.stdout.encoding, sys.getfilesystemencoding()],
    "backend": matplotlib.get_backend(),
    "style": repr(matplotlib.rcParams),
    "start": multiprocessing.get_start_method(),
    "files": sorted({os.path.basename(os.readlink(f"/proc/self/fd/{n}")) for n in os.listdir("/proc/self/fd")
                     if os.path.exists(f"/proc/self/fd/{n}") and os.path.isfile(f"/proc/self/fd/{n}")}),
    "threading": str(torch.__config__.parallel_info()).split("Environment")[0],
    "set": [hash("tokenarium")] if os.environ.get("PYTHONHASHSEED") else [],
    "cuda": torch.cuda.is_initialized(),
    "polls": any("Poller" in type(t).__name__ or t.name == "requester" for t in __import__("threading").enumerate()),
}))
"""


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The kernel `tokenarium` and its provisioner, also where the package is not installed."""
    monkeypatch.setitem(
        KernelProvisionerFactory.instance().provisioners,
        NAME,
        EntryPoint(NAME, VALUE, KernelProvisionerFactory.GROUP_NAME),
    )
    spec = tmp_path / "jupyter" / "kernels" / "tokenarium"
    spec.mkdir(parents=True)
    source = ROOT / "lib" / "tokenarium" / "run" / "warm" / "kernelspec" / "kernel.json"
    (spec / "kernel.json").write_bytes(source.read_bytes())
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Have servers of their own for this test, which import nothing."""
    place = f"bare{next(NUMBERS)}"

    def bare(idle=60.0, refusal=None, more=""):
        code = BARE.format(idle=idle, refusal=refusal, more=more)
        monkeypatch.setattr(client, "SERVER", ("-c", code))
        monkeypatch.setattr(identity, "place", lambda: place)

    yield bare
    client.retire(identity.runtime_folder(), f"{place}-*")


class Running:
    """A kernel and the client that talks to it."""

    def __init__(self, name="tokenarium", **kwargs):
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(**kwargs)
        self.process = self.manager.provisioner.process
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, source):
        said = []

        def hear(message):
            if message["msg_type"] in {"stream", "error"}:
                said.append(message["content"].get("text") or message["content"]["ename"])

        self.client.execute_interactive(source, output_hook=hear, timeout=60)
        return "".join(said)

    def stop(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    """Start kernels that end with the test."""
    started = []

    def kernel(name="tokenarium", **kwargs):
        started.append(Running(name, **kwargs))
        return started[-1]

    yield kernel
    for each in started:
        each.stop()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def gone(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_package_and_its_kernel_name_the_same_provisioner():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (value,) = {
        value for name, value in project["entry-points"][KernelProvisionerFactory.GROUP_NAME].items() if name == NAME
    }
    assert value == VALUE
    module, _, thing = value.partition(":")
    assert hasattr(importlib.import_module(module), thing)
    spec = json.loads((ROOT / "lib/tokenarium/run/warm/kernelspec/kernel.json").read_text())
    assert spec["metadata"]["kernel_provisioner"] == {"provisioner_name": NAME}
    assert "--sys-prefix --name tokenarium lib/tokenarium/run/warm/kernelspec" in (ROOT / "Makefile").read_text()


def test_a_notebook_cannot_tell_a_warm_kernel_from_an_ordinary_one(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_SETTING", "of the stage")
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    asked = {"cwd": str(tmp_path), "extra_arguments": ["--HistoryManager.hist_file=:memory:"]}
    before = os.umask(0o027)
    try:
        warm, plain = (kernel(name, **asked) for name in ("tokenarium", "python3"))
    finally:
        os.umask(before)
    assert isinstance(warm.process, WarmProcess)
    assert not isinstance(plain.process, WarmProcess)
    seen, expected = (json.loads(each.run(PROBE).splitlines()[-1]) for each in (warm, plain))
    assert expected["environment"]["SOME_SETTING"] == "of the stage"
    assert expected["folder"] == str(tmp_path)
    assert expected["umask"] == 0o027
    assert seen == expected


def test_every_warm_kernel_draws_its_own_random_numbers(kernel):
    draw = (
        "import multiprocessing, random, numpy, torch, uuid\n"
        "print(random.random(), numpy.random.rand(), torch.rand(1).item(), uuid.uuid4(),\n"
        "      multiprocessing.current_process().authkey.hex())"
    )
    one, other = (kernel().run(draw).split() for _ in range(2))
    assert len(one) == 5
    assert not set(one) & set(other)


def test_the_slow_packages_are_there_before_the_first_import(kernel):
    packages = {"torch", "transformers", "seaborn", "pandas", "tokenarium.study.study"}
    assert kernel().run(f"import sys; print({packages} <= set(sys.modules))").split() == ["True"]


def test_a_kernel_is_interrupted_and_goes_on(kernel):
    running = kernel()
    # An error would have the kernel abort what is asked for right after it.
    code = "import time\nprint('asleep', flush=True)\ntime.sleep(60)"
    asked = running.client.execute(code, stop_on_error=False)
    while running.client.get_iopub_msg(timeout=30)["content"].get("text") != "asleep\n":
        pass
    running.manager.interrupt_kernel()
    while (reply := running.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert running.run("print(1)") == "1\n"


@pytest.mark.parametrize(
    ("source", "status"),
    [("import os; os._exit(3)", 3), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_the_exit_status_of_a_kernel_is_known(kernel, source, status):
    running = kernel()
    assert running.process.poll() is None
    running.client.execute(source)
    assert running.process.wait(30) == status
    assert running.process.poll() == status


def test_a_signal_reaches_the_kernel_and_what_it_started(kernel):
    running = kernel()
    child = int(running.run("import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"))
    assert not gone(child)
    running.manager.signal_kernel(signal.SIGKILL)
    assert running.process.wait(30) == -signal.SIGKILL
    assert wait_for(lambda: gone(child))


def test_a_shut_down_kernel_does_what_it_meant_to_do_at_its_end(kernel, tmp_path):
    running = kernel(cwd=str(tmp_path))
    pid = running.process.pid
    assert running.run("import atexit; _ = atexit.register(lambda: open('left', 'w').write('so'))") == ""
    running.manager.shutdown_kernel()
    assert (tmp_path / "left").read_text() == "so"
    assert wait_for(lambda: not Path("/proc", str(pid)).exists())


def test_the_control_thread_of_a_kernel_has_ended_when_its_exit_functions_run(kernel, tmp_path):
    """Else it may wait for the output thread, which one of them stops, and the kernel hangs at its end."""
    running = kernel(cwd=str(tmp_path))
    spy = """
import atexit
from ipykernel.kernelapp import IPKernelApp

app = IPKernelApp.instance()
_ = atexit.register(lambda: open('alive', 'w').write(str(app.control_thread.is_alive())))
"""
    assert running.run(spy) == ""
    running.manager.shutdown_kernel()
    assert (tmp_path / "alive").read_text() == "False"


def test_a_kernel_ends_with_the_process_that_asked_for_it():
    starter = (
        "import os\n"
        "from jupyter_client.manager import KernelManager\n"
        "from tokenarium.run.warm import client\n"
        "env = dict(os.environ)\n"
        "connection = client.ask([__import__('sys').executable, *client.LAUNCHER, 'none.json'], env)\n"
        "connection.settimeout(120)\n"
        "print(client.answer(connection).pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True, timeout=150)
    assert wait_for(lambda: gone(int(done.stdout)))


def test_a_kernel_outlives_its_server(kernel, bare):
    bare()
    running = kernel()
    parent = int(running.run("import os; print(os.getppid())"))
    os.kill(parent, signal.SIGKILL)
    assert wait_for(lambda: gone(parent))
    assert running.run("print(2)") == "2\n"
    assert running.process.poll() is None
    running.client.execute("exit()")
    assert running.process.wait(30) == 255


def test_a_jupyter_server_forks_several_at_once(monkeypatch):
    monkeypatch.setattr(KernelProvisionerFactory.instance(), "default_provisioner_name", NAME)

    async def several():
        manager = AsyncMultiKernelManager()
        names = await asyncio.gather(*(manager.start_kernel(kernel_name="python3") for _ in range(3)))
        processes = [manager.get_kernel(name).provisioner.process for name in names]
        await manager.shutdown_all(now=True)
        return processes

    processes = asyncio.run(several())
    assert all(isinstance(process, WarmProcess) for process in processes)
    assert len({process.pid for process in processes}) == 3
    assert all(process.returncode is not None for process in processes)


def conversation(act):
    """What `act(manager, client)` gives with an asynchronous manager and its connected client, as in papermill."""

    async def talk():
        manager = AsyncKernelManager(kernel_name="tokenarium")
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            return await act(manager, client)
        finally:
            client.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)

    return asyncio.run(talk())


def test_a_ready_kernel_has_said_all_that_it_had_to_say():
    async def act(manager, client):
        await client.wait_for_ready(timeout=60)
        with pytest.raises(Empty):
            await client.get_iopub_msg(timeout=0.5)
        with pytest.raises(Empty):
            await client.get_shell_msg(timeout=0.1)
        heard = []
        await client.execute_interactive("print(3)", output_hook=heard.append, timeout=60)
        return type(client), [each["content"]["text"] for each in heard if each["msg_type"] == "stream"]

    assert conversation(act) == (PromptClient, ["3\n"])


def test_a_kernel_that_dies_before_it_is_ready_is_not_waited_for():
    async def act(manager, client):
        await manager.signal_kernel(signal.SIGKILL)
        await client.wait_for_ready(timeout=60)

    with pytest.raises(RuntimeError, match="Kernel died before replying"):
        conversation(act)


def test_a_silent_kernel_is_waited_for_as_long_as_asked():
    async def act(manager, client):
        await manager.signal_kernel(signal.SIGSTOP)
        await client.wait_for_ready(timeout=1)

    with pytest.raises(RuntimeError, match="Kernel didn't respond in 1 seconds"):
        conversation(act)


def test_a_kernel_that_was_asked_to_end_has_ended_or_is_left_to_its_manager(monkeypatch):
    monkeypatch.setattr(provisioner, "END_SECONDS", 0.2)

    async def act(manager, client):
        await client.wait_for_ready(timeout=60)
        await manager.signal_kernel(signal.SIGSTOP)
        process = manager.provisioner.process
        await manager.provisioner.shutdown_requested()  # it cannot hear it
        silent = process.poll()
        await manager.signal_kernel(signal.SIGCONT)
        await manager.shutdown_kernel()
        return silent, process.poll()

    assert conversation(act) == (None, 0)


# An ordinary kernel instead


def start(caplog):
    """Start a kernel, stop it again; whether it was warm, and what was logged of it."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="tokenarium"):
        manager = KernelManager(kernel_name="tokenarium")
        manager.start_kernel()
        warm = isinstance(manager.provisioner.process, WarmProcess)
        manager.shutdown_kernel(now=True)
    return warm, [record.getMessage() for record in caplog.records if record.name.startswith("tokenarium")]


def ordinary(reason):
    return False, [f"an ordinary kernel instead of a warm one: {reason}"]


def test_a_server_that_is_not_safe_to_fork_gives_its_reason(bare, caplog):
    bare(refusal="the imports left 2 threads running")
    assert start(caplog) == ordinary("the imports left 2 threads running")


def test_a_server_that_started_a_thread_later_is_not_forked(bare, caplog):
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True)"
    bare(more=f"import threading, time\nserver.preload = lambda: {thread}.start()")
    assert start(caplog) == ordinary("the fork server has 2 threads")


def test_a_server_that_crashes_is_no_obstacle(bare, caplog):
    bare(more="server.read_request = lambda *request: __import__('os').abort()")
    assert start(caplog) == ordinary("the fork server ended")


def test_a_folder_that_others_can_enter_is_not_trusted(caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "tokenarium").mkdir(mode=0o755)
    assert start(caplog) == ordinary(f"{tmp_path}/tokenarium is not a folder that only you can enter")
    (tmp_path / "tokenarium").rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "tokenarium").symlink_to(tmp_path / "elsewhere")
    assert start(caplog) == ordinary(f"{tmp_path}/tokenarium is not a folder that only you can enter")


def test_a_path_that_depends_on_the_folder_is_ordinary(caplog, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "lib:/opt")
    assert start(caplog) == ordinary("PYTHONPATH depends on the working directory")


def test_switched_off_nothing_is_said(caplog, monkeypatch):
    monkeypatch.setenv("TOKENARIUM_WARM", "off")
    assert start(caplog) == (False, [])


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/python3", "-m", "ipykernel_launcher", "-f", "c.json"],
        [sys.executable, "-m", "xeus", "-f", "c.json"],
        [sys.executable, "-I", "-m", "ipykernel_launcher", "-f", "c.json"],
        [sys.executable, "-m", "ipykernel_launcher", "-f", "c.json", "and", "more"],
        [sys.executable, "-m", "ipykernel_launcher", "-f"],
    ],
)
def test_any_other_command_is_not_forked(command):
    with pytest.raises(ColdKernel, match="is not this Python's plain kernel"):
        client.ask(command, dict(os.environ))


def test_a_kernel_that_is_to_outlive_its_starter_is_not_forked():
    with pytest.raises(ColdKernel, match="a kernel with independent is a process of its own"):
        client.ask([sys.executable, *client.LAUNCHER, "c.json"], dict(os.environ), independent=True)


# Which server, and how long


def test_a_server_is_named_by_what_it_imported_and_read(monkeypatch, tmp_path):
    suite = tmp_path / "tokenarium"
    suite.mkdir()
    (suite / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(identity, "SUITE", suite)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TOKENARIUM_OUTPUT": "a", "CUDA_VISIBLE_DEVICES": "0"}
    first = identity.code(environment)
    assert identity.code(environment | {"TOKENARIUM_OUTPUT": "b", "CUDA_VISIBLE_DEVICES": "1", "PWD": "/"}) == first
    others = [
        identity.code(environment | change)
        for change in ({"OMP_NUM_THREADS": "2"}, {"PYTHONHASHSEED": "1"}, {"TZ": "UTC"})
    ]
    (suite / "one.py").write_text("x = 22\n")
    others.append(identity.code(environment))
    (suite / "two.py").write_text("")
    others.append(identity.code(environment))
    assert len({first, *others}) == 6


def test_another_limit_is_another_place():
    code = "import resource\nfrom tokenarium.run.warm.identity import place\nprint(place())\n"
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 100))\nprint(place())"
    done = subprocess.run([sys.executable, "-c", code + lower], capture_output=True, text=True, check=True)
    one, other = done.stdout.split()
    assert one != other


def fork():
    """Ask the server for a kernel that has nothing to do, and wait for its end; raises ColdKernel for none."""
    connection = client.ask([sys.executable, *client.LAUNCHER, "none.json"], dict(os.environ))
    connection.settimeout(60)
    process = client.answer(connection)
    process.kill()
    assert process.wait(30) is not None


@pytest.fixture
def socket_path(bare):
    bare(idle=0.2)
    return identity.runtime_folder() / f"{identity.place()}-{identity.code(os.environ)}.socket"


def test_an_idle_server_ends(socket_path):
    fork()
    assert wait_for(lambda: not socket_path.exists())
    fork()  # by another one


def test_a_server_whose_sources_changed_takes_no_more_requests(bare):
    bare(
        more="from tokenarium.run.warm import identity\ncodes = iter('aab')\nidentity.code = lambda e: next(codes, 'b')"
    )
    path = identity.runtime_folder() / f"{identity.place()}-{identity.code(os.environ)}.socket"
    fork()
    assert wait_for(lambda: not path.exists())


def test_a_new_server_retires_the_old_one(bare, monkeypatch):
    bare()
    old = identity.runtime_folder() / f"{identity.place()}-{identity.code(os.environ)}.socket"
    fork()
    assert old.exists()
    monkeypatch.setenv("PYTHONHASHSEED", "11")
    new = identity.runtime_folder() / f"{identity.place()}-{identity.code(os.environ)}.socket"
    fork()
    assert new.exists()
    assert wait_for(lambda: not old.exists())


def test_the_imports_leave_one_thread_and_no_file_open():
    code = (
        "import os\nfrom tokenarium.run.warm import server\n"
        "os.environ.update(server.DEFAULTS)\nprint(server.preload(), server.threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "1"]


def test_an_import_that_leaves_a_file_open_is_found(monkeypatch, tmp_path):
    (tmp_path / "keeps_a_file.py").write_text("file = open(__file__)\n")
    code = (
        "import tokenarium.run.warm.server as server\n"
        "server.PACKAGES, server.pkgutil.walk_packages = ('keeps_a_file',), lambda *a, **k: []\n"
        "print(server.preload())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"the imports left {tmp_path}/keeps_a_file.py open"
    assert server.PACKAGES
