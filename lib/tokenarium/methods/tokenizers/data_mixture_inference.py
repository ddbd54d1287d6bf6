"""Data mixture inference: what a BPE tokenizer's merge list reveals about its training data.

Source: Hayase et al. 2024, arXiv 2407.16607. At step t a BPE merges the pair m(t) that is most frequent in its training
data. If the data are a mixture of known categories, each step says that no other pair was more frequent in the mixture:
linear inequalities over the shares, whose least violated solution a linear program finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.bpe import Pair, Replay, Word

TOLERANCE = 1e-6  # Gurobi's default; in a sample of a million pairs, one pair
GROWTH = 1e-4  # of the optimum, relative, before slack constraints are dropped
SLACK = 0.05  # from which a constraint is slack, in typical counts of a merged pair
MIXTURE_GRID = 10_000  # shares of random mixtures are multiples of 1 / MIXTURE_GRID


@dataclass(frozen=True)
class Mixture:
    """The solution of the linear program.

    alpha: (n,) share of each category in the pairs of the training data. v_t: (T,) and v_p: (P,) how far the steps and
    the pairs violate the inequalities, in normalised counts; objective: the sum of both. steps, competitors: (K,) the
    inequalities that hold the solution in its place, and some that nearly do: before this step, this pair must not be
    more frequent than the merged one. rounds: how often the program was solved.
    """

    alpha: NDArray[np.float64]
    v_t: NDArray[np.float64]
    v_p: NDArray[np.float64]
    objective: float
    steps: NDArray[np.int64]
    competitors: NDArray[np.int64]
    rounds: int


def infer(
    replay: Replay,
    denoms: ArrayLike | None = None,
    pair_slack: bool = True,
    tolerance: float = TOLERANCE,
    per_step: int = 10,
    per_round: int | None = None,
    max_rounds: int = 200,
) -> Mixture:
    """Find the mixture that violates the inequalities least, adding constraints only as they are violated.

    Minimises sum v_t + sum v_p over alpha on the simplex, v_t >= 0 and v_p >= 0, subject to, for every step t and every
    pair p but the merged one, alpha . c_m(t)(t) + v_t + v_p >= alpha . c_p(t), where c are counts divided by `denoms`
    (n,); None takes each category's pairs before the first merge (N_i). pair_slack=False leaves v_p out.

    Starting from equal shares, a sweep over the steps collects up to `per_step` of the most violated competitors of
    each step, and ends after the step at which it has `per_round` of them (100 in the authors' code, whose solver goes
    on from its last basis; None: never). Then the program is solved again, until a sweep finds no violation above
    `tolerance`. The first tenth of the steps is brought to that end first, then the first third, then all: good shares
    early on leave fewer constraints to add. Constraints that have become slack are dropped again whenever the optimum
    has grown, so that the program stays small and never comes back to a state it had. Steps whose merge occurs in no
    category are skipped. Raises ValueError when denoms are not positive, RuntimeError when max_rounds do not suffice.
    """
    n = replay.initial.shape[1]
    scale = np.asarray(replay.num_pairs_at_start if denoms is None else denoms, dtype=np.float64)
    if scale.shape != (n,) or not (scale > 0).all():
        raise ValueError(f"denoms must be {n} positive numbers, got {scale}")
    merged, largest = (counts / scale for counts in _merged_and_largest(replay))
    present = merged.any(axis=1)
    unit = float(np.median(merged[present].mean(axis=1))) if present.any() else 1.0
    program = _Program(len(merged), len(replay.pairs), n, pair_slack, unit)
    alpha, v_t, v_p = np.full(n, 1 / n), np.zeros(len(merged)), np.zeros(len(replay.pairs))
    rounds, optimum = 0, 0.0
    for last in (len(merged) // 10, len(merged) // 3, len(merged)):
        while True:
            threshold = np.where(present, merged @ alpha + v_t + tolerance, np.inf)[:last]
            # No other pair exceeds the lowest threshold at any step.
            rivals = np.flatnonzero(largest @ alpha - v_p > threshold.min(initial=np.inf))
            before = len(program)
            for step, counts in _restricted(replay, rivals, last):
                excess = counts @ (alpha / scale) - v_p[rivals] - threshold[step]
                excess[rivals == replay.merge_pair[step]] = -np.inf
                (violated,) = np.nonzero(excess > 0)
                for row in violated[np.argsort(-excess[violated], kind="stable")][:per_step]:
                    program.add(step, rivals[row], merged[step] - counts[row] / scale)
                if per_round and len(program) - before >= per_round:
                    break
            if len(program) == before:
                break
            if rounds == max_rounds:
                raise RuntimeError(f"constraints are still violated after {max_rounds} rounds: allow more")
            alpha, v_t, v_p = program.solve()
            rounds += 1
            if v_t.sum() + v_p.sum() > (1 + GROWTH) * optimum:
                optimum = v_t.sum() + v_p.sum()
                program.drop_slack(alpha, v_t, v_p)
    return Mixture(alpha, v_t, v_p, float(v_t.sum() + v_p.sum()), *program.places(), rounds)


def _merged_and_largest(replay: Replay) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(T, n) the merged pair's counts before each step, and (P, n) the largest counts of each pair over all steps."""
    merged = np.zeros((replay.num_steps, replay.initial.shape[1]), dtype=np.int64)
    largest = np.zeros((len(replay.pairs), replay.initial.shape[1]), dtype=np.int64)
    largest[: len(replay.initial)] = replay.initial
    for step, counts in enumerate(replay.counts()):
        if replay.merge_pair[step] >= 0:
            merged[step] = counts[replay.merge_pair[step]]
        changed = replay.changed[replay.start[max(step - 1, 0)] : replay.start[step]]
        largest[changed] = np.maximum(largest[changed], counts[changed])
    return merged, largest


