"""easy-VQA: 5,000 pictures of one shape in one of eight colours, 64x64 pixels, with 48,248 questions.

Source: Victor Zhou 2019, MIT licence; PyPI wheel `easy-vqa`. Questions ask for shape and colour, and whether one is or
is not there; 13 answers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenarium.data.sources import Archive, Asset
from tokenarium.errors import TokenariumError
from tokenarium.files import write_json, write_whole

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """images: (pictures, 64, 64, 3) uint8. questions: (text, answer, index of the picture)."""

    images: np.ndarray
    questions: tuple[tuple[str, str, int], ...]


def load(root: Path | str, split: str) -> Split:
    """One split ("train" or "test") below the repository root.

    Raises TokenariumError if the data set was not fetched, ValueError for another split.
    """
    from safetensors.numpy import load_file

    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")
    folder = Path(root) / "data" / DATASET.name
    if not folder.is_dir():
        raise TokenariumError(f"{folder} is missing: run `tokenarium data {DATASET.name}`")
    questions = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    images = load_file(folder / f"{split}.safetensors")["images"]
    return Split(images, tuple((text, answer, index) for text, answer, index in questions))


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    from PIL import Image
    from safetensors.numpy import save

    for split in SPLITS:
        folder = f"easy_vqa/data/{split}"
        pictures = [
            np.asarray(Image.open(members[f"{folder}/images/{number}.png"]).convert("RGB"))
            for number in range(sum(name.startswith(f"{folder}/images/") for name in members))
        ]
        with write_whole(output / f"{split}.safetensors", "wb") as file:
            file.write(save({"images": np.stack(pictures)}))
        write_json(output / f"{split}.json", json.loads(members[f"{folder}/questions.json"].read_text()))


DATASET = Asset(
    name="easy-vqa",
    packages=(
        Archive(
            "pip",
            "easy-vqa",
            "1.0",
            "ccc29479f6d64ed0c77a12c42b4fdb4a5f8fb8c4e4aaed19f1f6ffc05b817a0e",
            r"easy_vqa/data/(?:train|test)/(?:questions\.json|images/\d+\.png)",
        ),
    ),
    normalise=_normalise,
    files={
        "train.json": "8c00409ae27840e912163133ffea53739a92bfdff9cb84c7a2619d37bbc3fbb3",
        "train.safetensors": "893dd5ae0946e648afa40feee889dfaa2d60aa5573f5cbfc49029d11d7f24859",
        "test.json": "9dbffaf0d95dcabfa9ef19ca840a73862d877259c7ac93a9d5f6aa00d75feac3",
        "test.safetensors": "9d4b45a20242a87b99e0d91c10ec7d5d77464ba11c9b0eda226d4e011c248de7",
    },
)
