"""Packed linears against sums of NumPy integers."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.linear import FrozenQuantLinear
from qvgen.packed import backends
from qvgen.packed.activations import quantize_activations
from qvgen.packed.backends import Backend, obstacle
from qvgen.packed.convert import pack_, prepare_
from qvgen.packed.layout import ActivationSpec, PackedWeight
from qvgen.packed.linear import PackedLinear
from qvgen.packed.products import Operand, float64_product, int8_product, linear
from qvgen.packed.reading import linears
from qvgen.quantizers import ClipContext

BACKENDS = (Backend.REFERENCE, Backend.CPU)


def frozen(
    config: QuantConfig, shape: tuple[int, int], seed: int = 0, context: ClipContext | None = None
) -> FrozenQuantLinear:
    """A finished layer of random codes, scales, zero points and whatever quantizes its input."""
    generator = torch.Generator().manual_seed(seed)
    bias = nn.Parameter(torch.randn(shape[0], generator=generator))
    context = context or ClipContext(config.buckets)
    layer = FrozenQuantLinear(shape, bias, config, context, device=torch.device("cpu"), dtype=torch.float32)
    layer.codes.copy_(torch.randint(0, 2**config.w_bits, shape, generator=generator))
    layer.scale.uniform_(0.01, 0.1, generator=generator)
    layer.zero_point.uniform_(0, 2**config.w_bits - 1, generator=generator)
    if config.w_symmetric:
        layer.zero_point.fill_(2 ** (config.w_bits - 1))
    if config.learn_clip:
        layer.lower.uniform_(0.6, 0.9, generator=generator)
        layer.upper.uniform_(0.6, 0.9, generator=generator)
    if config.a_range == "static":
        layer.a_scale.uniform_(0.1, 0.3, generator=generator)
        layer.a_zero_point.uniform_(0, 2**config.a_bits - 1, generator=generator)
    layer.refresh_()
    return layer


def numpy_linear(layer: FrozenQuantLinear, x: Tensor) -> np.ndarray[Any, Any]:
    """The formula in float64, from the definition of the activation codes; x [B, T, K], token or tensor."""
    config, q_max = layer.config, 2**layer.config.a_bits - 1
    xs = x.float().numpy()
    axes = (1, 2) if config.a_granularity == "tensor" else (2,)
    if config.a_granularity == "group":
        xs, axes = xs.reshape(*xs.shape[:2], -1, config.a_group_size), (3,)
    if config.a_range == "static":
        s = layer.a_scale.numpy()[0]
        z = layer.a_zero_point.numpy()[0]
        codes = np.clip(np.rint(xs / s + z), 0, q_max)
    else:
        low = np.minimum(xs.min(axes, keepdims=True), 0) * layer.lower.numpy()[0]
        high = np.maximum(xs.max(axes, keepdims=True), 0) * layer.upper.numpy()[0]
        if config.a_symmetric:
            s = np.maximum(np.maximum(high, -low) / np.float32(q_max // 2), np.float32(1e-9))
            z = np.float32(q_max // 2 + 1)
        else:
            s = np.maximum((high - low) / np.float32(q_max), np.float32(1e-9))
            z = np.clip(np.rint(-low / s), 0, q_max)
        codes = np.clip(np.rint(xs / s) + z, 0, q_max)
    a = (codes.astype(np.float64) - z) * np.asarray(s, np.float64)
    groups = layer.scale.shape[1]
    w = layer.codes.numpy().reshape(len(layer.codes), groups, -1).astype(np.float64)
    scale, zero = (t.numpy().astype(np.float64) for t in (layer.scale, layer.zero_point))
    rows = np.broadcast_to(scale[..., None] * (w - zero[..., None]), (len(w), *w.shape[1:])).reshape(
        len(w), -1
    )
    assert layer.bias is not None
    return a.reshape(*x.shape) @ rows.T + layer.bias.detach().numpy()


CONFIGS = {
    "lsq+ token": {},
    "clipped": {"learn_clip": True},
    "symmetric": {"w_symmetric": True, "a_symmetric": True},
    "symmetric activations": {"a_symmetric": True},
    "tensor": {"a_granularity": "tensor"},
    "weights by tensor": {"w_granularity": "tensor"},
    "groups": {
        "w_granularity": "group", "w_group_size": 32, "a_granularity": "group", "a_group_size": 16,
    },
    "weight groups": {"w_granularity": "group", "w_group_size": 16},
    "static": {"a_range": "static", "a_granularity": "tensor"},
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_kind_of_layer(kind: str, bits: int, backend: Backend) -> None:
    config = QuantConfig(w_bits=bits, a_bits=bits, **CONFIGS[kind])  # type: ignore[arg-type]
    layer = frozen(config, (24, 96))
    x = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    packed = PackedLinear.from_frozen(layer, backend)
    assert packed.executed is backend
    assert torch.equal(packed.packed_weight().unpacked(), layer.codes)
    wanted = numpy_linear(layer, x)
    got = packed(x).numpy()
    if backend is Backend.REFERENCE:  # exact sums, rounded once
        np.testing.assert_allclose(got, wanted, rtol=2**-23, atol=1e-12)
    else:
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6 * np.abs(wanted).max())
    fake = layer(x).numpy()
    np.testing.assert_allclose(got, fake, rtol=1e-5, atol=1e-5 * np.abs(fake).max())


@pytest.mark.parametrize("columns", [64, 240, 1920, 5120, 13824])
@pytest.mark.parametrize(("w_bits", "a_bits"), [(2, 2), (3, 3), (4, 4), (8, 8), (4, 8)])
@pytest.mark.parametrize("worst", [False, True])
def test_exact_sums_at_all_widths(columns: int, w_bits: int, a_bits: int, worst: bool) -> None:
    """Codes at the ends of their range and random ones; 1, 17 and 33 rows."""
    generator = np.random.default_rng(columns)
    for rows in (1, 17, 33):
        a = generator.integers(-(2 ** (a_bits - 1)), 2 ** (a_bits - 1), (rows, columns))
        w = generator.integers(-(2 ** (w_bits - 1)), 2 ** (w_bits - 1), (16, columns))
        if worst:
            a[:], w[:] = -(2 ** (a_bits - 1)), -(2 ** (w_bits - 1))
            a[::2] = 2 ** (a_bits - 1) - 1
        got = int8_product(torch.from_numpy(a.astype(np.int8)), torch.from_numpy(w.astype(np.int8)))
        assert np.array_equal(got.numpy(), a.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize("columns", [64, 1920, 13824])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bfloat16_is_rounded_once(columns: int, backend: Backend, bits: int) -> None:
    layer = frozen(QuantConfig(w_bits=bits, a_bits=bits), (16, columns), seed=columns)
    layer.codes[0] = 2**bits - 1  # a row of the largest code
    layer.refresh_()
    x = torch.randn(1, 19, columns, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[:, 0] = 3.0
    got = PackedLinear.from_frozen(layer, backend)(x)
    assert got.dtype == torch.bfloat16
    exact = torch.from_numpy(numpy_linear(layer, x))
    largest = exact.abs().max()
    step = torch.maximum(exact.abs(), largest * 1e-4) * 2**-8  # half a step of 8 significant bits
    assert ((got.double() - exact).abs() <= step * 1.001).all()
    if backend is Backend.REFERENCE:
        assert torch.equal(got, exact.float().bfloat16())


@given(
    bits=st.sampled_from([2, 3, 4, 6, 8]), rows=st.integers(1, 40), columns=st.integers(1, 90),
    outs=st.integers(1, 20), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-6, 1.0, 1e4]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape(bits: int, rows: int, columns: int, outs: int, seed: int, scale: float) -> None:
    layer = frozen(QuantConfig(w_bits=bits, a_bits=bits), (outs, columns), seed)
    x = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    wanted = numpy_linear(layer, x)
    for backend in BACKENDS if columns > 1 else (Backend.REFERENCE, Backend.AUTO):
        got = PackedLinear.from_frozen(layer, backend)(x).numpy()
        size = np.abs(wanted).max() + scale * columns * float(layer.weight.abs().max())
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6 * size)


@pytest.mark.parametrize("kind", CONFIGS)
def test_activation_codes_are_those_of_fake_quantization(kind: str) -> None:
    """Dequantized, they are the fake-quantized input to the last bit of its own rounding."""
    config = QuantConfig(w_bits=4, a_bits=4, **CONFIGS[kind])  # type: ignore[arg-type]
    layer = frozen(config, (4, 96))
    layer.codes.copy_(torch.eye(4, 96))
    x = torch.randn(5, 40, 96, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    packed = PackedLinear.from_frozen(layer)
    quantized = quantize_activations(x, packed.activation_spec(x))
    parts = quantized.scale.shape[1]
    codes = quantized.codes.view(200, parts, -1).float()
    offset = 0 if quantized.zero is None else quantized.zero[..., None]
    seen: list[Tensor] = []
    original = nn.functional.linear
    try:
        nn.functional.linear = lambda x, *rest: seen.append(x) or original(x, *rest)  # type: ignore[assignment]
        layer(x)
    finally:
        nn.functional.linear = original
    assert torch.equal(((codes - offset) * quantized.scale[..., None]).view(5, 40, 96), seen[0])
    assert torch.equal(quantized.sums, codes.sum(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"learn_clip": True, "clip_buckets": 4},
        {"a_range": "static", "a_granularity": "tensor", "clip_buckets": 4},
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_timestep_buckets(options: dict[str, Any], backend: Backend) -> None:
    context = ClipContext(4)
    config = QuantConfig(w_bits=4, a_bits=4, **options)
    layer = frozen(config, (8, 32), context=context)
    packed = PackedLinear.from_frozen(layer, backend)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    context.set_timestep(torch.tensor([10, 990, 300]))
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    first = packed(x)[1]
    context.set_timestep(torch.tensor([10, 10, 300]))
    assert not torch.equal(first, packed(x)[1])
    context.bucket = None
    with pytest.raises(ValueError, match="timestep"):
        packed(x)


def test_float16_float64_and_casts_keep_the_codes() -> None:
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32))
    packed = PackedLinear.from_frozen(layer)
    x = torch.randn(1, 5, 32)
    before = packed.state_dict()
    packed.to(torch.bfloat16)
    assert packed.scale.dtype == packed.zero_point.dtype == torch.float32
    assert packed.bias is not None and packed.bias.dtype == torch.bfloat16
    for name in ("codes", "scale", "zero_point"):
        assert torch.equal(before[name], packed.state_dict()[name])
    assert packed(x.to(torch.bfloat16)).dtype == torch.bfloat16
    wide = PackedLinear.from_frozen(layer)(x.double())
    assert wide.dtype == torch.float64


def test_storage_is_what_it_says() -> None:
    config = QuantConfig(w_bits=3, a_bits=3)
    packed = PackedLinear.from_frozen(frozen(config, (240, 960)))
    assert packed.codes.numel() * 8 == 240 * 960 * 3
    assert packed.stored_bits() == 240 * 960 * 3 + 2 * 32 * 240
    assert packed.macs(10) == {(3, 3): 10 * 240 * 960}
    assert packed.execution() == "real"
    assert PackedLinear.from_frozen(frozen(config, (240, 960)), Backend.REFERENCE).execution() == "emulated"


def test_backends_that_are_not_there_say_so() -> None:
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (32, 32))
    with pytest.raises(ValueError, match="backend scaled_mm needs an NVIDIA GPU"):
        PackedLinear.from_frozen(layer, Backend.SCALED_MM)
    weight = PackedLinear.from_frozen(layer).packed_weight()
    spec = PackedLinear.from_frozen(layer).activation_spec(torch.zeros(1, 1, 32))
    assert obstacle(Backend.CPU, weight, spec, torch.device("cuda")) is not None
    assert obstacle(Backend.TRITON_INT8, weight, spec, torch.device("meta")) is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["clipped", "groups", "static", "tensor"])
def test_compiles_in_one_graph(kind: str, backend: Backend) -> None:
    config = QuantConfig(w_bits=4, a_bits=4, **CONFIGS[kind])  # type: ignore[arg-type]
    packed = PackedLinear.from_frozen(frozen(config, (8, 32)), backend)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), packed(x), rtol=0, atol=0)


def test_two_backends_agree_over_widths() -> None:
    for w_bits, a_bits in itertools.product((2, 3, 4, 8), repeat=2):
        layer = frozen(QuantConfig(w_bits=w_bits, a_bits=a_bits), (16, 128))
        x = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(1))
        one, two = (PackedLinear.from_frozen(layer, backend)(x) for backend in BACKENDS)
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))


class Kernels:
    """Stands for the module of the Triton kernels; executes by the reference, and counts."""

    calls = 0

    @staticmethod
    def fits(weight: PackedWeight, activation: ActivationSpec, device: torch.device) -> bool:
        return weight.scale.shape[1] == 1 and not activation.static

    @staticmethod
    def int8_linear(
        x: Tensor, weight: PackedWeight, activation: ActivationSpec, bias: Tensor | None, gelu: bool
    ) -> Tensor:
        assert not gelu
        Kernels.calls += 1
        operand = Operand(weight.centred(), weight.scale, weight.zero_point - 2 ** (weight.bits - 1))
        y = linear(quantize_activations(x, activation), operand, bias, float64_product, torch.float64)
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def read_tokens(*given: Any) -> Any:
        raise AssertionError("one layer alone needs no shared read")

    multiply_tokens = rotate_tokens = scale_tokens = read_tokens

    @staticmethod
    def hides_epilogue(weight: object, activation: object, device: torch.device) -> bool:
        return False


def test_kernels_are_called_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_kernels", lambda: Kernels)
    monkeypatch.setattr(Kernels, "calls", 0)
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32))
    packed = PackedLinear.from_frozen(layer, Backend.TRITON_INT8)
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(copy.deepcopy(packed)(x), layer(x), rtol=1e-5, atol=1e-5)
    assert Kernels.calls == 1 and packed.execution() == "real" and not packed.expanded.numel()
    static = frozen(QuantConfig(w_bits=4, a_bits=4, **CONFIGS["static"]), (8, 32))
    with pytest.raises(ValueError, match="does not execute layers of this kind"):
        PackedLinear.from_frozen(static, Backend.TRITON_INT8)
    assert PackedLinear.from_frozen(static).executed is Backend.CPU


def test_missing_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_kernels", lambda: None)
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32))
    with pytest.raises(ValueError, match=r"triton_int8 needs Triton .* which are not here"):
        PackedLinear.from_frozen(layer, Backend.TRITON_INT8)
    with pytest.raises(ValueError, match="install triton"):
        backends.kernels()


@pytest.mark.parametrize("sums", [False, True])
def test_processors_whose_products_saturate_are_not_trusted(
    sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "int8_product_is_exact", lambda: sums)
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32))
    packed = PackedLinear.from_frozen(layer)
    assert packed.executed is (Backend.CPU if sums else Backend.REFERENCE)
    assert packed.execution() == ("real" if sums else "emulated")
    if not sums:
        with pytest.raises(ValueError, match="saturates"):
            PackedLinear.from_frozen(layer, Backend.CPU)


def test_a_shared_layer_is_packed_in_both_its_places() -> None:
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 16))
    model = nn.ModuleDict({"a": nn.ModuleDict({"x": layer}), "b": nn.ModuleDict({"x": layer})})
    pack_(model, Backend.REFERENCE)
    first, second = (model.get_submodule(name) for name in ("a.x", "b.x"))
    assert isinstance(first, PackedLinear) and first is second


def test_tensors_that_somebody_else_moves_are_computed_with_where_they_are() -> None:
    """As accelerate's offloading does: out of the module and back in, no ``.to`` of the layer itself."""
    layer = frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(3))
    for backend in BACKENDS:
        packed = PackedLinear.from_frozen(layer, backend)
        wanted, kept = packed(x), dict(packed._buffers)
        parked = copy.deepcopy(packed).to("meta")
        for name, buffer in kept.items():
            parked._buffers[name] = parked.expanded if name == "expanded" else buffer
        parked.bias = packed.bias
        assert torch.equal(parked(x), wanted) and parked.executed is backend


