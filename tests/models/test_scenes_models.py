"""clip-scenes and llava-scenes: what they open as, packed turns against the model itself, trainings that are cut."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tokenarium import models as recipes
from tokenarium.data import scenes
from tokenarium.errors import TokenariumError
from tokenarium.models import clip_scenes, llava_scenes

FIT = {
    "muon_learning_rate": 0.01,
    "adamw_learning_rate": 0.003,
    "weight_decay": 0.05,
    "clip": 1.0,
    "warmup": 0.1,
    "floor": 0.02,
    "checkpoint_every": 2,
    "precision": "no",
    "pages": 0.3,
}
CLIP = {**FIT, "layers": 2, "width": 32, "text_layers": 1, "projection": 16, "steps": 5, "batch_size": 4, "held_out": 6}
LLAVA = {
    **FIT,
    "tower": "models/clip-scenes",
    "whitening": 4,
    "layers": 2,
    "width": 32,
    "intermediate": 48,
    "steps": 5,
    "curriculum": [
        {"until": 0.5, "items": [1, 3], "pages": 0.0, "batch_size": 2, "questions": 5, "descriptions": 1},
        {"until": 1.0, "items": [1, 8], "pages": 0.3, "batch_size": 2, "questions": 4, "descriptions": 2},
    ],
    "held_out": 2,
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit-for-bit repetition is promised where every kernel is deterministic."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both models, never interrupted; returns the root."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # this runs before the fixture above
        recipes.build(root, root / "models/clip-scenes", "clip-scenes", 0, CLIP)
        recipes.build(root, root / "models/llava-scenes/seed3", "llava-scenes", 3, LLAVA)
    return root


@pytest.fixture(scope="module")
def llava(built):
    return LlavaForConditionalGeneration.from_pretrained(built / "models/llava-scenes/seed3").eval()


def cut(monkeypatch, owner, name, cut_at):
    """Cut the power at one call of a function that each step calls once."""
    function, calls = getattr(owner, name), []

    def stand_in(*args, **kwargs):
        calls.append(name)
        if len(calls) == cut_at + 1:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, stand_in)


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


# The tower


def test_the_tower_opens_as_clip_with_its_tokenizer_and_image_processor(built):
    path = built / "models/clip-scenes"
    model, words = CLIPModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    scene = scenes.scene("held-out", 1)
    ids = words([scene.caption(), "a red circle"], padding=True, return_tensors="pt")
    assert ids["input_ids"][:, 0].tolist() == [3, 3]
    assert (ids["input_ids"] != words.unk_token_id).all()
    assert words.decode(ids["input_ids"][1], skip_special_tokens=True) == "a red circle"
    processed = CLIPImageProcessor.from_pretrained(path)(scene.draw(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processed, clip_scenes.pixels(scene.draw()[None]))
    with torch.no_grad():
        output = model(**ids, pixel_values=processed)
        pictures, patches = clip_scenes.image_embeddings(model, processed)
        texts = clip_scenes.text_embeddings(model, ids["input_ids"])
    assert patches.shape == (1, 144, 16)
    torch.testing.assert_close(pictures, output.image_embeds)
    torch.testing.assert_close(texts, output.text_embeds)


def test_a_longer_padding_changes_no_text(built):
    model = CLIPModel.from_pretrained(built / "models/clip-scenes").eval()
    words = clip_scenes.tokenizer(end=True)
    alone, padded = (words(["the K"], padding="max_length", max_length=n, return_tensors="pt") for n in (4, 20))
    with torch.no_grad():
        one, other = (clip_scenes.text_embeddings(model, ids["input_ids"]) for ids in (alone, padded))
    torch.testing.assert_close(one, other)


def test_regions_lie_on_their_items_and_match_the_phrases_that_are_true_of_them():
    words = clip_scenes.tokenizer(end=True)
    batch = clip_scenes.make_batch("train", 3, 5, 0.4, words)
    made = [scenes.scene("train", 15 + place, pages=0.4) for place in range(5)]
    texts = [words.decode(ids, skip_special_tokens=True) for ids in batch.phrases]
    items = 0
    for picture, patch, matches in zip(batch.picture.tolist(), batch.patch.tolist(), batch.matches, strict=True):
        scene = made[picture]
        masks = scene.masks().reshape(len(scene.items), -1)
        on = [item for item, mask in zip(scene.items, masks, strict=True) if mask[patch]]
        items += bool(on)
        for text, match in zip(texts, matches.tolist(), strict=True):
            told = set(text.split())
            # Letters of a page share no patch with another item, items of a scene seldom do.
            true = [
                all(getattr(item, name) in told or not told & set(every) for name, every in _EVERY.items())
                and (not told & {"left", "center", "right"} or item.place in text)
                for item in on
            ]
            assert match in (true or [False])
    assert items > 10
    assert batch.matches.any(0).all()


_EVERY = {"color": scenes.COLORS, "noun": scenes.NOUNS, "size": scenes.SIZES}


def test_the_first_positions_are_nearest_to_their_neighbours():
    model = CLIPModel(clip_scenes.clip_config(layers=1, width=64))
    clip_scenes.start_positions(model)
    table = model.vision_model.embeddings.position_embedding.weight.detach()[1:]
    row, column = 5, 7
    distance = (table - table[row * 12 + column]).norm(dim=1).reshape(12, 12)
    near = {tuple(divmod(int(place), 12)) for place in distance.flatten().argsort()[:5]}
    assert near == {(row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)}


def test_training_the_tower_lowers_its_loss(tmp_path):
    recipe = CLIP | {"steps": 40, "batch_size": 8, "pages": 0.0}
    clip_scenes.build(tmp_path, tmp_path / "models/clip-scenes", 0, recipe)
    losses = json.loads((tmp_path / "models/clip-scenes/training.json").read_text())["loss_every_10_steps"]
    assert losses[-1] < losses[0] - 1


# The vision-language model


def test_the_model_opens_with_an_ordinary_processor_and_answers(built, llava):
    path = built / "models/llava-scenes/seed3"
    processor = LlavaProcessor.from_pretrained(path)
    evaluation = scenes.evaluation(1)
    for scene, question in zip(evaluation.scenes, evaluation.questions, strict=True):
        inputs = processor(text=question.prompt, images=scene.draw(), return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        assert ids.count(llava.config.image_token_id) == 144
        assert ids[:13] == processor.tokenizer(scenes.SYSTEM)["input_ids"]
        assert ids[13:157] == [llava.config.image_token_id] * 144
        assert processor.tokenizer.decode(ids[157:]) == f"{question.text} {scenes.CUE}"
        torch.testing.assert_close(inputs["pixel_values"], clip_scenes.pixels(scene.draw()[None]))
        written = llava.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert written.shape[1] <= len(ids) + 2


def test_the_tower_stays_as_it_was(built, llava):
    before = CLIPModel.from_pretrained(built / "models/clip-scenes").vision_model.state_dict()
    after = llava.model.vision_tower.state_dict()
    assert len(before) == len(after)
    for name, value in after.items():
        assert torch.equal(value, before[name.removeprefix("vision_model.")]), name


@torch.no_grad()
def test_packed_turns_read_as_the_model_reads_each_alone(llava):
    processor, words = llava_scenes.processor(), clip_scenes.tokenizer(end=False)
    made = [scenes.scene("packed", index) for index in range(2)]
    rng = random.Random(0)
    asked = [scenes.draw(scenes.questions(scene, rng), rng, 5) for scene in made]
    pictures = np.stack([scene.draw() for scene in made])
    features = llava.model.vision_tower(pixel_values=clip_scenes.pixels(pictures), output_hidden_states=True)
    prefix = llava_scenes.prefix_embeddings(llava, features.hidden_states[-2][:, 1:], words)
    batch = llava_scenes.pack(asked, [[157] * 5] * 2, words)
    packed = llava_scenes.turn_logits(llava, prefix, batch).view(2, 5, 2, -1)
    for number, row in enumerate(asked):
        ordered = sorted(row, key=lambda question: len(question.text.split()))
        for place, question in enumerate(ordered):
            inputs = processor(
                text=f"{question.prompt} {question.answer}", images=pictures[number], return_tensors="pt"
            )
            alone = llava(**inputs).logits[0, -2:]
            torch.testing.assert_close(packed[number, place], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_turns_at_later_positions_read_as_if_the_ids_were_given(llava):
    processor, words = llava_scenes.processor(), clip_scenes.tokenizer(end=False)
    evaluation = scenes.evaluation(1)
    question, picture = evaluation.questions[3], evaluation.images[3:4]
    features = llava.model.vision_tower(pixel_values=clip_scenes.pixels(picture), output_hidden_states=True)
    prefix = llava_scenes.prefix_embeddings(llava, features.hidden_states[-2][:, 1:], words)
    packed = llava_scenes.turn_logits(llava, prefix, llava_scenes.pack([[question]], [[200]], words))
    inputs = processor(text=question.prompt, images=picture[0], return_tensors="pt")
    positions = torch.arange(inputs["input_ids"].shape[1])
    positions[157:] += 43
    alone = llava(**inputs, position_ids=positions[None]).logits[0, -1]
    torch.testing.assert_close(packed[0], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pruned_and_blind_answers_are_those_of_the_model_without_the_tokens(llava):
    chosen = scenes.evaluation(4)
    processor = llava_scenes.processor()
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(len(chosen), 144, generator=generator).argsort(1)[:, :8].sort(1).values
    answers = {"full": [], "pruned": [], "blind": []}
    for scene, question, kept in zip(chosen.scenes, chosen.questions, keep, strict=True):
        inputs = processor(text=question.prompt, images=scene.draw(), return_tensors="pt")
        ids = inputs["input_ids"][0]
        embedded = llava.model.language_model.embed_tokens(ids)
        picture = llava.model.get_image_features(
            inputs["pixel_values"], vision_feature_layer=-2, vision_feature_select_strategy="default"
        ).pooler_output[0]
        for name, part in {"full": picture, "pruned": picture[kept], "blind": picture[:0]}.items():
            sequence = torch.cat([embedded[:13], part, embedded[157:]])
            best = llava(inputs_embeds=sequence[None]).logits[0, -1].argmax()
            answers[name].append(processor.tokenizer.decode([best]) == question.answer)
    assert llava_scenes.correct(llava, chosen, batch_size=7).tolist() == answers["full"]
    assert llava_scenes.correct(llava, chosen, keep).tolist() == answers["pruned"]
    assert llava_scenes.correct(llava, chosen, blind=True).tolist() == answers["blind"]


def test_the_gate_wants_all_three_margins(monkeypatch, llava):
    chosen = scenes.evaluation(20)

    def pretend(full, blind, pruned):
        def correct(model, chosen, keep=None, blind_=False, blind_share=blind, **options):
            share = pruned if keep is not None else blind_share if options.get("blind") else full
            return torch.arange(len(chosen)) < share * len(chosen)

        monkeypatch.setattr(llava_scenes, "correct", correct)
        return llava_scenes.gate(llava, chosen)

    passing = pretend(0.9, 0.3, 0.6)
    assert passing["passes"]
    assert passing["accuracies"]["full"]["all"] == pytest.approx(0.9)
    assert set(passing["accuracies"]["blind"]) == {"all", *scenes.FAMILIES}
    assert not pretend(0.79, 0.3, 0.6)["passes"]
    assert not pretend(0.9, 0.66, 0.6)["passes"]
    assert not pretend(0.9, 0.3, 0.81)["passes"]


def test_training_learns_what_answers_look_like(built):
    lesson = {"until": 1.0, "items": [1, 8], "pages": 0.0, "batch_size": 4, "questions": 10, "descriptions": 0}
    recipe = LLAVA | {"steps": 40, "curriculum": [lesson], "width": 64}
    llava_scenes.build(built, built / "models/llava-scenes/longer", 0, recipe)
    losses = json.loads((built / "models/llava-scenes/longer/training.json").read_text())["loss_every_10_steps"]
    assert losses[0] > 4
    assert losses[-1] < 3


# Interruptions


@pytest.mark.parametrize("cut_at", [0, 3])
def test_a_resumed_tower_equals_an_uninterrupted_one_bit_for_bit(built, tmp_path, monkeypatch, cut_at):
    path = tmp_path / "models/clip-scenes"
    with monkeypatch.context() as patch:
        cut(patch, clip_scenes, "loss_of", cut_at)
        with pytest.raises(KeyboardInterrupt):
            clip_scenes.build(tmp_path, path, 0, CLIP)
    assert not path.exists()
    torch.manual_seed(99)
    clip_scenes.build(tmp_path, path, 0, CLIP)
    assert same_files(path, built / "models/clip-scenes")
    assert not list((tmp_path / ".tokenarium").rglob("*.safetensors"))


@pytest.mark.parametrize("cut_at", [0, 3])
def test_a_resumed_vision_language_model_equals_an_uninterrupted_one_bit_for_bit(built, monkeypatch, cut_at):
    path = built / "models" / f"again{cut_at}" / "seed3"
    with monkeypatch.context() as patch:
        cut(patch, llava_scenes, "turn_logits", cut_at)
        with pytest.raises(KeyboardInterrupt):
            llava_scenes.build(built, path, 3, LLAVA)
    assert not path.exists()
    torch.manual_seed(99)
    llava_scenes.build(built, path, 3, LLAVA)
    assert same_files(path, built / "models/llava-scenes/seed3")


def test_a_missing_tower_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="dvc repro model@clip-scenes"):
        llava_scenes.build(tmp_path, tmp_path / "models/llava-scenes/seed3", 3, LLAVA)
