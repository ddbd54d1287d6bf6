"""Self-training on a task of replacing words: what a filter that compares ids breeds, and one that compares text.

A small language model learns to answer with another word where a word has allowed replacements, and with the word
itself where it has none. Then it is trained on its own answers, the ones that a checker takes for edits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LogitsProcessor

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.tokenizer_betrayal import (
    PHANTOM,
    REAL,
    classify_slot,
    dropout_encode,
    enumerate_segmentations,
)
from tokenarium.methods.tokenizers.valid_encodings import Codec, mask_invalid

TEMPLATES = (
    "we saw the{word} and left",
    "there was a{word} in the room",
    "the new{word} is here",
    "please find the{word} first",
    "this{word} was not known",
    "all of the{word} came back",
)
HELD_OUT = "one more{word} can be seen"
ASKED, ANSWERED = "Edit: ", "\nInstead of{word}"
CHECKERS = {"id": (PHANTOM, REAL), "text": (REAL,)}
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """The tokenizer, its merges, the words with their blanks, and the allowed replacements of each (none: hard).

    token_bytes: what each id stands for, empty for special tokens. fill: the id of one of these, behind short rows.
    """

    tokenizer: Tokenizer
    token_bytes: list[bytes]
    fill: int
    ranks: dict[tuple[bytes, bytes], int]
    allowed: dict[bytes, tuple[bytes, ...]]

    @property
    def words(self) -> list[bytes]:
        return list(self.allowed)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Bytes -> the lowest id that stands for them."""
        return _ids(self.token_bytes)

    @property
    def line_end(self) -> int:
        return self.ids[b"\n"]

    def encode(self, text: str) -> list[int]:
        """The canonical ids."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_dropout(self, text: str, p: float, draw: random.Random) -> list[int]:
        """Ids under BPE-dropout, word by word."""
        words = [bpe.from_characters(word) for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        return [self.ids[piece] for word in words for piece in dropout_encode(word, self.ranks, p, draw)]


def make_task(
    tokenizer: Tokenizer, fill: int, words: int, replacements: int, letters: int, least: int, seed: int
) -> Task:
    """`words` of the first words of a byte-level BPE; a random half of them has `replacements` others.

    A word is a blank and at least so many ASCII `letters` in one token, with at least `least` other segmentations of
    up to four pieces. fill: the id of a special token. Raises ValueError where the vocabulary has too few words.
    """
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    token_bytes = [
        b"" if index in special else bpe.from_characters(tokenizer.id_to_token(index))
        for index in range(tokenizer.get_vocab_size())
    ]
    vocabulary = _ids(token_bytes)
    lexicon: list[bytes] = []
    for each in token_bytes:
        plain = each[:1] == b" " and len(each) > letters and each[1:].isalpha()
        if plain and len(enumerate_segmentations(each, vocabulary)) > least:
            lexicon.append(each)
        if len(lexicon) == words:
            break
    if len(lexicon) < words:
        raise ValueError(f"the vocabulary has {len(lexicon)} words of one token, {words} are asked for")
    draw = random.Random(seed)
    free = set(draw.sample(lexicon, words // 2))
    allowed = {
        word: tuple(draw.sample([each for each in lexicon if each != word], replacements)) if word in free else ()
        for word in lexicon
    }
    ranks = {pair: rank for rank, pair in enumerate(bpe.merges_of(tokenizer))}
    return Task(tokenizer, token_bytes, fill, ranks, allowed)


def _ids(token_bytes: Sequence[bytes]) -> dict[bytes, int]:
    return {each: index for index, each in reversed(list(enumerate(token_bytes))) if each}


def question(template: str, word: bytes) -> str:
    """What the model is given; it answers with a word, blank in front, and a line end."""
    return ASKED + (template + ANSWERED).format(word=word.decode())


def demonstrations(task: Task, count: int, dropout: float, seed: int) -> list[tuple[list[int], list[int]]]:
    """(question, answer) ids under BPE-dropout: a random allowed replacement, or the word itself where none is."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        word = draw.choice(task.words)
        answer = draw.choice(task.allowed[word]) if task.allowed[word] else word
        asked = task.encode_with_dropout(question(draw.choice(TEMPLATES), word), dropout, draw)
        made.append((asked, task.encode_with_dropout(answer.decode() + "\n", dropout, draw)))
    return made


