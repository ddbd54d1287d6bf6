"""What a stage needs of the machine, declared in the section `resources` of params.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import PARAMS_FILE, nearest

KINDS = {"data": "data", "models": "model", "experiments": "experiment", "papers": "paper", "arenas": "arena"}


@dataclass(frozen=True)
class Resources:
    """cpus: cores; memory_gb, gpu_memory_gb: main memory and GPU memory in GB (10^9 bytes)."""

    cpus: float = 1
    memory_gb: float = 3
    gpu_memory_gb: float = 0


def resources_of(params: Mapping[str, Any], stage: str) -> Resources:
    """What `stage` ("paper@pitome") needs: its own entry over the defaults of params.yaml over those of Resources.

    params.yaml may do without the section. Raises TokenariumError for a stage or a resource that does not exist, with
    the nearest known name, and for an amount that is no number of at least 0 (for `cpus`: above 0).
    """
    section = params.get("resources") or {}
    _check_names("resources", section, ["defaults", "stages"])
    stages = section.get("stages") or {}
    _check_names("resources.stages", stages, _stages(params))
    for name, entry in {"defaults": section.get("defaults"), **stages}.items():
        _check_amounts("resources.defaults" if name == "defaults" else f"resources.stages.{name}", entry or {})
    return Resources(**{**(section.get("defaults") or {}), **(stages.get(stage) or {})})


def _stages(params: Mapping[str, Any]) -> list[str]:
    named = [f"{kind}@{name}" for section, kind in KINDS.items() for name in params.get(section) or {}]
    return [*named, *(f"verdict@{name}" for name in params.get("papers") or {}), "report"]


def _check_names(where: str, entry: Any, known: list[str]) -> None:
    if not isinstance(entry, Mapping):
        raise TokenariumError(f"{PARAMS_FILE}: {where} must be a mapping")
    for name in entry:
        if name not in known:
            raise TokenariumError(f"{PARAMS_FILE}: {where} has an unknown name '{name}'; {nearest(str(name), known)}")


def _check_amounts(where: str, entry: Any) -> None:
    _check_names(where, entry, [field.name for field in fields(Resources)])
    for name, amount in entry.items():
        number = type(amount) in (int, float) and math.isfinite(amount)
        if not number or amount < 0 or (name == "cpus" and amount == 0):
            raise TokenariumError(f"{PARAMS_FILE}: {where}.{name} must be a positive number, got {amount!r}")
