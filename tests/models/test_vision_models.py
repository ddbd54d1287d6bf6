"""Substrates: the suite's own classifiers and those of the hub, with a fixed list of images, behind one interface."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tokenarium.data import fashion_mnist
from tokenarium.errors import TokenariumError
from tokenarium.models import vision, vit_fmnist

CPU = torch.device("cpu")
LOCAL = {"model": "vit-fmnist", "data": "fashion-mnist", "images": 5}


def tiny_vit(seed: int, image_size: int, **options) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2} | options
    return ViTForImageClassification(ViTConfig(image_size=image_size, intermediate_size=40, **config)).eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout with two seeds of a small model, 14x14 patches, and a few random images."""
    root = tmp_path_factory.mktemp("root")
    for seed in (0, 3):
        model = tiny_vit(seed, 56, num_channels=1, num_labels=10)
        model.save_pretrained(root / "models" / "vit-fmnist" / f"seed{seed}")
    (root / "data" / "fashion-mnist").mkdir(parents=True)
    for split, count, seed in (("train", 12, 0), ("test", 9, 1)):
        images = torch.randint(
            0, 256, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        tensors = {"images": images, "labels": (torch.arange(count) * 7 + seed) % 10}
        save_file(tensors, root / "data" / "fashion-mnist" / f"{split}.safetensors")
    return root


def test_there_is_one_local_substrate_a_seed_with_its_own_weights_and_the_same_images(root):
    one, other = vision.load_substrates(root, LOCAL, [0, 3], CPU)
    assert [(s.name, s.seed) for s in (one, other)] == [("vit-fmnist-seed0", 0), ("vit-fmnist-seed3", 3)]
    for substrate, seed in ((one, 0), (other, 3)):
        assert torch.equal(
            substrate.model.classifier.weight, tiny_vit(seed, 56, num_channels=1, num_labels=10).classifier.weight
        )
        assert not substrate.model.training
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.pixels(0, 5), other.pixels(0, 5))


def test_a_substrate_knows_the_sizes_of_its_model(root):
    (substrate,) = vision.load_substrates(root, LOCAL, [0], CPU)
    assert (substrate.tokens, substrate.grid) == (197, 14)
    assert substrate.shape == {"tokens": 197, "num_layers": 3, "dim": 16, "intermediate": 40, "head_dim": 8}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_images_are_the_first_of_the_split_as_the_model_takes_them(root, split):
    (substrate,) = vision.load_substrates(root, LOCAL, [0], CPU, split=split)
    images, labels = fashion_mnist.load(root, split)
    assert substrate.labels.tolist() == labels[:5].tolist()
    assert torch.equal(substrate.images, images[:5])
    assert torch.equal(substrate.pixels(1, 4), vit_fmnist.pixels(images[1:4], 56))


def test_more_images_than_there_are_means_all_of_them(root):
    (substrate,) = vision.load_substrates(root, LOCAL | {"images": 1000}, [0], CPU)
    assert len(substrate.labels) == len(substrate.images) == 9


