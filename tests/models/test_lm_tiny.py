"""lm-tiny and hypernet-tiny: what they are trained on, and trainings that end the same however often they are cut."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenarium import models as recipes
from tokenarium.data import libreoffice_help, man_pages, python_source, text
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import zett
from tokenarium.models import hypernet_tiny, lm_tiny

WORDS = ["cell", "sheet", "open", "the", "file", "and", "format", "a", "menu", "chart", "value", "für", "τιμή"]
RECIPE = {
    "vocab_size": 300,
    "layers": 1,
    "width": 32,
    "context": 16,
    "bytes": {"en-US": 3000, "python": 500, "tr": 500},
    "held_out_bytes": {"en-US": 300},
    "steps": 6,
    "batch_size": 2,
    "muon_learning_rate": 0.01,
    "adamw_learning_rate": 0.004,
    "weight_decay": 0.05,
    "clip": 1.0,
    "warmup": 0.1,
    "floor": 0.1,
    "checkpoint_every": 2,
}
FIT = {"warmup": 0.1, "floor": 0.1, "clip": 0.1, "checkpoint_every": 2}
HYPERNET = {
    "base": "models/lm-tiny",
    "maxlen": 3,
    "hidden": 64,
    "feed_forward": 16,
    "layers": 1,
    "vocabulary": 20,
    "max_len": 16,
    "stride": 4,
    "pool": 2,
    "passage": 60,
    "batch_size": 2,
    "tokens": 20,
    "lexical": 0.5,
    "learning_rate": 0.001,
    "identity": {"steps": 3, **FIT},
    "language_model": {"steps": 4, **FIT},
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit-for-bit repetition is promised where every kernel is deterministic."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * (place + 3) + place) % len(WORDS)] for place in range(8))


def with_data(root: Path) -> Path:
    """Small corpora below `root`."""
    paragraphs = [(f"page{number // 3}#p{number}", sentence(number)) for number in range(180)]
    languages = {language: paragraphs for language in ("en-US", "tr")}
    text.write(root / "data" / libreoffice_help.DATASET.name, languages)
    text.write(root / "data" / man_pages.DATASET.name, {"en": paragraphs})
    text.write(
        root / "data" / python_source.DATASET.name,
        {"python": [(f"{n}.py", f"# {n}\n" + sentence(n) * 3) for n in range(40)]},
    )
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both models of seed 3, never interrupted; returns the root."""
    root = with_data(tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # this runs before the fixture above
        recipes.build(root, root / "models/lm-tiny/seed3", "lm-tiny", 3, RECIPE)
        recipes.build(root, root / "models/hypernet-tiny/seed3", "hypernet-tiny", 3, HYPERNET)
    return root


class Cut:
    """Stands in for a function that each step calls once, and cuts the power at one of its calls."""

    def __init__(self, monkeypatch, owner, name, cut_at):
        self.calls, self.cut_at, self.function = 0, cut_at, getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args):
        if self.calls == self.cut_at:
            raise KeyboardInterrupt
        self.calls += 1
        return self.function(*args)


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


# Texts


def test_documents_are_whole_pages_of_one_split_until_the_bytes_are_there(tmp_path):
    root = with_data(tmp_path)
    held = {row["id"].split("#")[0] for row in libreoffice_help.load(root, "tr", "train")}
    chosen = lm_tiny.documents(root, {"tr": 400})
    assert sum(len(page.encode()) for page in chosen) >= 400
    assert sum(len(page.encode()) for page in chosen[:-1]) < 400
    pages = {}
    for row in libreoffice_help.load(root, "tr"):
        pages.setdefault(row["id"].split("#")[0], []).append(row["text"])
    assert set(chosen) <= {"\n".join(pages[name]) for name in held}
    everything = lm_tiny.documents(root, {"tr": 10**9})
    assert len(everything) == len(held)
    assert everything[: len(chosen)] == chosen


def test_no_document_of_another_split_is_trained_on(tmp_path):
    root = with_data(tmp_path)
    by_split = {split: set(lm_tiny.documents(root, {"python": 10**9}, split)) for split in text.SPLITS}
    assert all(by_split.values())
    assert not by_split["train"] & (by_split["validation"] | by_split["test"])


def test_passages_hold_all_of_a_text_but_its_short_end():
    words = " ".join(f"word{number}" for number in range(100))
    passages = hypernet_tiny.passages_of([words, "short"], 60)
    assert all(30 <= len(passage) <= 60 for passage in passages)
    assert words.startswith(" ".join(passages))
    assert len(words) - len(" ".join(passages)) <= 31


# What is built


def test_a_built_model_opens_with_its_tokenizer_and_gives_every_text_back(built):
    path = built / "models/lm-tiny/seed3"
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    assert len(tokenizer) == model.config.vocab_size <= 300
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, model.config.tie_word_embeddings) == (0, 1, False)
    for line in ("open the file", "  für\n\tτιμή  ", "not in any text: 7 ✓"):
        ids = tokenizer(line)["input_ids"]
        assert ids == tokenizer.encode(line, add_special_tokens=False)
        assert tokenizer.decode(ids) == line
    held_out = lm_tiny.documents(built, RECIPE["held_out_bytes"], "validation")
    training = json.loads((path / "training.json").read_text())
    assert lm_tiny.bits_per_byte(model.eval(), tokenizer, held_out) == pytest.approx(training["held_out_bits_per_byte"])


