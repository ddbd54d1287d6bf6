"""The BPE replay and the mixture program at full size, and the replay against plain loops: `make bench`.

The loops count all pairs of all words anew before every merge. They run on little text, and only after both sides gave
the same counts; seconds at full size are of one thread. Nothing is written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tokenarium.measure.latency import ratio
from tokenarium.methods.tokenizers import bpe, data_mixture_inference, mixtures
from tokenarium.methods.tokenizers.bpe import Pair
from tokenarium.methods.tokenizers.experiments.mixture_grid import Setting, drawn_mixture
from tokenarium.study.parameters import load_params, project_root

NUM_BYTES = 1_000_000  # per category
MERGES = 3_000
PROGRAM_MERGES = 1_000
SMALL_BYTES, SMALL_MERGES = 20_000, 100


def counts_by_loops(merges: Sequence[Pair], word_counts: Mapping[bytes, int]) -> list[Counter[Pair]]:
    """The counts of all pairs before each merge, word by word."""
    words = [([bytes([byte]) for byte in word], times) for word, times in word_counts.items()]
    found = []
    for left, right in merges:
        counts: Counter[Pair] = Counter()
        for number, (symbols, times) in enumerate(words):
            for index in range(len(symbols) - 1):
                counts[symbols[index], symbols[index + 1]] += times
            out: list[bytes] = []
            index = 0
            while index < len(symbols):
                both = symbols[index] == left and symbols[index + 1 : index + 2] == [right]
                out.append(left + right if both else symbols[index])
                index += 2 if both else 1
            words[number] = (out, times)
        found.append(counts)
    return found


def same_counts(merges: Sequence[Pair], words: Mapping[bytes, int]) -> bool:
    """Whether replay and loops agree on every pair before every merge."""
    replayed = bpe.replay(merges, [words])
    for counts, expected in zip(replayed.counts(), counts_by_loops(merges, words), strict=True):
        if {replayed.pairs[pair]: counts[pair, 0] for pair in np.flatnonzero(counts[:, 0])} != dict(expected):
            return False
    return True


def main() -> None:
    """Check and time, and print a line for each number."""
    root = project_root(Path(__file__).parent)
    categories = load_params(root)["experiments"]["mixture-grid"]["cpu"]["sets"]["languages-10"]
    setting = Setting(root, "languages-10", categories, [], seed=0)
    truth = drawn_mixture(len(categories), seed=0, index=0)
    training = mixtures.mix(setting.halves("A"), truth, NUM_BYTES)
    merges = bpe.train(training, 256 + MERGES, bpe.digit_words()).merges
    words = [sample.words for sample in setting.samples("B", NUM_BYTES)]

    start = time.perf_counter()
    replayed = bpe.replay(merges, words)
    print_line(f"replay of {MERGES:,} merges on {len(words)} categories x 1 MB", f"{time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    found = data_mixture_inference.infer(replayed.first(PROGRAM_MERGES))
    seconds = f"{time.perf_counter() - start:.1f} s, {len(found.steps):,} inequalities, {found.rounds} rounds"
    print_line(f"program over {PROGRAM_MERGES:,} merges, {len(words)} categories", seconds)

    small, few = setting.samples("A", SMALL_BYTES)[0].words, merges[:SMALL_MERGES]
    if not same_counts(few, small):
        raise ValueError("the replay and the loops disagree")
    gain = ratio(lambda: counts_by_loops(few, small), lambda: bpe.replay(few, [small]), repeats=5, warmup=1)
    times = f"{gain.value:.0f} [{gain.low:.0f}, {gain.high:.0f}] times as long"
    print_line(f"loops, {SMALL_MERGES} merges on {SMALL_BYTES // 1000} kB", times)


def print_line(what: str, number: str) -> None:
    print(f"{what:<56} {number}")


if __name__ == "__main__":
    main()
