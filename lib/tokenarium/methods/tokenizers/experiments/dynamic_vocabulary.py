"""A very large output vocabulary behind an approximate index: words of many languages with predicted rows.

Parts: "vocabulary" (sizes), "states-<seed>" (for
each state of held-out text: whether the index finds the row of greatest logit, rows that it scores, document),
"greedy-<seed>" (tokens that exact search and the index write after each prompt), "text" (some of it as text).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from tokenarium.data import libreoffice_help
from tokenarium.methods.tokenizers import bpe, dynamic_lab, zett
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.methods.tokenizers.dynamic_index import Index, exact_best
from tokenarium.models import lm_tiny
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    vocabulary = words(experiment)
    tokenizer = dt.longest_prefix_tokenizer(vocabulary)
    experiment.record("vocabulary", lambda: {"tokens": len(vocabulary), "bytes": sum(map(len, vocabulary))})
    texts = [
        text[len(text) // 2 :][: p.characters]
        for kind, number in p.documents.to_dict().items()
        for text in lm_tiny.documents(root, {kind: 10**12}, "test")[:number]
    ]
    encoded = [tokenizer.encode(text).ids[: p.context] for text in texts]
    for seed in experiment.progress(p.vocabulary_seeds, "seeds"):
        base = dynamic_lab.Base(root, seed, p.model, p.hypernet, dynamic_lab.device())
        rows_in, rows_out = predicted(base, vocabulary, p.rows_at_once)
        index = Index(rows_out.cpu().numpy(), p.lists, p.probes, seed=seed)
        experiment.arrays(
            f"states-{seed}",
            lambda base=base, rows_in=rows_in, index=index: states(base, rows_in, index, encoded, p.neighbours),
        )
        experiment.arrays(
            f"greedy-{seed}",
            lambda base=base, rows_in=rows_in, index=index: greedy(base, rows_in, index, encoded, p),
        )
    experiment.record("text", lambda: _text(experiment, tokenizer))


def words(experiment: Experiment) -> list[str]:
    """All bytes, then the most frequent words of lm-tiny's training texts, then those of the help in more languages."""
    p, root = experiment.parameters, experiment.root
    tokens = dict.fromkeys(bpe.to_characters(symbol) for symbol in bpe.BYTE_ALPHABET)
    sources = [lambda: lm_tiny.documents(root, p.bytes.to_dict())]
    for language in p.more_languages:
        sources.append(
            lambda language=language: [row["text"] for row in libreoffice_help.load(root, language, "train")]
        )
    for source in sources:
        if len(tokens) < p.rows:
            counts = Counter(word for text in source() for word in zett.byte_words(text))
            tokens.update(dict.fromkeys(word for word, _ in counts.most_common()))
    return list(tokens)[: p.rows]


def predicted(base: dynamic_lab.Base, vocabulary: list[str], at_once: int) -> tuple[Tensor, Tensor]:
    """Input and output rows of the whole vocabulary from the hypernetwork."""
    parts = [base.predicted(vocabulary[first : first + at_once]) for first in range(0, len(vocabulary), at_once)]
    rows_in, rows_out = zip(*parts, strict=True)
    return torch.cat(rows_in), torch.cat(rows_out)


@torch.no_grad()
def states(
    base: dynamic_lab.Base, rows_in: Tensor, index: Index, encoded: list[list[int]], k: int
) -> dict[str, NDArray[Any]]:
    """How the index does on the states of held-out texts."""
    found = []
    for ids in encoded:
        inputs = torch.cat([base.start[None], rows_in[ids]])[None]
        found.append(base.body(inputs_embeds=inputs, use_cache=False).last_hidden_state[0].cpu().numpy())
    owner = np.repeat(np.arange(len(found)), list(map(len, found)))
    each = np.concatenate(found)
    best, near = exact_best(index.rows, each), index.best(each, k)
    return {"found": best == near, "rows_scored": index.rows_scored(each, k), "document": owner, "best": best}


@torch.no_grad()
def greedy(
    base: dynamic_lab.Base, rows_in: Tensor, index: Index, encoded: list[list[int]], p: Any
) -> dict[str, NDArray[np.int64]]:
    """What exact search and the index write, (prompts, tokens) each."""
    made = {}
    searches = {
        "exact": lambda state: exact_best(index.rows, state),
        "index": lambda state: index.best(state, p.neighbours),
    }
    for name, search in searches.items():
        written = []
        for ids in encoded[: p.greedy_prompts]:
            inputs, cache, tokens = torch.cat([base.start[None], rows_in[ids[: p.prompt]]])[None], None, []
            for _ in range(p.greedy_tokens):
                output = base.body(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                tokens.append(int(search(output.last_hidden_state[:, -1].cpu().numpy())[0]))
                inputs = rows_in[tokens[-1:]][None]
            written.append(tokens)
        made[name] = np.array(written, dtype=np.int64)
    return made


def _text(experiment: Experiment, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """The first continuations as text."""
    p = experiment.parameters
    made = experiment.arrays(f"greedy-{p.vocabulary_seeds[0]}", dict)
    return {name: [tokenizer.decode(ids.tolist()) for ids in each[:3]] for name, each in made.items()}
