"""Small language models of Turkish that differ in their tokenizer alone: same lines, same batches, same body.

A Llama with tied embeddings; the rows follow the vocabulary. Muon (torch.optim.Muon, Jordan et al. 2024) drives the
matrices inside the layers, AdamW the rest. Each line is a text of its own, after START.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenarium.methods.tokenizers.distillation import batches
from tokenarium.methods.tokenizers.turkish_coders import START

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SKIPPED = -100  # no target
_TOGETHER = 64  # lines scored at once


def build(rows: int, shape: Mapping[str, int], seed: int) -> LlamaForCausalLM:
    """A Llama with random weights. shape: width, layers, heads, positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=shape["width"],
        intermediate_size=shape["width"] * 8 // 3,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=shape["positions"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def train(
    model: LlamaForCausalLM, ids: Sequence[Sequence[int]], order: Sequence[int], recipe: Mapping[str, Any], seed: int
) -> list[float]:
    """Train in place for recipe["epochs"] passes over the lines; returns the loss of every step, nats per token.

    order: a key by which lines of like length share a batch, the same for every tokenizer so that all see the same
    bytes in the same order. recipe: epochs, batch_size (lines), muon_learning_rate, adamw_learning_rate, weight_decay,
    clip, warmup (share of the steps; then a cosine down to 0).
    """
    generator = random.Random(seed)
    plan = [batch for _ in range(recipe["epochs"]) for batch in batches(order, recipe["batch_size"], generator)]
    optimizers = _optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    losses = []
    for step, chosen in enumerate(plan):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = rate * one_cycle(step / len(plan), recipe["warmup"])
        inputs, targets = padded([ids[index] for index in chosen], model.device)
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=SKIPPED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def one_cycle(progress: float, warmup: float) -> float:
    """Learning-rate factor at `progress` in [0, 1): linear up to 1 over `warmup`, then a cosine down to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def padded(lines: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(inputs, targets), (lines, longest) int64 each: START and all but the last id, and the ids; SKIPPED behind."""
    longest = max(1, max(map(len, lines)))
    inputs = torch.full((len(lines), longest), START)
    targets = torch.full((len(lines), longest), SKIPPED)
    for row, ids in enumerate(lines):
        found = torch.tensor(ids, dtype=torch.int64)
        inputs[row, 1 : len(ids)] = found[:-1]
        targets[row, : len(ids)] = found
    return inputs.to(device), targets.to(device)


def line_bits(model: LlamaForCausalLM, ids: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """(lines,) bits of each line's ids."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    bits = np.zeros(len(ids))
    for start in range(0, len(order), _TOGETHER):
        chosen = order[start : start + _TOGETHER]
        inputs, targets = padded([ids[index] for index in chosen], model.device)
        with torch.inference_mode():
            logits = model(input_ids=inputs, use_cache=False).logits
            nats = functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=SKIPPED, reduction="none"
            )
        bits[chosen] = nats.view_as(targets).sum(dim=1).double().cpu().numpy() / math.log(2)
    return bits


def pooled(model: LlamaForCausalLM, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(lines, width) the mean of the last layer's states over each line's ids, START not among them."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    found = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), _TOGETHER):
        chosen = order[start : start + _TOGETHER]
        # One more id, so that the last of each line is an input too.
        inputs, targets = padded([[*ids[index], START] for index in chosen], model.device)
        with torch.inference_mode():
            states = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        real = (targets != SKIPPED).unsqueeze(-1)
        real[:, 0] = False  # START's place
        found[chosen] = ((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)).float().cpu().numpy()
    return found


def _optimizers(model: LlamaForCausalLM, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(
        matrices, lr=recipe["muon_learning_rate"], weight_decay=recipe["weight_decay"], adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=recipe["adamw_learning_rate"], weight_decay=0.0, betas=(0.9, 0.95))]
