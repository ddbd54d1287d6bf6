"""What is asked of a language model: log-probabilities of answers to a prompt, surprise of words, continuations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenarium.models import language
from tokenarium.models.packed import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"  # stands for a random model over bytes, to try the wiring


@dataclass(frozen=True)
class Reader:
    """A causal language model with its tokenizer; every prompt follows the start token."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def costs(self, words: Sequence[str]) -> list[int]:
        """Tokens of each word after a blank."""
        return [len(self.encode(f" {word}")) for word in words]

    @torch.inference_mode()
    def answers(self, prompt: str, options: Sequence[str]) -> list[Tensor]:
        """The log-probability of every token of every option after the prompt, in one pass.

        The options share the prompt: each stands behind it at the same positions and sees the prompt and itself alone.
        """
        found = [self.encode(option) for option in options]
        same = 0
        while same < min(map(len, found)) - 1 and len({option[same] for option in found}) == 1:
            same += 1
        shared = found[0][:same]  # at most all but the last token, which is never read, only predicted
        start = [self.tokenizer.bos_token_id, *self.encode(prompt)]
        trunk = start + shared
        branches = [option[len(shared) : -1] for option in found]
        inputs = torch.tensor([trunk + [token for branch in branches for token in branch]])
        mask, positions = tree(len(trunk), [len(branch) for branch in branches])
        ends = range(len(start) - 1, len(trunk))
        read = torch.tensor([*ends, *range(len(trunk), inputs.shape[1])])
        device = self.model.device
        logits = self.model(
            inputs.to(device),
            attention_mask=mask[None, None].to(device),
            position_ids=positions[None].to(device),
            logits_to_keep=read.to(device),
            use_cache=False,
        ).logits[0]
        table = logits.float().log_softmax(dim=-1).cpu()
        scores, begin = [], len(ends)
        for option, branch in zip(found, branches, strict=True):
            rows = [*range(len(ends)), *range(begin, begin + len(branch))]
            scores.append(table[rows, option])
            begin += len(branch)
        return scores

    @torch.inference_mode()
    def surprise(self, words: Sequence[str]) -> Tensor:
        """Nats of every word (n,) after those before it: the sum over its tokens."""
        pieces = [self.encode(word if place == 0 else f" {word}") for place, word in enumerate(words)]
        flat = [token for piece in pieces for token in piece]
        inputs = torch.tensor([[self.tokenizer.bos_token_id, *flat]], device=self.model.device)
        table = self.model(inputs, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
        nats = -table.gather(1, inputs[0, 1:, None])[:, 0].cpu()
        return torch.stack([part.sum() for part in nats.split([len(piece) for piece in pieces])])

    @torch.inference_mode()
    def continuations(self, prompts: Sequence[str], tokens: int, batch_size: int = 10) -> list[str]:
        """What the model says after each prompt: at most `tokens` tokens, always the most probable one."""
        said: dict[int, str] = {}
        rows = [[self.tokenizer.bos_token_id, *self.encode(prompt)] for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # prompts of like length together
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        for batch in (order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)):
            width = max(len(rows[place]) for place in batch)
            inputs = torch.tensor([[pad] * (width - len(rows[place])) + rows[place] for place in batch])
            mask = torch.tensor([[0] * (width - len(rows[place])) + [1] * len(rows[place]) for place in batch])
            device = self.model.device
            made = self.model.generate(
                inputs.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=pad,
            )
            for place, row in zip(batch, made[:, width:], strict=True):
                said[place] = self.tokenizer.decode(row, skip_special_tokens=True)
        return [said[place] for place in range(len(rows))]


def tree(trunk: int, branches: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attention mask (n, n) bool and positions (n,) of a trunk of tokens with branches of these lengths behind it."""
    size = trunk + sum(branches)
    mask = torch.ones(size, size, dtype=torch.bool).tril()
    positions = torch.arange(size)
    begin = trunk
    for length in branches:
        mask[begin : begin + length, trunk:begin] = False
        positions[begin : begin + length] = torch.arange(trunk, trunk + length)
        begin += length
    return mask, positions


def open_reader(root: Path, name: str, device: str = "cpu") -> Reader:
    """A model of models/, of the hub ("organisation/model"), or TINY. Raises TokenariumError where it was not made."""
    if name == TINY:
        return tiny_reader()
    if "/" in name:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device).eval()
        return Reader(AutoTokenizer.from_pretrained(name), model)
    tokenizer, model = language.load(root / "models" / name, device)
    pack(model)
    return Reader(tokenizer, model)


def tiny_reader(dim: int = 32, seed: int = 0) -> Reader:
    """A random Llama of one layer whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return Reader(fast, model)


def mean_scores(options: Iterable[Tensor]) -> list[float]:
    """Nats per token of every option."""
    return [float(option.mean()) for option in options]
