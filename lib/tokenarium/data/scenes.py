"""Procedural scenes: pictures of coloured shapes and letters with questions whose answers are known exactly.

A scene is a list of items on a 96x96 picture; everything else follows from it: the drawing, the mask of every item on
the 12x12 grid of patches, captions, and questions of five families (attribute, existence, count, spatial relation,
glyph reading), each with its one-word answer and the items that it is about. Two kinds: "objects", 1 to 8 items of two
sizes on plain or textured ground, and "page", letters in 6 rows of 6 cells, in words of one colour, at three densities.

Nothing is stored: scene `index` of a stream is the same on every machine, and streams of different names share nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import numpy as np

SIZE, PATCH = 96, 8  # px
GRID = SIZE // PATCH  # patches per side
CELL, PAGE_CELL = 24, 16  # px: where an item of a scene, a letter of a page may lie
ROWS = SIZE // PAGE_CELL  # of a page; as many columns
COVER = 8  # of the 64 pixels of a patch: from here on the patch belongs to an item

COLORS = {
    "red": (214, 39, 40),
    "green": (40, 150, 60),
    "blue": (50, 100, 235),
    "yellow": (240, 200, 20),
    "purple": (165, 70, 195),
    "cyan": (30, 190, 200),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
LETTERS = "ACEHKLPSTUXZ"
NOUNS = (*SHAPES, *LETTERS)
SIZES = {"small": 12, "large": 20}  # px, of a shape
THIRDS = ("top", "middle", "bottom"), ("left", "center", "right")  # of the picture
SIDES = ("left", "right", "above", "below")
COUNTS = ("0", "1", "2", "3", "4")
DENSITIES = ("sparse", "medium", "dense")
FAMILIES = ("attribute", "existence", "count", "relation", "glyph")

SYSTEM = "look at the picture and answer the question with one word ."
CUE = "answer:"
IMAGE = "<image>"
PADDING, END, UNKNOWN, START = "<pad>", "</s>", "<unk>", "<s>"
SPECIAL = (PADDING, END, UNKNOWN, START, IMAGE)

_PLURAL = {"cross": "crosses"} | {shape: shape + "s" for shape in SHAPES if shape != "cross"}
_FUNCTION = (
    "look at the picture and answer question with one word . ? , : answer: a is there what color shape which letter "
    "letters thing things how many are on side of row column page words top middle bottom center scene caption: it"
)
WORDS = tuple(
    dict.fromkeys(
        (
            *_FUNCTION.split(),
            *COLORS,
            *NOUNS,
            *_PLURAL.values(),
            *SIZES,
            *SIDES,
            *("yes", "no"),
            *"0123456789",
            *DENSITIES,
        )
    )
)
"""Every word that questions, answers, captions and prompts are made of."""

_FONT = {  # 5x7 dots
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "S": ".#### #.... #.... .###. ....# ....# ####.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Z": "##### ....# ...#. ..#.. .#... #.... #####",
}
_SCALE = {"small": 2, "large": 3}  # px of a dot


@dataclass(frozen=True)
class Item:
    """One shape or letter; left and top in px."""

    noun: str
    color: str
    size: str
    left: int
    top: int

    @property
    def is_letter(self) -> bool:
        return self.noun in LETTERS

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in px, y downwards."""
        height, width = stamp(self.noun, self.size).shape
        return self.left + width / 2, self.top + height / 2

    @property
    def place(self) -> str:
        """Which third of the picture the centre lies in, as two words: "top left", "middle center"."""
        x, y = self.centre
        return f"{THIRDS[0][int(y * 3 / SIZE)]} {THIRDS[1][int(x * 3 / SIZE)]}"


@dataclass(frozen=True)
class Question:
    """family: of FAMILIES. items: indices of the items that the answer rests on, none where that is an absence."""

    family: str
    text: str
    answer: str
    items: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """What the model reads; a processor turns IMAGE into as many tokens as there are patches."""
        return f"{SYSTEM} {IMAGE} {self.text} {CUE}"


