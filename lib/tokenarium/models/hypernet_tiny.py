"""`hypernet-tiny`: ZeTT's hypernetwork for lm-tiny, trained with the method's own functions, `methods.tokenizers.zett`.

Two stages. First every old token, spelt as itself, must give back its own rows. Then each step draws a random UnigramLM
vocabulary from the latest texts, predicts its rows and asks the frozen language model to read these texts in the new
tokens, plus the lexical loss. Training texts are lm-tiny's own; the tokenizers that the paper is judged on are none of
those drawn here.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory, write_json, write_whole
from tokenarium.methods.tokenizers import zett
from tokenarium.models import lm_tiny

WEIGHTS = "model.safetensors"


def load(path: Path | str, weights: str = WEIGHTS) -> zett.Hypernet:
    """The hypernetwork of a built directory, in evaluation mode; weights: another of its files, see `snapshots`.

    Raises TokenariumError if the directory was not built.
    """
    path = Path(path)
    if not (path / weights).is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro model@{path.parent.name}-{path.name}`")
    return zett.Hypernet(load_file(path / weights)).eval()


def snapshots(path: Path | str) -> dict[int, str]:
    """Steps of the second stage after which the weights were kept -> their files, in order."""
    return {int(file.stem.removeprefix("step-")): file.name for file in sorted(Path(path).glob("step-*.safetensors"))}


def source_rows(model: torch.nn.Module) -> Tensor:
    """What the hypernetwork reads: (V, 2 d) [input ; output] embeddings of a model, (V, d) where they are tied."""
    rows_in, rows_out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return (rows_in if rows_in is rows_out else torch.cat([rows_in, rows_out], dim=1)).detach()


def build(root: Path, path: Path, seed: int, recipe: Mapping[str, Any]) -> float:
    """Train the hypernetwork of one seed's lm-tiny and write its directory `path` whole; returns the last loss.

    The directory holds the weights, snapshots of them after every recipe["language_model"]["checkpoint_every"] steps,
    config.json (what its surface forms look like) and training.json. Interrupted training resumes from the last
    checkpoint.
    """
    base = root / recipe["base"] / f"seed{seed}"
    if not (base / "config.json").is_file():
        raise TokenariumError(f"{base} is missing: run `dvc repro model@{base.parent.name}-{base.name}`")
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True).requires_grad_(False).eval()
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    recorded = json.loads((base / "training.json").read_text(encoding="utf-8"))
    passages = passages_of(lm_tiny.documents(root, recorded["recipe"]["bytes"]), recipe["passage"])
    set_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = source_rows(model)
    names = ("maxlen", "hidden", "feed_forward", "layers")
    params = zett.initial_params(
        rows,
        model.config.hidden_size,
        pad_id=model.config.pad_token_id,
        generator=generator,
        **{name: recipe[name] for name in names},
    )
    accelerator = Accelerator()
    hypernet = accelerator.prepare(zett.Hypernet(params))
    model = model.to(accelerator.device)
    folder = lm_tiny.checkpoints_of(root, path, recipe)
    lessons = Lessons(hypernet, model, tokenizer, passages, seed, recipe)
    losses = {}
    for stage, loss_at in (("identity", lessons.identity), ("language_model", lessons.language_model)):
        keep = _keep(folder, hypernet, accelerator) if stage == "language_model" else None
        if keep is not None:
            keep(0)
        losses[stage] = lm_tiny.fit(
            hypernet,
            loss_at,
            optimizers(hypernet, recipe),
            recipe[stage],
            folder / f"{stage}.safetensors",
            accelerator,
            f"{path.parent.name}, seed {seed}, {stage}",
            keep,
        )
    staged = path.parent / f".{path.name}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged, ignore=lambda _, names: {name for name in names if not name.startswith("step-")})
    shutil.copy2(staged / list(snapshots(staged).values())[-1], staged / WEIGHTS)
    write_json(staged / "config.json", {name: recipe[name] for name in names} | {"pad_id": model.config.pad_token_id})
    write_json(staged / "training.json", {"seed": seed, "recipe": dict(recipe), "loss_every_10_steps": losses})
    replace_directory(staged, path)
    shutil.rmtree(folder)
    return losses["language_model"][-1]


def optimizers(hypernet: torch.nn.Module, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW as the paper sets it, on what is trained."""
    trained = [parameter for parameter in hypernet.parameters() if parameter.requires_grad]
    return [torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=0.01, betas=(0.9, 0.95))]


