"""The report shows every verdict with its numbers, opens without a network, and takes no text for markup."""

import re
from html.parser import HTMLParser

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.markdown import cell
from tokenarium.report.pages import write_report
from tokenarium.report.verdicts import write_verdict


class Page(HTMLParser):
    """Text, tags, links and sources of a page; `unclosed` are tags that were opened and never closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.sources, self.alts, self.pieces, self.unclosed = [], [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []
        self.alts += [given["alt"]] if "alt" in given else []
        if tag not in ("meta", "link", "img"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)


@pytest.fixture
def report(project, finish):
    """Judge a paper and an arena and write the report; returns README text and the pages by name."""

    def report(**options):
        for slug in ("tiny", "arena/toys"):
            finish(slug, **options)
            write_verdict(project, slug)
        readme, index = write_report(project)
        assert readme == project / "reports" / "README.md"
        assert index == project / "reports" / "site" / "index.html"
        return readme.read_text(encoding="utf-8"), {path.stem: Page(path) for path in index.parent.glob("*.html")}

    return report


def test_the_readme_has_verdict_claims_figures_and_numbers(report, project):
    readme, _ = report()
    table = next(line for line in readme.splitlines() if line.startswith("| [Tiny"))
    assert "(https://arxiv.org/abs/2401.00001)" in table
    assert "| toys | cpu | **[reproduced](#tiny)** | **C1** holds, C2 not testable |" in table
    claim = next(line for line in readme.splitlines() if line.startswith("| **C1** |"))
    assert claim.endswith("| holds | gain.low (1) > 0: true |")
    assert "| gate G0 | there is something to lose | — | open | top1 (90.25) >= 80: true |" in readme
    assert "\n![" in readme
    assert "\na model of one number\n" in readme


def test_every_link_of_the_readme_leads_to_a_file(report, project):
    readme, _ = report()
    targets = re.findall(r"\]\(([^)#]+)\)", readme)
    local = [target for target in targets if not target.startswith("https://arxiv.org/abs/")]
    assert {"tiny/metrics.json", "tiny/tables/budgets.csv", "tiny/figures/curve.svg", "arena/toys/metrics.json"} <= set(
        local
    )
    assert all((project / "reports" / target).is_file() for target in local)


def test_the_readme_takes_no_text_for_markup(report):
    readme, _ = report()
    assert not re.search(r"<[a-zA-Z/!?]", readme)
    claim = next(line for line in readme.splitlines() if line.startswith("| **C1** |"))
    assert "a < b \\| c & &lt;script>alert(1)&lt;/script> gains" in claim
    for line in readme.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert re.search(r'^!\[The "curve" & &lt;i>more&lt;/i>\]\(tiny/', readme, re.MULTILINE)


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


def test_the_index_has_a_row_per_paper_and_a_link_per_arena(report):
    _, pages = report()
    index = pages["index"]
    assert {"tiny.html", "arena-toys.html"} <= set(index.links)
    assert "Tiny: [small] steps <b>ahead</b> toys cpu reproduced C1 holds, C2 not testable" in index.text
    assert "b" not in index.tags


def test_a_papers_page_has_claims_figures_tables_and_numbers(report):
    _, pages = report()
    page = pages["tiny"]
    for text in (
        "Tiny: [small] steps <b>ahead</b>",
        "reproduced",
        "a model of one number",
        "C1 a < b | c & <script>alert(1)</script> gains 2 % <i>more</i> | less gain.low > 0 holds",
        "gain.low (1) > 0: true",
        "no elsewhere | at this scale",
        "gate G0 there is something to lose — top1 >= 80 open top1 (90.25) >= 80: true",
        "Methods & <i>costs</i> method kl <b>ToMe</b> 0.125",
        "gain 2 1 to 3 points <&> by hand",
        "top1 90.25 89 to 91 % by hand",
        '"alpha": 0.5',
        '"torch"',
    ):
        assert text in page.text
    assert page.alts == ['The "curve" & <i>more</i>']
    assert not {"script", "b", "i"} & set(page.tags)


def test_an_arenas_page_has_figures_and_tables_and_no_verdict(report):
    _, pages = report()
    page = pages["arena-toys"]
    assert "Arena: toys" in page.text
    assert "<b>ToMe</b> 0.125" in page.text
    assert "gain 2 1 to 3" in page.text
    assert page.sources == ["figures/arena-toys/curve.svg"]
    assert "reproduced" not in page.text


def test_pages_are_whole_and_ask_for_nothing_from_the_network(report, project):
    _, pages = report()
    site = project / "reports" / "site"
    assert set(pages) == {"index", "tiny", "arena-toys"}
    for page in pages.values():
        assert page.unclosed == []
        local = [link for link in page.links if not link.startswith("https://arxiv.org/abs/")]
        for target in (*local, *page.sources):
            assert "//" not in target
            assert (site / target).is_file()
    for link in pages["tiny"].links:
        assert "://" not in link or link == "https://arxiv.org/abs/2401.00001"
    assert not re.search(r"url\(|@import", (site / "site.css").read_text())


def test_smoke_is_labelled_wherever_a_verdict_stands(report):
    readme, pages = report(profile="smoke")
    for text in (readme, *(page.text for page in pages.values())):
        assert "SMOKE" in text
        assert "No evidence." in text
    assert "**[inconclusive](#tiny)**" in readme
    readme, pages = report(profile="cpu")
    for text in (readme, *(page.text for page in pages.values())):
        assert "SMOKE" not in text


def test_the_report_is_the_same_bytes_when_nothing_changed(report, project):
    def files():
        return {path: path.read_bytes() for path in (project / "reports").rglob("*") if path.is_file()}

    report()
    before = files()
    write_report(project)
    assert files() == before


def test_a_paper_that_left_is_gone_from_the_site(report, project):
    report()
    (project / "verdicts" / "tiny.json").unlink()
    write_report(project)
    site = project / "reports" / "site"
    assert not (site / "tiny.html").exists()
    assert not (site / "figures" / "tiny").exists()
    assert (site / "arena-toys.html").is_file()


def test_without_verdicts_the_report_is_an_empty_table(project):
    readme, index = write_report(project)
    assert "| paper | family | profile | verdict | claims |" in readme.read_text()
    assert Page(index).unclosed == []


@pytest.mark.parametrize("lost", ["tables/budgets.csv", "figures/curve.svg", "provenance.json", "evidence.json"])
def test_a_lost_file_is_named_and_the_last_report_stays(report, project, lost):
    report()
    before = (project / "reports" / "README.md").read_bytes()
    (project / "reports" / "tiny" / lost).unlink()
    with pytest.raises(TokenariumError, match=r"tiny.*run `dvc repro paper@tiny`") as error:
        write_report(project)
    assert "\n" not in str(error.value)
    assert (project / "reports" / "README.md").read_bytes() == before
    assert (project / "reports" / "site" / "tiny.html").is_file()
