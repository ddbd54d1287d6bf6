"""Small language models of Turkish, one for each tokenizer and seed, on the same bytes (E3).

Parts: `nouns` (the probe's words with their labels), `<tokenizer>` (what it makes of the text of the notebook's main
table, its rows, tokens and lost words) and `<tokenizer>-seed<n>` (bits of every held-out line, the losses, and the
probe's accuracies). Held-out lines are of pages that neither tokenizers nor models were trained on.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenarium.data import turkish_text
from tokenarium.data.text import split_of
from tokenarium.data.tokenizers import load_turkish
from tokenarium.methods.tokenizers import turkish_coders as coders
from tokenarium.methods.tokenizers import turkish_models as models
from tokenarium.methods.tokenizers import turkish_probe as probe
from tokenarium.methods.tokenizers import turkish_standards as standards
from tokenarium.methods.tokenizers.turkish import sources
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    draw = experiment.seeds[0]
    lines = {split: split_lines(experiment.root, split, p.line, p.bytes[split], draw) for split in ("train", "test")}
    dictionaries = load_turkish(experiment.root)
    device = torch.device("cuda" if experiment.profile == "gpu" and torch.cuda.is_available() else "cpu")
    nouns = [probe.Noun(*noun) for noun in experiment.record("nouns", lambda: _nouns(lines["train"], p.nouns))]
    for name in experiment.progress(p.tokenizers, "tokenizers"):
        coder = coders.open_coder(name, lines["train"], dictionaries, p.least, draw)
        ids = {split: [coder.encode(line) for line in found] for split, found in lines.items()}
        experiment.record(name, lambda coder=coder, ids=ids: describe(coder, ids, lines, experiment))

        def train(seed: int, coder: coders.Coder = coder, ids: dict = ids) -> dict[str, NDArray]:
            model = models.build(coder.rows, p.shape, seed).to(device)
            losses = models.train(model, ids["train"], [len(line) for line in lines["train"]], p.recipe, seed)
            states = models.pooled(model, [coder.encode(f" {noun.word}") for noun in nouns])
            held_out = [noun.held_out for noun in nouns]
            known = [
                probe.balanced_accuracy(states, [getattr(noun, what) for noun in nouns], held_out, p.least_nouns)
                for what in ("number", "case")
            ]
            return {"bits": models.line_bits(model, ids["test"]), "losses": np.array(losses), "probe": np.array(known)}

        for seed in experiment.seeds:
            experiment.arrays(f"{name}-seed{seed}", lambda seed=seed, train=train: train(seed))


def split_lines(root: Path, split: str, longest: int, most: int, seed: int) -> list[str]:
    """Lines of paragraphs from the pages of a split, drawn without replacement, at most `most` UTF-8 bytes."""
    texts = [row["text"] for row in turkish_text.load(root) if split_of(row["id"]) == split]
    random.Random(seed).shuffle(texts)
    return coders.first_bytes(coders.cut(texts, longest), most)


def describe(coder: coders.Coder, ids: dict, lines: dict[str, list[str]], experiment: Experiment) -> dict[str, Any]:
    """What the tokenizer makes of the lines for the models and of the main table's text (see `standards.Usage`)."""
    p = experiment.parameters
    paragraphs = sources.open_text(p.text, experiment.root, p.characters, experiment.seeds[0])
    words = standards.frequent_words(paragraphs)[: p.boundary_words]
    used = standards.usage(coder.name, len(coder.tokens), paragraphs, words, coder.pieces, coder.shown)
    escape = coders.Escape(lines["train"], coder.lost)
    bits, lost = zip(*map(escape.bits, lines["test"]), strict=True)
    return {
        "vocabulary": len(coder.tokens),
        "per_paragraph": used.per_paragraph.tolist(),
        "alone": dict(used.alone),
        "boundaries": {word: sorted(places) for word, places in used.boundaries.items()},
        "tokens": {split: sum(map(len, found)) for split, found in ids.items()},
        "bytes": {split: sum(len(line.encode()) for line in found) for split, found in lines.items()},
        "line_bytes": [len(line.encode()) for line in lines["test"]],
        "escape_bits": bits,
        "lost_words": sum(lost),
        "words": sum(line.count(" ") + 1 for line in lines["test"]),
    }


def _nouns(lines: list[str], most: int) -> list[probe.Noun]:
    return probe.nouns(probe.Tagger(), standards.frequent_words(lines), most)
