"""The fast transform against SciPy's matrices and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from qvgen.hadamard import (
    Hadamard,
    hadamard_factors,
    hadamard_matrix,
    paired_factors,
    paley_matrix,
    random_signs,
    tile_width,
)

PALEY = [4, 12, 20, 28, 60, 108, 140]
WIDTHS = [1, 2, 60, 64, 96, 120, 128, 140, 240, 256, 560, 960]


@pytest.mark.parametrize("order", PALEY)
def test_paley_matrices_are_hadamard(order: int) -> None:
    matrix = paley_matrix(order).numpy()
    assert set(np.unique(matrix)) == {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


def test_orders_without_a_prime_are_refused() -> None:
    for order in (6, 16 + 36, 100 - 8):  # 52 = 2 (25 + 1), 92 = 91 + 1: no prime field
        with pytest.raises(ValueError, match=f"order {order}"):
            paley_matrix(order)


def test_model_widths_have_factors() -> None:
    table = {240: (20, 12), 1920: (20, 12, 8), 8960: (28, 20, 16), 13824: (12, 12, 12, 8), 128: (16, 8)}
    for width, wanted in table.items():
        assert hadamard_factors(width) == wanted
    for width in (1536, 3072, 4096, 5120, 7680, 12288, 60 * 128, 140 * 64):
        factors = hadamard_factors(width)
        assert factors is not None and int(np.prod(factors)) == width
        assert sum(factors) <= 0.05 * width, "far from the dense product"
    assert [hadamard_factors(width) for width in (3, 6, 7, 50, 2 * 23)] == [None] * 5
    assert hadamard_factors(1) == ()


def test_pairs_fill_their_tiles() -> None:
    table = {240: None, 960: (60, 16), 1920: (60, 32), 7680: (128, 60), 8960: (112, 80), 13824: (128, 108)}
    for width, wanted in table.items():
        assert paired_factors(width) == wanted
    assert [paired_factors(width) for width in (2 * 509, 256 * 256)] == [None, None]
    assert [tile_width(order) for order in (2, 16, 17, 60, 128)] == [16, 16, 32, 64, 128]
    with pytest.raises(ValueError, match="size 240"):
        Hadamard(240, paired=True)


def test_products_of_known_orders_are_hadamard() -> None:
    for order in (2, 64, 112, 120):  # 112 = 28 * 4, 120 = 60 * 2: no construction of their own
        matrix = hadamard_matrix(order).numpy()
        np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))
    np.testing.assert_array_equal(hadamard_matrix(64), scipy.linalg.hadamard(64))
    with pytest.raises(ValueError, match="order 52"):
        hadamard_matrix(52)


@pytest.mark.parametrize("width", [960, 1920, 8960])
def test_a_paired_transform_is_the_dense_one(width: int) -> None:
    transform = Hadamard(width, paired=True)
    one, other = (hadamard_matrix(order).double().numpy() for order in transform.factors)
    x = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    wanted = x.numpy() @ np.kron(one, other) / np.sqrt(width)
    np.testing.assert_allclose(transform(x).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_fast_transform_is_the_dense_one(width: int) -> None:
    transform = Hadamard(width)
    dense = np.ones((1, 1))
    for order in transform.factors:
        is_power = order & (order - 1) == 0
        dense = np.kron(dense, scipy.linalg.hadamard(order) if is_power else paley_matrix(order).numpy())
    dense = dense / np.sqrt(width)
    np.testing.assert_allclose(dense @ dense.T, np.eye(width), atol=1e-12)
    x = torch.randn(3, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    np.testing.assert_allclose(transform(x).numpy(), x.numpy() @ dense, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_and_inner_products_stay(dtype: torch.dtype) -> None:
    x = torch.randn(64, 240).to(dtype)
    turned = Hadamard(240)(x)
    assert turned.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    wanted = x.double() @ x.double().T
    error = (turned.double() @ turned.double().T - wanted).abs().max()
    assert error <= tolerance * wanted.abs().max()
    # No common factor is lost to rounding: the mean ratio of lengths is 1.
    ratio = (turned.double().norm(dim=1) / x.double().norm(dim=1)).mean()
    assert abs(float(ratio) - 1) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_an_outlier_is_spread_evenly() -> None:
    x = torch.zeros(1, 960)
    x[0, 123] = 31.0
    torch.testing.assert_close(Hadamard(960)(x).abs(), torch.full((1, 960), 31 / 960**0.5))


def test_unknown_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="size 50"):
        Hadamard(50)


def test_signs_follow_the_seed() -> None:
    signs = random_signs(1000, 3)
    assert torch.equal(signs.abs(), torch.ones(1000)) and torch.equal(signs, random_signs(1000, 3))
    assert not torch.equal(signs, random_signs(1000, 4)) and abs(float(signs.mean())) < 0.15
