"""Where tasks run: Ray, on this machine or on a cluster, behind five methods that a test can stand in for."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psutil

from tokenarium.errors import TokenariumError
from tokenarium.run.parallel import worker
from tokenarium.run.parallel.scheduler import Node
from tokenarium.run.parallel.worker import Outcome, Task
from tokenarium.run.resources import Resources

GB = 1e9
OBJECT_STORE = 80 * 2**20  # bytes, about the least that Ray takes: stages hand on files, not objects
TOKEN = secrets.token_hex(32)  # of this process: Ray reads it once
STARTS = 3  # tries: Ray gives its processes half a minute to start, which a busy machine may need longer for
LEAVING = worker.GRACE + 3.0  # seconds until a cancelled worker is killed


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Settings for Ray while it starts; the stages see none of them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end(processes: set[psutil.Process]) -> None:
    """Kill these processes and all below them."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    psutil.wait_procs(list(processes), timeout=5)


class Executor(Protocol):
    """Runs tasks on nodes. `open` comes first, `close` last; `stop` ends all that runs and waits for that."""

    def open(self) -> list[Node]: ...
    def start(self, task: Task, needs: Resources, node: Node) -> None: ...
    def wait(self, seconds: float) -> list[tuple[str, Outcome]]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


def gpu_memory() -> tuple[float, ...]:
    """Memory of each GPU of this machine in GB, by nvidia-smi; () without one."""
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
        return tuple(float(line) * 2**20 / GB for line in told.split("\n") if line.strip())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def local_node() -> Node:
    """This machine as it is now: cores that this process may use, free memory, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node("localhost", cores, psutil.virtual_memory().available / GB, gpu_memory())


class RayExecutor:
    """Ray on this machine, or on the cluster at `address`, whose nodes must share the checkout's file system.

    A local one listens on the loopback interface only, behind a token of its own, sends no usage statistics, and
    keeps its files in a temporary folder that `close` removes. `cpus` replaces the number of cores of this machine.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None):
        self._address, self._cpus = address, cpus
        self._ray: Any = None
        self._folder: str | None = None
        self._remote: Any = None
        self._tasks: dict[Any, str] = {}
        self._known: list[Node] = []

    def open(self) -> list[Node]:
        """Start or join Ray, once, and return its nodes. Raises TokenariumError when it is missing or stays silent."""
        if self._known:
            return self._known
        local = self._address is None
        settings = {"RAY_USAGE_STATS_ENABLED": "0"}
        if local:
            settings |= {
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux as there: bind the loopback interface only
                "RAY_worker_niceness": "0",  # else stages run at a lower priority than under `dvc repro`
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": TOKEN,  # else Ray writes one to the home folder
            }
        with _environment(settings):
            try:
                import ray
            except ImportError:
                raise TokenariumError("-j needs Ray: pip install 'tokenarium[parallel]', or leave -j out") from None
            if local and ray._private.ray_constants.ENABLE_RAY_CLUSTER:
                raise RuntimeError("ray was imported before it could be told to stay on the loopback interface")
            self._ray = ray
            machine = local_node()
            for left in reversed(range(STARTS if local else 1)):
                before = set(psutil.Process().children())
                try:
                    self._join(machine if local else None)
                    break
                except Exception as error:  # Ray raises plain ones here
                    self.close()
                    _end(set(psutil.Process().children()) - before)  # a start that failed leaves processes behind
                    if not left:
                        where = "on this machine" if local else f"at {self._address}"
                        told = str(error).strip().splitlines() or [type(error).__name__]
                        raise TokenariumError(f"Ray does not answer {where}: {told[0]}") from None
        self._remote = ray.remote(worker.run)
        self._known = self._nodes(machine)
        return self._known

    def _join(self, machine: Node | None) -> None:
        quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        if machine is None:
            self._ray.init(address=self._address, **quiet)
            return
        self._folder = tempfile.mkdtemp(prefix="tokenarium-ray-")  # short: Unix sockets have names of 107 bytes at most
        self._ray.init(
            address="local",
            num_cpus=self._cpus or int(machine.cpus),
            num_gpus=len(machine.gpus),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            _node_ip_address="127.0.0.1",
            _temp_dir=self._folder,
            **quiet,
        )

    def _nodes(self, machine: Node) -> list[Node]:
        nodes = []
        for told in self._ray.nodes():
            if told["Alive"]:
                has = told["Resources"]
                count = int(has.get("GPU", 0))
                gpus = () if not count else machine.gpus if self._folder else self._gpus_of(told["NodeID"])
                memory = has.get("memory", 0) / GB
                nodes.append(Node(told["NodeID"], has.get("CPU", 0), memory, tuple(gpus)[:count]))
        return nodes

    def _gpus_of(self, node: str) -> tuple[float, ...]:
        asked = self._ray.remote(gpu_memory).options(num_cpus=0, scheduling_strategy=self._only(node, soft=False))
        return self._ray.get(asked.remote())

    @staticmethod
    def _only(node: str, soft: bool) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=soft)

    def start(self, task: Task, needs: Resources, node: Node) -> None:
        """Hand a task to Ray, with what it needs: a share of a GPU is its memory over that of the smallest one."""
        gpus = needs.gpu_memory_gb / min(node.gpus) if needs.gpu_memory_gb else 0.0
        gpus = math.ceil(gpus - 1e-9) if gpus > 1 else math.ceil(gpus * 1e4) / 1e4  # Ray counts in ten-thousandths
        placed = self._remote.options(
            name=task.name,
            num_cpus=needs.cpus,
            num_gpus=gpus,
            memory=int(needs.memory_gb * GB),
            max_retries=0,
            scheduling_strategy=self._only(node.name, soft=True),
        )
        self._tasks[placed.remote(task, gpus=gpus > 0)] = task.name

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Tasks that ended, as soon as there is one, or none after `seconds`."""
        if not self._tasks:
            return []
        first, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        if not first:
            return []
        ended, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return [(self._tasks.pop(each), self._outcome(each)) for each in ended]

    def _outcome(self, task: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.OutOfMemoryError:
            return Outcome(0.0, "its worker was killed: the machine ran out of memory")
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError):
            return Outcome(0.0, "its worker was killed")
        except errors.TaskCancelledError:
            return Outcome(0.0, "interrupted")
        except errors.RayError as error:
            cause = getattr(error, "cause", None) or error
            return Outcome(0.0, f"its worker failed: {type(cause).__name__}: {str(cause).splitlines()[0]}")

    def stop(self) -> None:
        """Interrupt all tasks and wait until they are gone; a worker that stays is killed, and its commands with it."""
        for force in (False, True):
            for task in self._tasks:
                with suppress(self._ray.exceptions.RayError, ValueError):
                    self._ray.cancel(task, force=force)
            if self._tasks:
                self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=LEAVING)
                left = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)[1]
                self._tasks = {task: name for task, name in self._tasks.items() if task in left}

    def close(self) -> None:
        """Leave Ray; a local one ends and its files go."""
        self._known = []
        if self._ray is not None:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
