"""Tasks T1 to T4: prompts of an exact length in tokens, made from the suite's texts, the same for every policy.

T1: a passkey in filler that repeats itself. T2: one of four codes hidden in real text. T3: the next tokens of real
text. T4: a summary, to be compared with the one that the whole cache gives. Texts are of the split "test".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenarium.data import debian_reference, licences, man_pages
from tokenarium.data.text import split_of
from tokenarium.errors import TokenariumError
from tokenarium.methods.context.kvlab.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CITIES = (
    *("Amsterdam", "Athens", "Berlin", "Bogota", "Cairo", "Chicago", "Dublin", "Geneva", "Hanoi", "Havana", "Helsinki"),
    *("Istanbul", "Jakarta", "Kyoto", "Lagos", "Lima", "Lisbon", "London", "Madrid", "Manila", "Milan", "Moscow"),
    *(
        "Munich",
        "Nairobi",
        "Oslo",
        "Paris",
        "Prague",
        "Rome",
        "Seoul",
        "Sydney",
        "Tokyo",
        "Toronto",
        "Vienna",
        "Warsaw",
    ),
)
FILLER = (
    "The river runs past the mill and under the bridge. Boats go up in the morning and come down at night. "
    "The market opens at eight and closes at four. "
)
NEEDLES = 4
DIGITS = 4
ANSWER_TOKENS = 64  # of T3
QUESTION_TOKENS = 16  # of T3: the last tokens before those to be predicted
SOURCES = ("licences", "man-pages", "debian-reference")


@dataclass(frozen=True)
class _Frame:
    """What stands before a text, and between text, question and answer: the model's chat template, or plain words."""

    before: str
    between: str
    after: str


def texts(root: Path | str, split: str = "test") -> dict[str, list[str]]:
    """Source -> long English texts of the split, each a document, in a fixed order."""
    documents: dict[str, dict[str, list[str]]] = {name: {} for name in SOURCES}
    for row in licences.load(root, split):
        documents["licences"].setdefault(row["id"].partition("#")[0], []).append(row["text"])
    for row in man_pages.load(root, split):
        documents["man-pages"].setdefault(row["id"].partition("#")[0], []).append(row["text"])
    for row in debian_reference.load(root):
        if split_of(name := row["section"]) == split:
            documents["debian-reference"].setdefault(name, []).append(row["text"])
    return {source: ["\n\n".join(parts) for parts in held.values()] for source, held in documents.items()}


def make(
    root: Path | str,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    count: int,
    tokens: int = 512,
    seed: int = 0,
    held: dict[str, list[str]] | None = None,
) -> list[Prompt]:
    """The first `count` prompts of a task with contexts of `tokens` tokens: more only adds, the first stay the same.

    held: the texts by source, where they are read already or are to be others than `texts(root)`.

    Raises TokenariumError if the data sets were not fetched or hold too few long texts, ValueError for another task.
    """
    makers: dict[str, Callable[..., Prompt]] = {"T1": _passkey, "T2": _recall, "T3": _next_tokens, "T4": _summary}
    if task not in makers:
        raise ValueError(f"unknown task {task!r}: there are {', '.join(makers)}")
    if task == "T1":
        found = [("filler", FILLER)] * count
    else:
        found = _pick(texts(root) if held is None else held, tokenizer, tokens, count, seed)
    return [
        makers[task](tokenizer, source, text, f"{task}-{number:02d}", tokens, random.Random(f"{seed} {task} {number}"))
        for number, (source, text) in enumerate(found)
    ]


def _pick(
    held: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, tokens: int, count: int, seed: int
) -> list[tuple[str, str]]:
    """Texts of enough tokens, the sources in turn, each in an order of its own: single documents as long as there are
    any, then shorter ones one after the other."""
    needed = tokens + ANSWER_TOKENS
    queues = {source: random.Random(f"{seed} {source}").sample(found, len(found)) for source, found in held.items()}
    short: dict[str, list[str]] = {source: [] for source in held}

    def enough(text: str) -> bool:
        return len(text) >= needed and len(_encode(tokenizer, text)) >= needed

    def single(source: str) -> str | None:
        while queues[source]:
            # No more of a long document than can be needed: a token has at least one character and rarely ten.
            text = queues[source].pop()[: 12 * needed]
            if enough(text):
                return text
            short[source].append(text)
        return None

    def joined(source: str) -> str | None:
        text = ""
        while short[source]:
            text += short[source].pop(0) + "\n\n"
            if enough(text):
                return text
        return None

    chosen: list[tuple[str, str]] = []
    for find in (single, joined):
        sources = list(held)
        while sources and len(chosen) < count:
            found = [(source, text) for source in sources if (text := find(source))]
            sources = [source for source, _ in found]
            chosen += found
    if len(chosen) < count:
        raise TokenariumError(f"there are only {len(chosen)} texts of {needed} tokens, {count} are asked for")
    return chosen[:count]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _frame(tokenizer: PreTrainedTokenizerBase) -> _Frame:
    start = tokenizer.bos_token or ""
    if tokenizer.chat_template is None:
        return _Frame(start, "\n\nQuestion: ", "\nAnswer:")
    mark = "\u2063text\u2063"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False
    )
    before, after = rendered.split(mark)
    return _Frame(before, "\n\n", after)


