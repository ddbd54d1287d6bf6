"""Which token sequences a tokenizer can produce: the validity mask, and tokens by the bytes that they begin with.

An encoding t is *valid* if encode(decode(t)) = t. A model trained on encoded text has seen no other, so whoever sums
over encodings, or samples tokens and wants text and ids to agree, masks the rest. Source: arXiv 2410.09303, section 3.

A pre-tokenizer that looks ahead adds a case: GPT-2's gives "a", newline, newline, "b" for the text of "a", two newlines
and "b", but a single token for the two newlines at the end of a text. So a prefix of a valid encoding may itself not
be valid. `Codec` takes the ids that the tokenizer gives *before* some probing text for valid as well.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Text = TypeVar("Text", str, bytes)
_PAIR = re.compile(rb"(?=([^ \n\t\r\v\f][ \n\t\r\v\f]))")
# At the end of the text, and before something not blank with which a blank merges in no vocabulary.
LOOK_AHEAD = ("", "\x01")
MOST_KNOWN = 500  # left sides whose continuations a codec remembers
UNASKED = -1


def is_valid(ids: Sequence[int], encode: Callable[[Text], Sequence[int]], decode: Callable[[list[int]], Text]) -> bool:
    """Whether encode(decode(ids)) gives the ids back. encode takes what decode returns, str or bytes."""
    ids = list(ids)
    return list(encode(decode(ids))) == ids


def whole_characters(data: bytes) -> int | None:
    """Bytes of the longest prefix that ends with a whole character; None if no UTF-8 text begins with `data`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return None
    return len(data) - len(decoder.getstate()[0])


