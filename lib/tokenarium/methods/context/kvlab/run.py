"""Measure policies on prompts: one shared prefill, every policy and budget, protocols A and B, a row for each.

Protocol A is query-agnostic: the context is compressed, then the question is appended. In protocol B the question is
part of what is compressed. In `evaluate`, what is left of the prompt and the answer are read in one pass on top of what
was kept and push nothing out; `evaluate_continuations` and `evaluate_stepwise` go token by token and evict each time.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenarium.methods.context.kvlab.cache import CompressedCache, EvictingCache, SelectingCache
from tokenarium.methods.context.kvlab.policies import EvictionPolicy, Policy, SelectionPolicy
from tokenarium.methods.context.kvlab.prefill import Prefill, Scored, prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenarium.methods.context.kvlab.prompt import Prompt

PROTOCOLS = ("A", "B")
FULL = "full"


@dataclass(frozen=True)
class Row:
    """What one policy did on one prompt; None for what its task does not measure.

    budget: tokens per key head. stored, attended: of the prompt's tokens, how many are held, and seen by a query, per
    key head on average. logprob: of the answer's tokens, mean, nats; right: share of them that have the highest logit;
    exact: whether all have. agreement, rouge_l: with the continuation from the whole cache.
    """

    task: str
    prompt: str
    protocol: str
    method: str
    budget: int
    stored: float
    attended: float
    logprob: float | None = None
    right: float | None = None
    exact: bool | None = None
    agreement: float | None = None
    rouge_l: float | None = None


@torch.inference_mode()
def evaluate(
    model: PreTrainedModel,
    prompt: Prompt,
    policies: Mapping[str, Policy],
    budgets: Sequence[float],
    protocols: Sequence[str] = PROTOCOLS,
    full: bool = False,
    done: Prefill | None = None,
) -> list[dict[str, Any]]:
    """Rows (see `Row`) of every policy, budget and protocol on one prompt with an answer, from one prefill.

    budgets: shares of the context below 1, or tokens; the same number in both protocols. full: also a row of the whole
    cache. done: the prefill of context and question, where it is there already.
    """
    done = prefill(model, torch.tensor([prompt.ids])) if done is None else done
    answer = torch.tensor([prompt.answer])
    rows = []
    for protocol in protocols:
        tokens, ask = split(prompt, protocol)
        base = Row(prompt.task, prompt.id, protocol, FULL, tokens, tokens, tokens)
        inputs = torch.cat([torch.tensor([ask]), answer[:, :-1]], dim=-1)
        sizes = [tokens_of(prompt, share) for share in budgets]
        for names, budget, cache in _cells(done, policies, sizes, tokens, full):
            stored = cache.stored()
            logits = forward(model, inputs.expand(len(names), -1), cache, keep=answer.shape[1])
            right = logits.argmax(dim=-1).cpu() == answer
            logprob = log_probabilities(logits, answer.expand(len(names), -1)).mean(dim=-1)
            for number, name in enumerate(names):
                row = replace(
                    base,
                    method=name,
                    budget=budget,
                    stored=stored,
                    attended=cache.attended() if isinstance(cache, SelectingCache) else stored,
                    logprob=float(logprob[number]),
                    right=float(right[number].float().mean()),
                    exact=bool(right[number].all()),
                )
                rows.append(asdict(row))
    return rows


@torch.inference_mode()
def evaluate_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    policies: Mapping[str, Policy],
    budgets: Sequence[float],
    steps: int,
    protocols: Sequence[str] = PROTOCOLS,
    reference: Tensor | None = None,
) -> tuple[list[dict[str, Any]], Tensor]:
    """Greedy continuations of prompts of one length, evicting at every step, against the whole cache's: T4.

    reference: (prompts, steps) int64, the continuations with the whole cache, made here where they are not given.
    Returns rows (see `Row`) and the reference.
    """
    done = prefill(model, torch.tensor([prompt.ids for prompt in prompts]))
    rows, stop = [], stops(model)
    if reference is None:
        whole = done.selecting(tokens=done.ids.shape[1] - 1)
        reference = decode(model, whole, done.ids[:, -1:], steps).tokens
    for protocol in protocols:
        tokens, _ = split(prompts[0], protocol)
        asked = torch.tensor([split(prompt, protocol)[1] for prompt in prompts])
        scores = done.scores(_evictions(policies), tokens)
        for budget in (tokens_of(prompts[0], share) for share in budgets):
            for name, policy in policies.items():
                cache = _open(done, policy, budget, tokens, scores.get(name))
                made = decode(model, cache, asked, steps)
                stored = cache.stored()
                attended = cache.attended() if isinstance(cache, SelectingCache) else stored
                for number, prompt in enumerate(prompts):
                    row = Row(prompt.task, prompt.id, protocol, name, budget, stored, attended)
                    ours, theirs = (until(ids[number].tolist(), stop) for ids in (made.tokens, reference))
                    row = replace(row, agreement=agreement(ours, theirs), rouge_l=rouge_l(ours, theirs))
                    rows.append(asdict(row))
    return rows, reference


@torch.inference_mode()
def evaluate_stepwise(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    policies: Mapping[str, Policy],
    budgets: Sequence[float],
    protocols: Sequence[str] = ("B",),
) -> list[dict[str, Any]]:
    """As `evaluate`, but the answer is read token by token and the policy evicts at every step.

    The prompts must agree in the lengths of context, question and answer.
    """
    done = prefill(model, torch.tensor([prompt.ids for prompt in prompts]))
    answers = torch.tensor([prompt.answer for prompt in prompts])
    rows = []
    for protocol in protocols:
        tokens, _ = split(prompts[0], protocol)
        asked = torch.tensor([split(prompt, protocol)[1] for prompt in prompts])
        scores = done.scores(_evictions(policies), tokens)
        for budget in (tokens_of(prompts[0], share) for share in budgets):
            for name, policy in policies.items():
                cache = _open(done, policy, budget, tokens, scores.get(name))
                read = decode(model, cache, asked, answers.shape[1], answers)
                right = read.tokens == answers
                stored = cache.stored()
                attended = cache.attended() if isinstance(cache, SelectingCache) else stored
                for number, prompt in enumerate(prompts):
                    row = Row(prompt.task, prompt.id, protocol, name, budget, stored, attended)
                    row = replace(
                        row,
                        logprob=float(read.logprobs[number].mean()),
                        right=float(right[number].float().mean()),
                        exact=bool(right[number].all()),
                    )
                    rows.append(asdict(row))
    return rows


@dataclass(frozen=True)
class Decoded:
    """tokens: (B, steps) int64, the most probable at each step; logprobs: (B, steps) float32, of the tokens read."""

    tokens: Tensor
    logprobs: Tensor


def decode(
    model: PreTrainedModel, cache: CompressedCache, ids: Tensor, steps: int, forced: Tensor | None = None
) -> Decoded:
    """Read ids (B, q) and then `steps` tokens one by one: the most probable, or `forced` (B, steps)."""
    tokens, logprobs = [], []
    for step in range(steps):
        logits = forward(model, ids, cache)
        best = logits[:, -1].argmax(dim=-1, keepdim=True).cpu()
        ids = best if forced is None else forced[:, step : step + 1]
        tokens.append(best)
        logprobs.append(log_probabilities(logits, ids))
    return Decoded(torch.cat(tokens, dim=-1), torch.cat(logprobs, dim=-1))


def forward(model: PreTrainedModel, ids: Tensor, cache: CompressedCache, keep: int = 1) -> Tensor:
    """Logits (B, keep, V) float32 after the last tokens of ids (B, q), which follow what the cache has read."""
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1], device=model.device)[None]
    ids = ids.to(model.device)
    out = model(input_ids=ids, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=keep)
    return out.logits.float()


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """(B, q) float32, nats: of ids (B, q) under logits (B, q, V)."""
    chosen = logits.gather(-1, ids[..., None].to(logits.device))[..., 0]
    return (chosen - logits.logsumexp(dim=-1)).cpu()


def split(prompt: Prompt, protocol: str) -> tuple[int, list[int]]:
    """How many tokens are compressed, and the ids that are read after that.

    The last token of the question is always read after it, so that no part of the answer is predicted by the pass over
    the whole prompt. Raises ValueError for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: there are {', '.join(PROTOCOLS)}")
    tokens = len(prompt.context) if protocol == "A" else len(prompt.ids) - 1
    return tokens, prompt.ids[tokens:]


