"""Fill-in-the-middle: windows of source code, their format, and a small Llama that learns it.

The format is suffix, prefix, middle: `<pre><suf> suffix <mid> prefix middle <end>`, prefix and middle encoded as one
text (Bavarian et al. 2022, arXiv 2207.14255). Only there does the middle directly follow the prefix, so that a cover of
the prefix can reach into the middle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenarium.methods.tokenizers import bpe

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

SENTINELS = ("prefix", "suffix", "middle", "end")
IGNORED = -100


@dataclass(frozen=True)
class Format:
    """A byte-level BPE and four ids after its own: sentinels of prefix, suffix and middle, and the end of a text."""

    merges: bpe.Bpe

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.merges.tokenizer()

    @property
    def token_bytes(self) -> list[bytes | None]:
        """What each id stands for; None for the sentinels."""
        return [*self.merges.vocabulary, *(None for _ in SENTINELS)]

    def sentinel(self, name: str) -> int:
        """The id of one of SENTINELS."""
        return len(self.merges.vocabulary) + SENTINELS.index(name)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def opening(self, suffix: str) -> list[int]:
        """What stands before the prefix."""
        return [self.sentinel("prefix"), self.sentinel("suffix"), *self.encode(suffix), self.sentinel("middle")]

    def example(self, prefix: str, middle: str, suffix: str) -> list[int]:
        """The ids to learn from."""
        return [*self.opening(suffix), *self.encode(prefix + middle), self.sentinel("end")]

    def plain(self, text: str) -> list[int]:
        """A text to be read from left to right, after an empty suffix."""
        return self.example(text, "", "")


def windows(texts: Sequence[str], characters: int) -> list[str]:
    """Texts in runs of whole lines of at most `characters`, ASCII only; blank ends of a window are cut off."""
    found = []
    for text in texts:
        held = ""
        for line in [*text.splitlines(keepends=True), ""]:
            if line and line.isascii() and len(held) + len(line) <= characters:
                held += line
                continue
            if len(held) > characters // 2:
                found.append(held.rstrip())
            held = line if line.isascii() and len(line) <= characters else ""
    return found


def examples(form: Format, texts: Sequence[str], rate: float, seed: int) -> Iterator[list[int]]:
    """Ids of the texts in random order, over and over; `rate` of them with a middle between two random characters."""
    draw = random.Random(seed)
    while True:
        for text in draw.sample(texts, len(texts)):
            if draw.random() < rate:
                start, end = sorted(draw.sample(range(1, len(text)), 2))
                yield form.example(text[:start], text[start:end], text[end:])
            else:
                yield form.plain(text)


def batches(found: Iterator[list[int]], size: int, length: int) -> Iterator[Tensor]:
    """(size, longest) int64 batches of ids, cut at `length` and filled with IGNORED."""
    while True:
        rows = [torch.tensor(next(found)[:length]) for _ in range(size)]
        yield torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def build(vocabulary: int, shape: Mapping[str, int], seed: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings. shape: width, layers, heads, positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape["width"],
            intermediate_size=3 * shape["width"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            max_position_embeddings=shape["positions"],
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def train(model: LlamaForCausalLM, data: Iterator[Tensor], steps: int, rates: Mapping[str, float]) -> list[float]:
    """Train in place, with Muon for the blocks' matrices and AdamW for the rest: rising for a tenth, then falling to 0.

    rates: learning rates `muon` and `adamw`. Returns the loss of every step, nats per token.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    optimisers = [
        torch.optim.Muon(matrices, lr=rates["muon"], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rates["adamw"], weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    warm = max(1, steps // 10)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda n: min((n + 1) / warm, (steps - n) / max(1, steps - warm)))
        for each in optimisers
    ]
    model.train()
    losses = []
    for _, ids in zip(range(steps), data, strict=False):
        shown = ids != IGNORED
        loss = model(input_ids=ids.clamp(min=0), attention_mask=shown.long(), labels=ids).loss
        loss.backward()
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


def describe(model: LlamaForCausalLM, losses: Sequence[float], every: int) -> dict[str, Any]:
    """Size and training curve: the mean loss of each `every` steps."""
    curve = [sum(losses[at : at + every]) / len(losses[at : at + every]) for at in range(0, len(losses), every)]
    return {"parameters": sum(weight.numel() for weight in model.parameters()), "curve": curve, "every": every}
