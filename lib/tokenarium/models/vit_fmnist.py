"""`vit-fmnist`: the small ViT that the vision family stands on, trained from scratch on Fashion-MNIST.

12 layers, dim 64, 2 heads, patch 4 and, after upsampling to 56 px, DeiT's 14x14 = 196 patches, so that reduction
rates and margins carry over from the published models unchanged (vision harness V1). Trained cheaply in two steps: most
images on the 7x7 grid of the original 28 px, then a short fine-tuning at 196 tokens from the resized position table.

Muon (torch.optim.Muon, Jordan et al. 2024) drives the matrices inside the blocks and AdamW the rest: AdamW alone needs
several times the images for the same accuracy at this depth and width. Images are not augmented: in about two epochs
none is seen often enough to be learnt by heart. The fine model also learns from the coarse one's probabilities, which
say more per image than a label does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification

from tokenarium.data import fashion_mnist
from tokenarium.files import replace_directory, write_json, write_whole

PATCH = 4
COARSE = 28  # px: the data's own size, 7x7 patches
FINE = 56  # px: 14x14 patches
MEAN, STD = 0.2860, 0.3530  # of the training pixels in [0, 1]


def config(image_size: int) -> ViTConfig:
    """Configuration of the substrate at `image_size` pixels."""
    return ViTConfig(
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=256,
        image_size=image_size,
        patch_size=PATCH,
        num_channels=1,
        num_labels=len(fashion_mnist.CLASSES),
        id2label=dict(enumerate(fashion_mnist.CLASSES)),
        label2id={name: index for index, name in enumerate(fashion_mnist.CLASSES)},
        initializer_range=0.05,  # the default 0.02 is made for wider layers
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def pixels(images: Tensor, size: int = FINE) -> Tensor:
    """Model input of raw images: (batch, 28, 28) uint8 -> (batch, 1, size, size) float32, normalised.

    Larger sizes are upsampled bilinearly.
    """
    x = ((images.float() / 255 - MEAN) / STD)[:, None]
    return x if size == x.shape[-1] else F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def widen_grid(coarse: ViTForImageClassification, image_size: int) -> ViTForImageClassification:
    """The same model for a finer grid: position table resized bilinearly, every other weight as it is."""
    fine = ViTForImageClassification(config(image_size))
    state = coarse.state_dict()
    name = "vit.embeddings.position_embeddings"
    table = state[name]
    side = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    wide = F.interpolate(grid, size=(image_size // PATCH,) * 2, mode="bilinear", align_corners=False)
    state[name] = torch.cat([table[:, :1], wide.flatten(2).transpose(1, 2)], dim=1)
    fine.load_state_dict(state)
    return fine


def build(root: Path, path: Path, seed: int, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Train one seed on root/data/fashion-mnist and write its model directory `path` whole.

    `path` opens with ViTForImageClassification.from_pretrained at 14x14 patches, `path`/grid7 at 7x7. Interrupted
    training resumes from the last checkpoint. Returns the test accuracies, which path/training.json holds too.
    """
    train = fashion_mnist.load(root, "train")
    # A checkpoint belongs to one recipe: after an edit of params.yaml training starts anew.
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    checkpoints = root / ".tokenarium" / "checkpoints" / f"{path.parent.name}-{path.name}-{digest}"
    set_seed(seed)
    coarse = ViTForImageClassification(config(COARSE))
    losses = {"grid7": fit(coarse, *train, seed, recipe["coarse"], checkpoints)}
    fine = widen_grid(coarse, FINE)
    losses["grid14"] = fit(fine, *train, seed, recipe["fine"], checkpoints, teacher=coarse)
    test = [part[: recipe["test_images"]] for part in fashion_mnist.load(root, "test")]
    accuracy = {"grid7": top1(coarse, *test, COARSE), "grid14": top1(fine, *test, FINE)}

    staged = path.parent / f".{path.name}.partial"
    fine.save_pretrained(staged)
    coarse.save_pretrained(staged / "grid7")
    write_json(
        staged / "training.json",
        {"seed": seed, "recipe": dict(recipe), "test_top1": accuracy, "loss_every_10_steps": losses},
    )
    replace_directory(staged, path)
    for file in checkpoints.glob("*.safetensors"):
        file.unlink()
    return accuracy


