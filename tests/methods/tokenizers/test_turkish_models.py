"""Small models: padding changes nothing, bits are those of each line alone, and training repeats itself."""

import math

import numpy as np
import pytest
import torch

from tokenarium.methods.tokenizers import turkish_models as models

SHAPE = {"width": 16, "layers": 1, "heads": 2, "positions": 32}
RECIPE = {
    "epochs": 2,
    "batch_size": 2,
    "muon_learning_rate": 0.02,
    "adamw_learning_rate": 0.01,
    "weight_decay": 0.05,
    "clip": 1.0,
    "warmup": 0.1,
}
IDS = [[2, 3, 4, 5], [3], [5, 4, 3, 2, 2, 3], [4, 4], [2, 3, 4]]


@pytest.fixture(scope="module")
def model():
    return models.build(7, SHAPE, seed=0)


def alone(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[models.START, *ids]])).logits[0].double()


def test_a_batch_is_shifted_by_one_and_filled_behind():
    inputs, targets = models.padded([[5, 6, 7], [8]])
    assert inputs.tolist() == [[0, 5, 6], [0, 0, 0]]
    assert targets.tolist() == [[5, 6, 7], [8, models.SKIPPED, models.SKIPPED]]


def test_bits_are_those_of_each_line_by_itself(model):
    found = models.line_bits(model, IDS)
    for bits, ids in zip(found, IDS, strict=True):
        logs = torch.log_softmax(alone(model, ids), dim=-1)
        wanted = -sum(float(logs[place, index]) for place, index in enumerate(ids)) / math.log(2)
        assert bits == pytest.approx(wanted, rel=1e-5)


def test_pooled_states_are_the_mean_over_the_ids_without_the_start(model):
    found = models.pooled(model, IDS)
    for states, ids in zip(found, IDS, strict=True):
        with torch.inference_mode():
            alone = model.model(input_ids=torch.tensor([[models.START, *ids]])).last_hidden_state[0, 1:]
        np.testing.assert_allclose(states, alone.mean(dim=0), atol=1e-5)


def test_training_learns_the_lines_takes_every_batch_and_repeats_itself():
    first, again = (models.build(7, SHAPE, seed=1) for _ in range(2))
    before = models.line_bits(first, IDS).sum()
    losses = models.train(first, IDS, list(map(len, IDS)), {**RECIPE, "epochs": 60}, seed=3)
    assert len(losses) == 60 * 3
    assert models.line_bits(first, IDS).sum() < before / 2
    assert losses == models.train(again, IDS, list(map(len, IDS)), {**RECIPE, "epochs": 60}, seed=3)


def test_tokenizers_see_the_same_lines_in_the_same_order(monkeypatch):
    seen = {"one": [], "other": []}
    order = [40, 10, 60, 20, 30]
    real = models.padded
    for name, ids in (("one", IDS), ("other", [[index + 2] * 3 for index in range(5)])):
        place = {tuple(line): number for number, line in enumerate(ids)}
        spy = lambda lines, device, name=name, place=place: (  # noqa: E731
            seen[name].append([place[tuple(line)] for line in lines]) or real(lines, device)
        )
        monkeypatch.setattr(models, "padded", spy)
        models.train(models.build(7, SHAPE, seed=0), ids, order, RECIPE, seed=5)
    assert seen["one"] == seen["other"]
    assert sorted(index for batch in seen["one"] for index in batch) == sorted(2 * list(range(5)))


def test_the_seed_draws_the_weights_and_nothing_else_of_the_run(model):
    state = torch.get_rng_state()
    same, other = models.build(7, SHAPE, seed=0), models.build(7, SHAPE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weight = model.model.embed_tokens.weight
    assert torch.equal(same.model.embed_tokens.weight, weight)
    assert not torch.equal(other.model.embed_tokens.weight, weight)


def test_the_learning_rate_rises_and_falls_within_bounds():
    rates = [models.one_cycle(step / 100, 0.1) for step in range(100)]
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert 0 < rates[0] < 0.05
    assert 0 < rates[-1] < 0.01
