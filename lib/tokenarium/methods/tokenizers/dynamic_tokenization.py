"""Dynamic tokenization: merge the frequent neighbours of the batch at hand, and make the rows of new tokens on the fly.

Source: Feher, Vulić and Minixhofer, "Retrofitting Large Language Models with Dynamic Tokenization", ACL 2025 (arXiv
2411.18553). Tokens are strings in GPT-2's byte alphabet, one character a byte. Merges are learnt anew on every batch
and never stored; a hypernetwork (see `zett`) or a mean of pieces gives a merged token its input row.
"""

from __future__ import annotations

import heapq
import string
import unicodedata
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor

from tokenarium.methods.tokenizers import bpe

Pair = tuple[str, str]
Batch = list[list[str]]
IsValid = Callable[[str, str], bool]

BLANK, NEWLINE = "Ġ", "Ċ"  # in the byte alphabet
WHITESPACE = frozenset({BLANK, NEWLINE, "ĉ", "č"})  # with tab and carriage return


# Merging


def dynamic_bpe(batch_tokens: Sequence[Sequence[str]], n_merges: int, is_valid: IsValid) -> Batch:
    """Merge the most frequent valid pair of a batch, n_merges times or until no valid pair is left.

    Pairs are counted at every place of all examples, overlaps too. Of equally frequent pairs the one that stands first,
    example by example, is merged; everywhere, from left to right, without overlap. The batch itself stays as it is.
    is_valid: (left, right) -> whether they may be joined; it must depend on the two strings alone.
    Raises ValueError for a negative n_merges.
    """
    if n_merges < 0:
        raise ValueError(f"n_merges must not be negative, got {n_merges}")
    merger = Merger(batch_tokens, is_valid)
    for _ in range(n_merges):
        if not merger.step():
            break
    return merger.tokens


def merged(tokens: Sequence[str], pair: Pair) -> list[str]:
    """One example with a pair joined, from left to right, without overlap."""
    found, place = [], 0
    while place < len(tokens):
        joined = tuple(tokens[place : place + 2]) == pair
        found.append(pair[0] + pair[1] if joined else tokens[place])
        place += 1 + joined
    return found


class Merger:
    """A batch and how often each valid pair stands in it, kept up to date while pairs are merged.

    Only examples that hold the merged pair are counted anew. A heap holds every pair's frequency and the first example
    that it stands in; entries that are out of date are dropped when they come up.
    """

    def __init__(self, batch_tokens: Iterable[Sequence[str]], is_valid: IsValid):
        self.tokens: Batch = [list(tokens) for tokens in batch_tokens]
        self.frequencies: Counter[Pair] = Counter()
        self._is_valid = cache(is_valid)
        self._where: dict[Pair, Counter[int]] = {}
        self._heap: list[tuple[int, int, Pair]] = []
        self._count(range(len(self.tokens)), 1)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))

    def best(self) -> Pair | None:
        """The pair to merge next; None if no valid one is left."""
        while self._heap:
            fewest, first, pair = self._heap[0]
            if self.frequencies.get(pair) == -fewest and min(self._where[pair]) == first:
                # No equally frequent pair stands in an earlier example, so the first of them in this one comes first.
                return next(each for each in pairwise(self.tokens[first]) if self.frequencies.get(each) == -fewest)
            heapq.heappop(self._heap)
        return None

    def merge(self, pair: Pair) -> None:
        """Join a pair that stands in the batch, everywhere."""
        examples = sorted(self._where[pair])
        touched = self._count(examples, -1)
        for index in examples:
            self.tokens[index] = merged(self.tokens[index], pair)
        self._count(examples, 1, touched)

    def step(self) -> bool:
        """Merge the best pair; False if there is none."""
        pair = self.best()
        if pair is not None:
            self.merge(pair)
        return pair is not None

    def _count(self, examples: Iterable[int], sign: int, touched: Collection[Pair] = ()) -> set[Pair]:
        """Add or take away the pairs of some examples; returns which. Heap entries are made when they are added."""
        changed = set(touched)
        for index in examples:
            for pair in pairwise(self.tokens[index]):
                if self._is_valid(*pair):
                    changed.add(pair)
                    self.frequencies[pair] += sign
                    self._where.setdefault(pair, Counter())[index] += sign
                    if not self._where[pair][index]:
                        del self._where[pair][index]
        if sign > 0:
            for pair in changed:
                if self.frequencies[pair]:
                    heapq.heappush(self._heap, (-self.frequencies[pair], min(self._where[pair]), pair))
                else:
                    del self.frequencies[pair], self._where[pair]
        return changed


