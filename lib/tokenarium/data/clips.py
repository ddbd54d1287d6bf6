"""Procedural clips: scenes over time, with questions about order and motion.

Some items stay, one moves along a row or a column of cells, and two visitors are seen only in a quarter of the frames
each, one after the other: a clip that is sampled too thinly misses them. Frames are scenes (see `scenes`), so drawings
and masks are the same; a clip of more frames shows the same events in finer steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from tokenarium.data import scenes
from tokenarium.data.scenes import CELL, COLORS, LETTERS, PATCH, SHAPES, SIDES, SIZE, Item, Scene

FAMILIES = ("order", "visit", "motion")
WORDS = ("first", "last", "came", "to", "does", "move", "did", "come")  # besides those of scenes

_PER_SIDE = SIZE // CELL


@dataclass(frozen=True)
class Question:
    """family: of FAMILIES. frames: those that hold the evidence, in order."""

    family: str
    text: str
    answer: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Clip:
    """frames: one scene each. stays, visitors: items, visitors in the order of their coming; visits: their frames.
    mover: the item as first seen, and the side that it moves to."""

    frames: tuple[Scene, ...]
    stays: tuple[Item, ...]
    visitors: tuple[Item, Item]
    visits: tuple[tuple[int, ...], tuple[int, ...]]
    mover: Item
    side: str

    def draw(self) -> np.ndarray:
        """(frames, 96, 96, 3) uint8."""
        return np.stack([frame.draw() for frame in self.frames])

    def questions(self) -> Iterator[Question]:
        """All that can be asked."""
        first, last = self.visitors
        both = tuple(sorted((*self.visits[0], *self.visits[1])))
        for which, visitor in zip(("first", "last"), self.visitors, strict=True):
            yield Question("order", f"which thing came {which} ?", visitor.noun, both)
            if first.color != last.color:
                yield Question("order", f"what color came {which} ?", visitor.color, both)
        seen = {(item.color, item.noun) for item in (*self.stays, *self.visitors, self.mover)}
        for visitor, frames in zip(self.visitors, self.visits, strict=True):
            yield Question("visit", f"did a {visitor.color} {visitor.noun} come ?", "yes", frames)
        for color, noun in ((first.color, last.noun), (last.color, first.noun)):
            if (color, noun) not in seen:
                yield Question("visit", f"did a {color} {noun} come ?", "no", both)
        text = f"to which side does the {self.mover.color} {self.mover.noun} move ?"
        yield Question("motion", text, self.side, tuple(range(len(self.frames))))


def clip(stream: str, index: int, frames: int = 8) -> Clip:
    """Clip `index` of a stream with at least 8 frames; what happens in it does not depend on their number.

    Raises ValueError for fewer frames.
    """
    if frames < 8:
        raise ValueError(f"a clip has 8 frames or more, got {frames}")
    rng = random.Random(f"clip/{stream}/{index}")
    side = rng.choice(SIDES)
    lane = rng.randrange(_PER_SIDE)
    across = side in ("left", "right")
    cells = [(row, column) for row in range(_PER_SIDE) for column in range(_PER_SIDE)]
    free = [cell for cell in cells if cell[0 if across else 1] != lane]  # the mover has its lane for itself
    count = rng.randint(1, 3) + 2
    kinds = rng.sample([(color, noun) for color in COLORS for noun in (*SHAPES, *LETTERS)], count + 1)
    while len({noun for _, noun in kinds}) < len(kinds):
        kinds = rng.sample([(color, noun) for color in COLORS for noun in (*SHAPES, *LETTERS)], count + 1)
    items = [_at(color, noun, *place) for (color, noun), place in zip(kinds[1:], rng.sample(free, count), strict=True)]
    stays, visitors = tuple(items[2:]), (items[0], items[1])
    quarter = frames / 4
    begins = sorted((rng.uniform(0, 2), rng.uniform(0, 2)))  # in quarters, so that the second begins a quarter later
    spans = [(begin + number) * quarter for number, begin in enumerate(begins)]
    visits = tuple(tuple(range(round(span), round(span) + round(quarter))) for span in spans)
    ground = scenes.objects(rng, 1, textured=False).ground
    path = [round(step * (SIZE - CELL) / PATCH / (frames - 1)) * PATCH for step in range(frames)]
    if side in ("left", "above"):
        path = path[::-1]
    color, noun = kinds[0]
    still = _at(color, noun, lane if across else 0, 0 if across else lane)
    made = []
    for frame in range(frames):
        shift = (path[frame], 0) if across else (0, path[frame])
        moving = Item(noun, color, still.size, still.left + shift[0], still.top + shift[1])
        visiting = [visitor for visitor, seen in zip(visitors, visits, strict=True) if frame in seen]
        made.append(Scene((moving, *stays, *visiting), ground))
    return Clip(tuple(made), stays, visitors, visits, made[0].items[0], side)


def evaluation(questions: int = 300, frames: int = 8, stream: str = "evaluation") -> list[tuple[Clip, Question]]:
    """The held-out questions, each about its own clip, families in turn; the same events at any number of frames."""
    chosen = []
    for number, family in zip(range(questions), cycle(FAMILIES)):
        made = clip(stream, number, frames)
        of_family = [question for question in made.questions() if question.family == family]
        rng = random.Random(f"clip-question/{stream}/{number}")
        answers = sorted({question.answer for question in of_family})
        answer = rng.choice(answers)
        chosen.append((made, rng.choice([question for question in of_family if question.answer == answer])))
    return chosen


def _at(color: str, noun: str, row: int, column: int) -> Item:
    """A small item in the upper left of a cell, in the middle of whole patches."""
    height, width = scenes.stamp(noun, "small").shape
    box = 2 * PATCH
    return Item(noun, color, "small", column * CELL + (box - width) // 2, row * CELL + (box - height) // 2)
