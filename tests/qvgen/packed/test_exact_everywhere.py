"""Every backend on every device at the sizes of real models: sums of int64, one rounding, worst codes too."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from qvgen.config import QuantConfig
from qvgen.packed import triton_linear
from qvgen.packed.activations import Quantized, quantize_activations
from qvgen.packed.backends import Backend, obstacle
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import reads
from qvgen.packed.sources import Read
from qvgen.packed.triton_linear import Tokens
from qvgen.packed.triton_product import has_jobs
from qvgen.packed.triton_table import Tiles
from tests.qvgen.packed.test_linear import frozen
from tests.qvgen.triton_cases import interpreted

ROWS = 48  # of a weight
DEPTHS = [64, 96, 1536, 1920, 5120, 7680, 8960, 13824]
TOKENS = [1, 17, 33, 129]
PLACES = [
    pytest.param(Backend.REFERENCE, "cpu"),
    pytest.param(Backend.CPU, "cpu"),
    pytest.param(Backend.TRITON_INT8, "cpu", marks=interpreted),
    pytest.param(Backend.REFERENCE, "cuda", marks=pytest.mark.cuda),
    pytest.param(Backend.TRITON_INT8, "cuda", marks=pytest.mark.cuda),
    pytest.param(Backend.SCALED_MM, "cuda", marks=pytest.mark.cuda),
]


def inputs(kind: str, tokens: int, depth: int) -> Tensor:
    """Drawn numbers, or such that all codes lie at one end, or at both in turns."""
    if kind == "random":
        x = torch.randn(1, tokens, depth, generator=torch.Generator().manual_seed(depth))
        x[0, 0] = x[0, 0].abs() + 1
        return x
    x = torch.ones(1, tokens, depth)
    x[:, 1::3] = -1
    x[:, 2::3, ::2] = -1
    return x


def weight_codes(kind: str, bits: int, depth: int) -> Tensor:
    top = 2**bits - 1
    if kind == "random":
        return torch.randint(0, top + 1, (ROWS, depth), generator=torch.Generator().manual_seed(bits))
    codes = torch.zeros(ROWS, depth, dtype=torch.long)
    codes[1::3] = top
    codes[2::3, ::2] = top
    return codes


def packed_layer(
    kind: str, bits: int, depth: int, backend: Backend, device: str
) -> tuple[PackedLinear, Tensor]:
    """A layer of these codes whose input keeps its whole range; and the codes."""
    layer = frozen(QuantConfig(w_bits=bits, a_bits=bits), (ROWS, depth), seed=bits)
    codes = weight_codes(kind, bits, depth)
    layer.codes.copy_(codes)
    layer.refresh_()
    reference = PackedLinear.from_frozen(layer.to(device), Backend.REFERENCE)
    spec = reference.activation_spec(torch.zeros(1, 1, depth, device=device))
    reason = obstacle(backend, reference.packed_weight(), spec, torch.device(device))
    if reason is not None:
        pytest.skip(f"{backend.value} {reason}")
    return PackedLinear.from_frozen(layer, backend), codes


def whole(read: Read, depth: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Activation codes less their zero points, int64 [M, K]."""
    quantized = read.quantized
    zero = quantized.zero_point if isinstance(quantized, Tokens) else quantized.zero
    codes = quantized.codes[:, :depth].cpu().numpy().astype(np.int64)
    if zero is None:
        return codes
    points = zero.cpu().numpy().reshape(-1, 1)
    return np.asarray(codes - points.astype(np.int64))


