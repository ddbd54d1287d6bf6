"""What changed in a study's committed results from one revision to another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tokenarium.errors import TokenariumError
from tokenarium.run.rows import print_rows

WORKING_TREE = "the working tree"
OVERLAP_SAYS = (
    "Intervals are each revision's own. Where they are apart the number changed; where they overlap this table cannot "
    "tell, because the records hold no difference paired by example."
)
# When and how fast a run was, which never is the same twice.
NOT_COMPARED = ("finished", "seconds", "peak_memory_bytes", "revision", "uncommitted_changes", "packages")


@dataclass(frozen=True)
class Results:
    """The records of one study at one revision; verdict is empty for an arena or where there is none."""

    where: str
    evidence: Mapping[str, Any]
    verdict: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def results_at(root: Path, slug: str, revision: str | None) -> Results:
    """The committed results of `slug` at a git revision, or those of the working tree (None).

    Raises TokenariumError for an unknown revision, a paper without results there, and a damaged record.
    """
    if revision is None:
        where = WORKING_TREE

        def read(name: str) -> str | None:
            return (root / name).read_text(encoding="utf-8") if (root / name).is_file() else None
    else:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if commit is None:
            raise TokenariumError(f"git knows no revision '{revision}': `git log --oneline reports/{slug}` lists some")
        where = revision if commit.startswith(revision) else f"{revision} ({commit[:7]})"

        def read(name: str) -> str | None:
            return _git(root, "show", "--end-of-options", f"{commit.strip()}:./{name}")

    paths = {
        "evidence": f"reports/{slug}/evidence.json",
        "verdict": f"verdicts/{slug.replace('/', '-')}.json",
        "provenance": f"reports/{slug}/provenance.json",
    }
    records = {}
    for kind, name in paths.items():
        if (text := read(name)) is None:
            continue
        try:
            records[kind] = json.loads(text)
            if not isinstance(records[kind], dict):
                raise ValueError("no object")
        except ValueError as error:
            raise TokenariumError(f"{name} of {where} is damaged ({error}): compare with another revision") from None
    if "evidence" not in records:
        raise TokenariumError(
            f"{slug} has no results in {where}: `git log --oneline reports/{slug}` lists the revisions that have some"
        )
    return Results(where, **records)


def show_diff(root: Path, slug: str, old: str, new: str | None = None, console: Console | None = None) -> None:
    """Print what changed in the results of `slug` from revision `old` to `new` (None: the working tree).

    Verdict, claims, metrics with their intervals, parameters and versions, each only where it changed. Raises what
    `results_at` raises.
    """
    console = console or Console()
    before, after = results_at(root, slug, old), results_at(root, slug, new)
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731

    say(f"{slug}: from {_described(before)} to {_described(after)}")
    if before.evidence.get("profile") != after.evidence.get("profile"):
        say("The profiles differ: these are runs at different scales, and their numbers are not to be compared.")
    was, now = (_judgement(results).get("verdict", "none yet") for results in (before, after))
    if _judgement(before) or _judgement(after):
        say(f"verdict: {now}, as it was" if was == now else f"verdict: {was} -> {now}")
    heading = ("what", before.where, after.where)
    for title, one, other in (
        ("claims", _outcomes(before), _outcomes(after)),
        ("parameters", _parameters(before), _parameters(after)),
        ("versions and machine", _versions(before), _versions(after)),
    ):
        changed = _changed(one, other)
        if changed:
            print_rows(console, heading, [(name, _text(a), _text(b)) for name, a, b in changed], title)
        elif one or other:
            say(f"{title}: as they were")
    one, other = before.evidence["metrics"], after.evidence["metrics"]
    changed = _changed(one, other)
    if not changed:
        say(f"metrics: all {len(other)} as they were")
        return
    rows = [(name, _number(a), _number(b), *_compared(a, b)) for name, a, b in changed]
    title = f"metrics: {len(changed)} changed, {len(one.keys() | other.keys()) - len(changed)} as they were"
    print_rows(
        console,
        ("metric [95 % interval]", before.where, after.where, "change", "intervals"),
        rows,
        title,
        {"apart": "red"},
    )
    say(OVERLAP_SAYS)


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers in `root`; None where it has no answer. Raises TokenariumError where git is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except OSError as error:
        raise TokenariumError(f"cannot run git ({error.strerror}): install it with 'apt-get install git'") from None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _described(results: Results) -> str:
    return f"{results.where} (profile {results.evidence.get('profile')})"


def _judgement(results: Results) -> Mapping[str, Any]:
    return results.verdict.get("judgement") or {}


def _outcomes(results: Results) -> dict[str, str]:
    """Outcome of every claim, and its rule: a verdict may change because the rule did."""
    found = {}
    for claim in _judgement(results).get("claims", ()):
        found[claim["id"]] = claim["outcome"]
        found[f"{claim['id']}, rule"] = claim["rule"]
    for gate in _judgement(results).get("gates", ()):
        found[f"gate {gate['id']}"] = "open" if gate["passed"] else "closed"
        found[f"gate {gate['id']}, rule"] = gate["rule"]
    return found


def _parameters(results: Results) -> dict[str, Any]:
    keys = ("profile", "seeds", "overridden")
    return {**{key: results.evidence.get(key) for key in keys}, **results.evidence.get("parameters", {})}


def _versions(results: Results) -> dict[str, Any]:
    machine = {key: value for key, value in results.provenance.items() if key not in NOT_COMPARED}
    return machine | results.provenance.get("packages", {})


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    names = [*old, *(name for name in new if name not in old)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def _number(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    unit = f" {metric['unit']}" if metric.get("unit") else ""
    return f"{metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}]{unit}"


def _compared(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, str]:
    if old is None or new is None:
        return ("new", "") if old is None else ("gone", "")
    ends = ("value", "low", "high", "unit")
    if all(old.get(end) == new.get(end) for end in ends):
        return "none", "only its seeds or how it was made"
    if old.get("unit") != new.get("unit"):
        return "unit", ""
    overlap = old["low"] <= new["high"] and new["low"] <= old["high"]
    return f"{new['value'] - old['value']:+.4g}", "overlap" if overlap else "apart"
