"""`clip-scenes`: the vision tower of the vlm family, a small CLIP trained on procedural scenes and their captions.

Vision: 8 layers of width 128 on 12x12 patches and a CLS token; text: 2 layers on a word-level vocabulary. Two
contrastive losses: pictures against captions through CLS (Radford et al. 2021, arXiv 2103.00020), and patches of items
against phrases ("the small red circle", "is there a K ?") through the same two projections, as RegionCLIP has it for
regions (Zhong et al. 2022, arXiv 2112.09106): captions alone teach colours and places long before shapes and letters.
Phrases stand in templates with the words of questions, so that the text tower learns to pass over those. A patch is
compared with phrases drawn from the batch, and with all nouns, colours, sizes and places in turn.

Muon drives the matrices inside the layers, AdamW the rest. Scenes are made as they are needed, none is seen twice.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokenarium.data import scenes
from tokenarium.data.scenes import Item
from tokenarium.files import replace_directory, write_json
from tokenarium.models.lm_tiny import checkpoints_of, fit, optimizers

CLASSES = {  # attribute of an item -> all phrases that name it alone
    "noun": {noun: noun for noun in scenes.NOUNS},
    "color": {color: f"{color} thing" for color in scenes.COLORS},
    "size": {size: f"{size} thing" for size in scenes.SIZES},
    "place": {f"{row} {column}": f"thing {row} {column}" for row in scenes.THIRDS[0] for column in scenes.THIRDS[1]},
}
LONGEST = 64  # tokens of a caption
REGIONS = 16  # items of a picture that take part in the loss of regions
POSITIONS, PATCHES = 0.3, 3.0  # scales at the start: of the position table, and of the patch embedding's usual start
PARTS = (  # of a phrase: size, colour, noun, place; nouns are the hardest to learn
    (0, 0, 1, 0),
    (0, 0, 1, 0),
    (0, 0, 1, 0),
    (0, 1, 1, 0),
    (0, 1, 1, 0),
    (1, 1, 1, 0),
    (0, 1, 0, 0),
    (0, 1, 1, 1),
)
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "is there a {} ?",
    "there is a {} .",
    "on which side of the {} is it ?",
    "what color is the {} ?",
    "what shape is the {} ?",
    "which letter is the {} ?",
    "how many {} are there ?",
)


def tokenizer(end: bool) -> PreTrainedTokenizerFast:
    """The word-level tokenizer of all models of the family; it puts <s> before a text, with `end` </s> behind it."""
    words = {word: number for number, word in enumerate((*scenes.SPECIAL, *scenes.WORDS))}
    made = Tokenizer(models.WordLevel(words, unk_token=scenes.UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first, last = ((name, words[name]) for name in (scenes.START, scenes.END))
    made.post_processor = processors.TemplateProcessing(
        single=f"{scenes.START} $A {scenes.END}" if end else f"{scenes.START} $A", special_tokens=[first, last]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=scenes.START,
        eos_token=scenes.END,
        pad_token=scenes.PADDING,
        unk_token=scenes.UNKNOWN,
        extra_special_tokens={"image_token": scenes.IMAGE},
        clean_up_tokenization_spaces=False,
        padding_side="right" if end else "left",
    )


def image_processor() -> CLIPImageProcessorPil:
    """Pictures of any size to 96x96 in [-1, 1]."""
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    return CLIPImageProcessorPil(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def pixels(pictures: np.ndarray) -> Tensor:
    """What the image processor makes of pictures of 96x96: (batch, 96, 96, 3) uint8 -> (batch, 3, 96, 96) float32."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def clip_config(layers: int = 8, width: int = 128, text_layers: int = 2, projection: int = 64) -> CLIPConfig:
    """Configuration of the model, heads of 32 dimensions in both towers."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    words = len(scenes.SPECIAL) + len(scenes.WORDS)
    ids = {name: scenes.SPECIAL.index(value) for name, value in _TOKENS.items()}
    return CLIPConfig(
        vision_config={**tower, "num_hidden_layers": layers, "image_size": scenes.SIZE, "patch_size": scenes.PATCH},
        text_config={
            **tower,
            "num_hidden_layers": text_layers,
            "vocab_size": words,
            "max_position_embeddings": LONGEST,
            **ids,
        },
        projection_dim=projection,
    )


_TOKENS = {"pad_token_id": scenes.PADDING, "eos_token_id": scenes.END, "bos_token_id": scenes.START}


def build(root: Path, path: Path, seed: int, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Train one seed and write its model directory `path` whole, with tokenizer and image processor.

    Interrupted training resumes from the last checkpoint. Returns the measures of `held_out`, which stand in
    path/training.json too.
    """
    set_seed(seed)
    config = clip_config(recipe["layers"], recipe["width"], recipe["text_layers"], recipe["projection"])
    # Eager attention: on a CPU in bfloat16 several times as fast as the fused kernel at 145 tokens.
    model = CLIPModel._from_config(config, attn_implementation="eager")
    start_positions(model)
    words = tokenizer(end=True)
    accelerator = Accelerator(mixed_precision=recipe["precision"])
    model = accelerator.prepare(model)

    def loss_at(step: int) -> Tensor:
        batch = make_batch(f"clip-{seed}", step, recipe["batch_size"], recipe["pages"], words).to(accelerator.device)
        with accelerator.autocast():
            return loss_of(accelerator.unwrap_model(model), batch)

    checkpoint = checkpoints_of(root, path, recipe) / "model.safetensors"
    losses = fit(
        model, loss_at, optimizers(model, recipe), recipe, checkpoint, accelerator, f"clip-scenes, seed {seed}"
    )
    model = accelerator.unwrap_model(model).eval()
    measured = held_out(model, words, recipe["held_out"], recipe["pages"])

    staged = path.parent / f".{path.name}.partial"
    model.save_pretrained(staged)
    words.save_pretrained(staged)
    image_processor().save_pretrained(staged)
    write_json(
        staged / "training.json",
        {"seed": seed, "recipe": dict(recipe), "held_out": measured, "loss_every_10_steps": losses},
    )
    replace_directory(staged, path)
    checkpoint.unlink()
    return measured


