"""The list of surveyed papers: each one's state comes from its files."""

import io
import json

import pytest
from rich.console import Console

from tokenarium.errors import TokenariumError
from tokenarium.run.papers import STATES, paper_state, show_papers
from tokenarium.study.catalogue import catalogue, find_paper

PAPER = find_paper("fasa")


@pytest.fixture
def state(project):
    return lambda: paper_state(project, PAPER)


@pytest.fixture
def written(project):
    """The notebook of the paper is there."""
    folder = project / "notebooks" / "context"
    folder.mkdir()
    (folder / "fasa.ipynb").write_text("{}")
    (folder / "fasa.claims.yaml").write_text("claims: []\n")
    return project


def judged(tree, profile, verdict="partly"):
    (tree / "verdicts").mkdir(parents=True, exist_ok=True)
    record = {"slug": "fasa", "family": "context", "profile": profile, "judgement": {"verdict": verdict}}
    (tree / "verdicts" / "fasa.json").write_text(json.dumps(record))


def failed(tree, **record):
    path = tree / ".tokenarium" / "failed" / "fasa.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record or {"cell": 7, "ename": "ValueError", "evalue": "no\nmore"}))


def test_without_a_notebook_a_paper_is_not_begun(state):
    assert state().state == "not begun"


def test_a_notebook_whose_claims_are_not_written_is_only_begun(state, written):
    (written / "notebooks/context/fasa.claims.yaml").write_text("holds_if: not_written.low > 0\n")
    assert state().state == "begun"


def test_a_notebook_without_results_is_written(state, written):
    assert state().state == "written"


@pytest.mark.parametrize(
    ("profile", "said", "note"),
    [("cpu", "cpu verdict", "partly"), ("gpu", "gpu verdict", "partly"), ("smoke", "smoke results", "no evidence")],
)
def test_a_verdict_counts_by_its_profile(state, written, profile, said, note):
    judged(written, profile)
    assert (state().state, state().note) == (said, note)


@pytest.mark.parametrize("profile", ["smoke", "gpu"])
def test_results_of_another_profile_count_from_their_copy(state, written, profile):
    judged(written / ".tokenarium" / profile, profile)
    assert state().state == ("smoke results" if profile == "smoke" else "gpu verdict")
    assert state().note.endswith(f", in .tokenarium/{profile}")


def test_the_highest_profile_counts(state, written):
    judged(written, "cpu")
    judged(written / ".tokenarium" / "smoke", "smoke")
    assert state().state == "cpu verdict"
    judged(written / ".tokenarium" / "gpu", "gpu", "reproduced")
    assert (state().state, state().note) == ("gpu verdict", "reproduced, in .tokenarium/gpu")


def test_a_failed_run_comes_before_older_results(state, written):
    judged(written, "cpu")
    failed(written)
    assert (state().state, state().note) == ("last run failed", "cell 7: ValueError: no")


def test_a_failed_smoke_run_counts_while_there_are_no_results(state, written):
    failed(written / ".tokenarium" / "smoke")
    assert (state().state, state().note) == ("last run failed", "at profile smoke: cell 7: ValueError: no")
    judged(written, "cpu")
    assert state().state == "cpu verdict"


def test_a_damaged_note_of_a_failure_still_counts_as_one(state, written):
    failed(written, cell=7)
    assert (state().state, state().note) == ("last run failed", "fasa.json is damaged: run it again")


def test_a_damaged_verdict_is_named(state, written):
    judged(written, "cpu")
    (written / "verdicts" / "fasa.json").write_text("{")
    with pytest.raises(TokenariumError, match=r"fasa\.json is damaged .*run `dvc repro verdict@fasa`"):
        state()


@pytest.fixture
def shown(project):
    def shown(*arguments, terminal=False, width=400):
        colours = "standard" if terminal else None  # whatever TERM says of the terminal that runs the tests
        console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=colours)
        show_papers(project, *arguments, console=console)
        return console.file.getvalue()

    return shown


def test_all_papers_are_listed_once_with_a_count(shown, written):
    judged(written, "cpu")
    head, *lines, count = shown(width=40).splitlines()
    assert head.split() == ["family", "paper", "state", "verdict", "arXiv", "title"]
    assert [line.split()[1] for line in lines] == list(catalogue())
    assert count == "93 papers: 92 not begun, 1 cpu verdict"
    (line,) = (line for line in lines if " fasa " in line)
    assert line.split(maxsplit=6) == ["context", "fasa", "cpu", "verdict", "partly", PAPER.arxiv, PAPER.title]


def test_a_terminal_gets_a_drawn_table_and_a_pipe_plain_lines(shown):
    assert "\x1b[" in shown(terminal=True)
    assert "┃" in shown(terminal=True)
    assert shown().isascii()


def test_one_family_alone_is_listed(shown):
    assert shown("merging").splitlines()[-1] == "2 papers: 2 not begun"
    with pytest.raises(TokenariumError, match="did you mean merging"):
        shown("mergin")


def test_every_state_has_a_colour(state, written):
    assert paper_state(written, find_paper("pitome")).state in STATES
