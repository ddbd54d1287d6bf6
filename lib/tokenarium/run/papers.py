"""Which of the surveyed papers are written, which have results, and at what profile."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tokenarium.report.verdicts import EVIDENCE_KEYS, VERDICT_KEYS, read_record
from tokenarium.run.rows import print_rows
from tokenarium.study.catalogue import Paper, catalogue, check_family
from tokenarium.study.parameters import PROFILES

NOT_WRITTEN = "not_written"  # the metric that the claims file of `tokenarium new` asks for and no notebook records
STATES = {
    "not begun": "dim",
    "begun": "dim",
    "written": "default",
    "smoke results": "cyan",
    "cpu verdict": "green",
    "gpu verdict": "bold green",
    "last run failed": "red",
}


@dataclass(frozen=True)
class State:
    """How far a paper is. state: one of STATES. note: its verdict, or what failed."""

    paper: Paper
    state: str
    note: str = ""


def paper_state(root: Path, paper: Paper) -> State:
    """How far `paper` is in this checkout, from its files alone.

    A failed run of the checkout, noted in .tokenarium/failed/<slug>.json, comes before older results. Results of other
    profiles, which lie in the copies .tokenarium/<profile>, count where the checkout has none of a higher profile.
    Raises TokenariumError for a damaged verdict.
    """
    folder = root / "notebooks" / paper.family
    if not (folder / f"{paper.slug}.ipynb").is_file():
        return State(paper, "not begun")
    if failed := _failure(root, paper.slug):
        return State(paper, "last run failed", failed)
    trees = {root: "", **{root / ".tokenarium" / profile: f", in .tokenarium/{profile}" for profile in PROFILES}}
    found = [result for tree, where in trees.items() if (result := _result(tree, paper.slug, where))]
    if found:
        profile, note = max(found, key=lambda result: PROFILES.index(result[0]))
        return State(paper, "smoke results" if profile == "smoke" else f"{profile} verdict", note)
    for profile in PROFILES:
        if failed := _failure(root / ".tokenarium" / profile, paper.slug):
            return State(paper, "last run failed", f"at profile {profile}: {failed}")
    claims = folder / f"{paper.slug}.claims.yaml"
    if claims.is_file() and NOT_WRITTEN in claims.read_text(encoding="utf-8"):
        return State(paper, "begun", f"tokenarium check-notebooks {paper.slug} says what is missing")
    return State(paper, "written")


def show_papers(root: Path, family: str | None = None, console: Console | None = None) -> None:
    """Print the state of every surveyed paper, or of one family's, and how many are in each state.

    Raises TokenariumError with the nearest known name for an unknown family.
    """
    if family is not None:
        check_family(family)
    console = console or Console()
    states = [paper_state(root, paper) for paper in catalogue().values() if family in (None, paper.family)]
    rows = [(s.paper.family, s.paper.slug, s.state, s.note, s.paper.arxiv, s.paper.title) for s in states]
    print_rows(console, ("family", "paper", "state", "verdict", "arXiv", "title"), rows, colours=STATES)
    counts = Counter(s.state for s in states)
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.print(f"{len(states)} papers: {said}", highlight=False, soft_wrap=True)


def _failure(tree: Path, slug: str) -> str:
    """What the last run of `slug` in `tree` failed with; "" where it did not fail."""
    path = tree / ".tokenarium" / "failed" / f"{slug}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        said = str(record["evalue"]).strip().splitlines() or [""]
        return f"cell {record['cell']}: {record['ename']}: {said[0]}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} is damaged: run it again"


def _result(tree: Path, slug: str, where: str) -> tuple[str, str] | None:
    """Profile and verdict of the results of `slug` in `tree`; a smoke run counts before it is judged."""
    verdict = tree / "verdicts" / f"{slug}.json"
    if verdict.is_file():
        record = read_record(verdict, (*VERDICT_KEYS, "judgement"), f"run `dvc repro verdict@{slug}`")
        profile = record["profile"]
        return profile, ("no evidence" if profile == "smoke" else record["judgement"]["verdict"]) + where
    evidence = tree / "reports" / slug / "evidence.json"
    if evidence.is_file():
        record = read_record(evidence, EVIDENCE_KEYS, f"run `dvc repro paper@{slug}`")
        if record["profile"] == "smoke":
            return "smoke", "no evidence" + where
    return None
