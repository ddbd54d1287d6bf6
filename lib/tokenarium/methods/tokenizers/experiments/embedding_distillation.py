"""Students that learn an English teacher's embeddings from Turkish translations, one for each tokenizer and seed."""

import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenarium.data import libreoffice_help, turkish_text
from tokenarium.data.text import split_of
from tokenarium.data.tokenizers import load_turkish
from tokenarium.methods.tokenizers import distillation
from tokenarium.methods.tokenizers.turkish_encoders import open_encoder
from tokenarium.models import minilm
from tokenarium.study.experiments import Experiment
from tokenarium.study.parameters import Parameters

ENGLISH = "en-US"


def run(experiment: Experiment) -> None:
    """Parts: `pairs` (texts held out), `teacher` (its embeddings of them), `<tokenizer>` and `<tokenizer>-seed<n>`.

    A student's part has `retrieved` (epochs, queries) bool as uint8, `embedding` (queries, outputs) after the last
    epoch and `loss` (epochs,).
    """
    p = experiment.parameters
    recipe = distillation.Recipe(**p.student)
    device = torch.device("cuda" if experiment.profile == "gpu" and torch.cuda.is_available() else "cpu")
    pairs = {split: find_pairs(experiment.root, split, p) for split in ("train", "test")}
    pairs["train"] = _sample(pairs["train"], p.pairs, p.draw_seed)
    pairs["test"] = _sample(pairs["test"], p.queries, p.draw_seed)
    held_out = [{"english": english, "turkish": turkish} for english, turkish in pairs["test"]]
    experiment.record("pairs", lambda: {"train": len(pairs["train"]), "test": held_out})
    teacher = experiment.arrays("teacher", lambda: _teach(experiment.root, p.teacher, pairs, device))
    texts = _training_texts(experiment.root, p.training_characters)
    dictionaries = load_turkish(experiment.root)
    for name in p.tokenizers:
        encoder = open_encoder(name, texts, dictionaries)
        encoded = {split: [encoder.encode(turkish) for _, turkish in found] for split, found in pairs.items()}
        experiment.record(name, lambda encoder=encoder, encoded=encoded: _about(encoder.rows, encoded, recipe))
        for seed in experiment.seeds:

            def train(encoder=encoder, encoded=encoded, seed=seed) -> dict[str, NDArray]:
                return _train(encoder.rows, encoded, pairs, teacher, recipe, seed, device)

            experiment.arrays(f"{name}-seed{seed}", train)


def find_pairs(root: Path, split: str, p: Parameters) -> list[tuple[str, str]]:
    """(English, Turkish) paragraphs of the help, the Turkish ones of `p.shortest` to `p.longest` characters, each once.

    From a data set of the hub, p.data, every text is paired with itself: its teacher reads Turkish.
    """
    if p.data != libreoffice_help.DATASET.name:
        from datasets import load_dataset

        rows = ((str(index), text) for index, text in enumerate(load_dataset(p.data, split="train")[p.column]))
        found = [(text, text) for index, text in rows if split_of(index) == split]
    else:
        english = {row["id"]: row["text"] for row in libreoffice_help.load(root, ENGLISH, split)}
        found = [(english[row["id"]], row["text"]) for row in turkish_text.load(root) if row["id"] in english]
    return [pair for pair in found if p.shortest <= len(pair[1]) <= p.longest]


def _training_texts(root: Path, characters: int) -> list[str]:
    """The Turkish paragraphs of the training pages in a fixed shuffled order, up to so many characters."""
    texts = [row["text"] for row in turkish_text.load(root) if split_of(row["id"]) == "train"]
    random.Random(0).shuffle(texts)
    room = np.cumsum([len(text) for text in texts]) <= characters
    return [text for text, fits in zip(texts, room, strict=True) if fits]


def _sample(pairs: list[tuple[str, str]], size: int, seed: int) -> list[tuple[str, str]]:
    return random.Random(seed).sample(pairs, min(size, len(pairs)))


def _teach(
    root: Path, teacher: str, pairs: dict[str, list[tuple[str, str]]], device: torch.device
) -> dict[str, NDArray]:
    if (root / teacher).is_dir() or teacher.startswith("models/"):
        tokenizer, model = minilm.load(root / teacher, device)
    else:
        from transformers import AutoModel, AutoTokenizer

        tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModel.from_pretrained(teacher).to(device).eval()
    found = {}
    for split, each in pairs.items():
        texts = [text for text, _ in each]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            rows[batch] = minilm.embed(tokenizer, model, [texts[index] for index in batch]).cpu().numpy()
        found[split] = rows
    return found


def _about(rows: int, encoded: dict[str, list[list[int]]], recipe: distillation.Recipe) -> dict[str, float]:
    used = {index for ids in encoded["train"] for index in ids}
    running = [index for ids in encoded["test"] for index in ids]
    return {
        "rows": rows,
        "rows_used": len(used),
        "unseen_percent": 100 * sum(index not in used for index in running) / len(running),
        "tokens_per_text": len(running) / len(encoded["test"]),
        "cut_percent": 100 * sum(len(ids) > recipe.positions for ids in encoded["train"]) / len(encoded["train"]),
    }


def _train(
    rows: int,
    encoded: dict[str, list[list[int]]],
    pairs: dict[str, list[tuple[str, str]]],
    teacher: dict[str, NDArray],
    recipe: distillation.Recipe,
    seed: int,
    device: torch.device,
) -> dict[str, NDArray]:
    torch.manual_seed(seed)
    targets = torch.from_numpy(teacher["train"]).to(device)
    keys = torch.nn.functional.normalize(torch.from_numpy(teacher["test"]), dim=-1)
    student = distillation.Student(rows, targets.shape[1], recipe).to(device)
    hits, last = [], []

    def after_epoch(epoch: int) -> None:
        found = distillation.embed(student, encoded["test"], recipe)
        hits.append(((found @ keys.T).argmax(dim=1) == torch.arange(len(keys))).numpy())
        last[:] = [found.numpy()]

    lengths = [len(turkish) for _, turkish in pairs["train"]]
    loss = distillation.distil(encoded["train"], lengths, targets, student, recipe, seed, after_epoch)
    return {"retrieved": np.array(hits, dtype=np.uint8), "embedding": last[0], "loss": np.array(loss)}