def test_bits_per_byte_count_every_token_once(built):
    path = built / "models/lm-tiny/seed3"
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    line = sentence(5) * 4
    ids = tokenizer.encode(line)
    assert len(ids) > 2 * 15
    nats = 0.0
    for place, token in enumerate(ids):
        begin = place - place % 15
        with torch.no_grad():
            logits = model(torch.tensor([[0, *ids[begin:place]]])).logits[0, -1]
        nats -= float(logits.log_softmax(-1)[token])
    found = lm_tiny.bits_per_byte(model, tokenizer, [line])
    assert found == pytest.approx(nats / math.log(2) / len(line.encode()), rel=1e-4)


def test_training_lowers_the_loss(tmp_path):
    root = with_data(tmp_path)
    recipe = RECIPE | {"steps": 60, "batch_size": 8}
    lm_tiny.build(root, root / "models/lm-tiny/seed0", 0, recipe)
    losses = json.loads((root / "models/lm-tiny/seed0/training.json").read_text())["loss_every_10_steps"]
    assert len(losses) == 6
    assert losses[0] > 5
    assert losses[-1] < 3.5


def test_a_built_hypernetwork_opens_and_keeps_its_snapshots(built):
    path = built / "models/hypernet-tiny/seed3"
    assert list(hypernet_tiny.snapshots(path)) == [0, 2, 4]
    last, first = (hypernet_tiny.load(path, name) for name in ("model.safetensors", "step-00000.safetensors"))
    final = hypernet_tiny.load(path, "step-00004.safetensors")
    assert all(torch.equal(value, final.params[name]) for name, value in last.params.items())
    moved = {name for name, value in last.params.items() if not torch.equal(value, first.params[name])}
    # A bias on all keys shifts each row of scores alike, so the softmax gives it no gradient.
    trained = {name for name in last.params if zett.is_trained(name) and not name.endswith("self.key.bias")}
    assert trained <= moved
    assert not {name for name in moved if not zett.is_trained(name)}
    config = json.loads((path / "config.json").read_text())
    assert config == {"maxlen": 3, "hidden": 64, "feed_forward": 16, "layers": 1, "pad_id": 1}


def test_the_vocabulary_of_a_step_comes_from_the_latest_batches_alone(built):
    base = built / "models/lm-tiny/seed3"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)._tokenizer
    passages = [sentence(number) for number in range(30)]
    lessons = [hypernet_tiny.Lessons(None, model, tokenizer, passages, 3, HYPERNET) for _ in range(2)]
    for step in range(4):
        lessons[0].draw(step)  # what came before changes nothing
    pieces, texts = lessons[0].draw(4)
    assert (pieces, texts) == lessons[1].draw(4)
    assert all(line[0] == " " and line[1:] in passages for line in texts)
    latest = [*lessons[1]._texts(4), *lessons[1]._texts(5)]
    known = set(zett.substring_scores(word for line in latest for word in zett.byte_words(line)))
    best = [name for name, _ in pieces[: HYPERNET["vocabulary"]]]
    assert set(best) <= known


def test_padding_puts_the_start_in_front_and_cuts_what_is_too_long():
    pieces = zett.sample_unigram(zett.byte_words("a b a b"), 5)
    ids, used = hypernet_tiny.padded(zett.unigram_tokenizer(pieces), ["a", "a b a b a b"], 4)
    assert ids.shape == used.shape == (2, 4)
    assert ids[:, 0].tolist() == [0, 0]
    assert used.tolist() == [[True, True, False, False], [True] * 4]
    assert pieces[int(ids[0, 1]) - 1][0] == "a"


# Interruptions


@pytest.mark.parametrize("cut_at", [0, 3, 5])
def test_a_resumed_language_model_equals_an_uninterrupted_one_bit_for_bit(built, tmp_path, monkeypatch, cut_at):
    root = with_data(tmp_path)
    path = root / "models/lm-tiny/seed3"
    with monkeypatch.context() as patch:
        Cut(patch, lm_tiny, "causal_loss", cut_at)
        with pytest.raises(KeyboardInterrupt):
            lm_tiny.build(root, path, 3, RECIPE)
    assert not path.exists()
    torch.manual_seed(99)
    lm_tiny.build(root, path, 3, RECIPE)
    assert same_files(path, built / "models/lm-tiny/seed3")
    assert not list((root / ".tokenarium").rglob("*.safetensors"))


@pytest.mark.parametrize(("stage", "cut_at"), [("identity", 2), ("language_model", 0), ("language_model", 3)])
def test_a_resumed_hypernetwork_equals_an_uninterrupted_one_bit_for_bit(built, monkeypatch, tmp_path, stage, cut_at):
    path = built / "models/hypernet-tiny-again" / "seed3"
    method = getattr(hypernet_tiny.Lessons, stage)
    calls = []

    def cut(self, step):
        calls.append(step)
        if len(calls) == cut_at + 1:
            raise KeyboardInterrupt
        return method(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(hypernet_tiny.Lessons, stage, cut)
        with pytest.raises(KeyboardInterrupt):
            hypernet_tiny.build(built, path, 3, HYPERNET)
    assert not path.exists()
    torch.manual_seed(99)
    hypernet_tiny.build(built, path, 3, HYPERNET)
    same = built / "models/hypernet-tiny/seed3"
    assert sorted(each.name for each in path.iterdir()) == sorted(each.name for each in same.iterdir())
    for name in (each.name for each in path.glob("*.safetensors")):
        one, other = load_file(path / name), load_file(same / name)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="dvc repro model@lm-tiny-seed3"):
        hypernet_tiny.build(tmp_path, tmp_path / "models/hypernet-tiny/seed3", 3, HYPERNET)
    with pytest.raises(TokenariumError, match="dvc repro model@hypernet-tiny-seed3"):
        hypernet_tiny.load(tmp_path / "models/hypernet-tiny/seed3")
