"""How long stages took before, to say how long they will take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from tokenarium.files import write_json

UNKNOWN = 60.0  # seconds, where no stage has ever run


def durations_path(tree: Path) -> Path:
    """Where the wall times of stages that the driver ran are kept."""
    return tree / ".tokenarium" / "durations.json"


def read_durations(tree: Path) -> dict[str, float]:
    """Seconds of stages by name; {} where nothing, or nothing readable, is kept."""
    try:
        kept = json.loads(durations_path(tree).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in kept.items() if float(seconds) >= 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def record_durations(tree: Path, seconds: Mapping[str, float]) -> None:
    """Keep the wall times of stages that succeeded."""
    if seconds:
        rounded = {stage: round(each, 3) for stage, each in seconds.items()}
        write_json(durations_path(tree), read_durations(tree) | rounded)


def estimates(tree: Path, stages: Iterable[str]) -> tuple[dict[str, float], set[str]]:
    """Seconds expected of each stage, and the names of those that are only guessed.

    What the driver measured comes first, then what a study's provenance says. A stage that never ran is guessed to
    take the median of its kind, else the median of all that is known, else UNKNOWN.
    """
    stages = list(stages)
    measured = read_durations(tree)
    known = {stage: measured.get(stage, _provenance(tree, stage)) for stage in stages}
    known = {stage: seconds for stage, seconds in known.items() if seconds is not None}
    kinds: dict[str, list[float]] = {}
    for stage, seconds in known.items():
        kinds.setdefault(stage.split("@")[0], []).append(seconds)
    typical = median(known.values()) if known else UNKNOWN
    found = {}
    for stage in stages:
        alike = kinds.get(stage.split("@")[0])
        found[stage] = known[stage] if stage in known else median(alike) if alike else typical
    return found, set(stages) - set(known)


def _provenance(tree: Path, stage: str) -> float | None:
    kind, _, name = stage.partition("@")
    folder = {"paper": name, "arena": f"arena/{name}"}.get(kind)
    if folder is None:
        return None
    try:
        told = json.loads((tree / "reports" / folder / "provenance.json").read_text(encoding="utf-8"))
        return float(told["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
