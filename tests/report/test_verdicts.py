"""Verdict records come from claims and metrics alone, and say which files they are about."""

import hashlib
import json

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.report.verdicts import load_evidence, load_verdicts, stage_of, write_verdict


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_record_holds_the_judgement_and_a_digest_of_every_file(project, finish):
    folder = finish()
    path = write_verdict(project, "tiny")
    assert path == project / "verdicts" / "tiny.json"
    record = read(path)
    assert (record["slug"], record["family"], record["profile"], record["overridden"]) == ("tiny", "toys", "cpu", False)
    judgement = record["judgement"]
    assert judgement["verdict"] == "reproduced"
    assert judgement["title"] == "Tiny: [small] steps <b>ahead</b>"
    assert [(claim["id"], claim["outcome"]) for claim in judgement["claims"]] == [
        ("C1", "holds"),
        ("C2", "not testable"),
    ]
    assert judgement["claims"][0]["evidence"]["gain"]["low"] == 1.0
    assert judgement["gates"][0]["passed"] is True
    expected = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("evidence.json", "tables/budgets.csv", "figures/curve.svg", "figures/curve.png")
    }
    assert record["files"] == expected


@pytest.mark.parametrize(
    ("gain", "profile", "verdict"),
    [(2.0, "cpu", "reproduced"), (0.0, "cpu", "not reproduced"), (2.0, "smoke", "inconclusive")],
)
def test_the_verdict_follows_numbers_and_profile(project, finish, gain, profile, verdict):
    finish(gain=gain, profile=profile)
    assert read(write_verdict(project, "tiny"))["judgement"]["verdict"] == verdict


def test_the_same_results_give_the_same_record(project, finish):
    finish()
    first = write_verdict(project, "tiny").read_bytes()
    finish()
    assert write_verdict(project, "tiny").read_bytes() == first


def test_a_changed_figure_changes_the_record(project, finish):
    folder = finish()
    first = write_verdict(project, "tiny").read_bytes()
    (folder / "figures" / "curve.svg").write_text("<svg/>")
    assert write_verdict(project, "tiny").read_bytes() != first


def test_an_arena_has_files_and_no_judgement(project, finish):
    finish("arena/toys")
    path = write_verdict(project, "arena/toys")
    assert path == project / "verdicts" / "arena-toys.json"
    record = read(path)
    assert "judgement" not in record
    assert record["slug"] == "arena/toys"
    assert set(record["files"]) == {"evidence.json", "tables/budgets.csv", "figures/curve.svg", "figures/curve.png"}


def test_a_study_without_tables_and_figures_is_judged_from_a_clone_that_lacks_the_empty_folders(project, finish):
    folder = finish()
    for name in ("tables/budgets.csv", "figures/curve.svg", "figures/curve.png"):
        (folder / name).unlink()
    (folder / "tables").rmdir()
    (folder / "figures").rmdir()
    assert set(read(write_verdict(project, "tiny"))["files"]) == {"evidence.json"}


@pytest.mark.parametrize(("slug", "stage"), [("tiny", "paper@tiny"), ("arena/toys", "arena@toys")])
def test_missing_results_say_how_to_get_them(project, slug, stage):
    assert stage_of(slug) == stage
    with pytest.raises(TokenariumError, match=f"{slug} has no results yet: run `dvc repro {stage}`"):
        write_verdict(project, slug)
    assert not (project / "verdicts").exists()


@pytest.mark.parametrize(
    "content", [b'{"slug": ', b"", b"[]", b"3", b'"text"', b"{}", b"\xff\xfe", b'{"slug": "tiny"}']
)
def test_damaged_evidence_is_named_and_changes_nothing(project, finish, content):
    folder = finish()
    before = write_verdict(project, "tiny").read_bytes()
    (folder / "evidence.json").write_bytes(content)
    with pytest.raises(
        TokenariumError, match=r"tiny/evidence\.json is damaged .*restore it from git, or run `dvc repro"
    ):
        write_verdict(project, "tiny")
    assert (project / "verdicts" / "tiny.json").read_bytes() == before


def test_a_damaged_metric_is_named(project, finish):
    folder = finish()
    evidence = load_evidence(project, "tiny")
    del evidence["metrics"]["gain"]["low"]
    (folder / "evidence.json").write_text(json.dumps(evidence))
    with pytest.raises(TokenariumError, match="metric 'gain': not a record of value, low, high and how"):
        write_verdict(project, "tiny")


def test_a_claim_about_an_unrecorded_metric_is_named(project, finish, change):
    finish()
    change(project / "notebooks" / "toys" / "tiny.claims.yaml", r"holds_if: gain\.low", "holds_if: gian.low")
    with pytest.raises(TokenariumError, match=r"gian.*did you mean gain"):
        write_verdict(project, "tiny")


def test_records_come_papers_first_and_damaged_ones_are_named(project, finish):
    assert load_verdicts(project) == []
    finish("arena/toys")
    write_verdict(project, "arena/toys")
    finish()
    write_verdict(project, "tiny")
    assert [record["slug"] for record in load_verdicts(project)] == ["tiny", "arena/toys"]
    (project / "verdicts" / "tiny.json").write_text('{"slug": "tiny"')
    with pytest.raises(TokenariumError, match=r"verdicts/tiny\.json is damaged .*: restore it from git, or run"):
        load_verdicts(project)
