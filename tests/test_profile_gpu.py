"""Profile gpu from end to end without a GPU or the hub: its notebooks read a stand-in hub by the ordinary calls."""

import json
import shutil
from pathlib import Path

import hub_standin
import pytest
import yaml
from safetensors.numpy import load_file

from tokenarium.run.execute import run_study
from tokenarium.study.parameters import load_params, project_root

ROOT = project_root(Path(__file__).parent)
PARAMS = load_params(ROOT)
PAPERS = sorted(slug for slug, entry in PARAMS["papers"].items() if entry["family"] == "vision")
TINY = {"images": 12, "batch_size": 5, "budgets": [0.6, 0.5], "resamples": 100}

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The project at profile gpu: its own checkpoints and data sets, but few images and the sizes of profile smoke."""
    home = tmp_path_factory.mktemp("hub")
    root = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["profile"] = "gpu"
    params["families"]["vision"]["gpu"] |= TINY
    for slug in PAPERS:
        params["papers"][slug]["gpu"] = params["papers"][slug]["smoke"]
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(ROOT / "notebooks" / "vision", root / "notebooks" / "vision")
    hub_standin.save_minilm(root / "models" / "minilm-l6")
    hub_standin.save_paragraphs(root / "data" / "debian-reference" / "paragraphs.jsonl", 24)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub_standin.make_hub(home).items():
            patch.setenv(name, value)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # the CPU, also where there is a GPU
        yield root


@pytest.mark.parametrize("slug", PAPERS)
def test_a_notebook_runs_at_profile_gpu_on_the_checkpoint_and_the_data_that_it_names(tree, slug):
    report = run_study(tree, slug)
    evidence = json.loads((report / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["profile"] == "gpu"
    parameters = evidence["parameters"]
    assert (parameters["model"], parameters["data"]) == (hub_standin.DEIT, hub_standin.IMAGENET)
    assert evidence["metrics"]
    assert all(cell["execution_count"] for cell in code_cells(report / "notebook.ipynb"))
    results = load_file(tree / "evaluations" / "vision" / slug / "results.safetensors")
    assert results["labels|1.0|0"].tolist() == [index % hub_standin.CLASSES for index in range(TINY["images"])]
    assert results["full|1.0|0"].shape == (TINY["images"], hub_standin.CLASSES)


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
