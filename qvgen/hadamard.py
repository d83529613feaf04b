"""Orthogonal Hadamard transforms as a few small matrix products.

A Hadamard matrix H of order n has entries +1 and -1 and H H^T = n I. Kronecker products of them are
Hadamard again, so H_n = H_a x H_b x ... is applied to a row of n = a * b * ... numbers, seen as a
table, one axis after the other: n * (a + b + ...) multiplications in place of n * n. Orders other than
powers of two come from Paley's two constructions over a prime field (R. E. A. C. Paley, 1933), such as
12, 20, 28, 60, 108 and 140; they make up the widths of the CogVideoX and Wan families.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

_LARGEST_FACTOR = 256
_FACTOR_PENALTY = 16
_LARGEST_IN_PAIR = 128
_SMALLEST_PAIRED = 256
_TILE = 16


def paley_order(order: int) -> bool:
    """Whether ``paley_matrix`` knows a Hadamard matrix of that order."""
    return order % 4 == 0 and (_is_prime(order - 1) or _second_kind(order))


def paley_matrix(order: int) -> Tensor:
    """A Hadamard matrix by Paley's construction, float32 [order, order] of +1 and -1.

    Kind I for order q + 1 with a prime q = 3 (mod 4), kind II for 2 (q + 1) with q = 1 (mod 4).

    Raises:
        ValueError: no such prime.
    """
    if not paley_order(order):
        raise ValueError(f"no Hadamard matrix of order {order} by Paley's constructions over a prime field")
    if _is_prime(order - 1):
        return torch.eye(order) + _bordered(order - 1, -1.0)
    symmetric, one = _bordered(order // 2 - 1, 1.0), torch.eye(order // 2)
    return torch.kron(symmetric, torch.tensor([[1.0, 1.0], [1.0, -1.0]])) + torch.kron(
        one, torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    )


def hadamard_factors(size: int) -> tuple[int, ...] | None:
    """Orders of the factors whose product is ``size``, largest first, or None if none are known.

    The cheapest known: least sum of orders (multiplications for each number of a row), with a
    penalty of 16 for each factor, since each reads and writes the row once.
    """
    if size == 1:
        return ()
    candidates = [
        order
        for order in range(2, min(size, _LARGEST_FACTOR) + 1)
        if size % order == 0 and (order & (order - 1) == 0 or paley_order(order))
    ]
    found = _cheapest(size, tuple(candidates))
    return None if found is None else tuple(sorted(found, reverse=True))


def paired_factors(size: int) -> tuple[int, int] | None:
    """Two orders of at most 128 whose product is ``size``, or None: what one kernel can apply at a time.

    The pair with the fewest multiplications on tensor cores, whose tiles are powers of two of at
    least 16. Each order is a factor of ``hadamard_factors`` or a product of some. Sizes below 256
    have none: there are no tiles to fill.
    """
    if size < _SMALLEST_PAIRED:
        return None
    pairs = [
        (order, size // order)
        for order in range(_LARGEST_IN_PAIR, 1, -1)
        if size % order == 0
        and 1 < size // order <= _LARGEST_IN_PAIR
        and all(hadamard_factors(one) is not None for one in (order, size // order))
    ]
    return min(pairs, key=_tile_price, default=None)


def tile_width(order: int) -> int:
    """The power of two, at least 16, that a factor of this order is padded to in a kernel."""
    return max(_TILE, 1 << (order - 1).bit_length())


def hadamard_matrix(order: int) -> Tensor:
    """Sylvester's or Paley's matrix of an order, or a product of such; float32 [order, order] of +-1.

    Raises:
        ValueError: none is known.
    """
    if order & (order - 1) == 0:
        return _sylvester(order)
    if paley_order(order):
        return paley_matrix(order)
    factors = hadamard_factors(order)
    if factors is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known")
    return functools.reduce(torch.kron, [hadamard_matrix(factor) for factor in factors])


def _tile_price(pair: tuple[int, int]) -> int:
    first, second = (tile_width(order) for order in pair)
    return first * second * (first + second)


def _cheapest(size: int, candidates: tuple[int, ...]) -> tuple[int, ...] | None:
    """Factors from ``candidates``, which rise, none larger than the one before."""
    if size == 1:
        return ()
    best: tuple[int, ...] | None = None
    for index, order in enumerate(candidates):
        if size % order == 0:
            rest = _cheapest(size // order, candidates[: index + 1])
            if rest is not None and (best is None or _price((order, *rest)) < _price(best)):
                best = (order, *rest)
    return best


def _price(factors: tuple[int, ...]) -> int:
    return sum(factors) + _FACTOR_PENALTY * len(factors)


class Hadamard(nn.Module):
    """``x -> x Q`` on the last dimension, Q orthogonal with entries +-1/sqrt(n).

    Applying it to inputs and to the rows of a weight leaves the layer's output as it was. It has no
    state: the factors are rebuilt from the size. ``paired`` takes ``paired_factors``; that is another
    Q, so weight and input need the same.

    Raises:
        ValueError: a size for which ``hadamard_factors`` or ``paired_factors`` knows nothing.
    """

    def __init__(self, size: int, device: torch.device | None = None, *, paired: bool = False) -> None:
        super().__init__()
        factors = paired_factors(size) if paired else hadamard_factors(size)
        if factors is None:
            raise ValueError(f"no Hadamard transform of size {size} is known; leave this layer unrotated")
        self.size, self.factors, self.paired = size, tuple(factors), paired
        for index, order in enumerate(factors):
            self.register_buffer(f"factor_{index}", hadamard_matrix(order).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] to [..., n], same dtype. Scaled first: the factors' entries are exact in any dtype."""
        table = (x * (1 / math.sqrt(self.size))).reshape(-1, *self.factors)
        for axis, order in enumerate(self.factors):
            after = math.prod(self.factors[axis + 1 :])
            matrix = self.get_buffer(f"factor_{axis}").to(x.dtype)
            if after == 1:
                table = table.reshape(-1, order) @ matrix
            else:
                table = matrix.T @ table.reshape(-1, order, after)
        return table.reshape(x.shape)

    def extra_repr(self) -> str:
        return " x ".join(map(str, self.factors))


def random_signs(size: int, seed: int) -> Tensor:
    """+1 or -1 each, float32 [size], the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1


def _sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _bordered(q: int, corner: float) -> Tensor:
    """[[0, 1], [corner, Q]] with Q the Jacobsthal matrix: the quadratic character of i - j mod q."""
    squares = {x * x % q for x in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)])
    index = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = corner
    matrix[1:, 1:] = character[(index[:, None] - index[None]) % q]
    return matrix


def _second_kind(order: int) -> bool:
    q = order // 2 - 1
    return order % 4 == 0 and q % 4 == 1 and _is_prime(q)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