class PrefixIndex:
    """Tokens by the bytes that they begin with. Tokens without bytes (special ones) are in no answer."""

    def __init__(self, token_bytes: Sequence[bytes | None]):
        spelled = sorted((spelling, index) for index, spelling in enumerate(token_bytes) if spelling)
        self.spellings = [spelling for spelling, _ in spelled]
        self.ids = np.array([index for _, index in spelled], dtype=np.int64)
        self.longest = max(map(len, self.spellings), default=0)

    def place(self, prefix: bytes) -> tuple[int, int]:
        """First and last + 1 place in `ids` and `spellings` (sorted by bytes) of the tokens that begin with it."""
        if len(prefix) > self.longest:
            return 0, 0
        after = prefix.rstrip(b"\xff")  # the smallest bytes above all that begin with the prefix
        end = bisect_left(self.spellings, after[:-1] + bytes([after[-1] + 1])) if after else len(self.spellings)
        return bisect_left(self.spellings, prefix), end

    def starting_with(self, prefix: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with `prefix`, itself included, in the order of their bytes."""
        first, end = self.place(prefix)
        return self.ids[first:end]

    def of(self, spelling: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that are `spelling`."""
        first, end = self.place(spelling)
        return self.ids[first : first + sum(self.spellings[place] == spelling for place in range(first, end))]


class Codec:
    """A byte-level or SentencePiece-like BPE of the `tokenizers` library, between bytes and ids.

    token_bytes: what each id stands for, None for special and unused ids (`tokenarium.data.tokenizers.token_bytes`).
    probes: texts that may follow and show how the tokenizer looks ahead over blanks; ("",) is the plain definition of
    validity, and enough for a BPE without a pre-tokenizer.
    The tokenizer must neither change nor add to a text: ValueError from `encode` where the ids stand for another one.
    """

    def __init__(self, tokenizer: Tokenizer, token_bytes: Sequence[bytes | None], probes: Sequence[str] = LOOK_AHEAD):
        self.tokenizer, self.token_bytes, self.probes = tokenizer, list(token_bytes), tuple(probes)
        self.index = PrefixIndex(token_bytes)
        self._known: dict[tuple[int, ...], NDArray[np.int8]] = {}

    def __len__(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def crossed(self) -> set[bytes]:
        """The pairs (not blank, blank) that some token holds inside.

        Between any other such pair no token reaches over: a BPE cannot merge across the place, and GPT-2's pieces end
        there, so what stands before is encoded as if it were alone.
        """
        return {pair for spelling in self.index.spellings for pair in _PAIR.findall(spelling)}

    def head(self, data: bytes) -> int:
        """Where the last piece of `data` begins: at its last blank after something not blank, never inside a token."""
        places = [found.start() + 1 for found in _PAIR.finditer(data) if found[1] not in self.crossed]
        return places[-1] if places else 0

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; special ones have none."""
        return b"".join(self.token_bytes[index] or b"" for index in ids)

    def encode(self, data: bytes) -> list[int]:
        """The ids of whole UTF-8 text. Raises ValueError where they stand for other bytes (see the class)."""
        ids = self.tokenizer.encode(data.decode(), add_special_tokens=False).ids
        if self.decode(ids) != data:
            raise ValueError(f"the tokenizer turns {data[:40]!r} into {self.decode(ids)[:40]!r}: it changes its texts")
        return ids

    def lefts(self, data: bytes) -> list[tuple[int, ...]]:
        """All valid encodings that end with `data`, the plain one first; none if it ends inside a character."""
        if whole_characters(data) != len(data):
            return []
        start = self.head(data)
        head, text = tuple(self.encode(data[:start])) if start else (), data[start:].decode()
        found = dict.fromkeys(
            head + part for probe in self.probes if (part := self._until(text + probe, len(text.encode()))) is not None
        )
        return list(found)

    def _until(self, text: str, end: int) -> tuple[int, ...] | None:
        """The ids of `text` up to byte `end`; None if a token reaches over it."""
        ids, place = self.tokenizer.encode(text, add_special_tokens=False).ids, 0
        for count, index in enumerate(ids):
            if place == end:
                return tuple(ids[:count])
            place += len(self.token_bytes[index] or b"")
        return tuple(ids) if place == end else None

    def valid_next(self, left: Sequence[int], candidates: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens may follow the valid encoding `left`: (candidates,) bool.

        Special tokens may. A token that ends inside a character is taken to be valid, for only what follows it
        shows how the character is encoded; one after which no UTF-8 is left is not.
        """
        candidates = np.asarray(candidates, dtype=np.int64)
        data = self.decode(left)
        start = self.head(data)
        tail = tuple(left[self._count(left, start) :])
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        known = self._known.setdefault(tail, np.full(len(self), UNASKED, dtype=np.int8))
        asked = candidates[known[candidates] == UNASKED]
        if len(asked):
            known[asked] = self._check(tail, data[start:], asked.tolist())
        return known[candidates] == 1

    def _count(self, ids: Sequence[int], end: int) -> int:
        """How many of the ids stand for the first `end` bytes; special ids at the front among them."""
        place = count = 0
        while place < end:
            place += len(self.token_bytes[ids[count]] or b"")
            count += 1
        while count < len(ids) and not self.token_bytes[ids[count]]:
            count += 1
        return count

    @cached_property
    def _texts(self) -> list[str | None]:
        """The tokens that are whole characters, as text."""
        return [
            spelling.decode() if spelling and whole_characters(spelling) == len(spelling) else None
            for spelling in self.token_bytes
        ]

    def _check(self, tail: tuple[int, ...], data: bytes, candidates: list[int]) -> list[bool]:
        answers = [False] * len(candidates)
        begun = data.decode() if whole_characters(data) == len(data) else None
        joined: dict[int, str] = {}
        for place, index in enumerate(candidates):
            spelling, text = self.token_bytes[index], self._texts[index]
            if begun is not None and text is not None:
                joined[place] = begun + text
            elif not spelling:
                answers[place] = True
            elif (end := whole_characters(data + spelling)) == len(data + spelling):
                joined[place] = (data + spelling).decode()
            else:
                answers[place] = end is not None
        for probe in self.probes:
            # What follows changes the encoding of blanks before it, and of nothing else.
            left = [place for place in joined if not answers[place] and (not probe or joined[place][-1].isspace())]
            texts = [joined[place] + probe for place in left]
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for place, encoding in zip(left, encodings, strict=True):
                answers[place] = tuple(encoding.ids[: len(tail) + 1]) == (*tail, candidates[place])
        return answers


def mask_invalid(codec: Codec, left: Sequence[int], logp: Tensor) -> Tensor:
    """The log probabilities (V,) of what follows `left`, -inf where it may not; not normalised again.

    Who always samples from these makes text that encodes to the very ids that were sampled (a canonicalising decoder).
    """
    valid = torch.from_numpy(codec.valid_next(left, np.arange(len(codec))))
    return logp.masked_fill(~valid[: len(logp)], -torch.inf)


def inside_token(codec: Codec, data: bytes, cut: int) -> tuple[int, int]:
    """(bytes from the beginning of the token that reaches over `cut`, tokens that spell them); (0, 0) if none does.

    The token is one of encode(data); the tokens that spell its first bytes are the last ones of encode(data[:cut]).
    """
    place = 0
    for index in codec.encode(data):
        size = len(codec.token_bytes[index] or b"")
        if place < cut < place + size:
            prompt = codec.encode(data[:cut])
            count = length = 0
            while length < cut - place:
                count += 1
                length += len(codec.token_bytes[prompt[-count]] or b"")
            return cut - place, count
        place += size
    return 0, 0
