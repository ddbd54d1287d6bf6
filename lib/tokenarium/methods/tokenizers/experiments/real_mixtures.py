"""Real tokenizers: the mixture that the merges of GPT-2, GPT-3.5, GPT-4o, Llama 3 and Claude speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenarium.data.tokenizers import load_tokenizer
from tokenarium.methods.tokenizers import bpe, mixtures
from tokenarium.methods.tokenizers.experiments.mixture_grid import chunks
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """One record for each tokenizer, seed and place in the merge list: the share of every category."""
    p = experiment.parameters
    categories = [category for group in p.groups.values() for category in group]
    places = [(name, 0) for name in p.tokenizers] + [(name, start) for name, start in p.late.items()]
    for (name, start), seed in experiment.progress(list(product(places, experiment.seeds)), "tokenizers x seeds"):

        def inferred(name=name, start=start, seed=seed):
            texts = [sampled(experiment.root, category, seed, p.sample_bytes) for category in categories]
            return {"categories": categories, **estimate(experiment.root, name, texts, start, p.steps)}

        experiment.record(f"{name}-{start}-{seed}", inferred)
    if p.shared:
        experiment.record("shared-merges", lambda: shared_merges(experiment.root, *p.shared))


def sampled(root: Path, category: str, seed: int, num_bytes: int) -> list[str]:
    """A random sample of a category's chunks; all of it where it is too short."""
    half_a, half_b = mixtures.halves(chunks(root, category), seed)
    return mixtures.take([*half_a, *half_b], num_bytes)


@cache
def loaded(root: Path, name: str) -> tuple[Tokenizer, list[bpe.Pair], int]:
    """A tokenizer, its merges (one for each token), and how many merges its file lists."""
    tokenizer = load_tokenizer(name, root)
    listed = bpe.merges_of(tokenizer)
    redundant = len(listed) > len({left + right for left, right in listed})
    return tokenizer, bpe.clean_merges(listed) if redundant else listed, len(listed)


def shared_merges(root: Path, one: str, other: str) -> dict[str, Any]:
    """How many merges two tokenizers have in common at the head of their lists."""
    (_, first, _), (_, second, listed) = loaded(root, one), loaded(root, other)
    same = next((step for step, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    return {"tokenizers": [one, other], "merges": [len(first), len(second)], "listed": listed, "same": same}


def estimate(root: Path, name: str, texts: Sequence[Sequence[str]], start: int, steps: int) -> Mapping[str, Any]:
    """Byte shares by the program over `steps` merges of a tokenizer, from merge `start` on."""
    tokenizer, merges, listed = loaded(root, name)
    samples = [mixtures.Sample.of(each, tokenizer.pre_tokenizer, tokenizer.normalizer) for each in texts]
    replay = bpe.replay(merges[: start + steps], [sample.words for sample in samples])
    found = mixtures.attack(replay, samples, steps, start=start)
    return {
        "shares": found.shares.tolist(),
        "sample_bytes": [sample.num_bytes for sample in samples],
        "merges": len(merges),
        "merges_listed": listed,
        "never_seen": int((replay.merge_pair[start:] < 0).sum()),
        "objective": found.objective,
        "constraints": found.constraints,
        "rounds": found.rounds,
    }
