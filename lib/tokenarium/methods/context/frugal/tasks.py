"""Questions on a passage that a small language model can answer, scored over fixed options.

Each prompt is passage + question, and only the passage is shortened. The answer's first words repeat the passage's own
wording, because a model of this size cannot follow other formats.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from tokenarium.data import king_james_bible, libreoffice_help, licences, man_pages, python_source
from tokenarium.data.text import split_of

DOMAINS = ("bible", "python", "man", "licences", "office")
SENTENCE_END = re.compile(r"[.!?]['\")\]]*$")
DIGITS = [f" {digit}" for digit in range(1, 10)]


@dataclass(frozen=True)
class Item:
    """passage: what is shortened. question: what follows it. options: what may follow that; gold: the right one."""

    passage: str
    question: str
    options: list[str]
    gold: int

    def prompt(self, passage: str | None = None) -> str:
        return (self.passage if passage is None else passage) + self.question

    def to_dict(self) -> dict[str, Any]:
        return {"passage": self.passage, "question": self.question, "options": self.options, "gold": self.gold}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Item:
        return cls(**record)


# Text


@lru_cache(maxsize=1)
def _rows(root: Path) -> dict[str, dict[str, list[str]]]:
    rows = {
        "bible": king_james_bible.load(root),
        "python": python_source.load(root),
        "man": man_pages.load(root),
        "licences": licences.load(root),
        "office": libreoffice_help.load(root, "en-US"),
    }
    found: dict[str, dict[str, list[str]]] = {name: {} for name in DOMAINS}
    for name, each in rows.items():
        for row in each:
            found[name].setdefault(row["id"].partition("#")[0], []).append(row["text"])
    return found


def documents(root: Path, domain: str, held_out: bool, draw: random.Random) -> Iterator[list[str]]:
    """The words of one document after the other, in an order drawn, of the train split or of all others."""
    parts = _rows(root)[domain]
    names = sorted(name for name in parts if (split_of(name) != "train") == held_out)
    draw.shuffle(names)
    prose: Callable[[str], str] = docstrings if domain == "python" else str
    for name in names:
        words = " ".join(map(prose, parts[name])).split()
        if words:
            yield words


def docstrings(source: str) -> str:
    """The first paragraphs of a module's docstrings, one after the other; nothing where the source does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return " ".join(" ".join(text.split()) for text in found if text)


def sentences(words: Sequence[str], longest: int = 40) -> list[range]:
    """Places of the words of every sentence; a sentence ends with a word in . ! or ?, or after `longest` words."""
    found, begin = [], 0
    for place, word in enumerate(words):
        if SENTENCE_END.search(word) or place - begin + 1 == longest or place + 1 == len(words):
            found.append(range(begin, place + 1))
            begin = place + 1
    return found


def is_prose(words: Sequence[str]) -> bool:
    """Whether at least nine in ten of the words are letters, but for the marks around them, and none is very long."""
    plain = sum(word.strip(".,;:!?'\"()[]").replace("-", "").replace("'", "").isalpha() for word in words)
    return plain >= 0.9 * len(words) and max(map(len, words)) <= 20


def windows(texts: Iterable[list[str]], size: int, count: int, draw: random.Random) -> list[list[str]]:
    """`count` runs of `size` words of prose that begin with a sentence, no two overlapping, at best one a document.

    texts: the words of every document, read until enough have a run; only where they are too few does one give several,
    drawn. Raises ValueError where there are not enough.
    """
    found: list[list[list[str]]] = []
    for words in texts:
        own, free = [], 0
        for sentence in sentences(words):
            run = words[sentence.start : sentence.start + size]
            if sentence.start >= free and len(run) == size and is_prose(run):
                own.append(run)
                free = sentence.start + size
        if own:
            draw.shuffle(own)
            found.append(own)
        if len(found) == count:
            break
    most = max(map(len, found), default=0)
    runs = [own[turn] for turn in range(most) for own in found if turn < len(own)][:count]
    if len(runs) < count:
        raise ValueError(f"the texts hold {len(runs)} runs of {size} words of prose, {count} are needed")
    return runs


def training_sentences(root: Path, per_domain: int, seed: int) -> tuple[list[str], list[int]]:
    """Runs of 6 to 20 words of the train split and the number of their domain, as many of each."""
    texts, labels = [], []
    for label, domain in enumerate(DOMAINS):
        draw = random.Random(seed)
        runs = windows(documents(root, domain, False, draw), 20, per_domain, draw)
        texts += [" ".join(run[: draw.randint(6, 20)]) for run in runs]
        labels += [label] * per_domain
    return texts, labels


# D, D-hard: which continuation follows


