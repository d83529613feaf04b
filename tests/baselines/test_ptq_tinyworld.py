"""The order of the post-training methods on real activations: tinyworld's, layer by layer."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from baselines.calibration import Needs
from baselines.gptq import GPTQ
from baselines.rtn import RTN, RTNMinMax, RTNStatic
from baselines.svdquant import SVDQuant
from baselines.viditq import ViDiTQ
from evalharness.calibration import calibrate
from evalharness.models import tinyworld
from qvgen.method import QuantMethod
from tests.baselines.recorded import Recorded, track
from tests.finished import finished_layers

BLOCKS = ("transformer_blocks.0.", "transformer_blocks.3.")
STEPS, PROMPTS = 6, 2


@dataclass
class WithUnseen(Recorded):
    """Also inputs of other videos to judge by."""

    unseen: Mapping[str, Any] = field(kw_only=True)


@pytest.fixture(scope="module")
def recorded() -> Iterator[WithUnseen]:
    """Two blocks of tinyworld: two calibration videos of eight steps, one other."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=STEPS))
        loaded = tinyworld.TinyWorld().load("cpu")
        linears = [n for n, m in loaded.transformer.named_modules() if isinstance(m, nn.Linear)]
        skip = {n for n in linears if not n.startswith(BLOCKS)} | set(loaded.skip_layers("std"))
        names = tuple(n for n in linears if n not in skip)
        needs = Needs(layers=names, prompts=PROMPTS, buckets=10, rows=256, hessian=True)
        statistics = calibrate(loaded.transformer, loaded.calibration_runs(seed=0), needs, 0, track)
        other = Needs(layers=names, prompts=1, rows=1024)
        unseen = calibrate(loaded.transformer, loaded.calibration_runs(seed=77), other, 0, track)
        yield WithUnseen(loaded.transformer, tuple(sorted(skip)), statistics, unseen=unseen)


@pytest.fixture(scope="module")
def sqnr(recorded: WithUnseen) -> Callable[[QuantMethod], float]:
    """Mean over the layers of the signal to quantization noise of their outputs, in dB."""
    known: dict[str, float] = {}

    def measure(method: QuantMethod) -> float:
        if repr(method) not in known:
            model = method.apply(copy.deepcopy(recorded.transformer), recorded)  # type: ignore[arg-type]
            known[repr(method)] = mean_sqnr(model, recorded)
        return known[repr(method)]

    return measure


def mean_sqnr(model: nn.Module, recorded: WithUnseen) -> float:
    values = []
    with torch.no_grad():
        for name, layer in finished_layers(model):
            x = recorded.unseen[name].rows
            wanted = recorded.transformer.get_submodule(name)(x)
            noise = (layer(x) - wanted).square().sum()
            values.append(10 * math.log10(float(wanted.square().sum() / noise)))
    assert len(values) == 12
    return sum(values) / len(values)


FAST = {"grid": 10, "iterations": 20, "rows": 256}


@pytest.mark.slow
def test_the_order_that_the_literature_agrees_on(sqnr: Callable[[QuantMethod], float]) -> None:
    four = {"w_bits": 4, "a_bits": 4}
    rising = [RTNStatic(**four), RTNMinMax(**four), RTN(**four), GPTQ(**four)]  # type: ignore[arg-type]
    found = [sqnr(method) for method in rising]
    assert all(later > earlier for earlier, later in itertools.pairwise(found)), found
    assert found[1] - found[0] > 5, "one range for all tokens and steps is the worst case by far"
    assert sqnr(ViDiTQ(w_bits=4, a_bits=4)) > found[3] + 2
    assert sqnr(SVDQuant(w_bits=4, a_bits=4, **FAST)) > found[3] + 4  # type: ignore[arg-type]


@pytest.mark.slow
def test_rotation_and_gptq_each_add_to_viditq(sqnr: Callable[[QuantMethod], float]) -> None:
    whole = sqnr(ViDiTQ(w_bits=4, a_bits=4))
    assert sqnr(ViDiTQ(w_bits=4, a_bits=4, rotate=False)) < whole - 2
    assert sqnr(ViDiTQ(w_bits=4, a_bits=4, solver="gptq")) > whole + 0.5
    assert sqnr(ViDiTQ(w_bits=4, a_bits=4, double_quant=True)) < whole - 2
