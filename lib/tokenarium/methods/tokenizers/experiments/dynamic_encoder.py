"""A classifier on merged tokens: which section of the help a passage comes from, trained in English, tested in all.

The states of the language model, with LoRA on its attention, are averaged and read by a linear head. Every training
batch is merged to a level of reduction drawn alike from 0 to 1.

Parts: "labels" (section of each test passage), "sections" (their names), "tokens" (for each language and level
"<language>-<percent>": tokens of each test passage), and for each head seed and arm "<seed>-<arm>" (by language and
level, which passages were recognised).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tokenarium.methods.tokenizers import dynamic_lab
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.models import lm_tiny
from tokenarium.study.experiments import Experiment

# arm -> (rows, how the batch is shortened). "drop" needs no training: it is tested on the classifier of "original".
ARMS = {
    "original": ("original", "none"),
    "hypernet": ("hypernet", "merge"),
    "FVT": ("FVT", "merge"),
    "random": ("hypernet", "random"),
}


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    names = dynamic_lab.sections(root, p.languages, p.sections)
    experiment.record("sections", lambda: names)
    (train, labels), (test, wanted) = (
        dynamic_lab.help_passages(root, p.languages, names, split, p.characters, most)
        for split, most in (("train", p.train_passages), ("test", p.test_passages))
    )
    experiment.arrays("labels", lambda: {"labels": wanted, "train_labels": labels})
    for seed in p.head_seeds:
        base = dynamic_lab.Base(root, seed % p.model_seeds, p.model, p.hypernet, dynamic_lab.device())
        task = Task(base, seed, p, train, labels, test)
        experiment.arrays("tokens", lambda task=task: task.test_lengths(p.levels))
        for arm in experiment.progress(ARMS, f"seed {seed}, arms"):
            make = _once(lambda arm=arm, task=task: task.train(arm))
            levels = [0.0] if arm == "original" else p.levels
            experiment.arrays(
                f"{seed}-{arm}",
                lambda arm=arm, task=task, make=make, levels=levels: task.test(make(), *ARMS[arm], levels, wanted),
            )
            if arm == "original":
                experiment.arrays(
                    f"{seed}-drop",
                    lambda task=task, make=make: task.test(make(), "original", "drop", p.levels, wanted),
                )


class Task:
    """One head seed: passages in tokens, how far they may be merged, training and testing."""

    def __init__(
        self,
        base: dynamic_lab.Base,
        seed: int,
        p: Any,
        train: dict[str, list[str]],
        labels: NDArray[np.int64],
        test: dict[str, list[str]],
    ):
        self.base, self.seed, self.p, self.labels = base, seed, p, torch.from_numpy(labels).to(base.device)
        self.is_valid = base.boundary(p.boundary)
        self._merged: dict[tuple[str, float, tuple[int, int]], dt.Batch] = {}
        self.test_tokens = {language: [base.tokens(text)[: p.tokens] for text in test[language]] for language in test}
        english = p.languages[0]
        self.train_tokens = [base.tokens(text)[: p.tokens] for text in train[english]]
        # How many merges a share of the reduction takes, from training passages of each language, without their labels.
        known = p.map_batches * p.batch_size
        self.lengths = {
            language: dt.mean_lengths(
                chunks([base.tokens(text)[: p.tokens] for text in train[language][:known]], p.batch_size),
                self.is_valid,
            )
            for language in test
        }

    def merged(self, batch: Sequence[list[str]], share: float, language: str, key: tuple[int, int]) -> dt.Batch:
        """A batch at a share of the greatest reduction, made once for all arms. key: which batch it is."""
        if (language, share, key) not in self._merged:
            merges = dt.merges_for(self.lengths[language], share)
            if share == 1:
                merges = sum(map(len, batch))  # all, also where this batch has more than those of the map
            self._merged[language, share, key] = dt.dynamic_bpe(batch, merges, self.is_valid)
        return self._merged[language, share, key]

    def shortened(
        self, batch: Sequence[list[str]], how: str, share: float, language: str, key: tuple[int, int]
    ) -> Sequence[list[str]]:
        """A batch as an arm sees it; the controls are as short as the merged batch, drawn by seed and key."""
        if how == "none":
            return batch
        made = self.merged(batch, share, language, key)
        if how == "merge":
            return made
        count, rng = sum(map(len, made)), np.random.default_rng((self.seed, *key))
        return dt.dropped(batch, count, rng) if how == "drop" else dt.random_merges(batch, count, self.is_valid, rng)

    def train(self, arm: str) -> Classifier:
        """A classifier for an arm; batches and levels are the same in every arm of a seed."""
        p, (kind, how) = self.p, ARMS[arm]
        torch.manual_seed(self.seed)
        rows = self.base.rows(kind, p.cache)
        classifier = Classifier(self.base.body, p.sections, p.rank, p.dropout).to(self.base.device).train()
        weights = [weight for weight in classifier.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=p.learning_rate, weight_decay=0.01)
        size = min(p.train_batch_size, len(self.train_tokens))
        for step in range(p.steps):
            chosen = lm_tiny.batch(step, size, len(self.train_tokens), self.seed)
            share = float(np.random.default_rng((self.seed, step)).uniform())
            batch = [self.train_tokens[index] for index in chosen.tolist()]
            batch = self.shortened(batch, how, share, p.languages[0], (step, 1))
            for group in optimizer.param_groups:
                group["lr"] = p.learning_rate * lm_tiny.schedule(step / p.steps, p.warmup, 0.0)
            logits = classifier(*dt.embed(batch, rows, self.base.start))
            optimizer.zero_grad()
            F.cross_entropy(logits, self.labels[chosen.to(self.labels.device)]).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        return classifier.eval()

    def test_lengths(self, levels: Sequence[float]) -> dict[str, NDArray[np.int64]]:
        """Tokens of each test passage, by language and percent of the greatest reduction."""
        found = {}
        for language, tokens in self.test_tokens.items():
            for share in levels:
                batches = enumerate(chunks(tokens, self.p.batch_size))
                made = [each for place, batch in batches for each in self.merged(batch, share, language, (place, 2))]
                found[f"{language}-{round(100 * share)}"] = np.array(list(map(len, made)), dtype=np.int64)
        return found

    @torch.no_grad()
    def test(
        self, classifier: Classifier, kind: str, how: str, levels: Sequence[float], wanted: NDArray[np.int64]
    ) -> dict[str, NDArray[np.bool_]]:
        """Which test passages are recognised, by language and percent of the greatest reduction."""
        rows = self.base.rows(kind, self.p.cache)
        found = {}
        for language, tokens in self.test_tokens.items():
            for share in levels:
                guesses = []
                for place, batch in enumerate(chunks(tokens, self.p.batch_size)):
                    made = self.shortened(batch, how, share, language, (place, 2))
                    guesses.append(classifier(*dt.embed(made, rows, self.base.start)).argmax(dim=1))
                found[f"{language}-{round(100 * share)}"] = torch.cat(guesses).cpu().numpy() == wanted
        return found


class Classifier(nn.Module):
    """Mean of a frozen model's last states, LoRA on its queries and values, and a linear head."""

    def __init__(self, body: nn.Module, classes: int, rank: int, dropout: float):
        super().__init__()
        self.body = copy.deepcopy(body)
        for layer in self.body.layers:
            for name in ("q_proj", "v_proj"):
                setattr(layer.self_attn, name, Lora(getattr(layer.self_attn, name), rank, dropout))
        self.head = nn.Linear(body.config.hidden_size, classes)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T, d) and (B, T) as from `dynamic_tokenization.embed` -> logits (B, classes)."""
        states = self.body(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        used = attention_mask[..., None]  # padding stands on the right, where a causal model does not look back at it
        return self.head((states * used).sum(dim=1) / used.sum(dim=1))


class Lora(nn.Module):
    """A frozen linear map plus a trained one of low rank, which starts at zero (Hu et al. 2021, alpha = rank)."""

    def __init__(self, linear: nn.Linear, rank: int, dropout: float):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(self.dropout(x), self.down), self.up)


def chunks(items: Sequence[list[str]], size: int) -> list[Sequence[list[str]]]:
    """Consecutive batches, the last one maybe short."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same result each time, made when it is first asked for."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get
