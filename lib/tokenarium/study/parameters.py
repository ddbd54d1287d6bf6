"""Parameters of a study: the sections of params.yaml, merged for one profile and checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenarium.errors import TokenariumError
from tokenarium.words import PROFILES, nearest

PARAMS_FILE = "params.yaml"
SECTIONS = ("profile", "seeds", "data", "models", "recipes", "families", "experiments", "papers", "arenas")
OPTIONAL_SECTIONS = ("resources",)  # checked by tokenarium.run.resources, where it is used
ENTRY_NAMES = {
    "models": "model",
    "recipes": "recipe",
    "families": "family",
    "experiments": "experiment",
    "papers": "paper",
    "arenas": "arena",
}
ARENA = "arena/"


def project_root(start: Path | None = None) -> Path:
    """The folder at or above `start` (default: the working directory) that holds params.yaml and dvc.yaml."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / PARAMS_FILE).is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise TokenariumError(f"no {PARAMS_FILE} and dvc.yaml at or above {start}: work inside a Tokenarium checkout")


class Parameters(Mapping[str, Any]):
    """Read-only parameters, as attributes (`parameters.images`) and as a mapping.

    An unknown name raises TokenariumError with the nearest known one.
    """

    __slots__ = ("_values", "_where")

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = dict(values)
        self._where = where

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise TokenariumError(f"{self._where} has no '{name}'; {nearest(name, self._values)}")
        value = self._values[name]
        return Parameters(value, f"{self._where}.{name}") if isinstance(value, Mapping) else value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter, or `default` where there is none of that name."""
        return default if name not in self._values else self[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{self._where}: " + ", ".join(f"{name}={value!r}" for name, value in self._values.items())

    def to_dict(self) -> dict[str, Any]:
        """A plain, independent copy."""
        return copy.deepcopy(self._values)


def load_params(root: Path) -> dict[str, Any]:
    """Read and check params.yaml. Raises TokenariumError that names the file, the place and the mend."""
    path = root / PARAMS_FILE
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenariumError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise TokenariumError(f"{path.name}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(params, dict):
        raise TokenariumError(f"{path.name} must be a mapping with the sections {', '.join(SECTIONS)}")
    for section in params:
        known = (*SECTIONS, *OPTIONAL_SECTIONS)
        if section not in known:
            raise TokenariumError(f"{path.name} has an unknown section '{section}'; {nearest(section, known)}")
    for section in SECTIONS:
        if section not in params:
            raise TokenariumError(f"{path.name} lacks the section '{section}'")
    check_profile(params["profile"])
    seeds = params["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise TokenariumError(f"{path.name}: seeds must be a list of different whole numbers, got {seeds!r}")
    for section in SECTIONS[2:]:
        params[section] = {} if params[section] is None else params[section]
        if not isinstance(params[section], dict):
            raise TokenariumError(f"{path.name}: the section '{section}' must be a mapping of names")
    for section in ("recipes", "families", "experiments", "papers", "arenas"):
        for name, entry in params[section].items():
            _check_profiles(f"{section}.{name}", entry)
    for section in ("experiments", "papers", "arenas"):
        for name, entry in params[section].items():
            if entry.get("family") not in params["families"]:
                raise TokenariumError(
                    f"{path.name}: {section}.{name} has the unknown family '{entry.get('family')}'; "
                    f"{nearest(str(entry.get('family')), params['families'])}"
                )
    for name, entry in params["experiments"].items():
        paper = find_entry(params, "papers", str(entry.get("paper")))
        if paper["family"] != entry["family"]:
            raise TokenariumError(f"{path.name}: experiments.{name} must be of its paper's family {paper['family']}")
    return params


def check_profile(profile: Any) -> str:
    """`profile` itself, or TokenariumError when it is not one of PROFILES."""
    if profile not in PROFILES:
        raise TokenariumError(f"unknown profile '{profile}'; {nearest(str(profile), PROFILES)}")
    return profile


def _check_profiles(where: str, entry: Any) -> None:
    """Every profile of a section has the same keys: a misspelt one is found before anything runs."""
    if not isinstance(entry, dict):
        raise TokenariumError(f"{PARAMS_FILE}: {where} must be a mapping with {', '.join(PROFILES)}")
    missing = [profile for profile in PROFILES if not isinstance(entry.get(profile), dict)]
    if missing:
        raise TokenariumError(f"{PARAMS_FILE}: {where} lacks the profile section {missing[0]}")
    reference = entry["cpu"]
    for profile in PROFILES:
        for key in entry[profile]:
            if key not in reference:
                raise TokenariumError(
                    f"{PARAMS_FILE}: {where}.{profile} has an unknown key '{key}'; {nearest(key, reference)}"
                )
        for key in reference:
            if key not in entry[profile]:
                raise TokenariumError(f"{PARAMS_FILE}: {where}.{profile} lacks '{key}', which {where}.cpu has")


def find_entry(params: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    """`params[section][name]`, or TokenariumError with the nearest known name."""
    entries = params.get(section) or {}
    if name not in entries:
        raise TokenariumError(f"{PARAMS_FILE} has no {ENTRY_NAMES[section]} '{name}'; {nearest(name, entries)}")
    return entries[name]


def find_study(params: Mapping[str, Any], slug: str) -> tuple[str, str]:
    """Section and name of a study in params.yaml: ("papers", "pitome"), or ("arenas", "vision") for "arena/vision".

    Raises TokenariumError with the nearest known name.
    """
    section, name = ("arenas", slug.removeprefix(ARENA)) if slug.startswith(ARENA) else ("papers", slug)
    find_entry(params, section, name)
    return section, name


def study_parameters(
    params: Mapping[str, Any],
    section: str,
    slug: str,
    profile: str,
    overrides: Mapping[str, Any] | None = None,
) -> Parameters:
    """Parameters of one study at one profile: the family's shared ones, then the paper's own, then `overrides`.

    An override of a key that does not exist is refused with the nearest known name.
    """
    check_profile(profile)
    entry = find_entry(params, section, slug)
    values: dict[str, Any] = {**find_entry(params, "families", entry["family"])[profile], **entry[profile]}
    where = f"parameters of {slug} at profile {profile}"
    for key, value in (overrides or {}).items():
        if key not in values:
            raise TokenariumError(f"{where}: unknown key '{key}'; {nearest(key, values)}")
        values[key] = value
    return Parameters(values, where)


def recipe_parameters(params: Mapping[str, Any], recipe: str, profile: str) -> Parameters:
    """Parameters of a model's recipe at one profile."""
    return Parameters(find_entry(params, "recipes", recipe)[check_profile(profile)], f"recipe {recipe} at {profile}")
