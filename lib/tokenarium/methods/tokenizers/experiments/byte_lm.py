"""Train one small language model of source code that fills in the middle (byte-probabilities, claim C2)."""

import numpy as np

from tokenarium.data import python_source
from tokenarium.methods.tokenizers import bpe, fim
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts: `weights`, the model's; `training`, its size and losses."""
    p = experiment.parameters
    texts = fim.windows([row["text"] for row in python_source.load(experiment.root, "train")], p.characters)[
        : p.windows
    ]
    form = fim.Format(bpe.train(texts, p.vocabulary))
    model = fim.build(len(form.token_bytes), p.shape, p.seed)

    def weights() -> dict[str, np.ndarray]:
        found = fim.batches(fim.examples(form, texts, p.fim_rate, p.seed), p.batch_size, p.tokens)
        losses = fim.train(model, found, p.steps, p.learning_rates)
        experiment.record("training", lambda: fim.describe(model, losses, p.report_every))
        return {name: weight.detach().numpy() for name, weight in model.named_parameters()}

    experiment.arrays("weights", weights)
