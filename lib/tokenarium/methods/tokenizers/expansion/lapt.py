"""Language-adaptive pre-training of an expanded model, and bits per byte that tokenizers can be compared by.

Models are Llama-like ones of transformers with tied or untied embeddings. Source: arXiv 2406.11477: train the two top
and the two bottom layers, embeddings, heads and the final norm; extra heads predict tokens further ahead.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

ENDS = 2
_LINES = 256  # encoded at once
_POSITIONS = 512  # whose logits are held at once


@dataclass(frozen=True)
class Recipe:
    """How a model is adapted. layers: "all", or "ends" for the two top and the two bottom ones. ahead: extra heads."""

    layers: str = "ends"
    ahead: int = 1
    block: int = 128
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0

    def __post_init__(self):
        if self.layers not in ("all", "ends"):
            raise ValueError(f"layers must be 'all' or 'ends', got {self.layers!r}")


def expanded(model: Any, rows: NDArray, head_rows: NDArray | None = None, share: bool = False) -> Any:
    """A copy of the model with (N, d) new rows behind its own in the input matrix, and in the output matrix.

    head_rows: of an untied output matrix; a tied one shares the input's. share: the copy has the layers of the model
    itself, which is enough to score texts. No row is added as padding.
    Raises ValueError for a tied model with head rows, an untied one without.
    """
    tied = bool(model.config.tie_word_embeddings)
    if tied != (head_rows is None):
        raise ValueError("head_rows are for models whose matrices are not tied, and those need them")
    same = [*model.parameters(), *model.buffers()] if share else []
    model = copy.deepcopy(model, {id(each): each for each in same})  # deepcopy takes what is in its memo as it is
    old, embedding = model.config.vocab_size, model.get_input_embeddings()
    model.set_input_embeddings(_longer(embedding, nn.Embedding, rows))
    if tied:
        model.tie_weights()
        model.get_output_embeddings().out_features = old + len(rows)
    else:
        model.set_output_embeddings(_longer(model.get_output_embeddings(), nn.Linear, head_rows))
    model.config.vocab_size = model.vocab_size = old + len(rows)
    return model


def _longer(module: nn.Module, kind: Any, rows: NDArray) -> nn.Module:
    weight = module.weight.detach()
    longer = torch.cat([weight, torch.as_tensor(rows, dtype=weight.dtype, device=weight.device)])
    if kind is nn.Embedding:
        return nn.Embedding.from_pretrained(longer, freeze=False)
    made = nn.Linear(longer.shape[1], longer.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(longer)
    return made


# Text as tokens


def stream(
    tokenizer: Tokenizer, lines: Sequence[str], start: int, seed: int, most: int | None = None
) -> NDArray[np.int64]:
    """The lines in random order as one stream of ids, the start symbol before each; its first `most` ids, if given."""
    order = np.random.default_rng(seed).permutation(len(lines))
    ids: list[int] = []
    for begin in range(0, len(lines), _LINES):
        chosen = [lines[index] for index in order[begin : begin + _LINES]]
        for encoding in tokenizer.encode_batch(chosen, add_special_tokens=False):
            ids += [start, *encoding.ids]
        if most is not None and len(ids) >= most:
            break
    return np.array(ids[:most], dtype=np.int64)


def blocks(ids: NDArray[np.int64], length: int, batch: int) -> NDArray[np.int64]:
    """(steps, batch, length) consecutive blocks of a stream; what is left at its end is dropped.

    Raises ValueError where the stream does not fill one batch.
    """
    steps = len(ids) // (length * batch)
    if steps == 0:
        raise ValueError(f"{len(ids)} tokens do not fill one batch of {batch} blocks of {length}")
    return ids[: steps * batch * length].reshape(steps, batch, length)


def document_bits(
    model: Any, tokenizer: Tokenizer, documents: Sequence[str], start: int, window: int = 256, batch: int = 4
) -> NDArray[np.float64]:
    """The model's surprise at each document in bits, (documents,) float64.

    A document is cut into windows of at most `window` tokens that do not overlap; each is predicted after the start
    symbol alone. Windows of similar length share a batch.
    """
    parts: list[tuple[int, list[int]]] = []
    for index, encoding in enumerate(tokenizer.encode_batch(list(documents), add_special_tokens=False)):
        ids = encoding.ids
        parts += [(index, ids[begin : begin + window]) for begin in range(0, len(ids), window)]
    parts.sort(key=lambda part: -len(part[1]))
    bits = np.zeros(len(documents))
    device = model.get_input_embeddings().weight.device
    for begin in range(0, len(parts), batch):
        rows = parts[begin : begin + batch]
        ids = torch.full((len(rows), len(rows[0][1]) + 1), start, device=device)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, (_, part) in enumerate(rows):
            ids[row, 1 : len(part) + 1] = torch.tensor(part, device=device)
            real[row, 1 : len(part) + 1] = True
        with torch.inference_mode():
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            surprise = _surprise(hidden[real[:, 1:]], model.get_output_embeddings().weight, ids[real])
        owner = np.repeat([index for index, _ in rows], [len(part) for _, part in rows])
        np.add.at(bits, owner, surprise.double().cpu().numpy() / math.log(2))
    return bits


def _surprise(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    pieces = zip(hidden.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    return torch.cat(
        [functional.cross_entropy((part @ head.T).float(), wanted, reduction="none") for part, wanted in pieces]
    )


# Adaptation


def freeze(model: Any, layers: str) -> list[nn.Parameter]:
    """Leave trainable what the recipe trains, and return it: see `Recipe.layers`."""
    last = len(model.model.layers) - 1
    for index, layer in enumerate(model.model.layers):
        layer.requires_grad_(layers == "all" or min(index, last - index) < ENDS)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def loss(model: Any, ids: Tensor, heads: Sequence[Tensor] = ()) -> Tensor:
    """Mean cross-entropy of the next token, plus one of each extra head: head j, from 1, predicts j + 1 places ahead.

    ids: (batch, length) int64. heads: (V, d) each.
    """
    hidden = model.model(ids, use_cache=False).last_hidden_state
    total = hidden.new_zeros(())
    for ahead, head in enumerate([model.get_output_embeddings().weight, *heads], start=1):
        logits = hidden[:, :-ahead] @ head.T
        total = total + functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, ahead:].flatten())
    return total


def adapt(
    model: Any,
    batches: NDArray[np.int64],
    recipe: Recipe,
    steps: int,
    look: Callable[[int], None] | None = None,
) -> None:
    """Train `model` in place on (n, batch, length) ids, in order and from the beginning when they run out.

    AdamW, linear warm-up, then a cosine to zero. Extra heads start as copies of the head and are thrown away.
    look: called with the number of steps taken, before the first and after each.
    """
    device = model.get_input_embeddings().weight.device
    trained = freeze(model, recipe.layers)
    heads = [nn.Parameter(model.get_output_embeddings().weight.detach().clone()) for _ in range(recipe.ahead)]
    optimiser = torch.optim.AdamW([*trained, *heads], lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, recipe.warmup))
    if look:
        look(0)
    for step, batch in zip(range(1, steps + 1), cycle(batches)):
        optimiser.zero_grad()
        loss(model, torch.as_tensor(batch, device=device), heads).backward()
        nn.utils.clip_grad_norm_([*trained, *heads], recipe.clip)
        optimiser.step()
        schedule.step()
        if look:
            look(step)


def _rate(step: int, steps: int, warmup: float) -> float:
    rising = max(1, math.ceil(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def step_cost(config: Any, recipe: Recipe) -> float:
    """Multiply-adds of one training step of a Llama: a clock that does not depend on who shares the machine.

    Forward; gradients of activations through every layer, because the lowest ones train; gradients of weights in those
    that are trained. Heads and embeddings always train. config: of a transformers Llama.
    """
    d, layers, tokens = config.hidden_size, config.num_hidden_layers, recipe.block * recipe.batch
    head_dim = getattr(config, "head_dim", None) or d // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    weights = 2 * d * queries + 2 * d * keys + 3 * d * config.intermediate_size
    attention = 2 * queries * recipe.block / 2  # scores and their sum over the past, half of the block on average
    trained = layers if recipe.layers == "all" else min(layers, 2 * ENDS)
    body = layers * (2 * weights + 3 * attention) + trained * weights
    return tokens * (body + 3 * (1 + recipe.ahead) * config.vocab_size * d)