def passages_of(texts: Sequence[str], length: int) -> list[str]:
    """Pieces of at most `length` characters, cut at line ends and blanks; what is shorter than half is dropped."""
    found = []
    for text in texts:
        start = 0
        while len(text) - start > length // 2:
            end = start + length
            if end < len(text):
                cut = max(text.rfind("\n", start + length // 2, end), text.rfind(" ", start + length // 2, end))
                end = cut if cut > 0 else end
            found.append(text[start:end].strip("\n "))
            start = end
    return [passage for passage in found if passage]


class Lessons:
    """The losses of both stages, each a function of the step and the weights alone."""

    def __init__(
        self,
        hypernet: torch.nn.Module,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        passages: Sequence[str],
        seed: int,
        recipe: Mapping[str, Any],
    ):
        self.hypernet, self.model, self.passages, self.seed, self.recipe = hypernet, model, passages, seed, recipe
        self.rows = source_rows(model)
        self.width = model.config.hidden_size
        self.tied = self.rows.shape[1] == self.width
        self.pad_id = model.config.pad_token_id
        self.tokenize = zett.model_tokenize(tokenizer)
        self._scores: dict[int, Counter[str]] = {}

    def identity(self, step: int) -> Tensor:
        """Every token spelt as itself must give back its own rows."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + step)
        ids = torch.randperm(len(self.rows), generator=generator)[: self.recipe["vocabulary"]].to(self.rows.device)
        made_in, made_out, _ = self.hypernet(ids[:, None], self.rows)
        true = self.rows[ids]
        return zett.identity_loss((made_in, made_out), (true[:, : self.width], None if self.tied else self._out(true)))

    def language_model(self, step: int) -> Tensor:
        """Cross-entropy of the frozen model in freshly drawn tokens, plus the lexical loss."""
        recipe, device = self.recipe, self.rows.device
        pieces, texts = self.draw(step)
        names = [name for name, _ in pieces]
        forms = zett.surface_form_matrix(names, recipe["maxlen"], self.tokenize, self.pad_id, {})
        single = torch.tensor([len(self.tokenize(name)) == 1 for name in names], device=device)
        forms = torch.from_numpy(forms).long().to(device)
        made_in, made_out, _ = self.hypernet(forms, self.rows)
        source_in, source_out = self.rows[:, : self.width], None if self.tied else self._out(self.rows)
        lexical = zett.lexical_loss((made_in, made_out), source_in, source_out, forms[:, 0], single)
        # The start symbol keeps its row and stands in front of the new tokens.
        start = self.model.config.bos_token_id
        rows_in = torch.cat([source_in[start, None], made_in])
        rows_out = rows_in if self.tied else torch.cat([source_out[start, None], made_out])
        ids, used = padded(zett.unigram_tokenizer(pieces), texts, recipe["tokens"])
        losses = zett.token_losses(self.model.model, rows_in, rows_out, ids.to(device), used.to(device))
        return losses.mean() + recipe["lexical"] * lexical

    def draw(self, step: int) -> tuple[list[tuple[str, float]], list[str]]:
        """Vocabulary and texts of a step: substrings of the latest batches, their scores noisy at a level drawn too."""
        recipe = self.recipe
        newest = step + recipe["pool"] - 1
        for number in range(step, newest + 1):
            if number not in self._scores:
                words = [word for text in self._texts(number) for word in zett.byte_words(text)]
                self._scores[number] = zett.substring_scores(words, recipe["max_len"], recipe["stride"])
        for number in [number for number in self._scores if number < step]:
            del self._scores[number]
        pool: Counter[str] = Counter()
        for number in range(step, newest + 1):
            pool.update(self._scores[number])
        rng = np.random.default_rng((self.seed, step))
        pieces = zett.noisy_pieces(pool, recipe["vocabulary"], recipe["max_len"], zett.noise_level(rng), rng)
        return pieces, self._texts(newest)

    def _texts(self, number: int) -> list[str]:
        """One batch of passages, a blank in front of each as in front of any other word."""
        size = min(self.recipe["batch_size"], len(self.passages))
        chosen = lm_tiny.batch(number, size, len(self.passages), self.seed).tolist()
        return [f" {self.passages[index]}" for index in chosen]

    def _out(self, rows: Tensor) -> Tensor:
        return rows[:, self.width :]


def padded(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """(batch, tokens) ids, one higher than the tokenizer's with 0 in front of each text, and which are no padding.

    most: tokens of a text at most, the start included; the rest of the text is cut off.
    """
    encoded = [[0, *(index + 1 for index in encoding.ids)][:most] for encoding in tokenizer.encode_batch(texts)]
    ids = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.long)
    used = torch.zeros_like(ids, dtype=torch.bool)
    for row, each in enumerate(encoded):
        ids[row, : len(each)] = torch.tensor(each)
        used[row, : len(each)] = True
    return ids, used


def _keep(folder: Path, hypernet: torch.nn.Module, accelerator: Accelerator) -> Any:
    def keep(step: int) -> None:
        path = folder / f"step-{step:05d}.safetensors"
        if step == 0 and path.is_file():  # resumed: the weights are later ones by now
            return
        params = accelerator.unwrap_model(hypernet).params
        with write_whole(path, "wb") as file:
            file.write(save({name: value.detach().cpu().contiguous() for name, value in params.items()}))

    return keep
