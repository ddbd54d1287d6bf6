"""What a language model makes of passages that were shortened by every method, task by task.

Parts of each task: items; scores-<method>, a number for every word; answers-<arm>, nats of every option. Of topics also
nothing (the options without any passage) and said-<arm>, continuations; of counts the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenarium.methods.context import frugal_prompt
from tokenarium.methods.context.frugal import scores as scoring
from tokenarium.methods.context.frugal import tasks
from tokenarium.methods.context.frugal.arms import Arm, grid, headline
from tokenarium.methods.context.frugal.reader import Reader, mean_scores, open_reader
from tokenarium.study.experiments import Experiment

MAKE = {
    "topics": lambda root, count, seed: tasks.topic_items(root, count, seed),
    "facts": lambda root, count, seed: tasks.fact_items(root, count, seed),
    "counts": lambda root, count, seed: tasks.count_items(count, seed),
    "sums": lambda root, count, seed: tasks.sum_items(count, seed),
}
SAID = (Arm("globenc", "top", 80), Arm("globenc", "top", 60), Arm("globenc", "top", 50), Arm("globenc", "bottom", 50))


class Lab:
    """The models of one experiment, opened when first asked for."""

    def __init__(self, experiment: Experiment):
        self.experiment, self.parameters = experiment, experiment.parameters

    @cached_property
    def reader(self) -> Reader:
        return open_reader(self.experiment.root, self.parameters.model, self.parameters.device)

    @cached_property
    def encoder(self) -> scoring.Encoder:
        p, seed = self.parameters, self.experiment.seeds[0]
        texts, labels = tasks.training_sentences(self.experiment.root, p.training_sentences, seed)
        path = self.experiment.root / "models" / p.encoder
        return scoring.open_encoder(path, texts, labels, p.head_steps, seed)

    def scores(self, name: str, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """One array of word scores for every text."""
        if name == "tfidf":
            found = scoring.tfidf(texts)
        elif name == "selfinfo":
            found = [self.reader.surprise(text.split()) for text in texts]
        else:
            plain = name.removesuffix("-text")
            setting = {"within": "sentence" if plain == name else "text", "weigh": plain == "globenc"}
            score = scoring.SENTENCE_SCORES[plain]
            found = [scoring.sentence_scores(self.encoder, text, score, **setting) for text in texts]
        return [each.numpy().astype(np.float32) for each in found]


class Task:
    """One task of an experiment: its items, the scores of their words, and the answers under every arm."""

    def __init__(self, lab: Lab, name: str):
        self.lab, self.experiment, self.name = lab, lab.experiment, name
        count, seed = lab.parameters["items"][name], self.experiment.seeds[0]
        records = self.experiment.record(
            f"{name}-items", lambda: [item.to_dict() for item in MAKE[name](self.experiment.root, count, seed)]
        )
        self.items = [tasks.Item.from_dict(record) for record in records]

    @cached_property
    def costs(self) -> list[list[int]]:
        return [self.lab.reader.costs(item.passage.split()) for item in self.items]

    def scores(self, name: str) -> list[NDArray[np.float32]]:
        """Word scores, a part padded with NaN: of all items for what the claims rest on, of the first for the rest."""
        few = len(self.items) if name == "globenc" else self.lab.parameters.grid_items
        texts = [item.passage for item in self.items[:few]]
        part = self.experiment.arrays(
            f"{self.name}-scores-{name}", lambda: {"scores": padded(self.lab.scores(name, texts))}
        )
        return [row[: len(text.split())] for row, text in zip(part["scores"], texts, strict=False)]

    def kept(self, arm: Arm, count: int) -> list[list[int]]:
        """Places of the words that an arm keeps of each of the first `count` passages."""
        if arm.mode == "random":
            scores = [np.zeros(len(item.passage.split())) for item in self.items]
        else:
            scores = self.scores(arm.scores)
        return [arm.kept(row.tolist(), self.costs[number], number) for number, row in enumerate(scores[:count])]

    def answers(self, name: str, shorten: Callable[[], Sequence[Sequence[str]]]) -> dict[str, NDArray]:
        """The part of an arm. shorten: the words that are left of the first items."""

        def ask() -> dict[str, NDArray]:
            total, mean, tokens, words = [], [], [], []
            for item, left in zip(self.items, shorten(), strict=False):
                passage = " ".join(left)
                found = self.lab.reader.answers(item.prompt(passage), item.options)
                total.append([float(each.sum()) for each in found])
                mean.append(mean_scores(found))
                tokens.append(len(self.lab.reader.encode(passage)))
                words.append(len(left))
            counts = {"tokens": np.array(tokens), "words": np.array(words)}
            return {"total": np.array(total), "mean": np.array(mean), **counts}

        return self.experiment.arrays(f"{self.name}-answers-{name}", ask)

    def arm(self, arm: Arm, count: int) -> None:
        self.answers(arm.name, lambda: self.words_of(self.kept(arm, count)))

    def words_of(self, kept: Sequence[Sequence[int]]) -> list[list[str]]:
        split = [item.passage.split() for item in self.items[: len(kept)]]
        return [[words[place] for place in places] for words, places in zip(split, kept, strict=True)]


def padded(rows: Sequence[NDArray]) -> NDArray[np.float32]:
    """(rows, longest) with NaN behind the shorter ones."""
    found = np.full((len(rows), max(map(len, rows))), np.nan, dtype=np.float32)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def run(experiment: Experiment) -> None:
    lab = Lab(experiment)
    for name in experiment.parameters.tasks:
        task = Task(lab, name)
        everything = [item.passage.split() for item in task.items]
        full = task.answers("full", lambda words=everything: words)
        right = full["total"].argmax(axis=1) == [item.gold for item in task.items]
        if name == "sums" and right.mean() < 2 / len(task.items[0].options):
            continue  # the card's gate: a task that the full prompt does not solve says nothing
        answer(task)
        if name == "topics":
            topics(task)
        if name in ("facts", "counts"):
            damage(task)
        if name == "counts":
            oracle(task)


def answer(task: Task) -> None:
    """Every arm: the headline's on all items, the rest on the first ones."""
    few, seeds = task.lab.parameters.grid_items, task.experiment.seeds
    everything = [item.passage.split() for item in task.items]
    for arm in task.experiment.progress(headline(seeds), f"{task.name}, headline"):
        task.arm(arm, len(task.items))
    if task.name == "sums":
        return
    task.answers("stopwords", lambda: [[w[i] for i in scoring.content_words(w)] for w in everything[:few]])
    for arm in task.experiment.progress(grid(seeds), f"{task.name}, grid"):
        task.arm(arm, few)
    task.experiment.arrays(f"{task.name}-completeness", lambda: completeness(task, few))
    inside(task)


