"""The whole road at profile smoke: data, models, every notebook through papermill, verdicts, arena, report."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from tokenarium.run import pipeline
from tokenarium.study.parameters import load_params, project_root

ROOT = project_root(Path(__file__).parent)
PAPERS = sorted(load_params(ROOT)["papers"])
ARENAS = sorted(load_params(ROOT)["arenas"])
# Every study with what it needs, and no data set or model that none of them reads yet.
TARGETS = [*(f"verdict@{slug}" for slug in PAPERS), *(f"arena@{family}" for family in ARENAS), "report"]

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def tree():
    tree = pipeline.make_copy(ROOT, "smoke")
    pipeline.dvc(tree, "repro", *TARGETS)
    return tree


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("slug", [*PAPERS, *(f"arena/{family}" for family in ARENAS)])
def test_every_notebook_runs_at_smoke_and_says_so(tree, slug):
    report = tree / "reports" / slug
    evidence = read(report / "evidence.json")
    assert evidence["profile"] == "smoke"
    assert evidence["metrics"]
    assert {path.suffix for path in (report / "figures").iterdir()} == {".svg", ".png"}
    cells = read(report / "notebook.ipynb")["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("slug", PAPERS)
def test_a_smoke_run_is_never_evidence(tree, slug):
    judgement = read(tree / "verdicts" / f"{slug}.json")["judgement"]
    assert judgement["verdict"] == "inconclusive"
    assert "smoke" in judgement["reason"]


def test_the_committed_profile_and_results_stay_as_they_are(tree):
    assert yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["profile"] == "cpu"
    for slug in PAPERS:
        assert read(ROOT / "reports" / slug / "evidence.json")["profile"] == "cpu"


def test_a_second_run_finds_nothing_to_do(tree):
    done = pipeline.dvc(tree, "repro", *TARGETS, capture=True)
    assert "Running stage" not in done


@pytest.mark.parametrize("slug", PAPERS)
def test_a_notebook_repeats_its_metrics_exactly(tree, slug):
    metrics = tree / "reports" / slug / "metrics.json"
    before = metrics.read_bytes()
    subprocess.run([sys.executable, "-m", "tokenarium.run.cli", "study", slug], cwd=tree, check=True)
    assert metrics.read_bytes() == before


def test_the_tutorial_runs_on_smoke_results(tree):
    notebook = nbformat.read(tree / "notebooks" / "inspect.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tree / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/html"} <= kinds
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    (explorer,) = [each["state"] for each in states if each["model_module"] == "anywidget"]
    assert explorer["state"]["tensor"] == "energy"
    assert explorer["state"]["roles"] == {"image": "facets", "token": "tokens"}


def test_committed_results_belong_to_the_committed_code():
    pipeline.check(ROOT)