def tokens_of(prompt: Prompt, budget: float) -> int:
    """A budget in tokens: a share of the context below 1, or a number of tokens."""
    return max(1, int(budget * len(prompt.context))) if budget < 1 else int(budget)


def stops(model: PreTrainedModel) -> set[int]:
    """The ids that end a model's answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def until(ids: Sequence[int], stop: Container[int]) -> list[int]:
    """ids up to the first that is in `stop`, with it."""
    end = next((place + 1 for place, token in enumerate(ids) if token in stop), len(ids))
    return list(ids[:end])


def agreement(made: Sequence[int], reference: Sequence[int]) -> float:
    """Share of the places of a reference where a continuation, longer or shorter, has the same token."""
    return sum(a == b for a, b in zip(made, reference, strict=False)) / len(reference)


def rouge_l(made: Sequence[Any], reference: Sequence[Any]) -> float:
    """ROUGE-L: F1 of the longest common subsequence (Lin 2004), here of tokens. 0 to 1."""
    lengths = [0] * (len(reference) + 1)
    for item in made:
        before = 0
        for place, other in enumerate(reference, start=1):
            before, lengths[place] = (
                lengths[place],
                before + 1 if item == other else max(lengths[place - 1 : place + 1]),
            )
    return 2 * lengths[-1] / (len(made) + len(reference))


def _evictions(policies: Mapping[str, Policy]) -> dict[str, EvictionPolicy]:
    return {name: policy for name, policy in policies.items() if isinstance(policy, EvictionPolicy)}


def _cells(
    done: Prefill, policies: Mapping[str, Policy], budgets: Sequence[int], tokens: int, full: bool
) -> Iterator[tuple[list[str], int, CompressedCache]]:
    """Policies that can be read in one batch, their budget, and their caches of the first `tokens` as one.

    Evictions leave caches of one size; each selection masks for itself.
    """
    scores = done.scores(_evictions(policies), tokens)
    batches: dict[Any, list[str]] = {}
    for name, policy in policies.items():
        batches.setdefault(policy.renumber if isinstance(policy, EvictionPolicy) else name, []).append(name)
    if full:
        yield [FULL], tokens, done.selecting(tokens=tokens)
    for budget in budgets:
        for names in batches.values():
            first, *others = (_open(done, policies[name], budget, tokens, scores.get(name)) for name in names)
            yield names, budget, first.join(others) if isinstance(first, EvictingCache) else first


def _open(done: Prefill, policy: Policy, budget: int, tokens: int, scores: list[Scored] | None) -> CompressedCache:
    if isinstance(policy, SelectionPolicy):
        return done.selecting(policy, budget, tokens)
    return done.evicting(policy, budget, scores, tokens)
