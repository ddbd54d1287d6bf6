"""Run one experiment of params.yaml and put its results in their place, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory, write_json
from tokenarium.study.experiments import INDEX, Experiment, results_folder
from tokenarium.study.parameters import find_entry, load_params, study_parameters


def module_path(entry: Mapping[str, Any]) -> str:
    """The file, relative to the root, whose `run(experiment)` does the work."""
    return f"lib/tokenarium/methods/{entry['family']}/experiments/{entry['module']}.py"


def run_experiment(root: Path, name: str) -> Path:
    """Run the experiment `name` at the profile of params.yaml and return its folder experiments/<paper>/<name>.

    Finished parts are kept in .tokenarium/experiments while it runs, so that an interrupted run goes on from there as
    long as parameters, seeds, code and data stay the same. A failure leaves the last good results as they are.
    Raises TokenariumError for an unknown name, a module without `run`, and when it is already running.
    """
    params = load_params(root)
    entry = find_entry(params, "experiments", name)
    run = _function(entry, name)
    scratch = root / ".tokenarium"
    (scratch / "locks").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(scratch / "locks" / f"experiment-{name}.lock").acquire(timeout=0):
            return _run(root, params, name, run, scratch / "experiments" / name)
    except Timeout:
        raise TokenariumError(f"experiment {name} is already running here: wait for it to end") from None


def _run(root: Path, params: Mapping[str, Any], name: str, run: Any, work: Path) -> Path:
    profile = params["profile"]
    entry = params["experiments"][name]
    parameters = study_parameters(params, "experiments", name, profile)
    index = {"name": name, "profile": profile, "seeds": params["seeds"], "parameters": parameters.to_dict()}
    folder = work / _fingerprint(root, index, [module_path(entry), *entry["reads"]])
    for other in work.iterdir() if work.is_dir() else ():
        if other != folder:  # parts of another code or other parameters
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    run(Experiment(root, name, profile, parameters, list(params["seeds"]), folder))
    write_json(folder / INDEX, index)
    target = results_folder(root, params, name)
    replace_directory(folder, target)
    return target


def _function(entry: Mapping[str, Any], name: str) -> Any:
    path = module_path(entry)
    module = path.removeprefix("lib/").removesuffix(".py").replace("/", ".")
    try:
        return importlib.import_module(module).run
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise TokenariumError(f"{path} is missing: write the experiment {name} there") from None
    except AttributeError:
        raise TokenariumError(f"{path} has no function `run`: that is what experiment {name} runs") from None


def _fingerprint(root: Path, index: Mapping[str, Any], reads: Iterable[str]) -> str:
    """Tells whether finished parts still belong to this run: code by its bytes, data and models by size and time."""
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode())
    for read in reads:
        place = root / read
        paths = [place] if place.is_file() else sorted(place.rglob("*"))
        for path in paths:
            if path.is_file() and path.suffix != ".pyc":
                state = path.stat()
                digest.update(str(path.relative_to(root)).encode())
                seen = path.read_bytes() if read.startswith("lib/") else f"{state.st_size} {state.st_mtime_ns}".encode()
                digest.update(hashlib.sha256(seen).digest())
    return digest.hexdigest()[:16]