def random_merges(
    batch_tokens: Sequence[Sequence[str]], num_tokens: int, is_valid: IsValid, rng: np.random.Generator
) -> Batch:
    """The control: merge pairs drawn alike from the distinct valid ones until at most num_tokens tokens are left."""
    merger = Merger(batch_tokens, is_valid)
    while merger.num_tokens > num_tokens and merger.frequencies:
        pairs = tuple(merger.frequencies)
        merger.merge(pairs[rng.integers(len(pairs))])
    return merger.tokens


def dropped(batch_tokens: Sequence[Sequence[str]], num_tokens: int, rng: np.random.Generator) -> Batch:
    """The other control: leave out tokens at random until at most num_tokens are left; each example keeps one."""
    places = [(row, place) for row, tokens in enumerate(batch_tokens) for place in range(1, len(tokens))]
    surplus = min(max(sum(map(len, batch_tokens)) - num_tokens, 0), len(places))
    gone = {places[index] for index in rng.permutation(len(places))[:surplus]}
    return [
        [token for place, token in enumerate(tokens) if (row, place) not in gone]
        for row, tokens in enumerate(batch_tokens)
    ]


def learnt_merges(batch_tokens: Sequence[Sequence[str]], n_merges: int, is_valid: IsValid) -> list[Pair]:
    """The pairs that `dynamic_bpe` merges, in order: kept, they are a static, larger BPE."""
    merger, pairs = Merger(batch_tokens, is_valid), []
    while len(pairs) < n_merges and (pair := merger.best()) is not None:
        merger.merge(pair)
        pairs.append(pair)
    return pairs


def static_bpe(tokens: Sequence[str], ranks: dict[Pair, int]) -> list[str]:
    """Apply stored merges to one example, the earliest-learnt pair first. ranks: pair -> its place in the list."""
    tokens = list(tokens)
    while pairs := [pair for pair in pairwise(tokens) if pair in ranks]:
        tokens = merged(tokens, min(pairs, key=ranks.__getitem__))
    return tokens


# How many merges


def merge_lengths(batch_tokens: Sequence[Sequence[str]], is_valid: IsValid) -> NDArray[np.int64]:
    """Tokens of the batch after 0, 1, 2, ... merges until no valid pair is left, (merges + 1,)."""
    merger = Merger(batch_tokens, is_valid)
    lengths = [merger.num_tokens]
    while merger.step():
        lengths.append(merger.num_tokens)
    return np.array(lengths, dtype=np.int64)


def mean_lengths(batches: Iterable[Sequence[Sequence[str]]], is_valid: IsValid) -> NDArray[np.float64]:
    """The map merges -> mean tokens of an example over all batches; a batch without pairs left stays at its length."""
    batches = list(batches)
    curves = [merge_lengths(batch, is_valid) for batch in batches]
    most = max(map(len, curves))
    total = sum(np.pad(curve, (0, most - len(curve)), mode="edge") for curve in curves)
    return total / sum(map(len, batches))


def merges_for(lengths: NDArray[np.floating], share: float) -> int:
    """The fewest merges that reach a share of the greatest reduction. lengths: as from `mean_lengths`.

    share: 0 is the original tokens, 1 is all merges that the boundary allows. Raises ValueError outside of [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    wanted = share * (lengths[0] - lengths[-1])
    return bisect_left(lengths[0] - lengths, wanted - 1e-9)


# Which pairs are valid


def pretokens(pre_tokenizer: PreTokenizer, special: Collection[str] = ()) -> IsValid:
    """Boundary "pretokens": what a model's own pre-tokenizer leaves in one piece may be joined."""
    return _within(lambda text: len(pre_tokenizer.pre_tokenize_str(text)) == 1, special)


