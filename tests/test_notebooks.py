"""Notebooks as they are committed: without outputs, in one order, and a paper's room is complete."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

from tokenarium.measure.claims import load_claims
from tokenarium.study.parameters import Parameters, load_params, project_root

ROOT = project_root(Path(__file__).parent)
PARAMS = load_params(ROOT)
PAPERS = {slug: ROOT / "notebooks" / entry["family"] / f"{slug}.ipynb" for slug, entry in PARAMS["papers"].items()}
ARENAS = {f"arena/{family}": ROOT / "notebooks" / "arena" / f"{family}.ipynb" for family in PARAMS["arenas"]}
NOTEBOOKS = PAPERS | ARENAS
LONGEST = 40  # lines of a code cell


def cells(slug, kind=None):
    notebook = json.loads(NOTEBOOKS[slug].read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if kind is None or cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"]).strip()


def test_every_notebook_belongs_to_a_paper_or_an_arena():
    assert set((ROOT / "notebooks").rglob("*.ipynb")) == set(NOTEBOOKS.values())
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


@pytest.mark.parametrize("slug", PAPERS)
def test_the_claims_are_the_papers_own(slug):
    claims = load_claims(PAPERS[slug].with_suffix("").with_suffix(".claims.yaml"))
    assert claims.paper == slug
    assert claims.family == PARAMS["papers"][slug]["family"]
    assert claims.arxiv in source(cells(slug)[0])


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_a_notebook_is_committed_as_it_was_written(slug):
    nbformat.validate(nbformat.read(NOTEBOOKS[slug], as_version=4))
    for cell in cells(slug, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    ids = [cell["id"] for cell in cells(slug)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_a_notebook_starts_with_its_title_and_then_its_parameters(slug):
    title, *_ = cells(slug)
    assert title["cell_type"] == "markdown"
    assert source(title).startswith("# ")
    headings = [line for cell in cells(slug, "markdown") for line in source(cell).splitlines() if line.startswith("# ")]
    assert len(headings) == 1
    tagged = [cell for cell in cells(slug) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == cells(slug, "code")[:1]
    names = [target.id for node in ast.parse(source(tagged[0])).body for target in node.targets]
    assert names == ["profile"]


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_a_notebook_opens_its_own_study_and_ends_with_finish(slug):
    code = [source(cell) for cell in cells(slug, "code")]
    opened = [text for text in code if "open_study(" in text]
    assert len(opened) == 1
    assert f'tokenarium.open_study("{slug}", profile=profile)' in opened[0]
    assert source(cells(slug)[-1]) == "study.finish()"
    assert [text for text in code if "study.finish()" in text] == ["study.finish()"]
    if slug in PAPERS:
        assert "study.show_claims()" in code
        assert any("study.show_source(" in text for text in code)


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_code_cells_are_short_and_compile(slug):
    for cell in cells(slug, "code"):
        assert len(source(cell).splitlines()) <= LONGEST, source(cell).splitlines()[0]
        ast.parse(source(cell))


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
