"""Exact probabilities of every byte of short passages, by two models with different tokenizers (claim C3)."""

import numpy as np

from tokenarium.methods.tokenizers import byte_harness
from tokenarium.methods.tokenizers import byte_probabilities as bp
from tokenarium.methods.tokenizers.byte_harness import Passage
from tokenarium.methods.tokenizers.tree_logits import LanguageModel
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts `<domain>-<model number>`: logp (passages, bytes) float64, and high, where unchecked tokens count too."""
    p = experiment.parameters
    texts = {domain: byte_harness.documents(experiment.root, domain) for domain in byte_harness.DOMAINS}
    for number, name in enumerate(p.models):
        model = byte_harness.open_model(
            name, experiment.root, [each for group in texts.values() for each in group[:20]]
        )
        for domain, group in texts.items():
            found = byte_harness.passages(group, p.passages, p.given, p.scored, experiment.seeds[0])

            def score(model: LanguageModel = model, found: list[Passage] = found) -> dict[str, np.ndarray]:
                pairs = [byte_logp(model, each, p.floor) for each in experiment.progress(found, "passages")]
                return {"logp": np.stack([low for low, _ in pairs]), "high": np.stack([high for _, high in pairs])}

            experiment.arrays(f"{domain}-{number}", score)


def byte_logp(model: LanguageModel, passage: Passage, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """log P of each byte after the given ones, as a difference of marginals, and with the unchecked tokens counted."""
    lefts = bp.left_sides(model.codec, passage.data, passage.start)
    logits = model.logits(lefts.head)
    context = (model.start,)
    logits.prefetch((*context, *ids) for ids in lefts.contexts)
    low, high = (
        np.diff(bp.prefix_log_marginals(model.codec, lefts, logits, context, floor, unchecked))
        for unchecked in (False, True)
    )
    return low, high
