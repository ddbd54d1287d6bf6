"""What changed since the previous committed run of a study, from git's own history."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenarium.report.studies import page_name

COMMITS = 20  # looked at, newest first


def previous_run(root: Path, study: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the newest commit with other results said, against `study`; None outside git and without such a commit.

    Returns revision, date (ISO, of the commit), profile, `metrics`: rows of name, before and after (records with value,
    low and high, or None for a metric that one side lacks), `claims`: rows of id, before and after (outcomes), and
    `verdict`: the two verdicts where they differ. The same before and after the current results are committed.
    """
    slug = study["slug"]
    evidence = f"reports/{slug}/evidence.json"
    verdict = f"verdicts/{page_name(slug)}.json"
    log = _git(root, "log", f"--max-count={COMMITS}", "--format=%H %cs", "--", evidence, verdict)
    for line in (log or "").splitlines():
        revision, date = line.split()
        then = _committed(root, revision, evidence)
        if then is None:
            continue
        judged = (_committed(root, revision, verdict) or {}).get("judgement")
        found = {
            "metrics": _changes(then.get("metrics", {}), study["results"]["metrics"]),
            "claims": _changes(_outcomes(judged), _outcomes(study.get("judgement"))),
            "verdict": _changes(_verdict(judged), _verdict(study.get("judgement"))),
        }
        if any(found.values()):
            return {"revision": revision, "date": date, "profile": then.get("profile"), **found}
    return None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [*after, *(name for name in before if name not in after)]
    pairs = [{"name": name, "before": before.get(name), "after": after.get(name)} for name in names]
    return [pair for pair in pairs if pair["before"] != pair["after"]]


def _outcomes(judgement: Mapping[str, Any] | None) -> dict[str, str]:
    return {claim["id"]: claim["outcome"] for claim in judgement["claims"]} if judgement else {}


def _verdict(judgement: Mapping[str, Any] | None) -> dict[str, str]:
    return {"verdict": judgement["verdict"]} if judgement else {}


def _committed(root: Path, revision: str, path: str) -> dict[str, Any] | None:
    text = _git(root, "show", f"{revision}:./{path}")
    try:
        content = json.loads(text) if text else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
