"""The files of a paper that nobody has written yet: they run up to the method and say that it is missing."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from pathlib import Path

import yaml

from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole
from tokenarium.run.papers import NOT_WRITTEN
from tokenarium.study.catalogue import Paper, find_paper
from tokenarium.study.parameters import PARAMS_FILE, load_params

WIDTH = 120  # of a line of code, as in pyproject.toml
READ_BY_ALL = ("lib/tokenarium/measure", "lib/tokenarium/study/figures.py")


def paper_files(paper: Paper) -> dict[str, str]:
    """Paths of the four files of a paper, relative to the root, with what they hold until it is written."""
    folder = f"notebooks/{paper.family}/{paper.slug}"
    return {
        f"lib/tokenarium/methods/{paper.family}/{paper.module}.py": _method(paper),
        f"{folder}.ipynb": _notebook(paper),
        f"{folder}.claims.yaml": _claims(paper),
        f"tests/methods/{paper.family}/test_{paper.module}.py": _test(paper),
    }


def new_paper(root: Path, family: str, slug: str) -> list[Path]:
    """Make the four files of a surveyed paper and its section of params.yaml; returns what was written.

    The first paper of a family brings the family's package and its section of params.yaml with it. All is written,
    or nothing. Raises TokenariumError for an unknown family or slug, with the nearest known name, and when one of the
    files or the section exists.
    """
    paper = find_paper(slug, family)
    params = load_params(root)
    files = paper_files(paper)
    if standing := [name for name in files if (root / name).exists()]:
        raise TokenariumError(f"{standing[0]} exists already: nothing was written; remove it to begin {slug} anew")
    if slug in params["papers"]:
        raise TokenariumError(f"{PARAMS_FILE} has the paper {slug} already: nothing was written; remove it from there")
    package = f"lib/tokenarium/methods/{family}/__init__.py"
    if not (root / package).exists():
        files = {package: "", **files}
    text = (root / PARAMS_FILE).read_text(encoding="utf-8")
    written: list[Path] = []
    try:
        for name, content in files.items():
            with write_whole(root / name) as file:
                file.write(content)
            written.append(root / name)
        entries = {"papers": _entry(paper, fill_reads(root, [f"lib/tokenarium/methods/{family}/{paper.module}.py"]))}
        if family not in params["families"]:
            entries["families"] = _family_entry(family)
        for section, entry in entries.items():
            text = add_entry(text, section, entry)
        with write_whole(root / PARAMS_FILE) as file:
            file.write(text)
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return [*written, root / PARAMS_FILE]


def add_entry(text: str, section: str, entry: str) -> str:
    """params.yaml with `entry` (lines, indented by two) as the last of a section; every other line stays as it is.

    Raises TokenariumError unless the section is written as an indented mapping, or as `{}`.
    """
    before, added = yaml.safe_load(text), yaml.safe_load(entry)
    name = next(iter(added))
    lines = text.splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if re.match(rf"{section}:\s*(\{{\}}\s*)?(#.*)?$", line)]
    if not found:
        raise TokenariumError(f"{PARAMS_FILE} has no section '{section}:' on a line of its own: add {name} by hand")
    place = found[0] + 1
    lines[found[0]] = re.sub(r"\{\}\s*", "", lines[found[0]]).rstrip() + "\n"
    end = next((n for n, line in enumerate(lines[place:], place) if re.match(r"[^\s#]", line)), len(lines))
    # Comments and blank lines above the next section belong to that one.
    while end > place and re.match(r"#|\s*$", lines[end - 1]):
        end -= 1
    if end > place and not lines[end - 1].endswith("\n"):
        lines[end - 1] += "\n"
    changed = "".join([*lines[:end], entry, *lines[end:]])
    try:
        right = yaml.safe_load(changed) == before | {section: (before[section] or {}) | added}
    except yaml.YAMLError:
        right = False
    if not right:
        raise TokenariumError(f"{PARAMS_FILE}: the section '{section}' is laid out unusually: add {name} by hand")
    return changed


def fill_reads(root: Path, reads: list[str]) -> list[str]:
    """`reads` of a paper with all that every paper reads, its last entry repeated up to the places that dvc.yaml has.

    Raises TokenariumError when there are more than there are places.
    """
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    places = sum("item.reads[" in dep for dep in stages.get("paper", {}).get("do", {}).get("deps", ()))
    reads = list(dict.fromkeys([*reads, *READ_BY_ALL]))
    if len(reads) > places:
        raise TokenariumError(f"dvc.yaml has {places} places for what a paper reads, and this one reads {len(reads)}")
    return reads + reads[-1:] * (places - len(reads))


def _entry(paper: Paper, reads: list[str]) -> str:
    listed = "".join(f"      - {name}\n" for name in reads)
    return (
        f"  {paper.slug}:\n"
        f"    family: {paper.family}\n"
        f"    reads:\n{listed}"
        f"    smoke: &{paper.slug} {{examples: 8}}\n"
        f"    cpu: {{<<: *{paper.slug}, examples: 100}}\n"
        f"    gpu: {{<<: *{paper.slug}, examples: 1000}}\n"
    )


def _family_entry(family: str) -> str:
    return (
        f"  {family}:\n    smoke: {{resamples: 1000}}\n    cpu: {{resamples: 10000}}\n    gpu: {{resamples: 10000}}\n"
    )


def _source(paper: Paper) -> str:
    """Title and identifier, wrapped for a docstring."""
    return textwrap.fill(f"Source: {paper.title}, arXiv {paper.arxiv}.", WIDTH)


def _method(paper: Paper) -> str:
    return f'''"""{paper.name}: not written yet.

