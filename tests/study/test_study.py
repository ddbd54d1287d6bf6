"""The study API: what a notebook records is written whole, with its interval, and can be opened again."""

import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.numpy import load_file

import tokenarium
from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import Interval
from tokenarium.study import open_study, tensors
from tokenarium.study import study as study_module


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def study(project):
    return open_study("tiny", root=project)


@pytest.fixture
def output(project):
    """Where a study that is typed by hand writes."""
    return project / ".tokenarium" / "by-hand" / "tiny"


@pytest.fixture
def judged(study):
    """A study with the two metrics that the claims of `tiny` ask for."""
    study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
    study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
    return study


def plot(slope=1.0):
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [0, slope], label="ToMe")
    axes.set_xlabel("FLOPs (%)")
    axes.legend()
    return figure


# Opening


def test_the_package_opens_studies_and_tensors_itself():
    assert tokenarium.open_study is open_study
    assert tokenarium.tensors is tensors
    with pytest.raises(AttributeError, match="opn_study"):
        _ = tokenarium.opn_study
    with pytest.raises(AttributeError, match="Studdy"):
        _ = tokenarium.study.Studdy


def test_a_study_knows_what_to_run(study, project):
    assert (study.slug, study.family, study.profile, study.seeds) == ("tiny", "toys", "cpu", [3, 4])
    assert study.root == project.resolve()
    assert study.parameters.images == 8
    assert study.device.type in ("cpu", "cuda", "mps")
    assert study.dtype is torch.float32
    assert study.claims.paper == "tiny"
    assert repr(study).startswith("Study('tiny', profile='cpu', device=")


def test_the_project_is_found_from_the_notebooks_folder(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks" / "toys")
    assert open_study("tiny").root == project.resolve()


def test_another_profile_and_overrides_are_for_this_run_only(project):
    study = open_study("tiny", profile="smoke", overrides={"images": 3}, root=project)
    assert (study.profile, study.parameters.images, study.parameters.alpha) == ("smoke", 3, 0.1)
    assert open_study("tiny", root=project).parameters.images == 8


def test_an_arena_has_parameters_and_no_claims(project):
    arena = open_study("arena/toys", root=project)
    assert (arena.family, arena.parameters.focus, arena.parameters.images) == ("toys", 0.5, 8)
    assert arena.claims is None
    with pytest.raises(TokenariumError, match="arena/toys is an arena: it has no claims file"):
        arena.show_claims()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"slug": "tinny"}, "no paper 'tinny'; did you mean tiny"),
        ({"slug": "arena/toy"}, "no arena 'toy'; did you mean toys"),
        ({"slug": "tiny", "profile": "smok"}, "unknown profile 'smok'; did you mean smoke"),
        ({"slug": "tiny", "overrides": {"alhpa": 1}}, "unknown key 'alhpa'; did you mean alpha"),
    ],
)
def test_an_unknown_name_gets_the_nearest(project, arguments, said):
    with pytest.raises(TokenariumError, match=said):
        open_study(**arguments, root=project)


def test_a_paper_without_claims_cannot_be_opened(project):
    (project / "notebooks" / "toys" / "tiny.claims.yaml").unlink()
    with pytest.raises(TokenariumError, match=r"tiny\.claims\.yaml: cannot read this claims file"):
        open_study("tiny", root=project)


def test_opening_fixes_the_global_random_numbers(project):
    def draw():
        open_study("tiny", root=project)
        return torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002 (what libraries use unasked)

    assert draw() == draw()


# Metrics


