"""OMP: the greedy rule against a slow loop and scikit-learn's kind of reference, its invariants, and its edge cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pursuit_reference import draw, slow_omp

from tokenarium.methods.tokenizers import omp_transplant as omp


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(6, 30), st.integers(6, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_the_pursuit_is_that_of_one_target_and_one_point_at_a_time(batch, count, dim, k, seed):
    targets, points = draw(batch, dim, seed=seed), draw(count, dim, seed=seed + 1)
    indices, coefficients = omp.batch_omp(targets, points, k)
    for target, found, weights in zip(targets, indices, coefficients, strict=True):
        expected, exact = slow_omp(target, points, k)
        assert found.tolist() == expected
        np.testing.assert_allclose(weights, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_card_s_size_agrees_in_both_precisions(dtype):
    targets, points = draw(16, 32, seed=3), draw(200, 32, seed=4)
    indices, coefficients = omp.batch_omp(targets.to(dtype), points.to(dtype), 20)
    assert coefficients.dtype == dtype
    for target, found, weights in zip(targets, indices, coefficients, strict=True):
        expected, exact = slow_omp(target, points, 20)
        assert found.tolist() == expected
        np.testing.assert_allclose(weights, exact, rtol=1e-4, atol=1e-4)


def test_points_are_not_normalised():
    target = torch.tensor([[1.0, 1.0]])
    points = torch.tensor([[0.5, 0.5], [3.0, 0.0]])  # the first is parallel to the target, the second is long
    assert omp.batch_omp(target, points, 1)[0].item() == 1


def test_nothing_is_centred():
    points = draw(9, 4) + 100
    indices, coefficients = omp.batch_omp(2 * points[5:6], points, 1)
    assert coefficients.item() == pytest.approx(
        float(2 * points[5] @ points[indices[0, 0]] / points[indices[0, 0]].square().sum())
    )


def test_the_first_of_equal_points_wins_whatever_the_sign():
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 0.0]])
    indices, coefficients = omp.batch_omp(torch.tensor([[4.0, 0.0], [-4.0, 0.0]]), points, 1)
    assert indices.tolist() == [[1], [1]]
    assert coefficients.tolist() == [[2.0], [-2.0]]


def test_no_point_is_taken_twice():
    indices, _ = omp.batch_omp(draw(6, 10), draw(12, 10, seed=1), 10)
    assert all(len(set(row)) == 10 for row in indices.tolist())


def test_a_twin_of_a_taken_point_adds_nothing():
    points = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    indices, coefficients = omp.batch_omp(torch.tensor([[4.0, 1.5, 0.5]], dtype=torch.float64), points, 3)
    assert indices.tolist() == [[0, 2, 3]]
    assert coefficients.tolist() == [[2.0, 1.5, 0.5]]


def test_a_sparse_target_is_found_exactly():
    points = torch.linalg.qr(draw(12, 12)).Q
    target = 3 * points[7] - 2 * points[2] + points[4]
    indices, coefficients = omp.batch_omp(target[None], points, 3)
    assert indices.tolist() == [[7, 2, 4]]
    torch.testing.assert_close(coefficients[0], torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64))


def test_a_target_that_is_zero_or_solved_early_stays_finite():
    points = 2 * torch.linalg.qr(draw(6, 6)).Q
    targets = torch.stack([torch.zeros(6, dtype=torch.float64), points[3]])
    indices, coefficients = omp.batch_omp(targets, points, 4)
    assert indices[1, 0] == 3
    assert torch.isfinite(coefficients).all()
    torch.testing.assert_close(omp.combine(indices, coefficients, points), targets)
    assert torch.isfinite(omp.pursue(targets, points, 4).residuals()).all()


@pytest.mark.parametrize("k", [0, 5, 9])
def test_k_is_bounded_by_points_and_dimensions(k):
    with pytest.raises(ValueError, match="between 1 and 4"):
        omp.batch_omp(draw(2, 4), draw(8, 4), k)
    with pytest.raises(ValueError, match="between 1 and 4"):
        omp.batch_omp(draw(2, 8), draw(4, 8), k)


def test_short_floats_are_computed_in_float32():
    indices, coefficients = omp.batch_omp(draw(2, 8).bfloat16(), draw(9, 8, seed=1).bfloat16(), 3)
    assert coefficients.dtype == torch.float32
    assert indices.dtype == torch.int64


def test_a_path_begins_with_the_path_of_fewer_steps():
    targets, points = draw(5, 24), draw(60, 24, seed=1)
    path = omp.pursue(targets, points, 16)
    for k in (1, 4, 16):
        indices, coefficients = omp.batch_omp(targets, points, k)
        assert torch.equal(path.indices[:, :k], indices)
        torch.testing.assert_close(path.coefficients(k), coefficients)


def test_residuals_are_what_is_left_and_never_grow():
    targets, points = draw(5, 24), draw(60, 24, seed=1)
    path = omp.pursue(targets, points, 16)
    left = path.residuals()
    assert (left.diff(dim=1) <= 1e-12).all()
    for k in (1, 7, 16):
        made = omp.combine(path.indices[:, :k], path.coefficients(k), points)
        torch.testing.assert_close(left[:, k - 1], (targets - made).norm(dim=1) / targets.norm(dim=1))


def test_the_residual_is_orthogonal_to_every_chosen_point():
    targets, points = draw(5, 24), draw(60, 24, seed=1)
    indices, coefficients = omp.batch_omp(targets, points, 10)
    residual = targets - omp.combine(indices, coefficients, points)
    inner = torch.einsum("bkd,bd->bk", points[indices], residual)
    torch.testing.assert_close(inner, torch.zeros_like(inner), atol=1e-10, rtol=0)


def test_a_new_factorisation_on_the_way_changes_nothing(monkeypatch):
    targets, points = draw(4, 40), draw(90, 40, seed=1)
    plain = omp.pursue(targets, points, 30)
    monkeypatch.setattr(omp, "REORTHOGONALISE", 7)
    again = omp.pursue(targets, points, 30)
    assert torch.equal(plain.indices, again.indices)
    torch.testing.assert_close(plain.coefficients(), again.coefficients())
    torch.testing.assert_close(plain.coefficients(12), again.coefficients(12))
    torch.testing.assert_close(plain.residuals(), again.residuals())


def test_long_pursuits_keep_their_basis_orthogonal():
    points = (draw(700, 300) + 3).float()  # nearly parallel points: hard for classical Gram-Schmidt
    targets = draw(2, 300, seed=1).float()
    indices, coefficients = omp.batch_omp(targets, points, 270)
    residual = targets - omp.combine(indices, coefficients, points)
    for row, target, left in zip(indices, targets.double(), residual, strict=True):
        chosen = points[row].double()
        exact = torch.linalg.lstsq(chosen.T, target[:, None]).solution[:, 0]
        assert left.norm() <= (target - exact @ chosen).norm() + 0.05 * target.norm()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(chunk):
    targets, points = draw(7, 16), draw(40, 16, seed=1)
    indices, coefficients, left = omp.solve(targets, points, 5, chunk)
    path = omp.pursue(targets, points, 5)
    assert torch.equal(indices, path.indices)
    torch.testing.assert_close(coefficients, path.coefficients())
    torch.testing.assert_close(left, path.residuals())


def test_the_same_space_gives_the_rows_back():
    points = draw(60, 12)
    targets = draw(4, 12, seed=1)
    indices, coefficients, _ = omp.solve(targets, points, 12)
    turn = draw(12, 5, seed=2)
    torch.testing.assert_close(omp.combine(indices, coefficients, points @ turn), targets @ turn)