def topic_items(root: Path, count: int, seed: int, passage_words: int = 80, continuation_words: int = 12) -> list[Item]:
    """Passages of the five domains in turn, each with seven continuations: the true one, three of other domains, three
    of the same domain; the question is empty and option 0 is true."""
    draw = random.Random(seed)
    each = max(-(-count // len(DOMAINS)), 4)
    size = passage_words + continuation_words
    runs = {name: windows(documents(root, name, True, draw), size, each, draw) for name in DOMAINS}
    tails = {name: [" " + " ".join(run[passage_words:]) for run in found] for name, found in runs.items()}
    items = []
    for number in range(count):
        place, domain = divmod(number, len(DOMAINS))
        name = DOMAINS[domain]
        others = [draw.choice(tails[other]) for other in draw.sample([each for each in DOMAINS if each != name], 3)]
        same = draw.sample([tail for where, tail in enumerate(tails[name]) if where != place], 3)
        options = [tails[name][place], *others, *same]
        items.append(Item(" ".join(runs[name][place][:passage_words]), "", options, 0))
    return items


# Q: a fact among other sentences

CITIES = [
    *("Vienna", "Lisbon", "Oslo", "Prague", "Dublin", "Madrid", "Athens", "Warsaw", "Helsinki", "Berlin", "Paris"),
    *("Rome", "Budapest", "Brussels", "Copenhagen", "Stockholm", "Amsterdam", "Geneva", "Milan", "Barcelona"),
    *("Munich", "Hamburg", "Istanbul", "Cairo", "Tokyo", "Sydney", "Toronto", "Boston", "Chicago", "Dallas"),
]
FACTS = (
    ("The yearly meeting of the committee was held in", "Where was the yearly meeting of the committee held?"),
    ("The old painting of the harbour was sold in", "Where was the old painting of the harbour sold?"),
    ("The first office of the company was opened in", "Where was the first office of the company opened?"),
    ("The lost letters of the captain were found in", "Where were the lost letters of the captain found?"),
    ("The final game of the season was played in", "Where was the final game of the season played?"),
    ("The new engine of the train was built in", "Where was the new engine of the train built?"),
    ("The daughter of the baker was born in", "Where was the daughter of the baker born?"),
    ("The best students of the school were sent to", "Where were the best students of the school sent?"),
    ("The winner of the prize had grown up in", "Where had the winner of the prize grown up?"),
    ("The contract with the workers was signed in", "Where was the contract with the workers signed?"),
)


def fact_items(root: Path, count: int, seed: int, passage_words: int = 70) -> list[Item]:
    """One sentence names a city, somewhere among sentences of manuals and licences: which city was it, of four?"""
    draw = random.Random(seed)
    pool = [
        words[place.start : place.stop]
        for domain in ("office", "licences", "python")
        for words in islice(documents(root, domain, True, draw), 60)
        for place in sentences(words)
        if 8 <= len(place) <= 20
    ]
    pool = [words for words in pool if is_prose(words) and words[0][0].isupper() and SENTENCE_END.search(words[-1])]
    items = []
    for number in range(count):
        stem, question = FACTS[number % len(FACTS)]
        options = draw.sample(CITIES, 4)
        gold = draw.randrange(4)
        around = [[*stem.split(), f"{options[gold]}."]]
        while sum(map(len, around)) < passage_words - 8:
            around.insert(draw.randint(0, len(around)), draw.choice(pool))
        passage = " ".join(word for words in around for word in words)
        ask = f"\nQuestion: {question}\nAnswer: {stem}"
        items.append(Item(passage, ask, [f" {city}" for city in options], gold))
    return items


# R: three counts in a story

PLACES = ("kitchen", "garden", "garage", "cellar", "attic", "office", "hall", "shed", "barn", "yard")
THINGS = (
    "apples",
    "books",
    "chairs",
    "bottles",
    "boxes",
    "lamps",
    "hats",
    "plates",
    "spoons",
    "clocks",
    "keys",
    "shoes",
)
NAMES = ("Anna", "Peter", "Maria", "Thomas", "Julia", "David", "Sarah", "Martin", "Laura", "Simon")
AFTER = (
    "and all of them were old",
    "which nobody had used for years",
    "next to a broken window",
    "under a thick layer of dust",
    "and some of them were wet",
    "behind a large wooden door",
)


def count_items(count: int, seed: int) -> list[Item]:
    """Three counted things in three places, no count twice: how many of one of them were there?"""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        name = draw.choice(NAMES)
        places, things, after = draw.sample(PLACES, 3), draw.sample(THINGS, 3), draw.sample(AFTER, 3)
        counts, asked = draw.sample(range(1, 10), 3), draw.randrange(3)
        told = [
            f"In the {place} there were {number} {thing} {rest}."
            for place, thing, number, rest in zip(places, things, counts, after, strict=True)
        ]
        passage = f"{name} came home from a long journey and looked around. {' '.join(told)}"
        thing, place = things[asked], places[asked]
        ask = f"\nQuestion: How many {thing} were in the {place}?\nAnswer: In the {place} there were"
        items.append(Item(passage, ask, DIGITS, counts[asked] - 1))
    return items


# N: a sum


def sum_items(count: int, seed: int) -> list[Item]:
    """Two counts of one thing, and how many they are together, at most nine."""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        name, thing, place = draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES)
        total = draw.randint(2, 9)
        first = draw.randint(1, total - 1)
        passage = (
            f"{name} went to the {place} in the morning and found {first} {thing} there. Later in the day a friend "
            f"came and gave {name} {total - first} more {thing} as a present."
        )
        ask = f"\nQuestion: How many {thing} did {name} have in all?\nAnswer: In all {name} had"
        items.append(Item(passage, ask, DIGITS, total - 1))
    return items
