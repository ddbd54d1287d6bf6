"""vit-fmnist: what it is fed, how it is scheduled, and a training that ends the same however often it is cut off."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from tokenarium import models as recipes
from tokenarium.data import fashion_mnist
from tokenarium.models import vit_fmnist

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "fashion-mnist"
STEPS = {"coarse": 6, "fine": 3}
OPTIONS = {
    "muon_learning_rate": 0.01,
    "adamw_learning_rate": 0.003,
    "weight_decay": 0.05,
    "warmup": 0.15,
    "checkpoint_every": 2,
}
RECIPE = {
    "test_images": 7,
    "coarse": {"passes": 4 * STEPS["coarse"], "batch_size": 4, **OPTIONS},
    "fine": {"passes": 2 * STEPS["fine"], "batch_size": 2, "distillation": 0.5, **OPTIONS},
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit-for-bit repetition is promised where every kernel is deterministic."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def some_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def with_data(root):
    """A Fashion-MNIST of a few random images below `root`."""
    folder = root / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for split, count, seed in (("train", 22, 0), ("test", 9, 1)):
        labels = torch.arange(count) % 10
        save_file({"images": some_images(count, seed), "labels": labels}, folder / f"{split}.safetensors")
    return root


def files_below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class CountedSteps:
    """Stands in for `_batch`: counts the training steps and cuts the power at one of them."""

    def __init__(self, monkeypatch, cut_at=None):
        self.seen, self.cut_at, self.batch = [], cut_at, vit_fmnist._batch
        monkeypatch.setattr(vit_fmnist, "_batch", self)

    def __call__(self, step, *args):
        if len(self.seen) == self.cut_at:
            raise KeyboardInterrupt
        self.seen.append(step)
        return self.batch(step, *args)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One whole training, never interrupted: (root, model directory, what build returned)."""
    root = with_data(tmp_path_factory.mktemp("built"))
    path = root / "models" / "vit-fmnist" / "seed5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # this runs before the fixture above
        return root, path, vit_fmnist.build(root, path, 5, RECIPE)


def test_pixels_are_normalised_one_by_one():
    images = some_images(2)
    x = vit_fmnist.pixels(images, 28)
    assert x.shape == (2, 1, 28, 28)
    assert x.dtype == torch.float32
    for image in range(2):
        for row in range(28):
            for column in range(28):
                expected = (int(images[image, row, column]) / 255 - 0.2860) / 0.3530
                assert float(x[image, 0, row, column]) == pytest.approx(expected, abs=1e-5)


def test_upsampled_pixels_are_the_bilinear_mean_of_their_neighbours():
    image = some_images(1)
    coarse, fine = vit_fmnist.pixels(image, 28)[0, 0].double(), vit_fmnist.pixels(image)[0, 0]
    assert fine.shape == (56, 56)
    for row in range(56):
        for column in range(56):
            assert float(fine[row, column]) == pytest.approx(bilinear(coarse, row, column, 2), abs=1e-5)


def bilinear(grid, row: int, column: int, scale: int) -> float:
    """Value of a grid enlarged `scale` times, pixel centres at half-integers, edges repeated."""
    side = len(grid)
    total = 0.0
    y, x = ((place + 0.5) / scale - 0.5 for place in (row, column))
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - i)) * (1 - abs(x - j))
            total += weight * float(grid[min(max(i, 0), side - 1), min(max(j, 0), side - 1)])
    return total


def test_a_wider_grid_keeps_every_weight_but_the_position_table():
    torch.manual_seed(0)
    coarse = ViTForImageClassification(vit_fmnist.config(28))
    before = {name: value.clone() for name, value in coarse.state_dict().items()}
    fine = vit_fmnist.widen_grid(coarse, 56)
    changed = {name for name, value in fine.state_dict().items() if not torch.equal(value, before.get(name))}
    assert changed == {"vit.embeddings.position_embeddings"}
    assert all(torch.equal(value, before[name]) for name, value in coarse.state_dict().items())
    assert fine.config.image_size == 56
    assert fine(pixel_values=vit_fmnist.pixels(some_images(2))).logits.shape == (2, 10)


