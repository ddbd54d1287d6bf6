"""Notebooks as they are committed: they keep the rules of the notebook check, and a paper's room is complete."""

import ast
import json
from pathlib import Path

import pytest

from tokenarium.measure.claims import load_claims
from tokenarium.run.notebook_check import check_notebooks
from tokenarium.study.catalogue import find_paper
from tokenarium.study.parameters import Parameters, load_params, project_root

ROOT = project_root(Path(__file__).parent)
PARAMS = load_params(ROOT)
PAPERS = {slug: ROOT / "notebooks" / entry["family"] / f"{slug}.ipynb" for slug, entry in PARAMS["papers"].items()}
ARENAS = {f"arena/{family}": ROOT / "notebooks" / "arena" / f"{family}.ipynb" for family in PARAMS["arenas"]}
NOTEBOOKS = PAPERS | ARENAS


def cells(slug, kind=None):
    notebook = json.loads(NOTEBOOKS[slug].read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if kind is None or cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"]).strip()


def test_every_claims_file_belongs_to_a_paper():
    assert set((ROOT / "notebooks").rglob("*.claims.yaml")) == {
        path.with_suffix("").with_suffix(".claims.yaml") for path in PAPERS.values()
    }


@pytest.mark.parametrize("slug", PAPERS)
def test_a_papers_room_has_its_four_files(slug):
    family, module = PARAMS["papers"][slug]["family"], slug.replace("-", "_")
    for path in (
        f"lib/tokenarium/methods/{family}/{module}.py",
        f"tests/methods/{family}/test_{module}.py",
        f"notebooks/{family}/{slug}.ipynb",
        f"notebooks/{family}/{slug}.claims.yaml",
    ):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_a_notebook_keeps_the_rules(slug):
    assert [str(problem) for problem in check_notebooks(ROOT, slug)] == []


def test_every_notebook_keeps_the_rules_and_belongs_to_a_paper_an_arena_or_to_all():
    assert [str(problem) for problem in check_notebooks(ROOT)] == []


@pytest.mark.parametrize("slug", PAPERS)
def test_the_claims_are_those_of_a_surveyed_paper(slug):
    claims = load_claims(PAPERS[slug].with_suffix("").with_suffix(".claims.yaml"))
    paper = find_paper(slug)
    assert (claims.paper, claims.arxiv, claims.family) == (paper.slug, paper.arxiv, paper.family)
    for wanted in paper.claims:  # some are split: C3 into C3a and C3b
        assert any(claim.id.startswith(wanted) for claim in claims.claims), wanted


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_parameters_come_from_params_yaml(slug):
    """Every attribute of the notebook's `p` is one of its parameters."""
    section, name = ("arenas", slug.removeprefix("arena/")) if slug in ARENAS else ("papers", slug)
    entry = PARAMS[section][name]
    known = {*entry["cpu"], *PARAMS["families"][entry["family"]]["cpu"]}
    tree = ast.parse("\n".join(source(cell) for cell in cells(slug, "code")))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "p"
    }
    assert used
    assert used <= known | set(dir(Parameters))