def completeness(task: Task, count: int) -> dict[str, NDArray]:
    """gaps: the largest |sum of DecompX's parts - logit| of every sentence of the first passages. head: whether the
    head names the right domain, of every passage, for the topics alone."""
    gaps = []
    for item in task.items[:count]:
        for part in task.lab.encoder.parts(item.passage):
            parts, logits = scoring.decompx_parts(
                task.lab.encoder, frugal_prompt.Trace(task.lab.encoder.model, part.input_ids)
            )
            gaps.append(float((parts.sum(dim=0) - logits).abs().max()))
    found = {"gaps": np.array(gaps)}
    if task.name == "topics":
        texts = [item.passage for item in task.items]
        labels = [number % len(tasks.DOMAINS) for number in range(len(texts))]
        found["head"] = np.array(scoring.head_accuracy(task.lab.encoder, texts, labels))
    return found


def inside(task: Task) -> None:
    """The longest sentence of the first passage: its sub-words, GlobEnc's layers and rollout, DecompX's parts."""

    def longest() -> scoring.Part:
        return max(task.lab.encoder.parts(task.items[0].passage), key=lambda part: len(part.input_ids))

    def look() -> dict[str, NDArray]:
        part = longest()
        trace = frugal_prompt.Trace(task.lab.encoder.model, part.input_ids)
        layers = frugal_prompt.globenc_norms(trace)
        parts, _ = scoring.decompx_parts(task.lab.encoder, trace)
        rollout = frugal_prompt.rollout_matrix(layers)
        return {"N": layers.numpy(), "R": rollout.numpy(), "attr": parts.numpy()}

    task.experiment.arrays(f"{task.name}-inside", look)
    task.experiment.record(
        f"{task.name}-inside-tokens",
        lambda: task.lab.encoder.tokenizer.convert_ids_to_tokens(longest().input_ids.tolist()),
    )


def topics(task: Task) -> None:
    """The options without a passage, and what the model says after passages of several lengths."""
    p = task.lab.parameters
    task.answers("nothing", lambda: [[] for _ in task.items])
    shown = p.continued_items
    arms = {arm.name: lambda arm=arm: task.words_of(task.kept(arm, shown)) for arm in SAID}
    random = Arm("random", "random", 80)
    arms |= {"full": lambda: [item.passage.split() for item in task.items[:shown]]}
    arms |= {random.name: lambda: task.words_of(task.kept(random, shown))}

    def say(shorten: Callable[[], list[list[str]]]) -> list[str]:
        return task.lab.reader.continuations([" ".join(words) for words in shorten()], p.continued_tokens)

    for name, shorten in task.experiment.progress(arms.items(), "continuations"):
        task.experiment.record(f"topics-said-{name}", lambda shorten=shorten: say(shorten))


def damage(task: Task) -> None:
    """The encoder's words in lower case, whole and cut as by the released code, at 80 % of the words."""
    few, arm = task.lab.parameters.grid_items, Arm("globenc", "top", 80)
    for name, truncation in (("joined", False), ("truncated", True)):

        def shorten(truncation: bool = truncation) -> list[list[str]]:
            rows = []
            for item, places in zip(task.items, task.kept(arm, few), strict=False):
                words = scoring.joined_words(task.lab.encoder, item.passage, truncation)
                rows.append([words[place] for place in places])
            return rows

        task.answers(name, shorten)


def oracle(task: Task) -> None:
    """Leave one word out: what each word is worth to the right answer, and 60 % of the words by that."""
    few = task.lab.parameters.oracle_items

    def worth() -> dict[str, NDArray]:
        rows = []
        for item in task.items[:few]:
            words = item.passage.split()
            without = [words[:place] + words[place + 1 :] for place in range(len(words))]
            scores = []
            for left in [words, *without]:
                found = task.lab.reader.answers(item.prompt(" ".join(left)), item.options)
                totals = np.array([float(each.sum()) for each in found])
                scores.append(totals[item.gold] - np.logaddexp.reduce(totals))
            rows.append(scores[0] - np.array(scores[1:]))
        return {"scores": padded(rows)}

    task.experiment.arrays(f"{task.name}-scores-oracle", worth)
    task.arm(Arm("oracle", "top", 60), few)