def test_the_wider_position_table_is_interpolated_and_the_class_token_keeps_its_own():
    torch.manual_seed(0)
    coarse = ViTForImageClassification(vit_fmnist.config(28))
    narrow, wide = (
        model.vit.embeddings.position_embeddings[0].detach() for model in (coarse, vit_fmnist.widen_grid(coarse, 56))
    )
    assert (len(narrow), len(wide)) == (50, 197)
    assert torch.equal(wide[0], narrow[0])
    for feature in (0, 63):
        grid = narrow[1:, feature].reshape(7, 7).double()
        for row in range(14):
            for column in range(14):
                value = float(wide[1 + 14 * row + column, feature])
                assert value == pytest.approx(bilinear(grid, row, column, 2), abs=1e-6)


def test_widening_to_the_same_grid_is_the_identity():
    torch.manual_seed(0)
    coarse = ViTForImageClassification(vit_fmnist.config(28)).eval()
    same, x = vit_fmnist.widen_grid(coarse, 28).eval(), vit_fmnist.pixels(some_images(2), 28)
    assert torch.equal(same(pixel_values=x).logits, coarse(pixel_values=x).logits)


@given(warmup=st.floats(0.01, 0.9))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(warmup):
    places = [place / 200 for place in range(200)]
    factors = [vit_fmnist.one_cycle(place, warmup) for place in places]
    assert all(0 < factor <= 1 for factor in factors)
    for place in range(199):
        if places[place + 1] <= warmup:
            assert factors[place + 1] > factors[place]
        elif places[place] >= warmup:
            assert factors[place + 1] < factors[place]
    assert vit_fmnist.one_cycle(warmup, warmup) == 1
    assert vit_fmnist.one_cycle(warmup * (1 - 1e-9), warmup) == pytest.approx(1)
    assert vit_fmnist.one_cycle((1 + warmup) / 2, warmup) == pytest.approx(0.5)
    assert vit_fmnist.one_cycle(1 - 1e-9, warmup) == pytest.approx(0, abs=1e-6)


