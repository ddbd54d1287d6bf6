"""Phantom edits: token ids that differ while the text does not; how they are found, named and weighed.

A string has one canonical encoding and many others that decode to it. A model that is asked to replace a word may emit
other ids for the same word: a checker of ids sees an edit, a reader sees none.

Source: arXiv 2601.14658. The paper counts eight classes of artifacts and its abstract names two, whitespace-boundary
shifts (A1) and resegmentation inside a word (A2). The other six are operational classes of this module.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tokenarium.measure.bootstrap import LEVEL, Interval
from tokenarium.methods.tokenizers.tree_logits import TreeLogits

COPY, PHANTOM, REAL, INVALID = OUTCOMES = ("copy", "phantom", "real", "invalid")
ARTIFACTS = {
    "A1": "whitespace boundary",
    "A2": "inside a word",
    "A3": "punctuation or line end",
    "A4": "digits regrouped",
    "A5": "character split into bytes",
    "A6": "into the neighbouring word",
    "A7": "at a capital",
    "A8": "added token",
}
_ADDED = re.compile(rb"<[^<>\s]+>|\[[A-Z_]+\]")  # how special and added tokens are usually written
_WORD = re.compile(r"\w+|[^\w\s]")
_QUOTES = " \n\"'“”"


# The two levels of a slot


def classify_slot(
    ids_in: Sequence[int], ids_out: Sequence[int], token_bytes: Sequence[bytes]
) -> tuple[str, str | None]:
    """(outcome, artifact) of a slot: one of OUTCOMES, and a key of ARTIFACTS for a phantom edit, else None.

    token_bytes: what each id stands for, by id. Same ids: copy. Other ids, same bytes: phantom. Other bytes: real if
    they are UTF-8 text with a letter, else invalid, as is an empty output.
    """
    ids_in, ids_out = list(ids_in), list(ids_out)
    if not ids_out:
        return INVALID, None
    if ids_in == ids_out:
        return COPY, None
    before, after = (_spelled(ids, token_bytes) for ids in (ids_in, ids_out))
    if before == after:
        return PHANTOM, artifact(ids_in, ids_out, token_bytes)
    try:
        return (REAL if any(map(str.isalpha, after.decode())) else INVALID), None
    except UnicodeDecodeError:
        return INVALID, None


def artifact(ids_in: Sequence[int], ids_out: Sequence[int], token_bytes: Sequence[bytes]) -> str:
    """The class of two encodings of the same bytes: the first rule that a differing boundary meets.

    Boundaries are offsets between bytes where one encoding cuts and the other does not. In order: A8 no such place (two
    ids are spelled alike) or a token written like a special one is cut by the other side; A5 inside a character; A4
    between digits; A1 behind a blank; A3 beside punctuation or a line end; A7 beside a capital; A6 before a blank, a
    token reaching into the next word; else A2.
    """
    data = _spelled(ids_in, token_bytes)
    cuts = [_boundaries(ids, token_bytes) for ids in (ids_in, ids_out)]
    places = sorted(cuts[0] ^ cuts[1])
    if not places or any(
        _ADDED.fullmatch(data[first:last]) and any(first < place < last for place in places)
        for each in cuts
        for first, last in pairwise(sorted(each))
    ):
        return "A8"
    sides = [(_character_before(data, place), _character_after(data, place)) for place in places]
    rules: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
        ("A5", lambda left, right: not left or not right),
        ("A4", lambda left, right: left.isdigit() and right.isdigit()),
        ("A1", lambda left, right: left in " \t" and not right.isspace()),
        ("A3", lambda left, right: any(_is_mark(each) for each in (left, right))),
        ("A7", lambda left, right: left.isupper() or right.isupper()),
        ("A6", lambda left, right: right in " \t"),
    )
    for name, rule in rules:
        if any(rule(left, right) for left, right in sides):
            return name
    return "A2"


def enumerate_segmentations(s: bytes, vocab: Mapping[bytes, int], max_pieces: int = 4) -> list[list[int]]:
    """All ways to spell `s` with at most `max_pieces` tokens, as ids, in the lexicographic order of piece lengths.

    vocab: bytes of a token -> its id. The empty string has one segmentation, the empty one.
    """
    if not s:
        return [[]]
    if max_pieces < 1:
        return []
    return [
        [vocab[s[:cut]], *rest]
        for cut in range(1, len(s) + 1)
        if s[:cut] in vocab
        for rest in enumerate_segmentations(s[cut:], vocab, max_pieces - 1)
    ]


def _spelled(ids: Sequence[int], token_bytes: Sequence[bytes | None]) -> bytes:
    return b"".join(token_bytes[index] or b"" for index in ids)


def _boundaries(ids: Sequence[int], token_bytes: Sequence[bytes | None]) -> set[int]:
    """Offsets in bytes where a token begins or ends."""
    return {0, *accumulate(len(token_bytes[index] or b"") for index in ids)}


def _character_after(data: bytes, place: int) -> str:
    """The character that begins at `place`; empty if the place is inside one."""
    for size in range(1, 5):
        try:
            return data[place : place + size].decode()
        except UnicodeDecodeError:
            continue
    return ""


def _character_before(data: bytes, place: int) -> str:
    for size in range(1, min(4, place) + 1):
        try:
            return data[place - size : place].decode()
        except UnicodeDecodeError:
            continue
    return ""


def _is_mark(character: str) -> bool:
    return character in "\r\n" or unicodedata.category(character)[0] in "PS"


# A whole sentence


@dataclass(frozen=True)
class Trial:
    """What an answer did: outcome and artifact of the slot, and "same ids", "same text" or "changed" around it."""

    outcome: str
    artifact: str | None
    context: str


def find_slot(source: str, target: int, answer: str) -> tuple[int, int] | None:
    """Where in `answer` stands what `source` has as its word number `target`: characters from and to, or None.

    Words and marks are compared, never ids. Blanks in front belong to the slot. None where the place was left out, or
    cannot be told from other changes beside it.
    """
    words = [[(found[0], found.start(), found.end()) for found in _WORD.finditer(text)] for text in (source, answer)]
    matcher = SequenceMatcher(None, *([word for word, _, _ in each] for each in words), autojunk=False)
    for tag, first, last, start, end in matcher.get_opcodes():
        if not first <= target < last:
            continue
        if tag == "equal" or last - first == end - start:
            start += target - first
            end = start + 1
        elif tag == "delete" or last - first > 1:
            return None
        return (words[1][start - 1][2] if start else 0), words[1][end - 1][2]
    return None


def classify_answer(
    source: str, target: int, ids_in: Sequence[int], ids_out: Sequence[int], token_bytes: Sequence[bytes | None]
) -> Trial:
    """Compare an answer with the sentence that it should repeat but for the word number `target`.

    ids_in: the sentence as it stood in the prompt. ids_out: the ids that were generated, never encoded again.
    """
    try:
        answer = _spelled(ids_out, token_bytes).decode()
    except UnicodeDecodeError:
        return Trial(INVALID, None, "changed")
    spans = [find_slot(source, target, text) for text in (source, answer)]
    if spans[0] is None or spans[1] is None:
        return Trial(INVALID, None, "changed")
    texts = (source, answer)
    cut = [
        _cover(ids, token_bytes, *(len(text[:place].encode()) for place in span))
        for ids, text, span in zip((ids_in, ids_out), texts, spans, strict=True)
    ]
    (before, slot_in, after), (other_before, slot_out, other_after) = cut
    outcome, kind = classify_slot(slot_in, slot_out, [each or b"" for each in token_bytes])
    words = [text[slice(*span)].strip() for text, span in zip(texts, spans, strict=True)]
    if outcome == REAL and words[0] == words[1]:  # the same word, fused with other blanks or marks
        outcome = INVALID
    left = [text[: span[0]].lstrip(_QUOTES) for text, span in zip(texts, spans, strict=True)]
    right = [text[span[1] :].rstrip(_QUOTES) for text, span in zip(texts, spans, strict=True)]
    if left[0] != left[1] or right[0] != right[1]:
        return Trial(outcome, kind, "changed")
    return Trial(outcome, kind, "same ids" if (before, after) == (other_before, other_after) else "same text")


def _cover(
    ids: Sequence[int], token_bytes: Sequence[bytes | None], start: int, end: int
) -> tuple[list[int], list[int], list[int]]:
    """The ids before, over and after the bytes from `start` to `end`; a token that overlaps them is over them."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    place = 0
    for index in ids:
        last = place + len(token_bytes[index] or b"")
        parts[0 if last <= start else 2 if place >= end else 1].append(index)
        place = last
    return parts


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> Interval:
    """A rate with its exact binomial interval. Raises ValueError without a trial."""
    if trials < 1:
        raise ValueError("a rate needs at least one trial")
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return Interval(hits / trials, low, high, f"Clopper-Pearson over {trials} trials", level)


