"""Where float8 products of integer codes are exact: the rule, and a model of Hopper's accumulator.

The model: a unit sums 32 products at a time; each is cut towards zero to a multiple of 2^(e - 13), e being
the exponent of the running sum. With slow accumulation the running sum starts anew every 128 products and
what was summed goes to float32. It reproduces, to the last unit, what constant codes gave on an H100.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvgen.config import QuantConfig
from qvgen.packed import backends
from qvgen.packed.backends import Backend, code_sizes, obstacle
from qvgen.packed.layout import ActivationSpec, PackedWeight
from qvgen.packed.linear import PackedLinear
from qvgen.packed.products import fp8_product
from tests.qvgen.packed.test_linear import frozen

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
STEP, CHUNK, BITS_KEPT = 32, 128, 13


def emulated(a: Ints, w: Ints, *, slow: bool = True) -> float:
    """Sum of a * w as the model has it; [K] each."""
    total = np.float32(0)
    running = 0
    for start in range(0, len(a), STEP):
        if slow and start % CHUNK == 0:
            total, running = np.float32(total + np.float32(running)), 0
        quantum = 1 if abs(running) < 2 else max(1, 2 ** (int(math.log2(abs(running))) - BITS_KEPT))
        products = a[start : start + STEP] * w[start : start + STEP]
        running += int((np.sign(products) * (np.abs(products) // quantum) * quantum).sum())
    return float(np.float32(total + np.float32(running)))


def constant(a: int, w: int, count: int) -> tuple[Ints, Ints]:
    return np.full(count, a, dtype=np.int64), np.full(count, w, dtype=np.int64)


@pytest.mark.parametrize(
    ("a", "w", "count", "slow", "loss"),
    [
        (-8, -8, 1920, True, 0), (-8, -8, 13824, True, 0), (-8, -8, 13824, False, 0),
        (7, -8, 1920, True, 0), (7, -8, 13824, True, 0), (7, -8, 1920, False, 0),
        (15, 15, 1920, True, 480), (15, 15, 13824, True, 3456),
    ],
)  # fmt: skip
def test_the_model_gives_what_was_measured(a: int, w: int, count: int, slow: bool, loss: int) -> None:
    assert abs(a * w * count) - abs(emulated(*constant(a, w, count), slow=slow)) == loss


def test_fast_accumulation_is_wrong_for_long_sums() -> None:
    """Measured as off by 15872, with K split by the library; unsplit by more."""
    assert 7 * 8 * 13824 - abs(emulated(*constant(7, -8, 13824), slow=False)) == 249856


def allows(w_bits: int, a_bits: int, count: int, *, symmetric: bool = False, static: bool = False) -> bool:
    """Whether the backend takes such a layer, leaving the device aside."""
    one = torch.ones(1)
    weight = PackedWeight(
        torch.empty(0, dtype=torch.uint8), torch.ones(16, 1), torch.ones(16, 1), w_bits, (16, count)
    )
    spec = ActivationSpec(a_bits, "token", 0, symmetric, static, one, one)
    reason = obstacle(Backend.SCALED_MM, weight, spec, torch.device("cpu"))
    assert reason is not None
    return reason.startswith("needs an NVIDIA GPU")


def ends(w_bits: int, a_bits: int, symmetric: bool, static: bool) -> tuple[list[int], list[int]]:
    """Least and largest codes as they are multiplied, from their definition."""
    half = 2 ** (a_bits - 1)
    a = [-half, half - 1] if symmetric or static or a_bits == 8 else [1 - 2**a_bits, 2**a_bits - 1]
    return a, [-(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1]


KINDS = list(itertools.product(range(2, 9), range(2, 9), ((False, False), (True, False), (False, True))))


@pytest.mark.parametrize(("w_bits", "a_bits", "kind"), KINDS)
def test_every_kind_that_is_allowed_is_exact_at_its_worst(
    w_bits: int, a_bits: int, kind: tuple[bool, bool]
) -> None:
    symmetric, static = kind
    a_ends, w_ends = ends(w_bits, a_bits, *kind)
    allowed = allows(w_bits, a_bits, 13824, symmetric=symmetric, static=static)
    sums_exact = all(
        emulated(*constant(a, w, count)) == a * w * count
        for a, w, count in itertools.product(a_ends, w_ends, (128, 1920, 13824))
    )
    codes = [*a_ends, *w_ends]
    held = all(float(torch.tensor(float(code)).to(torch.float8_e4m3fn)) == code for code in codes)
    assert not allowed or (sums_exact and held)
    if w_bits <= 4 and a_bits <= 4:
        assert allowed
    if a_bits > 5 or w_bits > 5:
        assert not allowed


def test_codes_that_are_not_centred_would_not_do() -> None:
    """Both less a zero point at an end of the range: what the layer does not multiply, and why."""
    assert emulated(*constant(15, 15, 128)) != 15 * 15 * 128
    assert code_sizes(
        PackedWeight(torch.empty(0), torch.ones(1, 1), torch.ones(1, 1), 4, (16, 16)),
        ActivationSpec(4, "token", 0, False, False, torch.ones(1), torch.ones(1)),
    ) == (15, 8)


@given(
    seed=st.integers(0, 2**31), count=st.sampled_from([16, 128, 1920, 5120, 13824]),
    extreme=st.floats(0, 1), sign=st.sampled_from([-1, 1]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_codes_of_four_bits(seed: int, count: int, extreme: float, sign: int) -> None:
    """Random ones, and such that most products have the largest size and one sign."""
    generator = np.random.default_rng(seed)
    a, w = generator.integers(-15, 16, count), generator.integers(-8, 8, count)
    worst = generator.random(count) < extreme
    a[worst], w[worst] = -15 * sign, -8
    assert emulated(a, w) == int((a * w).sum())


def test_sums_beyond_float32_are_refused() -> None:
    assert allows(4, 4, 139776) and not allows(4, 4, 139824)
    assert 139776 * 120 <= 2**24 < 139824 * 120


def test_reasons_name_the_layer() -> None:
    layer = frozen(QuantConfig(w_bits=8, a_bits=8), (32, 32))
    with pytest.raises(ValueError, match=r"at 8 and 8 bits codes go to 128 and 128; use backend auto"):
        PackedLinear.from_frozen(layer, Backend.SCALED_MM)
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (24, 32))
    with pytest.raises(ValueError, match=r"multiples of 16; the layer is \[24, 32\]"):
        PackedLinear.from_frozen(layer, Backend.SCALED_MM)


@pytest.mark.parametrize(("capability", "taken"), [((8, 9), False), ((9, 0), True), ((10, 0), False)])
def test_only_where_it_was_measured(
    capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    packed = PackedLinear.from_frozen(frozen(QuantConfig(w_bits=4, a_bits=4), (32, 32)))
    spec = packed.activation_spec(torch.zeros(1, 1, 32))
    reason = obstacle(Backend.SCALED_MM, packed.packed_weight(), spec, torch.device("cuda"))
    assert (reason is None) == taken


def test_the_layer_multiplies_the_same_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own path on a CPU, where torch sums float8 products in float32, against the reference."""
    monkeypatch.setattr(backends, "_fp8_obstacle", lambda *given: None)
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (32, 1920))
    x = torch.randn(1, 17, 1920, generator=torch.Generator().manual_seed(0))
    ours, wanted = (PackedLinear.from_frozen(layer, b)(x) for b in (Backend.SCALED_MM, Backend.REFERENCE))
    torch.testing.assert_close(ours, wanted, rtol=2e-6, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("a", "w"), [(15, -8), (-15, -8), (15, 7), (-15, 7)])
@pytest.mark.parametrize("columns", [1920, 13824])
def test_worst_codes(columns: int, a: int, w: int, device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("of Hopper")
    left = torch.full((128, columns), a, dtype=torch.int8, device=device)
    right = torch.full((64, columns), w, dtype=torch.int8, device=device)
    got = fp8_product(left, right.to(torch.float8_e4m3fn))
    assert got.dtype == torch.float32 and (got.double() == a * w * columns).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_random_codes(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-15, 16, (64, 1920), generator=generator).to(torch.int8).to(device)
    w = torch.randint(-8, 8, (48, 1920), generator=generator).to(torch.int8).to(device)
    got = fp8_product(a, w.to(torch.float8_e4m3fn)).cpu().numpy()
    wanted = a.cpu().numpy().astype(np.int64) @ w.cpu().numpy().astype(np.int64).T
    assert np.array_equal(got, wanted)
