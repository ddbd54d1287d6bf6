"""The family's stages on a tiny model: which parts they make, and that another run makes none again."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tokenarium.methods.vlm.experiments import hiprune_cells, vlm_baselines
from tokenarium.methods.vlm.figures import accuracy_curves, show_patches
from tokenarium.methods.vlm.results import Cells, at_share
from tokenarium.study.experiments import Experiment, Results
from tokenarium.study.parameters import Parameters

FAMILY = {
    "model": "tiny",
    "data": "scenes",
    "device": "cpu",
    "questions": 5,
    "dev_questions": 5,
    "batch_size": 5,
    "budgets": [96, 8],
    "third": 96,
    "two_ninths": 8,
    "draws": 2,
}
BASELINES = FAMILY | {"seed": 0, "fastv_k": 2}
HIPRUNE = FAMILY | {"seed": 0, "object_layer": 3, "alpha": 0.1, "arm_alpha": 0.3, "alphas": [0, 0.3], "layers": [5]}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The parts of both stages, in one folder each: name -> Results."""
    made = {}
    for name, module, parameters in (("base", vlm_baselines, BASELINES), ("own", hiprune_cells, HIPRUNE)):
        folder = tmp_path_factory.mktemp(name)
        experiment = Experiment(None, name, "smoke", Parameters(parameters, name), [0], folder)
        module.run(experiment)
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        module.run(experiment)
        assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        (folder / "experiment.json").write_text(json.dumps({}))
        made[name] = Results(name, folder, parameters)
    return made


def test_the_baselines_have_a_part_for_every_method_and_budget(stages):
    methods = ["random-0", "random-1", "grid", "cls", "fastv", "visionzip", "visionzip-patches"]
    expected = {"questions", "full", "blind", "fastv-vbar_b96", "dev-questions"}
    expected |= {f"{method}_b{budget}" for method in methods for budget in (96, 8)}
    expected |= {f"dev-{method}_b{budget}" for method in methods[-2:] for budget in (96, 8)}
    assert set(stages["base"].parts) == expected


def test_hiprune_has_its_budgets_and_ablations(stages):
    expected = {"questions", "hiprune_b96", "hiprune_b8", "hiprune-preserve_b8", "hierarchy", "dev-hierarchy"}
    arms = [*hiprune_cells.ARMS, "alpha0", "alpha0.3", "layer5"]
    assert set(stages["own"].parts) == expected | {f"hiprune-{arm}_b96" for arm in arms}


def test_cells_of_two_stages_are_read_together(stages):
    cells = Cells({0: [stages["base"], stages["own"]]}, 100)
    dev = Cells({0: [stages["base"]]}, 100, prefix="dev-")
    assert len(dev.families) == len(cells.families) == 5
    assert not np.array_equal(dev.relevant, cells.relevant)
    for name in ("hiprune_b8", "hiprune-preserve_b8", "random_b8", "visionzip_b8"):
        assert cells.mean(name, "tokens", scale=1)[0].value == 8
    assert cells.mean("fastv-vbar_b96", "vbar", scale=1)[0].value == 96
    assert set(cells.gate(8)) == {"full_accuracy", "full_minus_blind", "full_minus_random_least"}
    frame = cells.frame({"full": ("full", None), "hiprune_b8": ("HiPrune", 8), "fastv-vbar_b96": ("FastV", 96)})
    assert frame.vbar.tolist() == [144, 8, 96]


def test_budgets_are_named_by_their_share():
    assert [at_share(budget, 144) for budget in (96, 48, 32, 16, 8)] == ["at67", "at33", "at22", "at11", "at6"]
    assert [at_share(budget, 576) for budget in (384, 192, 128, 64, 32)] == ["at67", "at33", "at22", "at11", "at6"]


@pytest.mark.parametrize("x", ["budget", "vbar", "gflops"])
def test_curves_have_a_line_for_each_method_and_for_both_ends(x):
    rows = [("full", None, 90.0), ("blind", None, 40.0), *((m, b, 50.0 + b) for m in ("A", "random") for b in (8, 16))]
    frame = pd.DataFrame(rows, columns=["method", "budget", "accuracy"])
    frame["vbar"], frame["gflops"] = frame.budget, frame.budget / 100
    frame["accuracy_low"], frame["accuracy_high"] = frame.accuracy - 1, frame.accuracy + 1
    figure = accuracy_curves(frame, x)
    (axes,) = figure.axes
    assert {"A", "random"} <= {line.get_label() for line in axes.lines}
    assert {text.get_text().strip() for text in axes.texts} == {"full", "blind"}
    plt.close(figure)


def test_patches_are_framed_where_they_lie():
    figure, axes = plt.subplots()
    show_patches(axes, np.zeros((96, 96, 3), dtype=np.uint8), {"kept": ([0, 13], "red")}, "two patches")
    assert {(patch.get_x(), patch.get_y()) for patch in axes.patches} == {(0, 0), (1, 1)}
    plt.close(figure)
