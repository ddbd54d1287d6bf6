"""Bits per byte of the base model with its own tokenizer, and with the donor's under every plain initialisation.

Parts: text -> bits of every token; "original" in the base's own tokens, all others in the donor's.
"""

from __future__ import annotations

from tokenarium.methods.tokenizers import swaplab
from tokenarium.methods.tokenizers.omp_setting import Make, Setting, open_setting
from tokenarium.study.experiments import Experiment


def arms(setting: Setting, neighbours: int, seeds: list[int]) -> dict[str, Make]:
    """Every plain way to make the new rows, by name."""
    count = len(setting.new_ids)
    plain: dict[str, Make] = {
        "zero": lambda space: swaplab.zero(space.old, count),
        "mean": lambda space: swaplab.mean(space.old, count),
        "pieces": lambda space: swaplab.piece_mean(space.old, setting.pieces),
        "neighbours": lambda space: swaplab.nearest(space.targets, space.points, space.rows, neighbours),
        "linear": lambda space: swaplab.least_squares(space.targets, space.points, space.rows),
        "procrustes": lambda space: swaplab.pca_procrustes(space.targets, space.points, space.rows),
    }
    normal = {f"normal-{seed}": lambda space, seed=seed: swaplab.normal(space.old, count, seed) for seed in seeds}
    return plain | normal


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    setting = open_setting(experiment.root, p)
    experiment.arrays("original", setting.original_bits)
    for name, make in experiment.progress(arms(setting, p.neighbours, experiment.seeds).items(), "arms"):
        experiment.arrays(name, lambda make=make: setting.bits(setting.model(make)))
