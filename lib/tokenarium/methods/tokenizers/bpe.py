"""Byte-pair encoding shared by the family: training, nested truncation, replay with pair counts, SuperBPE.

A merge list is a list of (left, right) byte strings in the order of learning; symbols are byte strings too, so that
byte-level tokenizers and character-level ones (SentencePiece) look alike. A *word* is what the pre-tokenizer yields:
`bytes` (its symbols are its single bytes) or a tuple of symbols.

Pairs are counted at every place where they stand side by side, overlaps included ("aaa" holds (a, a) twice), and
merged from left to right without overlap ("aaa" becomes "aa" "a"), as the `tokenizers` library does. Equal counts: the
pair with the lower ids wins, left id first; ids are those of `BYTE_ALPHABET`, then one for each new token.

Sources: Sennrich et al. 2016 (BPE); Liu et al. 2025, arXiv 2503.13423 (SuperBPE).
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

Pair = tuple[bytes, bytes]
Word = bytes | tuple[bytes, ...]


def _byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary: itself if it prints, else one above U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256))
    return [chr(byte) if byte in printable else chr(256 + next(others)) for byte in range(256)]


_CHARACTER = _byte_characters()
_BYTE = {character: byte for byte, character in enumerate(_CHARACTER)}
# All bytes in the order of their GPT-2 characters, which is the order of their ids.
BYTE_ALPHABET = [bytes([_BYTE[character]]) for character in sorted(_CHARACTER)]
_BYTE_ID = np.empty(256, dtype=np.int64)
_BYTE_ID[[symbol[0] for symbol in BYTE_ALPHABET]] = np.arange(256)

SUPER_SPLIT = r"\p{N}{1,3}|[^\s\p{L}\p{M}\p{N}]{2,}|\s*[\r\n]+\s*|\s+$"


def to_characters(symbol: bytes) -> str:
    """Bytes in GPT-2's printable characters, as byte-level vocabularies write them."""
    return "".join(_CHARACTER[byte] for byte in symbol)


def from_characters(token: str) -> bytes:
    """The bytes that GPT-2's characters stand for. Raises ValueError for a character that stands for none."""
    try:
        return bytes(_BYTE[character] for character in token)
    except KeyError as error:
        raise ValueError(f"{token!r} is no byte-level token: {error.args[0]!r} stands for no byte") from None


def gpt2_words() -> PreTokenizer:
    """GPT-2's split into words, blanks kept at their front."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def digit_words() -> PreTokenizer:
    """GPT-2's split after digits were set apart in runs (the controlled tokenizers of arXiv 2407.16607)."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), gpt2_words()])


def super_words() -> PreTokenizer:
    """SuperBPE's second stage: blanks do not split; numbers by three digits, runs of marks and line ends do."""
    split = pre_tokenizers.Split(Regex(SUPER_SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def count_words(
    texts: Iterable[str], pre_tokenizer: PreTokenizer, normalizer: Normalizer | None = None
) -> Counter[bytes]:
    """How often each word occurs in the texts under a byte-level pre-tokenizer, in order of first occurrence."""
    counts: Counter[str] = Counter()
    for text in texts:
        normal = normalizer.normalize_str(text) if normalizer else text
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normal))
    return Counter({from_characters(word): count for word, count in counts.items()})


# Training


