"""The library on a GPU against the same on a CPU, and compiled against eager."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen.api import convert_, frozen_layers, quantize_
from qvgen.checkpoint import load_quantized, save_quantized
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.fake_quant import (
    dequantize,
    token_fake_quant,
    token_range,
    token_scale,
    weight_codes,
    weight_fake_quant,
)
from qvgen.linear import FrozenQuantLinear
from qvgen.schedule import RankSchedule
from qvgen.training.loop import train_
from qvgen.training.recipe import TrainRecipe

pytestmark = pytest.mark.cuda

BITS = [2, 3, 4, 8]
STEPS = 20


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("bits", BITS)
def test_weight_codes_and_values_are_the_same_bit_for_bit(bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    q_max = 2**bits - 1
    weight = torch.randn(96, 160, generator=g)
    scale = torch.rand(96, 1, generator=g) * 2 / q_max + 0.1 / q_max
    zero_point = torch.rand(96, 1, generator=g) * q_max
    codes = weight_codes(weight, scale, zero_point, q_max)
    on_gpu = [t.cuda() for t in (weight, scale, zero_point)]
    assert torch.equal(weight_codes(*on_gpu, q_max).cpu(), codes)
    assert torch.equal(dequantize(codes.cuda(), *on_gpu[1:]).cpu(), dequantize(codes, scale, zero_point))
    assert torch.equal(
        weight_fake_quant(*on_gpu, q_max).cpu(), weight_fake_quant(weight, scale, zero_point, q_max)
    )


def far_from_ties(x: Tensor, q_max: int) -> Tensor:
    """Where another last bit of the scale cannot turn a code: a GPU multiplies by the reciprocal."""
    scale, _ = token_scale(*token_range(x), q_max)
    ratio = x / scale
    return (ratio - ratio.floor() - 0.5).abs() > 1e-4


@pytest.mark.parametrize("bits", BITS)
def test_token_codes_are_the_same(bits: int) -> None:
    q_max = 2**bits - 1
    x = torch.randn(4, 64, 96, generator=torch.Generator().manual_seed(bits))
    one = torch.ones(1)
    scale, zero_point = token_scale(*token_range(x), q_max)
    gpu_scale, gpu_zero = (t.cpu() for t in token_scale(*token_range(x.cuda()), q_max))
    torch.testing.assert_close(gpu_scale, scale, rtol=3e-7, atol=0.0)
    whole = zero_point == gpu_zero
    assert whole.float().mean() > 0.99
    ours = token_fake_quant(x.cuda(), one.cuda(), one.cuda(), q_max).cpu()
    codes = (token_fake_quant(x, one, one, q_max) / scale).round()
    checked = far_from_ties(x, q_max) & whole
    assert checked.float().mean() > 0.98
    assert torch.equal((ours / gpu_scale).round()[checked], codes[checked])


def test_gradients_are_the_same() -> None:
    g = torch.Generator().manual_seed(1)
    leaves = [torch.randn(8, 24, generator=g), torch.rand(8, 1, generator=g) + 0.1, torch.full((8, 1), 3.0)]
    upstream = torch.randn(8, 24, generator=g)
    grads = []
    for device in ("cpu", "cuda"):
        mine = [t.detach().clone().to(device).requires_grad_() for t in leaves]
        weight_fake_quant(mine[0], mine[1], mine[2], 7, 0.1).backward(upstream.to(device))
        grads.append([t.grad.cpu() for t in mine if t.grad is not None])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_a_frozen_layer_computes_the_same_within_rounding(bits: int) -> None:
    torch.manual_seed(bits)
    model = nn.Sequential(nn.Linear(48, 64))
    frozen = convert_(quantize_(model, QuantConfig(w_bits=bits, a_bits=bits)))
    on_gpu = copy.deepcopy(frozen).cuda()
    x = torch.randn(512, 48)
    rows = far_from_ties(x, 2**bits - 1).all(-1)
    rows &= (
        token_scale(*token_range(x), 2**bits - 1)[1][:, 0]
        == token_scale(*token_range(x.cuda()), 2**bits - 1)[1][:, 0].cpu()
    )
    assert rows.float().mean() > 0.9
    torch.testing.assert_close(on_gpu(x.cuda()).cpu()[rows], frozen(x)[rows], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_the_same_on_both_devices(
    tmp_path: Path, make_model: Callable[[], nn.Module]
) -> None:
    """Saved from the GPU, read on both: codes and the weights computed from them, bit for bit."""
    config = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
    made = convert_(quantize_(make_model().cuda(), config))
    save_quantized(made, tmp_path, {})
    layers: list[dict[str, FrozenQuantLinear]] = []
    for device in ("cpu", "cuda"):
        read = load_quantized(make_model().to(device), tmp_path, {})
        assert {t.device.type for t in (*read.parameters(), *read.buffers())} == {device}
        layers.append(dict(frozen_layers(read)))
    live = dict(frozen_layers(made))
    for name, layer in layers[0].items():
        for other in (layers[1][name], live[name]):
            assert torch.equal(other.codes.cpu(), layer.codes)
            assert torch.equal(other.weight.cpu(), layer.weight)


def losses(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any], device: str, **recipe: Any
) -> list[float]:
    """Loss of each training step with Phi; batches are drawn on the CPU, so they are the same."""
    ctx = make_context(make_model().to(device))
    drawn = ctx.batches

    def batches(size: int) -> Iterator[Any]:
        for batch in drawn(size):
            inputs = {key: value.to(device) for key, value in batch.inputs.items()}
            yield type(batch)(inputs, batch.target.to(device))

    ctx.batches, ctx.device = batches, torch.device(device)
    config = QVGenConfig(quant=QuantConfig(w_bits=3, a_bits=4, learn_clip=True), rank=4)
    student = quantize_(make_model().to(device), config)
    made = TrainRecipe(**{"steps": STEPS, "batch_size": 16, "log_every": 1, "lr_weights": 1e-3, **recipe})
    train_(student, made, ctx, schedule=RankSchedule(rank=4, steps=made.steps))
    assert {p.device.type for p in student.parameters()} == {device}
    return [record["loss"] for record in ctx.records]


def test_training_on_a_gpu_follows_training_on_a_cpu(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    cpu, gpu = (losses(make_model, make_context, device) for device in ("cpu", "cuda"))
    assert len(cpu) == len(gpu) == STEPS
    assert gpu[0] == pytest.approx(cpu[0], rel=1e-2)
    assert gpu == pytest.approx(cpu, rel=0.1)  # a code that turns over moves the loss by some per cent
    assert max(cpu) > 1.3 * min(cpu)  # there is a course to follow: Phi goes, the weights learn


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_compiled_training_follows_eager_training(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    """Fused kernels round otherwise; a code that turns over it moves the loss a little."""
    eager, compiled = (
        losses(make_model, make_context, "cuda", steps=6, compile=mode) for mode in ("off", "default")
    )
    assert compiled[0] == pytest.approx(eager[0], rel=1e-2)
    assert compiled == pytest.approx(eager, rel=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recorded_step_trains_like_the_plain_one(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any], accumulate: int
) -> None:
    """Same kernels in the same order. Rates, gamma and the re-factorised Phi must reach the graph."""
    plain, recorded = (
        losses(make_model, make_context, "cuda", compile=mode, accumulate=accumulate, batch_size=8)
        for mode in ("off", "graph")
    )
    assert recorded[:4] == pytest.approx(plain[:4], rel=1e-4)
    assert recorded == pytest.approx(plain, rel=0.02)
    assert max(plain) > 1.3 * min(plain)


def test_recorded_steps_in_threads_beside_each_other(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    """One thread records while others replay; six trainings in three threads see that often."""
    alone = losses(make_model, make_context, "cuda", compile="graph")
    seeding = Lock()  # all threads draw from the one generator of the process

    def make_one() -> nn.Module:
        with seeding:
            return make_model()

    def train(_: int) -> list[float]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return losses(make_one, make_context, "cuda", compile="graph")

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(train, range(6)))
    assert [one[0] for one in found] == pytest.approx([alone[0]] * 6, rel=1e-4)
    for one in found:
        assert one == pytest.approx(alone, rel=0.02)


def test_a_recorded_step_refuses_a_batch_of_another_shape(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model().cuda())
    drawn = ctx.batches

    def batches(size: int) -> Iterator[Any]:
        for number, batch in enumerate(drawn(size)):
            rows = slice(None) if number < 6 else slice(1, None)
            inputs = {key: value[rows].cuda() for key, value in batch.inputs.items()}
            yield type(batch)(inputs, batch.target[rows].cuda())

    ctx.batches, ctx.device = batches, torch.device("cuda")
    student = quantize_(make_model().cuda(), QuantConfig(w_bits=3, a_bits=4))
    with pytest.raises(ValueError, match="compile: graph needs batches of one shape"):
        train_(student, TrainRecipe(steps=10, batch_size=8, compile="graph"), ctx)


def test_bf16_autocast_trains_on_a_gpu(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    full, half = (losses(make_model, make_context, "cuda", precision=p) for p in ("fp32", "bf16"))
    assert half != full
    assert half == pytest.approx(full, rel=0.3)
