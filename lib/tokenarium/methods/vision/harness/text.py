"""Paragraph retrieval with a merged text encoder: find a paragraph by its first sentence among many (claim C5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerBase

from tokenarium.methods.vision.harness.batches import over_batches


@dataclass(frozen=True)
class RetrievalSet:
    """Queries and the paragraphs they open, without their first sentence; query i belongs to document i."""

    queries: list[str]
    documents: list[str]


def first_sentence_retrieval(
    paragraphs: Iterable[str],
    split: Callable[[str], tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    shortest: int,
    longest: int,
    count: int,
) -> RetrievalSet:
    """The first `count` paragraphs of `shortest` to `longest` WordPieces, each split into first sentence and rest.

    split: paragraph -> (first sentence, rest). A paragraph of one sentence, or with a first sentence that occurred
    before, is passed over. Raises ValueError when there are fewer than `count`.
    """
    queries, documents = [], []
    for paragraph in paragraphs:
        query, document = split(paragraph)
        if not document or query in queries:
            continue
        if not shortest <= len(tokenizer.tokenize(paragraph)) <= longest:
            continue
        queries.append(query)
        documents.append(document)
        if len(queries) == count:
            return RetrievalSet(queries, documents)
    raise ValueError(f"only {len(queries)} of {count} paragraphs have {shortest} to {longest} WordPieces")


def embed_by_length(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: BertModel,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    batch_size: int = 32,
    max_length: int = 256,
) -> Tensor:
    """Unit embeddings (texts, dim) float32 by mean pooling, batched by equal length so that nothing is padded.

    encode: (batch, tokens) int64 ids -> hidden states (batch, kept, dim) and how many input tokens each stands for
    (batch, kept).
    """
    ids = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    by_length = defaultdict(list)
    for index, tokens in enumerate(ids):
        by_length[len(tokens)].append(index)
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    batches = [
        indices[start : start + batch_size]
        for indices in by_length.values()
        for start in range(0, len(indices), batch_size)
    ]

    @torch.no_grad()
    def embed(batch: list[int]) -> Tensor:
        hidden, weight = encode(torch.tensor([ids[index] for index in batch], device=model.device))
        pooled = (hidden * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()

    for batch, embedded in zip(batches, over_batches(embed, batches, model.device), strict=True):
        embeddings[batch] = embedded
    return embeddings
