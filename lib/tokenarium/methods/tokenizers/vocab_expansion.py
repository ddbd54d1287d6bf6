"""Vocabulary expansion: new tokens for a language that a model hardly knows, and rows for them from little text.

Source: Yamaguchi, Villavicencio and Aletras 2024 (arXiv 2406.11477). Matrices are (rows, d); the rows of the new tokens
follow those of the source tokenizer's. Where the released code and the description part, `official` follows the code.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

METHODS = ("random", "global", "mean", "merge", "align", "focus")
AUXILIARY_SIZE = 50_000
_BLOCK = 4096  # rows drawn at once
_WINDOW = 5
_DIMENSIONS = 100

Alignment = dict[int, Counter[tuple[int, ...]]]


# The target tokenizer


def auxiliary_merges(source: Tokenizer, lines: Iterable[str], size: int = AUXILIARY_SIZE) -> list[tuple[str, str]]:
    """The merges of a BPE trained on the lines as the source was: its splits, its alphabet, in order of learning.

    Merges are pairs in the spelling of the vocabulary, here and below. Raises ValueError for a source that is no BPE.
    """
    _merges(source)
    auxiliary = Tokenizer(models.BPE())
    auxiliary.normalizer, auxiliary.pre_tokenizer = source.normalizer, source.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    auxiliary.train_from_iterator(lines, trainer)
    return _merges(auxiliary)


def expand(source: Tokenizer, auxiliary: Sequence[tuple[str, str]], num_new: int) -> Tokenizer:
    """The source tokenizer with up to `num_new` tokens of the auxiliary merges behind its own.

    The merges are walked in order; both halves, then the product, become tokens where they are none yet. Auxiliary
    merges among known tokens then come *before* the source's own: behind them they would hardly ever fire.
    Raises ValueError unless num_new >= 1.
    """
    if num_new < 1:
        raise ValueError(f"num_new must be at least 1, got {num_new}")
    state = json.loads(source.to_str())
    # Added tokens too: the library numbers those that the vocabulary lacks anew.
    vocabulary = state["model"]["vocab"] | {token["content"]: token["id"] for token in state["added_tokens"]}
    first = source.get_vocab_size(with_added_tokens=True)
    wanted = dict.fromkeys(piece for left, right in auxiliary for piece in (left, right, left + right))
    new = [piece for piece in wanted if piece not in vocabulary][:num_new]
    vocabulary |= {piece: first + index for index, piece in enumerate(new)}
    accepted = [(left, right) for left, right in auxiliary if {left, right, left + right} <= vocabulary.keys()]
    merges = dict.fromkeys([*accepted, *_merges(source)])
    state["model"] |= {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}
    return Tokenizer.from_str(json.dumps(state))


def new_tokens(source: Tokenizer, target: Tokenizer) -> list[str]:
    """The target's tokens behind the source's, in the order of their ids, as the vocabulary spells them."""
    return [target.id_to_token(index) for index in range(_size(source), _size(target))]


# Initialisation


def init_rows(
    src_E: ArrayLike,
    src_tok: Any,
    tgt_tok: Any,
    method: str,
    corpus_lines: Iterable[str] | None = None,
    seed: int = 0,
    *,
    official: bool = True,
) -> NDArray[np.float64]:
    """Rows of the new tokens: (V, d) -> (N_new, d) float64.

    src_tok, tgt_tok: of `tokenizers` or, fast ones, of transformers. method: one of METHODS; not the paper's are
    "global", the mean of all rows, and "focus", FOCUS with PPMI-SVD vectors in place of fastText's. corpus_lines: text
    of the target language, for "align" and "focus". seed: of the Random rows, which stay where a method finds nothing.
    official: Mean encodes the token as its vocabulary spells it, which for byte-level tokenizers encodes what is not
    ASCII twice; False takes the token's own bytes. Raises ValueError for another method or missing lines.
    """
    rows = np.asarray(src_E, dtype=np.float64)
    return _initialise(rows, rows, src_tok, tgt_tok, method, corpus_lines, seed, official)


def init_head_rows(
    src_E: ArrayLike,
    src_H: ArrayLike,
    src_tok: Any,
    tgt_tok: Any,
    method: str,
    corpus_lines: Iterable[str] | None = None,
    seed: int = 0,
    *,
    official: bool = True,
    official_head: bool = True,
) -> NDArray[np.float64]:
    """Rows of the new tokens in an output matrix src_H (V, d) that is not tied to the input matrix src_E (V, d).

    official_head: where a part of a merge is itself new, the released code takes that part from *input* rows; False
    takes output rows throughout. The rest is `init_rows`.
    """
    head = np.asarray(src_H, dtype=np.float64)
    nested = np.asarray(src_E, dtype=np.float64) if official_head else head
    return _initialise(head, nested, src_tok, tgt_tok, method, corpus_lines, seed, official)


def _initialise(
    rows: NDArray, nested: NDArray, src_tok: Any, tgt_tok: Any, method: str, lines: Any, seed: int, official: bool
) -> NDArray[np.float64]:
    source, target = _backend(src_tok), _backend(tgt_tok)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method in ("align", "focus") and lines is None:
        raise ValueError(f"{method} needs corpus_lines")
    first, tokens = _size(source), new_tokens(source, target)
    if method == "random":
        return random_rows(rows, first, len(tokens), seed)
    if method == "global":
        return np.tile(rows.mean(axis=0), (len(tokens), 1))
    if method == "mean":
        made = mean_rows(rows, source, tokens, official)
    elif method == "merge":
        made = merge_rows(rows, source, target, nested)
    elif method == "align":
        merged = merge_rows(rows, source, target, nested)
        made = align_rows(rows, align_map(source, target, lines), first, merged)
    else:
        made = focus_rows(rows, source, target, lines)
    lacking = np.isnan(made).all(axis=1)
    if lacking.any():
        made[lacking] = random_rows(rows, first, len(tokens), seed)[lacking]
    return made


def random_rows(rows: NDArray, first: int, count: int, seed: int) -> NDArray[np.float64]:
    """Random: mean and deviation of each column of `rows`, as numpy's RandomState draws them for rows 0, 1, ...

    The released code draws the whole new matrix (padded to a multiple of 8, which changes nothing here) and puts the
    source rows over it. Returns rows `first` to `first + count`.
    """
    generator = np.random.RandomState(seed)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    kept = []
    for begin in range(0, first + count, _BLOCK):
        end = min(begin + _BLOCK, first + count)
        drawn = generator.normal(mean, deviation, (end - begin, rows.shape[1]))
        kept.append(drawn[max(first - begin, 0) :])
    return np.concatenate(kept)


def mean_rows(rows: NDArray, source: Tokenizer, tokens: Sequence[str], official: bool = True) -> NDArray[np.float64]:
    """Mean: the average of the rows of the source's pieces of each token; (tokens, d), NaN without pieces.

    official: see `init_rows`.
    """
    made = np.full((len(tokens), rows.shape[1]), np.nan)
    for index, token in enumerate(tokens):
        if official:
            ids = source.encode(token, add_special_tokens=False).ids
        else:
            ids = [piece.id for piece in source.model.tokenize(token)]
        if ids:
            made[index] = rows[ids].mean(axis=0)
    return made


def merge_rows(
    rows: NDArray, source: Tokenizer, target: Tokenizer, nested: NDArray | None = None
) -> NDArray[np.float64]:
    """Merge: the mean of the two parts that a target merge joins, parts that are new themselves in the same way.

    Where several merges make a token, the mean over them; NaN where none does. nested: the matrix that new parts are
    taken from.
    """
    known = {token: index for token, index in source.get_vocab().items() if index < len(rows)}
    ways: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(target):
        ways.setdefault(left + right, []).append((left, right))

    def joined(token: str, matrix: NDArray) -> NDArray | None:
        pairs = [(part(left, matrix), part(right, matrix)) for left, right in ways.get(token, [])]
        means = [(left + right) / 2 for left, right in pairs if left is not None and right is not None]
        return np.mean(means, axis=0) if means else None

    def part(token: str, matrix: NDArray) -> NDArray | None:
        return matrix[known[token]] if token in known else inner(token)

    @cache
    def inner(token: str) -> NDArray | None:
        return joined(token, rows if nested is None else nested)

    found = [joined(token, rows) for token in new_tokens(source, target)]
    return np.stack([np.full(rows.shape[1], np.nan) if row is None else row for row in found])


def align_map(source: Tokenizer, target: Tokenizer, lines: Iterable[str]) -> Alignment:
    """New id -> how often it stood for which tuple of source ids: those whose span lies in its own or holds it.

    Lines are encoded by both. As in the released code, a line counts each new id once, at its *last* place; a place
    whose span no source token lies in or holds counts for nothing.
    """
    first, texts = _size(source), list(lines)
    found: Alignment = {}
    for begin in range(0, len(texts), _BLOCK):
        batch = texts[begin : begin + _BLOCK]
        pairs = zip(
            source.encode_batch(batch, add_special_tokens=False),
            target.encode_batch(batch, add_special_tokens=False),
            strict=True,
        )
        for old, new in pairs:
            places = {index: span for index, span in zip(new.ids, new.offsets, strict=True) if index >= first}
            if not places:
                continue
            ids = np.array(old.ids)
            starts, ends = np.array(old.offsets).T
            for index, (low, high) in places.items():
                matching = ((starts >= low) & (ends <= high)) | ((starts <= low) & (ends >= high))
                if matching.any():
                    found.setdefault(index, Counter())[tuple(ids[matching].tolist())] += 1
    return found


def align_rows(rows: NDArray, alignment: Alignment, first: int, start: NDArray) -> NDArray[np.float64]:
    """Align: the mean row of each tuple, weighted with how often it occurred; `start` where a token never did."""
    made = start.copy()
    for index, counts in alignment.items():
        total = counts.total()
        made[index - first] = sum(count / total * rows[list(ids)].mean(axis=0) for ids, count in counts.items())
    return made


def focus_rows(rows: NDArray, source: Tokenizer, target: Tokenizer, lines: Iterable[str]) -> NDArray[np.float64]:
    """FOCUS-like: source rows weighted by the sparsemax of the new token's cosine similarity to their tokens.

    Vectors come from the target-tokenized lines (`ppmi_vectors`, in place of fastText). Tokens that do not occur in
    them have none: the rows of new ones are NaN, old ones have no weight. Source: Dobler and de Melo 2023 (FOCUS).
    """
    first = _size(source)
    ids = [encoding.ids for encoding in target.encode_batch(list(lines), add_special_tokens=False)]
    seen, vectors = ppmi_vectors(ids)
    old, new = seen < first, seen >= first
    made = np.full((_size(target) - first, rows.shape[1]), np.nan)
    if old.any() and new.any():
        made[seen[new] - first] = sparsemax(vectors[new] @ vectors[old].T) @ rows[seen[old]]
    return made


def ppmi_vectors(
    sentences: Sequence[Sequence[int]], window: int = _WINDOW, dimensions: int = _DIMENSIONS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(tokens,) the ids that occur, sorted, and their vectors (tokens, <= dimensions) of length 1, or 0 if alone.

    Positive pointwise mutual information of ids at most `window` places apart in a sentence, then a truncated SVD whose
    vectors are scaled with the root of the singular values (Levy, Goldberg and Dagan 2015).
    """
    lengths = [len(sentence) for sentence in sentences]
    flat = np.fromiter((index for sentence in sentences for index in sentence), np.int64, sum(lengths))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    seen, places = np.unique(flat, return_inverse=True)
    counts = sparse.csr_matrix((len(seen), len(seen)))
    for distance in range(1, window + 1):
        same = owner[distance:] == owner[:-distance]
        pair = places[:-distance][same], places[distance:][same]
        counts = counts + sparse.csr_matrix((np.ones(same.sum()), pair), shape=counts.shape)
    counts = (counts + counts.T).tocoo()
    total, margin = counts.sum(), np.asarray(counts.sum(axis=0)).ravel()
    information = np.log(counts.data * total / (margin[counts.row] * margin[counts.col]))
    kept = information > 0
    positive = sparse.csr_matrix((information[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape)
    rank = min(dimensions, len(seen) - 1)
    if rank < 1 or positive.nnz == 0:
        return seen, np.zeros((len(seen), 1))
    left, values, _ = svds(positive, k=rank, v0=np.ones(len(seen)))
    vectors = left * np.sqrt(values)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return seen, np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-12)


def sparsemax(scores: ArrayLike) -> NDArray[np.float64]:
    """The point of the probability simplex that is closest to each row of scores (n, k), many of its entries 0.

    Source: Martins and Astudillo 2016.
    """
    scores = np.asarray(scores, dtype=np.float64)
    ordered = -np.sort(-scores, axis=-1)
    sums = ordered.cumsum(axis=-1) - 1
    ranks = np.arange(1, scores.shape[-1] + 1)
    support = (ordered * ranks > sums).sum(axis=-1, keepdims=True)
    threshold = np.take_along_axis(sums, support - 1, axis=-1) / support
    return np.maximum(scores - threshold, 0)


def shuffled(rows: NDArray, seed: int) -> NDArray[np.float64]:
    """Control: the same rows, each at another token."""
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def nearest_tokens(row: ArrayLike, rows: NDArray, tokens: Mapping[int, str], count: int = 3) -> list[str]:
    """The tokens, by id, whose rows have the largest cosine similarity to a row (d,); ids without a token left out."""
    ids = np.fromiter(tokens, np.int64)
    known = rows[ids]
    similarity = known @ np.asarray(row) / np.maximum(np.linalg.norm(known, axis=1), 1e-12)
    return [tokens[int(index)] for index in ids[np.argsort(-similarity, kind="stable")[:count]]]


def _backend(tokenizer: Any) -> Tokenizer:
    return tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer


def _size(tokenizer: Tokenizer) -> int:
    return tokenizer.get_vocab_size(with_added_tokens=True)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} model has no merges: vocabularies are expanded for BPE only")
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
