"""Results in the terminal: every claim with its numbers, the verdict, and where the report lies."""

import io
import json

import pytest
from rich.console import Console

from tokenarium.errors import TokenariumError
from tokenarium.report.terminal import show_paper, show_report
from tokenarium.report.verdicts import write_verdict


@pytest.fixture
def shown(project):
    """What `show` prints, as plain text with every run of blanks and rules as one blank."""

    def shown(show, *arguments):
        console = Console(file=io.StringIO(), width=160)
        show(project, *arguments, console=console)
        text = console.file.getvalue()
        return " ".join("".join(" " if "─" <= character <= "╿" else character for character in text).split())

    return shown


def test_a_paper_is_shown_with_numbers_verdict_and_place(project, finish, shown):
    finish()
    write_verdict(project, "tiny")
    text = shown(show_paper, "tiny")
    assert "gain 2 [1, 3] holds" in text
    assert "no elsewhere | at this scale not testable" in text
    assert "a model of one number" in text
    assert "gate G0: open (top1 (90.25) >= 80: true)" in text
    assert "verdict: reproduced (" in text
    assert f"report: {project}/reports/tiny and {project}/reports/site/index.html" in text
    assert "SMOKE" not in text


def test_brackets_in_a_title_are_text(project, finish, shown, change):
    finish()
    claims = project / "notebooks" / "toys" / "tiny.claims.yaml"
    change(claims, "a < b", "a [/] < b [red]")
    change(claims, r"\[small\]", "[/small] [bold]")
    write_verdict(project, "tiny")
    text = shown(show_paper, "tiny")
    assert "Tiny: [/small] [bold] steps <b>ahead</b> (arXiv 2401.00001), profile cpu" in text
    assert "a [/] < b [red]" in text


def test_smoke_is_labelled(project, finish, shown):
    finish(profile="smoke")
    write_verdict(project, "tiny")
    text = shown(show_paper, "tiny")
    assert "SMOKE a check of the road" in text
    assert "verdict: inconclusive (smoke profile: not evidence)" in text


def test_parameters_that_were_set_by_hand_are_told(project, finish, shown):
    finish()
    evidence = project / "reports" / "tiny" / "evidence.json"
    write_verdict(project, "tiny")
    assert "set by hand" not in shown(show_paper, "tiny")
    evidence.write_text(json.dumps(json.loads(evidence.read_text()) | {"overridden": True}))
    write_verdict(project, "tiny")
    assert "overridden: parameters of this run were set by hand" in shown(show_paper, "tiny")


def test_a_closed_gate_says_why(project, finish, shown, change):
    finish()
    change(project / "notebooks" / "toys" / "tiny.claims.yaml", "top1 >= 80", "top1 >= 95")
    write_verdict(project, "tiny")
    text = shown(show_paper, "tiny")
    assert "gate G0: closed (top1 (90.25) >= 95: false)" in text
    assert "verdict: inconclusive" in text


def test_a_paper_without_a_verdict_says_how_to_get_it(project):
    with pytest.raises(TokenariumError, match="tiny has no verdict yet: run `make repro PAPER=tiny`"):
        show_paper(project, "tiny")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"slug": "tiny", "family": "toys", "profile": "cpu"})])
def test_a_damaged_record_is_named(project, content):
    (project / "verdicts").mkdir()
    (project / "verdicts" / "tiny.json").write_text(content)
    with pytest.raises(TokenariumError, match=r"tiny\.json is damaged .*run `dvc repro verdict@tiny`"):
        show_paper(project, "tiny")


def test_all_papers_are_shown_and_arenas_are_not(project, finish, shown):
    for slug in ("tiny", "arena/toys"):
        finish(slug)
        write_verdict(project, slug)
    text = shown(show_report)
    assert "tiny toys cpu reproduced C1 holds, C2 not testable" in text
    assert "arena" not in text
    assert f"report: {project}/reports/README.md and" in text


def test_without_verdicts_the_table_is_empty(shown):
    assert "paper family profile verdict claims" in shown(show_report)
