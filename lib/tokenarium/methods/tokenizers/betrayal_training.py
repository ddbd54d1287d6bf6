"""Self-training on a task of replacing words: what a filter that compares ids breeds, and one that compares text.

A small Llama learns to answer with another word where a word has allowed replacements, and with the word itself where
it has none. Then it is trained on its own answers, the ones that a checker takes for edits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LogitsProcessor

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.tokenizer_betrayal import (
    COPY,
    INVALID,
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
    """The tokenizer, its merges, the words with their blanks, and the allowed replacements of each (none: hard)."""

    tokenizer: Tokenizer
    token_bytes: list[bytes]
    ranks: dict[tuple[bytes, bytes], int]
    allowed: dict[bytes, tuple[bytes, ...]]

    @property
    def words(self) -> list[bytes]:
        return list(self.allowed)

    @property
    def size(self) -> int:
        """Ids of the model: the vocabulary and one to fill."""
        return len(self.token_bytes) + 1

    @property
    def fill(self) -> int:
        return len(self.token_bytes)

    @property
    def line_end(self) -> int:
        return self.token_bytes.index(b"\n")

    def encode(self, text: str) -> list[int]:
        """The canonical ids."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_dropout(self, text: str, p: float, draw: random.Random) -> list[int]:
        """Ids under BPE-dropout, word by word."""
        index = {each: place for place, each in reversed(list(enumerate(self.token_bytes)))}
        words = [bpe.from_characters(word) for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        return [index[piece] for word in words for piece in dropout_encode(word, self.ranks, p, draw)]


def make_task(texts: Sequence[str], vocabulary: int, words: int, replacements: int, least: int, seed: int) -> Task:
    """A BPE of the texts, and `words` of its first learnt words; a random half of them has `replacements` others.

    A word is a blank and five or more letters in one token, with at least `least` other segmentations of up to four
    pieces. Raises ValueError where the vocabulary has too few of them.
    """
    trained = bpe.train(texts, vocabulary)
    index = {each: place for place, each in enumerate(trained.vocabulary)}
    found = [
        each
        for each in trained.vocabulary
        if each[:1] == b" "
        and len(each) > 5
        and each[1:].isalpha()
        and len(enumerate_segmentations(each, index)) > least
    ]
    if len(found) < words:
        raise ValueError(f"the vocabulary has {len(found)} words of one token, {words} are asked for")
    draw = random.Random(seed)
    lexicon = found[:words]
    free = set(draw.sample(lexicon, words // 2))
    allowed = {
        word: tuple(draw.sample([each for each in lexicon if each != word], replacements)) if word in free else ()
        for word in lexicon
    }
    ranks = {pair: rank for rank, pair in enumerate(trained.merges)}
    return Task(trained.tokenizer(), trained.vocabulary, ranks, allowed)


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


def new_model(task: Task, layers: int, width: int, seed: int) -> torch.nn.Module:
    """An untrained Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=task.size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=task.fill,
        bos_token_id=None,
        eos_token_id=task.line_end,
    )
    return LlamaForCausalLM(config)


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

    Where nothing is left, the answer is given up: it goes on with the id to fill, and is invalid.

    bits: of each row, the sum over its steps of -log2 of the probability that was left.
    """

    def __init__(self, codec: Codec, rows: int, task: Task):
        self.codec, self.task = codec, task
        self.bits = np.zeros(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = scores.double().log_softmax(-1)[:, : len(self.codec)]
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            left = [index for index in ids if index != self.task.fill]
            if left[-1] == self.task.line_end:  # this answer has ended
                masked[row, self.task.fill] = 0.0
                continue
            kept = mask_invalid(self.codec, left, logp[row])
            if kept.isneginf().all():  # begun a character that the tokenizer would have begun otherwise
                masked[row, self.task.fill] = 0.0
                continue
            self.bits[row] -= float(kept.logsumexp(-1)) / np.log(2)
            masked[row, : len(kept)] = kept.to(scores.dtype)
        return masked


@torch.inference_mode()
def draw_answers(
    model: torch.nn.Module, task: Task, questions: Sequence[str], most: int, seed: int, codec: Codec | None = None
) -> tuple[list[list[int]], np.ndarray]:
    """One answer at temperature 1 to each question: ids up to the line end, which is left out; [] where none came.

    codec: keeps to canonical encodings, see `CanonicalOnly`, whose bits come second (zeros without it).
    """
    asked = [task.encode(each) for each in questions]
    longest = max(map(len, asked))
    ids = torch.full((len(asked), longest), task.fill)
    for row, each in enumerate(asked):
        ids[row, longest - len(each) :] = torch.tensor(each)
    torch.manual_seed(seed)
    mask = CanonicalOnly(codec, len(asked), task) if codec else None
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
    answers = [[] if task.fill in row else row for row in answers]
    return answers, mask.bits if mask else np.zeros(len(asked))


def judged(task: Task, word: bytes, answer: Sequence[int]) -> tuple[str, str | None]:
    """Outcome and artifact of an answer; the input is the word's one token."""
    return classify_slot([task.token_bytes.index(word)], answer, task.token_bytes)


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


def illusion_rate(outcomes: dict[str, dict[str, int]]) -> tuple[int, int]:
    """(phantoms, phantoms + real edits) over both groups."""
    total: Counter[str] = Counter()
    for counts in outcomes.values():
        total.update(counts)
    return total[PHANTOM], total[PHANTOM] + total[REAL]


def real_rate(outcomes: dict[str, int]) -> tuple[int, int]:
    """(real edits, slots)."""
    return outcomes.get(REAL, 0), sum(outcomes.get(each, 0) for each in (COPY, PHANTOM, REAL, INVALID))
