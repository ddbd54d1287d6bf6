"""A slow language model for tests: the decoder layers of transformers, whole sequences, masks and ids written out."""

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration


def masked_logits(model: LlavaForConditionalGeneration, embeddings: Tensor, positions: Tensor, hidden: dict) -> Tensor:
    """Logits of every row of (S, dim) embeddings at ids (S,), when from layer l (0-based) on the rows `hidden[l]` are
    seen by nobody but themselves; the layers run as they are, all rows in all of them."""
    language = model.model.language_model
    x = embeddings[None]
    angles = language.rotary_emb(x, positions[None])
    length = len(embeddings)
    gone: set[int] = set()
    for number, layer in enumerate(language.layers):
        gone |= set(hidden.get(number, []))
        seen = [[c == r or (c < r and c not in gone) for c in range(length)] for r in range(length)]
        mask = torch.zeros(length, length).masked_fill(~torch.tensor(seen), -torch.inf)[None, None]
        x = layer(x, attention_mask=mask, position_embeddings=angles)
    return model.lm_head(language.norm(x))[0]


def shortened_logits(model: LlavaForConditionalGeneration, embeddings: Tensor, dropped: dict) -> Tensor:
    """Logits of the rows left when the rows `dropped[l]` (of the whole sequence) go before layer l and the ids of those
    left are counted anew in every layer."""
    language = model.model.language_model
    rows = list(range(len(embeddings)))
    x = embeddings[None]
    for number, layer in enumerate(language.layers):
        left = [place for place, row in enumerate(rows) if row not in dropped.get(number, [])]
        x, rows = x[:, left], [rows[place] for place in left]
        angles = language.rotary_emb(x, torch.arange(len(rows))[None])
        mask = torch.full((len(rows), len(rows)), -torch.inf, dtype=x.dtype).triu(1)[None, None]
        x = layer(x, attention_mask=mask, position_embeddings=angles)
    return model.lm_head(language.norm(x))[0]
