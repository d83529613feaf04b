"""Linears of one input share its quantized read: once for each input, the same bits, never stale."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen.api import frozen_layers
from qvgen.config import QuantConfig
from qvgen.integrations import attention
from qvgen.packed import reading, triton_linear, triton_reading
from qvgen.packed.activations import quantize_activations
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_, packed_layers
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import linears, reads
from qvgen.transformed import Transform, TransformedQuantLinear
from tests.qvgen.packed.models import finished, inputs
from tests.qvgen.packed.test_linear import frozen
from tests.qvgen.triton_cases import interpreted

PLACES = [
    pytest.param(Backend.CPU, "cpu"),
    pytest.param(Backend.REFERENCE, "cpu"),
    pytest.param(Backend.TRITON_INT8, "cpu", marks=interpreted),
    pytest.param(Backend.TRITON_INT8, "cuda", marks=pytest.mark.cuda),
]
CLIPS = [{}, {"learn_clip": True}, {"learn_clip": True, "clip_buckets": 4}]


def count_quantizations(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each tensor was quantized, by its address; the layers' own reads count too."""
    counts: Counter[int] = Counter()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, *rest: Any, **more: Any) -> Any:
            counts[x.data_ptr()] += 1
            return function(x, *rest, **more)

        return run

    for module, name in (
        (reading, "quantize_activations"), (triton_reading, "quantize_groups"),
        (triton_linear, "quantize_groups"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    monkeypatch.setattr("qvgen.packed.linear.quantize_activations", counting(quantize_activations))
    return counts


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("clips", CLIPS)
def test_the_same_bits_as_alone(clips: dict[str, Any], backend: Backend, device: str) -> None:
    """Other widths and a plain linear among them."""
    layers: list[nn.Module] = []
    for seed, (bits, outs) in enumerate(((4, 24), (4, 16), (8, 24), (3, 40))):
        config = QuantConfig(w_bits=bits, a_bits=min(bits, 4) if bits < 8 else 8, **clips)
        layer = frozen(config, (outs, 48), seed)
        layer.context.set_timestep(torch.tensor([700, 10]))
        layers.append(PackedLinear.from_frozen(layer.to(device), backend))
    for number, own in enumerate((layers, [*layers, nn.Linear(48, 8, device=device)])):
        x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(number)).to(device)
        with torch.no_grad():
            got, wanted = linears(x, own), [layer(x) for layer in own]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize(
    "options", [{}, {"a_granularity": "tensor"}, {"a_granularity": "group", "a_group_size": 16}]
)
def test_one_quantization_where_all_numbers_are_the_same(
    options: dict[str, Any], backend: Backend, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend is Backend.TRITON_INT8 and options:
        pytest.skip("one range a token only")
    config = QuantConfig(w_bits=4, a_bits=4, **options)
    layers = [PackedLinear.from_frozen(frozen(config, (16, 48), i).to(device), backend) for i in range(3)]
    counts = count_quantizations(monkeypatch)
    x = torch.randn(2, 5, 48, device=device)
    linears(x, layers)
    assert counts == {x.data_ptr(): 1}
    for layer in layers:
        layer(x)
    assert counts == {x.data_ptr(): 4}


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_nothing_is_kept_between_calls(backend: Backend, device: str) -> None:
    """The same tensor with other values, also where torch counts no versions."""
    config = QuantConfig(w_bits=4, a_bits=4)
    layers = [PackedLinear.from_frozen(frozen(config, (16, 48), i).to(device), backend) for i in range(2)]
    x = torch.randn(1, 5, 48, device=device)
    with torch.inference_mode():
        before = [y.clone() for y in linears(x, layers)]
        x.mul_(-3)
        after = linears(x, layers)
        assert all(torch.equal(y, layer(x)) for y, layer in zip(after, layers, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@interpreted
def test_layers_of_other_backends_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend's own share a read; all give what they give alone."""
    config = QuantConfig(w_bits=4, a_bits=4)
    kinds = [Backend.TRITON_INT8, Backend.REFERENCE, Backend.TRITON_INT8, Backend.CPU]
    layers = [PackedLinear.from_frozen(frozen(config, (16, 48), i), kind) for i, kind in enumerate(kinds)]
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    counts = count_quantizations(monkeypatch)
    got = linears(x, layers)
    assert counts == {x.data_ptr(): 2}
    assert all(torch.equal(y, layer(x)) for y, layer in zip(got, layers, strict=True))


def test_no_rows() -> None:
    layers = [
        PackedLinear.from_frozen(frozen(QuantConfig(w_bits=4, a_bits=4), (16, 48), i)) for i in range(2)
    ]
    assert [y.shape for y in linears(torch.empty(2, 0, 48), layers)] == [(2, 0, 16)] * 2
    assert linears(torch.empty(2, 0, 48), []) == []


def test_plain_layers_get_the_tensor() -> None:
    x = torch.randn(2, 3, 48)
    plain = nn.Linear(48, 4)
    assert reads(x, [plain, plain]) == [x, x]


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("clips", CLIPS[:2])
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_models_give_the_same_bits(
    name: str, clips: dict[str, Any], backend: Backend, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed with and without shared reads; one quantization for each input of an attention."""
    blocks = 1 if backend is Backend.TRITON_INT8 else 2
    fake = finished(name, layers=blocks, **clips).to(device)
    values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    shared = pack_(copy.deepcopy(fake), backend, fuse=False)
    monkeypatch.setattr("qvgen.packed.convert.join_reads_", lambda model, fuse: model)
    alone = pack_(fake, backend)
    counts = count_quantizations(monkeypatch)
    with torch.no_grad():
        wanted = alone(**values)[0]
        separately, _ = counts.total(), counts.clear()
        got = shared(**values)[0]
    assert torch.equal(got, wanted)
    saved = {"cog": 2, "wan": 3}[name] * blocks  # k and v of self-attention, v of cross-attention
    on_cpu = clips and backend is not Backend.TRITON_INT8
    assert separately == sum(1 for _ in packed_layers(alone))
    assert counts.total() == separately - (0 if on_cpu else saved)


def transformed_(model: nn.Module, same: bool) -> nn.Module:
    """Every linear behind a scale, a shift, a rotation and a branch of its own; or q, k, v behind one."""
    generator = torch.Generator().manual_seed(7)
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    transform = Transform(scaled=True, rotated=True, rank=3, shift=0.25)
    for name, inner in list(frozen_layers(model)):
        layer = TransformedQuantLinear(inner, transform)
        drawn = torch.rand(inner.in_features, generator=generator) + 0.5, torch.randn(3, inner.in_features)
        attention = name.rpartition(".")[0] if same and ".to_" in name and ".to_out" not in name else name
        scale, down = shared.setdefault(attention, drawn)
        layer.input_scale, layer.down = scale.clone(), down.clone()
        layer.up = torch.randn(inner.out_features, 3, generator=generator)
        model.set_submodule(name, layer)
    return model


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize(("same", "saved"), [(True, 2), (False, 0)])
@pytest.mark.parametrize("clips", CLIPS[:2])
def test_layers_behind_the_same_transform(
    clips: dict[str, Any], same: bool, saved: int, backend: Backend, device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Transformed, projected down and quantized once; the bits that each layer gives alone."""
    fake = transformed_(finished("cog", layers=1, **clips), same).to(device)
    values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs("cog").items()}
    shared = pack_(copy.deepcopy(fake), backend)
    monkeypatch.setattr("qvgen.packed.convert.join_reads_", lambda model, fuse: model)
    alone = pack_(fake, backend)
    turned: Counter[str] = Counter()
    original = TransformedQuantLinear.prepared

    def counting(self: TransformedQuantLinear, x: Tensor) -> tuple[Tensor, Tensor | None]:
        turned[now] += 1
        return original(self, x)

    one_pass = TransformedQuantLinear.fused_read

    def counting_passes(self: TransformedQuantLinear, x: Tensor) -> tuple[Any, Tensor | None] | None:
        found = one_pass(self, x)
        turned[now] += found is not None
        return found

    monkeypatch.setattr(TransformedQuantLinear, "prepared", counting)
    monkeypatch.setattr(TransformedQuantLinear, "fused_read", counting_passes)
    with torch.no_grad():
        now = "shared"
        got = shared(**values)[0]
        now = "alone"
        wanted = alone(**values)[0]
    assert torch.equal(got, wanted)
    assert turned["alone"] - turned["shared"] == saved


def test_images_as_context_of_wan() -> None:
    """Wan's image-to-video attention: k and v of the image share a read, queries are made once."""
    from tests.qvgen.packed.models import wan

    block = wan(added_kv_proj_dim=48, image_dim=12, num_layers=1).blocks[0]
    attn = block.attn2
    x, context = torch.randn(2, 7, 48), torch.randn(2, 512 + 6, 48)
    with torch.no_grad():
        wanted = attn(x, context)
        attn.processor = attention.SharedWanProcessor()
        torch.testing.assert_close(attn(x, context), wanted, rtol=0, atol=0)


def test_cogvideox_rotates_the_video_alone() -> None:
    from tests.qvgen.packed.models import cog

    attn = cog(use_rotary_positional_embeddings=True).transformer_blocks[0].attn1
    video, text = torch.randn(2, 18, 48), torch.randn(2, 4, 48)
    angles = torch.randn(18, 16)
    rotary = (angles.cos(), angles.sin())
    with torch.no_grad():
        wanted = attn(video, text, image_rotary_emb=rotary)
        attn.processor = attention.SharedCogVideoXProcessor()
        got = attn(video, text, image_rotary_emb=rotary)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), [PLACES[0], *PLACES[2:]])
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_compiled_in_one_graph(name: str, backend: Backend, device: str) -> None:
    fake = finished(name, layers=1, learn_clip=True, clip_buckets=4)
    model = pack_(fake.to(device), backend)
    values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for factor in (1.0, -2.0):  # one graph for both: nothing of the first call is kept
            values["hidden_states"] = values["hidden_states"] * factor
            torch.testing.assert_close(compiled(**values)[0], model(**values)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_replayed_as_a_cuda_graph(name: str) -> None:
    model = pack_(finished(name, learn_clip=True).cuda(), Backend.TRITON_INT8)
    values = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    x = values["hidden_states"]
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(**values)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(**values)[0]
        for factor in (1.0, -2.0, 0.5):
            x.mul_(factor)
            graph.replay()
            assert torch.equal(out, model(**values)[0])
