"""HiPrune's own cells of one model seed, and where the encoder's layers look.

Parts: "hiprune_b<budget>" (alpha and layer as in the parameters); at budget `third` "hiprune-alpha<alpha>_b..." and,
with `arm_alpha`, "hiprune-layer<l>_b..." for other object layers and "hiprune-<arm>_b..." for ablations; with ids kept
"hiprune-preserve_b..." at `two_ninths`. "hierarchy" and "dev-hierarchy", on the questions and on another list: iou and
distance (images, layers) float32 of the patches that get most attention in each layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenarium.methods.vlm.harness.cells import cell_name, has_seed, keep_cells, opener
from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.substrate import DEV, Substrate
from tokenarium.methods.vlm.hiprune import HiPrune, dispersion, overlap, top_patches
from tokenarium.study.experiments import Experiment

ARMS = {
    "no-buffers": {"tokens": "no-buffers"},
    "anchors": {"tokens": "anchors"},
    "registers": {"tokens": "registers"},
    "registers-object": {"registers_from": "object"},
    "anchors-deep": {"anchors_from": "deep"},
}


def run(experiment: Experiment) -> None:
    if not has_seed(experiment):
        return
    p, substrate = experiment.parameters, opener(experiment)
    main = {"object_layer": p.object_layer, "alpha": p.alpha}
    arm = main | {"alpha": p.arm_alpha, "budget": p.third}
    cells: dict[str, Method] = {cell_name("hiprune", b): HiPrune(budget=b, **main) for b in p.budgets}
    for alpha in p.alphas:
        cells[cell_name(f"hiprune-alpha{alpha:g}", p.third)] = HiPrune(**main | {"alpha": alpha, "budget": p.third})
    for layer in p.layers:
        cells[cell_name(f"hiprune-layer{layer}", p.third)] = HiPrune(**arm | {"object_layer": layer})
    for name, change in ARMS.items():
        cells[cell_name(f"hiprune-{name}", p.third)] = HiPrune(**arm | change)
    cells[cell_name("hiprune-preserve", p.two_ninths)] = HiPrune(budget=p.two_ninths, positions="preserve", **main)
    keep_cells(experiment, cells, substrate)
    dev = opener(experiment, stream=DEV, questions=p.dev_questions)
    for name, which in (("hierarchy", substrate), ("dev-hierarchy", dev)):
        if which().objects is not None:
            experiment.arrays(name, lambda which=which: hierarchy(which()))


def hierarchy(substrate: Substrate) -> dict[str, NDArray[np.float32]]:
    """IoU of the tenth of the patches that get most attention with the objects, and how far they lie from each other.

    Both (images, layers) float32, for the images that hold an object.
    """
    iou, distance = [], []
    for view in substrate.views(substrate.questions):
        objects = substrate.objects[view.index]
        if objects.any():
            tops = [top_patches(view.received(block)) for block in range(view.num_blocks)]
            mask = tops[0].new_tensor(objects).bool()
            iou.append([overlap(top, mask) for top in tops])
            distance.append([dispersion(top, view.grid[1]) for top in tops])
    return {"iou": np.array(iou, dtype=np.float32), "distance": np.array(distance, dtype=np.float32)}
