"""Tokens with meaning: forms of one morpheme share an id, and a decoder chooses the form by Turkish phonology.

Source: Bayram et al., "Tokens with Meaning: A Hybrid Tokenization Approach for NLP", 2025 (arXiv 2508.14292), in the
variant of the package turkish-tokenizer 0.2.26: its decoder goes by the ids of its own dictionaries.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tokenarium.measure.bootstrap import LEVEL, RESAMPLES, Interval
from tokenarium.methods.tokenizers.turkish.hybrid import Hybrid, Piece

UPPERCASE_ID, UNKNOWN_ID = 0, 1
UNKNOWN_TEXT, NO_SURFACE = "▁u▁", "▁"
KINDS = ("ROOT", "SUFFIX", "BPE")
SUFFIXES_FROM, BPE_FROM = 20000, 20256

_VOWELS, _FRONT_VOWELS, _HARD = frozenset("aeıioöuüâ"), frozenset("eiöü"), frozenset("fstkçşhp")
_FOUR_WAY = {"a": 0, "ı": 0, "â": 0, "e": 1, "i": 1, "o": 2, "u": 2}  # others, and no vowel: 3
# A back vowel is their last one, and yet suffixes of two forms take the front one.
_FRONT_NONETHELESS = frozenset({"saat", "kilovatsaat", "ziraat", "itaat", "istikbal"})

# Roots whose final consonant softens before a vowel, or whose final vowel narrows before the suffix -yor.
_SOFTENING, _NARROWING, _YOR = range(100, 2080), range(2080, 2315), 20041
# Suffixes by what their form depends on.
_TWO_WAY, _FOUR_WAYS, _WITH = range(20000, 20013), range(20013, 20023), range(20023, 20024)
_IN_AND_FROM, _PAST_AND_LIKE = range(20024, 20026), range(20026, 20029)
_LIK, _CIK, _MAK, _ACAK = 20029, 20030, 20031, 20032


# The tokenizer


def hybrid_encode(
    text: str, roots: Mapping[str, int], suffixes: Mapping[str, int], bpe: Mapping[str, int]
) -> list[int]:
    """The ids of `text` by the three dictionaries, surface -> id; `turkish.hybrid.Hybrid` has the rule."""
    return [piece.id for piece in Hybrid(roots, suffixes, bpe).pieces(text)]


def surfaces_by_id(*tables: Mapping[str, int]) -> dict[int, list[str]]:
    """id -> its surfaces in the order of the tables, which are to be the roots, the suffixes and the BPE tokens."""
    found: dict[int, list[str]] = {}
    for table in tables:
        for surface, index in table.items():
            found.setdefault(index, []).append(surface)
    return found


def hybrid_decode(ids: Sequence[int], reverse: Mapping[int, Sequence[str]]) -> str:
    """The text of ids. reverse: id -> its surfaces in the order of the dictionaries, see `surfaces_by_id`."""
    return "".join(decoded_pieces(ids, reverse))


def decoded_pieces(ids: Sequence[int], reverse: Mapping[int, Sequence[str]]) -> list[str]:
    """What each id prints; joined they are the text. An id without surfaces prints "▁".

    A marker of upper case prints nothing, and the id after it its first surface with a capital, whatever stands around.
    """
    found: list[str] = []
    context, capital = "", False  # the last piece that is all letters; whether a marker stands before
    for place, index in enumerate(ids):
        after = reverse.get(ids[place + 1], [NO_SURFACE])[0] if place + 1 < len(ids) else None
        forms = reverse.get(index, [NO_SURFACE])
        marker = index == UPPERCASE_ID and after is not None and not capital
        if marker:
            piece = ""
        elif capital:
            piece = forms[0].capitalize()
        elif index == UNKNOWN_ID:
            piece = UNKNOWN_TEXT
        elif len(forms) == 1:
            piece = forms[0]
        elif index < SUFFIXES_FROM:
            piece = forms[root_form(index, after, yor_follows=ids[place + 1 : place + 2] == [_YOR])]
        else:
            piece = forms[suffix_form(index, context, after)]
        capital = marker
        context = piece if piece.isalpha() else context
        found.append(piece)
    return found


def root_form(index: int, after: str | None, yor_follows: bool) -> int:
    """Which surface of a root stands before `after`, the first surface of the next id (None at the end).

    Ten roots have a third surface, which the package's decoder asks for too late: it is never printed.
    """
    if index in _SOFTENING:
        return int(_begins_with_vowel(after))
    return int(index in _NARROWING and yor_follows)


def suffix_form(index: int, context: str, after: str | None) -> int:
    """Which surface of a suffix stands between `context`, the letters printed last, and `after` (as for `root_form`).

    Vowel harmony (front or back, or four ways) and the last letter of the context decide. Three suffixes are printed
    in their first surface at the end of a text, whatever stands before.
    """
    last_vowel = next((letter for letter in reversed(context) if letter in _VOWELS), "")
    front = int(last_vowel in _FRONT_VOWELS or context in _FRONT_NONETHELESS)
    four = _FOUR_WAY.get(last_vowel, 3)
    hard, open_end, before_vowel = context[-1:] in _HARD, context[-1:] in _VOWELS, _begins_with_vowel(after)
    if index in _TWO_WAY:
        return front
    if index in _FOUR_WAYS:
        return four
    if index in _WITH:
        return front + 2 * (open_end and (after is None or after.isspace()))
    if index in _IN_AND_FROM:
        return front + 2 * hard
    if index in _PAST_AND_LIKE:
        return four + 4 * hard
    if index == _ACAK:
        return front + 2 * before_vowel + 4 * open_end
    if after is None or index not in (_LIK, _CIK, _MAK):
        return 0
    forms = {_LIK: four + 4 * before_vowel, _CIK: four + 4 * hard + 8 * before_vowel, _MAK: front + 2 * before_vowel}
    return forms[index]


def _begins_with_vowel(surface: str | None) -> bool:
    return bool(surface) and surface[0] in _VOWELS


def kind(index: int) -> str:
    """Which dictionary an id is of: one of KINDS."""
    return KINDS[int(index >= SUFFIXES_FROM) + int(index >= BPE_FROM)]


# Is it reversible?


class RoundTrip(NamedTuple):
    """exact: (texts,) bool, whether decoding gave the text back. wrong: id -> how often it printed something else.

    example: id -> the first text in which it did, and what became of that text.
    """

    exact: NDArray[np.bool_]
    wrong: Counter[int]
    example: dict[int, tuple[str, str]]

    @property
    def share(self) -> Interval:
        """Percent of the texts that come back, with Wilson's interval."""
        found = stats.binomtest(int(self.exact.sum()), len(self.exact))
        low, high = found.proportion_ci(LEVEL, method="wilson")
        how = f"Wilson interval over {len(self.exact)} texts"
        return Interval(100 * found.statistic, 100 * min(low, found.statistic), 100 * max(high, found.statistic), how)