@dataclass(frozen=True)
class Bpe:
    """A byte-level BPE: its merges in order, and its pre-tokenizer. Ids: BYTE_ALPHABET's, then the merges' tokens."""

    merges: tuple[Pair, ...]
    pre_tokenizer: PreTokenizer

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """Every token once, in the order of ids."""
        return list(dict.fromkeys([*BYTE_ALPHABET, *(left + right for left, right in self.merges)]))

    def truncate(self, vocab_size: int) -> Bpe:
        """The BPE of a smaller vocabulary: merges are learnt greedily, so a prefix of them is its training.

        Raises ValueError unless 256 <= vocab_size <= the vocabulary's size.
        """
        if not 256 <= vocab_size <= len(self.vocabulary):
            raise ValueError(f"vocab_size must be between 256 and {len(self.vocabulary)}, got {vocab_size}")
        kept = set(self.vocabulary[:vocab_size])
        last = max((index for index, pair in enumerate(self.merges) if pair[0] + pair[1] in kept), default=-1)
        return Bpe(self.merges[: last + 1], self.pre_tokenizer)

    def tokenizer(self) -> Tokenizer:
        """A `tokenizers.Tokenizer` that encodes with these merges, without special tokens."""
        vocab = {to_characters(token): index for index, token in enumerate(self.vocabulary)}
        merges = [(to_characters(left), to_characters(right)) for left, right in self.merges]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        tokenizer.pre_tokenizer = self.pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


def train(texts: Iterable[str], vocab_size: int, pre_tokenizer: PreTokenizer | None = None) -> Bpe:
    """Train a byte-level BPE with the `tokenizers` library: all 256 bytes, every pair counts however rare.

    pre_tokenizer: byte-level; None takes GPT-2's. The vocabulary is smaller than `vocab_size` where no pair is left.
    Raises ValueError for a vocab_size below 256.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, one for each byte, got {vocab_size}")
    pre_tokenizer = pre_tokenizer or gpt2_words()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Bpe(tuple(merges_of(tokenizer)), pre_tokenizer)


def train_words(
    word_counts: Mapping[Word, int],
    num_merges: int,
    allowed: Callable[[bytes], bool] | None = None,
    alphabet: Sequence[bytes] = BYTE_ALPHABET,
) -> list[Pair]:
    """Train on counted words; `allowed` may refuse a token, whose pair is then never merged.

    alphabet: symbols in the order of their ids, for the ties; symbols of the words that it lacks follow, sorted.
    Returns up to `num_merges` merges, fewer where no pair is left. The result equals `train`'s on the same words.
    """
    corpus = _Corpus([word_counts], alphabet)
    queue = [(-count, *corpus.symbols_of(pair), pair) for pair, count in enumerate(corpus.initial[:, 0].tolist())]
    heapq.heapify(queue)
    current = corpus.initial[:, 0].tolist()
    merges: list[Pair] = []
    while queue and len(merges) < num_merges:
        negative, left, right, pair = heapq.heappop(queue)
        if -negative != current[pair]:  # an old entry: the pair has become rarer, or was pushed again
            if 0 < current[pair] < -negative:
                heapq.heappush(queue, (-current[pair], left, right, pair))
            continue
        if allowed and not allowed(corpus.symbols[left] + corpus.symbols[right]):
            current[pair] = -1  # never equal to an entry of the queue
            continue
        merges.append((corpus.symbols[left], corpus.symbols[right]))
        changed, deltas = corpus.merge(pair)
        current.extend([0] * (corpus.num_pairs - len(current)))
        for other, delta in zip(changed.tolist(), deltas[:, 0].tolist(), strict=True):
            if current[other] < 0:
                continue
            current[other] += delta
            if delta > 0:
                heapq.heappush(queue, (-current[other], *corpus.symbols_of(other), other))
    return merges


def train_super(
    texts: Sequence[str],
    vocab_size: int,
    transition: int,
    max_words: int = 4,
    pre_tokenizer: PreTokenizer | None = None,
) -> Bpe:
    """Train a SuperBPE: ordinary BPE up to `transition` tokens, then merges that may bridge blanks.

    The second stage goes on from the first one's segmentation of each stretch of `super_words`. A token of more than
    `max_words` words, or with a colon before its last byte, is refused (the released variant). transition = vocab_size
    gives ordinary BPE. Raises ValueError unless 256 <= transition <= vocab_size.
    """
    if not 256 <= transition <= vocab_size:
        raise ValueError(f"transition must be between 256 and vocab_size {vocab_size}, got {transition}")
    first = train(texts, transition, pre_tokenizer)
    if transition == vocab_size:
        return first
    bridging = Bpe(first.merges, super_words())
    tokenizer, vocabulary = bridging.tokenizer(), bridging.vocabulary
    stretches: Counter[tuple[bytes, ...]] = Counter()
    words = Counter(word for text in texts for word, _ in bridging.pre_tokenizer.pre_tokenize_str(text))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])  # the stretches are split and in GPT-2's characters already
    for encoding, count in zip(tokenizer.encode_batch(list(words)), words.values(), strict=True):
        stretches[tuple(vocabulary[index] for index in encoding.ids)] += count

    def allowed(token: bytes) -> bool:
        return len(token.split()) <= max_words and b":" not in token[:-1]

    second = train_words(stretches, vocab_size - len(vocabulary), allowed, vocabulary)
    return Bpe((*first.merges, *second), bridging.pre_tokenizer)


# Applying merges


def ranks(merges: Iterable[Pair]) -> dict[Pair, int]:
    """The place of each merge in the list; the first one where a list repeats itself."""
    found: dict[Pair, int] = {}
    for rank, pair in enumerate(merges):
        found.setdefault(pair, rank)
    return found


def segment(word: Word, rank: Mapping[Pair, int]) -> list[bytes]:
    """The tokens of one word: the merge of the lowest rank, everywhere from left to right, until none applies."""
    symbols = _bytes(word) if isinstance(word, bytes) else list(word)
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        symbols = _merged(symbols, best)
    return symbols


def _merged(symbols: list[bytes], pair: Pair) -> list[bytes]:
    out: list[bytes] = []
    index = 0
    while index < len(symbols):
        if tuple(symbols[index : index + 2]) == pair:
            out.append(pair[0] + pair[1])
            index += 2
        else:
            out.append(symbols[index])
            index += 1
    return out


# Merge lists of real tokenizers


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary is written in GPT-2's characters for bytes."""
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"])


