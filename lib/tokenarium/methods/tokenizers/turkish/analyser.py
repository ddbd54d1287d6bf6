"""Morphological analysis of Turkish words with zeyrek, a port of Zemberek's lexicon and rules, each word once."""

import logging
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from tokenarium.methods.tokenizers.turkish.letters import lower


class Analysis(NamedTuple):
    """One reading of a word: its surfaces from left to right, the root's first, and the root as the lexicon has it."""

    surfaces: tuple[str, ...]
    root: str


class Analyser:
    """zeyrek with a memory: no context, every reading of a word, in lower case and without circumflex."""

    def __init__(self):
        # Its public `analyze` needs NLTK's sentence model, which is a download; a word needs none. It logs each reading
        # as a warning.
        logging.getLogger("zeyrek.rulebasedanalyzer").setLevel(logging.ERROR)
        from zeyrek import MorphAnalyzer, attributes, morphotactics, rulebasedanalyzer
        from zeyrek.lexicon import RootLexicon

        # Its cache hands out one and the same set of phonetic attributes, which the search then changes: what a word
        # is read as would depend on the words before it.
        fresh = getattr(
            attributes.calculate_phonetic_attributes, "__wrapped__", attributes.calculate_phonetic_attributes
        )
        for module in (attributes, morphotactics, rulebasedanalyzer):
            module.calculate_phonetic_attributes = fresh
        lexicon = RootLexicon.default_text_dictionaries()
        for item in lexicon.items:
            item.attributes = _InOrder(item.attributes)
        lexicon.item_set = dict.fromkeys(sorted(lexicon.item_set, key=lambda item: item.id_))
        self._parse = MorphAnalyzer(lexicon)._parse
        self._known: dict[str, tuple[Analysis, ...]] = {}

    def analyses(self, word: str) -> tuple[Analysis, ...]:
        """Every reading of `word`, whatever its case; none for what the lexicon and the rules do not know."""
        word = lower(word)
        if word not in self._known:
            self._known[word] = tuple(
                dict.fromkeys(
                    Analysis(tuple(surface for _, surface in found.morphemes if surface), found.dict_item.root)
                    for found in self._parse(word)
                )
            )
        return self._known[word]

    def is_word(self, word: str) -> bool:
        """Whether `word` has a reading."""
        return bool(self.analyses(word))

    def roots(self, word: str) -> set[str]:
        """The roots of all readings of `word`."""
        return {analysis.root for analysis in self.analyses(word)}

    def segmentations(self, word: str) -> list[tuple[str, ...]]:
        """The distinct ways to cut `word` (lower case) into surfaces that spell it."""
        found = dict.fromkeys(analysis.surfaces for analysis in self.analyses(word))
        return [surfaces for surfaces in found if "".join(surfaces) == word]


class _InOrder(set):
    """A root's attributes in the order in which zeyrek declares them, as Zemberek, its model, goes through them.

    A plain set has them in the order of Python's hashes of the day, and roots that double and voice their last letter
    lose readings in some orders.
    """

    def __iter__(self) -> Iterator[Enum]:
        return iter(sorted(super().__iter__(), key=lambda attribute: attribute.value))
