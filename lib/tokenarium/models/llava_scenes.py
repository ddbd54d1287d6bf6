"""`llava-scenes`: the vision-language model that the vlm family stands on, trained here on procedural scenes.

A LlavaForConditionalGeneration (Liu et al. 2023, arXiv 2304.08485 and 2310.03744) on the frozen tower of `clip-scenes`:
the 144 patch features of layer -2, a projector of two layers with GELU, and a Llama of 8 layers with heads of 32
dimensions (vlm harness H1). The prompt is 13 system tokens, the picture, the question, and "answer:"; answers are one
word.

One picture serves many questions: all its turns stand behind one prefix of system prompt and picture, each sees that
prefix and itself, and half of them stand at later positions, as if turns had gone before. Besides questions there are
requests to describe an item. Only answers count in the loss. Scenes begin easy and grow to 8 items. Muon drives the
matrices inside the layers, AdamW the rest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tokenarium.data import scenes
from tokenarium.data.scenes import Evaluation, Item, Question, Scene
from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory, write_json
from tokenarium.models.clip_scenes import image_processor, pixels, tokenizer
from tokenarium.models.lm_tiny import checkpoints_of, fit, optimizers

PATCHES = scenes.GRID**2
LATEST = 64  # positions that turns may have gone before


def llava_config(vision: CLIPVisionConfig, layers: int = 8, width: int = 128, intermediate: int = 352) -> LlavaConfig:
    """Configuration of the model on a tower's configuration; heads of 32 dimensions."""
    text = LlamaConfig(
        vocab_size=len(scenes.SPECIAL) + len(scenes.WORDS),
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.05,  # the default 0.02 is made for wider layers
        bos_token_id=scenes.SPECIAL.index(scenes.START),
        eos_token_id=scenes.SPECIAL.index(scenes.END),
        pad_token_id=scenes.SPECIAL.index(scenes.PADDING),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=scenes.SPECIAL.index(scenes.IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def processor() -> LlavaProcessor:
    """Pictures and prompts to what the model takes; IMAGE in a prompt becomes 144 tokens."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer(end=False),
        patch_size=scenes.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build(root: Path, path: Path, seed: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Train one seed on the tower root/recipe["tower"] and write its model directory `path` whole, with its processor.

    Interrupted training resumes from the last checkpoint. Returns held-out accuracies, which path/training.json
    holds too. Raises TokenariumError without the tower.
    """
    tower_path = root / recipe["tower"]
    if not (tower_path / "config.json").is_file():
        raise TokenariumError(f"{tower_path} is missing: run `dvc repro model@{tower_path.name}`")
    # Eager attention: on a CPU in bfloat16 several times as fast as the fused kernel at 145 tokens.
    tower = CLIPModel.from_pretrained(tower_path, attn_implementation="eager").vision_model
    set_seed(seed)
    config = llava_config(tower.config, recipe["layers"], recipe["width"], recipe["intermediate"])
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.requires_grad_(False)
    trained = nn.ModuleDict(
        {
            "multi_modal_projector": model.model.multi_modal_projector,
            "language_model": model.model.language_model,
            "lm_head": model.lm_head,
        }
    ).requires_grad_(True)
    words = tokenizer(end=False)
    start_projector(model, recipe["whitening"])
    accelerator = Accelerator(mixed_precision=recipe["precision"])
    trained = accelerator.prepare(trained)
    model, tower = model.to(accelerator.device), tower.to(accelerator.device).eval()

    def loss_at(step: int) -> Tensor:
        share = step / recipe["steps"]
        lesson = next(lesson for lesson in recipe["curriculum"] if share < lesson["until"])
        turns = lesson["questions"], lesson["descriptions"]
        chosen = tuple(lesson["items"]), lesson["pages"]
        batch = make_batch(f"llava-{seed}", step, lesson["batch_size"], turns, *chosen, words)
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            with torch.no_grad():
                features = patch_features(tower, batch.pixels)
            prefix = prefix_embeddings(model, features, words)
            logits = turn_logits(model, prefix, batch)
        return F.cross_entropy(logits.float(), batch.targets[batch.targets >= 0])

    checkpoint = checkpoints_of(root, path, recipe) / "model.safetensors"
    losses = fit(trained, loss_at, optimizers(trained, recipe), recipe, checkpoint, accelerator, f"{path.name}")
    model.eval()
    sets = {
        "objects": scenes.evaluation(recipe["held_out"], "held-out"),
        "pages": scenes.page_evaluation(5 * recipe["held_out"], "held-out-pages"),
    }
    measured = {name: by_family(chosen, correct(model, chosen)) for name, chosen in sets.items()}

    staged = path.parent / f".{path.name}.partial"
    model.save_pretrained(staged)
    processor().save_pretrained(staged)
    write_json(
        staged / "training.json",
        {"seed": seed, "recipe": dict(recipe), "held_out_accuracy": measured, "loss_every_10_steps": losses},
    )
    replace_directory(staged, path)
    checkpoint.unlink()
    return measured


def patch_features(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the projector reads: patches of the layer before the last, (batch, 3, 96, 96) -> (batch, 144, dim)."""
    return tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]


@torch.no_grad()
def start_projector(model: LlavaForConditionalGeneration, count: int) -> None:
    """Start the projector as a whitening of the tower's features on `count` scenes, followed by a random rotation.

    With the usual start shapes and letters, which vary less than colours, reach the language model very late.
    """
    pictures = np.stack([scenes.scene("whitening", index, pages=0.5).draw() for index in range(count)])
    features = patch_features(model.model.vision_tower, pixels(pictures).to(model.device)).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(features.T.cov())
    whitening = vectors * (values + 1e-3 * values.mean()).rsqrt() @ vectors.T
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    first.weight.copy_(torch.eye(first.weight.shape[0], len(whitening), device=model.device).double() @ whitening)
    first.bias.copy_(-first.weight.double() @ features.mean(0))
    nn.init.orthogonal_(second.weight)


# Turns behind one picture


@dataclass
class Batch:
    """pixels: (batch, 3, 96, 96), or None. ids, positions, targets: (batch, tokens) int64, a picture's turns in a row;
    targets are -100 where no answer is. sees: (tokens, tokens) bool, which tokens of its own turn a token sees."""

    pixels: Tensor | None
    ids: Tensor
    positions: Tensor
    targets: Tensor
    sees: Tensor

    def to(self, device: torch.device) -> Batch:
        for name, value in vars(self).items():
            setattr(self, name, value if value is None else value.to(device))
        return self


def make_batch(
    stream: str,
    step: int,
    size: int,
    turns: tuple[int, int],
    items: tuple[int, int],
    pages: float,
    words: PreTrainedTokenizerFast,
) -> Batch:
    """Batch `step` of a stream of scenes; turns: how many questions, and how many descriptions, for each picture."""
    rng = random.Random(f"{stream}/turns/{step}")
    made = [scenes.scene(stream, step * size + place, items, pages) for place in range(size)]
    questions, descriptions = turns
    asked = [
        scenes.draw(scenes.questions(scene, rng), rng, questions)
        + [describe(rng.choice(scene.items), scene, rng) for _ in range(descriptions)]
        for scene in made
    ]
    begin = _prefix_length(words) + PATCHES
    later = [[begin + (rng.randrange(LATEST) if rng.random() < 0.5 else 0) for _ in range(sum(turns))] for _ in made]
    batch = pack(asked, later, words)
    batch.pixels = pixels(np.stack([scene.draw() for scene in made]))
    return batch


def describe(item: Item, scene: Scene, rng: random.Random) -> Question:
    """The request to tell all about an item: "caption: the red circle is" -> "small red circle top left".

    The item is named by noun or colour or both, whichever mean it alone; on a page, if nothing does, by its words.
    """
    names = [item.noun, f"{item.color} {item.noun}", f"{item.color} thing"]
    told = [(other.noun, f"{other.color} {other.noun}", f"{other.color} thing") for other in scene.items]
    alone = [name for place, name in enumerate(names) if sum(each[place] == name for each in told) == 1]
    text = f"caption: the {rng.choice(alone or names[1:2])} is"
    return Question("description", text, f"{item.size} {item.color} {item.noun} {item.place}", ())


def pack(asked: Sequence[Sequence[Question]], begins: Sequence[Sequence[int]], words: PreTrainedTokenizerFast) -> Batch:
    """Questions with their answers as rows of turns; every picture has as many. begins: first position of each turn.

    Every word of an answer is a target, and the end behind it.

    The turns of a picture are sorted by length, so that turns in one column, which get one length, differ little.
    """
    known = words.get_vocab()
    end = known[scenes.END]
    rows = []
    for row in asked:
        texts = [(f"{question.text} {scenes.CUE} {question.answer}", question.answer) for question in row]
        turns = [([known[word] for word in text.split()], len(answer.split())) for text, answer in texts]
        rows.append(sorted(turns, key=lambda turn: len(turn[0])))
    lengths = [max(len(row[column][0]) for row in rows) for column in range(len(rows[0]))]
    shape = len(rows), sum(lengths)
    ids, positions = torch.full(shape, known[scenes.PADDING]), torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, -100)
    sees = torch.zeros(shape[1], shape[1], dtype=torch.bool)
    first = 0
    for column, length in enumerate(lengths):
        sees[first : first + length, first : first + length] = torch.ones(length, length).tril().bool()
        for number, row in enumerate(rows):
            turn, answers = row[column]
            last = first + len(turn)
            ids[number, first:last] = torch.tensor(turn)
            positions[number, first : first + length] = begins[number][column] + torch.arange(length)
            targets[number, last - answers - 1 : last] = torch.tensor([*turn[-answers:], end])
        first += length
    return Batch(None, ids, positions, targets, sees)


def prefix_embeddings(
    model: LlavaForConditionalGeneration, features: Tensor | None, words: PreTrainedTokenizerFast
) -> Tensor:
    """System prompt and picture as the language model reads them: (batch, tokens, dim) -> (batch, 13 + tokens, width).

    Without features, as for blind answers, the system prompt alone: (1, 13, width).
    """
    ids = torch.tensor([words(scenes.SYSTEM)["input_ids"]], device=model.device)
    system = model.model.language_model.embed_tokens(ids)
    if features is None:
        return system
    picture = model.model.multi_modal_projector(features)
    return torch.cat([system.expand(len(picture), -1, -1).to(picture.dtype), picture], dim=1)


def turn_logits(
    model: LlavaForConditionalGeneration, prefix: Tensor, batch: Batch, prefix_positions: Tensor | None = None
) -> Tensor:
    """Logits (answers, words) at every place of `batch` with a target, as batch.targets[batch.targets >= 0] has them.

    The same as the model's own forward pass over the prefix and one turn, for all turns at once. prefix: (batch, prefix
    tokens, width). prefix_positions: (prefix tokens,), by default 0, 1, ...
    """
    language = model.model.language_model
    size, length, _ = prefix.shape
    if prefix_positions is None:
        prefix_positions = torch.arange(length, device=prefix.device)
    hidden = torch.cat([prefix.float(), language.embed_tokens(batch.ids)], dim=1)
    positions = torch.cat([prefix_positions.expand(size, -1), batch.positions], dim=1)
    cos, sin = language.rotary_emb(hidden, positions)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    cos, sin = cos[:, None].to(dtype), sin[:, None].to(dtype)
    causal = _bias(torch.ones(length, length, device=prefix.device).tril().bool(), dtype)
    own = _bias(batch.sees, dtype)
    last = len(language.layers) - 1
    for number, layer in enumerate(language.layers):
        normed = layer.input_layernorm(hidden)
        hidden = hidden + _attention(layer.self_attn, normed, length, cos, sin, causal, own, turns_only=number == last)
        if number == last:
            break
        hidden = hidden + _feed_forward(layer.mlp, layer.post_attention_layernorm(hidden))
    hidden = hidden[:, length:][batch.targets >= 0]  # what nobody reads need not pass the last layer
    hidden = hidden + _feed_forward(layer.mlp, layer.post_attention_layernorm(hidden))
    return model.lm_head(language.norm(hidden))


def _bias(sees: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, float("-inf"))


def _attention(
    block: nn.Module, x: Tensor, length: int, cos: Tensor, sin: Tensor, causal: Tensor, own: Tensor, turns_only: bool
) -> Tensor:
    """Self-attention of a Llama layer where turns see the prefix, of `length`, and themselves.

    With turns_only the prefix's own rows are left at 0.
    """
    size, tokens, width = x.shape
    weight = torch.cat([block.q_proj.weight, block.k_proj.weight, block.v_proj.weight])
    heads = F.linear(x, weight).view(size, tokens, 3, -1, block.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = (part.to(cos.dtype) for part in heads)
    query, key = (part * cos + _turned(part) * sin for part in (query * block.scaling, key))
    before, after = key.split([length, tokens - length], dim=2)
    value_before, value_after = value.split([length, tokens - length], dim=2)
    asks = query[:, :, length:]
    scores = torch.cat([asks @ before.transpose(2, 3), asks @ after.transpose(2, 3) + own], dim=-1)
    to_before, to_after = scores.softmax(-1).split([length, tokens - length], dim=-1)
    answer = to_before @ value_before + to_after @ value_after
    if turns_only:
        prefix = torch.zeros_like(query[:, :, :length])
    else:
        prefix = (query[:, :, :length] @ before.transpose(2, 3) + causal).softmax(-1) @ value_before
    out = torch.cat([prefix, answer], dim=2).transpose(1, 2).reshape(size, tokens, width)
    return block.o_proj(out)


def _turned(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([-other, one], dim=-1)


def _feed_forward(block: nn.Module, x: Tensor) -> Tensor:
    gate, up = F.linear(x, torch.cat([block.gate_proj.weight, block.up_proj.weight])).chunk(2, dim=-1)
    return block.down_proj(F.silu(gate) * up)


def _prefix_length(words: PreTrainedTokenizerFast) -> int:
    return len(words(scenes.SYSTEM)["input_ids"])


# Measuring


@torch.no_grad()
def correct(
    model: LlavaForConditionalGeneration,
    chosen: Evaluation,
    keep: Tensor | None = None,
    blind: bool = False,
    batch_size: int = 50,
) -> Tensor:
    """Which questions the model answers right: (questions,) bool.

    keep: (questions, n) indices of the patches that the language model gets, in ascending order, at consecutive
    positions; all if left out. blind: none at all.
    """
    words = tokenizer(end=False)
    language, device = model.model.language_model, model.device
    images = chosen.images
    right = []
    for begin in range(0, len(chosen), batch_size):
        part = slice(begin, begin + batch_size)
        asked = [[question] for question in chosen.questions[part]]
        features = None
        if not blind:
            features = patch_features(model.model.vision_tower, pixels(images[part]).to(device))
            if keep is not None:
                rows = keep[part].to(device)
                features = features.gather(1, rows[:, :, None].expand(-1, -1, features.shape[2]))
        prefix = prefix_embeddings(model, features, words).expand(len(asked), -1, -1)
        batch = pack(asked, [[prefix.shape[1]]] * len(asked), words).to(language.device)
        best = turn_logits(model, prefix, batch).argmax(-1).view(-1, 2)[:, 0].cpu()
        right.append(best == batch.targets[batch.targets >= 0].view(-1, 2)[:, 0].cpu())
    return torch.cat(right)


def by_family(chosen: Evaluation, right: Tensor) -> dict[str, float]:
    """Accuracy of all questions and of each family."""
    of = {"all": right.float().mean().item()}
    for family in scenes.FAMILIES:
        of_family = torch.tensor([question.family == family for question in chosen.questions])
        if of_family.any():
            of[family] = right[of_family].float().mean().item()
    return {name: round(value, 4) for name, value in of.items()}


def gate(model: LlavaForConditionalGeneration, chosen: Evaluation, seeds: Sequence[int] = range(5)) -> dict[str, Any]:
    """Gate G0 (vlm harness H6): accuracies of the full, the blind and the randomly pruned model (8 tokens).

    "passes": at least .80 full, .25 above the blind model, .10 above 8 random tokens (mean of the seeds).
    """
    accuracies = {
        "full": by_family(chosen, correct(model, chosen)),
        "blind": by_family(chosen, correct(model, chosen, blind=True)),
    }
    random_rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        keep = torch.rand(len(chosen), PATCHES, generator=generator).argsort(1)[:, :8].sort(1).values
        random_rows.append(by_family(chosen, correct(model, chosen, keep)))
    accuracies["random-8"] = {
        name: round(float(np.mean([row[name] for row in random_rows])), 4) for name in random_rows[0]
    }
    full = accuracies["full"]["all"]
    passes = full >= 0.80 and full - accuracies["blind"]["all"] >= 0.25 and full - accuracies["random-8"]["all"] >= 0.10
    return {"accuracies": accuracies, "passes": passes}
