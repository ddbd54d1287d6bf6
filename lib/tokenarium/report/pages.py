"""The report: reports/README.md for reading on a code host, reports/site for a browser, which asks for no network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from tokenarium.files import write_whole
from tokenarium.markdown import cell
from tokenarium.report.distance import BETTER, WITHIN
from tokenarium.report.history import previous_run
from tokenarium.report.notebook import page_source
from tokenarium.report.site import build_site, tensor_page
from tokenarium.report.studies import (
    families_of,
    limits_of_arena,
    load_studies,
    matrix_rows,
    page_name,
)
from tokenarium.run.failures import last_failure
from tokenarium.study.parameters import load_params

# How good an outcome is, for its colour: the word itself always stands there too.
KINDS = {
    "reproduced": "good",
    "holds": "good",
    "open": "good",
    WITHIN: "good",
    BETTER: "good",
    "partly": "half",
    "not reproduced": "bad",
    "does not hold": "bad",
    "closed": "bad",
}


def write_report(root: Path, catalogue: Sequence[Mapping[str, str]] = ()) -> list[Path]:
    """Write the verdict table and the site from the records below verdicts/; returns the two places.

    catalogue: slug, title, family and arxiv of every surveyed paper; those without a notebook are shown as not begun.
    Raises TokenariumError when a study's file is missing or damaged; the last report then stays.
    """
    studies = load_studies(root)
    site = build_site(root, site_pages(root, studies, catalogue), studies)
    readme = root / "reports" / "README.md"
    papers = [study for study in studies if "judgement" in study]
    arenas = [study for study in studies if "judgement" not in study]
    with write_whole(readme) as file:
        file.write(_README.get_template("readme.md.jinja").render(papers=papers, arenas=arenas))
    return [readme, site / "index.html"]


def site_pages(
    root: Path, studies: Sequence[Mapping[str, Any]], catalogue: Sequence[Mapping[str, str]] = ()
) -> dict[str, str]:
    """Source of every page of the site by its path: MyST Markdown, and notebooks as myst-nb reads them."""
    papers = {study["slug"]: study for study in studies if "judgement" in study}
    arenas = {study["family"]: study for study in studies if "judgement" not in study}
    families = families_of(studies)
    rows = matrix_rows(studies, load_params(root)["papers"], catalogue)
    pages = {"index.md": _render("index.md.jinja", rows=rows, studies=studies, families=families, **_summary(rows))}
    for family in families:
        shown = _with_pages(root, arenas[family], pages) if family in arenas else None
        members = [row for row in rows if row["family"] == family]
        pages[f"families/{family}.md"] = _render(
            "family.md.jinja", family=family, study=shown, rows=members, limits=limits_of_arena(root, family)
        )
    for slug, study in papers.items():
        pages[f"papers/{slug}.md"] = _render("paper.md.jinja", study=_with_pages(root, study, pages))
    return pages


def _with_pages(root: Path, study: Mapping[str, Any], pages: dict[str, str]) -> dict[str, Any]:
    """The study with what its page shows besides; puts its executed notebook among the `pages`."""
    slug = study["slug"]
    name = page_name(slug)
    notebook = root / "reports" / slug / "notebook.ipynb"
    if notebook.is_file():
        arena = "judgement" not in study
        title = f"Arena: {study['family']}" if arena else study["judgement"]["title"]
        home = f"../families/{study['family']}.md" if arena else f"../papers/{name}.md"
        link = f"[Back to verdict, claims and numbers]({home}). The notebook as it ran at profile {study['profile']}:"
        pages[f"notebooks/{name}.ipynb"] = page_source(notebook, study["results"]["figures"], link, title)
    return {
        **study,
        "name": name,
        "has_notebook": notebook.is_file(),
        "has_tensor_page": tensor_page(root, slug) is not None,
        "failure": last_failure(root, slug),
        "before": previous_run(root, study),
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["verdict"] for row in rows)
    order = ["reproduced", "partly", "not reproduced", "inconclusive", "not testable at this scale"]
    verdicts = [verdict for verdict in order if counts[verdict]] + sorted(set(counts) - set(order), reverse=True)
    return {
        "counts": {verdict: counts[verdict] for verdict in verdicts},
        "profiles": sorted({row["profile"] for row in rows if row["profile"]}),
        "all_families": sorted({row["family"] for row in rows}),
    }


# Filters


def as_markdown(text: str) -> Markup:
    """Text for Markdown, on one line: nothing in it is markup."""
    return Markup(re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split())))


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def with_links(text: str, metrics: Mapping[str, Any]) -> Markup:
    """Text with every metric that it names, and the number put in for it, linked to the metric's row."""
    parts, place = [], 0
    for found in re.finditer(r"\b([a-z][a-z0-9_]*)(?:\.\w+)?(?: \([^()]*\))?", text):
        if found[1] in metrics:
            parts += [escape(text[place : found.start()]), _link(found[1], found[0])]
            place = found.end()
    return Markup("").join([*parts, escape(text[place:])])


def _link(metric: str, text: str) -> Markup:
    return Markup('<a href="#metric-{}">{}</a>').format(metric, text)


def chip(text: str) -> Markup:
    """A verdict or an outcome in its colour."""
    return Markup('<span class="chip {}">{}</span>').format(KINDS.get(text, "open"), text)


def _environment(**options: Any) -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tokenarium.report", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
    made.filters |= {
        "cell": cell,
        "chip": chip,
        "md": as_markdown,
        "number": number,
        "page": page_name,
        "with_links": with_links,
        "yaml": lambda value: yaml.safe_dump(value, default_flow_style=None, allow_unicode=True).rstrip(),
    }
    return made


_README = _environment()  # Markdown, whose cells the filter `cell` makes safe
_SITE = _environment(autoescape=True)


def _render(template: str, **values: Any) -> str:
    return _SITE.get_template(template).render(**values)
