"""What ``benchmarks/packed_scores.py`` says of two executions, on cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.packed_runs import reason
from benchmarks.packed_scores import Codes, by_dimension, explained, first_codes, moved, parted, psnr, summary
from qvgen.config import QuantConfig
from qvgen.fused import switch
from qvgen.packed.backends import Backend
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import linears
from tests.qvgen.packed.test_linear import frozen


def test_psnr_of_one_step_everywhere() -> None:
    a = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert psnr(a, a) is None
    assert psnr(a, a + 1) == pytest.approx(20 * np.log10(255))


def test_where_codes_part() -> None:
    fake = {"a": torch.zeros(2, 3, dtype=torch.int8), "b": torch.tensor([[-128, 5]], dtype=torch.int8)}
    packed = {"a": fake["a"].clone(), "b": torch.tensor([[127, 5]], dtype=torch.int8)}
    found = parted(fake, packed)
    assert found["first_layer"] == "b" and found["codes_in_it"] == 1 and found["layers"] == "1 of 2"
    assert found["share_of_codes"] == pytest.approx(1 / 8) and found["largest_difference"] == 255
    assert parted(fake, fake)["first_layer"] is None


@pytest.mark.parametrize(
    ("packed", "move", "words"),
    [
        (None, 40.0, "equal"), (45.0, 40.0, "sums in another order"), (34.1, 40.0, "sums in another order"),
        (33.9, 40.0, "UNEXPLAINED: 6.1 dB farther"), (30.0, None, "UNEXPLAINED: one rounding moves nothing"),
    ],
)  # fmt: skip
def test_a_packed_video_may_be_twice_as_far_as_a_moved_one(
    packed: float | None, move: float | None, words: str
) -> None:
    assert explained(packed, move, {"first_layer": "x"}).startswith(words)


def test_the_reason_says_whether_codes_were_looked_into() -> None:
    sums = "sums in another order move values over borders of codes, as one rounding of the latents does; "
    assert reason(45.0, 40.0, {"first_layer": "x"}, look=True) == sums + "first in x"
    assert reason(45.0, 40.0, {"first_layer": None}, look=True) == sums + "in a later step than the first"
    assert reason(45.0, 40.0, {"first_layer": None}, look=False) == sums + "codes not looked into"
    assert reason(None, 40.0, {"first_layer": None}, look=False) == "equal"


def test_differences_are_means_over_videos() -> None:
    differences = [
        {"packed": {"color": 0.1, "scene": 0.0}, "moved": {"color": -0.2, "scene": 0.0}},
        {"packed": {"color": -0.3}, "moved": {"color": 0.0}},
    ]
    found = by_dimension(differences)
    assert found["color"] == {
        "videos": 2, "packed_mean": pytest.approx(-0.1), "packed_mean_size": pytest.approx(0.2),
        "moved_mean": pytest.approx(-0.1), "moved_mean_size": pytest.approx(0.1),
    }  # fmt: skip
    assert found["scene"]["videos"] == 1
    videos = {"1": {"explanation": "equal"}, "2": {"explanation": "UNEXPLAINED: x"}}
    line = summary({"videos": videos, "dimensions": found})
    assert (line["videos"], line["equal"], line["unexplained"]) == (2, 1, 1)
    assert line["mean_difference"] == pytest.approx(-0.05)


def test_the_moved_model_is_moved_by_one_rounding() -> None:
    class Echo(torch.nn.Module):
        def forward(self, hidden_states: Any) -> Any:
            return hidden_states

    x = torch.linspace(-3, 3, 100)
    out = moved(Echo())(hidden_states=x)
    change = (out.double() / x.double() - 1) * 2**23
    assert ((change > 0.49) & (change < 2.01)).all()


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param(Backend.REFERENCE, "cpu"),
        pytest.param(
            Backend.TRITON_INT8, "cpu",
            marks=pytest.mark.skipif(
                not (switch.INTERPRETED and switch.AVAILABLE), reason="needs Triton and TRITON_INTERPRET=1"
            ),
        ),
        pytest.param(Backend.TRITON_INT8, "cuda", marks=pytest.mark.cuda),
    ],
)  # fmt: skip
def test_codes_of_both_executions_are_of_one_shape(backend: Backend, device: str) -> None:
    """Kernels pad rows of 40 codes to 64; layers that share a read are given integers, not numbers."""
    fake = torch.nn.ModuleList([frozen(QuantConfig(w_bits=4, a_bits=4), (8, 40), seed) for seed in (0, 1)])
    packed = torch.nn.ModuleList([PackedLinear.from_frozen(layer.to(device), backend) for layer in fake])
    x = torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(0)).to(device)
    codes: dict[str, Codes] = {"fake": {}, "packed": {}}
    for name, model in (("fake", fake), ("packed", packed)):
        end = first_codes(model, packed, codes[name])
        linears(x, list(model))
        end()
    assert [found.shape for found in codes["packed"].values()] == [(5, 40)] * 2
    assert parted(codes["fake"], codes["packed"])["layers"] == "0 of 2"
