"""ZeTT with training: further steps from predicted and from averaged rows, and a fine-tuned variant of the model.

Parts: "continued-<seed>-<arm>" (bits of each document before and after further steps on target b, and bits per byte of
the training passages at each step), "tuned-<seed>" (bits of each passage of the King James Bible under the tuned model,
by target and method), "tokens" (bytes of what was measured).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenarium.data import king_james_bible
from tokenarium.methods.tokenizers import zett, zett_lab
from tokenarium.models import hypernet_tiny, lm_tiny
from tokenarium.study.experiments import Experiment

TARGET = "b"


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    targets = zett_lab.targets(root, p)
    texts = zett_lab.passages(root, p.documents.to_dict(), p.characters)
    chapters = {split: _chapters(king_james_bible.load(root, split)) for split in ("train", "test")}
    lessons = hypernet_tiny.passages_of(lm_tiny.documents(root, p.training_bytes.to_dict()), p.passage)
    tuning = hypernet_tiny.passages_of(chapters["train"], p.passage)
    tested = [chapter[: p.characters] for chapter in chapters["test"][: p.chapters]]
    experiment.record(
        "tokens",
        lambda: {"bytes": [len(text.encode()) for text in texts], "bible": [len(text.encode()) for text in tested]},
    )
    for seed in experiment.progress(p.model_seeds, "seeds"):
        lab = zett_lab.Lab(root, seed, p.model, p.hypernet, zett_lab.device())
        _continued(experiment, lab, targets[TARGET], lessons, texts)
        _tuned(experiment, lab, targets, tuning, tested)


def _continued(
    experiment: Experiment, lab: zett_lab.Lab, target: zett_lab.Target, lessons: Sequence[str], texts: Sequence[str]
) -> None:
    pieces = lab.pieces(target)
    begin = {
        "original": (lab.original, lab.original_rows),
        "hypernet": (target, lambda: lab.with_start(lab.predicted(lab.forms(target)))),
        "FVT": (
            target,
            lambda: lab.with_start(tuple(zett.mean_of_pieces(pieces, rows) for rows in lab.rows)),
        ),
    }
    for arm, (tokenizer, rows) in begin.items():
        encoded = zett_lab.encode(tokenizer, texts)

        def make(
            tokenizer: zett_lab.Target = tokenizer, rows: Callable[[], Any] = rows, encoded: Any = encoded
        ) -> dict[str, NDArray[Any]]:
            before = zett_lab.document_bits(lab.model.model, rows(), encoded)
            body, new_rows, losses = further(lab, tokenizer, rows(), lessons, experiment.parameters)
            after = zett_lab.document_bits(body, new_rows, encoded)
            return {"before": before, "after": after, "losses": losses}

        experiment.arrays(f"continued-{lab.seed}-{arm}", make)


def _tuned(
    experiment: Experiment,
    lab: zett_lab.Lab,
    targets: dict[str, zett_lab.Target],
    tuning: Sequence[str],
    tested: Sequence[str],
) -> None:
    def make() -> dict[str, NDArray[Any]]:
        body, new_rows, _ = further(lab, lab.original, lab.original_rows(), tuning, experiment.parameters)
        own = lab.by_id(new_rows)
        encoded = zett_lab.encode(lab.original, tested)
        bits = {
            "original": zett_lab.document_bits(body, new_rows, encoded),
            "untuned": zett_lab.document_bits(lab.model.model, lab.original_rows(), encoded),
        }
        for name, target in targets.items():
            # The hypernetwork sees the base model's rows, as it was trained; means of pieces may use the tuned ones.
            pieces = lab.pieces(target)
            arms = {
                "hypernet": lab.predicted(lab.forms(target)),
                "FVT": tuple(zett.mean_of_pieces(pieces, rows) for rows in own),
            }
            for arm, rows in arms.items():
                bits[f"{name}-{arm}"] = zett_lab.document_bits(
                    body, lab.with_start(rows, own), zett_lab.encode(target, tested)
                )
        return bits

    experiment.arrays(f"tuned-{lab.seed}", make)


def further(
    lab: zett_lab.Lab, target: zett_lab.Target, rows: zett_lab.Rows, passages: Sequence[str], p: Any
) -> tuple[nn.Module, zett_lab.Rows, NDArray[np.float64]]:
    """Train all weights, embeddings too, for p.steps steps on passages; returns body, rows and bits per byte by step.

    All arms of one seed see the same passages in the same order. AdamW, one warm-up and cosine for all.
    """
    body = copy.deepcopy(lab.model.model).requires_grad_(True)
    body.embed_tokens.requires_grad_(False)  # not used: the rows stand in for it
    new_rows = tuple(nn.Parameter(each.detach().clone()) for each in rows)
    weights = [*(weight for weight in body.parameters() if weight.requires_grad), *new_rows]
    optimizer = torch.optim.AdamW(weights, lr=p.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    size = min(p.batch_size, len(passages))
    losses = np.zeros(p.steps)
    for step in range(p.steps):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * lm_tiny.schedule(step / p.steps, p.warmup, p.floor)
        texts = [passages[index] for index in lm_tiny.batch(step, size, len(passages), lab.seed).tolist()]
        ids, used = _padded(zett_lab.encode(target, texts))
        device = new_rows[0].device
        found: Tensor = zett.token_losses(body, *new_rows, ids.to(device), used.to(device))
        optimizer.zero_grad()
        found.mean().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses[step] = float(found.detach().sum()) / lm_tiny.BIT / sum(len(text.encode()) for text in texts)
    return body.requires_grad_(False), tuple(each.detach() for each in new_rows), losses


def _padded(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(documents), 1 + max(map(len, documents)), dtype=torch.long)
    used = torch.zeros_like(ids, dtype=torch.bool)
    for row, each in enumerate(documents):
        ids[row, 1 : 1 + len(each)] = torch.tensor(each)
        used[row, : 1 + len(each)] = True
    return ids, used


def _chapters(verses: Sequence[dict[str, str]]) -> list[str]:
    chapters: dict[str, list[str]] = {}
    for verse in verses:
        chapters.setdefault(verse["id"].partition("#")[0], []).append(verse["text"])
    return ["\n".join(lines) for lines in chapters.values()]
