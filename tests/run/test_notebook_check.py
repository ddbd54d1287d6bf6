"""The notebook check: a sound notebook passes, and each broken rule is one line with the cell and the mend."""

import json
from pathlib import Path

import pytest

from tokenarium.run.notebook_check import check_notebook, check_notebooks
from tokenarium.study.parameters import project_root

PAPER = [
    (
        "title",
        "markdown",
        "# Tiny: small steps\n\n*Small steps ahead*, [arXiv 2401.00001](https://arxiv.org/abs/2401.00001).",
    ),
    ("parameters", "code", "profile = None  # smoke, cpu or gpu"),
    (
        "opening",
        "code",
        "import torch\n\nimport tokenarium\nfrom tokenarium.methods.toys import tiny\n\n"
        'study = tokenarium.open_study("tiny", profile=profile)\np = study.parameters\nstudy',
    ),
    ("claims", "code", "study.show_claims()"),
    ("idea", "markdown", "## The idea\n\nTake $x_i = 2 y_i$."),
    ("source", "code", "study.show_source(tiny.step)"),
    ("metric", "code", 'study.metric("gain", tiny.step(p.alpha), (0, 1), how="by hand")'),
    ("table", "code", 'study.table("budgets", frame, "What it costs")'),
    ("figure", "code", 'study.figure("curve", figure, "The curve")'),
    ("tensor", "code", 'study.tensor("energy", torch.zeros(2), ["token"], "energy")'),
    ("verdict", "markdown", "## Verdict\n\nHow to read it."),
    ("finish", "code", "study.finish()"),
]
ARENA = [
    ("title", "markdown", "# Arena: toys"),
    ("parameters", "code", "profile = None"),
    ("opening", "code", 'import tokenarium\n\nstudy = tokenarium.open_study("arena/toys", profile=profile)'),
    ("table", "code", 'study.table("field", frame, "All methods")'),
    ("figure", "code", 'study.figure("field", figure, "All methods")'),
    ("metric", "code", 'study.metric("kl", 1.0, (0, 2), how="by hand")'),
    ("finish", "code", "study.finish()"),
]
READER = [
    ("title", "markdown", "# Look inside"),
    ("read", "code", 'import tokenarium\n\ntensors = tokenarium.tensors("tiny")'),
]


