"""The command line: an expected mistake is one line on stderr and exit status 2; light commands stay light."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenarium import models
from tokenarium.errors import TokenariumError
from tokenarium.run import cli, execute, notebook_check, pipeline
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)
SLOW = ("torch", "transformers", "matplotlib", "pandas", "IPython", "papermill")


@pytest.fixture
def tokenarium(project, monkeypatch, capsys):
    """Run `tokenarium <arguments>` inside the project; returns exit status, stdout and stderr."""
    monkeypatch.chdir(project)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokenarium", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "fashion-mnits"], "no data set is named 'fashion-mnits': did you mean 'fashion-mnist'?"),
        (["model", "vit"], "params.yaml has no model 'vit'; known: none"),
        (["experiment", "lang"], "params.yaml has no experiment 'lang'; did you mean long?"),
        (["study", "tinny"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["study", "arena/toy"], "params.yaml has no arena 'toy'; did you mean toys?"),
        (["verdict", "tinny"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["verdict", "arena/toy"], "params.yaml has no arena 'toy'; did you mean toys?"),
        (["show", "tinny"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["repro", "tinny"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["repro", "tinny", "--profile", "smoke"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (
            ["papers", "--family", "visoin"],
            "no surveyed paper is of the family 'visoin'; did you mean vision or video?",
        ),
        (["new", "context", "fassa"], "no surveyed paper is named 'fassa'; did you mean fasa?"),
        (["new", "vision", "fasa"], "fasa is a paper of the family context, not of vision"),
        (["diff", "tinny", "HEAD"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["check-notebooks", "tinny"], "params.yaml has no paper 'tinny'; did you mean tiny?"),
        (["repro", "tiny", "--profile", "smok"], "unknown profile 'smok'; did you mean smoke?"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(tokenarium, project, arguments, said):
    before = sorted(project.rglob("*"))
    assert tokenarium(*arguments) == (2, "", f"tokenarium: {said}\n")
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "tiny"], "tiny has no verdict yet: run `make repro PAPER=tiny`"),
        (["verdict", "tiny"], "tiny has no results yet: run `dvc repro paper@tiny`"),
        (["verdict", "arena/toys"], "arena/toys has no results yet: run `dvc repro arena@toys`"),
        (["study", "tiny"], "notebooks/toys/tiny.ipynb is missing: write the notebook of tiny there"),
    ],
)
def test_what_is_not_there_yet_is_one_line_with_the_mend(tokenarium, arguments, said):
    assert tokenarium(*arguments) == (2, "", f"tokenarium: {said}\n")


def test_outside_a_checkout_it_says_so(tokenarium, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = tokenarium("show")
    assert code == 2
    assert error.startswith("tokenarium: no params.yaml and dvc.yaml at or above")


def test_a_study_at_another_profile_than_the_committed_one_is_refused(tokenarium, monkeypatch, project):
    monkeypatch.setattr(execute, "run_study", lambda root, slug, cell_limit: pytest.fail("the notebook ran"))
    assert tokenarium("study", "tiny", "--profile", "smoke") == (
        2,
        "",
        "tokenarium: params.yaml says profile cpu: use `tokenarium repro tiny --profile smoke`, "
        "which keeps the results of the two apart\n",
    )


@pytest.mark.parametrize("profile", [[], ["--profile", "cpu"]])
def test_a_study_at_the_committed_profile_runs(tokenarium, monkeypatch, project, profile):
    monkeypatch.setattr(execute, "run_study", lambda root, slug, cell_limit: root / "reports" / slug)
    assert tokenarium("study", "tiny", *profile) == (0, "reports/tiny: written\n", "")


def test_a_model_is_built_by_its_recipe_at_the_committed_profile(tokenarium, monkeypatch, project, change):
    change(project / "params.yaml", r"^models: \{\}$", "models: {a: {recipe: vit, seed: 3, path: models/a, reads: []}}")
    change(project / "params.yaml", r"^recipes: \{\}$", "recipes: {vit: {smoke: {s: 1}, cpu: {s: 2}, gpu: {s: 3}}}")
    monkeypatch.setattr(models, "build", lambda *arguments: built.append(arguments))
    built = []
    assert tokenarium("model", "a") == (0, "models/a: written\n", "")
    assert built == [(project, project / "models" / "a", "vit", 3, {"s": 2})]
    assert tokenarium("model", "b")[2] == "tokenarium: params.yaml has no model 'b'; known: a\n"


def test_verdict_report_and_show_follow_a_study(tokenarium, project, finish):
    finish()
    assert tokenarium("verdict", "tiny") == (0, "verdicts/tiny.json: written\n", "")
    assert tokenarium("report") == (0, "reports/README.md: written\nreports/site/index.html: written\n", "")
    assert json.loads((project / "verdicts" / "tiny.json").read_text())["judgement"]["verdict"] == "reproduced"
    code, shown, error = tokenarium("show", "tiny")
    assert (code, error) == (0, "")
    assert "verdict: reproduced" in shown
    code, shown, error = tokenarium("show")
    assert (code, error) == (0, "")
    assert "tiny" in shown


@pytest.mark.parametrize("slug", [[], ["tiny"]])
def test_repro_shows_what_it_made_where_it_made_it(tokenarium, project, finish, monkeypatch, slug):
    finish()
    tokenarium("verdict", "tiny")
    monkeypatch.setattr(pipeline, "repro", lambda root, *asked: (seen.append(asked), root)[1])
    seen = []
    code, shown, _ = tokenarium("repro", *slug, "--profile", "cpu")
    assert code == 0
    assert seen == [(slug or None, "cpu")]
    assert "reproduced" in shown
    assert f"{project}/reports/" in shown


def test_repro_with_jobs_or_dry_goes_parallel_and_stage_names_are_taken_as_they_are(tokenarium, project, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "repro_parallel", lambda root, *asked: (seen.append(asked), root)[1])
    assert tokenarium("repro", "tiny", "model@x", "-j", "3", "--address", "a:1", "--dry") == (0, "", "")
    assert tokenarium("repro", "model@x", "-j", "2", "--profile", "gpu") == (0, "", "")
    assert tokenarium("repro", "--dry") == (0, "", "")
    assert seen == [
        (["tiny", "model@x"], None, 3, "a:1", True),
        (["model@x"], "gpu", 2, None, False),
        (None, None, 1, None, True),
    ]


def test_a_cluster_without_a_number_of_jobs_is_refused(tokenarium):
    said = "tokenarium: --address needs -j: say how many stages may run at a time\n"
    assert tokenarium("repro", "--address", "a:1") == (2, "", said)


def test_check_says_that_all_is_well_or_what_is_not(tokenarium, monkeypatch):
    monkeypatch.setattr(pipeline, "check", lambda root: None)
    assert tokenarium("check") == (0, "The committed results belong to this code.\n", "")

    def stale(root):
        raise TokenariumError("results are out of date: run `dvc repro` and commit (paper@tiny)")

    monkeypatch.setattr(pipeline, "check", stale)
    assert tokenarium("check") == (
        2,
        "",
        "tokenarium: results are out of date: run `dvc repro` and commit (paper@tiny)\n",
    )


def test_broken_rules_of_notebooks_are_a_line_each(tokenarium):
    assert tokenarium("check-notebooks") == (
        2,
        "",
        "notebooks/arena/toys.ipynb: is missing: write it, or take it out of params.yaml\n"
        "notebooks/toys/tiny.ipynb: is missing: write it, or take it out of params.yaml\n",
    )


def test_notebooks_that_keep_the_rules_are_a_line_altogether(tokenarium, monkeypatch):
    monkeypatch.setattr(notebook_check, "check_notebooks", lambda root, slug: [])
    assert tokenarium("check-notebooks") == (0, "The notebooks keep the rules.\n", "")


def test_a_paper_that_is_begun_is_listed_so(tokenarium, project):
    shutil.copy2(ROOT / "dvc.yaml", project / "dvc.yaml")
    shutil.copytree(ROOT / "lib/tokenarium/measure", project / "lib/tokenarium/measure")
    (project / "lib/tokenarium/methods").mkdir()
    (project / "lib/tokenarium/methods/__init__.py").touch()
    code, said, error = tokenarium("new", "context", "fasa")
    assert (code, error) == (0, "")
    assert "notebooks/context/fasa.ipynb: written\n" in said
    assert "params.yaml: written\n" in said
    code, said, _ = tokenarium("papers", "--family", "context")
    assert code == 0
    assert said.splitlines()[-1] == "7 papers: 6 not begun, 1 begun"


def test_a_diff_without_a_repository_is_one_line(tokenarium):
    code, said, error = tokenarium("diff", "tiny", "HEAD")
    assert (code, said) == (2, "")
    assert error.startswith("tokenarium: git knows no revision 'HEAD'")


def test_an_interruption_is_one_line(tokenarium, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "repro", interrupted)
    assert tokenarium("repro") == (130, "", "tokenarium: interrupted; the same command goes on from here\n")


def test_an_unexpected_mistake_keeps_its_traceback(project, monkeypatch):
    def broken(root):
        raise ZeroDivisionError("a defect")

    monkeypatch.chdir(project)
    monkeypatch.setattr(pipeline, "check", broken)
    monkeypatch.setattr(sys, "argv", ["tokenarium", "check"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["study", "--help"], ["verdict", "tiny"], ["study", "tinny"], ["papers"]]
)
def test_light_commands_import_nothing_slow(project, arguments):
    code = (
        "import sys\n"
        "from tokenarium.run import cli\n"
        f"sys.argv = ['tokenarium', *{arguments}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *(name for name in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    loaded = done.stderr.rpartition("loaded:")[2].split()
    assert "typer" in loaded
    assert not set(SLOW) & set(loaded)
    if "--help" in arguments:
        assert "Usage" in done.stdout
