"""Checkpoints of a stand-in hub, by the ordinary calls, as a study asks for them."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertModel,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTForImageClassification,
)

from tokenarium.errors import TokenariumError
from tokenarium.run.gpu import CONTEXT
from tokenarium.study.loading import ATTENTION, load_pretrained

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def standin():
    """tests/hub_standin.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS)
        import hub_standin
    return hub_standin


@pytest.fixture(scope="module")
def folders(standin, tmp_path_factory):
    """A folder with a checkpoint of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    standin.save_deit(root / "deit")
    standin.save_minilm(root / "minilm")
    standin.save_llama(root / "llama")
    return root


@pytest.fixture
def study():
    return types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, lease=None)


CLASSES = {"deit": ViTForImageClassification, "minilm": AutoModel, "llama": AutoModelForCausalLM}
REAL = {"deit": ViTForImageClassification, "minilm": BertModel, "llama": LlamaForCausalLM}


@pytest.mark.parametrize("uses", ATTENTION)
@pytest.mark.parametrize("name", CLASSES)
def test_the_attention_is_the_one_that_the_method_needs(folders, study, name, uses):
    model = load_pretrained(study, CLASSES[name], str(folders / name), uses=uses)
    assert type(model) is REAL[name]
    assert model.config._attn_implementation == ATTENTION[uses]
    assert not model.training
    assert model.device == study.device


@pytest.mark.parametrize("name", CLASSES)
def test_a_method_that_reads_attention_weights_gets_them(folders, study, name):
    model = load_pretrained(study, CLASSES[name], str(folders / name), uses="weights")
    inputs = {"pixel_values": torch.zeros(2, 3, 56, 56)} if name == "deit" else {"input_ids": torch.ones(2, 5).long()}
    attentions = model(**inputs, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(attentions[0].shape[:-1]))


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_the_dtype_is_the_studys_unless_another_is_asked_for(folders, study, dtype, expected):
    assert load_pretrained(study, AutoModel, str(folders / "minilm"), uses="nothing", dtype=dtype).dtype == expected
    study.dtype = torch.float64
    assert load_pretrained(study, AutoModel, str(folders / "minilm"), uses="nothing").dtype == torch.float64


def test_the_weights_are_those_of_the_checkpoint(folders, study):
    ours = load_pretrained(study, AutoModelForCausalLM, str(folders / "llama"), uses="nothing").state_dict()
    theirs = LlamaForCausalLM.from_pretrained(folders / "llama", dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("uses", ["weight", "flash"])
def test_an_unknown_use_is_named(study, uses):
    with pytest.raises(TokenariumError, match=f"unknown use of attention '{uses}'; known: weights, mask, nothing"):
        load_pretrained(study, AutoModel, "x", uses=uses)


def test_a_checkpoint_that_is_not_there_is_one_line(study, tmp_path):
    with pytest.raises(TokenariumError, match=r"cannot load .*nowhere: ") as error:
        load_pretrained(study, AutoModel, str(tmp_path / "nowhere"), uses="nothing", local_files_only=True)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_refused(folders, study, tmp_path):
    (tmp_path / "config.json").write_text((folders / "minilm" / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TokenariumError, match="cannot load"):
        load_pretrained(study, AutoModel, str(tmp_path), uses="nothing", local_files_only=True)


def test_an_attention_that_the_class_lacks_is_one_line(study, folders, monkeypatch):
    monkeypatch.setattr(BertModel, "_supports_sdpa", False)
    with pytest.raises(TokenariumError, match=r"cannot load .*minilm: .*scaled_dot_product_attention") as error:
        load_pretrained(study, BertModel, str(folders / "minilm"), uses="mask")
    assert "\n" not in str(error.value)


class Asked(PreTrainedModel):
    """A model class that only tells what it was asked for."""

    @classmethod
    def from_pretrained(cls, name, **options):
        return types.SimpleNamespace(eval=lambda: options)


def test_a_model_larger_than_the_lease_is_spread_by_accelerate_within_it(study, monkeypatch):
    study.device = torch.device("cuda")
    study.lease = types.SimpleNamespace(need=10_000 + CONTEXT)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    options = load_pretrained(study, Asked, "large", uses="nothing", spread=True)
    assert options["device_map"] == "auto"
    assert options["max_memory"][1] == 9_000 * 2**20
    assert options["max_memory"]["cpu"] > 0
    assert load_pretrained(study, Asked, "large", uses="nothing")["device_map"] == {"": study.device}


def test_without_a_gpu_nothing_is_spread(study):
    assert load_pretrained(study, Asked, "large", uses="nothing", spread=True)["device_map"] == {"": study.device}


def test_code_of_a_checkpoint_never_runs(study):
    options = load_pretrained(study, Asked, "large", uses="nothing")
    assert options["trust_remote_code"] is False
    assert options["use_safetensors"] is True


def test_names_of_the_hub_are_found_in_the_stand_in(standin, tmp_path):
    """In a process of its own, because the clients read where their cache is when they are imported."""
    code = """
import types, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, ViTForImageClassification
from datasets import load_dataset
from tokenarium.study.loading import load_pretrained
study = types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, lease=None)
load_pretrained(study, ViTForImageClassification, "facebook/deit-small-patch16-224", uses="weights")
encoder = load_pretrained(study, AutoModel, "sentence-transformers/all-MiniLM-L6-v2", uses="nothing")
tokenizer = AutoTokenizer.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
assert encoder(**tokenizer(["A cat."], return_tensors="pt")).last_hidden_state.isfinite().all()
load_pretrained(study, AutoModelForCausalLM, "stand-in/llama", uses="mask", revision="main")
rows = load_dataset("imagenet-1k", split="validation")
assert {row["image"].mode for row in rows} == {"RGB", "L"} and rows[3]["label"] == 3
"""
    environment = os.environ | standin.make_hub(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