@dataclass(frozen=True)
class Scene:
    """items: in no particular order; on a page in reading order. ground: RGB. texture: index of `textures`, None for a
    plain ground. density: of a page, else None."""

    items: tuple[Item, ...]
    ground: tuple[int, int, int]
    texture: int | None = None
    density: str | None = None

    def draw(self) -> np.ndarray:
        """The picture: (96, 96, 3) uint8."""
        picture = np.empty((SIZE, SIZE, 3), np.uint8)
        picture[:] = self.ground
        if self.texture is not None:
            picture[:] = np.clip(picture + textures()[self.texture][:, :, None], 0, 255)
        for item in self.items:
            drawn = stamp(item.noun, item.size)
            height, width = drawn.shape
            picture[item.top : item.top + height, item.left : item.left + width][drawn] = COLORS[item.color]
        return picture

    def masks(self) -> np.ndarray:
        """(items, 12, 12) bool: the patches of which an item covers at least COVER pixels."""
        masks = np.zeros((len(self.items), GRID, GRID), bool)
        for mask, item in zip(masks, self.items, strict=True):
            drawn = np.zeros((SIZE, SIZE), bool)
            shape = stamp(item.noun, item.size)
            drawn[item.top : item.top + shape.shape[0], item.left : item.left + shape.shape[1]] = shape
            mask[:] = drawn.reshape(GRID, PATCH, GRID, PATCH).sum((1, 3)) >= COVER
        return masks

    def ink(self) -> float:
        """Share of the picture's pixels that items cover."""
        return sum(int(stamp(item.noun, item.size).sum()) for item in self.items) / SIZE**2

    def relevant(self, question: Question) -> np.ndarray:
        """(144,) bool: the patches, in raster order, of the items that a question is about."""
        return self.masks()[list(question.items)].any(0).reshape(-1)

    def caption(self, rng: random.Random | None = None) -> str:
        """All items in words, in random order if `rng` is given; of a page its words."""
        if self.density is not None:
            lines = (f"{word[0].color} {' '.join(item.noun for item in word)}" for word in self.words())
            return f"{self.density} page : " + " , ".join(lines)
        items = list(self.items)
        if rng is not None:
            rng.shuffle(items)
        return " , ".join(f"{item.size} {item.color} {item.noun} {item.place}" for item in items)

    def words(self) -> list[list[Item]]:
        """The words of a page: runs of neighbouring letters in a row, in reading order."""
        words: list[list[Item]] = []
        before = None
        for item in self.items:
            row, column = cell_of(item)
            if not item.is_letter:
                continue
            if before == (row, column - 1):
                words[-1].append(item)
            else:
                words.append([item])
            before = row, column
        return words


@cache
def stamp(noun: str, size: str) -> np.ndarray:
    """The pixels of a noun in its bounding box: (height, width) bool. Do not write to it."""
    if noun in LETTERS:
        dots = np.array([[dot == "#" for dot in row] for row in _FONT[noun].split()])
        return np.kron(dots, np.ones((_SCALE[size],) * 2, bool))
    side = SIZES[size]
    y, x = np.mgrid[:side, :side] + 0.5
    x, y = x / side * 2 - 1, y / side * 2 - 1
    radius = np.hypot(x, y)
    return {
        "circle": radius <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.9,
        "triangle": abs(x) <= (y + 1) / 2,
        "cross": (np.minimum(abs(x), abs(y)) <= 0.3),
        "ring": (radius <= 1) & (radius >= 0.55),
    }[noun]


