"""The hybrid Turkish tokenizer: the longest root, else the longest suffix, else the longest BPE token, from the left.

Source: Bayram et al. 2025 (arXiv 2508.14292), as the package turkish-tokenizer 0.2.26 encodes: blanks are tokens,
a text is cut before every capital, and a capital becomes a marker before its lower-case segment.
"""

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from tokenarium.methods.tokenizers.turkish.letters import lower

UPPERCASE, UNKNOWN, BLANK = "<uppercase>", "<unknown>", " "


class Piece(NamedTuple):
    """A token: its id, what it is called in the dictionary, and the characters [start, end) that it stands for."""

    id: int
    surface: str
    start: int
    end: int


class Hybrid:
    """The tokenizer of three dictionaries, surface -> id; surfaces that share an id are forms of one morpheme."""

    def __init__(self, roots: Mapping[str, int], suffixes: Mapping[str, int], bpe: Mapping[str, int]):
        self.roots, self.suffixes, self.bpe = roots, suffixes, bpe
        self._tables = [(table, max(map(len, table), default=0)) for table in (roots, suffixes, bpe)]

    @cached_property
    def first_surface(self) -> dict[int, str]:
        """id -> its first surface in the order roots, suffixes, BPE: what the id stands for alone."""
        found: dict[int, str] = {}
        for surface, index in {**self.roots, **self.suffixes, **self.bpe}.items():
            found.setdefault(index, surface)
        return found

    def pieces(self, text: str) -> list[Piece]:
        """The tokens of `text` in order; markers stand for no characters."""
        found, start = [], 0
        for number, part in enumerate(text.split(" ")):
            if number:
                found.append(Piece(self.roots[BLANK], BLANK, start - 1, start))
            if part.strip():
                cuts = [0, *(i for i in range(1, len(part)) if part[i].isupper()), len(part)]
                for begin, end in pairwise(cuts):
                    self._segment(part[begin:end], start + begin, found)
            start += len(part) + 1
        return found

    def _segment(self, segment: str, offset: int, found: list[Piece]) -> None:
        if segment[0].isupper():
            found.append(Piece(self.roots[UPPERCASE], UPPERCASE, offset, offset))
        lowered, place = lower(segment), 0
        while place < len(lowered):
            surface, index = self._longest(lowered, place)
            size = len(surface) if index is not None else 1
            piece = Piece(self.roots[UNKNOWN], UNKNOWN, offset + place, offset + place + 1)
            if index is not None:
                piece = Piece(index, surface, offset + place, offset + place + size)
            found.append(piece)
            place += size

    def _longest(self, text: str, place: int) -> tuple[str, int | None]:
        for table, longest in self._tables:
            for end in range(min(len(text), place + longest), place, -1):
                if text[place:end] in table:
                    return text[place:end], table[text[place:end]]
        return "", None
