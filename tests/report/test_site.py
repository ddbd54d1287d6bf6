"""Sphinx builds the site whole, the same again, and reads and writes only what changed."""

import json
import re
import shutil
import sys

import nbformat
import pytest
from nbformat import v4

from tokenarium import study
from tokenarium.errors import TokenariumError
from tokenarium.report import site as site_module
from tokenarium.report.mathml import mathml
from tokenarium.report.pages import write_report
from tokenarium.report.verdicts import write_verdict

SLUGS = ("tiny", "small", "little")


@pytest.fixture
def papers(project, finish, change):
    """A project of three judged papers and an arena; one has an executed notebook with formulas."""
    claims = project / "notebooks" / "toys" / "tiny.claims.yaml"
    for slug in SLUGS[1:]:
        change(
            project / "params.yaml",
            r"^arenas:",
            f"  {slug}: {{family: toys, reads: [], smoke: {{}}, cpu: {{}}, gpu: {{}}}}\narenas:",
        )
        claims.with_name(f"{slug}.claims.yaml").write_text(claims.read_text().replace("paper: tiny", f"paper: {slug}"))
    for slug in (*SLUGS, "arena/toys"):
        finish(slug)
        write_verdict(project, slug)
    cells = [v4.new_markdown_cell("# How\n\nInline $m_l$ and\n\n$$E_i = \\frac1T \\sum_j x_j$$")]
    cells.append(
        v4.new_code_cell("1", outputs=[v4.new_output("display_data", data={"text/markdown": "|a|\n|-|\n|$y_k$|"})])
    )
    nbformat.write(v4.new_notebook(cells=cells), project / "reports" / "tiny" / "notebook.ipynb")
    return project


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {name: path.read_bytes() for name, path in files(folder).items()}


def built(project):
    """When Sphinx last read and wrote each page."""
    work = project / ".tokenarium" / "report"
    kinds = {"read": ("doctrees", ".doctree"), "written": ("html", ".html")}
    return {
        kind: {
            path.relative_to(work / folder).with_suffix("").as_posix(): path.stat().st_mtime_ns
            for path in (work / folder).rglob(f"*{suffix}")
            if path.stem != "search"
        }
        for kind, (folder, suffix) in kinds.items()
    }


def rebuilt(before, after, kind):
    return {name for name in after[kind] if after[kind][name] != before[kind].get(name)}


def test_a_second_build_reads_nothing_and_a_changed_verdict_its_paper_and_the_overviews(papers, finish):
    write_report(papers)
    first, site = built(papers), papers / "reports" / "site"
    before = contents(site)
    assert {f"papers/{slug}" for slug in SLUGS} | {"index", "families/toys", "notebooks/tiny"} == set(first["read"])
    write_report(papers)
    second = built(papers)
    assert rebuilt(first, second, "read") == rebuilt(first, second, "written") == set()
    assert contents(site) == before
    finish("small", gain=0.0)
    write_verdict(papers, "small")
    write_report(papers)
    third = built(papers)
    expected = {"papers/small", "families/toys", "index"}
    assert rebuilt(second, third, "read") == rebuilt(second, third, "written") == expected
    incremental = contents(site)
    assert b"not reproduced" in incremental["papers/small.html"]
    shutil.rmtree(papers / ".tokenarium" / "report")
    write_report(papers)
    afresh = contents(site)
    assert {name for name in afresh | incremental if afresh.get(name) != incremental.get(name)} == set()


def test_a_site_is_whole_and_a_paper_that_left_is_gone(papers):
    write_report(papers)
    site = papers / "reports" / "site"
    pages = {name: path for name, path in files(site).items() if name.endswith(".html")}
    assert {"index.html", "papers/tiny.html", "notebooks/tiny.html", "families/toys.html", "search.html"} <= set(pages)
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        ids = set(re.findall(r'\bid="([^"]+)"', text))
        assert str(papers) not in text
        for target in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            place, _, fragment = target.partition("#")
            if place.startswith("https:"):
                continue
            assert "//" not in place
            assert not place or (path.parent / place).is_file(), (path, target)
            assert place or not fragment or fragment in ids or fragment.startswith("svg-"), (path, target)
    notebook = pages["notebooks/tiny.html"].read_text(encoding="utf-8")
    assert "MathJax" not in notebook
    assert notebook.count("<math") == 3
    assert "<td" in notebook
    raw = json.loads((site / "files" / "tiny" / "metrics.json").read_text())
    assert raw["gain"]["value"] == 2.0
    (papers / "verdicts" / "tiny.json").unlink()
    write_report(papers)
    left = set(files(site))
    assert not [name for name in left if "tiny" in name]
    assert "papers/small.html" in left


def test_a_build_that_stops_leaves_the_last_site(papers, monkeypatch, tmp_path):
    site = papers / "reports" / "site"
    site.mkdir(parents=True)
    (site / "index.html").write_text("the last one")
    broken = tmp_path / "broken"
    shutil.copytree(site_module._CODE / "sphinx", broken / "sphinx")
    (broken / "sphinx" / "conf.py").write_text("raise ValueError('of no use')\n")
    monkeypatch.setattr(site_module, "_CODE", broken)
    with pytest.raises(TokenariumError, match="the site was not built") as error:
        write_report(papers)
    assert "\n" not in str(error.value)
    assert contents(site) == {"index.html": b"the last one"}


def test_formulas_are_mathml_or_their_own_source():
    assert "<msub>" in mathml("m_l", block=False)
    assert 'display="block"' in mathml(r"\begin{cases} a & b \end{cases}", block=True)
    assert mathml(r"\nosuch{a} <b>", block=False) == r'<code class="latex">\nosuch{a} &lt;b&gt;</code>'
    assert mathml(r"\nosuch", block=True) == r'<pre class="latex">\nosuch</pre>'
    assert "label" not in mathml(r"x = 1 \label{eq:x}", block=True)


def test_the_page_of_tensors_is_made_once_and_again_when_they_change(papers, monkeypatch):
    calls = []

    class Explorer:
        @staticmethod
        def write_page(folder, target):
            calls.append(folder)
            target.write_text("tensors")

    monkeypatch.setattr(study, "explorer", Explorer, raising=False)
    monkeypatch.setitem(sys.modules, "tokenarium.study.explorer", Explorer)
    index = papers / "reports" / "tiny" / "tensors" / "index.json"
    assert site_module.tensor_page(papers, "tiny") is None  # a study without tensors
    index.write_text('{"energy": {}}')
    page = site_module.tensor_page(papers, "tiny")
    assert (page.name, page.read_text(), calls) == ("tiny.html", "tensors", [papers / "reports" / "tiny"])
    assert site_module.tensor_page(papers, "tiny") == page
    assert len(calls) == 1
    index.write_text('{"attention": {}}')
    assert site_module.tensor_page(papers, "tiny").read_text() == "tensors"
    assert len(calls) == 2
    assert not page.exists()
    (papers / "reports" / "tiny" / "tensors" / "index.json").unlink()
    assert site_module.tensor_page(papers, "tiny") is None
    assert site_module.tensor_page(papers, "arena/toys") is None
