"""Taps: they see what a model does, and the model does not notice."""

import gc
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTForImageClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenarium.errors import TokenariumError
from tokenarium.methods.vision import pitome
from tokenarium.models import vit_fmnist
from tokenarium.study import open_study, tensors
from tokenarium.study.taps import TensorTaps, record

HIDDEN = ["image", "token", "channel"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ViTForImageClassification(vit_fmnist.config(28)).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def logits(model, pixels):
    return model(pixel_values=pixels).logits


def full(model):
    taps = TensorTaps(model)
    taps.outputs("vit.layers.*", HIDDEN, name="hidden").inputs("classifier", ["image", "channel"])
    return taps.attention("vit.layers.*.attention", ["image", "head", "query", "key"])


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_logits_are_the_same_with_and_without_taps(model, pixels, mode):
    with mode():
        expected = logits(model, pixels)
        with full(model) as taps:
            found = logits(model, pixels)
    assert torch.equal(found, expected)
    assert found.requires_grad == expected.requires_grad
    assert set(taps.dataset()) == {"hidden", "classifier", "attention"}


def test_gradients_flow_past_the_taps(model, pixels):
    def gradient():
        model.zero_grad()
        logits(model, pixels).sum().backward()
        return model.vit.layers[0].mlp.fc1.weight.grad.clone()

    expected = gradient()
    with full(model):
        found = gradient()
    assert torch.equal(found, expected)
    model.zero_grad()


@torch.no_grad()
def test_outputs_are_those_that_the_model_tells_itself(model, pixels):
    with TensorTaps(model).outputs("vit.layers.*", HIDDEN, name="hidden") as taps:
        hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    found = taps.dataset().hidden
    assert found.dims == ("layer", *HIDDEN)
    assert found.layer.values.tolist() == list(range(12))
    for layer in range(12):
        np.testing.assert_array_equal(found.sel(layer=layer), hidden[layer + 1])


@torch.no_grad()
def test_attention_is_that_of_the_eager_model(model, pixels):
    with TensorTaps(model).attention("vit.layers.*.attention", ["image", "head", "query", "key"]) as taps:
        logits(model, pixels)
    found = taps.dataset().attention
    np.testing.assert_allclose(found.sum("key"), 1, rtol=1e-5)
    eager = ViTForImageClassification(vit_fmnist.config(28)).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    with TensorTaps(eager).attention("vit.layers.*.attention", ["image", "head", "query", "key"]) as told:
        expected = eager(pixel_values=pixels, output_attentions=True).attentions
    for layer in range(12):
        np.testing.assert_allclose(found.sel(layer=layer), expected[layer], atol=1e-5)
        np.testing.assert_array_equal(told.dataset().attention.sel(layer=layer), expected[layer])


TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("family", "config", "pattern"),
    [
        (LlamaModel, LlamaConfig(**TEXT, num_attention_heads=4, num_key_value_heads=2), "layers.*.self_attn"),
        (BertModel, BertConfig(**TEXT, num_attention_heads=4), "encoder.layer.*.attention.self"),
    ],
)
@torch.no_grad()
def test_attention_knows_masks_causality_and_shared_keys(family, config, pattern, padded):
    torch.manual_seed(0)
    text = family(config).eval()
    ids = torch.randint(1, 50, (2, 7))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 4:] = 0
    with TensorTaps(text).attention(pattern) as taps:
        text(input_ids=ids, attention_mask=mask)
    text.set_attn_implementation("eager")
    expected = text(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    found = next(iter(taps.dataset().data_vars.values()))
    seen = mask.bool().numpy()
    for layer in range(2):
        for example in range(2):  # what a padding token looks at is nobody's business
            rows = seen[example]
            wanted = expected[layer][example].numpy()[:, rows]
            np.testing.assert_allclose(found.sel(layer=layer)[example].values[:, rows], wanted, atol=1e-5)


def test_nothing_is_left_behind(model, pixels):
    def state():
        return hooks(model), dict(ALL_ATTENTION_FUNCTIONS), pitome.energy

    before = state()  # transformers leaves hooks of its own where hidden states were asked for
    taps = full(model).calls("tokenarium.methods.vision.pitome.energy", ["image", "token"])
    with taps:
        assert hooks(model) == before[0] + 13
        assert pitome.energy is not before[2]
        logits(model, pixels)
    assert state() == before
    with pytest.raises(RuntimeError, match="stopped"), taps:
        raise RuntimeError("stopped")
    assert state() == before


def test_a_block_that_cannot_open_leaves_nothing_behind(model):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

    plain = Plain()
    taps = TensorTaps(plain).outputs("inner", ["a", "b"]).attention("inner", name="attention")
    with pytest.raises(TokenariumError, match="inner is no attention module"), taps:
        pass
    assert hooks(plain) == 0
    record("nothing", torch.zeros(1), ["a"])  # no taps are around


@torch.no_grad()
def test_activations_live_no_longer_than_the_samples(model, pixels):
    seen = []
    watch = model.vit.layers[3].register_forward_hook(lambda module, given, result: seen.append(weakref.ref(result)))
    with TensorTaps(model, examples=1).outputs("vit.layers.*", HIDDEN, name="hidden") as taps:
        logits(model, pixels)
    watch.remove()
    gc.collect()
    assert [each() for each in seen] == [None]
    (piece,) = taps._groups["hidden"][3].pieces
    assert piece.untyped_storage().nbytes() == piece.numel() * 4  # no view of something larger
    kept = weakref.ref(piece)
    del piece, taps
    gc.collect()
    assert kept() is None


@torch.no_grad()
def test_samples_do_not_follow_what_is_done_in_place():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(inplace=True))
    x = torch.randn(5, 2)
    with TensorTaps(net).outputs("0", ["row", "column"], name="linear") as taps:
        net(x)
    np.testing.assert_array_equal(taps.dataset().linear, net[0](x))
    assert (taps.dataset().linear < 0).any()


