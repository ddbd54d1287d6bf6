"""Readme and pages show every verdict with its numbers, say where each came from, and take no text for markup."""

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from safetensors.numpy import save_file

from tokenarium.errors import TokenariumError
from tokenarium.markdown import cell
from tokenarium.report import pages as pages_module
from tokenarium.report.pages import as_markdown, site_pages, with_links, write_report
from tokenarium.report.studies import load_studies
from tokenarium.report.verdicts import write_verdict
from tokenarium.run.failures import record_failure


class Page(HTMLParser):
    """Text, tags, ids and links of a page's source; `unclosed` are tags that were opened and never closed."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.links, self.ids, self.alts, self.pieces, self.unclosed = [], [], [], [], [], []
        self.feed(source)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        self.alts += [given["alt"]] if "alt" in given else []
        if tag not in ("meta", "link", "img", "input"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)


@pytest.fixture
def report(project, finish):
    """Judge a paper and an arena; returns the pages' sources by path."""

    def report(catalogue=(), **options):
        for slug in ("tiny", "arena/toys"):
            finish(slug, **options)
            write_verdict(project, slug)
        return sources(project, catalogue)

    return report


def sources(project, catalogue=()):
    return {name: Page(text) for name, text in site_pages(project, load_studies(project), catalogue).items()}


@pytest.fixture
def readme(project, report, monkeypatch):
    """The text of reports/README.md, with the site left unbuilt."""
    monkeypatch.setattr(pages_module, "build_site", lambda root, pages, studies: root / "reports" / "site")

    def readme(**options):
        report(**options)
        readme, index = write_report(project)
        assert readme == project / "reports" / "README.md"
        assert index == project / "reports" / "site" / "index.html"
        return readme.read_text(encoding="utf-8")

    return readme


# The readme


def test_the_readme_has_verdict_claims_figures_and_numbers(readme):
    text = readme()
    table = next(line for line in text.splitlines() if line.startswith("| [Tiny"))
    assert "(https://arxiv.org/abs/2401.00001)" in table
    assert "| toys | cpu | **[reproduced](#tiny)** | **C1** holds, C2 not testable |" in table
    claim = next(line for line in text.splitlines() if line.startswith("| **C1** |"))
    assert claim.endswith("| holds | gain.low (1) > 0: true |")
    assert "| gate G0 | there is something to lose | — | open | top1 (90.25) >= 80: true |" in text
    assert "\n![" in text
    assert "\na model of one number\n" in text


def test_every_link_of_the_readme_leads_to_a_file(readme, project):
    targets = re.findall(r"\]\(([^)#]+)\)", readme())
    local = [target for target in targets if not target.startswith("https://arxiv.org/abs/")]
    assert {"tiny/metrics.json", "tiny/tables/budgets.csv", "tiny/figures/curve.svg", "arena/toys/metrics.json"} <= set(
        local
    )
    assert all((project / "reports" / target).is_file() for target in local)


def test_parameters_that_were_set_by_hand_are_told_in_the_readme(readme, project):
    assert "set by hand" not in readme()
    verdict = project / "verdicts" / "tiny.json"
    verdict.write_text(json.dumps(json.loads(verdict.read_text()) | {"overridden": True}))
    written, _ = write_report(project)
    assert "**Overridden**: parameters of this run were set by hand" in written.read_text()


def test_the_readme_takes_no_text_for_markup(readme):
    text = readme()
    assert not re.search(r"<[a-zA-Z/!?]", text)
    claim = next(line for line in text.splitlines() if line.startswith("| **C1** |"))
    assert "a < b \\| c & &lt;script>alert(1)&lt;/script> gains" in claim
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert re.search(r'^!\[The "curve" & &lt;i>more&lt;/i>\]\(tiny/', text, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a <= b < c", "a <= b < c"),
        ("<b>x</b> <!-- y", "&lt;b>x&lt;/b> &lt;!-- y"),
        ("a | b\n  c", "a \\| b c"),
        (None, ""),
    ],
)
def test_a_cell_is_one_line_without_bars_and_tags(text, safe):
    assert cell(text) == safe


