"""What merging does to lengths alone: merges against tokens, and how even languages become. No model is run.

Passages are those of the classifier, but whole. Parts: "curves" (mean tokens of a passage after each merge of a batch,
by language), "tokens" (tokens of each passage by language and percent of the greatest reduction), "frequencies" (pair
frequencies of the first batch, the most frequent ones), "batch" (its first passages before and after).
"""

from __future__ import annotations

import numpy as np

from tokenarium.methods.tokenizers import dynamic_lab
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    base = dynamic_lab.Base(root, 0, p.model)
    is_valid = base.boundary(p.boundary)
    names = dynamic_lab.sections(root, p.languages, p.sections)
    texts, _ = dynamic_lab.help_passages(root, p.languages, names, "test", p.characters, p.test_passages)
    tokens = {language: list(map(base.tokens, each)) for language, each in texts.items()}
    batches = {
        language: [each[first : first + p.batch_size] for first in range(0, len(each), p.batch_size)]
        for language, each in tokens.items()
    }
    curves = experiment.arrays(
        "curves", lambda: {language: dt.mean_lengths(each, is_valid) for language, each in batches.items()}
    )

    def lengths() -> dict[str, np.ndarray]:
        found = {}
        for language, each in experiment.progress(batches.items(), "languages"):
            for share in p.levels:
                merges = dt.merges_for(curves[language], share)
                made = [tokens for batch in each for tokens in dt.dynamic_bpe(batch, merges, is_valid)]
                found[f"{language}-{round(100 * share)}"] = np.array(list(map(len, made)), dtype=np.int64)
        return found

    experiment.arrays("tokens", lengths)
    first = batches[p.languages[0]][0]
    experiment.record("frequencies", lambda: _most(dt.Merger(first, is_valid).frequencies, p.shown_pairs))
    experiment.record(
        "batch",
        lambda: {str(merges): dt.dynamic_bpe(first, merges, is_valid)[: p.shown_passages] for merges in p.shown_merges},
    )


def _most(frequencies: dict[dt.Pair, int], count: int) -> list[list]:
    ranked = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))
    return [[left, right, number] for (left, right), number in ranked[:count]]