@torch.no_grad()
def test_batches_are_joined_and_examples_are_the_first_of_all(model, pixels):
    whole = TensorTaps(model).outputs("vit.layers.5", HIDDEN, name="hidden")
    some = TensorTaps(model, examples=2).outputs("vit.layers.5", HIDDEN, name="hidden")
    with whole, some:
        for one in pixels:
            logits(model, one[None])
    assert whole.dataset().hidden.dims == tuple(HIDDEN)
    np.testing.assert_array_equal(some.dataset().hidden, whole.dataset().hidden[:2])
    assert whole.left_out == {}
    assert some.left_out == {"hidden": "1 of 3 along 'image' (examples=2)"}
    assert some.dataset().attrs["left_out"] == "hidden: 1 of 3 along 'image' (examples=2)"
    assert "left out: 1 of 3" in repr(some)


@torch.no_grad()
def test_bytes_are_bounded_and_shared_fairly(model, pixels):
    one = 50 * 64 * 4  # bytes of one image in one layer
    taps = TensorTaps(model, max_bytes=12 * 2 * one + 11).outputs("vit.layers.*", HIDDEN, name="hidden")
    with taps:
        logits(model, pixels)
    assert taps.dataset().hidden.shape == (12, 2, 50, 64)
    assert taps.size == 12 * 2 * one <= taps.max_bytes
    assert taps.left_out["hidden"].startswith("12 of 36 along 'image' at 12 of 12 places (max_bytes=")
    with TensorTaps(model, max_bytes=10).attention("vit.layers.*.attention") as none:
        logits(model, pixels)
    assert list(none.dataset()) == []
    assert none.left_out["attention"].startswith("36 of 36 along 'example'")


@torch.no_grad()
def test_layers_are_chosen_and_named(model, pixels):
    taps = TensorTaps(model).outputs("vit.layers.*.mlp", HIDDEN, only=[0, 11])
    with taps:
        logits(model, pixels)
    assert taps.dataset().mlp.layer.values.tolist() == [0, 11]
    with TensorTaps(model).outputs("vit.**.fc1", HIDDEN, only=["layers.3.mlp"]) as deep:
        logits(model, pixels)
    assert deep.dataset().fc1.layer.values.tolist() == ["layers.3.mlp"]


