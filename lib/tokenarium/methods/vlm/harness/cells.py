"""Cells of the family's tables: every (method, setting) is computed once for a model seed, and kept as a part (H11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from tokenarium.methods.vlm.harness.evaluation import evaluate
from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.substrate import LOCAL, TINY, Substrate, open_substrate
from tokenarium.study.experiments import Experiment

QUESTIONS = "questions"  # the part with what is asked


def cell_name(method: str, budget: int | None = None) -> str:
    """The part of a method at a nominal budget: `hiprune_b48`; draws of one method are `random-0`, `random-1` ..."""
    return method if budget is None else f"{method}_b{budget}"


def opener(experiment: Experiment, **options: object) -> Callable[[], Substrate]:
    """A function that opens the substrate of the experiment's `seed` when it is first needed, and once.

    options: for `open_substrate`, such as stream or questions.
    """
    p = experiment.parameters
    return cache(lambda: open_substrate(experiment.root, p, p.seed, device=p.device, **options))


def has_seed(experiment: Experiment) -> bool:
    """Whether there is a model of the experiment's `seed`: a checkpoint of the hub is seed 0 alone."""
    return experiment.parameters.model in (LOCAL, TINY) or experiment.parameters.seed == 0


def keep_cells(
    experiment: Experiment,
    methods: Mapping[str, Method | Callable[[Substrate], Method]],
    substrate: Callable[[], Substrate] | None = None,
    prefix: str = "",
) -> None:
    """Make the part `prefix + name` for every method, and the part "questions" once.

    methods: part name -> method, or a function of the substrate that makes it. A part that is there is not made again.
    The experiment's parameters name model, data, questions, batch_size, device (the family's) and seed (its own).
    """
    if not has_seed(experiment):
        return
    substrate = substrate or opener(experiment)
    experiment.arrays(f"{prefix}{QUESTIONS}", lambda: describe(substrate()))
    for name, method in experiment.progress(methods.items(), "cells"):
        experiment.arrays(f"{prefix}{name}", lambda method=method: _cell(substrate(), method, experiment))


def describe(substrate: Substrate) -> dict[str, np.ndarray]:
    """What is asked: family (Q, characters) uint8 codes of its name, image (Q,) int64, relevant (Q, N) bool."""
    names = [question.family.encode() for question in substrate.questions]
    codes = np.zeros((len(names), max(map(len, names))), dtype=np.uint8)
    for row, name in zip(codes, names, strict=True):
        row[: len(name)] = np.frombuffer(name, dtype=np.uint8)
    images = np.array([question.image for question in substrate.questions])
    return {"family": codes, "image": images, "relevant": substrate.relevant}


def _cell(
    substrate: Substrate, method: Method | Callable[[Substrate], Method], experiment: Experiment
) -> dict[str, np.ndarray]:
    made = method if isinstance(method, Method) else method(substrate)
    return evaluate(substrate, made, experiment.parameters.batch_size)
