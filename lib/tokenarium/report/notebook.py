"""An executed notebook as a page of the site: the same cells and results, without the traces of its execution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

from tokenarium.report.verdicts import read_record

# What a page without a kernel and without a network can show.
KINDS = ("text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
_FIGURE = re.compile(r"""study\.figure\(\s*["']([\w-]+)["']""")


def page_source(path: Path, figures: Mapping[str, str], link: str, title: str) -> str:
    """The notebook at `path` as JSON for myst-nb, which executes nothing.

    Times, machine paths, widgets and what was written to stderr (progress bars, warnings of libraries) leave, and an
    image takes as alt text the caption that its cell gave it; figures: captions by name. link: Markdown put below the
    title; title: for a notebook that has none. Raises TokenariumError for a file that is no notebook.
    """
    read_record(path, ("cells", "nbformat"), "remove it and run `dvc checkout` or `dvc repro`")
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    cells = []
    for cell in notebook.cells:
        made = {"cell_type": cell.cell_type, "source": cell.source, "metadata": {}}
        if cell.cell_type == "code":
            captions = [figures[name] for name in _FIGURE.findall(cell.source) if name in figures]
            alt = "; ".join(captions) or "figure made by the cell above"
            made["metadata"] = {"mystnb": {"image": {"alt": alt}}}
            made |= {"execution_count": cell.execution_count, "outputs": _outputs(cell.outputs)}
        cells.append(nbformat.from_dict(made))
    titled = bool(cells) and cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    lead = link if titled else f"# {title}\n\n{link}"
    cells.insert(1 if titled else 0, nbformat.from_dict({"cell_type": "markdown", "source": lead, "metadata": {}}))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    # Orphan: the site has its own navigation, so that a page does not change when another one comes or leaves.
    metadata = {
        "orphan": True,
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    made = nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})
    return nbformat.writes(made) + "\n"


def _outputs(outputs: list[nbformat.NotebookNode]) -> list[dict]:
    kept: list[dict] = []
    for output in outputs:
        if output.output_type == "error":
            kept.append({key: output[key] for key in ("output_type", "ename", "evalue", "traceback")})
        elif output.output_type != "stream":
            data = {kind: content for kind, content in output.data.items() if kind in KINDS}
            if data:
                kept.append({"output_type": "display_data", "data": data, "metadata": {}})
        elif output.name == "stdout" and kept and kept[-1]["output_type"] == "stream":
            kept[-1]["text"] += output.text
        elif output.name == "stdout":
            kept.append({"output_type": "stream", "name": "stdout", "text": output.text})
    return kept
