"""Fashion-MNIST: the same tensors from Debian's idx files and from the hub's PNGs."""

import dataclasses
import gzip
import io
import struct
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tokenarium.data import fashion_mnist, fetching
from tokenarium.errors import TokenariumError

COUNTS = {"train": 5, "test": 3}


def idx(array):
    """An IDX file written from its description, byte by byte."""
    data = bytearray([0, 0, 8, array.ndim])
    for size in array.shape:
        data += struct.pack(">I", size)
    for value in array.flatten().tolist():
        data.append(value)
    return bytes(data)


@pytest.fixture(scope="module")
def splits():
    """A few random images and labels of each split."""
    random = np.random.default_rng(0)
    return {
        split: (random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count).astype(np.uint8))
        for split, count in COUNTS.items()
    }


@pytest.fixture
def members(splits, tmp_path):
    """The four files of the Debian package, by their path in it."""
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images-idx3", "labels-idx1"), splits[split], strict=True):
            name = f"usr/share/datasets/fashion-mnist/{prefix}-{kind}-ubyte.gz"
            files[name] = tmp_path / name.rpartition("/")[2]
            files[name].write_bytes(gzip.compress(idx(array)))
    return files


@pytest.fixture
def parquet(splits, tmp_path, monkeypatch):
    """The two files of the hub; a stand-in for pyarrow reads them from this module's arrays."""

    class Column(list):
        def to_pylist(self):
            return list(self)

    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    def read_table(path, columns):
        images, labels = splits["train" if "train-" in path.name else "test"]
        table = {"image": Column(map(png, images)), "label": Column(labels.tolist())}
        return {name: table[name] for name in columns}

    package = types.ModuleType("pyarrow")
    package.parquet = types.ModuleType("pyarrow.parquet")
    package.parquet.read_table = read_table
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", package.parquet)
    return {name: tmp_path / name.rpartition("/")[2] for name in fashion_mnist.DATASET.hub.files}


def normalised(normalise, files, root):
    folder = root / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    normalise(files, folder)
    return folder


def test_loading_gives_back_the_images_and_labels(members, splits, tmp_path):
    normalised(fashion_mnist.DATASET.normalise, members, tmp_path)
    for split, (images, labels) in splits.items():
        loaded_images, loaded_labels = fashion_mnist.load(tmp_path, split)
        assert loaded_images.dtype == torch.uint8
        assert loaded_labels.dtype == torch.int64
        assert loaded_images.tolist() == images.tolist()
        assert loaded_labels.tolist() == labels.tolist()


def test_normalising_is_deterministic_to_the_byte(members, tmp_path):
    one = normalised(fashion_mnist.DATASET.normalise, members, tmp_path / "one")
    two = normalised(fashion_mnist.DATASET.normalise, members, tmp_path / "two")
    for name in fashion_mnist.DATASET.files:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_hub_gives_the_same_bytes(members, parquet, tmp_path):
    one = normalised(fashion_mnist.DATASET.normalise, members, tmp_path / "one")
    two = normalised(fashion_mnist.DATASET.hub.normalise, parquet, tmp_path / "two")
    for name in fashion_mnist.DATASET.files:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_missing_parquet_reader_is_named_with_the_mend(members, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TokenariumError, match=r"needs pyarrow: pip install 'tokenarium\[hub\]'"):
        fashion_mnist.DATASET.hub.normalise({}, tmp_path)


@given(
    array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=5)),
    cut=st.integers(1, 200),
)
def test_an_idx_file_reads_back_and_any_cut_or_growth_is_refused(array, cut):
    data = idx(array)
    read = fashion_mnist.read_idx(data)
    assert read.shape == array.shape
    assert read.tolist() == array.tolist()
    with pytest.raises(ValueError, match=r"IDX|idx"):
        fashion_mnist.read_idx(data[: max(0, len(data) - cut)])
    with pytest.raises(ValueError, match=r"IDX|idx"):
        fashion_mnist.read_idx(data + bytes(cut))


def test_another_kind_of_idx_file_is_refused():
    with pytest.raises(ValueError, match="unsigned bytes"):
        fashion_mnist.read_idx(b"\0\0\x0d\1\0\0\0\0")


def test_loading_before_fetching_names_the_mend(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data fashion-mnist"):
        fashion_mnist.load(tmp_path, "train")


def test_another_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="validation"):
        fashion_mnist.load(tmp_path, "validation")


def test_ten_classes_are_named():
    assert len(set(fashion_mnist.CLASSES)) == 10


def test_a_package_other_than_the_pinned_one_does_not_pass(index, tmp_path):
    package = index.publish("npm", "dataset-fashion-mnist", {"package/x": b"x"})
    asset = dataclasses.replace(
        fashion_mnist.DATASET,
        packages=(dataclasses.replace(fashion_mnist.DATASET.packages[0], client="npm", version=package.version),),
    )
    with pytest.raises(TokenariumError, match=r"train-images-idx3-ubyte\.gz: expected b0564c3e.*no such member"):
        fetching.make(asset, tmp_path / "out")
