"""What decides TokenAdapt's claims: bits by block of text, ratios between arms, and the repository's own table.

An arm's score is bits[set, block]: its surprise at each block of `BLOCK` bytes of each evaluation set. A token's bits
are spread evenly over its bytes, so that arms and tokenizers with other cuts can be compared block by block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import LEVEL, RESAMPLES, Interval
from tokenarium.methods.tokenizers import swaplab

BLOCK = 256
ORIGINAL = "original"


class Scores:
    """Every arm's bits, by token and by block of text, out of the experiments' parts.

    parts: "<target>.text" holds ids and bytes of each token, "<text>.ids" and "<text>.bytes"; "<target>.<arm>" holds
    bits by text. The model with its own tokenizer is the target "original", without arms.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, NDArray]], texts: Sequence[str], num_blocks: int):
        self._parts, self.texts, self._num_blocks = parts, list(texts), num_blocks

    def token_bits(self, target: str, arm: str, text: str) -> NDArray[np.float64]:
        """Bits of each token of a text, (n,)."""
        return self._parts[target if target == ORIGINAL else f"{target}.{arm}"][text]

    def token_ids(self, target: str, text: str) -> NDArray[np.int64]:
        """Ids of each token of a text, (n,)."""
        return self._parts[f"{target}.text"][f"{text}.ids"]

    def bits(self, target: str, arm: str = "", texts: Sequence[str] = ()) -> NDArray[np.float64]:
        """Bits (sets, blocks) in the texts, all by default. Raises ValueError for a text that is too short."""
        return self._blocks(target, lambda text: self.token_bits(target, arm, text), texts or self.texts)

    def tokens(self, target: str, texts: Sequence[str] = ()) -> NDArray[np.float64]:
        """Tokens (sets, blocks), each by the share of its bytes in a block."""
        return self._blocks(target, lambda text: np.ones(len(self.token_ids(target, text))), texts or self.texts)

    def _blocks(self, target: str, values: Callable[[str], NDArray], texts: Sequence[str]) -> NDArray[np.float64]:
        found = []
        for text in texts:
            sums, num_bytes = swaplab.blocks(values(text), self._parts[f"{target}.text"][f"{text}.bytes"], BLOCK)
            if (num_bytes == BLOCK).sum() < self._num_blocks:
                raise ValueError(f"the text {text!r} has no {self._num_blocks} blocks of {BLOCK} bytes")
            found.append(sums[: self._num_blocks])
        return np.stack(found)


