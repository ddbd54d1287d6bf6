"""Results in the terminal: the claim table of one paper, the verdict table of all."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenarium.errors import TokenariumError
from tokenarium.report.verdicts import VERDICT_KEYS, load_verdicts, read_record

COLOURS = {
    "reproduced": "green",
    "partly": "yellow",
    "not reproduced": "red",
    "holds": "green",
    "does not hold": "red",
}


def show_paper(tree: Path, slug: str, console: Console | None = None) -> None:
    """Print claims with their numbers, the verdict, and where the report of `slug` lies."""
    console = console or Console()
    path = tree / "verdicts" / f"{slug}.json"
    if not path.is_file():
        raise TokenariumError(f"{slug} has no verdict yet: run `make repro PAPER={slug}`")
    record = read_record(path, (*VERDICT_KEYS, "judgement"), f"run `dvc repro verdict@{slug}`")
    judgement = record["judgement"]
    table = Table(title=escape(f"{judgement['title']} (arXiv {judgement['arxiv']}), profile {record['profile']}"))
    table.add_column("claim")
    table.add_column("the paper says", ratio=2)
    table.add_column("measured against the rule, value [95 % interval]", ratio=3, overflow="fold")
    table.add_column("outcome")
    for claim in judgement["claims"]:
        table.add_row(
            f"[bold]{claim['id']}[/]" if claim["headline"] else claim["id"],
            escape(claim["statement"]),
            escape(_numbers(claim["evidence"]) or claim["reason"]),
            _coloured(claim["outcome"]),
        )
    console.print(table)
    for gate in judgement["gates"]:
        console.print(
            f"gate {gate['id']}: {'open' if gate['passed'] else 'closed'} ({escape('; '.join(gate['working']))})"
        )
    if judgement["note"]:
        console.print(f"[italic]{escape(judgement['note'])}[/]")
    if record.get("overridden"):
        console.print("[bold]overridden[/]: parameters of this run were set by hand and are not those of params.yaml")
    if record["profile"] == "smoke":
        console.print("[bold reverse] SMOKE [/] a check of the road, on a model trained for seconds: no evidence")
    console.print(f"verdict: [bold]{_coloured(judgement['verdict'])}[/] ({escape(judgement['reason'])})")
    console.print(
        f"report:  {tree / 'reports' / slug}  and  {tree / 'reports' / 'site' / 'index.html'}", soft_wrap=True
    )


def show_report(tree: Path, console: Console | None = None) -> None:
    """Print the verdict of every paper that has one."""
    console = console or Console()
    table = Table(title="Verdicts")
    for column in ("paper", "family", "profile", "verdict", "claims"):
        table.add_column(column)
    for record in load_verdicts(tree):
        if "judgement" in record:
            judgement = record["judgement"]
            outcomes = ", ".join(f"{claim['id']} {claim['outcome']}" for claim in judgement["claims"])
            table.add_row(
                record["slug"], record["family"], record["profile"], _coloured(judgement["verdict"]), outcomes
            )
    console.print(table)
    console.print(
        f"report:  {tree / 'reports' / 'README.md'}  and  {tree / 'reports' / 'site' / 'index.html'}",
        soft_wrap=True,
    )


def _numbers(evidence: dict) -> str:
    return "\n".join(
        f"{name} {entry['value']:.4g} [{entry['low']:.4g}, {entry['high']:.4g}]" for name, entry in evidence.items()
    )


def _coloured(text: str) -> str:
    return f"[{COLOURS[text]}]{text}[/]" if text in COLOURS else text
