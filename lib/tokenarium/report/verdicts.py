"""Verdict records: verdicts/<slug>.json, computed from claims and metrics and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenarium.errors import TokenariumError
from tokenarium.files import sha256, write_json
from tokenarium.measure.claims import Metric, judge, load_claims

ARENA = "arena/"


def load_evidence(root: Path, slug: str) -> dict[str, Any]:
    """What the study of `slug` recorded. Raises TokenariumError when it has not been run or the file is damaged."""
    path = root / "reports" / slug / "evidence.json"
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        stage = f"arena@{slug.removeprefix(ARENA)}" if slug.startswith(ARENA) else f"paper@{slug}"
        raise TokenariumError(f"{slug} has no results yet: run `dvc repro {stage}`") from None
    except json.JSONDecodeError as error:
        raise TokenariumError(f"{path}: damaged ({error}); restore it from git or rerun the study") from None
    missing = [key for key in ("slug", "family", "profile", "metrics") if key not in evidence]
    if missing:
        raise TokenariumError(f"{path}: lacks '{missing[0]}'; rerun the study")
    return evidence


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
        claims = load_claims(root / "notebooks" / evidence["family"] / f"{slug}.claims.yaml")
        metrics = {name: Metric.from_dict(name, entry) for name, entry in evidence["metrics"].items()}
        record["judgement"] = judge(claims, metrics, evidence["profile"]).to_dict()
    path = root / "verdicts" / f"{slug.replace('/', '-')}.json"
    write_json(path, record)
    return path


def load_verdicts(root: Path) -> list[dict[str, Any]]:
    """All records below verdicts/, papers before arenas, by family and slug."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / "verdicts").glob("*.json"))]
    return sorted(records, key=lambda record: ("judgement" not in record, record["family"], record["slug"]))


def _digests(folder: Path) -> dict[str, str]:
    files = [
        folder / "evidence.json",
        *sorted((folder / "tables").iterdir()),
        *sorted((folder / "figures").iterdir()),
    ]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