def round_trip(hybrid: Hybrid, texts: Iterable[str]) -> RoundTrip:
    """Encode and decode each text, and find the tokens that do not print the characters that they stood for."""
    reverse = surfaces_by_id(hybrid.roots, hybrid.suffixes, hybrid.bpe)
    exact: list[bool] = []
    wrong: Counter[int] = Counter()
    example: dict[int, tuple[str, str]] = {}
    for text in texts:
        pieces = hybrid.pieces(text)
        printed = decoded_pieces([piece.id for piece in pieces], reverse)
        exact.append("".join(printed) == text)
        for piece, string in zip(pieces, printed, strict=True):
            if string != text[piece.start : piece.end]:
                wrong[piece.id] += 1
                example.setdefault(piece.id, (text, "".join(printed)))
    return RoundTrip(np.array(exact), wrong, example)


def chosen_surfaces(hybrid: Hybrid, pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """(tokens,) which surface of its id each token was found by, 0 for the first."""
    reverse = surfaces_by_id(hybrid.roots, hybrid.suffixes, hybrid.bpe)
    return np.array([reverse[piece.id].index(piece.surface) for piece in pieces])


# Distilled embeddings


def retrieved(student: ArrayLike, teacher: ArrayLike) -> NDArray[np.bool_]:
    """(queries,) whether the teacher's embedding nearest to each of the student's, by cosine, is that of its pair.

    student, teacher: (queries, dim) float. Among equally near ones the first counts.
    """
    return (_unit(student) @ _unit(teacher).T).argmax(axis=1) == np.arange(len(np.asarray(teacher)))


def similarity_agreement(student: ArrayLike, teacher: ArrayLike) -> float:
    """Spearman's correlation of all pairwise cosines among the student's embeddings with those among the teacher's."""
    upper = np.triu_indices(len(np.asarray(student)), k=1)
    cosines = [(_unit(each) @ _unit(each).T)[upper] for each in (student, teacher)]
    return float(stats.spearmanr(*cosines).statistic)


def crossed_interval(differences: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of paired differences (seeds, queries), with its bootstrap over seeds and, crossed, over queries."""
    differences = np.asarray(differences, dtype=np.float64)
    seeds, queries = differences.shape
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        seed_weight = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds) / seeds
        query_weight = np.bincount(generator.integers(queries, size=queries), minlength=queries) / queries
        draws[index] = seed_weight @ differences @ query_weight
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    how = f"paired bootstrap over {seeds} seeds and {queries} queries, {resamples} resamples"
    return Interval(differences.mean(), low, high, how)


def _unit(vectors: ArrayLike) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
