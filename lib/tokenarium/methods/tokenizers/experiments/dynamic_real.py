"""A real small model with merged contexts and FVT rows alone, there being no hypernetwork for it.

Parts: "prompts" (bytes of each continuation, tokens of each context by budget, bytes of the key-value cache for a
token), "bits-<arm>" (bits of each continuation by budget).
"""

from __future__ import annotations

import numpy as np

from tokenarium.methods.tokenizers import dynamic_lab
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.study.experiments import Experiment

FLOAT = 4  # bytes


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    base = dynamic_lab.Base(root, 0, p.model, device=dynamic_lab.device())
    is_valid = base.boundary(p.boundary)
    cut = dynamic_lab.prompts(root, p.prompts.to_dict(), base.tokens, p.context, p.follow)
    contexts, follow = [context for context, _ in cut], [tokens for _, tokens in cut]
    merged = [dynamic_lab.merged_to(context, p.budgets.to_dict(), is_valid) for context in contexts]
    by_budget = {name: [each[name] for each in merged] for name in p.budgets.to_dict()}
    heads = base.config.num_key_value_heads
    size = base.config.hidden_size // base.config.num_attention_heads
    experiment.record(
        "prompts",
        lambda: {
            "bytes": [len("".join(tokens)) for tokens in follow],
            "tokens": {"0": [len(each) for each in contexts]}
            | {name: list(map(len, each)) for name, each in by_budget.items()},
            "cache_bytes": 2 * FLOAT * base.config.num_hidden_layers * heads * size,
        },
    )
    dropped = {
        name: [
            dt.dropped([context], len(goal), np.random.default_rng(place))[0]
            for place, (context, goal) in enumerate(zip(contexts, by_budget[name], strict=True))
        ]
        for name in p.dropped
    }
    arms = {"original": ("original", {"0": contexts}), "FVT": ("FVT", by_budget), "drop": ("original", dropped)}
    for arm, (kind, texts) in experiment.progress(arms.items(), "arms"):
        rows = base.rows(kind, p.cache)
        for name, each in texts.items():
            experiment.arrays(
                f"bits-{arm}-{name}",
                lambda rows=rows, each=each: {
                    "bits": dynamic_lab.continuation_bits(base, each, rows, follow, p.batch_size)
                },
            )
