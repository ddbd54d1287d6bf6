"""Where the truth is known: a Markov chain over two letters, and sums over all encodings by exhaustive search.

The chain's tokenizer has A, B and AA and merges from the left, so that a token A is never followed by another A or AA:
the run would have been merged. A correct model over tokens follows from the chain in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenarium.methods.tokenizers.byte_probabilities import (
    LogpNext,
    left_sides,
    next_byte_probs,
    prefix_log_marginals,
    tokenized_next_byte_probs,
)
from tokenarium.methods.tokenizers.valid_encodings import Codec, PrefixIndex, is_valid

TOKENS = (b"A", b"B", b"AA")
A, B, AA = range(3)
START = 3  # the id before every sequence of the trained model


def encode(data: bytes) -> list[int]:
    """AA as often as it fits, from the left."""
    ids: list[int] = []
    for byte in data:
        if byte == TOKENS[A][0] and ids and ids[-1] == A:
            ids[-1] = AA
        else:
            ids.append(TOKENS.index(bytes([byte])))
    return ids


def decode(ids: Sequence[int]) -> bytes:
    """The letters of the ids."""
    return b"".join(TOKENS[index] for index in ids)


@dataclass(frozen=True)
class Chain:
    """first: P(the first letter is A); after_a, after_b: P(the next letter is A) after an A, after a B."""

    first: float
    after_a: float
    after_b: float

    def next_letter(self, data: bytes) -> NDArray[np.float64]:
        """P(A), P(B) after `data`: (2,) float64."""
        p = self.first if not data else self.after_a if data.endswith(b"A") else self.after_b
        return np.array([p, 1 - p])

    def draw(self, length: int, generator: np.random.Generator) -> bytes:
        """A random sequence of letters."""
        data = b""
        for _ in range(length):
            data += TOKENS[int(generator.random() >= self.next_letter(data)[0])]
        return data

    def logp_next(self, ids: Sequence[int]) -> Tensor:
        """The correct model over tokens: (3,) float64 log probabilities of A, B, AA."""
        if len(ids) and ids[-1] == A:  # another A would have been merged
            p = [0.0, 1.0, 0.0]
        else:
            once = self.first if not len(ids) else self.after_b if ids[-1] == B else self.after_a
            p = [once * (1 - self.after_a), 1 - once, once * self.after_a]
        return torch.tensor(p, dtype=torch.float64).log()


def letter_errors(chain: Chain, prefixes: Sequence[bytes], logp_next: LogpNext) -> tuple[NDArray, NDArray]:
    """|P - truth| for both letters after each prefix: (prefixes, 2) by covers, and the same by summing next tokens."""
    exact, naive = [], []
    for prefix in prefixes:
        truth = chain.next_letter(prefix)
        by_covers = next_byte_probs(prefix, encode, decode, TOKENS, logp_next)
        by_tokens = tokenized_next_byte_probs(encode(prefix), TOKENS, logp_next)
        exact.append(np.abs(by_covers[[65, 66]].numpy() - truth))
        naive.append(np.abs(by_tokens[[65, 66]].numpy() - truth))
    return np.array(exact), np.array(naive)


def train_on_chain(chain: Chain, seed: int, steps: int, batch_size: int = 64, letters: int = 32) -> LogpNext:
    """A two-layer Llama trained on encoded draws of the chain, as `logp_next` over the three tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=START + 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=2 * letters,
            bos_token_id=START,
            eos_token_id=None,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        # The last id of a cut sequence may be half of a pair, so it is not learnt.
        rows = [torch.tensor([START, *encode(chain.draw(letters, generator))[:-1]]) for _ in range(batch_size)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        model(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long(), labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    known: dict[tuple[int, ...], Tensor] = {}

    @torch.inference_mode()
    def logp_next(ids: Sequence[int]) -> Tensor:
        key = tuple(ids)
        if key not in known:
            known[key] = model.eval()(torch.tensor([[START, *ids]])).logits[0, -1, :START].double().log_softmax(dim=-1)
        return known[key]

    return logp_next


def sum_over_encodings(
    data: bytes,
    token_bytes: Sequence[bytes | None],
    encode: Callable[[bytes], Sequence[int]],
    decode: Callable[[list[int]], bytes],
    logp_next: LogpNext,
    depth: int,
) -> float:
    """log of the summed probability of all covers of `data`, found by trying all token sequences up to `depth` tokens.

    Independent of the enumeration by left sides: grows sequences token by token and keeps those that are valid when
    they reach the end.
    """
    index = PrefixIndex(token_bytes)
    total = -np.inf

    def grow(ids: tuple[int, ...], place: int, logp: float) -> None:
        nonlocal total
        if place >= len(data):
            if is_valid(ids, encode, decode):
                total = np.logaddexp(total, logp)
            return
        if len(ids) == depth:
            return
        row = logp_next(list(ids))
        short = [index.of(data[place:end]) for end in range(place + 1, len(data))]
        for token in map(int, np.concatenate([*short, index.starting_with(data[place:])])):
            grow((*ids, token), place + len(token_bytes[token] or b""), logp + float(row[token]))

    grow((), 0, 0.0)
    return float(total)


def random_logp_next(size: int, seed: int) -> LogpNext:
    """A model without any sense: fixed normal logits, (size,) float64, drawn from the seed and the ids before."""
    known: dict[tuple[int, ...], Tensor] = {}

    def logp_next(ids: Sequence[int]) -> Tensor:
        key = tuple(map(int, ids))
        if key not in known:
            logits = np.random.default_rng([seed, len(key), *key]).normal(scale=2, size=size)
            known[key] = torch.from_numpy(logits).log_softmax(dim=0)
        return known[key]

    return logp_next


def brute_force_errors(codec: Codec, texts: Sequence[bytes], logp_next: LogpNext, depth: int) -> NDArray[np.float64]:
    """|sum over covers / sum by exhaustive search - 1| for each text: (texts,) float64."""
    errors = []
    for text in texts:
        found = prefix_log_marginals(codec, left_sides(codec, text, 0), logp_next)[-1]
        slow = sum_over_encodings(text, codec.token_bytes, codec.encode, codec.decode, logp_next, depth)
        errors.append(abs(np.expm1(found - slow)))
    return np.array(errors)


def strings(alphabet: bytes, length: int) -> list[bytes]:
    """All strings of that length over the alphabet."""
    return [bytes(each) for each in product(alphabet, repeat=length)]
