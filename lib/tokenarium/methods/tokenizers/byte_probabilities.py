"""Exact next-byte probabilities of a language model over tokens, and what is compared with them.

A *cover* of the bytes x is a valid encoding (see valid_encodings) that has x as a prefix and whose last token reaches
or passes the end of x. Source: arXiv 2410.09303 (the Byte-Token Representation lemma):

    P(x_1 .. x_n) = sum over covers t of P(t_1 .. t_k)

Log probabilities are natural. `logp_next` maps the ids before to the log probabilities of all V next ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenarium.methods.tokenizers.valid_encodings import Codec, PrefixIndex, is_valid, whole_characters

BYTES = 256
UNK, BOS, EOS = 256, 257, 258
SYMBOLS = 259
SHARPENING_FLOOR = 1e-7

Ids = tuple[int, ...]
LogpNext = Callable[[list[int]], Tensor]


class Cover(NamedTuple):
    """One cover: its ids, what its last token holds beyond the end of the bytes, its log weight."""

    ids: Ids
    bytes_left: bytes
    logw: float


# From the tokenizer's two functions alone


def next_byte_probs(
    prompt: bytes,
    encode: Callable[..., Sequence[int]],
    decode: Callable[..., str | bytes],
    token_bytes: Sequence[bytes | None],
    logp_next: LogpNext,
    mask: bool = True,
    *,
    specials: Mapping[int, int] | None = None,
) -> Tensor:
    """P(next byte | prompt): (259,) float64, the bytes, then unk, bos and eos.

    encode, decode: of str or of bytes (whichever decode returns), with or without a start symbol. token_bytes: (V,),
    empty or None for special ids. mask: leave out the tokens that make encode(prompt) invalid; without it the covers
    that reach beyond the prompt are checked all the same (the authors' fast mode).
    specials: special id -> symbol; by default the first three in the order of ids are unk, bos and eos, the only one
    is eos, the only two are bos and eos. Others are symbols of their own, which take part in the normalisation and are
    not returned. Raises ValueError for a prompt that ends inside a character or that `encode` changes.
    """
    text = _text_type(decode, token_bytes)
    covers = initial_cover(prompt, encode, decode, token_bytes, logp_next)
    weights = torch.tensor([cover.logw for cover in covers], dtype=torch.float64)
    weights = torch.exp(weights - weights.max())
    symbols = torch.from_numpy(symbols_of(token_bytes, specials))
    mass = torch.zeros(max(SYMBOLS, int(symbols.max()) + 1), dtype=torch.float64)
    for cover, weight in zip(covers, weights, strict=True):
        if cover.bytes_left:
            mass[cover.bytes_left[0]] += weight
            continue
        p = torch.as_tensor(logp_next(list(cover.ids))).double().exp()
        if mask:
            p = p * torch.tensor(
                [_follows(cover.ids, index, encode, decode, token_bytes, text) for index in range(len(p))]
            )
        mass.index_add_(0, symbols[: len(p)], weight * p)
    return (mass / mass.sum())[:SYMBOLS]


def initial_cover(
    prompt: bytes,
    encode: Callable[..., Sequence[int]],
    decode: Callable[..., str | bytes],
    token_bytes: Sequence[bytes | None],
    logp_next: LogpNext,
) -> list[Cover]:
    """All covers of a prompt, the one that ends with it first. Their weights leave out what all of them begin with.

    Covers are looked for at every place where a token could begin that reaches the end, so the prompt needs no blank.
    Raises ValueError as `next_byte_probs` does.
    """
    text = _text_type(decode, token_bytes)
    if text is str and whole_characters(prompt) != len(prompt):
        raise ValueError(f"the prompt ends inside a character: {prompt[-8:]!r}")
    index = PrefixIndex(token_bytes)
    whole = tuple(encode(_as(text, prompt)))
    data = _spelled(whole, token_bytes)
    if not data.endswith(prompt):
        raise ValueError(f"encode changes the prompt: its ids stand for {data[-40:]!r}")
    before = len(data) - len(prompt)  # a start symbol or a blank that the tokenizer puts in front
    found: list[tuple[Ids, int]] = []
    for place in range(max(0, len(data) - index.longest), len(data)):
        after = index.starting_with(data[place:])
        kept = prompt[: max(0, place - before)]
        if len(after) == 0 or (text is str and whole_characters(kept) != len(kept)):
            continue
        left = tuple(encode(_as(text, kept)))
        if _spelled(left, token_bytes) == data[:place]:
            found += [(left, int(r)) for r in after if _follows(left, int(r), encode, decode, token_bytes, text)]
    found = [(left, r) for left, r in found if (*left, r) != whole]
    shared = _common_length([whole, *(left for left, _ in found)])
    rows: dict[Ids, Tensor] = {}

    def logw(ids: Ids) -> float:
        total = 0.0
        for count in range(shared, len(ids)):
            context = ids[:count]
            if context not in rows:
                rows[context] = torch.as_tensor(logp_next(list(context))).double()
            total += float(rows[context][ids[count]])
        return total

    covers = [Cover(whole, b"", logw(whole))]
    for left, r in found:
        ids = (*left, r)
        covers.append(Cover(ids, _spelled(ids, token_bytes)[len(data) :], logw(ids)))
    return covers


def tokenized_next_byte_probs(
    ids: Sequence[int],
    token_bytes: Sequence[bytes | None],
    logp_next: LogpNext,
    specials: Mapping[int, int] | None = None,
) -> Tensor:
    """The biased baseline: P(symbol) = sum of P(token | ids) over the tokens that begin with it; (259,) float64."""
    symbols = torch.from_numpy(symbols_of(token_bytes, specials))
    p = torch.as_tensor(logp_next(list(ids))).double().exp()
    mass = torch.zeros(max(SYMBOLS, int(symbols.max()) + 1), dtype=torch.float64).index_add_(0, symbols[: len(p)], p)
    return mass[:SYMBOLS]


def symbols_of(token_bytes: Sequence[bytes | None], specials: Mapping[int, int] | None = None) -> NDArray[np.int64]:
    """The symbol that each token begins with: (V,), the 1s of the 0/1 matrix S. specials: see `next_byte_probs`."""
    special = [index for index, spelling in enumerate(token_bytes) if not spelling]
    if specials is None:
        known = (UNK, BOS, EOS)
        specials = dict(zip(special, known[-len(special) :] if len(special) < len(known) else known, strict=False))
    found = np.zeros(len(token_bytes), dtype=np.int64)
    own = SYMBOLS
    for index, spelling in enumerate(token_bytes):
        if spelling:
            found[index] = spelling[0]
        elif index in specials:
            found[index] = specials[index]
        else:
            found[index], own = own, own + 1
    return found


def average(probabilities: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The ensemble: models' (..., symbols) next-byte probabilities, first 259 symbols renormalised, weighted mean.

    weights: default equal; they are made to sum to 1.
    """
    share = torch.ones(len(probabilities), dtype=torch.float64) if weights is None else torch.tensor(weights).double()
    kept = [each[..., :SYMBOLS].double() for each in probabilities]
    stacked = torch.stack([each / each.sum(dim=-1, keepdim=True) for each in kept])
    return torch.tensordot(share / share.sum(), stacked, dims=1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """The authors' temperature, on probabilities: (p + 1e-7)^(1/temperature), normalised over the last axis."""
    powered = (probabilities + SHARPENING_FLOOR) ** (1 / temperature)
    return powered / powered.sum(dim=-1, keepdim=True)


def _text_type(decode: Callable[..., str | bytes], token_bytes: Sequence[bytes | None]) -> type:
    first = next(index for index, spelling in enumerate(token_bytes) if spelling)
    return str if isinstance(decode([first]), str) else bytes


def _as(text: type, data: bytes) -> str | bytes:
    return data.decode() if text is str else data


def _spelled(ids: Iterable[int], token_bytes: Sequence[bytes | None]) -> bytes:
    return b"".join(token_bytes[index] or b"" for index in ids)


def _follows(
    left: Ids,
    index: int,
    encode: Callable[..., Sequence[int]],
    decode: Callable[..., str | bytes],
    token_bytes: Sequence[bytes | None],
    text: type,
) -> bool:
    """Validity of left + [index]; special tokens, and tokens that end inside a character of a str, are let pass."""
    if not token_bytes[index]:
        return True
    if text is str:
        data = _spelled((*left, index), token_bytes)
        end = whole_characters(data)
        if end != len(data):
            return end is not None
    return is_valid((*left, index), encode, decode)


def _common_length(sequences: Sequence[Ids]) -> int:
    """Length of the longest common prefix."""
    count = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


# The same for many places at once, with a codec that checks only the last piece of a text


@dataclass(frozen=True)
class LeftSides:
    """Where the last tokens of the covers of data[:start], data[:start + 1] .. data may begin.

    head: the ids that all covers begin with; sides: (place, valid encoding of data[:place]) for each of them.
    """

    data: bytes
    start: int
    head: Ids
    sides: list[tuple[int, Ids]]

    @property
    def contexts(self) -> list[Ids]:
        """What the model has to see for all weights, the shortest first."""
        kept = {ids[:count] for _, ids in self.sides for count in range(len(self.head), len(ids) + 1)}
        return sorted(kept, key=lambda ids: (len(ids), ids))


def left_sides(codec: Codec, data: bytes, start: int) -> LeftSides:
    """Every left side that has a token to reach data[:start] or beyond. Raises ValueError unless 0 <= start <= len."""
    if not 0 <= start <= len(data):
        raise ValueError(f"start must be between 0 and {len(data)}, got {start}")
    first = codec.head(data[:start])
    sides = [
        (place, ids)
        for place in range(first, len(data))
        if len(codec.index.starting_with(data[place : max(place + 1, start)]))
        for ids in codec.lefts(data[:place])
    ]
    return LeftSides(data, start, tuple(codec.encode(data[:first])), sides)


def prefix_log_marginals(
    codec: Codec, lefts: LeftSides, logp_next: LogpNext, context: Ids = (), floor: float = 0.0, unchecked: bool = False
) -> NDArray[np.float64]:
    """log P(data[:j] | context, head) for j = start .. len(data), the lemma's sum: (len(data) - start + 1,) float64.

    Differences are conditional log probabilities of bytes. context: ids in front of all covers, a start symbol say.
    floor: of the last tokens that share a single byte with the data, those less probable than this are not checked for
    validity; they count if `unchecked` is true: with and without them the exact value is bracketed. 0 checks all.
    """
    data, start = lefts.data, lefts.start
    found = np.full(len(data) - start + 1, -np.inf)
    if codec.head(data[:start]) == start:
        found[0] = 0.0
    known: dict[Ids, float] = {lefts.head: 0.0}

    def weight(ids: Ids) -> float:
        if ids not in known:
            known[ids] = weight(ids[:-1]) + float(logp_next([*context, *ids[:-1]])[ids[-1]])
        return known[ids]

    for place, ids in lefts.sides:
        first, end = codec.index.place(data[place : max(place + 1, start)])
        tokens = codec.index.ids[first:end]
        logp = logp_next([*context, *ids])[torch.from_numpy(tokens)].double().numpy()
        valid = np.full(len(tokens), unchecked)
        asked = _asked(codec, data, place, max(place + 1, start), logp > (np.log(floor) if floor else -np.inf))
        valid[asked] = codec.valid_next(ids, tokens[asked])
        logp = np.where(valid, logp, -np.inf)
        for j in range(max(place + 1, start), len(data) + 1):
            low, high = codec.index.place(data[place:j])
            if low == high:
                break
            found[j - start] = np.logaddexp(found[j - start], weight(ids) + _log_sum(logp[low - first : high - first]))
    return found


def _asked(codec: Codec, data: bytes, place: int, end: int, likely: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the tokens that begin with data[place:end] are checked: the likely, and those that share more."""
    first, _ = codec.index.place(data[place:end])
    low, high = codec.index.place(data[place : max(end, place + 2)])
    asked = likely.copy()
    asked[low - first : high - first] = True
    asked[: len(codec.index.of(data[place:end]))] = True  # sorted by bytes, the token that ends here comes first
    return asked


def _log_sum(values: NDArray[np.float64]) -> float:
    top = values.max(initial=-np.inf)
    return float(top + np.log(np.exp(values - top).sum())) if np.isfinite(top) else -np.inf


# Byte by byte


@dataclass(frozen=True)
class _Reach:
    """Covers beyond the end: a left side, its last tokens, their log weights, how many of their bytes are used."""

    left: Ids
    tokens: NDArray[np.int64]
    logw: NDArray[np.float64]
    used: int


class ByteStream:
    """Next-byte probabilities while bytes are added: one run of the model for every byte after the prompt.

    context: ids in front (a start symbol). specials: id -> symbol, see `next_byte_probs`. floor: after the prompt,
    tokens less probable than this are neither checked for validity in `probabilities` nor kept as covers; 0 is exact.
    prefetch: told all contexts before they are asked for. There is one, except after blanks: what follows them decides
    how they are encoded, so that two encodings may end with the bytes.
    """

    def __init__(
        self,
        codec: Codec,
        logp_next: LogpNext,
        prompt: bytes,
        context: Ids = (),
        specials: Mapping[int, int] | None = None,
        floor: float = 0.0,
        mask: bool = True,
        prefetch: Callable[[list[Ids]], None] | None = None,
    ):
        self.codec, self.logp_next, self.context, self.prefetch = codec, logp_next, context, prefetch
        self.data, self.floor, self.mask = prompt, floor, mask
        self._symbols = symbols_of(codec.token_bytes, specials)
        self._rows: dict[Ids, NDArray[np.float64]] = {}
        lefts = left_sides(codec, prompt, len(prompt))
        self.ends: dict[Ids, float] = {lefts.head: 0.0} if codec.head(prompt) == len(prompt) else {}
        self.reaches: list[_Reach] = []
        for _, ids in lefts.sides:
            logw = sum(float(self._row(ids[:k])[ids[k]]) for k in range(len(lefts.head), len(ids)))
            self._reach(ids, logw, prompt[len(codec.decode(ids)) :], floor=0.0)

    @property
    def covers(self) -> list[Cover]:
        """All covers of the bytes so far."""
        ending = [Cover(ids, b"", logw) for ids, logw in self.ends.items()]
        spelling = self.codec.token_bytes
        return ending + [
            Cover((*reach.left, int(token)), (spelling[token] or b"")[reach.used :], float(logw))
            for reach in self.reaches
            for token, logw in zip(reach.tokens, reach.logw, strict=True)
        ]

    def probabilities(self) -> NDArray[np.float64]:
        """P(next symbol | bytes so far): (259 or more,) float64; specials beyond the third are symbols of their own."""
        if self.prefetch and (missing := [(*self.context, *ids) for ids in self.ends if ids not in self._rows]):
            self.prefetch(missing)
        top = max([*self.ends.values(), *(reach.logw.max() for reach in self.reaches)])
        mass = np.zeros(int(max(self._symbols.max() + 1, SYMBOLS)))
        for ids, logw in self.ends.items():
            p = np.exp(self._row(ids))
            if self.mask:
                asked = np.flatnonzero(p > self.floor)
                p[asked[~self.codec.valid_next(ids, asked)]] = 0
            mass += np.exp(logw - top) * np.bincount(self._symbols, weights=p, minlength=len(mass))
        for reach in self.reaches:
            after = [self.codec.token_bytes[token][reach.used] for token in reach.tokens]
            mass += np.bincount(after, weights=np.exp(reach.logw - top), minlength=len(mass))
        return mass / mass.sum()

    def add(self, byte: int) -> None:
        """Append a byte. Raises ValueError if no cover goes on with it."""
        ends, reaches = self.ends, self.reaches
        self.ends, self.reaches, self.data = {}, [], self.data + bytes([byte])
        for reach in reaches:
            self._keep(reach, byte)
        for ids, logw in ends.items():
            self._reach(ids, logw, bytes([byte]), self.floor)
        if not self.ends and not self.reaches:
            raise ValueError(f"no cover of {self.data[:-1][-40:]!r} goes on with {bytes([byte])!r}")
        self._rows = {ids: row for ids, row in self._rows.items() if ids in self.ends}

    def _reach(self, left: Ids, logw: float, data: bytes, floor: float) -> None:
        tokens = self.codec.index.starting_with(data)
        if len(tokens) == 0:
            return
        logp = self._row(left)[tokens]
        likely = np.exp(logp) > floor
        tokens, logp = tokens[likely], logp[likely]
        kept = self.codec.valid_next(left, tokens) if self.mask else np.ones(len(tokens), dtype=bool)
        self._split(_Reach(left, tokens[kept], logw + logp[kept], len(data)))

    def _keep(self, reach: _Reach, byte: int) -> None:
        kept = np.array([self.codec.token_bytes[token][reach.used] == byte for token in reach.tokens], dtype=bool)
        self._split(_Reach(reach.left, reach.tokens[kept], reach.logw[kept], reach.used + 1))

    def _split(self, reach: _Reach) -> None:
        """Covers that now end with the bytes become ends, the others stay."""
        done = np.array([len(self.codec.token_bytes[token]) == reach.used for token in reach.tokens], dtype=bool)
        for token, logw in zip(reach.tokens[done], reach.logw[done], strict=True):
            self.ends[(*reach.left, int(token))] = float(logw)
        if not done.all():
            self.reaches.append(_Reach(reach.left, reach.tokens[~done], reach.logw[~done], reach.used))

    def _row(self, ids: Ids) -> NDArray[np.float64]:
        if ids not in self._rows:
            self._rows[ids] = self.logp_next([*self.context, *ids]).double().numpy()
        return self._rows[ids]


# What is compared with it


def continuation_contexts(codec: Codec, ids: Ids, rest: bytes, pieces: int) -> set[Ids]:
    """The contexts that `continuation_log_probability` asks about."""
    found = {ids}
    if pieces > 1:
        for cut in range(1, len(rest)):
            for token in codec.index.of(rest[:cut]):
                found |= continuation_contexts(codec, (*ids, int(token)), rest[cut:], pieces - 1)
    return found


def continuation_log_probability(codec: Codec, logp_next: LogpNext, ids: Ids, rest: bytes, pieces: int) -> float:
    """log P(the text goes on with `rest` | these very ids), over all continuations of at most `pieces` tokens.

    What somebody gets who encodes a prompt and samples: the ids stay as they are, whatever follows.
    """
    row = logp_next(list(ids)).double().numpy()
    found = _log_sum(row[codec.index.starting_with(rest)])
    if pieces > 1:
        for cut in range(1, len(rest)):
            for token in codec.index.of(rest[:cut]):
                after = continuation_log_probability(codec, logp_next, (*ids, int(token)), rest[cut:], pieces - 1)
                found = np.logaddexp(found, row[token] + after)
    return float(found)


def healed_contexts(codec: Codec, ids: Ids, rest: bytes, pieces: int) -> set[Ids]:
    """The contexts that `healed_log_probability` asks about."""
    left, dropped = ids[:-1], codec.token_bytes[ids[-1]] or b""
    found = {left}
    for cut in range(len(rest)):
        for token in codec.index.of(dropped + rest[:cut]):
            found |= continuation_contexts(codec, (*left, int(token)), rest[cut:], pieces - 1)
    return found


def healed_log_probability(codec: Codec, logp_next: LogpNext, ids: Ids, rest: bytes, pieces: int) -> float:
    """log P(`rest` comes next) after token healing: the last id is dropped, the next token must begin with its bytes.

    After that token all is free; `pieces` counts it. Raises ValueError without an id to drop.
    """
    if not ids:
        raise ValueError("healing needs a token to drop")
    left, dropped = ids[:-1], codec.token_bytes[ids[-1]] or b""
    row = logp_next(list(left)).double().numpy()
    found = _log_sum(row[codec.index.starting_with(dropped + rest)])
    for cut in range(len(rest)):
        for token in codec.index.of(dropped + rest[:cut]):
            after = continuation_log_probability(codec, logp_next, (*left, int(token)), rest[cut:], pieces - 1)
            found = np.logaddexp(found, row[token] + after)
    return float(found - _log_sum(row[codec.index.starting_with(dropped)]))


def healed_next_byte_probs(codec: Codec, logp_next: LogpNext, ids: Ids) -> NDArray[np.float64]:
    """P(next byte) after token healing: (256,) float64. Raises ValueError without an id to drop."""
    if not ids:
        raise ValueError("healing needs a token to drop")
    left, dropped = ids[:-1], codec.token_bytes[ids[-1]] or b""
    p = logp_next(list(left)).double().exp().numpy()
    found = np.zeros(BYTES)
    for token in codec.index.starting_with(dropped):
        after = codec.token_bytes[token][len(dropped) :]
        if after:
            found[after[0]] += p[token]
        else:
            found += (
                p[token] * tokenized_next_byte_probs((*left, int(token)), codec.token_bytes, logp_next)[:BYTES].numpy()
            )
    return found / found.sum()


def greedy_tokens(
    codec: Codec,
    logp_next: LogpNext,
    ids: Ids,
    length: int,
    forced: bytes = b"",
    whole: bool = True,
    end: int | None = None,
    first: int | None = None,
) -> bytes:
    """Up to `length` bytes after `forced`, always the most probable token, ids before them fixed.

    forced: bytes that the next tokens must spell first: a single token that begins with them (`whole`, token healing)
    or token by token (backing up over several). end: the id that ends a text. first: a token to begin with instead.
    """
    made = b""
    while len(made) - len(forced) < length:
        if first is not None:
            token, first = first, None
        else:
            row = logp_next(list(ids)).double().numpy()
            if todo := forced[len(made) :]:
                allowed = [codec.index.starting_with(todo)]
                if not whole:
                    allowed += [codec.index.of(todo[:cut]) for cut in range(1, len(todo))]
                among = np.concatenate(allowed)
                token = int(among[row[among].argmax()])
            else:
                token = int(row.argmax())
        if token == end or not codec.token_bytes[token]:
            break
        made, ids = made + codec.token_bytes[token], (*ids, token)
    return made[len(forced) :][:length]


def greedy_bytes(stream: ByteStream, length: int, stop: Callable[[bytes], bool] = lambda made: False) -> bytes:
    """Up to `length` bytes, always the most probable symbol; ends at a special symbol or when `stop(made)`."""
    made = b""
    while len(made) < length:
        symbol = int(stream.probabilities().argmax())
        if symbol >= BYTES:
            break
        made += bytes([symbol])
        if len(made) == length or stop(made):
            break
        stream.add(symbol)
    return made


def random_healing(codec: Codec, ids: Ids, seed: int) -> int:
    """The control: any token that begins with the bytes of the last id, drawn alike."""
    return random.Random(seed).choice(codec.index.starting_with(codec.token_bytes[ids[-1]] or b"").tolist())
