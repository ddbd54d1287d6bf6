"""Projects of their own for DVC, and an executor that stands in for Ray."""

import io
import os

import pytest
from dvc_projects import write_project
from rich.console import Console
from thread_executor import Threads

from tokenarium.run.parallel.view import View


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
