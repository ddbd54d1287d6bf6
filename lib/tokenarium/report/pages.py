"""The report: reports/README.md for reading on a code host, reports/site for a browser. Works offline from file://."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory, write_whole
from tokenarium.markdown import cell
from tokenarium.report.verdicts import load_evidence, load_verdicts, read_record, stage_of
from tokenarium.study.tables import with_intervals

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tokenarium.report", "."),
    autoescape=lambda name: name is not None and "html" in name,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["number"] = lambda value: f"{value:.4g}"
_TEMPLATES.filters["cell"] = cell
_TEMPLATES.filters["page"] = lambda slug: slug.replace("/", "-")


def write_report(root: Path) -> list[Path]:
    """Write the verdict table and the site from the records below verdicts/; returns the two places."""
    records = [record | {"results": _results(root, record["slug"])} for record in load_verdicts(root)]
    papers = [record for record in records if "judgement" in record]
    arenas = [record for record in records if "judgement" not in record]
    readme = root / "reports" / "README.md"
    with write_whole(readme) as file:
        file.write(_TEMPLATES.get_template("readme.md.jinja").render(papers=papers, arenas=arenas))
    site = root / "reports" / "site"
    staged = site.with_name(".site.partial")
    shutil.rmtree(staged, ignore_errors=True)
    pages = {"index": ("index.html.jinja", {"papers": papers, "arenas": arenas})}
    for record in records:
        pages[record["slug"].replace("/", "-")] = ("study.html.jinja", {"record": record})
    for name, (template, values) in pages.items():
        with write_whole(staged / f"{name}.html") as file:
            file.write(_TEMPLATES.get_template(template).render(**values))
    shutil.copy2(Path(__file__).with_name("site.css"), staged / "site.css")
    for record in records:
        figures = root / "reports" / record["slug"] / "figures"
        if record["results"]["figures"]:
            shutil.copytree(figures, staged / "figures" / record["slug"].replace("/", "-"))
    replace_directory(staged, site)
    return [readme, site / "index.html"]


def _results(root: Path, slug: str) -> dict[str, Any]:
    """Captions, tables and provenance of one study, as the templates show them.

    Raises TokenariumError when one of its files is missing or damaged.
    """
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
    provenance = read_record(folder / "provenance.json", ("packages",), mend)
    return {
        "tables": tables,
        "figures": evidence["figures"],
        "tensors": evidence["tensors"],
        "metrics": evidence["metrics"],
        "parameters": evidence["parameters"],
        "seeds": evidence["seeds"],
        "provenance": provenance,
    }
