"""The int8 backend against an int64/float64 reference of its own formulas, written out here.

On a GPU as it is; without one in Triton's interpreter, where ``TRITON_INTERPRET=1`` is set and
Triton is installed.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qvgen.fake_quant import token_fake_quant, token_range, token_scale
from qvgen.fused import switch
from qvgen.packed import triton_linear, triton_operands, triton_product
from qvgen.packed.layout import row_bytes
from qvgen.packed.triton_linear import Int8Weight, Tokens
from qvgen.packed.triton_table import Entry, Tiles, _shipped, nearest, parse, tiles_for
from tests.qvgen.triton_cases import draw

BITS = [2, 3, 4, 8]
# A tile larger and smaller than the matrices; one program for a tile, and few that go on to the next.
SMALL = [
    Tiles(32, 32, 32, 4, 2),
    Tiles(16, 64, 64, 4, 2, group=2, per_sm=1, split=True, flatten=True),
    Tiles(32, 64, 32, 4, 2, split=True, whole=True),
]


def packed(codes: Tensor, bits: int) -> Tensor:
    """Rows of whole groups of 32 codes, bit by bit, least significant first."""
    padded = F.pad(codes, (0, -codes.shape[1] % 32))
    stream = ((padded[:, :, None] >> torch.arange(bits)) & 1).reshape(len(codes), -1, 8)
    return (stream << torch.arange(8)).sum(-1).to(torch.uint8)


def layer(
    codes: Tensor, bits: int, device: str, *, q_max: int = 15, symmetric: bool = False, bias: bool = True,
    seed: int = 0, dtype: torch.dtype = torch.float32,
) -> Int8Weight:  # fmt: skip
    """A layer of these codes with drawn scales, zero points (beyond the codes too) and bias."""
    rows = len(codes)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, 1, generator=generator) * 0.1 + 0.01
    zero = (torch.rand(rows, 1, generator=generator) * 1.4 - 0.2) * (2**bits - 1)
    one = torch.ones(1, device=device)
    return Int8Weight(
        packed(codes, bits).to(device), bits, (rows, codes.shape[1]), scale.to(device), zero.to(device),
        codes.sum(1).to(torch.int32).to(device),
        draw(rows, seed=seed + 1).to(dtype).to(device) if bias else None,
        one * 0.9, one * 0.8, q_max, symmetric,
    )  # fmt: skip


def drawn(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


def reference_tokens(x: Tensor, weight: Int8Weight) -> tuple[Tensor, Tensor, Tensor]:
    """q - z as int64, z and the scale, by the plain formulas on the same device."""
    low, high = token_range(x.reshape(-1, x.shape[-1]))
    scale, zero = token_scale(
        low * weight.lower, high * weight.upper, weight.q_max, symmetric=weight.symmetric
    )
    whole = (x.reshape(-1, x.shape[-1]).float() / scale).round()
    return whole.maximum(-zero).minimum(weight.q_max - zero).long(), zero.long(), scale


def reference(x: Tensor, codes: Tensor, weight: Int8Weight) -> tuple[Tensor, Tensor]:
    """The output in float64, and for each element the size of the terms that make it."""
    a, _, scale = (t.cpu() for t in reference_tokens(x, weight))
    exact = a.double() @ codes.double().T  # whole numbers below 2^53
    total = a.sum(1, keepdim=True).double()
    w_scale, w_zero = weight.scale.cpu().double().T, weight.zero_point.cpu().double().T
    y = (exact - total * w_zero) * scale.double() * w_scale
    size = exact.abs() + (total * w_zero).abs() + total.abs() * 2 ** (weight.bits - 1)  # codes are centred
    size = size * scale.double() * w_scale
    if weight.bias is not None:
        y, size = y + weight.bias.cpu().double(), size + weight.bias.cpu().double().abs()
    return (F.gelu(y, approximate="tanh") if weight.gelu else y), size


def one_rounding(ours: Tensor, exact: Tensor, size: Tensor) -> None:
    """``ours`` is ``exact`` rounded once, to within the float32 error of terms of ``size``."""
    step = {torch.float32: 2.0**-22, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[ours.dtype]
    if ours.dtype == torch.bfloat16 and ours.device.type == "cpu":
        step *= 2  # Triton's interpreter cuts where hardware rounds
    allowed = exact.abs() * step + size * 2.0**-21 + (2.0**-25 if ours.dtype == torch.float16 else 0)
    worst = ((ours.cpu().double() - exact).abs() / allowed.clamp(min=1e-300)).max()
    assert worst <= 1, f"{float(worst)} times what is allowed"


def held(tokens: Tokens, columns: int) -> Tensor:
    """q - z of quantized tokens, int64."""
    codes = tokens.codes[:, :columns].long()
    return codes if tokens.zero_point is None else codes - tokens.zero_point[:, None]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_of_tokens_are_those_of_fake_quantization(
    bits: int, symmetric: bool, dtype: torch.dtype, device: str
) -> None:
    x = draw(2, 4, 71, seed=bits)
    x[0, 0], x[0, 1], x[0, 2] = x[0, 0].abs() + 3, -x[0, 1].abs(), 0
    x[0, 3] = torch.arange(71) - 35.5  # half-way between codes
    x = x.to(dtype).to(device)
    weight = layer(drawn(1, 71, 4), 4, device, q_max=2**bits - 1, symmetric=symmetric)
    tokens = triton_linear.quantize_tokens(x, weight.lower, weight.upper, weight.q_max, symmetric)
    a, zero, scale = reference_tokens(x, weight)
    assert torch.equal(held(tokens, 71), a)
    assert torch.equal(tokens.scale, scale[:, 0])
    assert torch.equal(tokens.sums.long(), a.sum(1))
    assert not tokens.codes[:, 71:].any() and tokens.codes.shape == (8, 96)
    assert (tokens.zero_point is not None) == (bits == 8 and not symmetric)
    if tokens.zero_point is not None:
        assert torch.equal(tokens.zero_point.long() + 128, zero[:, 0])
    fake = token_fake_quant(x.float(), weight.lower, weight.upper, weight.q_max, symmetric=symmetric)
    assert torch.equal((held(tokens, 71) * tokens.scale[:, None]).view(x.shape), fake)


def test_nan_shows_in_its_row_only(device: str) -> None:
    x = draw(3, 40).to(device)
    x[1, 7] = math.nan
    codes = drawn(8, 40, 4)
    y = triton_linear.int8_linears(x, [layer(codes, 4, device)])[0]
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 100])
def test_expanded_codes(bits: int, columns: int, device: str) -> None:
    codes = drawn(5, columns, bits, seed=columns)
    codes[0], codes[1] = 0, 2**bits - 1
    stream = packed(codes, bits).to(device)
    assert stream.shape[1] == row_bytes(columns, bits)
    out = triton_linear.expand_codes(stream, bits, (5, columns)).cpu()
    assert torch.equal(out[:, :columns].long() + 2 ** (bits - 1), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("q_max", [3, 15, 255])
@pytest.mark.parametrize("tiles", SMALL)
@pytest.mark.parametrize("descriptors", [False, True])
def test_products_of_ragged_shapes(
    bits: int, q_max: int, tiles: Tiles, descriptors: bool, device: str
) -> None:
    if descriptors and device == "cuda" and not triton_linear.copy_engine(torch.device(device)):
        pytest.skip("needs Hopper")
    x, codes = draw(37, 71, seed=bits).to(device), drawn(72, 71, bits)
    tiles = replace(tiles, bm=64) if device == "cuda" else tiles
    weight = layer(codes, bits, device, q_max=q_max)
    tokens = triton_linear.quantize_tokens(x, weight.lower, weight.upper, q_max, False)
    expanded = triton_linear.expand_codes(weight.codes, bits, weight.shape)
    y = triton_linear.multiply(tokens, expanded, weight, torch.float32, tiles, descriptors)
    one_rounding(y, *reference(x, codes, weight))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(out_dtype: torch.dtype, symmetric: bool, gelu: bool, bias: bool, device: str) -> None:
    x, codes = draw(2, 9, 40).to(device), drawn(19, 40, 4)  # rows of 19 are none for the copy engine
    weight = replace(layer(codes, 4, device, symmetric=symmetric, bias=bias), gelu=gelu)
    y = triton_linear.int8_linear(
        x, weight.codes, 4, weight.shape, weight.scale, weight.zero_point, weight.row_sums, weight.bias,
        weight.lower, weight.upper, 15, symmetric, gelu, out_dtype,
    )  # fmt: skip
    assert y.shape == (2, 9, 19) and y.dtype == out_dtype
    one_rounding(y.view(18, 19), *reference(x, codes, weight))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", ["low", "high", "mixed"])
def test_worst_codes(bits: int, value: str, device: str) -> None:
    """All codes at an end: the largest sums there are."""
    codes = torch.full((16, 640), {"low": 0, "high": 2**bits - 1, "mixed": 2**bits - 1}[value])
    x = torch.ones(4, 640)
    x[1] = -1
    if value == "mixed":
        codes[::2], x[2, ::2] = 0, -1
    x = x.to(device)
    weight = layer(codes, bits, device, q_max=255)
    y = triton_linear.int8_linears(x, [weight])[0]
    one_rounding(y, *reference(x, codes, weight))


@pytest.mark.parametrize("shared_clips", [False, True])
def test_linears_of_one_input_are_those_of_each(shared_clips: bool, device: str) -> None:
    x = draw(2, 5, 40).to(device)
    weights = [layer(drawn(n, 40, b, seed=n), b, device, seed=n) for n, b in ((8, 4), (24, 3), (16, 2))]
    if not shared_clips:
        clips = [torch.tensor(c, device=device).view(2, 1, 1) for c in ([0.5, 1.0], [0.9, 0.4], [1.0, 0.7])]
        weights = [replace(w, lower=c, upper=c.flip(0)) for w, c in zip(weights, clips, strict=True)]
    together = triton_linear.int8_linears(x, weights)
    for y, weight in zip(together, weights, strict=True):
        assert torch.equal(y, triton_linear.int8_linears(x, [weight])[0])
    assert [y.shape for y in together] == [(2, 5, n) for n in (8, 24, 16)]


def test_each_sample_has_its_own_clip(device: str) -> None:
    x, codes = draw(2, 5, 40).to(device), drawn(8, 40, 4)
    clip = torch.tensor([0.5, 0.9], device=device).view(2, 1, 1)
    both = replace(layer(codes, 4, device), lower=clip, upper=clip)
    y = triton_linear.int8_linears(x, [both])[0]
    for i in range(2):
        alone = replace(both, lower=clip[i].view(1), upper=clip[i].view(1))
        one_rounding(y[i], *reference(x[i], codes, alone))


def test_operators_under_a_tracer(device: str) -> None:
    x, weights = (
        draw(2, 5, 40).to(device),
        [layer(drawn(8, 40, 4), 4, device), layer(drawn(24, 40, 3), 3, device)],
    )
    weights[1] = replace(weights[1], bias=None)
    torch.compiler.reset()

    def model(x: Tensor) -> list[Tensor]:
        w = weights[0]
        one = triton_linear.int8_linear(
            x, w.codes, w.bits, w.shape, w.scale, w.zero_point, w.row_sums, w.bias, w.lower, w.upper, w.q_max,
            w.symmetric, True, x.dtype,
        )  # fmt: skip
        return [one * 2, *triton_linear.int8_linears(x, weights)]

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for a, b in zip(compiled(x), model(x), strict=True):
        assert torch.equal(a, b)


def test_operator_passes_torch_checks(device: str) -> None:
    x, w = draw(3, 40).to(device), layer(drawn(8, 40, 4), 4, device)
    given = (
        x, w.codes, w.bits, list(w.shape), w.scale, w.zero_point, w.row_sums, w.bias, w.lower, w.upper,
        w.q_max, w.symmetric, False, torch.float32,
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.qvgen.int8_linear.default, given, test_utils=("test_schema", "test_faketensor")
    )


def test_linears_that_do_not_go_together_are_refused() -> None:
    x = draw(3, 40)
    a = layer(drawn(8, 40, 4), 4, "cpu")
    for other, message in (
        (replace(a, q_max=7), "q_max 15 and 7"),
        (replace(a, symmetric=True), "symmetric False and True"),
        (replace(a, lower=torch.ones(3, 1)), "one shape"),
        (replace(a, shape=(8, 41)), "40 and 41 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            triton_linear.int8_linears(x, [a, other])
    with pytest.raises(ValueError, match="at least one"):
        triton_linear.int8_linears(x, [])


def test_a_device_without_kernels_does_not_fit() -> None:
    assert not triton_linear.runs_on(torch.device("meta"))


def test_table_of_tiles() -> None:
    best, other = Tiles(128, 256, 128, 8, 3), Tiles(64, 64, 64, 4, 2)
    text = json.dumps(
        {
            "gemm": [
                {"m": 17776, "n": 1920, "k": 1920, "tiles": asdict(best), "tflops": 1000.0},
                {"m": 17776, "n": 7680, "k": 1920, "tiles": asdict(other)},
            ],
            "quantize": {},
        }
    )
    entries, _ = parse(text)
    assert entries[0] == Entry(17776, 1920, 1920, best)
    assert nearest(entries, 16000, 1536, 1536) == best
    assert nearest(entries, 17776, 7000, 1920) == other
    assert nearest(entries, 17776, 1920, 7680) is None and nearest(entries, 226, 1920, 1920) is None


def test_without_jobs_the_best_that_was_measured_without_is_taken() -> None:
    """By the shipped table itself, read here again; where nothing was measured, tiles of the same size."""
    table = json.loads((Path(triton_linear.__file__).parent / "triton_table.json").read_text())["gemm"]
    with_jobs = [entry for entry in table if entry["tiles"].get("jobs")]
    assert len(with_jobs) >= 9
    for entry in with_jobs:
        others = [one for one in entry["tried"] if not one["tiles"]["jobs"]]
        fastest = min(others, key=lambda one: float(one["ms"]))
        shape = entry["m"], entry["n"], entry["k"]
        assert tiles_for(*shape, True).jobs
        assert asdict(tiles_for(*shape, True, False)) == fastest["tiles"]
    far = (9000, 8000, 300)
    assert tiles_for(*far, True).jobs and not tiles_for(*far, True, False).jobs
    best = Tiles(128, 128, 128, 4, 6, jobs=True)
    assert nearest([Entry(1, 1, 1, best)], 1, 1, 1, False) == best.without_jobs()
    assert nearest([Entry(1, 1, 1, best, Tiles(64, 64, 64, 4, 2))], 1, 1, 1, False) == Tiles(64, 64, 64, 4, 2)


@pytest.mark.parametrize(
    ("dtype", "offset", "jobs", "wanted"),
    [(torch.bfloat16, False, True, "jobs"), (torch.bfloat16, False, False, "measured"),
     (torch.bfloat16, True, True, "measured"), (torch.float32, False, True, "same size")],
)  # fmt: skip
def test_what_the_kernel_with_jobs_does_not_do(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, offset: bool, jobs: bool, wanted: str
) -> None:
    """On a Hopper GPU, where the plan is looked up without anything being launched."""
    pytest.importorskip("triton")
    facts = {"capability": (9, 0), "copy_engine": True, "multiprocessors": 132, "has_jobs": jobs}
    for name, value in facts.items():
        monkeypatch.setattr(triton_product, name, (lambda found: lambda *_: found)(value))
    shape = 17776, 1920, 1920
    way = triton_product._chosen.__wrapped__(
        shape[0], shape[1:], torch.device("cuda"), dtype, offset, True, False, 4, None, None
    )
    best = tiles_for(*shape, True)
    known = {"jobs": best, "measured": tiles_for(*shape, True, False), "same size": best.without_jobs()}
    assert way.tiles == known[wanted] and len(set(known.values())) == 3


@pytest.mark.parametrize(
    "text",
    ["{}", '{"gemm": [{}], "quantize": {}}', '{"gemm": [], "quantize": []}',
     '{"gemm": [{"m": 1, "n": 1, "k": 1, "tiles": {"bm": 1}}], "quantize": {}}'],
)  # fmt: skip
def test_a_broken_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tiles"):
        parse(text)


@pytest.mark.parametrize("copy_engine", [False, True])
def test_every_shape_has_tiles(copy_engine: bool) -> None:
    shapes = [(1, 64, 64), (226, 1920, 1920), (17776, 1920, 7680), (32760, 13824, 5120)]
    for tiles in (tiles_for(*shape, copy_engine) for shape in shapes):
        stages_bytes = tiles.stages * (tiles.bm + tiles.bn) * tiles.bk
        assert stages_bytes <= (227 if copy_engine else 99) * 1024


REAL = [(64, 64), (1536, 896), (1920, 1920), (5120, 640), (7680, 520), (13824, 648)]


@pytest.mark.cuda
@pytest.mark.parametrize(("columns", "rows"), REAL)
@pytest.mark.parametrize(("bits", "q_max"), [(2, 3), (3, 7), (4, 15), (8, 255)])
@pytest.mark.parametrize("worst", [False, True])
def test_real_shapes(columns: int, rows: int, bits: int, q_max: int, worst: bool) -> None:
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    x = draw(1111, columns).to(torch.bfloat16).to("cuda")
    codes = drawn(rows, columns, bits)
    if worst:
        x[::2], x[1::3], codes[::2], codes[1::4] = 1, -1, 2**bits - 1, 0
    weight = layer(codes, bits, "cuda", q_max=q_max, dtype=torch.bfloat16)
    tokens = triton_linear.quantize_tokens(x, weight.lower, weight.upper, q_max, False)
    a, _, _ = reference_tokens(x, weight)
    assert torch.equal(held(tokens, columns), a)
    y = triton_linear.int8_linears(x, [weight])[0]
    one_rounding(y, *reference(x, codes, weight))


@pytest.mark.cuda
def test_division_by_the_reciprocal_is_division() -> None:
    """Quotients at and beside the middle of two codes, where a last bit decides."""
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    generator = torch.Generator().manual_seed(0)
    top = torch.exp(torch.empty(4096, 1).uniform_(-30, 30, generator=generator))
    halves = torch.randint(0, 255, (4096, 2048), generator=generator) + 0.5
    x = (top.double() / 255 * halves.double()).float()
    turn = torch.randint(-1, 2, x.shape, generator=generator)
    x = torch.where(turn == 0, x, torch.nextafter(x, turn * math.inf))
    x[:, 0] = top[:, 0]
    one = torch.ones(1, device="cuda")
    tokens = triton_linear.quantize_tokens(x.cuda(), one, one, 255, False)
    expected = reference_tokens(
        x.cuda(), replace(layer(drawn(1, 2048, 4), 4, "cuda", q_max=255), lower=one, upper=one)
    )
    assert torch.equal(held(tokens, 2048), expected[0])


@pytest.mark.cuda
def test_a_graph_replays_on_new_input() -> None:
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    weights: list[Any] = [layer(drawn(256, 512, b), b, "cuda") for b in (3, 4)]
    x = draw(300, 512).cuda()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        triton_linear.int8_linears(x, weights)
    with torch.cuda.graph(graph, stream=stream):
        outs = triton_linear.int8_linears(x, weights)
    x.copy_(draw(300, 512, seed=5))
    graph.replay()
    for a, b in zip(outs, triton_linear.int8_linears(x, weights), strict=True):
        assert torch.equal(a, b)


def test_far_from_the_table_large_products_take_warps_with_jobs() -> None:
    """Shapes of Wan2.2-5B (3072, 14336), which nobody measured; small ones are launched the cheap way."""
    assert nearest(_shipped()[0], 18480, 14336, 3072) is None
    assert tiles_for(18480, 14336, 3072, True).jobs and tiles_for(18480, 3072, 2048, True).jobs
    assert not tiles_for(16320, 240, 240, True).jobs and not tiles_for(200, 14336, 3072, True).jobs
    assert not tiles_for(18480, 14336, 3072, False).jobs


@pytest.mark.parametrize(
    ("capability", "kilobytes", "wanted"),
    [((8, 0), 163, False), ((9, 0), 227, True), ((10, 0), 227, True), ((12, 0), 99, False)],
)
def test_tiles_of_descriptors_need_hoppers_shared_memory(
    capability: tuple[int, int], kilobytes: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_operands, "capability", lambda _: capability)
    monkeypatch.setattr(triton_operands, "shared_memory", lambda _: kilobytes * 1024)
    assert triton_linear.copy_engine(torch.device("cuda", 0)) is wanted
    assert not triton_linear.copy_engine(torch.device("cpu"))