def _passkey(
    tokenizer: PreTrainedTokenizerBase, source: str, text: str, name: str, tokens: int, draw: random.Random
) -> Prompt:
    frame = _frame(tokenizer)
    code = _code(draw)
    filler = _encode(tokenizer, text * (1 + tokens // 8))
    context, spans = _hide(tokenizer, frame.before, filler, [f" The pass key is {code}. Remember it."], tokens, draw)
    ask = f"{frame.between}What is the pass key?{frame.after}"
    return _prompt(tokenizer, "T1", name, context, f"{ask} The pass key is", f" {code}", spans, source)


def _recall(
    tokenizer: PreTrainedTokenizerBase, source: str, text: str, name: str, tokens: int, draw: random.Random
) -> Prompt:
    frame = _frame(tokenizer)
    cities = draw.sample(CITIES, NEEDLES)
    codes = [_code(draw) for _ in cities]
    needles = [f" The secret code of {city} is {code}." for city, code in zip(cities, codes, strict=True)]
    context, spans = _hide(tokenizer, frame.before, _encode(tokenizer, text), needles, tokens, draw)
    ask = f"{frame.between}What is the secret code of {cities[0]}?{frame.after}"
    lead = f" The secret code of {cities[0]} is"
    return _prompt(tokenizer, "T2", name, context, ask + lead, f" {codes[0]}", spans, source)


def _next_tokens(
    tokenizer: PreTrainedTokenizerBase, source: str, text: str, name: str, tokens: int, draw: random.Random
) -> Prompt:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [*start, *_encode(tokenizer, text)]
    end = tokens + min(QUESTION_TOKENS, tokens // 4)
    answer = ids[end : end + ANSWER_TOKENS]
    return Prompt("T3", name, ids[:tokens], ids[tokens:end], answer, [], source)


def _summary(
    tokenizer: PreTrainedTokenizerBase, source: str, text: str, name: str, tokens: int, draw: random.Random
) -> Prompt:
    frame = _frame(tokenizer)
    context, _ = _hide(tokenizer, frame.before, _encode(tokenizer, text), [], tokens, draw)
    ask = f"{frame.between}Summarise the text above in two sentences.{frame.after}"
    return Prompt("T4", name, context, _encode(tokenizer, ask), [], [], source)


def _code(draw: random.Random) -> str:
    return str(draw.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def _prompt(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    name: str,
    context: list[int],
    question: str,
    answer: str,
    spans: list[tuple[int, int]],
    source: str,
) -> Prompt:
    # The answer as it is split after the question, so that a token which joins both is never cut.
    asked = _encode(tokenizer, question)
    whole = _encode(tokenizer, question + answer)
    if whole[: len(asked)] != asked:
        raise ValueError(f"the tokenizer joins question and answer of {name}")
    return Prompt(task, name, context, asked, whole[len(asked) :], spans, source)


def _hide(
    tokenizer: PreTrainedTokenizerBase,
    before: str,
    text: list[int],
    needles: Sequence[str],
    tokens: int,
    draw: random.Random,
) -> tuple[list[int], list[tuple[int, int]]]:
    """`before`, then text with the needles after sentences at random depths: exactly `tokens` ids, and the needles'
    spans in the order given. Raises ValueError where they do not fit."""
    start = _encode(tokenizer, before)
    hidden = [_encode(tokenizer, needle) for needle in needles]
    room = tokens - len(start) - sum(map(len, hidden))
    if room < 2 * len(needles) or room > len(text):
        raise ValueError(f"{len(text)} tokens of text and {len(needles)} needles cannot fill {tokens} tokens")
    body = text[:room]
    ends = [
        place for place in range(1, room) if tokenizer.decode(body[place - 1 : place]).rstrip(" ").endswith((".", "\n"))
    ]
    ends = ends if len(ends) >= len(needles) else list(range(1, room))
    places = []
    for _ in hidden:
        aim = draw.uniform(0.02, 0.98) * room
        places.append(min((end for end in ends if end not in places), key=lambda end: abs(end - aim)))
    context, spans, at = list(start), [(0, 0)] * len(hidden), 0
    for number in sorted(range(len(hidden)), key=places.__getitem__):
        context += body[at : places[number]]
        spans[number] = (len(context), len(context) + len(hidden[number]))
        context += hidden[number]
        at = places[number]
    return context + body[at:], spans