@cache
def textures() -> np.ndarray:
    """The bank of textures: (32, 96, 96) int16 to be added to a ground: stripes, checks, and soft and fine noise."""
    rng = np.random.RandomState(0)  # its streams never change
    y, x = np.mgrid[:SIZE, :SIZE]
    bank = []
    for number in range(32):
        strength = 6 + 6 * (number % 4)
        match number // 8:
            case 0:
                angle = rng.uniform(0, np.pi)
                pattern = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / rng.uniform(8, 24))
            case 1:
                side = rng.randint(5, 16)
                pattern = ((x // side + y // side) % 2) * 2.0 - 1
            case 2:
                pattern = np.kron(rng.uniform(-1, 1, (12, 12)), np.ones((8, 8)))
            case _:
                pattern = rng.uniform(-1.5, 1.5, (SIZE, SIZE))
        bank.append(pattern * strength)
    return np.array(bank).round().astype(np.int16)


def cell_of(item: Item) -> tuple[int, int]:
    """(row, column) of a page's item, from 0."""
    return item.top // PAGE_CELL, item.left // PAGE_CELL


# Making scenes


def objects(rng: random.Random, items: int, textured: bool) -> Scene:
    """A scene of `items` items (1 to 8) in cells of their own, some of which share colours and shapes."""
    colors = rng.sample(list(COLORS), min(rng.choice((2, 3, 4, 6)), len(COLORS)))
    shapes = rng.sample(SHAPES, rng.choice((1, 2, 3, 5)))
    letters = rng.sample(LETTERS, 4)
    share = rng.choice((0.2, 0.4, 0.6))  # of letters
    made = []
    per_side = SIZE // CELL
    for cell in rng.sample(range(per_side**2), items):
        noun = rng.choice(letters if rng.random() < share else shapes)
        size = rng.choice(("small", "large"))
        height, width = stamp(noun, size).shape
        box = PATCH * (2 if size == "small" else 3)  # in the middle of whole patches, so that small towers can learn it
        left = cell % per_side * CELL + PATCH * rng.randint(0, (CELL - box) // PATCH) + (box - width) // 2
        top = cell // per_side * CELL + PATCH * rng.randint(0, (CELL - box) // PATCH) + (box - height) // 2
        made.append(Item(noun, rng.choice(colors), size, left, top))
    return Scene(tuple(made), _ground(rng), rng.randrange(32) if textured else None)


def page(rng: random.Random, density: str) -> Scene:
    """A page of one of DENSITIES: one word; a word on 2 to 4 rows; or five or six letters on each row.

    Medium and dense pages hold one marker, a shape with a letter on its right.
    """
    words: list[tuple[int, int, int]] = []  # row, first column, letters
    if density == "sparse":
        letters = rng.randint(3, 4)
        words.append((rng.randrange(ROWS), rng.randint(0, ROWS - letters), letters))
    elif density == "medium":
        for row in sorted(rng.sample(range(ROWS), rng.randint(2, 4))):
            letters = rng.randint(3, 5)
            words.append((row, rng.randint(0, ROWS - letters), letters))
    elif density == "dense":
        for row in range(ROWS):
            first = rng.choice((2, 3, 6))
            words.append((row, 0, first))
            if first < ROWS:
                words.append((row, first + 1, ROWS - first - 1))
    else:
        raise ValueError(f"density must be one of {DENSITIES}, got {density!r}")
    cells: dict[tuple[int, int], Item] = {}
    for row, column, letters in words:
        color = rng.choice(list(COLORS))
        for place in range(column, column + letters):
            cells[row, place] = Item(rng.choice(LETTERS), color, "small", place * PAGE_CELL + 3, row * PAGE_CELL + 1)
    if density != "sparse":
        row, column, _ = rng.choice([word for word in words if word[2] >= 3])
        shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
        cells[row, column] = Item(shape, color, "small", column * PAGE_CELL + 2, row * PAGE_CELL + 2)
    return Scene(tuple(cells[cell] for cell in sorted(cells)), _ground(rng), None, density)


def _ground(rng: random.Random) -> tuple[int, int, int]:
    """A pale or dark grey, tinted a little."""
    grey = rng.choice((238, 224, 34, 20))
    return tuple(grey + rng.randint(-10, 10) for _ in range(3))


def scene(stream: str, index: int, items: tuple[int, int] = (1, 8), pages: float = 0.0) -> Scene:
    """Scene `index` of a stream, e.g. "train-0": a page with probability `pages`, else `items` (from, to) items."""
    rng = random.Random(f"{stream}/{index}")
    if rng.random() < pages:
        return page(rng, rng.choice(DENSITIES))
    return objects(rng, rng.randint(*items), rng.random() < 0.5)


# Asking


def questions(scene: Scene, rng: random.Random) -> dict[str, dict[str, list[Question]]]:
    """All that can be asked about a scene: family -> answer -> questions. Families without any are left out.

    The generator draws only which absent things "is there" asks for: most share colour and noun with something present.
    """
    found: dict[str, dict[str, list[Question]]] = {}
    for question in _all_questions(scene, rng):
        found.setdefault(question.family, {}).setdefault(question.answer, []).append(question)
    return found


def draw(found: dict[str, dict[str, list[Question]]], rng: random.Random, count: int) -> list[Question]:
    """`count` questions of `questions`: families in turn, the answer drawn before the question.

    No question comes twice unless there are too few.
    """
    families = [family for family in FAMILIES if family in found]
    rng.shuffle(families)
    drawn: list[Question] = []
    seen: set[str] = set()
    for family, _ in zip(cycle(families), range(4 * count)):
        by_answer = found[family]
        question = rng.choice(by_answer[rng.choice(sorted(by_answer))])
        if question.text not in seen:
            seen.add(question.text)
            drawn.append(question)
        if len(drawn) == count:
            break
    while len(drawn) < count:
        drawn.append(rng.choice(drawn))
    return drawn


def _references(items: Sequence[Item]) -> list[list[str]]:
    """Of each item the phrases that mean it alone: "circle", "red circle"."""
    nouns = [item.noun for item in items]
    full = [f"{item.color} {item.noun}" for item in items]
    return [
        [name for name, of_all in ((noun, nouns), (phrase, full)) if of_all.count(name) == 1]
        for noun, phrase in zip(nouns, full, strict=True)
    ]


def _all_questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    items = scene.items
    colors, nouns = [item.color for item in items], [item.noun for item in items]
    references = _references(items)
    for index, item in enumerate(items):
        if nouns.count(item.noun) == 1:
            yield Question("attribute", f"what color is the {item.noun} ?", item.color, (index,))
        if colors.count(item.color) == 1 and not item.is_letter:
            yield Question("attribute", f"what shape is the {item.color} thing ?", item.noun, (index,))
    yield from _existence(items, rng)
    if scene.density is not None:
        yield from _page_questions(scene)
        return
    yield from _counts(items)
    for one, first in enumerate(items):
        for other, second in enumerate(items):
            side = _side(first, second)
            if side is None:
                continue
            for name in references[one]:
                for anchor in references[other]:
                    text = f"on which side of the {anchor} is the {name} ?"
                    yield Question("relation", text, side, (one, other))
    letters = [index for index, item in enumerate(items) if item.is_letter]
    for index in letters:
        item = items[index]
        if sum(items[other].color == item.color for other in letters) == 1:
            yield Question("glyph", f"which letter is {item.color} ?", item.noun, (index,))
        if sum(items[other].size == item.size for other in letters) == 1 and len(letters) > 1:
            yield Question("glyph", f"which letter is {item.size} ?", item.noun, (index,))
    if len(letters) == 1:
        yield Question("glyph", "which letter is there ?", items[letters[0]].noun, (letters[0],))


def _side(item: Item, anchor: Item) -> str | None:
    """Where `item` lies as seen from `anchor`, or None unless one direction clearly prevails."""
    dx, dy = (one - other for one, other in zip(item.centre, anchor.centre, strict=True))
    if abs(dx) >= 1.5 * abs(dy) + PATCH:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx) + PATCH:
        return "above" if dy < 0 else "below"
    return None


def _existence(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    present: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        present.setdefault((item.color, item.noun), []).append(index)
    for (color, noun), indices in present.items():
        yield Question("existence", f"is there a {color} {noun} ?", "yes", tuple(indices))
    colors, nouns = {item.color for item in items}, {item.noun for item in items}
    near = [(color, noun) for color in sorted(colors) for noun in sorted(nouns) if (color, noun) not in present]
    absent = near[:]
    for _ in range(max(len(near) // 2, 1)):
        color, noun = rng.choice(list(COLORS)), rng.choice(NOUNS)
        if (color, noun) not in present:
            absent.append((color, noun))
    for color, noun in absent:
        yield Question("existence", f"is there a {color} {noun} ?", "no", ())


def _counts(items: Sequence[Item]) -> Iterator[Question]:
    groups = {f"{color} things": [index for index, item in enumerate(items) if item.color == color] for color in COLORS}
    groups |= {_PLURAL[shape]: [index for index, item in enumerate(items) if item.noun == shape] for shape in SHAPES}
    groups["letters"] = [index for index, item in enumerate(items) if item.is_letter]
    for name, indices in groups.items():
        if len(indices) < len(COUNTS):
            yield Question("count", f"how many {name} are there ?", COUNTS[len(indices)], tuple(indices))


def _page_questions(scene: Scene) -> Iterator[Question]:
    items = scene.items
    where = {cell_of(item): index for index, item in enumerate(items)}
    for (row, column), index in where.items():
        if items[index].is_letter:
            text = f"which letter is at row {row + 1} column {column + 1} ?"
            yield Question("glyph", text, items[index].noun, (index,))
        else:
            neighbour = where[row, column + 1]
            marker = f"{items[index].color} {items[index].noun}"
            yield Question("glyph", f"which letter is right of the {marker} ?", items[neighbour].noun, (neighbour,))
    words = scene.words()
    if len(words) < len(COUNTS):
        letters = tuple(index for index, item in enumerate(items) if item.is_letter)
        yield Question("count", "how many words are there ?", COUNTS[len(words)], letters)


# Evaluation sets


@dataclass(frozen=True)
class Evaluation:
    """A fixed list of questions, each about a scene of its own."""

    scenes: tuple[Scene, ...]
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def images(self) -> np.ndarray:
        """(questions, 96, 96, 3) uint8."""
        return np.stack([scene.draw() for scene in self.scenes])

    @property
    def relevant(self) -> np.ndarray:
        """(questions, 144) bool; a row without any patch where what is asked for is absent."""
        pairs = zip(self.scenes, self.questions, strict=True)
        return np.stack([scene.relevant(question) for scene, question in pairs])

    @property
    def objects(self) -> np.ndarray:
        """(questions, 144) bool: patches of any item."""
        return np.stack([scene.masks().any(0).reshape(-1) for scene in self.scenes])

    def subset(self, indices: Sequence[int]) -> Evaluation:
        """The questions of these indices, in their order."""
        return Evaluation(tuple(self.scenes[i] for i in indices), tuple(self.questions[i] for i in indices))


_ANSWERS = {
    "attribute": (*COLORS, *SHAPES),
    "existence": ("yes", "no"),
    "count": COUNTS,
    "relation": SIDES,
    "glyph": tuple(LETTERS),
}


def evaluation(per_family: int = 160, stream: str = "evaluation") -> Evaluation:
    """The held-out questions on objects: families in turn, `per_family` of each, its answers equally often.

    A larger list begins with the smaller one. No model is trained on the streams "evaluation" and "held-out".
    """
    return _evaluation([(family, None) for family in FAMILIES] * per_family, stream)


def page_evaluation(questions: int = 800, stream: str = "evaluation-pages") -> Evaluation:
    """The held-out questions on pages, densities in turn; of four questions two read a letter, one names a colour, and
    one counts the words (or, on dense pages, reads a letter too)."""
    plan = []
    for number in range(questions):
        density, kind = DENSITIES[number % 3], number // 3 % 4
        family = ("glyph", "attribute", "glyph", "count")[kind]
        plan.append(("glyph" if (family, density) == ("count", "dense") else family, density))
    return _evaluation(plan, stream)


def _evaluation(plan: Sequence[tuple[str, str | None]], stream: str) -> Evaluation:
    answers = {pair: cycle(_ANSWERS[pair[0]]) for pair in plan}
    if (pair := ("count", "sparse")) in answers:
        answers[pair] = cycle(COUNTS[1:2])
    if (pair := ("count", "medium")) in answers:
        answers[pair] = cycle(COUNTS[2:])
    if any(density for _, density in plan):
        answers |= {pair: cycle(COLORS) for pair in answers if pair[0] == "attribute"}
    scenes, asked = [], []
    for number, (family, density) in enumerate(plan):
        answer = next(answers[family, density])
        for attempt in range(10_000):
            rng = random.Random(f"{stream}/{number}/{attempt}")
            made = page(rng, density) if density else objects(rng, rng.randint(1, 8), rng.random() < 0.5)
            if choice := questions(made, rng).get(family, {}).get(answer):
                scenes.append(made)
                asked.append(rng.choice(choice))
                break
        else:
            raise ValueError(f"no {density or 'scene'} answers a question of the family {family!r} with {answer!r}")
    return Evaluation(tuple(scenes), tuple(asked))