@pytest.mark.parametrize("lost", ["tables/budgets.csv", "figures/curve.svg", "provenance.json", "evidence.json"])
def test_a_lost_file_is_named_and_the_last_report_stays(readme, project, lost):
    before = readme()
    (project / "reports" / "tiny" / lost).unlink()
    with pytest.raises(TokenariumError, match=r"tiny.*run `dvc repro paper@tiny`") as error:
        write_report(project)
    assert "\n" not in str(error.value)
    assert (project / "reports" / "README.md").read_text(encoding="utf-8") == before


def test_without_verdicts_the_report_is_an_empty_table(project, monkeypatch):
    monkeypatch.setattr(pages_module, "build_site", lambda root, pages, studies: root / "reports" / "site")
    readme, _ = write_report(project)
    assert "| paper | family | profile | verdict | claims |" in readme.read_text()
    assert "0 of" not in readme.read_text()


# The front page


def test_the_front_page_has_a_row_per_paper_with_links_to_its_headline_claims(report):
    index = report()["index.md"]
    assert "Tiny: [small] steps <b>ahead</b> arXiv 2401.00001 reproduced C1 holds toys cpu" in index.text
    assert {"papers/tiny.html", "papers/tiny.html#claim-C1", "families/toys.html"} <= set(index.links)
    assert "papers/tiny.html#claim-C2" not in index.links  # no headline
    assert "1 reproduced" in index.text
    assert not {"b", "i", "script"} & set(index.tags)


def test_papers_without_a_verdict_stand_in_the_matrix_too(report, project, change):
    cards = [
        {"slug": "tiny", "title": "Another title", "family": "toys", "arxiv": "2401.00001"},
        {"slug": "far", "title": "Far <b>away</b>", "family": "none-yet", "arxiv": "2402.00002"},
    ]
    change(
        project / "params.yaml",
        r"^arenas:",
        "  waiting: {family: toys, reads: [], smoke: {}, cpu: {}, gpu: {}}\narenas:",
    )
    pages = report(catalogue=cards)
    index = pages["index.md"]
    assert index.text.count("arXiv 2401.00001") == 1
    assert "waiting not run yet — toys —" in index.text
    assert "Far <b>away</b> arXiv 2402.00002 not begun — none-yet —" in index.text
    assert "1 reproduced 1 not run yet 1 not begun" in index.text
    assert "waiting — not run yet" in pages["families/toys.md"].text
    assert not {"papers/waiting.html", "papers/far.html", "families/none-yet.html"} & set(index.links)


def test_the_front_page_says_when_where_and_how_to_rerun(report, project):
    provenance = project / "reports" / "tiny" / "provenance.json"
    report()
    made = json.loads(provenance.read_text()) | {"finished": "2031-05-06T07:08:09+00:00", "processor": "Abacus 3"}
    provenance.write_text(json.dumps(made))
    text = sources(project)["index.md"].text
    assert "2031-05-06T07:08:09+00:00" in text
    assert "Abacus 3" in text
    assert "make repro PAPER=<slug>" in text


# A paper's page


def test_a_papers_page_has_claims_figures_tables_and_numbers(report):
    page = report()["papers/tiny.md"]
    for text in (
        "reproduced at profile cpu",
        "a model of one number",
        "C1 · headline holds a < b | c & <script>alert(1)</script> gains The paper's own figure 2 % <i>more</i> | less",
        "Measured here gain 2 [1, 3] points <&>",
        "gain.low (1) > 0: true",
        "no elsewhere | at this scale",
        "Gate G0 open guards C1 there is something to lose",
        "top1 (90.25) >= 80: true",
        "Methods & <i>costs</i> method kl <b>ToMe</b> 0.125",
        "gain 2 [1, 3] points <&> by hand",
        "top1 90.25 [89, 91] % by hand",
        "alpha: 0.5",
        "dvc repro paper@tiny",
        "torch 2.",
    ):
        assert text in page.text
    assert page.alts == ['The "curve" & <i>more</i>']
    assert not {"script", "b", "i"} & set(page.tags)