def notebook(cells):
    """A notebook of (id, kind, source) as JupyterLab writes it."""
    written = []
    for name, kind, source in cells:
        cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
        if name == "parameters":
            cell["metadata"] = {"tags": ["parameters"]}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        written.append(cell)
    return {"cells": written, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def check(project):
    """Write a notebook's content and return what the check says of it, without its name."""
    places = {"tiny": "toys/tiny", "arena/toys": "arena/toys", None: "inspect"}

    def check(content, slug="tiny"):
        path = project / "notebooks" / f"{places[slug]}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        said = [str(problem) for problem in check_notebook(project, path, slug)]
        prefix = f"notebooks/{places[slug]}.ipynb"
        assert all(line.startswith(prefix) and "\n" not in line for line in said)
        return [line.removeprefix(prefix).strip(": ") for line in said]

    return check


def without(cells, *names):
    return [cell for cell in cells if cell[0] not in names]


def changed(cells, name, source):
    return [(cell[0], cell[1], source) if cell[0] == name else cell for cell in cells]


@pytest.mark.parametrize(("cells", "slug"), [(PAPER, "tiny"), (ARENA, "arena/toys"), (READER, None)])
def test_a_sound_notebook_breaks_no_rule(check, cells, slug):
    assert check(notebook(cells), slug) == []


def test_the_committed_notebooks_break_no_rule():
    assert [str(problem) for problem in check_notebooks(project_root(Path(__file__).parent))] == []


LINES = "\n".join(f"x{number} = {number}" for number in range(41))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            changed(PAPER, "title", "Tiny, arXiv 2401.00001"),
            "cell 1: is not the title: begin with a markdown cell '# <title>'",
        ),
        (changed(PAPER, "title", "# Tiny"), "cell 1: does not name the paper: add arXiv 2401.00001"),
        (
            changed(PAPER, "verdict", "# Verdict\n## Verdict"),
            "cell 11: has a second title: begin its heading with '## '",
        ),
        (
            changed(PAPER, "parameters", "profile = None\nimages = 4"),
            "cell 2: must be 'profile = None' alone: other parameters belong in params.yaml",
        ),
        (
            changed(PAPER, "parameters", 'profile = "smoke"'),
            "cell 2: must be 'profile = None' alone: other parameters belong in params.yaml",
        ),
        (
            changed(PAPER, "opening", PAPER[2][2].replace("import tokenarium\n", "import tokenarium as tk\n")),
            "cell 3: lacks the line 'import tokenarium': write it below the imports of other packages",
        ),
        (
            changed(PAPER, "opening", PAPER[2][2].replace('"tiny"', '"tinny"')),
            "cell 3: does not open its own study: write 'study = tokenarium.open_study(\"tiny\", profile=profile)'",
        ),
        (
            changed(PAPER, "opening", PAPER[2][2].replace("profile=profile", "profile='cpu'")),
            "cell 3: does not open its own study: write 'study = tokenarium.open_study(\"tiny\", profile=profile)'",
        ),
        (
            changed(PAPER, "table", f"import pandas as pd\n{PAPER[7][2]}"),
            "cell 8: imports: move it to cell 3, where all imports are",
        ),
        (
            changed(PAPER, "table", f'{PAPER[7][2]}\nother = tokenarium.open_study("tiny")'),
            "cell 8: opens a second study: use the one that is open",
        ),
        (
            without(PAPER, "claims"),
            "shows no claims: add a cell 'study.show_claims()', the table comes from the claims file",
        ),
        (
            changed(PAPER, "claims", "print(1)\nstudy.show_claims()"),
            "cell 4: does more than show the claims: leave 'study.show_claims()' alone in it",
        ),
        (
            changed(PAPER, "idea", "## The idea\n\nIt costs $5."),
            "has no idea with equations: say in a markdown cell, with $...$, what the method does",
        ),
        (
            without(PAPER, "source"),
            "does not show the method: add 'study.show_source(...)' with its functions",
        ),
        (
            changed(PAPER, "source", "study.show_source(torch.nn.functional.relu)"),
            "cell 6: shows nothing of the paper's own module: name a function of tokenarium.methods.toys.tiny",
        ),
        (without(PAPER, "metric"), "records no metric: add study.metric(...) for every claim"),
        (without(PAPER, "table"), "shows no table: add study.table(...)"),
        (changed(PAPER, "figure", "# study.figure()"), "draws no figure: add study.figure(...)"),
        (without(PAPER, "tensor"), "keeps no tensor to look inside: add study.tensor(...)"),
        (without(PAPER, "verdict"), "has no heading '## Verdict': write above the last cell how to read it"),
        (without(PAPER, "finish"), "cell 11: is the last cell and not 'study.finish()': end with it"),
        (
            changed(PAPER, "tensor", f"{PAPER[9][2]}\nstudy.finish()"),
            "cell 10: calls study.finish() before the end: only the last cell does",
        ),
        (
            [*PAPER[:3], PAPER[4], PAPER[3], *PAPER[5:]],
            "cell 4: the idea comes before the claims (cell 5): put it below",
        ),
        (
            [*PAPER[:6], PAPER[10], *PAPER[6:10], PAPER[11]],
            "cell 7: the verdict comes before the experiment (cell 8): put it below",
        ),
        (
            changed(PAPER, "metric", f"{PAPER[6][2]}\n{LINES}"),
            "cell 7: has 42 lines, at most 40 are read in one go: move what is longer than about 15 lines to lib",
        ),
        (
            changed(PAPER, "verdict", f"## Verdict\n{LINES}"),
            "cell 11: has 42 lines, at most 40 are read in one go: split it",
        ),
        (
            [*PAPER[:10], ("broken", "code", "y = 1\nx ="), *PAPER[10:]],
            "cell 11: is no Python (line 2: invalid syntax): correct it",
        ),
    ],
)
def test_each_broken_rule_is_one_line(check, cells, said):
    assert check(notebook(cells)) == [said]


