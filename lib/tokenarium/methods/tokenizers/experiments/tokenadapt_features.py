"""Encodes once all strings that new rows are made from: the old vocabulary's, and those of each target's new tokens."""

import numpy as np

from tokenarium.methods.tokenizers import tokenadapt_lab as lab
from tokenarium.study.experiments import Experiment

PART = 4096  # strings


def run(experiment: Experiment) -> None:
    p, root = experiment.parameters, experiment.root
    made = lab.Made(root, experiment.profile)
    old = made.tokenizer(p.old)
    strings = {"old": lab.decoded(old)}
    for name, source in p.targets.items():
        strings[name] = lab.Target.of(old, made.tokenizer(source), list(made.texts.values())).strings
    encoder = lab.Encoder(p.encoder, root)
    together = [string for each in strings.values() for string in each]
    distinct, places = encoder.distinct(together)
    ends = np.cumsum([len(each) for each in strings.values()])[:-1]
    experiment.arrays("places", lambda: dict(zip(strings, np.split(places, ends), strict=True)))
    for start in experiment.progress(range(0, len(distinct), PART), "features"):
        part = distinct[start : start + PART]
        experiment.arrays(f"phi-{start // PART:03}", lambda part=part: {"vectors": encoder(part)})