def merges_of(tokenizer: Tokenizer) -> list[Pair]:
    """The merge list of a BPE tokenizer as bytes: GPT-2's characters undone, or plain UTF-8 where it has none.

    Raises ValueError for a model that is no BPE.
    """
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} model has no merges")
    encode = from_characters if is_byte_level(tokenizer) else str.encode
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(encode(left), encode(right)) for left, right in pairs]


def clean_merges(merges: Sequence[Pair], drop_runs: bool = False) -> list[Pair]:
    """One merge for each token out of a converted list (SentencePiece, tiktoken) that names every way to make it.

    The merge stays that encoding the token goes through, where the rank of a merge is the place at which its product is
    first made. That is the way whose ranks, sorted, are the smallest (arXiv 2407.16607), but for runs of equal symbols,
    where it is the encoder that counts. A token that encoding never reaches keeps the way of the smallest ranks.
    drop_runs: also drop runs of blanks, "▁", newlines or tabs, which Gemma's list adds by hand.
    """
    rank: dict[bytes, int] = {}
    ways: dict[bytes, list[Pair]] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
        ways.setdefault(left + right, []).append((left, right))
    unmade = {symbol for pair in merges for symbol in pair} - set(rank)
    symbols = _characters if any(len(symbol) > 1 for symbol in unmade) else _bytes
    history: dict[bytes, list[int]] = {}
    chosen: dict[bytes, Pair] = {}
    for token in sorted(ways, key=len):  # what a token is made of is shorter than it
        histories = {
            way: sorted((*history.get(way[0], ()), *history.get(way[1], ()), rank[token])) for way in ways[token]
        }
        reached = _last_merge(token, symbols, rank)
        chosen[token] = reached if reached in histories else min(histories, key=histories.__getitem__)
        history[token] = histories[chosen[token]]
    kept = (chosen[token] for token in ways)
    return [pair for pair in kept if not (drop_runs and _is_run(pair[0] + pair[1]))]


