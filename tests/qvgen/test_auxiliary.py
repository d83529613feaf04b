"""Phi: initialisation against SciPy's SVD, re-factorisation, and its disappearance."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from qvgen.auxiliary import Phi, phi_from_error, refactor, refactor_all_


def matrices(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_start_is_the_best_low_rank_approximation() -> None:
    (error,) = matrices((20, 12))
    phi = phi_from_error(error, 5)
    singular = scipy.linalg.svdvals(error.double().numpy())
    left_over = (error - phi()).double().norm().item() ** 2
    assert np.isclose(left_over, (singular[5:] ** 2).sum(), rtol=1e-4)
    # balanced: both factors carry the square root of the singular values
    np.testing.assert_allclose(phi.L.detach().norm(dim=0) ** 2, singular[:5], rtol=1e-4)
    np.testing.assert_allclose(phi.R.detach().norm(dim=1) ** 2, singular[:5], rtol=1e-4)


def test_rank_is_limited_by_the_matrix() -> None:
    (error,) = matrices((3, 40))
    phi = phi_from_error(error, 32)
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