@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), epoch=st.integers(0, 3), stream=st.integers(0, 10**9))
def test_the_batches_of_an_epoch_show_no_image_twice_and_drop_only_a_short_batch(count, batch_size, epoch, stream):
    size = min(batch_size, count)
    steps = count // size
    seen = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch = vit_fmnist._batch(step, batch_size, count, stream).tolist()
        assert len(batch) == size
        seen += batch
    assert len(set(seen)) == len(seen) == count - count % size
    assert set(seen) <= set(range(count))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = [
        tuple(torch.cat([vit_fmnist._batch(epoch * 10 + step, 5, 50, stream) for step in range(10)]).tolist())
        for stream in (28_000_000, 1_028_000_000)
        for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == len(orders)


def test_training_moves_every_weight(tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(vit_fmnist.config(28))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    recipe = RECIPE["coarse"] | {"passes": 12}
    vit_fmnist.fit(model, some_images(8), torch.arange(8), 0, recipe, tmp_path)
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    # a bias on all keys shifts each row of scores alike, so the softmax gives it no gradient
    assert {name for name in still if "k_proj.bias" not in name} == set()


def test_training_learns_to_tell_black_from_white(tmp_path):
    torch.manual_seed(0)
    images, labels = torch.zeros(8, 28, 28, dtype=torch.uint8), torch.arange(8) % 2
    images[1::2] = 255
    model = ViTForImageClassification(vit_fmnist.config(28))
    recipe = RECIPE["coarse"] | {"passes": 8 * 25, "batch_size": 8}
    losses = vit_fmnist.fit(model, images, labels, 0, recipe, tmp_path)
    assert len(losses) == 3  # of steps 0, 10 and 20
    assert losses[0] > math.log(2)
    assert losses[-1] < 0.3
    assert vit_fmnist.top1(model, images, labels, 28) == 1
    assert not model.training


def trained(tmp_path, name: str, share: float, labels: torch.Tensor, teacher: bool = True) -> torch.Tensor:
    """All weights of the fine grid after three steps that listen to a coarse teacher with a share of `share`."""
    torch.manual_seed(0)
    coarse = ViTForImageClassification(vit_fmnist.config(28)).eval()
    fine = vit_fmnist.widen_grid(coarse, 56)
    recipe = RECIPE["fine"] | {"distillation": share}
    vit_fmnist.fit(fine, some_images(8), labels, 0, recipe, tmp_path / name, teacher=coarse if teacher else None)
    return torch.cat([value.detach().flatten() for value in fine.parameters()])


def test_the_teachers_share_of_the_loss_goes_from_none_of_it_to_all_of_it(tmp_path):
    labels, others = torch.arange(8), torch.arange(8).flip(0)
    alone = trained(tmp_path, "alone", 0.5, labels, teacher=False)
    assert torch.equal(trained(tmp_path, "none", 0.0, labels), alone)
    assert not torch.equal(trained(tmp_path, "half", 0.5, labels), alone)
    assert not torch.equal(trained(tmp_path, "half, others", 0.5, others), trained(tmp_path, "half", 0.5, labels))
    assert torch.equal(trained(tmp_path, "all, others", 1.0, others), trained(tmp_path, "all", 1.0, labels))


def test_the_divergence_from_the_teacher_is_the_mean_kl_of_the_images():
    torch.manual_seed(0)
    teacher, images = ViTForImageClassification(vit_fmnist.config(28)).eval(), some_images(3)
    logits = 2 * torch.randn(3, 10)
    with torch.no_grad():
        p = teacher(pixel_values=vit_fmnist.pixels(images, 28)).logits.double().softmax(-1)
    q = logits.double().softmax(-1)
    kl = [sum(float(a) * math.log(a / b) for a, b in zip(*image, strict=True)) for image in zip(p, q, strict=True)]
    assert float(vit_fmnist._divergence(teacher, images, logits)) == pytest.approx(sum(kl) / 3, rel=1e-4)


def test_accuracy_counts_hits_whatever_the_batch_size():
    torch.manual_seed(0)
    model = ViTForImageClassification(vit_fmnist.config(28)).eval()
    images = some_images(11)
    chosen = [int(model(pixel_values=vit_fmnist.pixels(image[None], 28)).logits.argmax()) for image in images]
    labels = torch.tensor([label if place % 3 else (label + 1) % 10 for place, label in enumerate(chosen)])
    for batch_size in (4, 11, 500):
        assert vit_fmnist.top1(model, images, labels, 28, batch_size) == pytest.approx(7 / 11)


def test_a_built_model_opens_at_both_grids(built):
    root, path, accuracy = built
    fine = ViTForImageClassification.from_pretrained(path)
    coarse = ViTForImageClassification.from_pretrained(path / "grid7")
    by_name = ViTForImageClassification.from_pretrained(path, subfolder="grid7")
    tokens = [model.vit.embeddings.position_embeddings.shape[1] - 1 for model in (fine, coarse, by_name)]
    assert tokens == [14 * 14, 7 * 7, 7 * 7]
    assert all(torch.equal(value, by_name.state_dict()[name]) for name, value in coarse.state_dict().items())
    assert [fine.config.id2label[label] for label in range(10)] == list(fashion_mnist.CLASSES)
    images, labels = fashion_mnist.load(root, "test")
    for name, model, size in (("grid14", fine, 56), ("grid7", coarse, 28)):
        hits = 0
        for image, label in list(zip(images, labels, strict=True))[: RECIPE["test_images"]]:
            hits += int(model(pixel_values=vit_fmnist.pixels(image[None], size)).logits.argmax()) == int(label)
        assert accuracy[name] == hits / RECIPE["test_images"]


def test_a_built_model_says_how_it_was_trained(built):
    _, path, accuracy = built
    training = json.loads((path / "training.json").read_text())
    assert training["seed"] == 5
    assert training["recipe"] == RECIPE
    assert training["test_top1"] == accuracy
    assert {grid: len(losses) for grid, losses in training["loss_every_10_steps"].items()} == {"grid7": 1, "grid14": 1}


def test_nothing_is_left_but_the_model_and_none_of_it_is_a_pickle(built):
    root, path, _ = built
    model = {"config.json", "model.safetensors", "grid7/config.json", "grid7/model.safetensors", "training.json"}
    assert files_below(path) == model
    data = {"data/fashion-mnist/train.safetensors", "data/fashion-mnist/test.safetensors"}
    assert files_below(root) == data | {f"models/vit-fmnist/seed5/{name}" for name in model}


@pytest.mark.parametrize("cut_at", [0, 1, 3, 5, 7, 8])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(built, tmp_path, monkeypatch, cut_at):
    """Steps 0 to 5 are coarse, 6 to 8 fine; checkpoints come after every second step of each and after its last."""
    _, whole, accuracy = built
    root = with_data(tmp_path)
    path = root / "models" / "vit-fmnist" / "seed5"
    with monkeypatch.context() as patch:
        CountedSteps(patch, cut_at)
        with pytest.raises(KeyboardInterrupt):
            vit_fmnist.build(root, path, 5, RECIPE)
    assert not path.parent.exists()
    assert all(name.endswith(".safetensors") for name in files_below(root))
    torch.manual_seed(99)  # another process would not stand where this one stopped
    with monkeypatch.context() as patch:
        resumed = CountedSteps(patch)
        assert vit_fmnist.build(root, path, 5, RECIPE) == accuracy
    coarse_left = [] if cut_at >= 6 else list(range(cut_at - cut_at % 2, 6))
    fine_left = list(range((cut_at - 6) // 2 * 2, 3)) if cut_at >= 6 else [0, 1, 2]
    assert resumed.seen == coarse_left + fine_left
    assert files_below(path) == files_below(whole)
    for name in ("model.safetensors", "grid7/model.safetensors"):
        one, other = load_file(path / name), load_file(whole / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (path / "training.json").read_bytes() == (whole / "training.json").read_bytes()
    assert not list((root / ".tokenarium").rglob("*.safetensors"))


def test_another_seed_is_another_model(built, tmp_path):
    _, path, _ = built
    root = with_data(tmp_path)
    vit_fmnist.build(root, root / "models" / "vit-fmnist" / "seed6", 6, RECIPE)
    one, other = (load_file(p / "model.safetensors") for p in (path, root / "models" / "vit-fmnist" / "seed6"))
    assert not torch.allclose(one["classifier.weight"], other["classifier.weight"], atol=1e-3)


def test_a_training_that_fails_leaves_the_old_model_as_it_was(tmp_path, monkeypatch):
    root = with_data(tmp_path)
    path = root / "models" / "vit-fmnist" / "seed5"
    path.mkdir(parents=True)
    (path / "config.json").write_text("old")
    CountedSteps(monkeypatch, cut_at=7)
    with pytest.raises(KeyboardInterrupt):
        vit_fmnist.build(root, path, 5, RECIPE)
    assert files_below(root / "models") == {"vit-fmnist/seed5/config.json"}
    assert (path / "config.json").read_text() == "old"


def test_a_save_that_fails_leaves_the_old_model_as_it_was(tmp_path, monkeypatch):
    root = with_data(tmp_path)
    path = root / "models" / "vit-fmnist" / "seed5"
    path.mkdir(parents=True)
    (path / "config.json").write_text("old")

    def half_written(self, folder, *args, **kwargs):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(ViTForImageClassification, "save_pretrained", half_written)
    with pytest.raises(OSError, match="disk full"):
        vit_fmnist.build(root, path, 5, RECIPE)
    assert files_below(path) == {"config.json"}
    assert (path / "config.json").read_text() == "old"


def test_a_checkpoint_of_another_recipe_is_not_continued(built, tmp_path, monkeypatch):
    _, whole, _ = built
    root = with_data(tmp_path)
    path = root / "models" / "vit-fmnist" / "seed5"
    with monkeypatch.context() as patch:
        CountedSteps(patch, cut_at=7)
        with pytest.raises(KeyboardInterrupt):
            vit_fmnist.build(root, path, 5, RECIPE | {"coarse": RECIPE["coarse"] | {"muon_learning_rate": 0.1}})
    vit_fmnist.build(root, path, 5, RECIPE)
    one, other = (load_file(folder / "grid7" / "model.safetensors") for folder in (path, whole))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_recipe_is_built_by_its_name(tmp_path):
    root = with_data(tmp_path)
    recipe = RECIPE | {name: RECIPE[name] | {"passes": 2, "batch_size": 2} for name in ("coarse", "fine")}
    recipes.build(root, root / "models" / "tiny", "vit-fmnist", 0, recipe)
    assert (root / "models" / "tiny" / "model.safetensors").is_file()


@pytest.mark.skipif(not (DATA / "train.safetensors").is_file(), reason="Fashion-MNIST was not fetched")
def test_pixels_of_the_real_training_images_have_mean_zero_and_deviation_one():
    x = vit_fmnist.pixels(fashion_mnist.load(ROOT, "train")[0], 28)
    assert float(x.mean()) == pytest.approx(0, abs=2e-3)
    assert float(x.std()) == pytest.approx(1, abs=2e-3)