def test_every_number_of_a_claim_leads_to_its_row_and_the_row_to_the_file(report):
    page = report()["papers/tiny.md"]
    assert {"metric-gain", "metric-top1", "claim-C1", "claim-C2", "gate-G0"} <= set(page.ids)
    assert page.links.count("#metric-gain") == 2  # measured, and in the rule's working
    assert page.links.count("#metric-top1") == 1
    assert "../files/tiny/metrics.json#:~:text=%22gain%22" in page.links
    assert "../files/tiny/tables/budgets.csv" in page.links
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_only_names_of_metrics_become_links():
    linked = with_links("G0: top1.min_value (86.3 over 3 seeds) >= 80 <b> and top2 (1) > 0", {"top1": {}})
    link = '<a href="#metric-top1">top1.min_value (86.3 over 3 seeds)</a>'
    assert linked == f"G0: {link} &gt;= 80 &lt;b&gt; and top2 (1) &gt; 0"


def test_a_title_is_no_markup():
    for text in ("a *b* `c` [d](e) <b>f</b> $g$ #h \\i &amp; {j}`k`", "1. x", "- y", "> z", "# w"):
        rendered = MarkdownIt().render(f"# {as_markdown(text)}")
        assert Page(rendered).tags == ["h1"]
        assert Page(rendered).text == text


def test_at_cpu_the_page_says_that_the_scale_differs_and_gives_no_distance(report):
    text = report()["papers/tiny.md"].text
    assert "the scale is not the paper's" in text
    assert "Distance to the paper" not in text


@pytest.mark.parametrize(
    ("paper_value", "said"),
    [
        ("value: 1.5, tolerance: 0.5", "within the tolerance gain 2 against 1.5: +0.5 points <&>, tolerance 0.5"),
        ("value: 1.4, tolerance: 0.5", "beyond the tolerance gain 2 against 1.4: +0.6 points <&>, tolerance 0.5"),
        ("value: 1.4, tolerance: 0.5, better: higher", "better than the paper gain 2 against 1.4: +0.6"),
        ("value: 1.4, tolerance: 0.5, better: lower", "beyond the tolerance gain 2 against 1.4: +0.6"),
        ("value: 2.4, tolerance: 0.3, better: lower", "better than the paper gain 2 against 2.4: -0.4"),
    ],
)
def test_at_gpu_a_claim_shows_its_distance_to_the_papers_figure(
    report, project, change, monkeypatch, paper_value, said
):
    from tokenarium.report import verdicts

    claims = project / "notebooks" / "toys" / "tiny.claims.yaml"
    read = verdicts.load_claims(claims)
    report(profile="gpu")
    change(claims, "    headline: true", f"    headline: true\n    paper_value: {{metric: gain, {paper_value}}}")
    monkeypatch.setattr(verdicts, "load_claims", lambda path: read)
    write_verdict(project, "tiny")
    assert f"Distance to the paper {said}" in sources(project)["papers/tiny.md"].text


def test_at_gpu_a_claim_without_a_number_of_the_paper_says_so(report):
    text = report(profile="gpu")["papers/tiny.md"].text
    assert text.count("Distance to the paper the claims file gives no number for it") == 1


def test_missing_notebook_and_tensors_are_said_to_be_missing(report, project):
    report()
    tensors = project / "reports" / "tiny" / "tensors"
    for path in tensors.iterdir():
        path.unlink()
    pages = sources(project)
    assert "The executed notebook is not in this checkout" in pages["papers/tiny.md"].text
    assert not [name for name in pages if name.startswith("notebooks/")]


def test_the_tensors_are_listed_with_their_dimensions(report, project):
    report()
    evidence = project / "reports" / "tiny" / "evidence.json"
    record = json.loads(evidence.read_text())
    evidence.write_text(json.dumps(record | {"tensors": {"energy": "how <crowded> it is"}}))
    assert "energy — how <crowded> it is" in sources(project)["papers/tiny.md"].text
    index = project / "reports" / "tiny" / "tensors" / "index.json"
    index.write_text(json.dumps({"energy": {"dims": ["image", "token"], "note": "", "unit": "bits", "coords": {}}}))
    save_file({"energy": np.zeros((2, 4), np.float32)}, index.with_name("tensors.safetensors"))
    assert "energy image × token how <crowded> it is (bits)" in sources(project)["papers/tiny.md"].text


