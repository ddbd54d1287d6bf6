"""What the report shows of the studies, read from their committed files and from what the cache holds besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tokenarium.errors import TokenariumError
from tokenarium.report.verdicts import load_evidence, load_verdicts, read_record, stage_of
from tokenarium.study.tables import with_intervals

NOT_RUN = "not run yet"
NOT_BEGUN = "not begun"


def load_studies(root: Path) -> list[dict[str, Any]]:
    """All verdict records with the results of their studies under `results`, papers before arenas.

    Raises TokenariumError when a file of a study is missing or damaged.
    """
    return [record | {"results": _results(root, record["slug"])} for record in load_verdicts(root)]


def page_name(slug: str) -> str:
    """File name of a study's pages: "pitome", "arena-vision"."""
    return slug.replace("/", "-")


def families_of(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """The families that have a page: those of the studies, by name."""
    return sorted({study["family"] for study in studies})


def matrix_rows(
    studies: Sequence[Mapping[str, Any]], known: Mapping[str, Any], catalogue: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """One row per paper: those with a verdict, then the rest of params.yaml, then the rest of the catalogue.

    known: `papers` of params.yaml. catalogue: slug, title, family and arxiv of every surveyed paper.
    """
    rows = {}
    for study in studies:
        if "judgement" in study:
            judgement = study["judgement"]
            rows[study["slug"]] = {
                "slug": study["slug"],
                "title": judgement["title"],
                "family": study["family"],
                "arxiv": judgement["arxiv"],
                "profile": study["profile"],
                "verdict": judgement["verdict"],
                "claims": judgement["claims"],
                "finished": study["results"]["provenance"].get("finished", "")[:10],
                "page": True,
            }
    cards = {card["slug"]: card for card in catalogue}
    for slug in [*sorted(known), *cards]:
        card = cards.get(slug, {})
        row = {"slug": slug, "title": card.get("title", slug), "arxiv": card.get("arxiv", "")}
        row["family"] = known[slug]["family"] if slug in known else card["family"]
        row["verdict"] = NOT_RUN if slug in known else NOT_BEGUN
        rows.setdefault(slug, row | {"profile": "", "claims": [], "finished": "", "page": False})
    return list(rows.values())


def limits_of_arena(root: Path, family: str) -> str:
    """The section of an arena's notebook that says what it cannot show, as Markdown; empty without one."""
    path = root / "notebooks" / "arena" / f"{family}.ipynb"
    if not path.is_file():
        return ""
    for cell in read_record(path, ("cells",), "restore it from git")["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and text.startswith("## ") and "cannot show" in text.splitlines()[0]:
            return text
    return ""


def _results(root: Path, slug: str) -> dict[str, Any]:
    """Captions, tables, tensors and provenance of one study, as the templates show them."""
    folder = root / "reports" / slug
    evidence = load_evidence(root, slug)
    mend = f"run `dvc repro {stage_of(slug)}`"
    files = [folder / "tables" / f"{name}.csv" for name in evidence["tables"]]
    files += [folder / "figures" / f"{name}.svg" for name in evidence["figures"]]
    if lost := [path for path in files if not path.is_file()]:
        raise TokenariumError(f"{lost[0]} is missing: restore it from git, or {mend}")
    tables = []
    for name, caption in evidence["tables"].items():
        frame = with_intervals(pd.read_csv(folder / "tables" / f"{name}.csv"))
        tables.append({"name": name, "caption": caption, "head": list(frame), "rows": frame.to_numpy().tolist()})
    index = folder / "tensors" / "index.json"
    return {
        "tables": tables,
        "figures": evidence["figures"],
        "tensors": evidence["tensors"],
        "tensor_index": read_record(index, (), mend) if index.is_file() else {},
        "metrics": evidence["metrics"],
        "parameters": evidence["parameters"],
        "seeds": evidence["seeds"],
        "provenance": read_record(folder / "provenance.json", ("packages",), mend),
    }
