"""Phi: initialisation against SciPy's SVD, re-factorisation, and its disappearance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from qvgen.auxiliary import (
    Phi,
    leading_factors,
    refactor,
    refactor_all_,
    reorder_,
    singular_values,
)


def matrices(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_start_is_the_best_low_rank_approximation() -> None:
    (error,) = matrices((20, 12))
    phi = Phi(*leading_factors(error, 5))
    singular = scipy.linalg.svdvals(error.double().numpy())
    left_over = (error - phi()).double().norm().item() ** 2
    assert np.isclose(left_over, (singular[5:] ** 2).sum(), rtol=1e-4)
    # balanced: both factors carry the square root of the singular values
    np.testing.assert_allclose(phi.L.detach().norm(dim=0) ** 2, singular[:5], rtol=1e-4)
    np.testing.assert_allclose(phi.R.detach().norm(dim=1) ** 2, singular[:5], rtol=1e-4)


def test_rank_is_limited_by_the_matrix() -> None:
    (error,) = matrices((3, 40))
    phi = Phi(*leading_factors(error, 32))
    assert phi.rank == 3
    torch.testing.assert_close(phi(), error, rtol=1e-4, atol=1e-5)


def test_gamma_scales_columns() -> None:
    left, right = matrices((4, 2), (2, 3))
    phi = Phi(left, right)
    phi.gamma.copy_(torch.tensor([1.0, 0.25]))
    expected = np.outer(left[:, 0], right[0]) + 0.25 * np.outer(left[:, 1], right[1])
    np.testing.assert_allclose(phi().detach(), expected, rtol=1e-5)


def test_refactor_keeps_the_product_and_sorts() -> None:
    left, right = matrices((7, 30, 4), (7, 4, 20))
    new_left, new_right = refactor(left, right)
    torch.testing.assert_close(new_left @ new_right, left @ right, rtol=1e-4, atol=1e-5)
    for i in range(7):
        singular = scipy.linalg.svdvals((left[i] @ right[i]).double().numpy())[:4]
        np.testing.assert_allclose(new_left[i].norm(dim=0) ** 2, singular, rtol=1e-4)
        np.testing.assert_allclose(new_right[i].norm(dim=1) ** 2, singular, rtol=1e-4)
        gram = new_left[i].T @ new_left[i]
        np.testing.assert_allclose(gram - gram.diag().diag(), 0, atol=1e-4)


def test_refactor_all_handles_mixed_shapes_and_small_layers() -> None:
    shapes = [(30, 20, 4), (30, 20, 4), (3, 20, 3)]
    phis = [Phi(*matrices((out, r), (r, inp))) for out, inp, r in shapes]
    before = [(p.L[:, :3] @ p.R[:3]).detach().clone() for p in phis]
    refactor_all_(phis, 3)
    for phi, product in zip(phis, before, strict=True):
        torch.testing.assert_close((phi.L @ phi.R).detach(), product, rtol=1e-4, atol=1e-5)
        assert phi.L[:, 3:].eq(0).all() and phi.R[3:].eq(0).all()


def test_dead_columns_get_no_gradient() -> None:
    phi = Phi(*matrices((6, 3), (3, 5)))
    phi.gamma.copy_(torch.tensor([1.0, 0.5, 0.0]))
    phi().square().sum().backward()
    assert phi.L.grad is not None and phi.R.grad is not None
    assert phi.L.grad[:, 2].eq(0).all() and phi.R.grad[2].eq(0).all()
    assert phi.L.grad[:, :2].ne(0).any() and phi.R.grad[:2].ne(0).any()


def spectra() -> dict[str, torch.Tensor]:
    """Batches of two: a flat spectrum (as quantization errors have), a steep one, rank 2, all zero."""
    flat, tall, left, right = matrices((2, 40, 90), (2, 90, 40), (2, 40, 2), (2, 2, 90))
    return {
        "wide": flat,
        "tall": tall,
        "steep": flat * torch.logspace(0, -6, 40)[:, None],
        "tiny": flat * 1e-6,
        "rank 2": left @ right,
        "zero": torch.zeros(2, 40, 90),
    }


@pytest.mark.parametrize("solver", ["svd", "gram"])
@pytest.mark.parametrize("kind", list(spectra()))
def test_captured_energy_is_that_of_the_full_svd(kind: str, solver: str) -> None:
    errors = spectra()[kind]
    left, right = leading_factors(errors, 8, solver)  # type: ignore[arg-type]
    assert left.shape == (2, errors.shape[1], 8) and right.shape == (2, 8, errors.shape[2])
    assert left.isfinite().all() and right.isfinite().all()
    for i in range(2):
        exact = errors[i].double().numpy()
        singular = scipy.linalg.svdvals(exact)
        best = (singular[:8] ** 2).sum()
        left_over = np.linalg.norm(exact - (left[i] @ right[i]).double().numpy()) ** 2
        captured = np.linalg.norm(exact) ** 2 - left_over
        assert captured >= 0.9999 * best
        np.testing.assert_allclose(left[i].norm(dim=0) ** 2, singular[:8], rtol=2e-3, atol=2e-3 * singular[0])
        np.testing.assert_allclose(
            right[i].norm(dim=1) ** 2, singular[:8], rtol=2e-3, atol=2e-3 * singular[0]
        )


def test_batched_factors_are_those_of_single_layers() -> None:
    for solver in ("svd", "gram"):
        for errors in spectra().values():
            batched = leading_factors(errors, 3, solver)  # type: ignore[arg-type]
            for i in range(2):
                single = leading_factors(errors[i], 3, solver)  # type: ignore[arg-type]
                torch.testing.assert_close(
                    batched[0][i] @ batched[1][i], single[0] @ single[1], rtol=1e-4, atol=1e-5
                )


def test_reordering_keeps_the_product() -> None:
    phi = Phi(*matrices((6, 4), (4, 5)))
    before, columns = phi().detach().clone(), phi.L.detach().clone()
    reorder_(phi, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(phi().detach(), before)
    assert torch.equal(phi.L, columns[:, [2, 0, 1, 3]])


def test_singular_values_against_scipy() -> None:
    shapes = [(30, 20, 4), (9, 20, 4), (30, 20, 4)]
    phis = [Phi(*matrices((out, r), (r, inp))) for out, inp, r in shapes]
    for n, phi in enumerate(phis):
        phi.gamma.copy_(torch.tensor([1.0, 0.5, 0.25 * n, 0.0]))
    for phi, found in zip(phis, singular_values(phis), strict=True):
        np.testing.assert_allclose(
            found, scipy.linalg.svdvals(phi().detach().double())[:4], rtol=1e-4, atol=1e-5
        )
