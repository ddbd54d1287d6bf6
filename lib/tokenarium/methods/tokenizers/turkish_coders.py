"""Turkish text as ids for language models that share no tokenizer, and what the words cost that an encoder loses.

Every coder is trained on the same lines and has one row for each of its tokens. A text that is not all there in the ids
(an unknown character, a form that the hybrid tokenizer prints otherwise) is completed by an escape code, so that bits
of different tokenizers are bits of the same text.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import turkish_standards as standards
from tokenarium.methods.tokenizers.tokens_with_meaning import UNKNOWN_ID, decoded_pieces, surfaces_by_id
from tokenarium.methods.tokenizers.turkish.hybrid import BLANK, Hybrid, Piece
from tokenarium.methods.tokenizers.turkish_encoders import CHARACTERS, HYBRID, Dictionaries, trained

START, UNKNOWN, FIRST = 0, 1, 2  # rows that every model has, and its first token
UNSEEN_BITS = 21.0  # of a Unicode code point that the training text lacks

_WORD_OR_MARK = re.compile(r" ?\w+| ?[^\w ]| ")


@dataclass(frozen=True)
class Coder:
    """A tokenizer for a model.

    pieces: text -> (token, place where it begins). tokens: those that have a row. alone: what a token stands for by
    itself. lost: text -> (words,) bool, which of `text.split(" ")` the ids do not give back.
    """

    name: str
    pieces: standards.Pieces
    tokens: Sequence[Hashable]
    alone: Callable[[Hashable], str]
    lost: Callable[[str], NDArray[np.bool_]]

    @cached_property
    def _row(self) -> dict[Hashable, int]:
        return {token: row for row, token in enumerate(self.tokens, start=FIRST)}

    @property
    def rows(self) -> int:
        """Rows of an embedding matrix: START, UNKNOWN, and the tokens'."""
        return FIRST + len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, below `rows`; START is not among them."""
        return [self._row.get(token, UNKNOWN) for token, _ in self.pieces(text)]

    def shown(self, token: Hashable) -> str:
        """What a token stands for by itself; U+FFFD for one without a row."""
        return self.alone(token) if token in self._row else "\N{REPLACEMENT CHARACTER}"


def open_coder(name: str, lines: Sequence[str], dictionaries: Dictionaries, least: int, seed: int) -> Coder:
    """The tokenizer `name`, trained on the lines.

    name: "hybrid" (of its ids those that the lines use), "characters", or a kind and its number of tokens: "bpe-1024",
    "unigram-4096", "wordpiece-4096", "random-4096" (`least` and `seed` are those of `RandomMerges`). Raises ValueError
    for another name.
    """
    if name == HYBRID:
        return _hybrid_coder(Hybrid(dictionaries["roots"], dictionaries["suffixes"], dictionaries["bpe"]), lines)
    alphabet = sorted(set("".join(lines)))
    if name == CHARACTERS:
        return _string_coder(name, standards.characters, alphabet)
    kind, _, size = name.rpartition("-")
    if kind == "random" and size.isdigit():
        drawn = _RandomMerges(lines, int(size) - len(alphabet), least, seed)
        return _string_coder(name, drawn, [*alphabet, *drawn.tokens])
    if kind == "wordpiece" and size.isdigit():
        longest = WordPiece(lines, int(size))
        return _string_coder(name, longest, longest.tokens)
    tokenizer = trained(name, lines)
    strings = [None if piece is None else piece.decode("utf-8", "replace") for piece in token_bytes(tokenizer)]
    known = [index for index, string in enumerate(strings) if string is not None]
    pieces = standards.library_pieces(tokenizer)
    return Coder(name, pieces, known, strings.__getitem__, _lost_to_unknown(pieces, frozenset(known)))


class WordPiece:
    """Pieces from the left, always the longest that is known; the pieces are the tokens of a BPE on characters.

    This is what the `tokenizers` library's WordPiece does; its trainer gives different vocabularies for the same text,
    this one does not. Words are letters and digits in a row, or one mark; a blank in front belongs to them.
    """

    def __init__(self, lines: Iterable[str], size: int):
        """size: tokens, the characters of the lines among them."""
        counts: Counter[tuple[bytes, ...]] = Counter(
            tuple(character.encode() for character in word) for line in lines for word in _WORD_OR_MARK.findall(line)
        )
        alphabet = sorted({symbol for word in counts for symbol in word})
        merges = bpe.train_words(counts, max(0, size - len(alphabet)), alphabet=alphabet)
        made = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
        self.tokens = [token.decode() for token in made]
        self._known = frozenset(self.tokens)
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: str) -> list[tuple[str, int]]:
        found = []
        for match in _WORD_OR_MARK.finditer(text):
            word, place = match[0], 0
            while place < len(word):
                ends = range(min(len(word), place + self._longest), place, -1)
                end = next((end for end in ends if word[place:end] in self._known), place + 1)
                piece = word[place:end]
                # A blank in front belongs to the piece, but the piece begins after it.
                found.append((piece, match.start() + place + (piece[0] == " " and len(piece) > 1)))
                place = end
        return found


class _RandomMerges(standards.RandomMerges):
    @property
    def tokens(self) -> list[str]:
        """What the merges make, each string once, in order."""
        return list(dict.fromkeys(left + right for left, right in self._rank))


def _string_coder(name: str, pieces: standards.Pieces, tokens: Sequence[str]) -> Coder:
    return Coder(name, pieces, tokens, str, _lost_to_unknown(pieces, frozenset(tokens)))


def _lost_to_unknown(pieces: standards.Pieces, known: frozenset[Hashable]) -> Callable[[str], NDArray[np.bool_]]:
    def lost(text: str) -> NDArray[np.bool_]:
        places = [place for token, place in pieces(text) if token not in known]
        return np.bincount(_words_at(text, places), minlength=text.count(" ") + 1) > 0

    return lost


def _words_at(text: str, places: Sequence[int]) -> NDArray[np.int64]:
    """Which of `text.split(" ")` each place belongs to; a blank belongs to the word after it."""
    blanks = [place for place, character in enumerate(text) if character == " "]
    return np.searchsorted(blanks, np.array(places, dtype=np.int64), side="right")


def _hybrid_coder(hybrid: Hybrid, lines: Sequence[str]) -> Coder:
    reverse = surfaces_by_id(hybrid.roots, hybrid.suffixes, hybrid.bpe)
    used = sorted({piece.id for line in lines for piece in hybrid.pieces(line)} - {UNKNOWN_ID})
    known = frozenset(used)

    def lost(text: str) -> NDArray[np.bool_]:
        found: list[Piece] = hybrid.pieces(text)
        printed = decoded_pieces([piece.id if piece.id in known else UNKNOWN_ID for piece in found], reverse)
        words = [""] * (text.count(" ") + 1)
        for piece, string, word in zip(
            found, printed, _words_at(text, [piece.start for piece in found]).tolist(), strict=True
        ):
            words[word] += string if piece.surface != BLANK else ""
        return np.array([one != other for one, other in zip(words, text.split(" "), strict=True)])

    return Coder(
        HYBRID,
        lambda text: [(piece.id, piece.start) for piece in hybrid.pieces(text)],
        used,
        hybrid.first_surface.__getitem__,
        lost,
    )


# Bits of the words that are lost


class Escape:
    """Says of every word whether it is lost, and spells it if so, letter by letter, each by its share of the text.

    Shares are those of the training lines: of lost words with half a count more on each side, of letters (and the end
    of a word) with one more each. A letter that the lines lack takes the bits of its code point besides.
    """

    def __init__(self, lines: Iterable[str], lost: Callable[[str], NDArray[np.bool_]]):
        self._lost = lost
        flags = Counter[bool]()
        letters = Counter[str]()
        for line in lines:
            words = line.split(" ")
            flags.update(lost(line).tolist())
            letters.update("".join(words))
            letters["\n"] += len(words)  # the end of a word
        total = flags.total() + 1
        self.flag_bits = {flag: -math.log2((flags[flag] + 0.5) / total) for flag in (False, True)}
        total = letters.total() + len(letters) + 1
        self._bits = {letter: -math.log2((count + 1) / total) for letter, count in letters.items()}
        self._unseen = math.log2(total) + UNSEEN_BITS

    def bits(self, line: str) -> tuple[float, int]:
        """(bits, lost words) of a line."""
        total, number = 0.0, 0
        for word, lost in zip(line.split(" "), self._lost(line).tolist(), strict=True):
            total += self.flag_bits[lost]
            if lost:
                number += 1
                total += sum(self._bits.get(letter, self._unseen) for letter in [*word, "\n"])
        return total, number


# Lines


def cut(paragraphs: Iterable[str], longest: int) -> list[str]:
    """Paragraphs in lines of at most `longest` characters, cut at blanks; only a single word may be longer."""
    lines = []
    for paragraph in paragraphs:
        line, *rest = paragraph.split(" ")
        for word in rest:
            if len(line) + 1 + len(word) > longest:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}"
        lines.append(line)
    return lines


def first_bytes(lines: Iterable[str], most: int) -> list[str]:
    """The first lines, as many as have no more than `most` UTF-8 bytes together."""
    kept = []
    for line in lines:
        most -= len(line.encode())
        if most < 0:
            break
        kept.append(line)
    return kept
