"""The same training text, other tokenizers: SuperBPE, whose merges bridge blanks, and Unigram at some sizes (E1, E5).

Parts: `super-<language>-<seed>` holds for each evaluation text the token counts (transitions,) of SuperBPE with `focus`
tokens, the transition a share of them; the first transition alone on the later draws of text. `unigram-<language>` the
same (sizes,) for Unigram on the first draw.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import tokenizer_inequities as inequities
from tokenarium.methods.tokenizers.inequities import sources
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    texts = sources.open_evaluations(experiment.root, p)
    premiums = sources.byte_premiums(texts[sources.TEST])

    def training(language: str, seed: int) -> list[str]:
        size = sources.training_bytes(sources.SCALED, premiums[language], p.train_bytes)
        return sources.open_training(experiment.root, language, size, seed)

    def counts(tokenizers: Sequence[Tokenizer], language: str) -> dict[str, NDArray]:
        return {
            text: np.array([inequities.corpus_token_count(each, found[language]) for each in tokenizers])
            for text, found in texts.items()
        }

    def bridged(language: str, seed: int) -> dict[str, NDArray]:
        shares = p.transitions if seed == experiment.seeds[0] else p.transitions[:1]
        text = training(language, seed)
        trained = [bpe.train_super(text, p.focus, round(share * p.focus), p.most_words) for share in shares]
        return counts([each.tokenizer() for each in trained], language)

    def unigram(language: str) -> dict[str, NDArray]:
        text = training(language, experiment.seeds[0])
        return counts([inequities.train_unigram(text, size) for size in p.unigram_sizes], language)

    jobs = [(language, seed) for seed in experiment.seeds for language in p.bridged]
    for job in experiment.progress(jobs, "SuperBPE"):
        experiment.arrays(f"super-{job[0]}-{job[1]}", lambda job=job: bridged(*job))
    for language in experiment.progress(list(premiums), "Unigram"):
        experiment.arrays(f"unigram-{language}", lambda language=language: unigram(language))