def train(
    model: torch.nn.Module,
    task: Task,
    examples: Sequence[tuple[list[int], list[int]]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """AdamW with a linear decay on the answers' tokens, batches drawn with replacement; the loss of every step."""
    draw = random.Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    losses = []
    model.train()
    for _ in range(steps):
        ids, labels = _batch(task, draw.choices(examples, k=batch_size))
        ids, labels = ids.to(model.device), labels.to(model.device)
        loss = model(ids, attention_mask=(ids != task.fill).long(), labels=labels).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def _batch(task: Task, examples: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max(len(asked) + len(answer) for asked, answer in examples)
    ids = torch.full((len(examples), longest), task.fill)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, (asked, answer) in enumerate(examples):
        ids[row, : len(asked) + len(answer)] = torch.tensor(asked + answer)
        labels[row, len(asked) : len(asked) + len(answer)] = torch.tensor(answer)
    return ids, labels


class CanonicalOnly(LogitsProcessor):
    """Masks every token after which the ids would be no encoding that the tokenizer makes; keeps what that costs.

    Special tokens are masked too. Where nothing is left, the answer is given up: it goes on with the id to fill, and is
    invalid.

    bits: of each row, the sum over its steps of -log2 of the probability that was left.
    """

    def __init__(self, codec: Codec, rows: int, task: Task):
        self.codec, self.task = codec, task
        self.special = torch.tensor([not each for each in task.token_bytes])
        self.bits = np.zeros(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = scores.double().log_softmax(-1).cpu()
        masked = torch.full_like(logp, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            left = [index for index in ids if index != self.task.fill]
            if left[-1] == self.task.line_end:  # this answer has ended
                masked[row, self.task.fill] = 0.0
                continue
            kept = mask_invalid(self.codec, left, logp[row]).masked_fill(self.special, -torch.inf)
            if kept.isneginf().all():  # begun a character that the tokenizer would have begun otherwise
                masked[row, self.task.fill] = 0.0
                continue
            self.bits[row] -= float(kept.logsumexp(-1)) / np.log(2)
            masked[row] = kept
        return masked.to(scores)


@torch.inference_mode()
def draw_answers(
    model: torch.nn.Module, task: Task, questions: Sequence[str], most: int, seed: int, codec: Codec | None = None
) -> tuple[list[list[int]], np.ndarray]:
    """One answer at temperature 1 to each question: ids up to the line end, which is left out.

    [] where no line end or a special token came.

    codec: keeps to canonical encodings, see `CanonicalOnly`, whose bits come second (zeros without it).
    """
    asked = [task.encode(each) for each in questions]
    longest = max(map(len, asked))
    ids = torch.full((len(asked), longest), task.fill)
    for row, each in enumerate(asked):
        ids[row, longest - len(each) :] = torch.tensor(each)
    torch.manual_seed(seed)
    mask = CanonicalOnly(codec, len(asked), task) if codec else None
    ids = ids.to(model.device)
    made = model.generate(
        ids,
        attention_mask=(ids != task.fill).long(),
        max_new_tokens=most,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=task.fill,
        eos_token_id=task.line_end,
        logits_processor=[mask] if mask else [],
    )[:, longest:].tolist()
    answers = [row[: row.index(task.line_end)] if task.line_end in row else [] for row in made]
    answers = [row if all(task.token_bytes[index] for index in row) else [] for row in answers]
    return answers, mask.bits if mask else np.zeros(len(asked))


def judged(task: Task, word: bytes, answer: Sequence[int]) -> tuple[str, str | None]:
    """Outcome and artifact of an answer; the input is the word's one token."""
    return classify_slot([task.ids[word]], answer, task.token_bytes)


def judged_anew(task: Task, word: bytes, answer: Sequence[int]) -> str:
    """The outcome when both texts are encoded anew before ids are compared."""
    text = b"".join(task.token_bytes[index] for index in answer).decode("utf-8", "replace")
    return classify_slot(task.encode(word.decode()), task.encode(text), task.token_bytes)[0]


def self_training_set(
    model: torch.nn.Module, task: Task, accepted: Sequence[str], best_of: int, most: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """For every word in a template drawn for it, the first of `best_of` answers whose outcome is accepted, if any."""
    draw = random.Random(seed)
    questions = [question(draw.choice(TEMPLATES), word) for word in task.words]
    repeated = [each for each in questions for _ in range(best_of)]
    answers, _ = draw_answers(model, task, repeated, most, seed)
    kept = []
    for place, word in enumerate(task.words):
        tries = answers[place * best_of : (place + 1) * best_of]
        taken = next((each for each in tries if judged(task, word, each)[0] in accepted), None)
        if taken is not None:
            kept.append((task.encode(questions[place]), [*taken, task.line_end]))
    return kept


def measured(
    model: torch.nn.Module, task: Task, repeats: int, most: int, seed: int, codec: Codec | None = None
) -> dict[str, Any]:
    """Outcomes in the held-out template, of free and hard words apart, `repeats` answers for each word."""
    words = [word for word in task.words for _ in range(repeats)]
    answers, bits = draw_answers(model, task, [question(HELD_OUT, word) for word in words], most, seed, codec)
    outcomes: dict[str, Counter[str]] = {"free": Counter(), "hard": Counter()}
    anew: Counter[str] = Counter()
    artifacts: Counter[str] = Counter()
    for word, answer in zip(words, answers, strict=True):
        outcome, kind = judged(task, word, answer)
        outcomes["free" if task.allowed[word] else "hard"][outcome] += 1
        anew[judged_anew(task, word, answer)] += 1
        if kind:
            artifacts[kind] += 1
    return {
        "outcomes": {group: dict(counts) for group, counts in outcomes.items()},
        "anew": dict(anew),
        "artifacts": dict(artifacts),
        "bits": float(bits.mean()),
    }