def word(special: Collection[str] = ()) -> IsValid:
    """Boundary "word": what no blank divides may be joined, punctuation with what it is attached to."""
    return _within(lambda text: len(_BLANKS.pre_tokenize_str(text)) <= 1, special)


def word_hyphen(special: Collection[str] = ()) -> IsValid:
    """Boundary "word_hyphen": as "word", but of all punctuation only hyphens are attached to anything."""
    return _within(
        lambda text: (
            len(_BLANKS.pre_tokenize_str(text)) <= 1
            and not any(_is_punctuation(character) and character != "-" for character in text)
        ),
        special,
    )


def sentence(special: Collection[str] = ()) -> IsValid:
    """Boundary "sentence": everything but special tokens may be joined, across words too."""
    return lambda left, right: left not in special and right not in special


_BLANKS = pre_tokenizers.WhitespaceSplit()


def _within(in_one_piece: Callable[[str], bool], special: Collection[str]) -> IsValid:
    """What the three narrow boundaries have in common. in_one_piece: told the joined text, where it is valid UTF-8."""

    @cache
    def is_valid(left: str, right: str) -> bool:
        token = left + right
        if left in special or right in special:
            return False
        if WHITESPACE.issuperset(token):
            if token.count(NEWLINE) > 1:
                return False
        elif not WHITESPACE.isdisjoint(token[1:]):
            return False
        try:
            return in_one_piece(bpe.from_characters(token).decode())
        except UnicodeDecodeError:
            return True  # parts of a character may always grow together

    return is_valid


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


# Rows on the fly


class RowCache:
    """Input rows by token, made when they are first needed; the `size` last used ones are kept.

    make_rows: distinct tokens -> their rows, (tokens, d).
    """

    def __init__(self, make_rows: Callable[[list[str]], Tensor], size: int = 5000):
        self._make_rows, self._size = make_rows, size
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, tokens: Iterable[str]) -> Tensor:
        """The rows of some tokens, (tokens, d)."""
        tokens = list(tokens)
        missing = [token for token in dict.fromkeys(tokens) if token not in self._known]
        if missing:
            self._known.update(zip(missing, self._make_rows(missing), strict=True))
        for token in dict.fromkeys(tokens):
            self._known.move_to_end(token)
        rows = torch.stack([self._known[token] for token in tokens])
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return rows


def embed(
    batch_tokens: Sequence[Sequence[str]], rows: Callable[[Iterable[str]], Tensor], start: Tensor, side: str = "right"
) -> tuple[Tensor, Tensor]:
    """What the model is given instead of ids: inputs_embeds (B, T, d) and attention_mask (B, T) int64.

    rows: tokens -> (tokens, d), called once with the batch's distinct tokens. start: (d,), the special row in front of
    each example. side: where padding (zeros) goes: "right" for encoders, "left" for prompts that are to be continued.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    distinct = list(dict.fromkeys(token for tokens in batch_tokens for token in tokens))
    table = torch.cat([start[None], rows(distinct)]) if distinct else start[None]
    place_of = {token: place + 1 for place, token in enumerate(distinct)}
    longest = 1 + max(map(len, batch_tokens))
    places = torch.zeros(len(batch_tokens), longest, dtype=torch.long, device=table.device)
    mask = torch.zeros_like(places)
    for row, tokens in enumerate(batch_tokens):
        begin = 0 if side == "right" else longest - 1 - len(tokens)
        span = slice(begin, begin + 1 + len(tokens))
        places[row, span] = torch.tensor([0, *(place_of[token] for token in tokens)], device=table.device)
        mask[row, span] = 1
    return table[places] * mask[..., None], mask


# The large vocabulary


def longest_prefix_tokenizer(tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer without merges: GPT-2's words, each cut into the longest known tokens from its front on.

    tokens: in the byte alphabet, all single bytes among them; ids are their places. Raises ValueError if a byte lacks.
    """
    missing = set(map(bpe.to_characters, bpe.BYTE_ALPHABET)) - set(tokens)
    if missing:
        raise ValueError(f"{len(missing)} single bytes are not in the vocabulary, {min(missing)!r} among them")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token=tokens[0], continuing_subword_prefix="", max_input_chars_per_word=1_000_000
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
