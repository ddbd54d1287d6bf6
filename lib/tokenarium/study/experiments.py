"""Work that takes longer than a notebook may: a stage of its own, made part by part, read by the paper's notebook."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenarium.errors import TokenariumError
from tokenarium.files import write_json, write_whole
from tokenarium.study.parameters import Parameters, find_entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX = "experiment.json"
ARRAYS = ".safetensors"
RECORD = ".json"


@dataclass(frozen=True)
class Experiment:
    """One run of an experiment: parameters in, named parts out.

    A part is made once: when an interrupted run is started again with the same parameters, seeds, code and data, its
    finished parts are read and not made again. `root` is where data and models lie.
    """

    root: Path
    name: str
    profile: str
    parameters: Parameters
    seeds: list[int]
    folder: Path = field(repr=False)

    def record(self, name: str, make: Callable[[], Any]) -> Any:
        """The part `name` as JSON (numbers, text, lists, mappings with names as keys), made by `make()` if need be."""
        path = self._path(name, RECORD)
        if not path.is_file():
            write_json(path, make())
        return _read_record(path)

    def arrays(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """The part `name` as named NumPy arrays (safetensors), made by `make()` if need be."""
        path = self._path(name, ARRAYS)
        if not path.is_file():
            from safetensors.numpy import save

            with write_whole(path, "wb") as file:
                file.write(save(dict(make())))
        return _read_arrays(path)

    def progress(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        """Iterate with a progress bar where stderr is a terminal, and in silence elsewhere."""
        from tqdm.auto import tqdm

        return tqdm(items, desc=label, total=total, mininterval=1.0, disable=None)

    def _path(self, name: str, suffix: str) -> Path:
        path = self.folder / f"{_plain(name)}{suffix}"
        if path.name == INDEX:
            raise TokenariumError(f"experiment {self.name}: a part cannot be named '{name}': the index has that name")
        return path


@dataclass(frozen=True)
class Results:
    """What an experiment made, to be read by part name."""

    name: str
    folder: Path = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)

    @property
    def parts(self) -> list[str]:
        """The names of all parts, sorted."""
        suffixes = (ARRAYS, RECORD)
        return sorted(path.stem for path in self.folder.iterdir() if path.suffix in suffixes and path.name != INDEX)

    def record(self, name: str) -> Any:
        """The JSON part `name`; raises TokenariumError when there is none."""
        return _read_record(self._path(name, RECORD))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of the part `name`; raises TokenariumError when there is none."""
        return _read_arrays(self._path(name, ARRAYS))

    def _path(self, name: str, suffix: str) -> Path:
        path = self.folder / f"{name}{suffix}"
        if not path.is_file():
            raise TokenariumError(f"experiment {self.name} has no part '{name}'; there are {', '.join(self.parts)}")
        return path


def results_folder(root: Path, params: Mapping[str, Any], name: str) -> Path:
    """Where the results of the experiment `name` lie: experiments/<paper>/<name>."""
    return root / "experiments" / find_entry(params, "experiments", name)["paper"] / name


def open_results(root: Path, params: Mapping[str, Any], name: str, profile: str) -> Results:
    """The results of the experiment `name`. Raises TokenariumError when it was not run at this profile."""
    folder = results_folder(root, params, name)
    if not (folder / INDEX).is_file():
        raise TokenariumError(f"{folder.relative_to(root)} is missing: run `dvc repro experiment@{name}`")
    index = _read_record(folder / INDEX)
    if index["profile"] != profile:
        raise TokenariumError(
            f"{folder.relative_to(root)} is of profile {index['profile']}, not {profile}: "
            f"use `tokenarium repro {params['experiments'][name]['paper']} --profile {profile}`"
        )
    return Results(name, folder, index["parameters"])


def _read_record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    return load_file(path)


def _plain(name: str) -> str:
    if not name or not all(character.isalnum() or character in "-_." for character in name) or name[0] == ".":
        raise TokenariumError(f"'{name}' cannot name a part: use letters, digits, '-', '_' and '.'")
    return name