def _restricted(replay: Replay, pairs: NDArray[np.int64], last: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Step and counts (len(pairs), n) of these pairs before it, for the first `last` steps; one array for all."""
    place = np.full(len(replay.pairs), -1)
    place[pairs] = np.arange(len(pairs))
    counts = np.zeros((len(pairs), replay.initial.shape[1]), dtype=np.int64)
    at_start = pairs < len(replay.initial)
    counts[at_start] = replay.initial[pairs[at_start]]
    asked = place[replay.changed] >= 0
    changed, delta = place[replay.changed[asked]], replay.delta[asked]
    start = np.append(0, np.cumsum(asked))[replay.start]
    for step in range(last):
        yield step, counts
        part = slice(start[step], start[step + 1])
        counts[changed[part]] += delta[part]


class _Program:
    """The linear program over the constraints found so far.

    Counts are measured in `unit`, a typical count of a merged pair, so that the solver works with numbers around 1.
    """

    def __init__(self, num_steps: int, num_pairs: int, n: int, pair_slack: bool, unit: float):
        self.shape, self.pair_slack, self.unit = (num_steps, num_pairs, n), pair_slack, unit
        self.rows: dict[tuple[int, int], NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, step: int, pair: int, margin: NDArray[np.float64]) -> None:
        """margin: (n,) merged pair's minus competitor's normalised counts."""
        self.rows.setdefault((int(step), int(pair)), margin / self.unit)

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        steps, pairs = np.array(list(self.rows), dtype=np.int64).reshape(-1, 2).T
        return steps, pairs

    def drop_slack(self, alpha: NDArray[np.float64], v_t: NDArray[np.float64], v_p: NDArray[np.float64]) -> None:
        """Forget the constraints that this solution keeps by more than SLACK."""
        steps, pairs = self.places()
        slack = np.array(list(self.rows.values())) @ alpha + (v_t[steps] + v_p[pairs]) / self.unit
        self.rows = {place: row for (place, row), kept in zip(self.rows.items(), slack < SLACK, strict=True) if kept}

    def solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """alpha, v_t and v_p of an optimal vertex. Raises RuntimeError when the solver gives none."""
        num_steps, num_pairs, n = self.shape
        steps, pairs = self.places()
        used_steps, step_column = np.unique(steps, return_inverse=True)
        used_pairs, pair_column = np.unique(pairs, return_inverse=True)
        size = n + len(used_steps) + len(used_pairs) * self.pair_slack
        row = np.arange(len(steps))
        blocks = [(row.repeat(n), np.tile(np.arange(n), len(row)), -np.concatenate(list(self.rows.values())))]
        blocks.append((row, n + step_column, np.full(len(row), -1.0)))
        if self.pair_slack:
            blocks.append((row, n + len(used_steps) + pair_column, np.full(len(row), -1.0)))
        rows, columns, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        found = linprog(
            np.repeat([0.0, 1.0], [n, size - n]),
            A_ub=coo_array((values, (rows, columns)), shape=(len(row), size)).tocsr(),
            b_ub=np.zeros(len(row)),
            A_eq=np.repeat([1.0, 0.0], [n, size - n])[None],
            b_eq=[1.0],
            method="highs",
            options={"presolve": False},  # it takes longer than it saves here
        )
        if found.x is None:
            raise RuntimeError(f"the linear program has no solution: {found.message}")
        v_t, v_p = np.zeros(num_steps), np.zeros(num_pairs)
        v_t[used_steps] = self.unit * found.x[n : n + len(used_steps)]
        if self.pair_slack:
            v_p[used_pairs] = self.unit * found.x[n + len(used_steps) :]
        return found.x[:n], v_t, v_p


# With dictionaries of counts, as the authors' files hold them


def replay(merges: Sequence[Pair], word_counts: Mapping[Word, int]) -> list[dict[Pair, int]]:
    """One category's pair counts before each merge: all of them for the first, then only those that have changed.

    A pair that has disappeared is listed once with 0.
    """
    replayed = bpe.replay(merges, [word_counts])
    steps = []
    for step, counts in enumerate(replayed.counts()):
        changed = replayed.changed[replayed.start[step - 1] : replayed.start[step]] if step else range(len(counts))
        steps.append({replayed.pairs[pair]: int(counts[pair, 0]) for pair in changed if step or counts[pair, 0]})
    return steps


def mixture_lp(
    merges: Sequence[Pair], pair_counts: Sequence[Sequence[Mapping[Pair, int]]], denoms: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[Pair, float]]:
    """The mixture of n categories from their pair counts as `replay` lists them.

    pair_counts: n lists of T mappings, or T lists of n; of each category, the counts before each merge that differ from
    the step before. denoms: what each category's counts are divided by. Returns alpha (n,) float64, v_t (T,) float64
    and the pairs whose v_p is above 0. Raises ValueError when the lengths do not fit.
    """
    n = len(denoms)
    by_category = pair_counts if len(pair_counts) == n else list(zip(*pair_counts, strict=True))
    if len(by_category) != n or any(len(steps) != len(merges) for steps in by_category):
        raise ValueError(f"pair_counts must hold {n} categories with {len(merges)} steps each")
    place: dict[Pair, int] = {}
    for step in zip(*by_category, strict=True):
        for counts in step:
            for pair in counts:
                place.setdefault(pair, len(place))
    current = np.zeros((len(place), n), dtype=np.int64)
    start, changed, delta = [0], [], []
    for number, step in enumerate(zip(*by_category, strict=True)):
        rows = sorted({place[pair] for counts in step for pair in counts})
        before = current[rows]
        for category, counts in enumerate(step):
            for pair, count in counts.items():
                current[place[pair], category] = count
        if number == 0:
            initial = current.copy()
        else:
            changed.append(np.array(rows, dtype=np.int64))
            delta.append(current[rows] - before)
            start.append(start[-1] + len(rows))
    replayed = Replay(
        list(place),
        initial,
        np.array([place.get(pair, -1) for pair in merges], dtype=np.int64),
        np.array([*start, start[-1]], dtype=np.int64),
        np.concatenate([*changed, np.zeros(0, dtype=np.int64)]),
        np.concatenate([*delta, np.zeros((0, n), dtype=np.int64)]),
    )
    found = infer(replayed, denoms)
    return found.alpha, found.v_t, {replayed.pairs[pair]: found.v_p[pair] for pair in np.flatnonzero(found.v_p)}


# From pairs to bytes, and what the result is measured by


def byte_shares(alpha: ArrayLike, num_bytes: ArrayLike, num_pairs: ArrayLike) -> NDArray[np.float64]:
    """Shares of bytes from shares of pairs (n,), by the bytes per pair of each category's sample."""
    weighted = np.asarray(alpha) * np.asarray(num_bytes) / np.asarray(num_pairs)
    return weighted / weighted.sum()


def log_mse(shares: ArrayLike, truth: ArrayLike) -> float:
    """log10 of the mean over categories of the squared error; at least -16, where float64 ends."""
    error = np.mean((np.asarray(shares, dtype=np.float64) - np.asarray(truth, dtype=np.float64)) ** 2)
    return float(np.log10(max(error, 1e-16)))


def random_mixture(n: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(n,) shares drawn uniformly from the simplex: gaps between n - 1 different whole numbers below MIXTURE_GRID."""
    cuts = np.sort(generator.choice(np.arange(1, MIXTURE_GRID), n - 1, replace=False))
    return np.diff([0, *cuts, MIXTURE_GRID]) / MIXTURE_GRID


# The paper's baselines; their formulas are not published, these are readings of their descriptions


def token_shares(token_counts: ArrayLike) -> NDArray[np.float64]:
    """TC: each token goes to the category in whose text it is most frequent; the shares are shares of the vocabulary.

    token_counts: (V, n) how often each token occurs in each category. Tokens that occur nowhere are left out.
    """
    counts = np.asarray(token_counts, dtype=np.float64)
    counts = counts[counts.any(axis=1)]
    frequency = counts / np.maximum(counts.sum(axis=0), 1)
    return np.bincount(frequency.argmax(axis=1), minlength=counts.shape[1]) / len(counts)


def efficiency_shares(efficiency: ArrayLike, single: ArrayLike) -> NDArray[np.float64]:
    """TEE: shares in proportion to how much more efficient a tokenizer is on a category than a foreign one.

    efficiency: (n,) bytes per token of the tokenizer on each category. single: (n, n) the same of tokenizers trained
    on one category each (rows). The share of category i is proportional to how much of the way from the mean of the
    other categories' tokenizers to its own one the efficiency has gone; equal shares where it has gone nowhere.
    """
    efficiency, single = np.asarray(efficiency, dtype=np.float64), np.asarray(single, dtype=np.float64)
    n = len(efficiency)
    own = np.diag(single)
    foreign = (single.sum(axis=0) - own) / (n - 1)
    gone = np.clip((efficiency - foreign) / np.maximum(own - foreign, 1e-12), 0, None)
    return gone / gone.sum() if gone.sum() > 0 else np.full(n, 1 / n)


def nearest_shares(efficiency: ArrayLike, known: ArrayLike, shares: ArrayLike) -> NDArray[np.float64]:
    """TEE by search: the mixture, of K tokenizers trained for it, whose efficiencies are nearest.

    efficiency: (n,); known: (K, n) efficiencies of the trained tokenizers; shares: (K, n) their mixtures.
    """
    distance = np.square(np.asarray(known) - np.asarray(efficiency)).sum(axis=1)
    return np.asarray(shares)[distance.argmin()]
