import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from tokenarium.data import scenes
from tokenarium.errors import TokenariumError
from tokenarium.methods.vlm.baselines import Random
from tokenarium.methods.vlm.fastv import FastV
from tokenarium.methods.vlm.harness import DEV, Method, Runner, decode, evaluate, open_substrate, select
from tokenarium.methods.vlm.harness.substrate import plain, split_prompt
from tokenarium.methods.vlm.harness.tiny import tiny_model, tiny_processor

PARAMETERS = {"model": "tiny", "data": "scenes", "questions": 7}


@pytest.fixture(scope="module")
def substrate():
    return open_substrate(None, PARAMETERS, seed=0)


def test_questions_are_the_shared_list_with_their_answers_and_relevant_patches(substrate):
    evaluation = scenes.evaluation(2)
    assert len(substrate.questions) == 7
    tokenizer = substrate.processor.tokenizer
    for index, question in enumerate(substrate.questions):
        assert question.family == scenes.FAMILIES[index % 5]
        assert tokenizer.decode(question.answer) == evaluation.questions[index].answer
        assert tokenizer.decode(question.after).split()[-question.cue :] == [scenes.CUE]
        np.testing.assert_array_equal(question.relevant, evaluation.relevant[index])
    np.testing.assert_array_equal(substrate.images, evaluation.images[:7])


def test_ids_around_the_image_are_those_that_the_processor_makes(substrate):
    evaluation, model = scenes.evaluation(2), substrate.model
    for question, asked, picture in zip(substrate.questions, evaluation.questions, evaluation.images, strict=False):
        batch = substrate.processor(text=asked.prompt, images=picture, return_tensors="pt")
        ids = [*question.before, *[model.config.image_token_id] * 144, *question.after]
        assert batch["input_ids"][0].tolist() == ids
        torch.testing.assert_close(batch["pixel_values"], substrate.pixels([question.image]))


def test_prompts_split_at_a_run_of_image_tokens():
    assert split_prompt([3, 9, 4, 4, 4, 8], 4) == ((3, 9), (8,))
    assert split_prompt([4], 4) == ((), ())
    with pytest.raises(ValueError, match="no image token"):
        split_prompt([1, 2], 4)


def test_other_lists_hold_other_questions():
    first, dev = (open_substrate(None, PARAMETERS, seed=0, stream=stream) for stream in ("evaluation", DEV))
    pages = open_substrate(None, PARAMETERS, seed=0, pages=True)
    assert not np.array_equal(first.images, dev.images)
    assert len(pages.questions) == 7


def test_seeds_are_different_models_and_the_same_again():
    weights = [open_substrate(None, PARAMETERS, seed=seed).model.lm_head.weight for seed in (0, 1, 0)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_tower_kept_for_all_images_sees_what_it_sees_of_one(substrate, monkeypatch):
    kept = substrate.states([4, 1])
    monkeypatch.setattr("tokenarium.methods.vlm.harness.substrate.CACHE_BYTES", 0)
    torch.testing.assert_close(substrate.states([4, 1]), kept, atol=1e-4, rtol=0)


def test_a_model_that_was_not_made_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="dvc repro model@llava-scenes-seed1"):
        open_substrate(tmp_path, PARAMETERS | {"model": "llava-scenes"}, seed=1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A checkpoint and a data set as profile gpu finds them, tiny and random: (model, data) folders."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_model(3).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    pictures = list(scenes.evaluation(2).images[:6])
    rows = {
        "image": pictures,
        "question": [f"is there {'a ring' if i % 2 else 'the red circle'} ?" for i in range(6)],
        "answer": ["Yes", "no"] * 3,
        "category": ["random", "popular"] * 3,
    }
    features = Features({"image": Image(), **{name: Value("string") for name in ("question", "answer", "category")}})
    (folder / "data").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "test-0.parquet")
    return str(folder / "model"), str(folder / "data")


def test_the_same_runner_drives_a_checkpoint_and_a_data_set_of_the_hub(hub):
    model, data = hub
    substrate = open_substrate(None, {"model": model, "data": data, "questions": 5}, seed=0)
    assert substrate.families.tolist() == ["random", "popular", "random", "popular", "random"]
    for method in (Method(), Random(budget=16), FastV(keep=16)):
        together, apart = (evaluate(substrate, method, batch_size=size) for size in (4, 1))
        np.testing.assert_allclose(together["log_probability"], apart["log_probability"], atol=1e-4)
        assert together["correct"].tolist() == apart["correct"].tolist()


def test_free_answers_are_those_that_the_model_generates(hub):
    model, data = hub
    substrate = open_substrate(None, {"model": model, "data": data, "questions": 6}, seed=0)
    substrate.model.generation_config.eos_token_id = substrate.processor.tokenizer.eos_token_id
    runner = Runner(substrate.model, Method())
    for question in substrate.questions[:3]:
        (batch,) = runner.read_prompts([question], select(substrate, Method(), [question]), 144)
        (found,) = decode(substrate, runner, batch, runner.logits(batch.hidden[:, -1:]), tokens=6)
        ids = torch.tensor([[*question.before, *[4] * 144, *question.after]])
        made = substrate.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=substrate.pixels([question.image]),
            max_new_tokens=6,
            do_sample=False,
        )[0, ids.shape[1] :]
        assert found.tolist() == [token for token in made.tolist() if token != 1]


def test_a_checkpoint_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="cannot load"):
        open_substrate(None, {"model": str(tmp_path / "nothing"), "data": "x", "questions": 5}, seed=0)


def test_answers_are_compared_without_articles_case_and_punctuation():
    assert plain(" The  Red ring.") == plain("red RING") == "red ring"
