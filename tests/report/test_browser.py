"""The committed results as a site in a real Chromium, opened from file:// as a reader does.

Without a Chromium these tests are skipped: `apt-get install chromium` brings Debian's.
"""

import base64
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from chromium import ARGUMENTS, CHROMIUM, needs_chromium
from nbformat import v4

from tokenarium.report.pages import write_report
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)
PAGES = ("index.html", "papers/pitome.html", "notebooks/pitome.html", "families/vision.html", "search.html")
CARDS = [
    {"slug": f"card-{number:02}", "title": f"A paper {number:02}", "family": family, "arxiv": f"2401.{number:05}"}
    for number, family in enumerate(["kv-cache", "text", "vision"] * 4)
]

pytestmark = needs_chromium

PAPERS = [path.stem for path in (ROOT / "verdicts").glob("*.json") if not path.stem.startswith("arena-")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of the committed results, with twelve papers not begun, and a notebook executed by hand."""
    root = tmp_path_factory.mktemp("browser")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(ROOT / name, root / name)
    for name in ("verdicts", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    left = shutil.ignore_patterns("site", ".site*", "tensors", "notebook.ipynb", "README.md")
    shutil.copytree(ROOT / "reports", root / "reports", ignore=left)
    notebook = nbformat.read(root / "notebooks" / "vision" / "pitome.ipynb", as_version=4)
    picture = base64.b64encode((root / "reports" / "pitome" / "figures" / "budget.png").read_bytes()).decode()
    wide = "<table class='dataframe'><tr>" + "".join(f"<td>column {n}</td>" for n in range(40)) + "</tr></table>"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kind = {"image/png": picture} if "study.figure(" in cell.source else {"text/html": wide}
            cell.outputs = [v4.new_output("display_data", data=kind)]
    nbformat.write(notebook, root / "reports" / "pitome" / "notebook.ipynb")
    _, index = write_report(root, CARDS)
    return index.parent


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, site):
    """A tab; fails the test for an error or a warning in the console, and for a request beyond the site's folder."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.open = lambda name: page.goto((site / name.partition("#")[0]).as_uri() + name[len(name.partition("#")[0]) :])
    yield page
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:"))] == []


def shown(page):
    return page.locator("#matrix tbody tr:visible th").all_inner_texts()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_from_a_file_without_a_word_and_all_it_shows(page, name):
    page.open(name)
    assert page.locator("h1").count() == 1
    pictures = page.locator("article img")
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert len(picture.get_attribute("alt")) > 15
    expected = {"papers/pitome.html": 5, "notebooks/pitome.html": 5, "families/vision.html": 1}
    assert pictures.count() == expected.get(name, 0)


def test_formulas_need_no_script(page):
    page.open("notebooks/pitome.html")
    assert page.locator("math").count() > 10
    heights = page.locator("math").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert min(heights) > 5
    sources = page.locator("script[src]").evaluate_all("all => all.map(one => one.getAttribute('src'))")
    assert not [source for source in sources if "math" in source.lower() or "require" in source.lower()]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(page, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.open(name)
    options = {"preload": False}  # it fetches style sheets, which a browser forbids below file://
    if scheme == "dark":  # the same page in other colours
        options["runOnly"] = ["color-contrast"]
    violations = Axe().run(page, options=options).response["violations"]
    found = [(each["id"], node["html"], node["failureSummary"]) for each in violations for node in each["nodes"]]
    assert found == []


def test_the_theme_can_be_dark_and_light(page):
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.open("index.html")
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours["light"] == "rgb(255, 255, 255)"
    assert max(map(int, colours["dark"][4:-1].split(","))) < 60
    page.locator(".theme-toggle:visible").click()
    assert page.evaluate("document.body.dataset.theme") != "auto"


def test_papers_are_filtered_by_family_verdict_profile_and_text(page):
    def choose(name):
        return page.locator(f"select[name={name}]")

    page.open("index.html")
    everything = len(shown(page))
    assert everything == len(PAPERS) + len(CARDS)
    choose("family").select_option("text")
    assert len(shown(page)) == 4
    assert page.locator(".filters output").inner_text() == f"4 of {everything} papers"
    choose("verdict").select_option("partly")
    assert shown(page) == []
    choose("family").select_option("vision")
    assert [text.split(":")[0] for text in shown(page)] == ["Token Transforming"]
    choose("family").select_option("all")
    choose("verdict").select_option("all")
    choose("profile").select_option("cpu")
    assert len(shown(page)) == len(PAPERS)
    page.get_by_label("Find").fill("PITOME")
    assert len(shown(page)) == 1
    choose("profile").select_option("all")
    page.get_by_label("Find").fill("")
    page.locator(".counts a", has_text="not begun").click()
    assert len(shown(page)) == len(CARDS)


def test_the_matrix_is_sorted_and_filtered_by_keyboard_alone(page):
    page.open("index.html")
    button = page.get_by_role("button", name="paper")
    for _ in range(60):
        page.keyboard.press("Tab")
        if button.evaluate("button => button === document.activeElement"):
            break
        if page.evaluate("document.activeElement.name") == "family":
            page.keyboard.type("vision")
    else:
        pytest.fail("the head of the first column is not reached by Tab")
    assert len(shown(page)) == 6
    page.keyboard.press("Enter")
    head = page.get_by_role("columnheader", name="paper")
    assert head.get_attribute("aria-sort") == "ascending"
    rising = shown(page)
    assert rising == sorted(rising, key=str.lower)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert shown(page) == rising[::-1]


def test_numbers_are_sorted_as_numbers(page):
    page.open("families/vision.html")
    table = page.locator("details.table", has_text="Every method at every budget").locator("table")
    table.get_by_role("button", name="kl").click()
    column = table.locator("thead th").all_inner_texts()
    place = next(number for number, text in enumerate(column) if text.strip().startswith("kl"))
    values = [float(row.locator("td").nth(place).inner_text().split()[0]) for row in table.locator("tbody tr").all()]
    assert len(values) > 10
    assert values == sorted(values)


def test_without_scripts_the_matrix_is_a_plain_table(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert len(shown(page)) == len(PAPERS) + len(CARDS)
    assert not page.locator(".filters").is_visible()
    context.close()


def test_a_number_leads_to_its_row_and_the_row_to_the_file(page, site):
    page.open("papers/pitome.html")
    page.locator("#claim-C1 dd a", has_text="pitome_drop_f60").first.click()
    row = page.locator("tr:target")
    assert row.get_attribute("id") == "metric-pitome_drop_f60"
    recorded = json.loads((site / "files" / "pitome" / "metrics.json").read_text())["pitome_drop_f60"]
    assert row.locator("td").first.inner_text() == f"{recorded['value']:.4g}"
    row.locator("th a").click()
    page.wait_for_url("**/files/pitome/metrics.json*")


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_a_page_without_scrolling_sideways(page, name):
    page.set_viewport_size({"width": 375, "height": 800})
    page.open(name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    size = page.locator("article p, article h1").first.evaluate("text => parseFloat(getComputedStyle(text).fontSize)")
    assert size >= 14


def test_wide_tables_scroll_in_their_own_box_by_keyboard(page):
    page.set_viewport_size({"width": 375, "height": 800})
    page.open("index.html")
    box = page.locator("#matrix")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth && box.tabIndex === 0")
    box.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(200):  # it scrolls smoothly
        if box.evaluate("box => box.scrollLeft") > 0:
            return
        page.wait_for_timeout(50)
    pytest.fail("the table did not scroll")


def test_print_leaves_the_margins_out_and_opens_what_is_folded(page):
    page.open("papers/pitome.html")
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = false)")
    page.emulate_media(media="print", color_scheme="dark")
    for selector in (".sidebar-drawer", ".toc-drawer", ".links", ".theme-toggle"):
        assert not page.locator(selector).first.is_visible(), selector
    assert page.locator("details.table table").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert page.locator(".claim").first.evaluate("claim => getComputedStyle(claim).breakInside") == "avoid"