def test_a_gpus_backend_rests_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its way to the GPU or back it may lie there, and says at a call why it does not run."""
    packed = PackedLinear.from_frozen(frozen(QuantConfig(w_bits=4, a_bits=4), (32, 32)))
    x = torch.randn(2, 3, 32)
    wanted = packed(x)
    packed.backend = Backend.SCALED_MM
    with pytest.raises(ValueError, match="backend scaled_mm needs an NVIDIA GPU"):
        packed.to("cpu")  # no GPU to go to
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    packed.to("cpu")
    assert not packed.expanded.numel()
    with pytest.raises(ValueError, match="backend scaled_mm needs an NVIDIA GPU"):
        packed(x)
    with pytest.raises(ValueError, match="backend scaled_mm needs an NVIDIA GPU"):
        linears(x, [packed, packed])
    with pytest.raises(ValueError, match="backend scaled_mm needs an NVIDIA GPU"):
        packed.prepare_()
    packed.backend = Backend.AUTO
    assert torch.equal(packed(x), wanted)


def test_a_layer_on_the_host_of_a_gpu_expands_nothing_before_its_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model of 14 billion weights that waits there for its GPU would take 14 GB more, and a minute."""
    model = nn.ModuleDict({"a": frozen(QuantConfig(w_bits=4, a_bits=4), (32, 32))})
    x = torch.randn(2, 3, 32)
    packed = pack_(model)["a"]  # type: ignore[index]
    wanted = packed(x)
    assert packed.executed is Backend.CPU and packed.expanded.numel() == 32 * 32
    packed.to("cpu")
    assert packed.expanded.numel(), "without a GPU it is there to compute"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for rest in (packed.to, lambda _: prepare_(model)):
        rest("cpu")
        assert packed.executed is Backend.CPU and not packed.expanded.numel()
        assert torch.equal(packed(x), wanted) and packed.expanded.numel()


def test_a_layer_that_expands_nothing_keeps_its_tensors() -> None:
    """Offloading by groups on a stream looks each buffer up by identity, at every call."""
    packed = PackedLinear.from_frozen(frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32)), Backend.REFERENCE)
    before = list(packed.buffers())
    packed.prepare_()
    assert all(a is b for a, b in zip(packed.buffers(), before, strict=True))


def test_expanded_codes_that_were_not_kept_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' offloading on a stream: before each call every buffer gets what it had at first.

    It knows them by identity, from before the first call, when nothing was expanded.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    packed = PackedLinear.from_frozen(frozen(QuantConfig(w_bits=4, a_bits=4), (8, 32)), Backend.CPU)
    wanted = packed(x := torch.randn(2, 3, 32))
    packed.to("cpu")
    resting = {buffer: buffer.data.clone() for buffer in packed.buffers()}
    for mode in (torch.no_grad, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            for buffer in packed.buffers():
                buffer.data = resting[buffer].clone()
            assert torch.equal(packed(x), wanted)