def test_a_metric_keeps_its_interval_unit_and_seeds(study, output):
    seeds = {3: Interval(1.0, 0.5, 1.5, "by hand"), 4: Interval(2.0, 1.5, 2.5, "by hand")}
    recorded = study.metric("gain", Interval(1.5, 1.0, 2.0, "bootstrap over images"), unit="points", seeds=seeds)
    study.metric("top1", 90, (89, 91), how="bootstrap over images")
    assert recorded.min_low == 0.5
    assert list(study.metrics) == ["gain", "top1"]
    study.finish()
    assert read(output / "metrics.json") == {
        "gain": {"value": 1.5, "low": 1.0, "high": 2.0},
        "top1": {"value": 90.0, "low": 89.0, "high": 91.0},
    }
    gain = read(output / "evidence.json")["metrics"]["gain"]
    assert (gain["how"], gain["unit"], gain["seeds"]["4"]["high"]) == ("bootstrap over images", "points", 2.5)


@pytest.mark.parametrize("given", [{}, {"interval": (1, 2)}, {"how": "guessed"}])
def test_a_number_needs_an_interval_and_how_it_was_made(study, given):
    with pytest.raises(TokenariumError, match=r"metric 'gain' needs interval=\(low, high\) and how it was made"):
        study.metric("gain", 1.0, **given)
    assert not study.metrics


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (float("nan"), (0, 1), "nan"),
        (1.0, (0, float("inf")), "inf"),
        (1.0, (2, 1), "above high"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(study, value, interval, said):
    with pytest.raises(TokenariumError, match=f"metric 'gain': .*{said}"):
        study.metric("gain", value, interval, how="by hand")


def test_a_metric_is_recorded_once(study):
    study.metric("gain", 1.0, (0.0, 2.0), how="by hand")
    with pytest.raises(TokenariumError, match="metric 'gain' is recorded twice"):
        study.metric("gain", 1.0, (0.0, 2.0), how="by hand")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("table", (pd.DataFrame({"x": [1]}), "caption")),
        ("figure", (Figure(), "caption")),
        ("tensor", (np.zeros(2), ["token"], "note")),
        ("evaluation", (np.zeros(2),)),
    ],
)
def test_whatever_is_recorded_is_recorded_once(study, kind, arguments):
    record = getattr(study, kind)
    record("same", *arguments)
    with pytest.raises(TokenariumError, match=f"{kind} 'same' is recorded twice: give the second one its own name"):
        record("same", *arguments)
    record("other", *arguments)


@pytest.mark.parametrize("name", ["Gain", "gain f60", "min", "lambda", ""])
def test_a_metric_has_a_name_that_a_rule_can_use(study, name):
    with pytest.raises(TokenariumError, match="use a name of lower-case letters"):
        study.metric(name, 1.0, (0.0, 2.0), how="by hand")


# Tables and figures


def test_a_table_is_written_as_it_was_when_recorded(judged, output):
    frame = pd.DataFrame({"method": ["ToMe, α"], "kl": [1 / 3], "images": [10]})
    shown = judged.table("budgets", frame, "Cost & <b>KL</b>")
    frame.loc[0, "kl"] = 9.0
    judged.finish()
    assert (output / "tables" / "budgets.csv").read_text(encoding="utf-8") == (
        'method,kl,images\n"ToMe, α",0.333333,10\n'
    )
    assert read(output / "evidence.json")["tables"] == {"budgets": "Cost & <b>KL</b>"}
    assert "Cost &amp; &lt;b&gt;KL&lt;/b&gt;" in shown.data
    assert "0.3333" in shown.data


def test_a_figure_is_the_same_bytes_when_it_is_drawn_again(project, output):
    drawn = []
    for _ in range(2):
        study = open_study("tiny", root=project)
        study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
        study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
        figure = plot()
        assert study.figure("curve", figure, "KL against cost") is figure
        study.finish()
        drawn.append([(output / "figures" / f"curve.{kind}").read_bytes() for kind in ("svg", "png")])
    assert drawn[0] == drawn[1]
    svg, png = drawn[0]
    assert svg.startswith(b"<?xml")
    assert b"FLOPs (%)" in svg  # text stays text
    assert png.startswith(b"\x89PNG")
    assert read(output / "evidence.json")["figures"] == {"curve": "KL against cost"}


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "a.svg"])
def test_names_of_files_stay_inside_their_folder(study, name):
    with pytest.raises(TokenariumError, match="cannot name a file"):
        study.figure(name, plot(), "")
    with pytest.raises(TokenariumError, match="cannot name a file"):
        study.table(name, pd.DataFrame({"a": [1]}), "")
    with pytest.raises(TokenariumError, match="cannot name a file"):
        study.tensor(name, np.zeros(2), ["token"], "")


