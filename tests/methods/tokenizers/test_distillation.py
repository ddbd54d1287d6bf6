"""Embedding distillation: padding changes nothing, batches hold every text once, a student learns its targets."""

import random

import pytest
import torch

from tokenarium.methods.tokenizers import distillation

RECIPE = distillation.Recipe(dim=16, layers=1, heads=2, positions=12, batch_size=4, epochs=30, learning_rate=0.01)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return distillation.Student(rows=9, outputs=5, recipe=RECIPE)


def test_padding_does_not_change_an_embedding(student):
    texts = [[1, 2], [3, 4, 5, 6, 7, 8], [0]]
    together = distillation.embed(student, texts, RECIPE)
    for text, found in zip(texts, together, strict=True):
        torch.testing.assert_close(distillation.embed(student, [text], RECIPE)[0], found)


def test_an_embedding_is_the_mean_over_tokens_mapped(student):
    text = torch.tensor([[1, 2, 3]])
    hidden = student.encoder(student.tokens(text) + student.positions.weight[:3])
    expected = student.head((hidden[0, 0] + hidden[0, 1] + hidden[0, 2]) / 3)
    torch.testing.assert_close(distillation.embed(student, [[1, 2, 3]], RECIPE)[0], expected)


def test_what_is_longer_than_the_positions_is_cut(student):
    long = [index % 9 for index in range(20)]
    torch.testing.assert_close(*(distillation.embed(student, [ids], RECIPE) for ids in (long, long[:12])))


def test_order_of_the_tokens_matters(student):
    one, other = distillation.embed(student, [[1, 2, 3], [3, 2, 1]], RECIPE)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_hold_every_index_once_and_repeat_with_the_seed(size):
    order = [index % 7 for index in range(50)]
    found = [list(distillation.batches(order, size, random.Random(5))) for _ in range(2)]
    assert found[0] == found[1]
    assert sorted(index for batch in found[0] for index in batch) == list(range(50))
    assert {len(batch) for batch in found[0]} <= {size, 50 % size, (50 % (8 * size)) % size}


def test_members_of_a_batch_are_of_like_length_within_the_window():
    order = list(range(64))
    for batch in distillation.batches(order, 8, random.Random(0)):
        assert max(batch) - min(batch) == 7  # one window holds all


def test_training_brings_the_embeddings_to_their_targets_and_repeats(student):
    texts = [[index, (index + 1) % 9, 2] for index in range(8)]
    targets = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    epochs = []
    losses = distillation.distil(texts, [3] * 8, targets, student, RECIPE, 0, epochs.append)
    assert epochs == list(range(30))
    assert losses[-1] < 0.1 < losses[0]
    cosines = torch.cosine_similarity(distillation.embed(student, texts, RECIPE), targets)
    assert cosines.mean() > 0.9
    torch.manual_seed(0)
    again = distillation.Student(rows=9, outputs=5, recipe=RECIPE)
    assert distillation.distil(texts, [3] * 8, targets, again, RECIPE, 0, lambda epoch: None) == losses
