"""Numbers under a transplant: tiny language models that read English and add, and tokenizers that cut numbers.

Two ways to write a number: one token for each digit, or one token for every number from 0 to 999 (longer ones in groups
of three, from the left). All else is an ordinary byte-level BPE, so that what a transplant does to arithmetic can be
told from what it does to text.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import bpe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

START = "<s>"
GROUP = 3  # digits of the longest number token


def digit_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A BPE of the texts, `vocab_size` tokens, in which every digit stands alone; START is its last id."""
    return _finished(_text_bpe(texts, vocab_size), 1)


def number_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """The same BPE with 990 more tokens: every number from 10 to 999 is one; longer ones are cut by three digits."""
    made = _text_bpe(texts, vocab_size)
    numbers = [str(number) for number in range(10**GROUP)]
    known = set(numbers)
    # Either two digits of three may join first, so a number has every way to become whole.
    ways = ((number[:cut], number[cut:]) for number in numbers for cut in range(1, len(number)))
    merges = tuple((left.encode(), right.encode()) for left, right in ways if {left, right} <= known)
    return _finished(bpe.Bpe((*made.merges, *merges), made.pre_tokenizer), GROUP)


def _text_bpe(texts: Sequence[str], vocab_size: int) -> bpe.Bpe:
    return bpe.train(texts, vocab_size, _words(1))


def _words(digits: int) -> pre_tokenizers.PreTokenizer:
    numbers = pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), behavior="isolated")
    return pre_tokenizers.Sequence([numbers, bpe.gpt2_words()])


def _finished(made: bpe.Bpe, digits: int) -> Tokenizer:
    tokenizer = bpe.Bpe(made.merges, _words(digits)).tokenizer()
    tokenizer.add_special_tokens([START])
    return tokenizer


def without_digits(text: str) -> str:
    """The lines of a text in which no digit stands."""
    return "\n".join(line for line in text.split("\n") if not any(sign.isdigit() for sign in line))


def draw_sums(count: int, digits: int, seed: int, without: frozenset[str] = frozenset()) -> list[str]:
    """`count` lines "a+b=c", none of `without`; a and b have 1 to `digits` digits, each length as likely."""
    draw = random.Random(seed)

    def operand() -> int:
        length = draw.randint(1, digits)
        return draw.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)

    found: list[str] = []
    while len(found) < count:
        a, b = operand(), operand()
        line = f"{a}+{b}={a + b}"
        if line not in without:
            found.append(line)
    return found


def held_out_sums(count: int, digits: int, seed: int) -> list[str]:
    """`count` different lines of `draw_sums`."""
    distinct = dict.fromkeys(draw_sums(4 * count, digits, seed))
    return list(distinct)[:count]


def train(tokenizer: Tokenizer, text: str, recipe: Mapping[str, Any], seed: int, unseen: Sequence[str]) -> Any:
    """A Llama of recipe["dim"], ["layers"], ["heads"], tied, trained on a mix of windows of text and of sums.

    recipe: also ["steps"], ["batch_size"] (windows, half text and half sums), ["window"] (tokens, START first),
    ["digits"] of the sums, ["muon_learning_rate"], ["adamw_learning_rate"], ["warmup"]. unseen: sums that are kept out.
    Muon drives the matrices inside the layers, AdamW the rest. Returns a LlamaForCausalLM in evaluation mode.
    """
    model = untrained(tokenizer, recipe, seed)
    start, width = tokenizer.token_to_id(START), recipe["window"] - 1
    steps, half = recipe["steps"], recipe["batch_size"] // 2
    words = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    sums = _packed(tokenizer, recipe["digits"], steps * half, width, seed, frozenset(unseen))
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    for step in range(steps):
        offsets = torch.randint(len(words) - width, (half,), generator=generator)
        windows = torch.cat([words[offsets[:, None] + torch.arange(width)], sums[step * half : (step + 1) * half]])
        inputs = F.pad(windows, (1, 0), value=start)
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), windows.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = rate * _one_cycle(step / steps, recipe["warmup"])
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def untrained(tokenizer: Tokenizer, recipe: Mapping[str, Any], seed: int) -> LlamaForCausalLM:
    """The model that `train` begins with: weights drawn by `seed`, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe["dim"],
        intermediate_size=2 * recipe["dim"],
        num_hidden_layers=recipe["layers"],
        num_attention_heads=recipe["heads"],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def _packed(tokenizer: Tokenizer, digits: int, count: int, width: int, seed: int, unseen: frozenset[str]) -> Tensor:
    """(count, width) int64: windows of whole sums, one a line; each begins with a sum, the last is cut off."""
    lines: list[list[int]] = []
    rows = []
    for number in range(count):
        row: list[int] = []
        while len(row) < width:
            if not lines:
                drawn = draw_sums(20_000, digits, seed * 1_000_003 + number, unseen)
                encoded = tokenizer.encode_batch([f"{line}\n" for line in drawn], add_special_tokens=False)
                lines = [each.ids for each in encoded]
            row += lines.pop()
        rows.append(row[:width])
    return torch.tensor(rows)


def _optimizers(model: LlamaForCausalLM, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(
        matrices, lr=recipe["muon_learning_rate"], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=recipe["adamw_learning_rate"], weight_decay=0.0, betas=(0.9, 0.95))]


def _one_cycle(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, start_row: Tensor, lines: Sequence[str], longest: int = 6
) -> list[str]:
    """What the model writes after each "a+b=", up to the end of the line, always the most probable token.

    start_row: (d,) the row that stands before the prompt. longest: tokens at most. Row numbers are the tokenizer's ids.
    """
    symbols = token_bytes(tokenizer)
    prompts = [line.partition("=")[0] + "=" for line in lines]
    encoded = [each.ids for each in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    by_length = defaultdict(list)
    for index, ids in enumerate(encoded):
        by_length[len(ids)].append(index)
    written = [b""] * len(lines)
    embedding = model.get_input_embeddings()
    for places in by_length.values():
        ids = torch.tensor([encoded[place] for place in places])
        for _ in range(longest):
            with torch.inference_mode():
                first = start_row.to(embedding.weight).expand(len(ids), 1, -1)
                inputs = torch.cat([first, embedding(ids)], dim=1)
                chosen = model(inputs_embeds=inputs, use_cache=False).logits[:, -1].argmax(dim=-1)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
        for place, row in zip(places, ids[:, -longest:].tolist(), strict=True):
            written[place] = b"".join(symbols[index] or b"\n" for index in row).partition(b"\n")[0]
    return [each.decode("utf-8", "replace") for each in written]


def exact(found: Sequence[str], lines: Sequence[str]) -> NDArray[np.int64]:
    """(n,) int64: 1 where what was written is the sum."""
    return np.array([one == line.partition("=")[2] for one, line in zip(found, lines, strict=True)], dtype=np.int64)
