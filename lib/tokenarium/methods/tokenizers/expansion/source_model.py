"""A small source model that can be adapted many times: English, with a trace of the language that will be added.

The source models of the paper have seen a little of every language. A model that has seen none of it says nothing about
the rows of its letters: they were only ever pushed away.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.expansion.lapt import blocks, loss, stream

START = "<|endoftext|>"


def train_tokenizer(lines: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, the last one the start symbol."""
    tokenizer = bpe.train(lines, vocab_size - 1).tokenizer()
    tokenizer.add_special_tokens([START])
    return tokenizer


def start_id(tokenizer: Tokenizer) -> int:
    """The id of the start symbol of `train_tokenizer`."""
    return tokenizer.token_to_id(START)


def llama(tokenizer: Tokenizer, hidden: int, layers: int, heads: int, intermediate: int, seed: int) -> Any:
    """A Llama with random weights and tied embeddings, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    start = start_id(tokenizer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=start,
        eos_token_id=start,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def pretrain(model: Any, tokenizer: Tokenizer, lines: Sequence[str], parameters: Mapping[str, Any], seed: int) -> None:
    """Train in place on the lines in random order, once.

    parameters: block, batch, learning_rate, weight_decay, warmup (share of the one-cycle schedule).
    """
    ids = stream(tokenizer, lines, start_id(tokenizer), seed)
    device = model.get_input_embeddings().weight.device
    batches = torch.from_numpy(blocks(ids, parameters["block"], parameters["batch"])).to(device)
    rate = parameters["learning_rate"]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=parameters["weight_decay"], betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=len(batches), pct_start=parameters["warmup"], cycle_momentum=False
    )
    for batch in batches:
        optimiser.zero_grad()
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """All weights by name, tied ones once."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: value.cpu().numpy() for name, value in model.state_dict().items() if name not in tied}


def with_weights(model: Any, arrays: Mapping[str, NDArray[np.float32]]) -> Any:
    """The model, its weights set to those of `weights`."""
    model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()}, strict=False)
    return model