@torch.no_grad()
def start_positions(model: CLIPModel) -> None:
    """Start the position table of the vision tower from sines and cosines of row and column (Beyer et al. 2022, arXiv
    2205.01580), so that a patch finds its neighbours long before it would have learnt where they are."""
    table = model.vision_model.embeddings.position_embedding.weight
    quarter = table.shape[1] // 4
    rates = 1 / 50 ** (torch.arange(quarter) / quarter)
    row, column = (
        axis.flatten()[:, None] * rates for axis in torch.meshgrid(*[torch.arange(scenes.GRID)] * 2, indexing="ij")
    )
    table[1:] = POSITIONS * torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    model.vision_model.embeddings.patch_embedding.weight.mul_(PATCHES)


class Batch:
    """pixels: (batch, 3, 96, 96). captions, phrases: token ids, padded. picture, patch: (regions,) int64, where one
    lies. matches: (regions, phrases) bool, which phrases are true of it: none of an empty patch. classes: token ids of
    the phrases of CLASSES. attributes: (regions, 4) int64, indices into each of CLASSES, -100 without an item."""

    def __init__(
        self,
        pixels: Tensor,
        captions: Tensor,
        phrases: Tensor,
        regions: Tensor,
        matches: Tensor,
        classes: Tensor,
        attributes: Tensor,
    ):
        self.pixels, self.captions, self.phrases, self.matches = pixels, captions, phrases, matches
        self.picture, self.patch = regions.unbind(1)
        self.classes, self.attributes = classes, attributes

    def to(self, device: torch.device) -> Batch:
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self


def make_batch(stream: str, step: int, size: int, pages: float, words: PreTrainedTokenizerFast) -> Batch:
    """Batch `step` of a stream of scenes, up to three phrases for every picture."""
    rng = random.Random(f"{stream}/{step}")
    made = [scenes.scene(stream, step * size + place, pages=pages) for place in range(size)]
    regions, items = [], []
    phrases: dict[tuple[str | None, ...], str] = {}
    for picture, scene in enumerate(made):
        chosen = rng.sample(range(len(scene.items)), min(REGIONS, len(scene.items)))
        masks = scene.masks().reshape(len(scene.items), -1)
        for index in chosen:
            regions.append((picture, rng.choice(np.flatnonzero(masks[index]).tolist())))
            items.append(scene.items[index])
        empty = np.flatnonzero(~masks.any(0)).tolist()
        if empty:
            regions.append((picture, rng.choice(empty)))
            items.append(None)
        for index in chosen[:3]:
            wanted = _wanted(scene.items[index], rng)
            phrases.setdefault(wanted, _phrase(wanted, rng))
    matches = [[item is not None and _fits(item, wanted) for wanted in phrases] for item in items]
    return Batch(
        pixels(np.stack([scene.draw() for scene in made])),
        _ids([scene.caption(rng) for scene in made], words),
        _ids(list(phrases.values()), words),
        torch.tensor(regions),
        torch.tensor(matches),
        _ids([text for phrases in CLASSES.values() for text in phrases.values()], words),
        torch.tensor([_attributes(item) for item in items]),
    )


