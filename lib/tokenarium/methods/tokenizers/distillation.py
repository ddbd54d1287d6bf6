"""Embedding distillation: a small encoder learns a teacher's sentence embeddings from token ids, from random weights.

Source: Bayram et al. 2025 (arXiv 2508.14292, later revision): loss 1 - cosine, one pass design for every tokenizer.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

WINDOW = 8  # batches among which examples of like length are put together


@dataclass(frozen=True)
class Recipe:
    """Sizes of the student and of its training; `positions` bounds the tokens of a text, what is longer is cut."""

    dim: int
    layers: int
    heads: int
    positions: int
    batch_size: int
    epochs: int
    learning_rate: float


class Student(nn.Module):
    """A bidirectional transformer on token ids: mean over the tokens, then a linear map to the teacher's space."""

    def __init__(self, rows: int, outputs: int, recipe: Recipe):
        """rows: of the embedding matrix; one more is for padding."""
        super().__init__()
        self.tokens = nn.Embedding(rows + 1, recipe.dim, padding_idx=rows)
        self.positions = nn.Embedding(recipe.positions, recipe.dim)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            recipe.dim, recipe.heads, 4 * recipe.dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, recipe.layers, nn.LayerNorm(recipe.dim), enable_nested_tensor=False)
        self.head = nn.Linear(recipe.dim, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, tokens) int64, padded with the last row -> (batch, outputs) float."""
        padding = ids == self.tokens.padding_idx
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.encoder(self.tokens(ids) + self.positions(places), src_key_padding_mask=padding)
        weight = (~padding).unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))


def distil(
    texts: Sequence[Sequence[int]],
    order: Sequence[int],
    targets: Tensor,
    student: Student,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[int], None],
) -> list[float]:
    """Train the student with AdamW on loss 1 - cosine; returns the mean loss of each epoch.

    texts: ids of each text. order: a key by which texts of like length are put in the same batch, the same for every
    tokenizer so that all see the same batches. targets: (texts, outputs) float. after_epoch: called with its number.
    """
    device = targets.device
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.learning_rate)
    generator = random.Random(seed)
    losses = []
    for epoch in range(recipe.epochs):
        student.train()
        total = 0.0
        for batch in batches(order, recipe.batch_size, generator):
            ids = padded([texts[index] for index in batch], student.tokens.padding_idx, recipe.positions).to(device)
            loss = (1 - cosine_similarity(student(ids), targets[batch], dim=-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += len(batch) * float(loss.detach())
        losses.append(total / len(texts))
        after_epoch(epoch)
    return losses


def embed(student: Student, texts: Sequence[Sequence[int]], recipe: Recipe) -> Tensor:
    """The student's embeddings (texts, outputs) float, not normalised, on the CPU."""
    student.eval()
    device, found = student.head.weight.device, []
    with torch.inference_mode():
        for start in range(0, len(texts), recipe.batch_size):
            ids = padded(texts[start : start + recipe.batch_size], student.tokens.padding_idx, recipe.positions)
            found.append(student(ids.to(device)).cpu())
    return torch.cat(found)


def batches(order: Sequence[int], size: int, generator: random.Random) -> Iterator[list[int]]:
    """Every index once, in shuffled batches whose members are near each other in `order` within a window."""
    indices = list(range(len(order)))
    generator.shuffle(indices)
    found = []
    for start in range(0, len(indices), WINDOW * size):
        window = sorted(indices[start : start + WINDOW * size], key=lambda index: order[index])
        found += [window[first : first + size] for first in range(0, len(window), size)]
    generator.shuffle(found)
    yield from found


def padded(texts: Sequence[Sequence[int]], padding: int, longest: int) -> Tensor:
    """(texts, tokens) int64: ids cut at `longest`, filled up with `padding`; at least one token wide."""
    width = max(1, min(longest, max(map(len, texts))))
    return torch.tensor([[*text[:width], *[padding] * (width - len(text))] for text in texts])
