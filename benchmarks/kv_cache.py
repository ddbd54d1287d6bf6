"""Decoding with part of the cache against transformers' own whole cache, in one run: `make bench`.

A model of SmolLM2's shape (random weights cost the same) reads 1024 tokens and writes 128. Every step is timed with
each cache in turn, so that whatever else the machine does falls on all of them alike. A ratio below 1 is faster than
the whole cache. Memory is that of keys and values at the end.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.methods.context import kvlab
from tokenarium.methods.context.keyformer import Keyformer

CONTEXT, STEPS, SHARE = 1024, 128, 0.25
WHOLE = "whole cache"
POLICIES = {
    "StreamingLLM": kvlab.StreamingLLM(),
    "H2O": kvlab.H2O(),
    "TOVA": kvlab.TOVA(),
    "SnapKV": kvlab.SnapKV(),
    "key norm": kvlab.KNorm(),
    "Keyformer": Keyformer(),
}


@dataclass(frozen=True)
class Contest:
    """ratio: of the seconds per step to those of the whole cache; memory: of its bytes at the end."""

    ratio: Interval
    memory: float
    milliseconds: float


def make_model(layers: int, width: int = 576, heads: int = 9) -> LlamaForCausalLM:
    """SmolLM2's shape at 30 layers; a third as many key heads."""
    config = LlamaConfig(
        vocab_size=1024,  # the output layer is no part of the question
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        max_position_embeddings=8192,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kvlab.use(LlamaForCausalLM(config).eval())


def nbytes(cache: Cache) -> int:
    """Bytes of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.inference_mode()
def timed(layers: int, context: int, steps: int, share: float) -> dict[str, Contest]:
    """Every policy, and the whole cache against itself: what noise alone does."""
    model = make_model(layers)
    ids = torch.randint(1024, (1, context + steps), generator=torch.Generator().manual_seed(0))
    caches: dict[str, Cache] = {WHOLE: DynamicCache(config=model.config)}
    caches |= {name: kvlab.EvictingCache(model, policy, share) for name, policy in POLICIES.items()}
    caches["again"] = DynamicCache(config=model.config)
    for cache in caches.values():
        model(ids[:, :context], past_key_values=cache, logits_to_keep=1)
    seconds = {name: [] for name in caches}
    for step in range(context, context + steps):
        names = list(caches) if step % 2 else list(caches)[::-1]
        for name in names:
            start = time.perf_counter()
            model(ids[:, step : step + 1], past_key_values=caches[name])
            seconds[name].append(time.perf_counter() - start)
    own = np.array(seconds.pop(WHOLE))
    return {
        name: Contest(
            bootstrap(np.array(each) / own, lambda s: np.median(s, axis=1), over="steps"),
            nbytes(caches[name]) / nbytes(caches[WHOLE]),
            1e3 * float(np.median(each)),
        )
        for name, each in seconds.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Time all, and print a line for each policy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_cache")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens read before the first step")
    parser.add_argument("--steps", type=int, default=STEPS, help="tokens written")
    asked = parser.parse_args(arguments)
    console = Console()
    console.print(
        f"{asked.steps} tokens after {asked.context}, {SHARE:.0%} kept, {asked.layers} layers, "
        f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    for name, contest in timed(asked.layers, asked.context, asked.steps, SHARE).items():
        label = "whole cache again" if name == "again" else name
        console.print(
            f"{label:18} {contest.ratio.value:.2f} x [{contest.ratio.low:.2f}, {contest.ratio.high:.2f}] of the time, "
            f"{contest.memory:.2f} of the memory, {contest.milliseconds:.1f} ms a step",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