def resamples_of(sets: int, blocks: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Block numbers drawn with replacement within each set: (resamples, sets, blocks)."""
    return np.random.default_rng(seed).integers(blocks, size=(resamples, sets, blocks))


def log_ratio(
    one: ArrayLike | Sequence[ArrayLike],
    other: ArrayLike | Sequence[ArrayLike],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Log of the geometric mean over sets of one arm's bits to another's, with its bootstrap over blocks.

    one, other: bits (sets, blocks), paired; or (targets, sets, blocks), where the mean is over targets too, and the
    same blocks are drawn for all targets. Blocks are drawn within their set.
    Raises ValueError for unlike shapes and for blocks of no bits.
    """
    values = _log_ratios(one, other, resamples, seed)
    how = f"paired bootstrap over blocks of {BLOCK} bytes within their set, {resamples} resamples"
    return _interval(values.mean(axis=1), how)


def least_log_ratio(
    one: Sequence[ArrayLike], other: Sequence[ArrayLike], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The smallest, over pairs of arms, of what `log_ratio` gives for each pair; the smallest is taken anew each draw.

    one, other: (pairs, sets, blocks).
    """
    values = _log_ratios(one, other, resamples, seed)
    how = f"least of {values.shape[1]} arms, bootstrap over blocks of {BLOCK} bytes, {resamples} resamples"
    return _interval(values.min(axis=1), how)


def _log_ratios(one: ArrayLike, other: ArrayLike, resamples: int, seed: int) -> NDArray[np.float64]:
    """(1 + resamples, targets): the log ratio itself, then its draws; means over sets."""
    one, other = (np.asarray(each, dtype=np.float64) for each in (one, other))
    if one.shape != other.shape or one.ndim not in (2, 3):
        raise ValueError(f"arms need the same sets and blocks, got {one.shape} and {other.shape}")
    one, other = (each.reshape(-1, *each.shape[-2:]) for each in (one, other))
    if min(one.min(), other.min()) <= 0:
        raise ValueError("every block needs bits above 0")
    sets, blocks = one.shape[1:]
    rows = resamples_of(sets, blocks, resamples, seed)
    counts = np.zeros((resamples, sets, blocks))
    np.add.at(counts, (np.arange(resamples)[:, None, None], np.arange(sets)[:, None], rows), 1)
    weights = np.concatenate([np.ones((1, sets, blocks)), counts])
    sums = [np.einsum("rsb,tsb->rts", weights, each, optimize=True) for each in (one, other)]
    return (np.log(sums[0]) - np.log(sums[1])).mean(axis=2)


def perplexity_quotient(
    one: ArrayLike,
    other: ArrayLike,
    original: ArrayLike,
    tokens: ArrayLike,
    original_tokens: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The paper's statistic for two arms of one target, divided: mean over sets of perplexity to the original's.

    Bits and tokens (sets, blocks) of the arms, which share their tokens, and of the model with its own tokenizer;
    perplexity is per token. Bootstrap over blocks within their set.
    """
    arrays = [np.asarray(each, dtype=np.float64) for each in (one, other, original, tokens, original_tokens)]
    if len({each.shape for each in arrays}) > 1:
        raise ValueError("arms and original need the same sets and blocks")
    sets, blocks = arrays[0].shape
    everything = np.broadcast_to(np.arange(blocks), (1, sets, blocks))
    rows = np.concatenate([everything, resamples_of(sets, blocks, resamples, seed)])
    sums = [each[np.arange(sets)[:, None], rows].sum(axis=2) for each in arrays]
    ratios = [2 ** (sums[arm] / sums[3] - sums[2] / sums[4]) for arm in (0, 1)]
    how = f"bootstrap over blocks of {BLOCK} bytes within their set, {resamples} resamples"
    return _interval(ratios[0].mean(axis=1) / ratios[1].mean(axis=1), how)


def perplexity_ratio(bits: ArrayLike, tokens: ArrayLike, original: ArrayLike, original_tokens: ArrayLike) -> float:
    """Mean over sets of the perplexity per token to the original model's; all (sets, blocks)."""
    sums = [np.asarray(each, dtype=np.float64).sum(axis=1) for each in (bits, tokens, original, original_tokens)]
    return float((2 ** (sums[0] / sums[1] - sums[2] / sums[3])).mean())


def saving(one: ArrayLike, other: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percent fewer tokens that `one` needs than `other`; both (sources, blocks) token counts of the same text."""
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"tokens of the same blocks are needed, got {one.shape} and {other.shape}")
    generator = np.random.default_rng(seed)
    everything = [np.concatenate([np.zeros((1, 2)), np.zeros((resamples, 2))])]
    for few, many in zip(one, other, strict=True):
        counts = generator.multinomial(len(few), np.full(len(few), 1 / len(few)), size=resamples)
        weights = np.concatenate([np.ones((1, len(few))), counts])
        everything.append(weights @ np.stack([few, many], axis=1))
    few, many = np.sum(everything, axis=0).T
    return _interval(100 * (1 - few / many), f"bootstrap over blocks of {BLOCK} bytes by source, {resamples} resamples")


def _interval(values: NDArray[np.float64], how: str) -> Interval:
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(values[0], min(low, values[0]), max(high, values[0]), how)


def as_ratio(log: Interval) -> Interval:
    """A ratio from the interval of its logarithm."""
    return Interval(*np.exp([log.value, log.low, log.high]), log.how)


def by_group(groups: ArrayLike, values: ArrayLike, names: Mapping[int, str]) -> pd.DataFrame:
    """Mean of values (n,) in each group with its standard error: columns group, n, mean, error; empty ones left out."""
    groups, values = np.asarray(groups), np.asarray(values, dtype=np.float64)
    rows = []
    for key, name in names.items():
        held = values[groups == key]
        if len(held) > 1:
            error = held.std(ddof=1) / np.sqrt(len(held))
            rows.append({"group": name, "n": len(held), "mean": held.mean(), "error": error})
    return pd.DataFrame(rows, columns=["group", "n", "mean", "error"])


def one_dial_at_a_time(
    default: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], dials: Sequence[str]
) -> list[dict[str, Any]]:
    """For each dial the arms that differ from the default in it alone, and the default itself: dial, setting, arm.

    arms: what each sets; an empty one is the default. Sorted by setting within a dial.
    """
    found = []
    for dial in dials:
        others = [key for key in default if key != dial]
        for arm, changes in arms.items():
            settings = {**default, **changes}
            alone = all(settings[key] == default[key] for key in others)
            if alone and (settings[dial] != default[dial] or not changes):
                found.append({"dial": dial, "setting": settings[dial], "arm": arm})
    return sorted(found, key=lambda row: (list(dials).index(row["dial"]), row["setting"]))


def published_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """The repository's perplexity ratios, a row for each pair of model and tokenizer and each subset; NaN if unknown.

    rows: pair -> subset -> initialisation -> ratio. Columns `hybrid/...` divide the hybrid's by each of the others'.
    """
    flat = [{"pair": pair, "subset": subset, **each} for pair, by in rows.items() for subset, each in by.items()]
    table = pd.DataFrame(flat)
    for other in table.columns.drop(["pair", "subset", "hybrid"]):
        table[f"hybrid/{other}"] = table["hybrid"] / table[other]
    return table
