"""Projects of their own for DVC, and an executor that stands in for Ray."""

import contextlib
import io
import os
import queue
import threading

import pytest
from dvc_projects import write_project
from rich.console import Console

from tokenarium.run.parallel import worker
from tokenarium.run.parallel.scheduler import Node
from tokenarium.run.parallel.view import View

NODE = Node("here", 4, 16)


class Threads:
    """An executor whose workers are threads of this process."""

    def __init__(self, *nodes):
        self.nodes = list(nodes) or [NODE]
        self.opened = 0
        self.started, self.most, self.running = [], 0, 0
        self._ended = queue.Queue()

    def open(self):
        self.opened += 1
        return self.nodes

    def start(self, task, needs, node):
        self.started.append((task.name, node.name))
        self.running += 1
        self.most = max(self.most, self.running)
        threading.Thread(target=lambda: self._ended.put((task.name, worker.run(task)))).start()

    def wait(self, seconds):
        with contextlib.suppress(queue.Empty):
            ended = self._ended.get(timeout=seconds) if seconds else self._ended.get_nowait()
            self.running -= 1
            return [ended]
        return []

    def stop(self):
        while self.running:
            self.wait(1)

    def close(self):
        pass


@pytest.fixture
def threads():
    return Threads


@pytest.fixture
def view():
    """A view that is no terminal; `view.text()` is what it printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    view = View(console)
    view.text = console.file.getvalue
    return view


@pytest.fixture(scope="session", autouse=True)
def dvc_of_its_own(tmp_path_factory):
    """No DVC here reads or writes what belongs to the user."""
    folder = tmp_path_factory.mktemp("dvc")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        yield


@pytest.fixture
def project(tmp_path):
    """write_project at a place of its own."""
    return lambda stages, **rest: write_project(tmp_path / "tree", stages, **rest)