# The exact mass


def ends_a_word(token_bytes: Sequence[bytes | None]) -> NDArray[np.bool_]:
    """Which tokens do not go on with a word: they begin with no letter, or are special. (V,) bool."""
    return np.array([not each or not each.decode("utf-8", "replace")[0].isalpha() for each in token_bytes])


def slot_masses(
    logits: TreeLogits, segmentations: Sequence[Sequence[int]], ends: NDArray[np.bool_], floor: float = 0.0
) -> tuple[NDArray[np.float64], float]:
    """The probability that the model writes each segmentation after the prefix and then ends the word.

    logits: what comes after the prompt and the answer so far. Beginnings that are less probable than `floor` are not
    followed: their segmentations count 0. Returns ((S,) float64, the mass that this may have missed at most).
    """
    start = tuple(logits.prefix)
    probability: dict[tuple[int, ...], float] = {(): 1.0}
    missed = 0.0
    longest = max(map(len, segmentations), default=0)
    for depth in range(longest):
        alive = sorted({tuple(each[:depth]) for each in segmentations if tuple(each[:depth]) in probability})
        logits.prefetch([(*start, *each) for each in alive])
        children = sorted({tuple(each[: depth + 1]) for each in segmentations if len(each) > depth})
        for child in children:
            if child[:-1] not in probability:
                continue
            p = probability[child[:-1]] * float(logits((*start, *child[:-1]))[child[-1]].double().exp())
            if p > floor:
                probability[child] = p
            else:
                missed += p
    whole = [tuple(each) for each in segmentations]
    logits.prefetch([(*start, *each) for each in whole if each in probability])
    masses = np.zeros(len(whole))
    for place, each in enumerate(whole):
        if each in probability:
            after = logits((*start, *each)).double().exp().numpy()
            masses[place] = probability[each] * after[ends].sum()
    return masses, missed