@pytest.mark.parametrize(
    ("attach", "said"),
    [
        (lambda taps: taps.outputs("vit.layer.*", HIDDEN), r"no module is called 'vit\.layer\.\*'; did you mean vit"),
        (lambda taps: taps.outputs("vit.*.attention", HIDDEN), "no module is called"),  # * is one part of a name
        (lambda taps: taps.outputs("vit.layers.*", HIDDEN, only=[12]), "has no 12"),
        (lambda taps: taps.calls("tokenarium.methods.vision.pitome.enrgy", []), "did you mean energy"),
        (lambda taps: taps.calls("nowhere.to.be.found", []), "give its dotted name"),
        (lambda taps: taps.outputs("vit", HIDDEN).inputs("vit", HIDDEN), "two taps would be called 'vit'"),
        (lambda taps: taps.record("energy", torch.zeros(1), ["token"]), "outside of the block"),
        (lambda taps: TensorTaps().outputs("vit", HIDDEN), "give TensorTaps the model"),
    ],
)
def test_a_wrong_name_is_one_clear_line(model, attach, said):
    with pytest.raises(TokenariumError, match=said) as error:
        attach(TensorTaps(model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dims", "pick", "said"),
    [
        (["image", "token"], None, r"output of vit\.layers\.0 has shape \(3, 50, 64\) but 2 names"),
        (HIDDEN, 7, "vit.layers.0 has no part 7"),
    ],
)
def test_what_does_not_fit_stops_the_run_and_leaves_nothing_behind(model, pixels, dims, pick, said):
    taps, before = TensorTaps(model).outputs("vit.layers.0", dims, pick=pick), hooks(model)
    with pytest.raises(TokenariumError, match=said), taps:
        logits(model, pixels)
    assert hooks(model) == before


@torch.no_grad()
def test_tensors_of_different_shapes_get_variables_of_their_own(model, pixels):
    with TensorTaps(model).outputs("vit.layers.0.mlp.*", HIDDEN, name="mlp") as taps:
        logits(model, pixels)
    found = taps.dataset()
    assert found.mlp_fc1.shape == (3, 50, 256)
    assert found.mlp_fc2.shape == (3, 50, 64)
    with TensorTaps(model).inputs("classifier", ["image", "channel"]) as sliced:
        logits(model, pixels)
        logits(model, pixels[:2])
    assert sliced.dataset().classifier.shape == (5, 64)


def test_calls_of_a_function_are_numbered_wherever_it_was_imported(monkeypatch):
    package = types.ModuleType("tapped")
    package.double = lambda x: (x.shape[0], 2 * x)
    package.double.__name__ = "double"
    user = types.ModuleType("tapped.user")
    user.double = package.double
    monkeypatch.setitem(sys.modules, "tapped", package)
    monkeypatch.setitem(sys.modules, "tapped.user", user)
    original = package.double
    with TensorTaps().calls("tapped.double", ["row"]) as taps:
        package.double(torch.ones(2))
        user.double(torch.full((2,), 3.0))
    assert taps.dataset().double.dims == ("call", "row")
    assert taps.dataset().double.values.tolist() == [[2, 2], [6, 6]]
    assert package.double is user.double is original


def test_methods_of_a_class_are_wrapped_and_put_back(monkeypatch):
    class Base:
        @staticmethod
        def one(x):
            return x

        def two(self, x):
            return x + 1

    class Child(Base):
        pass

    home = types.ModuleType("tapped")
    home.Child = Child
    monkeypatch.setitem(sys.modules, "tapped", home)
    with TensorTaps().calls("tapped.Child.one", ["a"]).calls("tapped.Child.two", ["a"]) as taps:
        Child.one(torch.ones(1))
        Child().two(torch.ones(1))
    assert [taps.dataset()[name].item() for name in ("one", "two")] == [1, 2]
    assert [name for name in ("one", "two") if name in vars(Child)] == []


def test_a_method_hands_tensors_over_without_knowing_the_taps():
    def method(x):
        record("squares", x**2, ["row"])
        return x

    taps = TensorTaps(examples=2)
    for _ in range(2):  # a second block starts anew
        with taps:
            method(torch.tensor([1.0, 2.0, 3.0]))
            method(torch.tensor([4.0, 5.0, 6.0]))
        assert taps.dataset().squares.values.tolist() == [[1, 4], [16, 25]]
    method(torch.ones(1))
    assert taps.dataset().squares.sizes == {"call": 2, "row": 2}


def test_samples_are_looked_at_after_the_block(model):
    taps = TensorTaps(model)
    with taps:
        with pytest.raises(TokenariumError, match="still open"):
            taps.dataset()
        with pytest.raises(TokenariumError, match="open already"), taps:
            pass


@torch.no_grad()
def test_samples_become_a_studys_tensors(model, pixels, project):
    study = open_study("tiny", root=project)
    for name, value in (("gain", 2.0), ("top1", 90.0)):
        study.metric(name, value, (value, value), how="by hand")
    with TensorTaps(model, examples=2).outputs("vit.layers.*", HIDDEN, name="hidden", only=[1, 3]) as taps:
        logits(model, pixels)
    taps.save(study)
    study.finish()
    opened = tensors("tiny", project).hidden
    np.testing.assert_array_equal(opened.sel(layer=3), taps.dataset().hidden.sel(layer=3))
    assert opened.attrs["long_name"].startswith("output of vit.layers.1 to vit.layers.3; left out: ")


@pytest.mark.parametrize("options", [{"examples": 0}, {"max_bytes": 0}])
def test_limits_are_positive(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TensorTaps(**options)
