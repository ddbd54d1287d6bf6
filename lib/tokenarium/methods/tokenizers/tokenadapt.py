"""TokenAdapt: rows for a new tokenizer's tokens from their old pieces and their neighbours in meaning; super-tokens.

A row is a weighted mean of the base model's own rows. The *local* weights look at the pieces into which the old
tokenizer cuts the token, the *global* ones at the old tokens most alike; an auxiliary encoder gives both strings their
features φ. Super-tokens are tokens that may cross blanks, from a BPE trained on randomly cut text.

Source: arXiv 2505.09738; constants from the repositories tokenadapt and SuperTokenizer.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TAU = 0.30001  # 0.3 and the 1e-5 that keeps it off 0
LAMBDA = 0.3
NEIGHBOURS = 3
THRESHOLD = 0.0
# Lengths of chunks in characters, both ends included, and their weights, which add up to 1.1.
CHUNKS: Mapping[tuple[int, int], float] = {
    (4, 5): 0.044,
    (6, 7): 0.091,
    (8, 9): 0.146,
    (10, 11): 0.171,
    (12, 13): 0.185,
    (14, 15): 0.171,
    (16, 17): 0.146,
    (18, 19): 0.091,
    (20, 21): 0.044,
    (22, 23): 0.011,
}
SEPARATOR = "\ue000"  # a private-use character: it stands in no text
REPEATS = 7
MAX_TOKEN_BYTES = 30


def softmax(values: ArrayLike) -> NDArray[np.float64]:
    """Softmax of (n,) numbers."""
    values = np.asarray(values, dtype=np.float64)
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def cosine(one: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Cosine of one vector (D,) with each of (m, D); 0 where one of the two is zero."""
    one, others = np.asarray(one, dtype=np.float64), np.asarray(others, dtype=np.float64)
    norms = np.linalg.norm(others, axis=1) * np.linalg.norm(one)
    return others @ one / np.where(norms > 0, norms, 1)


def local_weights(
    phi_s: ArrayLike, phi_pieces: ArrayLike, piece_lens: ArrayLike, full_len: int, tau: float = TAU
) -> NDArray[np.float64]:
    """Weights (m,) of a token's m old pieces: softmax of the mean of a softmax of cosines and of the shares of length.

    phi_s: (D,), phi_pieces: (m, D) features of the decoded strings; piece_lens, full_len: their characters. The
    softmax is taken twice, which brings pieces of equal length close together. tau = infinity weighs all the same.
    """
    similar = softmax(cosine(phi_s, phi_pieces))
    share = np.asarray(piece_lens, dtype=np.float64) / max(full_len, 1)  # an empty string has pieces of no length
    return softmax((similar + share) / 2 / tau)


def neighbour_weights(similarities: ArrayLike, tau: float = TAU, threshold: float = THRESHOLD) -> NDArray[np.float64]:
    """Weights (k,) of neighbours by similarity: softmax, then those below the threshold drop out; all 0 if all do."""
    similarities = np.asarray(similarities, dtype=np.float64)
    if not len(similarities):
        return similarities
    weights = np.where(similarities < threshold, 0.0, softmax(similarities / tau))
    return weights / (weights.sum() or 1.0)


def tokenadapt_row(
    phi_s: ArrayLike,
    phi_pieces: ArrayLike,
    piece_lens: ArrayLike,
    full_len: int,
    E_pieces: ArrayLike,
    phi_nbr_sim: ArrayLike,
    E_nbr: ArrayLike,
    tau: float = TAU,
    lam: float = LAMBDA,
    threshold: float = THRESHOLD,
) -> NDArray[np.float32]:
    """The new row (d,) of a token s: (1 - lam) of the local mean of its pieces' rows, lam of its neighbours' mean.

    phi_s: (D,), phi_pieces: (m, D) features; piece_lens: (m,) and full_len in characters; E_pieces: (m, d) rows of
    the pieces; phi_nbr_sim: (k,) cosines of the neighbours, E_nbr: (k, d) their rows. Where only one of the two means
    exists (no pieces; no neighbour at or above the threshold), it is the row.
    Raises ValueError where neither exists; the paper leaves such a row at its random start.
    """
    local = outer = None
    if len(piece_lens):
        local = local_weights(phi_s, phi_pieces, piece_lens, full_len, tau) @ np.asarray(E_pieces, dtype=np.float64)
    weights = neighbour_weights(phi_nbr_sim, tau, threshold)
    if weights.any():
        outer = weights @ np.asarray(E_nbr, dtype=np.float64)
    if local is None and outer is None:
        raise ValueError("a row needs a piece or a neighbour at or above the threshold")
    if local is None or outer is None:
        return (outer if local is None else local).astype(np.float32)
    return ((1 - lam) * local + lam * outer).astype(np.float32)