{_source(paper)}
"""

from torch import Tensor


def {paper.module}(tokens: Tensor) -> Tensor:
    """What {paper.name} does with tokens (examples, dim) float: say it here, with shapes, units and errors.

    Raises NotImplementedError until it is written.
    """
    raise NotImplementedError("not written yet: lib/tokenarium/methods/{paper.family}/{paper.module}.py")
'''


def _test(paper: Paper) -> str:
    return f'''"""{paper.name}: properties, edge cases, a slow independent reference. Not written yet, so this fails."""

import torch

from tokenarium.methods.{paper.family} import {paper.module}


def test_the_method_is_written():
    tokens = torch.arange(12.0).reshape(3, 4)
    assert {paper.module}.{paper.module}(tokens).shape[0] == 3
'''


def _claims(paper: Paper) -> str:
    lines = [
        f"paper: {paper.slug}",
        f"title: {json.dumps(paper.title, ensure_ascii=False)}",
        f'arxiv: "{paper.arxiv}"',
        f"family: {paper.family}",
        "# Written before the first run and never bent to a result: the paper's words, its own figure (paper_figure),",
        "# the place of both (where), and a rule over the metrics that the notebook records.",
        f"# No notebook records `{NOT_WRITTEN}`: nothing is judged before the rules are written.",
        "claims:",
    ]
    for number, claim in enumerate(paper.claims):
        lines += [
            f"  - id: {claim}",
            f"    statement: claim {claim} of {paper.name} must still be written",
            *(["    headline: true"] if number == 0 else []),
            f"    holds_if: {NOT_WRITTEN}.low > 0",
        ]
    return "\n".join(lines) + "\n"


def _notebook(paper: Paper) -> str:
    call = f"{paper.module}.{paper.module}"
    cells: list[tuple[str, str]] = [
        (
            "markdown",
            f"# {paper.name}: not written yet\n\n"
            f"*{paper.title}*, [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}).",
        ),
        ("parameters", "profile = None  # smoke, cpu or gpu; None: the profile of params.yaml"),
        (
            "code",
            "import matplotlib.pyplot as plt\nimport pandas as pd\nimport torch\n\nimport tokenarium\n"
            "from tokenarium.measure.bootstrap import bootstrap\n"
            f"from tokenarium.methods.{paper.family} import {paper.module}\n"
            "from tokenarium.study.figures import interval_rows\n\n"
            f'study = tokenarium.open_study("{paper.slug}", profile=profile)\np = study.parameters\nstudy',
        ),
        (
            "markdown",
            "## What the paper claims, and what would convince us\n\n"
            "The rules were written before the first run; the headline claims (bold) decide the verdict.",
        ),
        ("code", "study.show_claims()"),
        ("markdown", "## The idea\n\nSay here what the method does, with its equations."),
        ("code", f"study.show_source({call})"),
        ("markdown", "## The experiment\n\nSay here what is compared, at what cost, and with which controls."),
        (
            "code",
            "tokens = torch.rand(p.examples, 4, generator=torch.Generator().manual_seed(study.seeds[0]))\n"
            f"outcome = {call}(tokens).reshape(p.examples, -1).mean(1)\n"
            'found = study.metric("outcome", bootstrap(outcome.numpy(), resamples=p.resamples))',
        ),
        (
            "code",
            'frame = pd.DataFrame({"method": [study.slug], "outcome": [found.value]})\n'
            "frame = frame.assign(outcome_low=found.low, outcome_high=found.high)\n"
            'study.table("outcomes", frame, "The method beside its controls (95 % intervals over examples)")',
        ),
        (
            "code",
            "rows = {study.slug: (found.value, found.low, found.high)}\n"
            'study.figure("outcomes", interval_rows(rows, "outcome"), "Say here what the picture shows")\nplt.show()',
        ),
        (
            "markdown",
            f'## Look inside\n\nSaved for `tokenarium.tensors("{paper.slug}")`: say here what, and for which examples.',
        ),
        ("code", 'study.tensor("outcome", outcome, ["example"], "say here what it is")'),
        ("markdown", "## Verdict\n\nSay here how to read it, and what this scale cannot show."),
        ("code", "study.finish()"),
    ]
    written = []
    for number, (kind, text) in enumerate(cells):
        cell = {
            "cell_type": "markdown" if kind == "markdown" else "code",
            "id": hashlib.sha256(f"{paper.slug} {number}".encode()).hexdigest()[:8],
            "metadata": {"tags": ["parameters"]} if kind == "parameters" else {},
            "source": text.splitlines(keepends=True),
        }
        if kind != "markdown":
            cell |= {"execution_count": None, "outputs": []}
        written.append(dict(sorted(cell.items())))
    notebook = {
        "cells": written,
        "metadata": {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
