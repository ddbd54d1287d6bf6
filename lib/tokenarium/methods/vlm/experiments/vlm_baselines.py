"""What every paper of the family is compared with, once per model seed (H11): a line per question for each cell.

Parts: "questions"; "full", "blind"; "random-<draw>_b<budget>", "grid_b...", "cls_b...", "fastv_b..." (nominal),
"fastv-vbar_b..." (the mean over the layers is the budget, where that can be), "visionzip_b..." with CLS and
"visionzip-patches_b..." without. The same for VisionZip, before "dev-", on questions of another list, to choose between
the two.
"""

from __future__ import annotations

from tokenarium.methods.vlm.baselines import Blind, ClsTopK, Grid, Random
from tokenarium.methods.vlm.fastv import FastV, fastv_at_vbar
from tokenarium.methods.vlm.harness.cells import cell_name, has_seed, keep_cells, opener
from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.substrate import DEV
from tokenarium.methods.vlm.visionzip import VisionZip
from tokenarium.study.experiments import Experiment


def reduced(budget: int, draws: int, k: int) -> dict[str, Method]:
    """All baselines at one budget, by part name."""
    cells: dict[str, Method] = {cell_name(f"random-{d}", budget): Random(budget=budget, seed=d) for d in range(draws)}
    return (
        cells
        | {
            cell_name("grid", budget): Grid(budget=budget),
            cell_name("cls", budget): ClsTopK(budget=budget),
            cell_name("fastv", budget): FastV(keep=budget, k=k),
        }
        | zipped(budget)
    )


def zipped(budget: int) -> dict[str, Method]:
    """VisionZip with CLS and without."""
    return {
        cell_name("visionzip", budget): VisionZip(budget=budget),
        cell_name("visionzip-patches", budget): VisionZip(budget=budget, include_cls=False),
    }


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    if not has_seed(experiment):
        return
    substrate = opener(experiment)
    keep_cells(experiment, {"full": Method(), "blind": Blind()}, substrate)
    for budget in p.budgets:
        keep_cells(experiment, reduced(budget, p.draws, p.fastv_k), substrate)
    shape = substrate().shape
    at_vbar = {cell_name("fastv-vbar", b): fastv_at_vbar(b, shape.num_patches, shape.num_layers) for b in p.budgets}
    keep_cells(experiment, {name: method for name, method in at_vbar.items() if method}, substrate)
    dev = opener(experiment, stream=DEV, questions=p.dev_questions)
    for budget in p.budgets:
        keep_cells(experiment, zipped(budget), dev, prefix="dev-")