# Tensors and evaluations


def test_tensors_come_back_with_names_notes_and_labels(judged, project):
    energy = torch.arange(6, dtype=torch.float32).reshape(2, 3).requires_grad_()
    judged.tensor("energy", energy, ["image", "token"], "how crowded", unit="1", coords={"token": ["cls", "a", "b"]})
    judged.tensor("mean", energy.mean(), [], "over everything")
    judged.finish()
    opened = tensors("tiny", project)
    assert opened.energy.sel(token="a").values.tolist() == [1.0, 4.0]
    assert opened.energy.attrs == {"long_name": "how crowded", "units": "1"}
    assert opened["mean"].dims == ()
    assert float(opened["mean"]) == 2.5


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.float64, torch.uint8])
def test_tensors_keep_their_kind_of_number(judged, project, dtype):
    judged.tensor("anchors", torch.tensor([0, 1, 1]).to(dtype), ["token"], "")
    judged.tensor("half", torch.tensor([0.5, 2.0], dtype=torch.bfloat16), ["pair"], "")
    judged.finish()
    opened = tensors("tiny", project)
    assert str(opened.anchors.dtype) == str(dtype).removeprefix("torch.")
    assert opened.anchors.values.tolist() == [0, 1, 1]
    assert opened.half.values.tolist() == [0.5, 2.0]


def test_what_happens_to_a_tensor_later_is_not_recorded(judged, project, output):
    values, logits = torch.zeros(3), np.zeros(3)
    judged.tensor("energy", values, ["token"], "")
    judged.evaluation("ToMe|0.6|3", logits)
    values += 1
    logits += 1
    judged.finish()
    assert tensors("tiny", project).energy.values.tolist() == [0, 0, 0]
    assert load_file(output / "evaluations" / "results.safetensors")["ToMe|0.6|3"].tolist() == [0, 0, 0]


def test_a_transposed_tensor_comes_back_as_it_was_seen(judged, project):
    values = torch.arange(6).reshape(2, 3).T
    judged.tensor("energy", values, ["token", "image"], "")
    judged.finish()
    assert tensors("tiny", project).energy.values.tolist() == values.tolist()


def test_axes_and_names_must_match(study):
    with pytest.raises(TokenariumError, match="tensor 'energy' has 2 axes but 1 names: token"):
        study.tensor("energy", torch.zeros(2, 3), ["token"], "")
    with pytest.raises(TokenariumError, match="tensor 'similarity' needs a name of its own for every axis"):
        study.tensor("similarity", torch.zeros(3, 3), ["token", "token"], "")
    with pytest.raises(TokenariumError, match=r"the labels of 'token' do not fit its shape \(3,\)"):
        study.tensor("energy", torch.zeros(3), ["token"], "", coords={"token": [1, 2]})
    with pytest.raises(TokenariumError, match="the labels of 'tokens' do not fit"):
        study.tensor("energy", torch.zeros(3), ["token"], "", coords={"tokens": [1, 2, 3]})
    with pytest.raises(TokenariumError, match="tensor 'words' holds <U3: record numbers"):
        study.tensor("words", np.array(["the", "cat"]), ["token"], "")


def test_a_dimension_of_two_lengths_carries_the_tensors_name(judged, project):
    judged.tensor("energy", torch.zeros(2, 5), ["image", "token"], "")
    judged.tensor("size", torch.ones(2, 3), ["image", "token"], "")
    judged.finish()
    opened = tensors("tiny", project)
    assert opened.energy.dims == ("image", "energy.token")
    assert opened["size"].dims == ("image", "size.token")
    assert dict(opened.sizes) == {"image": 2, "energy.token": 5, "size.token": 3}