def nearest(queries: ArrayLike, index: ArrayLike, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of `index` most alike to each query by cosine, the most alike first, equal ones by their place.

    queries: (n, D), index: (N, D) float. Returns places (n, k) and cosines (n, k).
    Raises ValueError unless 1 <= k <= N.
    """
    queries, index = _unit(queries), _unit(index)
    if not 1 <= k <= len(index):
        raise ValueError(f"k must be between 1 and {len(index)}, got {k}")
    places = np.empty((len(queries), k), dtype=np.int64)
    found = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), 256):  # 256 x 50,000 cosines are 51 MB
        cosines = queries[start : start + 256] @ index.T
        for row, each in enumerate(cosines, start):
            least = np.partition(each, -k)[-k]
            candidates = np.flatnonzero(each >= least)
            best = candidates[np.argsort(-each[candidates], kind="stable")[:k]]
            places[row], found[row] = best, each[best]
    return places, found


def _unit(vectors: ArrayLike) -> NDArray[np.float32]:
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


# Super-tokens


def chunk_lengths(n_chars: int, dist: Mapping[int | tuple[int, int], float], rng: random.Random) -> list[int]:
    """Consecutive chunk lengths of a text of n_chars characters, drawn until the text is used up; the last is cut.

    dist: weight of each length, or of each range of lengths (low, high), both included, within which all are alike;
    weights are normalised. For each chunk `rng` draws a key (`choices`), then, for a range, a length (`randint`).
    Raises ValueError for lengths below 1 and for weights that are negative or all 0.
    """
    keys, weights = list(dist), list(dist.values())
    if min(key[0] if isinstance(key, tuple) else key for key in keys) < 1:
        raise ValueError("a chunk has at least one character")
    if min(weights) < 0 or sum(weights) <= 0:
        raise ValueError("chunk lengths need weights that are not negative and not all 0")
    lengths, left = [], n_chars
    while left > 0:
        key = rng.choices(keys, weights)[0]
        length = min(rng.randint(*key) if isinstance(key, tuple) else key, left)
        lengths.append(length)
        left -= length
    return lengths


def separated(text: str, lengths: Iterable[int], separator: str = SEPARATOR) -> str:
    """The text with the separator between its chunks. Raises ValueError for a text that holds the separator."""
    if separator in text:
        raise ValueError(f"the text holds the separator {separator!r}")
    pieces, place = [], 0
    for length in lengths:
        pieces.append(text[place : place + length])
        place += length
    return separator.join([*pieces, text[place:]] if place < len(text) else pieces)


def train_supertokens(
    texts: Sequence[str],
    vocab_size: int,
    seed: int,
    dist: Mapping[int | tuple[int, int], float] = CHUNKS,
    min_frequency: int = 2,
) -> Tokenizer:
    """A byte-level BPE with NFC whose words in training are random chunks, so that its tokens may cross blanks.

    Chunks end at the drawn places and at runs of one character seven times over, which are left out. The tokenizer
    that comes back splits nowhere: a text is one word. Tokens have at most 30 bytes.
    """
    generator = random.Random(seed)
    normalizer = normalizers.NFC()
    plain = (normalizer.normalize_str(text) for text in texts)
    chunked = (separated(text, chunk_lengths(len(text), dist, generator)) for text in plain)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = Regex(rf"{SEPARATOR}|(.)\1{{{REPEATS - 1}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, behavior="removed"), whole])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        max_token_length=MAX_TOKEN_BYTES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chunked, trainer)
    tokenizer.pre_tokenizer = whole
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
