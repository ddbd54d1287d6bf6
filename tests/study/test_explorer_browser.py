"""The explorer in a real Chromium, from file://: what is drawn, read and compared is what the tensors hold.

Without a Chromium these tests are skipped: `apt-get install chromium` brings Debian's.
"""

import re

import numpy as np
import pytest
import xarray as xr
from chromium import ARGUMENTS, CHROMIUM, needs_chromium

from tokenarium.study.explorer import explore, export_html
from tokenarium.study.explorer.catalogue import check_state

pytestmark = needs_chromium

GENERATOR = np.random.default_rng(0)
ENERGY = GENERATOR.normal(size=(3, 16)).astype(np.float32)
SOURCE = GENERATOR.integers(0, 2, (3, 5, 17)).astype(np.float32)
WORDS = ["the", "cat", "</script>"]
DATASET = xr.Dataset(
    {
        "energy": (("image", "token"), ENERGY, {"units": "nats", "long_name": "how <crowded> a patch is"}),
        "calm": (("image", "token"), -2 * ENERGY),
        "source": (("image", "kept", "patch"), SOURCE),
        "mass": (("layer", "word"), np.float32([[1, 2, 3], [40, 50, 60]])),
        "odd": (("row", "column"), np.float32([[1, np.nan, np.inf], [-1, 0, 70000]])),
        "huge": (("row", "column"), np.array([[2**40 + 1, -5, 0]] * 2)),
    },
    coords={"layer": [3, 6], "word": WORDS},
)
PICTURES = np.uint8(GENERATOR.integers(0, 255, (3, 8, 8)))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=list(ARGUMENTS),
            viewport={"width": 1100, "height": 900},
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return export_html({"now": DATASET, "before": 3 * DATASET}, folder / "page.html", pictures=PICTURES).as_uri()


@pytest.fixture
def page(chromium, address):
    """The page in a tab; fails the test for anything in the console and for a request of anything but the page."""
    page = chromium.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.locator("[data-drawn]").wait_for()
    yield page
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", address))] == []


def choose(page, label, value):
    """Set a control, wait until the picture is drawn anew, and return the message above it."""
    before = page.locator("[data-drawn]").get_attribute("data-drawn")
    control = page.get_by_label(label, exact=True)
    if control.evaluate("each => each.tagName") == "SELECT":
        control.select_option(value)
    elif control.get_attribute("type") == "range":
        control.fill(value)
    else:
        control.set_checked(value)
    page.locator(f"[data-drawn]:not([data-drawn='{before}'])").wait_for()
    return page.locator(".note").inner_text()


def hover(page, row, column, rows, columns, picture=0):
    """The value that the page tells for a cell under the pointer."""
    canvas = page.locator(".pictures canvas").nth(picture)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)
    return page.locator(".value").inner_text()


def told(text):
    return float(text.rpartition(": ")[2])


def pixels(page):
    return page.locator(".pictures canvas").first.evaluate("each => each.toDataURL()")


def statistic(page, name):
    return float(page.locator(f"dt:text-is('{name}') + dd").inner_text())


def test_the_pointer_and_the_arrow_keys_read_the_right_values(page):
    for token in (0, 6, 15):
        text = hover(page, *divmod(token, 4), 4, 4)
        assert text.startswith(f"token {token}: ")
        assert told(text) == pytest.approx(ENERGY[0, token], rel=1e-3)
    page.locator(".pictures canvas").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".value").inner_text().startswith("token 10: ")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert told(page.locator(".value").inner_text()) == pytest.approx(ENERGY[0, 15], rel=1e-3)