def test_a_dimension_of_two_labellings_is_not_padded(judged, project):
    judged.tensor("energy", np.zeros(2), ["layer"], "", coords={"layer": np.array([0, 1])})
    judged.tensor("spectrum", np.ones(2), ["layer"], "", coords={"layer": torch.tensor([3, 6])})
    judged.finish()
    opened = tensors("tiny", project)
    assert opened.energy.values.tolist() == [0, 0]
    assert opened.spectrum["spectrum.layer"].values.tolist() == [3, 6]


def test_labels_reach_the_tensors_that_have_none_of_their_own(judged, project):
    judged.tensor("energy", np.zeros(2), ["layer"], "", coords={"layer": [3, 6]})
    judged.tensor("gap", np.array([1.0, 2.0]), ["layer"], "")
    judged.finish()
    assert float(tensors("tiny", project).gap.sel(layer=6)) == 2.0


def test_tensors_prefer_the_report_to_what_was_typed_by_hand(judged, project, finish):
    judged.tensor("energy", np.zeros(1), ["token"], "")
    judged.finish()
    assert list(tensors("tiny", project)) == ["energy"]
    finish()
    assert list(tensors("tiny", project)) == []


def test_tensors_that_are_not_there_say_how_to_get_them(project):
    with pytest.raises(TokenariumError, match="no tensors of tiny: run `dvc repro paper@tiny`, or `dvc pull`"):
        tensors("tiny", project)
    with pytest.raises(TokenariumError, match="no tensors of arena/toys: run `dvc repro arena@toys`"):
        tensors("arena/toys", project)
    with pytest.raises(TokenariumError, match="no paper 'tinny'; did you mean tiny"):
        tensors("tinny", project)


def test_evaluations_are_written_for_the_arena(judged, output):
    judged.evaluation("ToMe|0.6|3", torch.tensor([[1.0, 2.0]]))
    judged.evaluation("labels|1.0|3", np.array([7]))
    judged.finish()
    results = load_file(output / "evaluations" / "results.safetensors")
    assert {name: values.tolist() for name, values in results.items()} == {
        "ToMe|0.6|3": [[1.0, 2.0]],
        "labels|1.0|3": [7],
    }


def test_progress_passes_every_item_on(study):
    assert list(study.progress(iter([1, 2, 3]), "steps", total=3)) == [1, 2, 3]


# Finishing


def test_nothing_recorded_is_a_clear_error(study, output):
    study.table("budgets", pd.DataFrame({"a": [1]}), "")
    with pytest.raises(TokenariumError, match=r"tiny: nothing was recorded; call study\.metric"):
        study.finish()
    assert not output.exists()


@pytest.mark.parametrize("where", ["write_json", "write_whole", "provenance", "replace_directory"])
def test_an_error_while_writing_leaves_the_last_results(judged, output, monkeypatch, where):
    judged.finish()
    before = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    judged.metric("more", 1.0, (0.0, 2.0), how="by hand")
    judged.table("more", pd.DataFrame({"a": [1]}), "")
    working = getattr(study_module, where)

    def fail(*arguments, **options):
        raise OSError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(study_module, where, fail)
        with pytest.raises(OSError, match="the disk is gone"):
            judged.finish()
    assert {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert getattr(study_module, where) is working
    judged.finish()
    assert "more" in read(output / "metrics.json")
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]


def test_a_second_run_leaves_nothing_of_the_first(judged, project, output):
    judged.table("old", pd.DataFrame({"a": [1]}), "")
    judged.finish()
    study = open_study("tiny", root=project)
    study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
    study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
    study.finish()
    assert list((output / "tables").iterdir()) == []


def test_typed_by_hand_it_writes_to_scratch_and_under_the_runner_where_it_is_told(project, output, finish):
    study = open_study("tiny", root=project)
    study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
    study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
    assert "Written to `.tokenarium/by-hand/tiny`" in study.finish().data
    assert (output / "evidence.json").is_file()
    assert not (project / "reports").exists()
    told = finish("tiny")
    assert told == project / "reports" / "tiny"
    assert (told / "evidence.json").is_file()


