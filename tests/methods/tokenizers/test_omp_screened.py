"""The screened pursuit chooses what the plain one does, and what a slow loop does, also where rounding is worst."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pursuit_reference import draw, slow_omp

from tokenarium.methods.tokenizers import omp_screened as screened
from tokenarium.methods.tokenizers import omp_transplant as plain


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(6, 70), st.integers(6, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_the_pursuit_is_that_of_one_target_and_one_point_at_a_time(batch, count, dim, k, seed):
    targets, points = draw(batch, dim, seed=seed), draw(count, dim, seed=seed + 1)
    path = screened.pursue(targets, points, k)
    for target, found, weights in zip(targets, path.indices, path.coefficients(), strict=True):
        expected, exact = slow_omp(target, points, k)
        assert found.tolist() == expected
        np.testing.assert_allclose(weights, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("count", [200, 1003])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_rows_like_embeddings_get_the_path_of_the_plain_pursuit(count, spread):
    scale = torch.arange(1, 97).float().pow(-0.5)
    lengths = torch.exp(spread * draw(count, 1, seed=2, dtype=torch.float32))  # of the points, all alike at 0
    points = (draw(count, 96, dtype=torch.float32) * scale + 0.1) * lengths
    targets = draw(40, 96, seed=1, dtype=torch.float32) * scale + 0.1
    expected, found = plain.solve(targets, points, 24), screened.solve(targets, points, 24, chunk=7)
    same = (expected[0] == found[0]).all(dim=1)
    assert same.float().mean() >= 0.95  # a choice closer than float32 can tell may fall either way
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one[same], other[same], rtol=1e-3, atol=1e-4 * float(one[same].abs().max()))
    torch.testing.assert_close(expected[2], found[2], rtol=0.02, atol=1e-4)


def test_points_closer_than_half_precision_can_tell_are_told_apart():
    point = draw(1, 64)
    points = point * (1 + 1e-9 * torch.arange(40, dtype=torch.float64)[:, None])  # the last is the longest
    assert len(points.bfloat16().unique(dim=0)) == 1
    assert screened.pursue(point, points, 1).indices.item() == 39


def test_a_point_that_half_precision_rounds_down_is_found():
    # In bfloat16 the first point is the longer one, in truth the second.
    points = torch.tensor([[1.0, 0.0], [1.0039, 0.0]] + [[0.0, 1.0]] * 30)
    assert points[:2].bfloat16()[:, 0].tolist() == [1.0, 1.0]
    assert screened.pursue(torch.tensor([[3.0, 0.5]]), points, 1).indices.item() == 1


def test_points_are_not_normalised_and_nothing_is_centred():
    points = torch.tensor([[0.5, 0.5], [3.0, 0.0]])
    assert screened.pursue(torch.tensor([[1.0, 1.0]]), points, 1).indices.item() == 1
    points = draw(9, 4) + 100
    path = screened.pursue(2 * points[5:6], points, 1)
    place = path.indices.item()
    assert path.coefficients().item() == pytest.approx(
        float(2 * points[5] @ points[place] / points[place].square().sum())
    )


def test_the_first_of_equal_points_wins_whatever_the_sign():
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 0.0]])
    path = screened.pursue(torch.tensor([[4.0, 0.0], [-4.0, 0.0]]), points, 1)
    assert path.indices.tolist() == [[1], [1]]
    assert path.coefficients().tolist() == [[2.0], [-2.0]]


def test_no_point_is_taken_twice_even_where_nothing_is_left():
    indices = screened.pursue(draw(6, 10), draw(12, 10, seed=1), 10).indices
    assert all(len(set(row)) == 10 for row in indices.tolist())
    points = 2 * torch.linalg.qr(draw(6, 6)).Q
    targets = torch.stack([torch.zeros(6, dtype=torch.float64), points[3]])
    path = screened.pursue(targets, points, 4)
    assert path.indices[0].tolist() == [0, 1, 2, 3]
    assert path.indices[1, 0] == 3
    assert all(len(set(row)) == 4 for row in path.indices.tolist())
    torch.testing.assert_close(plain.combine(path.indices, path.coefficients(), points), targets)
    assert torch.isfinite(path.residuals()).all()


def test_without_a_gram_matrix_the_path_is_the_same(monkeypatch):
    targets, points = draw(5, 24), draw(60, 24, seed=1)
    kept = screened.pursue(targets, points, 8)
    monkeypatch.setattr(screened, "MOST_WITH_GRAM", 10)
    again = screened.pursue(targets, points, 8)
    assert torch.equal(kept.indices, again.indices)
    torch.testing.assert_close(kept.coefficients(), again.coefficients())


@pytest.mark.parametrize("k", [0, 5, 300])
def test_k_is_bounded_by_points_dimensions_and_what_stays_orthogonal(k):
    with pytest.raises(ValueError, match="between 1 and 4"):
        screened.pursue(draw(2, 4), draw(8, 4), k)
    with pytest.raises(ValueError, match="between 1 and 256"):
        screened.solve(draw(2, 400), draw(400, 400), 257)


def test_short_floats_are_computed_in_float32():
    indices, coefficients, residuals = screened.solve(draw(2, 8).bfloat16(), draw(9, 8, seed=1).bfloat16(), 3)
    assert (indices.dtype, coefficients.dtype, residuals.dtype) == (torch.int64, torch.float32, torch.float32)
