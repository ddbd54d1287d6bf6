"""Exact masses of phantom edits with the target in canonical and other segmentations."""

from __future__ import annotations

import numpy as np

from tokenarium.methods.tokenizers import betrayal_lab as lab
from tokenarium.methods.tokenizers.tokenizer_betrayal import artifact, ends_a_word
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts "targets" and "<instruction>-<number>" for each target: masses (forms, 3), segmentations (forms, S)."""
    p = experiment.parameters
    speaker = lab.open_speaker(p.model, experiment.root, p.device)
    ends = ends_a_word(speaker.token_bytes)
    targets = lab.targets(speaker, experiment.root, p.words)
    experiment.record("targets", lambda: [_described(target, speaker) for target in targets])
    for number, target in enumerate(experiment.progress(targets, "words")):
        for instruction in lab.INSTRUCTIONS:
            experiment.arrays(
                f"{instruction}-{number}", lambda t=target, i=instruction: _masses(speaker, t, i, ends, p.floor)
            )


def _masses(speaker, target, instruction, ends, floor):
    made = [
        lab.injected_masses(speaker, target, instruction, form, ends, floor)
        for form in lab.forms(target, speaker).values()
    ]
    return {
        "masses": np.array([masses for masses, _, _ in made]),
        "seg_mass": np.array([each for _, each, _ in made]),
        "missed": np.array([missed for _, _, missed in made]),
    }


def _described(target, speaker):
    spelled = [each or b"" for each in speaker.token_bytes]
    forms = lab.forms(target, speaker)
    return {
        "word": target.word,
        "sentence": target.sentence,
        "segmentations": [[spelled[index].decode() for index in each] for each in target.segmentations],
        "ids": [list(each) for each in target.segmentations],
        "forms": [target.segmentations.index(form) for form in forms.values()],
        # what an output in each segmentation would be called, by form of the input
        "artifacts": [
            [None if each == form else artifact(form, each, spelled) for each in target.segmentations]
            for form in forms.values()
        ],
    }