def test_what_a_control_says_is_what_is_drawn(page):
    first = pixels(page)
    assert "how <crowded> a patch is [nats]" in page.locator(".note").inner_text()
    assert "Left out: digits beyond float16" in page.locator(".note").inner_text()
    choose(page, "image", "2")
    second = pixels(page)
    assert first != second
    assert told(hover(page, 1, 2, 4, 4)) == pytest.approx(ENERGY[2, 6], rel=1e-3)
    assert statistic(page, "mean") == pytest.approx(ENERGY[2].mean(), rel=1e-2)
    assert statistic(page, "standard deviation") == pytest.approx(ENERGY[2].std(), rel=1e-2)
    choose(page, "Map over picture", "0")
    assert pixels(page) not in (first, second)
    choose(page, "image (3)", "facets")
    assert page.locator(".pictures canvas").count() == 3
    assert told(hover(page, 3, 3, 4, 4, picture=1)) == pytest.approx(ENERGY[1, 15], rel=1e-3)
    choose(page, "token (16)", "columns")
    choose(page, "image (3)", "rows")
    assert told(hover(page, 2, 5, 3, 16)) == pytest.approx(ENERGY[2, 5], rel=1e-3)
    choose(page, "token (16)", "rows")  # the two change places
    assert told(hover(page, 5, 2, 16, 3)) == pytest.approx(ENERGY[2, 5], rel=1e-3)


def test_two_entries_runs_and_tensors_are_subtracted(page):
    choose(page, "image (3)", "difference")
    assert told(hover(page, 0, 1, 4, 4)) == pytest.approx(ENERGY[0, 1] - ENERGY[1, 1], rel=1e-2)
    choose(page, "image that is subtracted", "2")
    assert told(hover(page, 0, 1, 4, 4)) == pytest.approx(ENERGY[0, 1] - ENERGY[2, 1], rel=1e-2)
    choose(page, "image (3)", "slider")
    choose(page, "Minus", "calm")
    assert told(hover(page, 0, 1, 4, 4)) == pytest.approx(3 * ENERGY[0, 1], rel=1e-2)
    choose(page, "Minus", "energy of before")
    assert told(hover(page, 0, 1, 4, 4)) == pytest.approx(-2 * ENERGY[0, 1], rel=1e-2)
    choose(page, "Run", "before")
    assert statistic(page, "largest") == 0  # a run minus itself
    assert statistic(page, "zeros") == 16


def test_dimensions_are_summed_averaged_and_searched(page):
    choose(page, "Tensor", "source")
    assert told(hover(page, 0, 0, 4, 4)) == SOURCE[0, 0, 1]  # the class token comes before the grid
    assert f"class token: {SOURCE[0, 0, 0]:.0f}" in page.locator("figcaption").inner_text()
    for role, expected in (("sum", SOURCE[0].sum(0)), ("mean", SOURCE[0].mean(0)), ("largest", SOURCE[0].argmax(0))):
        choose(page, "kept (5)", role)
        for patch in (1, 7, 16):
            assert told(hover(page, *divmod(patch - 1, 4), 4, 4)) == pytest.approx(expected[patch], rel=1e-3)
    choose(page, "kept (5)", "rows")
    choose(page, "patch (17)", "mean")
    assert told(hover(page, 4, 0, 5, 1)) == pytest.approx(SOURCE[0, 4].mean(), rel=1e-3)


def test_words_lie_on_their_values(page):
    choose(page, "Tensor", "mass")
    words = page.locator(".words span")
    assert words.all_inner_texts() == WORDS
    choose(page, "layer", "1")
    words.nth(2).focus()
    assert page.locator(".value").inner_text() == "word </script>: 60"
    assert page.locator(".slider output").inner_text() == "6"  # the label, not the position
    colours = words.evaluate_all("each => each.map((span) => span.style.background)")
    assert len(set(colours)) == 3


def test_what_is_no_number_is_clear_and_counted(page):
    choose(page, "Tensor", "odd")
    assert told(hover(page, 1, 2, 2, 3)) == 70000
    assert hover(page, 0, 1, 2, 3) == "row 0, column 1: not a number"
    assert hover(page, 0, 2, 2, 3) == "row 0, column 2: Infinity"
    assert statistic(page, "not finite") == 2
    choose(page, "Tensor", "huge")
    assert told(hover(page, 0, 0, 2, 3)) == 2**40 + 1


def test_held_colours_stay_and_free_ones_follow(page):
    legend = page.locator(".legend")
    first = legend.inner_text()
    choose(page, "Hold the colours", True)
    choose(page, "image", "1")
    assert legend.inner_text() == first
    choose(page, "Hold the colours", False)
    assert legend.inner_text() != first


