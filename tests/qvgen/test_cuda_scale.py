"""One GPU: moments and a teacher that rest on the host, and attention that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvgen.api import quantize_
from qvgen.training import host_moments
from qvgen.training.checkpointing import set_gradient_checkpointing
from qvgen.training.recipe import TrainRecipe
from qvgen.training.sharding import blocks
from qvgen.training.teacher import place_teacher_
from tests.qvgen.scaled_training import QUANT, WanContext, Wide, wan
from tests.qvgen.test_scale import Counted

pytestmark = pytest.mark.cuda


def gradients(sizes: list[int], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(size, generator=generator).cuda() for size in sizes]


def test_moments_on_the_host_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen parts a step, all under way at once as far as they may be."""
    monkeypatch.setattr(host_moments, "_ELEMENTS_AT_ONCE", 1 << 18)
    sizes = [1 << 18, 3, 1 << 19, 70_001, 200_000] * 5
    ours, theirs = ([nn.Parameter(g.clone()) for g in gradients(sizes, 99)] for _ in range(2))
    resting = host_moments.HostMomentsAdamW([{"params": ours, "name": "weights"}], lr=1e-2, fused=True)
    plain = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for step in range(6):
        for a, b, gradient in zip(ours, theirs, gradients(sizes, step), strict=True):
            a.grad, b.grad = gradient, gradient.clone()
        resting.step()
        plain.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            for key in host_moments.MOMENTS:
                rest = resting.state[a][key]
                assert rest.device.type == "cpu" and rest.is_pinned()
                assert torch.equal(rest, plain.state[b][key].cpu())


def test_moments_on_the_host_are_not_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_moments, "_ELEMENTS_AT_ONCE", 1 << 20)
    sizes = [1 << 20] * 32
    members = [nn.Parameter(g) for g in gradients(sizes, 0)]
    for member, gradient in zip(members, gradients(sizes, 1), strict=True):
        member.grad = gradient
    optimizer = host_moments.HostMomentsAdamW([{"params": members, "name": "weights"}], lr=1e-3, fused=True)
    optimizer.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before <= 4 * 8 * (1 << 20)  # of 32 parts, with one to spare


def test_a_teacher_on_the_host_answers_as_before() -> None:
    torch.manual_seed(0)
    teacher = Wide(1024, 8).cuda().bfloat16().eval().requires_grad_(False)
    x = torch.randn(4, 1024, device="cuda", dtype=torch.bfloat16)

    def run() -> Tensor:
        out = x
        for block in teacher.blocks:
            out = out + block(out)
        result: Tensor = teacher.out(out)
        return result

    expected, before = run(), torch.cuda.memory_allocated()
    place_teacher_(teacher, TrainRecipe(teacher="host"), torch.device("cuda"))
    assert before - torch.cuda.memory_allocated() > 0.9 * 8 * 2 * 1024 * 1024 * 2
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        assert torch.equal(run(), expected)
    assert torch.cuda.max_memory_allocated() < before - 5 * 2 * 1024 * 1024 * 2
    assert all(p.is_pinned() for block in blocks(teacher) for p in block.parameters())


def test_attention_is_kept_and_gradients_are_the_same(tmp_path: Path) -> None:
    found = {}
    for mode in ("off", "nothing", "attention"):
        ctx = WanContext(tmp_path, torch.device("cuda"))
        student = quantize_(wan().cuda(), QUANT).train()
        if mode != "off":
            set_gradient_checkpointing(student, True, keep=mode)  # type: ignore[arg-type]
        with Counted() as counted:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                out = ctx.predict(student, next(ctx.batches(2)))
            out.float().square().mean().backward()
        found[mode] = counted.calls, [p.grad for p in student.parameters()]
    once = found["off"][0]
    assert once > 0 and (found["nothing"][0], found["attention"][0]) == (2 * once, once)
    for mode in ("nothing", "attention"):
        for ours, theirs in zip(found[mode][1], found["off"][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-4)
