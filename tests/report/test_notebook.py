"""An executed notebook becomes a page without traces of the machine that ran it, and with words for its images."""

import json

import nbformat
import pytest
from nbformat import v4

from tokenarium.errors import TokenariumError
from tokenarium.report.notebook import page_source


@pytest.fixture
def page(tmp_path):
    """The page's notebook made from executed cells."""

    def page(*cells, figures=None):
        notebook = v4.new_notebook(cells=list(cells))
        notebook.metadata["papermill"] = {"input_path": "/home/someone/tiny.ipynb"}
        notebook.metadata["widgets"] = {"state": {}}
        path = tmp_path / "notebook.ipynb"
        nbformat.write(notebook, path)
        text = page_source(path, figures or {}, "[Back](../papers/tiny.md)", "Tiny")
        assert page_source(path, figures or {}, "[Back](../papers/tiny.md)", "Tiny") == text
        made = nbformat.reads(text, as_version=4)
        nbformat.validate(made)
        return made

    return page


def executed(source, *outputs):
    return v4.new_code_cell(source, execution_count=3, outputs=list(outputs), metadata={"papermill": {"duration": 1.5}})


def image(kind="image/png"):
    return v4.new_output("display_data", data={kind: "aGk=", "text/plain": "<Figure>"})


def test_the_link_stands_below_the_title_or_below_a_new_one(page):
    titled = page(v4.new_markdown_cell("# Title\n\nText"), executed("x = 1"))
    assert [cell.source for cell in titled.cells] == ["# Title\n\nText", "[Back](../papers/tiny.md)", "x = 1"]
    assert page(executed("x = 1")).cells[0].source == "# Tiny\n\n[Back](../papers/tiny.md)"


def test_times_paths_widgets_and_progress_bars_leave(page):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "HBox()"}
    script = {"application/javascript": "alert(1)"}
    made = page(
        executed(
            "work()",
            v4.new_output("stream", name="stderr", text="\r 10%|#| 1/9 [00:32]"),
            v4.new_output("stream", name="stdout", text="one\n"),
            v4.new_output("stream", name="stdout", text="two\n"),
            v4.new_output("display_data", data=widget),
            v4.new_output("display_data", data=script),
        )
    )
    text = json.dumps(made)
    for trace in ("papermill", "/home/someone", "widget", "javascript", "00:32"):
        assert trace not in text
    outputs = made.cells[1].outputs
    assert [output.get("text") or output.data for output in outputs] == ["one\ntwo\n", {"text/plain": "HBox()"}]
    assert made.cells[1].execution_count == 3


def test_an_image_is_described_by_the_caption_of_its_figure(page):
    figures = {"curve": "A curve", "groups": "Groups"}
    made = page(
        executed('study.figure(\n    "curve", figure, "A curve")', image()),
        executed("study.figure('curve', a, 'A')\nstudy.figure('groups', b, 'B')", image(), image()),
        executed("plt.show()", image()),
        figures=figures,
    )
    alts = [cell.metadata["mystnb"]["image"]["alt"] for cell in made.cells[1:]]
    assert alts == ["A curve", "A curve; Groups", "figure made by the cell above"]


def test_an_error_keeps_its_traceback(page):
    made = page(executed("1 / 0", v4.new_output("error", ename="E", evalue="v", traceback=["t"])))
    assert made.cells[1].outputs[0].traceback == ["t"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", ""])
def test_a_damaged_notebook_is_named(tmp_path, content):
    path = tmp_path / "notebook.ipynb"
    path.write_text(content)
    with pytest.raises(TokenariumError, match=r"notebook\.ipynb is damaged"):
        page_source(path, {}, "", "Tiny")
