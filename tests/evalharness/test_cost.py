"""The cost model against numbers worked out by hand for a toy transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from evalharness.cost import cost_record, count_cost, count_macs


class Low(nn.Module):
    """4-bit weights, 6-bit inputs, describes itself: codes, a scale a row, a rank-2 branch in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 16
        self.codes = nn.Parameter(torch.zeros(16, 8))
        self.branch = nn.Linear(8, 2, bias=False)  # within: must not be counted again
        self.bias = nn.Parameter(torch.zeros(16))

    def stored_bits(self) -> int:
        return 16 * 8 * 4 + 16 * 32 + 16 * 2 * (8 + 16)

    def macs(self, tokens: int) -> Mapping[tuple[int, int], int]:
        return {(4, 6): tokens * 16 * 8, (16, 16): tokens * 2 * (8 + 16)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.codes, self.bias)


class Toy(nn.Module):
    """[B, 3, 4, 4] -> 16 tokens of 8 -> Low -> two heads of attention -> Linear -> [B, 16, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False)
        self.low = Low()
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        heads = self.norm(self.low(tokens)).unflatten(-1, (2, 8)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads[:, :, :5], value=heads[:, :, :5])
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


@pytest.fixture
def toy() -> Toy:
    return Toy().eval()


def test_bits_by_hand(toy: Toy) -> None:
    cost = count_cost(toy)
    assert cost.linear_weights == 16 * 8 + 16 * 4 == 192
    assert cost.described_weights == 128
    assert cost.described_bits == 512 + 512 + 768
    assert cost.linear_bits == 1792 + 16 * 64
    # convolution 8*3*9, bias of Low 16, norm 32, bias of out 4
    assert cost.other_numbers == 216 + 16 + 32 + 4
    assert cost.total_bits == 2816 + 16 * 268


def test_macs_by_hand(toy: Toy) -> None:
    with torch.inference_mode():
        macs = count_macs(toy, lambda: toy(torch.randn(2, 3, 4, 4)))
    assert macs.convolution == 2 * 16 * 8 * 3 * 9
    assert macs.linear == {(4, 6): 32 * 128, (16, 16): 32 * 48 + 32 * 16 * 4}
    assert macs.attention == 2 * 2 * 16 * 5 * (8 + 8)
    assert macs.low == 4096 and macs.total == 6912 + 4096 + 1536 + 2048 + 5120
    assert macs.activation_bits() == pytest.approx((4096 * 6 + 3584 * 16) / 7680)


def test_the_record_is_what_profile_json_holds(toy: Toy) -> None:
    record = cost_record(toy, lambda: toy(torch.randn(1, 3, 4, 4)))
    assert record["weight_bits"] == pytest.approx(2816 / 192, abs=1e-4)
    assert record["quantized_weight_bits"] == 14.0
    assert record["low_bit_macs_pct"] == pytest.approx(100 * 4096 / 19712, abs=1e-4)
    assert record["stored_mb"] == pytest.approx((2816 + 16 * 268) / 8e6, abs=1e-3)
    assert record["macs"] == {"w4a6": 2048, "w16a16": 1792, "convolution": 3456, "attention": 2560}


def test_a_layer_that_tells_only_its_bits_is_looked_into_for_its_work() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 16
            self.inner = Low()

        def stored_bits(self) -> int:
            return 5

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    model = nn.Sequential(Wrapped())
    assert (count_cost(model).linear_bits, count_cost(model).linear_weights) == (5, 128)
    assert count_macs(model, lambda: model(torch.randn(3, 8))).linear == {(4, 6): 3 * 128, (16, 16): 3 * 48}


def test_no_hook_stays_behind_even_after_an_error(toy: Toy) -> None:
    def broken() -> None:
        toy(torch.randn(1, 3, 4, 4))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        count_macs(toy, broken)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in toy.modules())


def test_a_model_at_full_precision_and_one_without_linears() -> None:
    plain = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    record = cost_record(plain, lambda: plain(torch.randn(3, 4)))
    assert (record["weight_bits"], record["quantized_weight_bits"]) == (16.0, None)
    assert (record["act_bits"], record["low_bit_macs_pct"]) == (16.0, 0.0)
    norm = nn.Sequential(nn.LayerNorm(4))
    record = cost_record(norm, lambda: norm(torch.randn(3, 4)))
    assert (record["weight_bits"], record["act_bits"], record["low_bit_macs_pct"]) == (None, None, None)


def test_a_shared_weight_is_stored_once_and_runs_twice() -> None:
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert count_cost(model).total_bits == 16 * 16
    assert count_macs(model, lambda: model(torch.randn(5, 4))).linear == {(16, 16): 2 * 5 * 16}


def test_a_module_in_two_places_is_stored_once_and_runs_twice() -> None:
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    assert count_cost(model).total_bits == 16 * 16
    assert count_macs(model, lambda: model(torch.randn(5, 4))).linear == {(16, 16): 2 * 5 * 16}
    low = nn.Sequential(nn.Sequential(Low()), nn.Linear(16, 8, bias=False))
    low.append(low[0])
    cost = count_cost(low)
    assert (cost.described_weights, cost.described_bits) == (128, 512 + 512 + 768)
    assert count_macs(low, lambda: low(torch.randn(5, 8))).linear == {
        (4, 6): 2 * 5 * 128,
        (16, 16): 2 * 5 * 48 + 5 * 128,
    }


def test_transposed_convolution_against_a_dense_matrix() -> None:
    layer = nn.ConvTranspose1d(2, 3, kernel_size=4, stride=2, bias=False)
    x = torch.randn(1, 2, 5)
    # Each of the 10 inputs is multiplied by its 3 x 4 weights.
    assert count_macs(nn.Sequential(layer), lambda: layer(x)).convolution == 10 * 12


def test_layers_of_the_library_describe_themselves() -> None:
    from qvgen.api import convert_, quantize_
    from qvgen.config import QuantConfig

    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    convert_(quantize_(model, QuantConfig(w_bits=3, a_bits=5, learn_clip=True), skip=["1"]))
    cost = count_cost(model)
    # 48 codes of 3 bits, a scale and a zero point for each of 6 rows, two clips.
    assert cost.described_bits == 48 * 3 + 32 * (2 * 6 + 2)
    assert cost.linear_bits == cost.described_bits + 24 * 16 and cost.other_numbers == 6 + 4
    macs = count_macs(model, lambda: model(torch.randn(2, 7, 8)))
    assert macs.linear == {(3, 5): 14 * 48, (16, 16): 14 * 24}
    tensor = QuantConfig(w_bits=4, a_bits=4, w_symmetric=True, w_granularity="tensor")
    whole = convert_(quantize_(nn.Sequential(nn.Linear(8, 6)), tensor))
    assert count_cost(whole).described_bits == 48 * 4 + 32 * 2


def test_a_transformed_layer_counts_once_with_its_branch_and_rotation() -> None:
    from qvgen.config import QuantConfig
    from qvgen.linear import FrozenQuantLinear
    from qvgen.quantizers import ClipContext
    from qvgen.transformed import Transform, TransformedQuantLinear

    bias = nn.Parameter(torch.zeros(6))
    frozen = FrozenQuantLinear(
        (6, 8), bias, QuantConfig(w_bits=3, a_bits=5), ClipContext(1),
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    layer = TransformedQuantLinear(frozen, Transform(scaled=True, rotated=True, rank=2))
    model = nn.Sequential(layer, nn.Linear(6, 4, bias=False))
    cost = count_cost(model)
    # 48 codes of 3 bits, scales and zero points of 6 rows, 8 channel factors, branch 2 x (8 + 6) in 16 bits.
    assert cost.described_bits == 48 * 3 + 32 * (2 * 6 + 8) + 16 * 28
    assert (cost.described_weights, cost.linear_weights, cost.other_numbers) == (48, 48 + 24, 6)
    x = torch.randn(2, 7, 8)
    # Rotated as one product of 8 x 8.
    assert count_macs(model, lambda: model(x)).linear == {(3, 5): 14 * 48, (16, 16): 14 * (28 + 64 + 24)}


def test_counted_bits_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    from qvgen.api import convert_, quantize_
    from qvgen.checkpoint import save_quantized
    from qvgen.config import QuantConfig

    static = {"a_granularity": "tensor", "a_range": "static"}
    for options in ({"learn_clip": True}, {"w_symmetric": True}, static):
        config = QuantConfig(w_bits=4, a_bits=4, **options)  # type: ignore[arg-type]
        model = convert_(quantize_(nn.Sequential(nn.Linear(64, 48, bias=False)), config))
        save_quantized(model, tmp_path, {})
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        stored = sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors)
        assert count_cost(model).total_bits == stored