# Encodings that are not canonical


def dropout_encode(word: bytes, ranks: Mapping[tuple[bytes, bytes], int], p: float, draw: random.Random) -> list[bytes]:
    """BPE with every possible merge left out with probability `p` at each step, until none is left or none was kept.

    ranks: merge -> its place. Ties: the leftmost. p = 0 is plain BPE. Source: BPE-dropout, arXiv 1910.13267.
    """
    pieces = [bytes([byte]) for byte in word]
    while True:
        found = [
            (ranks[pair], place)
            for place, pair in enumerate(pairwise(pieces))
            if pair in ranks and (p == 0 or draw.random() >= p)
        ]
        if not found:
            return pieces
        _, place = min(found)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


# A control of the classifier


@dataclass(frozen=True)
class Labelled:
    """Two spellings whose class is known because they were made so."""

    label: str
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


_SYLLABLES = ("ba", "den", "fo", "gri", "kel", "lom", "mi", "nor", "pet", "qua", "rus", "tiv")


def labelled_cases(count: int, seed: int) -> list[Labelled]:
    """`count` made-up cases of each class, by what was done to a spelling and not by looking at the boundaries."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choice(_SYLLABLES) for _ in range(3))

    def cut(text: str) -> tuple[bytes, bytes]:
        place = draw.randrange(2, len(text) - 1)
        return text[:place].encode(), text[place:].encode()

    def case(label: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        first, second = word(), word()
        whole = f" {first}".encode()
        if label == "A1":
            return (whole,), (b" ", first.encode())
        if label == "A2":
            head, tail = cut(first)
            return (whole,), (b" " + head, tail)
        if label == "A3":
            mark = draw.choice((",", ".", "!", "\n", ")"))
            return (whole + mark.encode(),), (whole, mark.encode())
        if label == "A4":
            digits = str(draw.randrange(1000, 10000)).encode()
            return (digits[:3], digits[3:]), (digits[:1], digits[1:])
        if label == "A5":
            letter = draw.choice(("é", "ß", "ğ", "語", "😀")).encode()
            return (whole, letter), (whole, letter[:1], letter[1:])
        if label == "A6":
            return (whole, f" {second}".encode()), (f" {first} {second}".encode(),)
        if label == "A7":
            return (f" {first.upper()}".encode(),), (f" {first[0].upper()}".encode(), first[1:].upper().encode())
        added = f"<|{first}|>"
        return (added.encode(),), (b"<|", first.encode(), b"|>")

    return [Labelled(label, *case(label)) for label in ARTIFACTS for _ in range(count)]


def named(case: Labelled) -> str | None:
    """What `classify_slot` calls a labelled case."""
    token_bytes = [*case.before, *case.after]
    ids_in = range(len(case.before))
    return classify_slot(ids_in, range(len(case.before), len(token_bytes)), token_bytes)[1]