def tagged(cell, *tags):
    cell["metadata"]["tags"] = list(tags)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda cells: cells[3].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "1"}]),
            "cell 4: has outputs: strip them with `nbstripout --keep-id`",
        ),
        (
            lambda cells: cells[3].update(execution_count=1),
            "cell 4: has an execution count: strip it with `nbstripout --keep-id`",
        ),
        (lambda cells: cells[3].pop("id"), "cell 4: has no id: open and save the notebook in JupyterLab"),
        (lambda cells: cells[3].update(id="title"), "cell 4: has the id title of cell 1: give it another one"),
        (
            lambda cells: tagged(cells[1]),
            "has no cell tagged 'parameters': tag the first code cell, 'profile = None'",
        ),
        (
            lambda cells: tagged(cells[3], "parameters"),
            "cell 4: is a second cell tagged 'parameters': take the tag off",
        ),
        (
            lambda cells: cells.insert(4, {"cell_type": "raw", "id": "raw", "metadata": {}, "source": "text"}),
            "cell 5: is a raw cell: make it markdown or code",
        ),
        (
            lambda cells: cells[3].update(colour="red"),
            "is not valid (Additional properties are not allowed ('colour' was unexpected)): "
            "open and save it in JupyterLab",
        ),
    ],
)
def test_what_only_the_file_shows_is_one_line_too(check, damage, said):
    content = notebook(PAPER)
    damage(content["cells"])
    assert check(content) == [said]


def test_parameters_come_before_all_other_code(check):
    content = notebook([PAPER[0], ("early", "code", "x = 1"), *PAPER[1:]])
    assert check(content) == [
        "cell 3: is tagged 'parameters' but not the first code cell: move it there",
        "cell 4: opens the study: make it the code cell after the parameters",
    ]


def test_a_format_whose_cells_have_no_ids_of_their_own_is_refused(check):
    said = "is not in notebook format 4.5, whose cells keep their ids: open and save it in JupyterLab"
    assert check(notebook(PAPER) | {"nbformat_minor": 4}) == [said]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cells": [1]}', '{"cells": [{"cell_type": "code"}]}'])
def test_a_damaged_file_is_named(check, content):
    assert check(content) == ["is no notebook: restore it from git"]


def test_an_empty_notebook_is_named(check):
    assert check(notebook([])) == ["has no cells: write it"]


def test_claims_that_cannot_be_read_are_told_in_the_words_of_the_claims_file(check, project, change):
    change(project / "notebooks" / "toys" / "tiny.claims.yaml", "paper_figure", "paper_fig")
    (said,) = check(notebook(PAPER))
    assert "notebooks/toys/tiny.claims.yaml: claim C1: paper_fig is no key here" in said


def test_claims_of_another_family_are_found(check, project, change):
    change(project / "notebooks" / "toys" / "tiny.claims.yaml", "family: toys", "family: tools")
    assert check(notebook(PAPER)) == ["lies in toys, but its claims are of the family tools: correct one"]


def test_claims_that_nobody_has_written_are_found(check, project, change):
    change(project / "notebooks" / "toys" / "tiny.claims.yaml", "gain.low", "not_written.low")
    assert check(notebook(PAPER)) == ["has claims that are not written (C1): write them in tiny.claims.yaml"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table", "shows no table: add study.table(...)"),
        ("figure", "draws no figure: add study.figure(...)"),
        ("metric", "records no metric: add study.metric(...)"),
        (
            "opening",
            "opens no study: write 'study = tokenarium.open_study(\"arena/toys\", profile=profile)' below the imports",
        ),
    ],
)
def test_an_arena_has_a_lighter_rule(check, name, said):
    assert check(notebook(without(ARENA, name)), "arena/toys") == [said]


def test_a_notebook_that_only_reads_has_the_import_line(check):
    cells = changed(READER, "read", "import xarray")
    assert check(notebook(cells), None) == ["lacks the line 'import tokenarium': open results with it"]


def test_a_notebook_that_is_missing_or_belongs_to_nothing_is_found(check, project):
    check(notebook(ARENA), "arena/toys")
    (project / "notebooks" / "toys" / "other.ipynb").write_text(json.dumps(notebook(PAPER)))
    assert [str(problem) for problem in check_notebooks(project)] == [
        "notebooks/toys/other.ipynb: is no paper or arena of params.yaml: add it there",
        "notebooks/toys/tiny.ipynb: is missing: write it, or take it out of params.yaml",
    ]
    assert check_notebooks(project, "arena/toys") == []
