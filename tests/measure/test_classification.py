import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.measure.classification import (
    agreement,
    cls_error,
    correct,
    kl,
    rank,
    recall_at_1,
    reciprocal_rank,
)

SHAPES = st.tuples(st.integers(1, 6), st.integers(2, 7), st.integers(0, 1000))


def random_matrices(shape, count=2):
    rows, columns, seed = shape
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(rows, columns, generator=generator) for _ in range(count)]


def softmax(logits):
    largest = max(logits)
    weights = [math.exp(x - largest) for x in logits]
    return [w / sum(weights) for w in weights]


@settings(deadline=None)
@given(SHAPES)
def test_kl_equals_its_definition(shape):
    full, reduced = random_matrices(shape)
    expected = [
        sum(p * math.log(p / q) for p, q in zip(softmax(f), softmax(r), strict=True))
        for f, r in zip(full.tolist(), reduced.tolist(), strict=True)
    ]
    assert kl(full, reduced).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(SHAPES)
def test_kl_is_zero_for_the_same_model_and_ignores_a_shift_of_the_logits(shape):
    full, _ = random_matrices(shape)
    assert kl(full, full).abs().max() == 0
    assert kl(full.double(), full.double() + 5).max() < 1e-12


def test_kl_points_from_the_full_model_to_the_reduced_one():
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kl(sure, unsure).item() == pytest.approx(math.log(2), abs=0.01)
    assert kl(unsure, sure).item() > 3


def test_kl_of_nearly_equal_float32_models_is_not_lost_in_rounding():
    full = torch.tensor([[10.0, 3.0, 1.0]])
    reduced = full + torch.tensor([[0.0, 1e-4, 0.0]])
    p = softmax(full[0].tolist())[1]
    # Second-order expansion: p (1 - p) d^2 / 2.
    step = (reduced - full)[0, 1].item()
    assert kl(full, reduced).item() == pytest.approx(p * (1 - p) * step**2 / 2, rel=1e-3)


def test_kl_survives_extreme_logits():
    full, reduced = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert kl(full, reduced).item() == pytest.approx(1e4)


@settings(deadline=None)
@given(SHAPES)
def test_hits_and_agreement_equal_a_loop(shape):
    logits, full = random_matrices(shape)
    labels = [(3 * row) % logits.shape[1] for row in range(len(logits))]

    def best(row):
        return row.index(max(row))

    hits = [float(best(row) == label) for row, label in zip(logits.tolist(), labels, strict=True)]
    same = [float(best(a) == best(b)) for a, b in zip(logits.tolist(), full.tolist(), strict=True)]
    assert correct(logits, torch.tensor(labels)).tolist() == hits
    assert agreement(logits, full).tolist() == same


@settings(deadline=None)
@given(SHAPES)
def test_feature_error_equals_a_loop(shape):
    full, reduced = random_matrices(shape)
    expected = [
        math.sqrt(sum((a - b) ** 2 for a, b in zip(f, r, strict=True))) / math.sqrt(sum(a * a for a in f))
        for f, r in zip(full.tolist(), reduced.tolist(), strict=True)
    ]
    assert cls_error(full, reduced).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000))
def test_rank_counts_the_candidates_that_are_not_worse(queries, candidates, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (queries, candidates), generator=generator).float()  # small range: many ties
    target = torch.randint(0, candidates, (queries,), generator=generator)
    expected = []
    for row, wanted in zip(scores.tolist(), target.tolist(), strict=True):
        others = [score for candidate, score in enumerate(row) if candidate != wanted]
        expected.append(1 + sum(score >= row[wanted] for score in others))
    assert rank(scores, target).tolist() == expected
    assert recall_at_1(scores, target).tolist() == [float(place == 1) for place in expected]
    assert reciprocal_rank(scores, target).tolist() == pytest.approx([1 / place for place in expected])


def test_a_model_that_scores_all_alike_finds_nothing():
    scores, target = torch.zeros(3, 5), torch.tensor([0, 2, 4])
    assert recall_at_1(scores, target).sum() == 0
    assert rank(scores, target).tolist() == [5, 5, 5]


def test_measures_are_float64_per_image():
    full, reduced = random_matrices((4, 3, 0))
    labels = torch.tensor([0, 1, 2, 0])
    for measure in (
        correct(full, labels),
        agreement(full, reduced),
        kl(full, reduced),
        cls_error(full, reduced),
        recall_at_1(full, labels),
        reciprocal_rank(full, labels),
    ):
        assert measure.shape == (4,)
        assert measure.dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    good, broken = torch.ones(2, 3), torch.ones(2, 3)
    broken[1, 2] = bad
    with pytest.raises(ValueError, match="reduced_logits must be finite"):
        kl(good, broken)
    with pytest.raises(ValueError, match="full_logits must be finite"):
        agreement(good, broken)
    with pytest.raises(ValueError, match="logits must be finite"):
        correct(broken, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="scores must be finite"):
        rank(broken, torch.tensor([0, 1]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        kl(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="one shape"):
        agreement(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="do not fit"):
        correct(torch.ones(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="does not fit"):
        rank(torch.ones(2, 3), torch.tensor([0]))


def test_labels_and_targets_outside_the_choices_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        correct(torch.ones(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        rank(torch.ones(2, 3), torch.tensor([-1, 0]))


def test_relative_error_of_a_feature_of_length_zero_is_refused():
    full = torch.ones(3, 2)
    full[1] = 0
    with pytest.raises(ValueError, match=r"full_feature\[1\]"):
        cls_error(full, torch.ones(3, 2))