def plain_codes(x: Tensor, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Of tokens [M, K], by the definition, in float32 where a code is decided: q - z."""
    values, top = x.numpy(), np.float32(2**bits - 1)
    low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    scale = np.maximum((high - low) / top, np.float32(1e-9))[:, None]
    zero = np.clip(np.rint(-low[:, None] / scale), 0, top)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, top) - zero).astype(np.int64))


def quantized(layer: PackedLinear, x: Tensor) -> Read:
    """What the layer multiplies: as its kernels make it, or as plain torch does."""
    (read,) = reads(x, [layer])
    if isinstance(read, Read):
        return read
    return Read(tuple(x.shape), x.dtype, quantize_activations(x, layer.activation_spec(x)))


def scales(read: Read) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    found = read.quantized
    assert isinstance(found, Quantized | Tokens)
    return np.asarray(found.scale.double().cpu().numpy().reshape(-1, 1))


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sums_and_outputs(bits: int, depth: int, backend: Backend, device: str) -> None:
    if backend is Backend.TRITON_INT8 and device == "cpu" and depth > 96:
        pytest.skip("an interpreter is slow")
    on_gpu = device == "cuda"
    for kind in ("random", "worst"):
        layer, codes = packed_layer(kind, bits, depth, backend, device)
        w = codes.numpy().astype(np.int64)
        for tokens in TOKENS if on_gpu else TOKENS[:3]:
            x = inputs(kind, tokens, depth)
            read = quantized(layer, x.to(device))
            a = whole(read, depth)
            if kind == "worst":  # exact fractions: no value lies between two codes
                assert np.array_equal(a, plain_codes(x[0], bits))
            exact = a @ w.T
            assert np.abs(exact).max() < 2**53
            w_scale, w_zero = (t.double().cpu().numpy().T for t in (layer.scale, layer.zero_point))
            total, step = a.sum(1, keepdims=True), scales(read) * w_scale
            assert layer.bias is not None
            bias = layer.bias.detach().double().cpu().numpy()
            wanted = (exact - total * w_zero) * step + bias
            terms = (np.abs(exact) + np.abs(total * w_zero) + np.abs(total) * 2.0 ** (bits - 1)) * step
            if bits == 8:  # held less 128 on both sides, with corrections for both
                terms = terms + depth * 4.0 ** (bits - 1) * step
            for dtype, digits in ((torch.float32, 22), (torch.bfloat16, 8)):
                if dtype == torch.bfloat16 and backend is Backend.TRITON_INT8 and not on_gpu:
                    continue  # Triton's interpreter cuts where hardware rounds
                y = layer(Read(read.shape, dtype, read.quantized))
                assert y.dtype == dtype
                allowed = np.abs(wanted) * 2.0**-digits + (terms + np.abs(bias)) * 2.0**-20
                error = np.abs(y[0].double().cpu().numpy() - wanted)
                assert (error <= allowed).all(), (kind, tokens, dtype, float((error / allowed).max()))


JOBS = [
    Tiles(128, 128, 128, 4, 6, jobs=True),
    Tiles(128, 128, 128, 4, 5, jobs=True),
    Tiles(128, 128, 64, 4, 12, jobs=True),
    Tiles(128, 128, 128, 4, 2, jobs=True),
]


@pytest.mark.cuda
@pytest.mark.parametrize("tiles", JOBS, ids=lambda tiles: f"{tiles.stages}x{tiles.bk}")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_warps_with_jobs_give_the_same_bits(tiles: Tiles, gelu: bool, bias: bool, dtype: torch.dtype) -> None:
    """Ragged in all sizes; 1 to 14 tiles a program, of 1 to 15 steps: fewer and more than a ring has stages.

    The kernel of equal warps is held against int64 elsewhere.
    """
    from tests.qvgen.packed.test_triton_linear import drawn, layer

    if torch.cuda.get_device_capability()[0] != 9 or not has_jobs():
        pytest.skip("needs Hopper and Gluon")
    for rows, outs, depth, bits in (
        (1, 8, 64, 4),
        (300, 136, 96, 3),
        (9000, 520, 1920, 4),
        (40000, 264, 448, 2),
        (20000, 264, 96, 4),
        (80000, 264, 704, 3),
    ):
        weight = replace(layer(drawn(outs, depth, bits), bits, "cuda", bias=bias), gelu=gelu)
        x = torch.randn(rows, depth, generator=torch.Generator().manual_seed(rows)).cuda()
        tokens = triton_linear.quantize_tokens(x, weight.lower, weight.upper, 15, False)
        expanded = triton_linear.expand_codes(weight.codes, bits, weight.shape)
        plain = triton_linear.multiply(tokens, expanded, weight, dtype, tiles.without_jobs())
        call = triton_linear.product_call(tokens, expanded, weight, plain, tiles)
        assert "BUFFERS" in call.constants, "the other kernel was taken"
        for _ in range(3):
            assert torch.equal(triton_linear.multiply(tokens, expanded, weight, dtype, tiles), plain)


def test_where_warps_have_no_jobs_equal_ones_take_over() -> None:
    """Float32 results, offsets, another device: tiles of the same size by the other kernel."""
    tiles = JOBS[0]
    assert tiles.buffers == 1 and JOBS[1].buffers == 2
    plain = tiles.without_jobs()
    assert not plain.jobs and (plain.bm, plain.bn, plain.bk) == (tiles.bm, tiles.bn, tiles.bk)
    assert plain.without_jobs() is plain
    assert plain.stages * (plain.bm + plain.bn) * plain.bk <= 227 * 1024


@pytest.mark.parametrize("tiles", JOBS)
def test_shared_memory_that_jobs_take(tiles: Tiles) -> None:
    """Operands of all stages, results on their way out, a barrier or two a stage: within what Hopper has."""
    operands = tiles.stages * (tiles.bm + tiles.bn) * tiles.bk
    stored = 2 * tiles.buffers * tiles.bm * 64 * 2
    assert operands + stored + 16 * (tiles.stages + 1) <= 227 * 1024
    assert tiles.bm == tiles.bn == 128 and math.log2(tiles.bk) % 1 == 0
