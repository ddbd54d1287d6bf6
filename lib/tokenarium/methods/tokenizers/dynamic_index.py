"""Output over a very large vocabulary: an index finds the few rows that may win, only these get exact logits.

The paper's first version uses ScaNN; here the inverted lists of faiss do the same: rows are L2-normalised, clustered,
and only the lists nearest to a state are searched.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray


class Index:
    """Approximate nearest output rows by cosine.

    rows: (V, d) float32. lists: clusters. probes: clusters searched for a state. Clustering is fixed by seed.
    """

    def __init__(self, rows: NDArray[np.float32], lists: int, probes: int, iterations: int = 10, seed: int = 0):
        faiss.omp_set_num_threads(1)  # so that sums have one order
        normal = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._coarse = faiss.IndexFlatIP(rows.shape[1])
        self._index = faiss.IndexIVFFlat(self._coarse, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.niter = iterations
        self._index.cp.seed = seed + 1
        self._index.cp.min_points_per_centroid = 1  # few rows at profile smoke: no warning
        self._index.train(normal)
        self._index.add(normal)
        self._index.nprobe = probes
        self.sizes = np.array([self._index.invlists.list_size(index) for index in range(lists)])

    def neighbours(self, states: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k rows of greatest cosine among those searched, (states, k); -1 where there are fewer."""
        return self._index.search(np.ascontiguousarray(states), k)[1]

    def best(self, states: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The row of greatest exact logit among the k neighbours, (states,)."""
        near = self.neighbours(states, k)
        logits = np.einsum("skd,sd->sk", self.rows[near], states)
        return near[np.arange(len(near)), np.where(near < 0, -np.inf, logits).argmax(axis=1)]

    def rows_scored(self, states: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Products with a row (or a centre) that `best` computes for each state: centres, lists, exact logits."""
        _, lists = self._coarse.search(np.ascontiguousarray(states), self._index.nprobe)
        return len(self.sizes) + self.sizes[lists].sum(axis=1) + k


def exact_best(rows: NDArray[np.float32], states: NDArray[np.float32], at_once: int = 64) -> NDArray[np.int64]:
    """The row of greatest logit of all, (states,)."""
    parts = (states[first : first + at_once] @ rows.T for first in range(0, len(states), at_once))
    return np.concatenate([part.argmax(axis=1) for part in parts])