def test_an_arena_by_hand_says_how_much_it_wrote(project):
    arena = open_study("arena/toys", root=project)
    arena.metric("kl", 2.0, (1.0, 3.0), how="by hand")
    assert arena.finish().data == "1 metrics at profile `cpu`, written to `.tokenarium/by-hand/arena/toys`."


def test_the_verdict_has_every_claim_with_its_numbers(judged):
    text = judged.finish().data
    assert text.startswith("## Verdict at profile `cpu`: reproduced\n")
    assert "> a model of one number" in text
    assert re.search(r"^\| C1 \| holds \| gain\.low \(1\) > 0: true \|$", text, re.MULTILINE)
    assert re.search(r"^\| C2 \| not testable \| .*no elsewhere \\\| at this scale \|$", text, re.MULTILINE)
    assert "| gate G0 | open | top1 (90) >= 80: true |" in text


def test_the_verdict_follows_the_numbers(project):
    def verdict(gain, top1, profile="cpu"):
        study = open_study("tiny", profile=profile, root=project)
        study.metric("gain", gain, (gain, gain), how="by hand")
        study.metric("top1", top1, (top1, top1), how="by hand")
        return str(study.judge().verdict)

    assert verdict(1, 90) == "reproduced"
    assert verdict(-1, 90) == "not reproduced"
    assert verdict(1, 70) == "inconclusive"
    assert verdict(1, 90, "smoke") == "inconclusive"


def test_a_claim_about_a_metric_that_was_not_recorded_is_named(study):
    study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
    with pytest.raises(TokenariumError, match="top1"):
        study.finish()


def test_evidence_says_what_was_run(project, output):
    study = open_study("tiny", overrides={"images": 3}, root=project)
    study.metric("gain", 2.0, (1.0, 3.0), how="by hand")
    study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
    study.finish()
    evidence = read(output / "evidence.json")
    assert evidence["overridden"] is True
    assert evidence["seeds"] == [3, 4]
    assert evidence["parameters"]["images"] == 3
    assert (evidence["slug"], evidence["family"], evidence["profile"]) == ("tiny", "toys", "cpu")


def test_provenance_names_revision_packages_and_machine(project, judged, output):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    judged.finish()
    made = read(output / "provenance.json")
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert made["revision"] == revision
    assert made["uncommitted_changes"] is False
    assert made["packages"]["torch"] == torch.__version__
    assert {"tokenarium", "transformers", "numpy", "papermill", "dvc"} <= set(made["packages"])
    assert made["cores"] >= 1
    assert made["peak_memory_bytes"] > 10_000_000
    assert made["seconds"] >= 0
    assert made["device"] == str(judged.device)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["finished"])
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# changed\n")
    judged.finish()
    assert read(output / "provenance.json")["uncommitted_changes"] is True


def test_results_are_the_same_files_on_a_second_run(project, output):
    def run():
        study = open_study("tiny", root=project)
        study.metric("gain", float(torch.rand(())) + 1, (1.0, 3.0), how="by hand")
        study.metric("top1", 90.0, (89.0, 91.0), how="by hand")
        study.tensor("energy", torch.rand(3), ["token"], "")
        study.finish()
        files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if name != "provenance.json"}

    assert run() == run()


# Showing


def test_claims_are_shown_as_one_row_each(study):
    rows = study.show_claims().data.splitlines()
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert rows[2].startswith("| **C1** | a < b \\| c & &lt;script>")
    assert rows[2].endswith("| `gain.low > 0` |")
    assert rows[3].startswith("| C2 |")
    assert "*not tested here: no elsewhere \\| at this scale*" in rows[3]


def test_source_is_shown_as_it_stands_in_the_file(study):
    shown = study.show_source(plot, read).data
    assert shown.startswith("```python\ndef plot(slope=1.0):\n")
    assert "\n\ndef read(path):\n" in shown
    assert shown.endswith("\n```")
