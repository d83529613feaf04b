"""The fused operators against the plain reference on the same device.

On a GPU as they are; without one in Triton's interpreter, where ``TRITON_INTERPRET=1`` is set and
Triton is installed (it is no dependency of the library on a CPU).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen import fused
from qvgen.api import quant_layers, quantize_
from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.fake_quant import token_fake_quant, weight_fake_quant
from qvgen.fused import switch
from qvgen.fused import token as fused_token
from qvgen.fused import weight as fused_weight
from qvgen.linear import QuantLinear
from tests.qvgen.triton_cases import draw

BITS = [2, 3, 4, 8]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tokens(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Random rows; the first four are one-sided, all zero, and with extremes that occur twice."""
    x = draw(*shape, seed=seed)
    rows = x.view(-1, shape[-1])
    rows[0] = rows[0].abs() + 3
    rows[1] = -rows[1].abs()
    rows[2] = 0
    rows[3, :2], rows[3, 2:5] = 9.0, -8.0
    return x.to(dtype).to(device)


def run(
    function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients of ``function`` at fresh copies of ``leaves``."""
    mine = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*mine)
    out.backward(draw(*out.shape, seed=9).to(out) if upstream is None else upstream)
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in mine)
    return out.detach(), [leaf.grad for leaf in mine if leaf.grad is not None]


def both(
    function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor | None = None
) -> tuple[tuple[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]:
    """``run``, fused and plain; the results are equal bit for bit."""
    ours = run(function, leaves, upstream)
    with fused.disabled():
        plain = run(function, leaves, upstream)
    assert ours[0].dtype == plain[0].dtype
    if ours[0].dtype == torch.bfloat16 and not ours[0].is_cuda:
        # Triton's interpreter cuts float32 to bfloat16 where hardware rounds: one step off.
        torch.testing.assert_close(ours[0], plain[0], rtol=2**-7, atol=0.0)
    else:
        assert torch.equal(ours[0], plain[0])
    return ours, plain


def close(ours: list[Tensor], plain: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    exact = dtype == torch.float32
    for a, b in zip(ours, plain, strict=True):
        size = float(b.float().abs().max())
        rough = 2e-5 if exact or b.dtype == torch.float32 else 2**-7 if dtype == torch.bfloat16 else 2**-10
        torch.testing.assert_close(a.float(), b.float(), rtol=rough, atol=rough * max(size, 1e-6))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens(bits: int, symmetric: bool, dtype: torch.dtype, device: str) -> None:
    x = tokens(2, 3, 40, dtype=dtype, device=device, seed=bits)
    lower, upper = torch.tensor([0.9], device=device), torch.tensor([0.7], device=device)
    ours, plain = both(
        lambda *leaves: token_fake_quant(*leaves, 2**bits - 1, symmetric=symmetric), [x, lower, upper]
    )
    close(ours[1], plain[1], dtype)


@pytest.mark.parametrize("shape", [(4, 1), (5, 16), (4, 129), (1, 6, 700), (2, 2, 2048)])
def test_tokens_of_any_width(shape: tuple[int, ...], device: str) -> None:
    x = tokens(*shape, dtype=torch.float32, device=device) if shape[-1] > 8 else draw(*shape).to(device)
    one = torch.ones(1, device=device)
    ours, plain = both(lambda x: token_fake_quant(x, one, one, 7), [x])
    close(ours[1], plain[1])


@pytest.mark.cuda
@pytest.mark.parametrize("columns", [1920, 7680, 13824, 16384])
def test_tokens_of_real_models(columns: int) -> None:
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    x = tokens(2, 888, columns, dtype=torch.bfloat16, device="cuda")
    lower, upper = torch.rand(2, 2, 1, 1, device="cuda").add(0.2).clamp(max=1)
    ours, plain = both(lambda *leaves: token_fake_quant(*leaves, 15), [x, lower, upper])
    close(ours[1], plain[1], torch.bfloat16)


def test_each_sample_has_its_own_clip(device: str) -> None:
    x = tokens(3, 4, 24, dtype=torch.float32, device=device)
    lower = torch.tensor([0.5, 0.8, 1.0], device=device).view(3, 1, 1)
    upper = torch.tensor([0.9, 0.4, 1.0], device=device).view(3, 1, 1)
    ours, plain = both(lambda *leaves: token_fake_quant(*leaves, 7), [x, lower, upper])
    close(ours[1], plain[1])


def test_equal_extremes_share_by_hand(device: str) -> None:
    # Range [0, 3], 2 bits, s = 1; upper 1: every code exact, so the only gradient of the scale is
    # d(s c)/ds - x/s = 0. Upper 0.5: s = 0.5, codes 3, 3, 2; the first two are clamped.
    x = torch.tensor([[3.0, 3.0, 1.0]], device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    half = torch.tensor([0.5], device=device, requires_grad=True)
    out = token_fake_quant(x, one, half, 3)
    assert out.tolist() == [[1.5, 1.5, 1.0]]
    out.backward(torch.tensor([[2.0, 4.0, 8.0]], device=device))
    # grad of s: 3 * 2 + 3 * 4 + (2 - 2) * 8 = 18; s = upper * max / 3, shared by two maxima.
    assert x.grad is not None and half.grad is not None
    torch.testing.assert_close(x.grad.cpu(), torch.tensor([[1.5, 1.5, 8.0]]))
    assert half.grad.item() == pytest.approx(18.0)


def test_gradients_are_the_same_bits_each_time(device: str) -> None:
    x = tokens(2, 20, 40, dtype=torch.bfloat16, device=device)
    clip = torch.tensor([0.9], device=device)
    runs = [run(lambda *leaves: token_fake_quant(*leaves, 7), [x, clip, clip])[1] for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))


def test_nan_and_infinity_are_not_hidden(device: str) -> None:
    x = draw(3, 20).to(device)
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    one = torch.ones(1, device=device)
    out = token_fake_quant(x, one, one, 15)
    assert out[0, 3].isnan() and not out[1, 4].isfinite() and out[2].isfinite().all()
    scale, zero = torch.full((3, 1), 0.1, device=device), torch.full((3, 1), 8.0, device=device)
    assert weight_fake_quant(x, scale, zero, 15)[0, 3].isnan()


def test_odd_strides_are_read_and_written_right(device: str) -> None:
    wide = tokens(4, 6, 80, dtype=torch.float32, device=device)
    one = torch.ones(1, device=device)

    def function(wide: Tensor) -> Tensor:
        return token_fake_quant(wide.transpose(0, 1)[..., 8:72], one, one, 7).sum(0)

    ours, plain = both(function, [wide], draw(64).to(device).expand(4, 64))
    close(ours[1], plain[1])


@pytest.mark.parametrize("rank", [0, 1, 5, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_with_phi(rank: int, dtype: torch.dtype, device: str) -> None:
    leaves, gamma = weight_leaves(70, 150, rank, device)

    def function(*leaves: Tensor) -> Tensor:
        phi = (leaves[3], gamma, leaves[4]) if rank else None
        return weight_fake_quant(*leaves[:3], 15, 0.1, phi=phi, dtype=dtype)

    out, grads = run(function, leaves)
    with fused.disabled():
        plain, expected = run(function, leaves)
    assert out.dtype == dtype
    if not rank and (out.is_cuda or dtype == torch.float32):
        assert torch.equal(out, plain)
    torch.testing.assert_close(out, plain, rtol=2e-6 if dtype == torch.float32 else 2**-7, atol=3e-6)
    close(grads, expected)


def weight_leaves(rows: int, columns: int, rank: int, device: str) -> tuple[list[Tensor], Tensor]:
    w = draw(rows, columns)
    scale = torch.rand(rows, 1, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.1
    zero = draw(rows, 1, seed=2) + 7
    phi = [draw(rows, rank, seed=3) * 0.1, draw(rank, columns, seed=4) * 0.1] if rank else []
    gamma = torch.linspace(1, 0, max(rank, 1), device=device)
    return [t.to(device) for t in (w, scale, zero, *phi)], gamma


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_any_dtype(bits: int, dtype: torch.dtype, device: str) -> None:
    leaves, _ = weight_leaves(9, 40, 0, device)
    leaves[0] = leaves[0].to(dtype)
    ours, plain = both(lambda *leaves: weight_fake_quant(*leaves, 2**bits - 1, 0.3), leaves)
    close(ours[1], plain[1], dtype)


@pytest.mark.parametrize("transposed", [False, True])
def test_three_parts_add_up_to_float32(device: str, transposed: bool) -> None:
    """Over a wide range of magnitudes; gamma may be zero."""
    factor = draw(5, 3000) * torch.logspace(-20, 20, 3000)
    gamma = torch.tensor([1.0, 0.3, 0.0, 1.0, 0.9])
    given = factor.mT.contiguous().mT if transposed else factor
    parts = fused_weight.in_three(given.to(device), gamma.to(device)).cpu().double()
    total = parts.view(3, 5, 3000).sum(0)
    torch.testing.assert_close(total, (factor * gamma[:, None]).double(), rtol=2**-22, atol=0.0)


@pytest.mark.cuda
@pytest.mark.parametrize("rank", [1, 5, 32, 64])
def test_gradients_of_phi_read_bfloat16_exactly(rank: int) -> None:
    """Against float64 of the bfloat16 gradient: no rounding beside that of a float32 sum."""
    grad = draw(300, 500).cuda().bfloat16()
    left, right = draw(300, rank, seed=1).cuda(), draw(rank, 500, seed=2).cuda()
    gamma = torch.linspace(1, 0, rank, device="cuda")
    ours = fused_weight._phi_gradients(grad, left, gamma, right)
    expected = (
        grad.double() @ (right * gamma[:, None]).double().mT,
        (left * gamma).double().mT @ grad.double(),
    )
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).norm()) <= 1e-6 * float(b.norm())


def test_what_does_not_fit_takes_the_reference(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Tensor:
        raise AssertionError("fused operator called")

    monkeypatch.setattr(fused_token, "token_fake_quant", forbidden)
    monkeypatch.setattr(fused_weight, "weight_fake_quant", forbidden)
    one = torch.ones(1, device=device)
    for x in (
        draw(2, 8).double(),
        draw(2, switch.MAX_COLUMNS + 1),
        draw(8, 2).t(),
        draw(0, 8),
    ):
        assert token_fake_quant(x.to(device), one.to(x.dtype), one.to(x.dtype), 7).shape == x.shape
    x = draw(2, 3, 8).to(device)
    assert token_fake_quant(x, torch.ones(2, 3, 1, device=device), one, 7).shape == x.shape
    w = draw(4, 8).to(device)
    for shape in ((1, 1), (4, 2)):
        grid = torch.ones(shape, device=device)
        assert weight_fake_quant(w, grid, grid, 7).shape == w.shape
    with fused.disabled():
        token_fake_quant(x, one, one, 7)
    with pytest.raises(AssertionError, match="fused operator called"):
        token_fake_quant(x, one, one, 7)


@pytest.mark.filterwarnings("ignore")
def test_operators_keep_torchs_rules(device: str) -> None:
    """Schema, fake tensors, autograd registration: what torch.compile relies on."""
    x = tokens(2, 4, 24, dtype=torch.float32, device=device).requires_grad_()
    clip = torch.tensor([0.9], device=device, requires_grad=True)
    torch.library.opcheck(fused_token._forward, (x, clip, clip, 7, False, torch.float32))
    leaves, gamma = weight_leaves(20, 40, 4, device)
    w, s, z, left, right = (leaf.requires_grad_() for leaf in leaves)
    torch.library.opcheck(fused_weight._forward, (w, s, z, left, gamma, right, 7, 0.1, torch.float32))


def layer(device: str, rank: int = 4) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24))
    quant = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
    config: QuantConfig | QVGenConfig = QVGenConfig(quant=quant, rank=rank) if rank else quant
    return quantize_(model, config).to(device), draw(2, 10, 40).to(device)


def gradients(model: nn.Module, x: Tensor, precision: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    model = copy.deepcopy(model)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        out = model(x)
    out.float().square().sum().backward()
    return out.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_layer_trains_alike(precision: torch.dtype, device: str) -> None:
    model, x = layer(device)
    out, grads = gradients(model, x, precision)
    with fused.disabled():
        plain, expected = gradients(model, x, precision)
    assert out.dtype == plain.dtype == precision
    assert len(grads) == len(expected) == len(list(model.parameters())) == 8
    rough = 1e-5 if precision == torch.float32 else 0.02
    torch.testing.assert_close(out, plain, rtol=rough, atol=rough)
    for a, b in zip(grads, expected, strict=True):
        assert float((a - b).norm()) <= rough * float(b.norm())


def test_a_layer_keeps_its_input_and_two_numbers_a_token(device: str) -> None:
    """Beside what a plain linear saves: nothing of the size of the activations but ``x`` itself."""
    model, x = layer(device)
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x)
    [(_, quantized)] = list(quant_layers(model))
    assert isinstance(quantized, QuantLinear) and isinstance(quantized.phi, Phi)
    linear = x.nbytes + 40 * 24 * 4  # quantized input and effective weight
    masters = sum(p.nbytes for p in model.parameters())
    small = 24 * 4 * 4 + 20 * 2 * 4 + 4 * 4 + 64  # scale, ranges, gamma, clips
    assert sum(saved.values()) <= linear + x.nbytes + masters + small


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.cuda, pytest.mark.slow])]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_is_one_graph_and_agrees(
    backend: str, precision: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = layer(device)
    out, grads = gradients(model, x, precision)
    called: list[str] = []
    fused_linear = fused_weight.weight_fake_quant
    monkeypatch.setattr(
        fused_weight, "weight_fake_quant", lambda *a: (called.append("w"), fused_linear(*a))[1]
    )
    compiled, expected = gradients(
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False),  # type: ignore[arg-type]
        x,
        precision,
    )
    assert called  # traced through the fused operator
    rough = 1e-4 if precision == torch.float32 else 0.02
    torch.testing.assert_close(out, compiled, rtol=rough, atol=rough)
    for a, b in zip(grads, expected, strict=True):
        assert float((a - b).norm()) <= 10 * rough * float(b.norm())


@pytest.mark.cuda
def test_a_layer_is_recorded_as_a_cuda_graph() -> None:
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    model, x = layer("cuda")
    out, grads = gradients(model, x, torch.float32)
    stream = torch.cuda.Stream()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        result: Tensor = model(x)
        result.square().sum().backward()
        return result

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        recorded = step()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(recorded, out)
    for a, p in zip(grads, model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, a)
