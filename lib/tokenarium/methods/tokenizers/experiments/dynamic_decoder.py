"""A merged context, the continuation in the model's own tokens: what each arm costs in bits.

Parts: "prompts" (bytes of each continuation, tokens of each context by budget, for merges and for the stored ones),
"examples" (one context at each budget), "bits-<seed>" (for each arm and budget "<arm>-<budget>": bits of each
continuation), "look" (the first merged contexts as the model is given them).
"""

from __future__ import annotations

import numpy as np

from tokenarium.methods.tokenizers import dynamic_lab
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.models import lm_tiny
from tokenarium.study.experiments import Experiment

NONE = "0"  # the budget of no merges


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    bases = {seed: dynamic_lab.Base(root, seed, p.model, p.hypernet, dynamic_lab.device()) for seed in p.decoder_seeds}
    first = bases[p.decoder_seeds[0]]  # all seeds have one tokenizer
    is_valid = first.boundary(p.boundary)
    cut = dynamic_lab.prompts(root, p.prompts.to_dict(), first.tokens, p.context, p.follow)
    contexts, follow = [context for context, _ in cut], [tokens for _, tokens in cut]
    merged = [dynamic_lab.merged_to(context, p.budgets.to_dict(), is_valid) for context in contexts]
    by_budget = {name: [each[name] for each in merged] for name in p.budgets.to_dict()}
    lessons = lm_tiny.documents(root, p.static_bytes.to_dict())
    passages = [first.tokens(text)[: p.context] for text in lessons]
    ranks = {pair: rank for rank, pair in enumerate(dt.learnt_merges(passages, p.static_merges, is_valid))}
    static = [dt.static_bpe(context, ranks) for context in contexts]

    def lengths() -> dict:
        bytes_of = [len("".join(tokens)) for tokens in follow]  # a byte is a character of the byte alphabet
        return {
            "bytes": bytes_of,
            "tokens": {NONE: [len(each) for each in contexts]}
            | {name: list(map(len, each)) for name, each in by_budget.items()},
            "static": list(map(len, static)),
        }

    experiment.record("prompts", lengths)
    experiment.record("examples", lambda: {NONE: contexts[0]} | {name: each[0] for name, each in by_budget.items()})
    last = list(by_budget.values())[-1]
    experiment.arrays("look", lambda: _look(first, last[: p.look], p.cache))
    for seed, base in experiment.progress(bases.items(), "seeds"):
        for arm, (rows, texts) in _arms(seed, contexts, by_budget, static, is_valid, p.controls).items():
            kept = base.rows(rows, p.cache)
            experiment.arrays(
                f"bits-{seed}-{arm}",
                lambda base=base, kept=kept, texts=texts: {
                    name: dynamic_lab.continuation_bits(base, each, kept, follow, p.batch_size)
                    for name, each in texts.items()
                },
            )


def _look(base: dynamic_lab.Base, contexts: dt.Batch, size: int) -> dict[str, np.ndarray]:
    inputs, mask = dt.embed(contexts, base.rows("hypernet", size), base.start)
    return {"inputs_embeds": inputs.cpu().numpy(), "attention_mask": mask.cpu().numpy()}


def _arms(
    seed: int,
    contexts: dt.Batch,
    by_budget: dict[str, dt.Batch],
    static: dt.Batch,
    is_valid: dt.IsValid,
    controls: list[str],
) -> dict[str, tuple[str, dict[str, dt.Batch]]]:
    """Arm -> its rows and the contexts that it sees, by budget."""
    some = {name: by_budget[name] for name in controls}

    def control(number: int, shorten: object) -> dict[str, dt.Batch]:
        return {
            name: [
                shorten([context], len(goal), np.random.default_rng((seed, number, place)))[0]
                for place, (context, goal) in enumerate(zip(contexts, each, strict=True))
            ]
            for name, each in some.items()
        }

    return {
        "original": ("original", {NONE: contexts}),
        "hypernet": ("hypernet", {NONE: contexts, **by_budget}),
        "FVT": ("FVT", by_budget),
        "mixed": ("mixed", some),
        "random": ("hypernet", control(1, lambda batch, goal, rng: dt.random_merges(batch, goal, is_valid, rng))),
        "drop": ("original", control(2, dt.dropped)),
        "static": ("hypernet", {"static": static}),
    }
