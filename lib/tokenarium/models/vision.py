"""The classifiers that the vision family is tested on, with the images to test them on.

At `cpu` and `smoke` these are the seeds of `vit-fmnist` on Fashion-MNIST; at `gpu` any ViTForImageClassification
checkpoint and any image classification data set of the Hugging Face hub, by the same two parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, ViTForImageClassification

from tokenarium.data import fashion_mnist
from tokenarium.errors import TokenariumError
from tokenarium.models import vit_fmnist

LOCAL = "vit-fmnist"


@dataclass(frozen=True)
class Substrate:
    """One trained classifier and a fixed list of labelled images.

    labels: (images,) int64 on the CPU. `pixels(start, stop)` gives the model input of a slice of the list,
    (stop - start, channels, height, width) float on the model's device.
    """

    name: str
    seed: int
    model: ViTForImageClassification
    labels: Tensor
    pixels: Callable[[int, int], Tensor]
    images: Tensor | None = None  # (images, height, width) uint8, where they are small enough to keep

    @property
    def tokens(self) -> int:
        """Length of the model's input sequence, class token included."""
        return self.model.vit.embeddings.position_embeddings.shape[1]

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return round((self.tokens - 1) ** 0.5)

    @property
    def shape(self) -> dict[str, int]:
        """Sizes that the FLOPs account asks for."""
        config = self.model.config
        return {
            "tokens": self.tokens,
            "num_layers": config.num_hidden_layers,
            "dim": config.hidden_size,
            "intermediate": config.intermediate_size,
            "head_dim": config.hidden_size // config.num_attention_heads,
        }

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        """Model inputs of the first `limit` images in order, `batch_size` at a time."""
        count = len(self.labels) if limit is None else min(limit, len(self.labels))
        for start in range(0, count, batch_size):
            yield self.pixels(start, min(start + batch_size, count))


def load_substrates(
    root: Path,
    parameters: Mapping[str, Any],
    seeds: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    split: str = "test",
) -> list[Substrate]:
    """The substrates that `parameters.model` and `parameters.data` name, with the first `parameters.images` images.

    One per seed for the suite's own models; a single one for a checkpoint of the hub, which has no seeds.
    Raises TokenariumError for a model that has not been made.
    """
    if parameters["model"] == LOCAL:
        return [_local(root, seed, split, parameters["images"], device, dtype) for seed in seeds]
    return [_from_hub(parameters["model"], parameters["data"], split, parameters["images"], device, dtype)]


def _local(root: Path, seed: int, split: str, count: int, device: torch.device, dtype: torch.dtype) -> Substrate:
    path = root / "models" / LOCAL / f"seed{seed}"
    if not (path / "config.json").is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro model@{LOCAL}-seed{seed}`")
    model = ViTForImageClassification.from_pretrained(path, dtype=dtype).to(device).eval()
    images, labels = (part[:count] for part in fashion_mnist.load(root, split))

    def pixels(start: int, stop: int) -> Tensor:
        return vit_fmnist.pixels(images[start:stop], model.config.image_size).to(device, dtype)

    return Substrate(f"{LOCAL}-seed{seed}", seed, model, labels, pixels, images)


def _from_hub(
    model_id: str, data_id: str, split: str, count: int, device: torch.device, dtype: torch.dtype
) -> Substrate:
    try:
        from datasets import load_dataset
    except ImportError:
        raise TokenariumError("profile gpu reads data sets of the hub: pip install 'tokenarium[hub]'") from None
    try:
        model = ViTForImageClassification.from_pretrained(model_id, dtype=dtype).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(model_id, backend="pil")
        rows = load_dataset(data_id, split="validation" if split == "test" else split)
    except OSError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenariumError(f"cannot load {model_id} or {data_id} from the hub: {reason}") from None
    rows = rows.select(range(min(count, len(rows))))
    label = "label" if "label" in rows.column_names else "labels"

    def pixels(start: int, stop: int) -> Tensor:
        batch = [image.convert("RGB") for image in rows[start:stop]["image"]]
        return processor(batch, return_tensors="pt")["pixel_values"].to(device, dtype)

    return Substrate(model_id, 0, model, torch.tensor(rows[label]), pixels)