def loss_of(model: CLIPModel, batch: Batch) -> Tensor:
    """Contrastive losses: of pictures and captions, of regions and phrases, of regions and each attribute's values."""
    pictures, patches = image_embeddings(model, batch.pixels)
    captions, phrases = (text_embeddings(model, ids) for ids in (batch.captions, batch.phrases))
    scale = model.logit_scale.exp()
    logits = scale * pictures @ captions.T
    target = torch.arange(len(logits), device=logits.device)
    whole = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    logits = scale * patches[batch.picture, batch.patch] @ phrases.T
    named = batch.matches.any(1)
    parts = (_soft_loss(logits[named], batch.matches[named]) + _soft_loss(logits.T, batch.matches.T)) / 2
    logits = scale * patches[batch.picture, batch.patch] @ text_embeddings(model, batch.classes).T
    by_class = logits.split([len(phrases) for phrases in CLASSES.values()], dim=1)
    alone = [F.cross_entropy(of, number) for of, number in zip(by_class, batch.attributes.unbind(1), strict=True)]
    return whole + parts + sum(alone)


def image_embeddings(model: CLIPModel, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures (batch, projection), by CLS, and of patches (batch, 144, projection), both float32.

    Patches are those of the last layer without its normalisation, through the projection of CLS.
    """
    output = model.vision_model(pixel_values=pixel_values)
    pictures = model.visual_projection(output.pooler_output)
    patches = model.visual_projection(output.last_hidden_state[:, 1:])
    return F.normalize(pictures.float(), dim=-1), F.normalize(patches.float(), dim=-1)


def text_embeddings(model: CLIPModel, ids: Tensor) -> Tensor:
    """Unit vectors of texts (texts, projection) float32. ids: (texts, tokens) int64, padded on the right."""
    padding = model.config.text_config.pad_token_id
    output = model.text_model(input_ids=ids, attention_mask=(ids != padding).long())
    return F.normalize(model.text_projection(output.pooler_output).float(), dim=-1)


@torch.no_grad()
def held_out(model: CLIPModel, words: PreTrainedTokenizerFast, pictures: int, pages: float) -> dict[str, float]:
    """On unseen scenes: how often the nearest caption is a picture's own, a phrase is true of the nearest region, and
    the nearest noun, colour, size and place are those of a patch's item."""
    batch = make_batch("held-out", 0, pictures, pages, words).to(model.device)
    embedded, patches = image_embeddings(model, batch.pixels)
    best = (embedded @ text_embeddings(model, batch.captions).T).argmax(1)
    regions = (text_embeddings(model, batch.phrases) @ patches[batch.picture, batch.patch].T).argmax(1)
    classes = text_embeddings(model, batch.classes).split([len(phrases) for phrases in CLASSES.values()])
    named, embedded_regions = batch.attributes[:, 0] >= 0, patches[batch.picture, batch.patch]
    zero_shot = {
        f"{name}_top1": float(((embedded_regions @ each.T).argmax(1) == number)[named].float().mean())
        for name, each, number in zip(CLASSES, classes, batch.attributes.unbind(1), strict=True)
    }
    return {
        **zero_shot,
        "caption_top1": float((best == torch.arange(len(best), device=best.device)).float().mean()),
        "region_top1": float(batch.matches.T.gather(1, regions[:, None]).float().mean()),
    }


def _wanted(item: Item, rng: random.Random) -> tuple[str | None, ...]:
    """(size, colour, noun, place) of an item, some of them left out."""
    size, color, noun, place = rng.choice(PARTS)
    return (
        item.size if size else None,
        item.color if color else None,
        item.noun if noun else None,
        item.place if place else None,
    )


def _attributes(item: Item | None) -> list[int]:
    if item is None:
        return [-100] * len(CLASSES)
    return [list(values).index(getattr(item, name)) for name, values in CLASSES.items()]


def _phrase(wanted: Sequence[str | None], rng: random.Random) -> str:
    size, color, noun, place = wanted
    return rng.choice(TEMPLATES).format(" ".join(word for word in (size, color, noun or "thing", place) if word))


def _fits(item: Item, wanted: Sequence[str | None]) -> bool:
    size, color, noun, place = wanted
    return (color in (None, item.color) and noun in (None, item.noun) and size in (None, item.size)) and place in (
        None,
        item.place,
    )


def _soft_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy against equal shares of all that match. Each row has one match at least."""
    target = matches / matches.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def _ids(texts: Sequence[str], words: PreTrainedTokenizerFast) -> Tensor:
    encoded = words(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return encoded["input_ids"]
