"""Ask a model every question with a method between it and the image; keep one line per question (H3, H4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenarium.methods.vlm.harness.account import Shape, prefill_flops
from tokenarium.methods.vlm.harness.method import Method, Visual
from tokenarium.methods.vlm.harness.questions import Question
from tokenarium.methods.vlm.harness.runner import Batch, Runner
from tokenarium.methods.vlm.harness.substrate import NEW_TOKENS, Substrate
from tokenarium.methods.vlm.harness.tower import ImageView

WINDOW = 64  # batches whose visual tokens are held at once

Item = TypeVar("Item")


@torch.no_grad()
def evaluate(
    substrate: Substrate, method: Method, batch_size: int = 32, questions: Sequence[int] | None = None
) -> dict[str, NDArray]:
    """One cell: the answers to all questions, or to those at the places `questions`, with `method` in between.

    Returns, one line per question in the order asked: correct (Q,) bool; log_probability (Q,) float32 of the answer's
    ids, nats; visual (Q, layers) uint16, visual tokens present in each layer; kept (Q, N) bool, the patches that the
    tokens left at the end stand for; gflops (Q,) float32 of reading the prompt, the method's own included.
    """
    asked = [
        substrate.questions[index] for index in (range(len(substrate.questions)) if questions is None else questions)
    ]
    shape, runner = substrate.shape, Runner(substrate.model, method)
    cell = {
        "correct": np.zeros(len(asked), dtype=bool),
        "log_probability": np.zeros(len(asked), dtype=np.float32),
        "visual": np.zeros((len(asked), shape.num_layers), dtype=np.uint16),
        "kept": np.zeros((len(asked), shape.num_patches), dtype=bool),
        "gflops": np.zeros(len(asked), dtype=np.float32),
    }
    own = method.overhead_flops(shape)
    for places in chunks(range(len(asked)), WINDOW * batch_size):
        visuals = select(substrate, method, [asked[place] for place in places])
        groups = defaultdict(list)
        for place, visual in zip(places, visuals, strict=True):
            groups[asked[place].layout, len(visual.tokens)].append((place, visual))
        for group in groups.values():
            for members in chunks(group, batch_size):
                batches = runner.read_prompts(
                    [asked[place] for place, _ in members], [visual for _, visual in members], shape.num_patches
                )
                for batch in batches:
                    rows = [members[example][0] for example in batch.examples]
                    _fill(cell, rows, batch, shape, own)
                    cell["log_probability"][rows], cell["correct"][rows] = score(substrate, runner, batch)
    return cell


def select(substrate: Substrate, method: Method, questions: Sequence[Question]) -> list[Visual]:
    """The visual tokens that enter the language model for each question, chosen once per image unless it asks."""
    found: dict[int, Visual] = {}
    keys = [question.index if method.asks_question else question.image for question in questions]
    first: dict[int, Question] = {}
    for key, question in zip(keys, questions, strict=True):
        first.setdefault(key, question)
    for part in chunks(list(first), 32):
        for key, image in zip(part, substrate.views([first[key] for key in part], method), strict=True):
            found[key] = enter(image, method)
    return [found[key] for key in keys]


def enter(image: ImageView, method: Method) -> Visual:
    """What the method lets into the language model, as tokens."""
    chosen = method.select(image)
    if isinstance(chosen, Visual):
        return chosen
    patches = chosen.to(image.features.device)
    return Visual(image.projected[patches], patches)


def score(substrate: Substrate, runner: Runner, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-probability of each answer's ids in nats, and whether the model gives it.

    Greedy decoding gives an answer of known ids exactly when each of them is the most likely after those before, so one
    pass over them is enough; free answers are decoded. Reading the answer appends it to the batch's caches.
    """
    first = runner.logits(batch.hidden[:, -1:])
    answers = torch.tensor([question.answer for question in batch.questions], device=first.device)
    if substrate.accepts is not None:
        texts = [substrate.decode(ids) for ids in decode(substrate, runner, batch, first)]
        correct = [substrate.accepts(question, text) for question, text in zip(batch.questions, texts, strict=True)]
        known = first.float().log_softmax(dim=-1)[:, 0].gather(1, answers[:, :1])[:, 0]
        return known.cpu().numpy(), np.array(correct)
    logits = first
    if answers.shape[1] > 1:
        logits = torch.cat((first, runner.read_answer(batch, answers[:, :-1])), dim=1)
    known = logits.float().log_softmax(dim=-1).gather(2, answers[..., None])[..., 0].sum(dim=1)
    return known.cpu().numpy(), (logits.argmax(dim=-1) == answers).all(dim=1).cpu().numpy()


def decode(substrate: Substrate, runner: Runner, batch: Batch, first: Tensor, tokens: int = NEW_TOKENS) -> list[Tensor]:
    """Greedy answers of up to `tokens` ids, each up to its end of text; first: (batch, 1, vocabulary) logits."""
    end = substrate.processor.tokenizer.eos_token_id
    ids = [first.argmax(dim=-1)]
    while len(ids) < tokens and not all((torch.cat(ids, dim=1) == end).any(dim=1)):
        ids.append(runner.read_answer(batch, ids[-1]).argmax(dim=-1))
    return [row[: row.tolist().index(end)] if end in row else row for row in torch.cat(ids, dim=1).cpu()]


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _fill(cell: dict[str, NDArray], rows: list[int], batch: Batch, shape: Shape, own: float) -> None:
    text = batch.hidden.shape[1] - batch.num_visual
    visual = np.array(batch.counts)
    cell["visual"][rows] = visual
    attended = None if batch.unmerge is None else text + shape.num_patches + 0 * visual
    cell["gflops"][rows] = (prefill_flops(text + visual, shape, attended) + own) / 1e9
    for row, patches in zip(rows, batch.patches.cpu().numpy(), strict=True):
        cell["kept"][row, patches[patches >= 0]] = True
