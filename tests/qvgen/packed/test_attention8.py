"""8-bit attention against float64, what it refuses, and that models run it only where they are asked to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qvgen.integrations import attention
from qvgen.integrations.attention import attend_in_8_bits_
from qvgen.packed.attention8 import attention8, attention8_fits, takes_float8
from qvgen.packed.convert import pack_
from tests.qvgen.packed.models import cog, finished, inputs
from tests.qvgen.triton_cases import DEVICES


def draw(queries: int, keys: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Keys with a large common part, as trained models have, and channels of other sizes in the values."""
    g = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(2, 3, n, width, generator=g) for n in (queries, keys, keys))
    k = k + 6 * torch.randn(1, 3, 1, width, generator=g)
    v = v * torch.logspace(-1, 1, width)
    return q.to(device), k.to(device), v.to(device)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().transpose(2, 3) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("queries", "keys"), [(5, 130), (33, 128), (17, 7)])
def test_close_to_the_exact_one(queries: int, keys: int, width: int, device: str) -> None:
    q, k, v = draw(queries, keys, width, device)
    wanted = exact(q, k, v)
    got = attention8(q, k, v)
    assert got.shape == wanted.shape and got.dtype == q.dtype
    apart, size = (t.double().flatten(0, 2).norm(dim=0) for t in (got - wanted, wanted))
    error = apart / size
    float8 = takes_float8(q.device)
    assert float(error.max()) < (0.06 if float8 else 0.02), "each channel, small ones too"
    rounded = exact((q * 127 / q.abs().amax()).round() / 127 * q.abs().amax(), k, v)  # a scale for all tokens
    assert float(error.max()) < 3 * float((rounded - wanted).norm() / wanted.norm()) + (0.06 if float8 else 0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_mean_of_the_keys_costs_nothing(device: str) -> None:
    """The softmax does not see it, and it would take all of the eight bits."""
    q, k, v = draw(9, 40, 64, device)
    apart = attention8(q, k + 300 * torch.ones(64, device=device), v)
    torch.testing.assert_close(apart, attention8(q, k, v), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_under_a_tracer(device: str) -> None:
    q, k, v = draw(5, 20, 64, device)
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: attention8(*given) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attention8(q, k, v) * 2)


def test_what_it_refuses() -> None:
    q = torch.randn(1, 2, 8, 48)
    assert not attention8_fits(q, q, q)
    with pytest.raises(ValueError, match=r"takes \[B, H, L, D\] with D of \(64, 128\).*\(1, 2, 8, 48\)"):
        attention8(q, q, q)
    with pytest.raises(ValueError, match="no attention with packed projections; call pack_ first"):
        attend_in_8_bits_(cog(num_layers=1))


@pytest.mark.parametrize("name", ["cog", "wan"])
def test_models_run_it_where_they_are_asked_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-attention alone; by a stand-in that is exact, so that outputs must not change."""
    calls: list[tuple[int, ...]] = []

    def stand_in(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(tuple(key.shape))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(attention, "attention8", stand_in)
    model, values = pack_(finished(name)), inputs(name)

    def run(**more: Any) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(**values, **more)[0]
        return out

    plain = run()
    assert not calls
    attend_in_8_bits_(model)
    torch.testing.assert_close(run(), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 and len(set(calls)) == 1, "one for each block, none of cross-attention"
    attend_in_8_bits_(model, on=False)
    assert torch.equal(run(), plain) and len(calls) == 2
