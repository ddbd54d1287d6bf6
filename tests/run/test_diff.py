"""What changed between two revisions, read from git alone."""

import io
import json
import os
import subprocess

import pytest
from rich.console import Console

from tokenarium.errors import TokenariumError
from tokenarium.report.verdicts import write_verdict
from tokenarium.run.diff import show_diff


def git(root, *arguments):
    names = {f"GIT_{role}_{what}": "tester@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | names | {"GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(
        ["git", *arguments], cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def commit(project):
    git(project, "init", "--quiet")

    def commit(tag):
        git(project, "add", "--all")
        git(project, "commit", "--quiet", "--message", tag)
        git(project, "tag", tag)

    commit("empty")
    return commit


@pytest.fixture
def history(project, finish, commit, change):
    """Tags: `empty` without results; `first`; `second` with other numbers, a stricter rule and another parameter."""
    finish()
    write_verdict(project, "tiny")
    commit("first")
    change(project / "params.yaml", "alpha: 0.5", "alpha: 0.7")
    change(project / "notebooks/toys/tiny.claims.yaml", "gain.low > 0", "gain.low > 4")
    finish(gain=4.5)
    write_verdict(project, "tiny")
    edit(project / "reports/tiny/provenance.json", lambda record: record["packages"].update(torch="9.9"))
    commit("second")
    return project


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def shown(project):
    def shown(slug, *revisions):
        console = Console(file=io.StringIO(), width=60)
        show_diff(project, slug, *revisions, console=console)
        return console.file.getvalue()

    return shown


def line(text, start):
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return found.split("  ")[0], [part.strip() for part in found.split("  ")[1:] if part.strip()]


def test_numbers_claims_parameters_and_versions_are_compared(history, shown):
    text = shown("tiny", "first", "second")
    assert "verdict: reproduced -> not reproduced" in text
    assert line(text, "gain") == ("gain", ["2 [1, 3] points <&>", "4.5 [3.5, 5.5] points <&>", "+2.5", "apart"])
    assert "metrics: 1 changed, 1 as they were" in text
    assert "top1" not in text
    assert line(text, "C1, rule")[1] == ["gain.low > 0", "gain.low > 4"]
    assert line(text, "C1 ")[1] == ["holds", "does not hold"]
    assert "C2" not in text
    assert line(text, "alpha")[1] == ["0.5", "0.7"]
    assert line(text, "torch")[1][1] == "9.9"
    assert "numpy" not in text


def test_the_way_back_is_the_same_with_the_sides_changed(history, shown):
    text = shown("tiny", "second", "first")
    assert "verdict: not reproduced -> reproduced" in text
    assert line(text, "gain")[1][2:] == ["-2.5", "apart"]


def test_intervals_that_touch_overlap_and_the_reader_is_told_what_that_means(history, shown):
    edit(
        history / "reports/tiny/evidence.json",
        lambda record: record["metrics"]["gain"].update(value=2.9, low=2.5, high=3.5),
    )
    text = shown("tiny", "first")
    assert line(text, "gain")[1][2:] == ["+0.9", "overlap"]
    assert "no difference paired by example" in text
    assert "to the working tree (profile cpu)" in text


def test_metrics_come_and_go(history, shown):
    edit(
        history / "reports/tiny/evidence.json",
        lambda record: record["metrics"].update(new=record["metrics"].pop("top1")),
    )
    text = shown("tiny", "second")
    assert line(text, "top1")[1][-1] == "gone"
    assert line(text, "new")[1][-1] == "new"


def test_numbers_of_single_seeds_are_no_secret(history, shown):
    edit(history / "reports/tiny/evidence.json", lambda record: record["metrics"]["gain"].update(how="otherwise"))
    assert line(shown("tiny", "second"), "gain")[1][2:] == ["none", "only its seeds or how it was made"]


def test_the_same_results_are_said_to_be_the_same(history, shown):
    text = shown("tiny", "second", "HEAD")
    assert "verdict: not reproduced, as it was" in text
    assert "metrics: all 2 as they were" in text
    assert "parameters: as they were" in text
    assert len(text.splitlines()) == 6


def test_another_profile_is_pointed_out(history, shown, finish):
    finish(profile="smoke")
    assert "The profiles differ" in shown("tiny", "second")


def test_an_arena_has_no_verdict_to_compare(history, shown, finish):
    finish("arena/toys")
    write_verdict(history, "arena/toys")
    git(history, "add", "--all")
    git(history, "commit", "--quiet", "--message", "arena")
    assert "verdict" not in shown("arena/toys", "HEAD")


@pytest.mark.parametrize(
    ("revisions", "said"),
    [
        (["nosuch"], "git knows no revision 'nosuch': `git log --oneline reports/tiny` lists some"),
        (["--output=x"], "git knows no revision '--output=x'"),
        (["first", "nosuch"], "git knows no revision 'nosuch'"),
        (["empty"], "tiny has no results in empty ("),
    ],
)
def test_what_is_not_there_is_one_line(history, shown, revisions, said):
    with pytest.raises(TokenariumError) as error:
        shown("tiny", *revisions)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert not (history / "x").exists()


def test_a_damaged_record_is_named(history, shown, commit):
    (history / "verdicts/tiny.json").write_text("{")
    with pytest.raises(TokenariumError, match=r"verdicts/tiny\.json of the working tree is damaged"):
        shown("tiny", "first")


def test_results_below_the_top_of_a_repository_are_found(tmp_path, project, finish, shown):
    finish()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    assert "metrics: all 2 as they were" in shown("tiny", "HEAD")