def fit(
    model: ViTForImageClassification,
    images: Tensor,
    labels: Tensor,
    seed: int,
    recipe: Mapping[str, Any],
    checkpoints: Path,
    teacher: ViTForImageClassification | None = None,
) -> list[float]:
    """Train in place at the model's own image size under a one-cycle schedule; returns every tenth loss.

    With a teacher, recipe["distillation"] is the share of KL(teacher || model) in the loss, cross-entropy the rest.
    images: (n, 28, 28) uint8. labels: (n,) int64. What step t sees depends on seed, image size and t only, so that a
    resumed run repeats an uninterrupted one exactly.
    """
    accelerator = Accelerator()
    size = model.config.image_size
    batch_size = recipe["batch_size"]
    steps = max(recipe["passes"] // batch_size, 1)
    stream = (seed * 1_000 + size) * 1_000_000
    model, *optimizers = accelerator.prepare(model, *_optimizers(model, recipe))
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    checkpoint = checkpoints / f"grid{size // PATCH}.safetensors"
    start, losses = _restore(checkpoint, accelerator.unwrap_model(model), optimizers)
    model.train()
    progress = tqdm(range(start, steps), initial=start, total=steps, desc=f"seed {seed}, {size} px", mininterval=1)
    for step in progress:
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = rate * one_cycle(step / steps, recipe["warmup"])
        index = _batch(step, batch_size, len(images), stream)
        logits = model(pixel_values=pixels(images[index], size).to(accelerator.device)).logits
        loss = F.cross_entropy(logits, labels[index].to(accelerator.device))
        if teacher is not None:
            share = recipe["distillation"]
            loss = (1 - share) * loss + share * _divergence(teacher, images[index], logits)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            losses.append(round(loss.item(), 4))
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        if (step + 1) % recipe["checkpoint_every"] == 0 or step + 1 == steps:
            _save(checkpoint, step + 1, losses, accelerator.unwrap_model(model), optimizers)
    model.eval()
    return losses


@torch.no_grad()
def top1(model: ViTForImageClassification, images: Tensor, labels: Tensor, size: int, batch_size: int = 50) -> float:
    """Share of `images` (n, 28, 28) uint8 that the model classifies as `labels` (n,) at `size` px."""
    model.eval()
    device = next(model.parameters()).device
    hits = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        hits += int((model(pixel_values=pixels(x, size).to(device)).logits.argmax(-1).cpu() == y).sum())
    return hits / len(labels)


def _divergence(teacher: ViTForImageClassification, images: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(teacher || model) over raw images (batch, 28, 28), in nats, given the model's logits (batch, classes)."""
    with torch.no_grad():
        target = teacher(pixel_values=pixels(images, teacher.config.image_size).to(logits.device)).logits
    return F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")


def one_cycle(progress: float, warmup: float) -> float:
    """Learning-rate factor at `progress` in [0, 1): linear up to 1 over `warmup`, then a cosine down to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _optimizers(model: ViTForImageClassification, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe["muon_learning_rate"],
            weight_decay=recipe["weight_decay"],
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=recipe["adamw_learning_rate"], weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def _batch(step: int, batch_size: int, count: int, stream: int) -> Tensor:
    """Indices of one step: consecutive batches of an epoch's own permutation, the last short one dropped."""
    batch_size = min(batch_size, count)
    epoch, place = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(stream + epoch))
    return order[place * batch_size : (place + 1) * batch_size]


def _save(path: Path, step: int, losses: list[float], model: torch.nn.Module, optimizers: list[Any]) -> None:
    """Write a checkpoint whole: weights and optimizer tensors, with the next step and the losses so far."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}.{key}.{name}": value.contiguous() for name, value in state.items()}
    with write_whole(path, "wb") as file:
        file.write(save(tensors, metadata={"step": str(step), "losses": json.dumps(losses)}))


def _restore(path: Path, model: torch.nn.Module, optimizers: list[Any]) -> tuple[int, list[float]]:
    """Load the checkpoint at `path` into model and optimizers, if there is one; returns (next step, losses)."""
    if not path.is_file():
        return 0, []
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    prefixed = [(name.partition("."), value) for name, value in tensors.items()]
    model.load_state_dict({name: value for (kind, _, name), value in prefixed if kind == "model"})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for (kind, _, rest), value in prefixed:
            if kind == f"optimizer{number}":
                key, name = rest.split(".")
                state.setdefault(int(key), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(metadata["step"]), json.loads(metadata["losses"])
