"""Verdict records: verdicts/<slug>.json, computed from claims and metrics and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenarium.errors import TokenariumError
from tokenarium.files import sha256, write_json
from tokenarium.measure.claims import Metric, judge, load_claims
from tokenarium.report.distance import distances, paper_values
from tokenarium.study.parameters import ARENA

EVIDENCE_KEYS = (
    "slug",
    "family",
    "profile",
    "overridden",
    "seeds",
    "parameters",
    "metrics",
    "tables",
    "figures",
    "tensors",
)
VERDICT_KEYS = ("slug", "family", "profile")


def load_evidence(root: Path, slug: str) -> dict[str, Any]:
    """What the study of `slug` recorded. Raises TokenariumError when it has not been run or the file is damaged."""
    path = root / "reports" / slug / "evidence.json"
    if not path.exists():
        raise TokenariumError(f"{slug} has no results yet: run `dvc repro {stage_of(slug)}`")
    return read_record(path, EVIDENCE_KEYS, f"run `dvc repro {stage_of(slug)}`")


def stage_of(slug: str) -> str:
    """The DVC stage that makes the results of a paper or an arena: paper@pitome, arena@vision."""
    return f"arena@{slug.removeprefix(ARENA)}" if slug.startswith(ARENA) else f"paper@{slug}"


def read_record(path: Path, keys: tuple[str, ...], mend: str) -> dict[str, Any]:
    """A JSON object with `keys`. Raises TokenariumError with the `mend` for a missing or damaged file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenariumError(f"cannot read {path} ({error.strerror}): restore it from git, or {mend}") from None
    except ValueError as error:
        raise TokenariumError(f"{path} is damaged ({error}): restore it from git, or {mend}") from None
    missing = [key for key in keys if key not in record] if isinstance(record, dict) else keys[:1]
    if missing:
        raise TokenariumError(f"{path} is damaged (it lacks '{missing[0]}'): restore it from git, or {mend}")
    return record


def write_verdict(root: Path, slug: str) -> Path:
    """Judge one study and write its record; for an arena, which has no claims, the record of its files alone.

    Tables and figures are listed by digest, so that the report is rebuilt exactly when something in it changed.
    """
    evidence = load_evidence(root, slug)
    record: dict[str, Any] = {
        "slug": slug,
        "family": evidence["family"],
        "profile": evidence["profile"],
        "overridden": evidence["overridden"],
        "files": _digests(root / "reports" / slug),
    }
    if not slug.startswith(ARENA):
        claims_file = root / "notebooks" / evidence["family"] / f"{slug}.claims.yaml"
        claims = load_claims(claims_file)
        metrics = {name: Metric.from_dict(name, entry) for name, entry in evidence["metrics"].items()}
        record["judgement"] = judge(claims, metrics, evidence["profile"]).to_dict()
        # Only the paper's own checkpoints and data can be near its figures.
        if evidence["profile"] == "gpu" and (values := paper_values(claims_file)):
            record["distances"] = distances(values, evidence["metrics"])
    path = root / "verdicts" / f"{slug.replace('/', '-')}.json"
    write_json(path, record)
    return path


def load_verdicts(root: Path) -> list[dict[str, Any]]:
    """All records below verdicts/, papers before arenas, by family and slug.

    Raises TokenariumError for a damaged one.
    """
    paths = sorted((root / "verdicts").glob("*.json"))
    records = [read_record(path, VERDICT_KEYS, "run `dvc repro`") for path in paths]
    return sorted(records, key=lambda record: ("judgement" not in record, record["family"], record["slug"]))


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / "evidence.json", *sorted(folder.glob("tables/*")), *sorted(folder.glob("figures/*"))]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
