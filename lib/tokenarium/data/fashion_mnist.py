"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 grey levels, ten classes.

Source: Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747), MIT licence; Debian package `dataset-fashion-mnist`.
"""

import gzip
import io
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenarium.data.sources import Asset, Hub, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = {"train": "train", "test": "t10k"}

_FOLDER = "usr/share/datasets/fashion-mnist"
_IDX = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_PARQUET = "fashion_mnist/{split}-00000-of-00001.parquet"


def load(root: Path | str, split: str) -> "tuple[Tensor, Tensor]":
    """Images and labels of one split ("train" or "test") below the repository root.

    Returns images: (images, 28, 28) uint8, 0 is background; labels: (images,) int64, indices into CLASSES.
    Raises TokenariumError if the data set was not fetched, ValueError for another split.
    """
    from safetensors.torch import load_file  # torch is slow to import and fetching does without

    if split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    path = Path(root) / "data" / DATASET.name / f"{split}.safetensors"
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {DATASET.name}`")
    tensors = load_file(path)
    return tensors["images"], tensors["labels"]


def read_idx(data: bytes) -> np.ndarray:
    """The array in an IDX file of unsigned bytes (big-endian header, http://yann.lecun.com/exdb/mnist).

    Raises ValueError if the header does not describe exactly the bytes that follow.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError("the IDX header is cut off")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(f"an IDX file of shape {shape} holds {len(data) - header} bytes")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _write_split(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    from safetensors.numpy import save

    with write_whole(path, "wb") as file:
        file.write(save({"images": np.ascontiguousarray(images), "labels": labels.astype(np.int64)}))


def _from_idx(members: Mapping[str, Path], output: Path) -> None:
    for split, prefix in SPLITS.items():
        images, labels = (
            read_idx(gzip.decompress(members[f"{_FOLDER}/{prefix}-{kind}-ubyte.gz"].read_bytes()))
            for kind in ("images-idx3", "labels-idx1")
        )
        _write_split(output / f"{split}.safetensors", images, labels)


def _from_parquet(files: Mapping[str, Path], output: Path) -> None:
    """The hub's packing: one row an image, `image.bytes` a PNG of grey levels, `label` its class."""
    try:
        from PIL import Image
        from pyarrow import parquet
    except ImportError as error:
        raise TokenariumError(f"reading {DATASET.hub} needs {error.name}: pip install 'tokenarium[hub]'") from error
    for split in SPLITS:
        table = parquet.read_table(files[_PARQUET.format(split=split)], columns=["image", "label"])
        images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
        _write_split(output / f"{split}.safetensors", np.stack(images), np.asarray(table["label"].to_pylist()))


DATASET = Asset(
    name="fashion-mnist",
    packages=(
        Package(
            "apt",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            {f"{_FOLDER}/{file}-ubyte.gz": digest for file, digest in _IDX.items()},
        ),
    ),
    normalise=_from_idx,
    files={
        "train.safetensors": "e854673a70b8a6b2c9ee3bc84ffb844d0efed102aa4f176dbbaa315ceb59155e",
        "test.safetensors": "553e3f19641f78e8dcbbe0e666594e5cb12fd2f25a417da35214106e8069b551",
    },
    # Debian compressed the idx files anew and the hub holds PNGs: equal only after normalising.
    hub=Hub(
        "zalando-datasets/fashion_mnist",
        {_PARQUET.format(split=split): None for split in SPLITS},
        normalise=_from_parquet,
    ),
)