def _last_merge(token: bytes, symbols: Callable[[bytes], list[bytes]], rank: Mapping[bytes, int]) -> Pair:
    """The two parts that are left when a token is encoded, from its symbols on, up to its own merge."""
    parts = symbols(token)
    while len(parts) > 2:
        places = [rank.get(left + right, len(rank)) for left, right in pairwise(parts)]
        index = places.index(min(places))
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def _bytes(token: bytes) -> list[bytes]:
    return [token[index : index + 1] for index in range(len(token))]


def _characters(token: bytes) -> list[bytes]:
    return [character.encode() for character in token.decode()]


def _is_run(token: bytes) -> bool:
    return any(len(token) > len(mark) and token == mark * (len(token) // len(mark)) for mark in _RUN_MARKS)


_RUN_MARKS = (b" ", b"\n", b"\t", "▁".encode())


# Replay


@dataclass(frozen=True)
class Replay:
    """Pair counts of n categories before each of T merges, as changes from step to step.

    pairs: P pairs, those of the text first. initial: (P0, n) int64, the counts of the first P0 pairs before the first
    merge; all others are 0. merge_pair: (T,) int64, the place of merge t in `pairs`, -1 where it never occurs.
    start: (T + 1,) int64: `changed[start[t]:start[t + 1]]` are the pairs whose counts merge t changes, and the same
    rows of `delta` (C, n) int64 say by how much.
    """

    pairs: list[Pair]
    initial: NDArray[np.int64]
    merge_pair: NDArray[np.int64]
    start: NDArray[np.int64]
    changed: NDArray[np.int64]
    delta: NDArray[np.int64]

    @property
    def num_steps(self) -> int:
        return len(self.merge_pair)

    @property
    def num_pairs_at_start(self) -> NDArray[np.int64]:
        """(n,) adjacent pairs of each category before the first merge: N_i of arXiv 2407.16607."""
        return self.initial.sum(axis=0)

    def counts(self) -> Iterator[NDArray[np.int64]]:
        """(P, n) counts before each of the T merges. The same array every time: copy what you keep."""
        counts = np.zeros((len(self.pairs), self.initial.shape[1]), dtype=np.int64)
        counts[: len(self.initial)] = self.initial
        for step in range(self.num_steps):
            yield counts
            part = slice(self.start[step], self.start[step + 1])
            counts[self.changed[part]] += self.delta[part]

    def first(self, num_steps: int) -> Replay:
        """The replay of the first `num_steps` merges only."""
        last = self.start[min(num_steps, self.num_steps)]
        known = max(len(self.initial), int(self.changed[:last].max(initial=-1)) + 1)
        merge_pair = self.merge_pair[:num_steps]
        return Replay(
            self.pairs[:known],
            self.initial,
            np.where(merge_pair < known, merge_pair, -1),
            self.start[: num_steps + 1],
            self.changed[:last],
            self.delta[:last],
        )

    def rest(self, step: int) -> Replay:
        """The replay from merge `step` on; what was merged before is part of the start."""
        counts = next((counts for now, counts in enumerate(self.counts()) if now == step), None)
        if counts is None:
            raise ValueError(f"step must be below {self.num_steps}, got {step}")
        begin = self.start[step]
        return Replay(
            self.pairs,
            counts.copy(),
            self.merge_pair[step:],
            self.start[step:] - begin,
            self.changed[begin:],
            self.delta[begin:],
        )

    def select(self, categories: Sequence[int]) -> Replay:
        """The replay of some of the categories, in this order."""
        columns = list(categories)
        return Replay(
            self.pairs, self.initial[:, columns], self.merge_pair, self.start, self.changed, self.delta[:, columns]
        )


def replay(merges: Sequence[Pair], categories: Sequence[Mapping[Word, int]]) -> Replay:
    """Apply the merges one by one to the counted words of each category and keep the changes of all pair counts.

    Raises ValueError without a category or for one without any pair.
    """
    corpus = _Corpus(categories, wanted=set(merges))
    start, changed, delta, merge_pair = [0], [], [], []
    for left, right in merges:
        pair = corpus.find(left, right)
        merge_pair.append(pair)
        if pair >= 0:
            ids, deltas = corpus.merge(pair)
            changed.append(ids)
            delta.append(deltas)
        start.append(start[-1] + (len(changed[-1]) if pair >= 0 else 0))
    n = len(categories)
    return Replay(
        corpus.pairs(),
        corpus.initial,
        np.array(merge_pair, dtype=np.int64),
        np.array(start, dtype=np.int64),
        np.concatenate([*changed, np.zeros(0, dtype=np.int64)]),
        np.concatenate([*delta, np.zeros((0, n), dtype=np.int64)]),
    )


class _Corpus:
    """The distinct words of all categories as one array of symbols with links, merged in place.

    A merge touches only the places where its pair stands, all at once: where they are is kept per pair, and may name
    places that other merges have changed since.
    """

    def __init__(
        self,
        categories: Sequence[Mapping[Word, int]],
        alphabet: Sequence[bytes] = BYTE_ALPHABET,
        wanted: set[Pair] | None = None,
    ):
        if not categories:
            raise ValueError("a corpus needs at least one category")
        self.num_categories = len(categories)
        words = [word for category in categories for word in category]
        weights = np.array([count for category in categories for count in category.values()], dtype=np.int64)
        owner = np.repeat(np.arange(len(categories)), [len(category) for category in categories])
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self.symbol = self._encode(words, alphabet)
        size = len(self.symbol)
        self.weight, self.category = np.repeat(weights, lengths), np.repeat(owner, lengths)
        # Index `size` is a place that holds no symbol: the neighbour of the first and the last of a word.
        self.symbol = np.append(self.symbol, -1)
        self.next, self.previous = np.arange(1, size + 2), np.arange(-1, size)
        ends = np.cumsum(lengths)[lengths > 0]
        self.next[ends - 1] = size
        self.previous[(ends - lengths[lengths > 0])] = size
        self.next[size] = self.previous[size] = size

        places = np.flatnonzero(self.symbol[self.next[:-1]] >= 0)
        codes, inverse = np.unique(self._codes(places), return_inverse=True)
        self.initial = self._tally(inverse, places, len(codes), 1)
        for index, total in enumerate(self.initial.sum(axis=0)):
            if total == 0:
                raise ValueError(f"category {index} has no pair of symbols: give it more text")
        self._codes_of_pairs: list[int] = codes.tolist()
        self._id = {code: pair for pair, code in enumerate(self._codes_of_pairs)}
        order = np.argsort(inverse, kind="stable")
        self._sorted = places[order]
        self._bounds = np.append(0, np.cumsum(np.bincount(inverse, minlength=len(codes))))
        self._added: dict[int, list[NDArray[np.int64]]] = {}
        self._wanted = wanted

    def _encode(self, words: Sequence[Word], alphabet: Sequence[bytes]) -> NDArray[np.int64]:
        self.symbols = list(alphabet)
        self._symbol_id = {symbol: index for index, symbol in enumerate(self.symbols)}
        if all(isinstance(word, bytes) for word in words) and self.symbols[:256] == BYTE_ALPHABET:
            return _BYTE_ID[np.frombuffer(b"".join(words), dtype=np.uint8)]
        parts = [_bytes(word) if isinstance(word, bytes) else word for word in words]
        for symbol in sorted({symbol for part in parts for symbol in part} - set(self.symbols)):
            self._intern(symbol)
        return np.array([self._symbol_id[symbol] for part in parts for symbol in part], dtype=np.int64)

    def _intern(self, symbol: bytes) -> int:
        if symbol not in self._symbol_id:
            self._symbol_id[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        return self._symbol_id[symbol]

    def _codes(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.symbol[places] << 32 | self.symbol[self.next[places]]

    def _tally(self, group: NDArray, places: NDArray, groups: int, sign: int | NDArray) -> NDArray[np.int64]:
        """(groups, n) summed weights. float64 sums of whole numbers are exact below 2^53."""
        key = group * self.num_categories + self.category[places]
        sums = np.bincount(key, weights=sign * self.weight[places], minlength=groups * self.num_categories)
        return sums.astype(np.int64).reshape(groups, self.num_categories)

    @property
    def num_pairs(self) -> int:
        return len(self._codes_of_pairs)

    def symbols_of(self, pair: int) -> tuple[int, int]:
        code = self._codes_of_pairs[pair]
        return code >> 32, code & 0xFFFFFFFF

    def pairs(self) -> list[Pair]:
        return [(self.symbols[code >> 32], self.symbols[code & 0xFFFFFFFF]) for code in self._codes_of_pairs]

    def find(self, left: bytes, right: bytes) -> int:
        """The pair's id, or -1 if it never occurred."""
        a, b = self._symbol_id.get(left), self._symbol_id.get(right)
        return -1 if a is None or b is None else self._id.get(a << 32 | b, -1)

    def _places(self, pair: int) -> NDArray[np.int64]:
        """Where the pair stands now, ascending, without overlaps."""
        found = self._added.pop(pair, [])
        if pair < len(self._bounds) - 1:
            found.append(self._sorted[self._bounds[pair] : self._bounds[pair + 1]])
        places = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
        places = places[self.symbol[places] >= 0]
        places = places[self._codes(places) == self._codes_of_pairs[pair]]
        left, right = self.symbols_of(pair)
        if left == right and len(places):
            # In a run of overlapping places every second one counts, from the left.
            index = np.arange(len(places))
            begins = np.append(True, self.previous[places[1:]] != places[:-1])
            places = places[(index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0]
        return places

    def merge(self, pair: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Merge a pair everywhere; returns the pairs whose counts changed (C,) and by how much (C, n)."""
        left, right = self.symbols_of(pair)
        first = self._places(pair)
        second = self.next[first]
        new = self._intern(self.symbols[left] + self.symbols[right])
        before = np.unique(np.concatenate([self.previous[first], first, second]))
        before = before[(before < len(self.weight)) & (self.symbol[self.next[before]] >= 0)]
        old_codes = self._codes(before)

        after_second = self.next[second]
        self.symbol[first] = new
        self.symbol[second] = -1
        self.next[first] = after_second
        self.previous[after_second] = first
        self.previous[-1] = len(self.weight)

        after = np.unique(np.concatenate([self.previous[first], first]))
        after = after[(after < len(self.weight)) & (self.symbol[self.next[after]] >= 0)]
        new_codes = self._codes(after)

        places = np.concatenate([before, after])
        sign = np.repeat([-1, 1], [len(before), len(after)])
        codes, inverse = np.unique(np.concatenate([old_codes, new_codes]), return_inverse=True)
        ids = np.array([self._pair_id(code) for code in codes.tolist()], dtype=np.int64)
        deltas = self._tally(inverse, places, len(codes), sign)
        self._remember(ids, inverse[len(before) :], after)
        changed = deltas.any(axis=1)
        return ids[changed], deltas[changed]

    def _pair_id(self, code: int) -> int:
        pair = self._id.setdefault(code, len(self._codes_of_pairs))
        if pair == len(self._codes_of_pairs):
            self._codes_of_pairs.append(code)
        return pair

    def _remember(self, ids: NDArray[np.int64], inverse: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Note where the new pairs stand; those that no later merge asks for are left out."""
        if not len(places):
            return
        order = np.argsort(inverse, kind="stable")
        groups, starts = np.unique(inverse[order], return_index=True)
        for pair, part in zip(ids[groups].tolist(), np.split(places[order], starts[1:]), strict=True):
            if self._wanted is not None:
                left, right = self.symbols_of(pair)
                if (self.symbols[left], self.symbols[right]) not in self._wanted:
                    continue
            self._added.setdefault(pair, []).append(part)