@pytest.mark.parametrize(
    ("batch_size", "limit", "sizes"),
    [(2, None, [2, 2, 1]), (5, None, [5]), (9, None, [5]), (2, 3, [2, 1]), (2, 0, []), (3, 99, [3, 2])],
)
def test_batches_are_the_images_in_order(root, batch_size, limit, sizes):
    (substrate,) = vision.load_substrates(root, LOCAL, [0], CPU)
    batches = list(substrate.batches(batch_size, limit))
    assert [len(batch) for batch in batches] == sizes
    assert all(batch.shape[1:] == (1, 56, 56) for batch in batches)
    if batches:
        assert torch.equal(torch.cat(batches), substrate.pixels(0, sum(sizes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_model_and_images_have_the_asked_dtype(root, dtype):
    (substrate,) = vision.load_substrates(root, LOCAL, [0], CPU, dtype)
    assert substrate.model.dtype == dtype
    assert substrate.pixels(0, 2).dtype == dtype
    assert substrate.model(pixel_values=substrate.pixels(0, 2)).logits.dtype == dtype


def test_a_model_that_was_not_made_is_named_with_the_command_that_makes_it(root):
    with pytest.raises(TokenariumError) as error:
        vision.load_substrates(root, LOCAL, [0, 8], CPU)
    assert "vit-fmnist/seed8 is missing" in str(error.value)
    assert "dvc repro model@vit-fmnist-seed8" in str(error.value)
    assert "\n" not in str(error.value)


class Column:
    """A column of a data set: a sequence, but no list."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return self._values[index]


class Rows:
    """The part of `datasets.Dataset` that a substrate reads."""

    def __init__(self, columns: dict[str, list]):
        self._columns = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def select(self, indices):
        return Rows({name: [values[index] for index in indices] for name, values in self._columns.items()})

    def __getitem__(self, key):
        if isinstance(key, str):
            return Column(self._columns[key])
        return {name: values[key] for name, values in self._columns.items()}


def pictures(count: int) -> list[Image.Image]:
    """Pictures of 24x24 in the modes that one meets, colour and grey."""
    generator = np.random.default_rng(0)
    shapes = [(24, 24, 3) if number % 2 == 0 else (24, 24) for number in range(count)]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A checkpoint with its image processor in a folder, and a stand-in for the package `datasets`."""
    tiny_vit(4, 24, num_channels=3, num_labels=6).save_pretrained(tmp_path / "checkpoint")
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "checkpoint")
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    module.asked = []

    def load_dataset(name, split):
        module.asked.append((name, split))
        return Rows({"image": pictures(7), module.label: [5, 4, 3, 2, 1, 0, 5]})

    module.label, module.load_dataset = "label", load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return module


@pytest.fixture
def remote(tmp_path):
    return {"model": str(tmp_path / "checkpoint"), "data": "some/pictures", "images": 4}


@pytest.mark.parametrize("label", ["label", "labels"])
def test_a_checkpoint_of_the_hub_is_one_substrate_whatever_the_seeds(hub, remote, tmp_path, label):
    hub.label = label
    (substrate,) = vision.load_substrates(tmp_path, remote, [0, 1, 2], CPU)
    assert (substrate.name, substrate.seed) == (remote["model"], 0)
    assert substrate.labels.tolist() == [5, 4, 3, 2]
    assert substrate.labels.dtype == torch.int64
    assert substrate.images is None
    assert (substrate.tokens, substrate.grid) == (37, 6)
    assert torch.equal(
        substrate.model.classifier.weight, tiny_vit(4, 24, num_channels=3, num_labels=6).classifier.weight
    )
    assert not substrate.model.training


def test_pictures_of_the_hub_are_scaled_as_the_checkpoints_processor_says(hub, remote, tmp_path):
    (substrate,) = vision.load_substrates(tmp_path, remote, [0], CPU)
    x = substrate.pixels(1, 4)
    assert x.shape == (3, 3, 24, 24)
    assert x.dtype == torch.float32
    for place, picture in enumerate(pictures(4)[1:]):
        values = np.asarray(picture)
        for channel in range(3):
            grey = values if values.ndim == 2 else values[..., channel]
            expected = torch.from_numpy((grey / 255 - 0.5) / 0.5).float()
            torch.testing.assert_close(x[place, channel], expected, atol=1e-5, rtol=0)
    assert substrate.model(pixel_values=x).logits.shape == (3, 6)
    assert [len(batch) for batch in substrate.batches(3)] == [3, 1]


def test_pictures_of_the_hub_come_in_the_models_dtype(hub, remote, tmp_path):
    (substrate,) = vision.load_substrates(tmp_path, remote, [0], CPU, torch.bfloat16)
    assert substrate.pixels(0, 1).dtype == substrate.model.dtype == torch.bfloat16


@pytest.mark.parametrize(("split", "asked"), [("test", "validation"), ("train", "train")])
def test_the_labelled_test_split_of_the_hub_is_validation(hub, remote, tmp_path, split, asked):
    vision.load_substrates(tmp_path, remote, [0], CPU, split=split)
    assert hub.asked == [("some/pictures", asked)]


def test_without_the_package_datasets_there_is_one_clear_line(hub, remote, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TokenariumError, match=r"pip install 'tokenarium\[hub\]'") as error:
        vision.load_substrates(tmp_path, remote, [0], CPU)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_not_there_is_one_clear_line(hub, remote, tmp_path):
    with pytest.raises(TokenariumError, match=r"cannot load .*/nowhere or some/pictures from the hub: .+") as error:
        vision.load_substrates(tmp_path, remote | {"model": str(tmp_path / "nowhere")}, [0], CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("message", ["", "no such data set\nhere is how to log in"])
def test_a_data_set_that_is_not_there_is_one_clear_line(hub, remote, tmp_path, message):
    def load_dataset(name, split):
        raise FileNotFoundError(message)

    hub.load_dataset = load_dataset
    with pytest.raises(TokenariumError, match=r"some/pictures from the hub: (FileNotFoundError|no such data set)$"):
        vision.load_substrates(tmp_path, remote, [0], CPU)
