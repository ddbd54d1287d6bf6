"""Notebooks of the paper `tiny`, and its last good results."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tokenarium.errors import TokenariumError
from tokenarium.run.execute import run_study


@pytest.fixture
def write(project: Path) -> Callable[..., Path]:
    """Write a notebook of these cells after the parameters cell; returns its path."""

    def write(*sources: str, name: str = "toys/tiny") -> Path:
        parameters = new_code_cell("profile = None", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[parameters, *map(new_code_cell, sources)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = project / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


@pytest.fixture
def results(project: Path) -> Callable[[], bool]:
    """The last good results of `tiny`: a function that says whether they still stand as they were."""
    good = {
        project / "reports" / "tiny" / "evidence.json": "good",
        project / "evaluations" / "toys" / "tiny" / "results.safetensors": "good too",
    }
    for path, text in good.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def stand() -> bool:
        folders = {folder for path in good for folder in (path.parent, path.parent.parent)}
        names = {path for folder in folders for path in folder.iterdir()}
        return names == {*good, *(path.parent for path in good)} and all(
            path.read_text() == text for path, text in good.items()
        )

    return stand


@pytest.fixture
def failure(project: Path) -> Callable[..., str]:
    """Run a study that fails; returns the one line that says why."""

    def failure(slug: str = "tiny", **kwargs: object) -> str:
        with pytest.raises(TokenariumError) as error:
            run_study(project, slug, **kwargs)
        message = str(error.value)
        assert "\n" not in message
        assert "\x1b" not in message
        return message

    return failure