def test_a_failed_run_is_said_to_have_failed_above_the_last_good_result(report, project):
    report()
    record_failure(project, "tiny", 7, "ValueError", "no <k>", "line one\nline <two>", None)
    pages = sources(project)
    text = pages["papers/tiny.md"].text
    assert "The last run failed; the last good result is shown. Cell 7 stopped with ValueError: no <k>" in text
    assert "Traceback line one line <two>" in text
    assert text.index("The last run failed") < text.index("reproduced at profile cpu")
    assert "failed" not in pages["families/toys.md"].text
    (project / ".tokenarium" / "failed" / "tiny.json").write_text("{")
    assert "The last run failed" not in sources(project)["papers/tiny.md"].text


def test_smoke_is_labelled_wherever_a_verdict_stands(report, readme):
    text = readme(profile="smoke")
    assert "SMOKE" in text
    assert "**[inconclusive](#tiny)**" in text
    for name, page in report(profile="smoke").items():
        assert "SMOKE" in page.text, name
        assert "No evidence." in page.text, name
    for name, page in report(profile="cpu").items():
        assert "SMOKE" not in page.text, name


# A family's page


def test_a_familys_page_has_its_papers_figures_and_tables(report):
    page = report()["families/toys.md"]
    assert "Tiny: [small] steps <b>ahead</b> cpu reproduced" in page.text
    assert "<b>ToMe</b> 0.125" in page.text
    assert "gain 2 [1, 3]" in page.text
    assert "../files/arena-toys/figures/curve.svg" in page.links
    assert "dvc repro arena@toys" in page.text


def test_a_familys_page_says_what_its_arena_cannot_show(report, project):
    notebook = project / "notebooks" / "arena" / "toys.ipynb"
    notebook.parent.mkdir()
    cells = [
        {"cell_type": "markdown", "source": ["# Arena: toys\n", "\n", "text"], "metadata": {}},
        {
            "cell_type": "markdown",
            "source": ["## What this arena cannot show\n", "\n", "Anything *large*."],
            "metadata": {},
        },
    ]
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    report()
    source = site_pages(project, load_studies(project))["families/toys.md"]
    assert "\n## What this arena cannot show\n\nAnything *large*.\n" in source


def test_a_family_without_an_arena_has_a_page_of_its_papers(project, finish):
    finish()
    write_verdict(project, "tiny")
    text = sources(project)["families/toys.md"].text
    assert "Tiny: [small] steps" in text
    assert "no arena yet" in text


# The previous committed run


@pytest.fixture
def commit(project, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@localhost")
        monkeypatch.setenv(f"GIT_{role}_DATE", "2031-05-06T07:08:09+00:00")

    def commit():
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "A run"]):
            subprocess.run(["git", *arguments], cwd=project, check=True, capture_output=True)

    return commit


def history(project):
    return sources(project)["papers/tiny.md"].text.split("Since the previous committed run")[1]


def test_without_git_or_an_earlier_run_the_page_says_so(report, project, commit):
    report()
    assert "no earlier committed run with other results" in history(project)
    commit()
    assert "no earlier committed run with other results" in history(project)


def test_the_page_shows_what_changed_since_the_previous_committed_run(report, project, commit):
    report(gain=0.0)
    commit()
    report(gain=2.0)
    before = history(project)
    for text in (
        "on 2031-05-06, at profile cpu",
        "verdict not reproduced reproduced",
        "claim C1 does not hold holds",
        "gain 0 [-1, 1] 2 [1, 3]",
    ):
        assert text in before
    assert "top1" not in before.split("Parameters")[0]
    commit()
    assert history(project) == before  # the same once it is committed