def test_a_difference_that_makes_no_sense_says_why(page):
    choose(page, "Minus", "calm")
    note = choose(page, "image (3)", "largest")
    assert note == "indices have no difference: choose another role for the largest"
    choose(page, "image (3)", "slider")
    assert page.locator(".pictures canvas").count() == 1


def test_every_control_has_a_label_and_the_keyboard_reaches_it(page):
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('select, input')].filter((each) => !each.labels.length"
        " && !each.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    assert page.locator(".pictures canvas").get_attribute("aria-label") == (
        "energy, token: heat map of 4 by 4; arrow keys read its values"
    )
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.tagName + (document.activeElement.type ?? '')"))
    assert {"SELECTselect-one", "INPUTrange", "INPUTcheckbox", "CANVAS"} <= reached
    page.get_by_label("Tensor", exact=True).focus()
    choose(page, "Tensor", "source")
    assert page.evaluate("() => document.activeElement.labels[0].textContent") == "Tensor"  # the focus stays


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(page, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    violations = Axe().run(page, options={"preload": False}).response["violations"]
    found = [(each["id"], node["html"], node["failureSummary"]) for each in violations for node in each["nodes"]]
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)

    def luminance(colour):
        parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = page.locator(".tokenarium-explorer").evaluate("each => getComputedStyle(each).backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    for part in (".note", "label", "figcaption", ".value", "dt", "dd"):
        ink = page.locator(f".tokenarium-explorer {part}").first.evaluate("each => getComputedStyle(each).color")
        low, high = sorted([luminance(ink), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, part


def test_the_widget_draws_what_python_serves(chromium, monkeypatch, tmp_path):
    """The widget's render() in a page, with a model that passes its messages to Python and back."""
    widget = explore(DATASET, pictures=PICTURES, tensor="source", roles={"kept": "sum"})
    sent = []
    monkeypatch.setattr(type(widget), "send", lambda _, content, buffers=None: sent.append((content, buffers)))

    def ask(question):
        sent.clear()
        widget._handle_custom_msg(question, [])
        content, buffers = sent[0]
        return [content, [list(each) for each in buffers or []]]

    def save(state):
        widget.set_state({"state": state})

    tab = chromium.new_page()
    tab.expose_function("ask", ask)
    tab.expose_function("save", save)
    script = str(widget._esm).replace("export default {", "window.widget = {")
    (tmp_path / "widget.html").write_text(
        f"<meta charset='utf-8'><div id='here'></div><script type='module'>{script}</script>"
    )
    tab.goto((tmp_path / "widget.html").as_uri())
    tab.evaluate(
        """([catalog, state]) => {
          const values = { catalog, state }, heard = {};
          window.model = {
            get: (key) => values[key],
            set: (key, value) => { values[key] = value; },
            save_changes: () => window.save(values.state),
            on: (event, answer) => { heard[event] = answer; },
            off: (event) => { delete heard[event]; },
            send: async (question) => {
              const [content, buffers] = await window.ask(question);
              heard["msg:custom"](content, buffers.map((each) => new DataView(Uint8Array.from(each).buffer)));
            },
            push: (state) => { values.state = state; heard["change:state"](); },
          };
          window.close_ = window.widget.render({ model: window.model, el: document.getElementById("here") });
        }""",
        [widget.catalog, widget.state],
    )
    tab.locator("[data-drawn]").wait_for()
    assert told(hover(tab, 1, 2, 4, 4)) == SOURCE[0].sum(0)[7]
    choose(tab, "image", "2")
    assert told(hover(tab, 1, 2, 4, 4)) == SOURCE[2].sum(0)[7]
    assert widget.state["index"]["image"] == 2
    np.testing.assert_array_equal(widget.shown.values, SOURCE[2])
    widget.state = {"tensor": "energy", "index": {"image": 1}}
    drawn = tab.locator("[data-drawn]").get_attribute("data-drawn")
    tab.evaluate("state => window.model.push(state)", widget.state)
    tab.locator(f"[data-drawn]:not([data-drawn='{drawn}'])").wait_for()
    assert told(hover(tab, 3, 3, 4, 4)) == pytest.approx(ENERGY[1, 15], rel=1e-3)
    choose(tab, "Tensor", "source")
    assert widget.state == check_state(widget.catalog, {"tensor": "source"})  # JavaScript's first state is Python's
    tab.close()
