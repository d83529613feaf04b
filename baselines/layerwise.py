"""What the post-training methods share: one linear after the other, from its weight and its inputs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from baselines.calibration import Solver, Statistics
from baselines.gptq_solver import gptq_codes
from qvgen.api import finish_, linears_of, module_names, put_, quantizable_names
from qvgen.config import QuantConfig
from qvgen.fake_quant import dequantize, weight_codes
from qvgen.quantizers import activation_fake_quant, initial_scale
from qvgen.transformed import Transform, TransformedQuantLinear, frozen_from_codes

if TYPE_CHECKING:
    from qvgen.training.context import TrainContext


@dataclasses.dataclass(frozen=True, slots=True)
class Rounded:
    """A quantized weight: codes [out, in] float32, scale and zero point of ``scale_shape``."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def weight(self) -> Tensor:
        """float32 [out, in]."""
        return dequantize(self.codes, self.scale, self.zero_point)


def round_weight(
    weight: Tensor, config: QuantConfig, solver: Solver = "rtn", hessian: Tensor | None = None
) -> Rounded:
    """Quantize a weight [out, in]: range as ``config`` says, codes by the solver.

    Args:
        weight: in the basis in which it is stored.
        config: the quantizers.
        solver: ``rtn`` rounds each weight to nearest; ``gptq`` needs ``hessian``.
        hessian: [in, in] in the same basis.

    Raises:
        ValueError: NaN or infinity in the weight or the Hessian.
    """
    exact = weight.float()
    scale, zero_point = initial_scale(exact, config)
    q_max = 2**config.w_bits - 1
    if solver == "rtn":
        return Rounded(weight_codes(exact, scale, zero_point, q_max), scale, zero_point)
    assert hessian is not None, "gptq was asked for without a Hessian"
    return Rounded(gptq_codes(exact, hessian, scale, zero_point, q_max), scale, zero_point)


def transformed_layer(
    linear: nn.Linear,
    config: QuantConfig,
    transform: Transform,
    rounded: Rounded,
    *,
    input_scale: Tensor | None = None,
    branch: tuple[Tensor, Tensor] | None = None,
) -> TransformedQuantLinear:
    """The finished layer around a quantized weight.

    Args:
        linear: the full-precision layer; its bias takes up the shift of the input, if there is one.
        config: the quantizers.
        transform: what stands around the quantized product.
        rounded: the weight, in the basis after the transform.
        input_scale: [in], for a scaled input.
        branch: ``up`` [out, r] and ``down`` [r, in], for a rank above 0.
    """
    frozen = frozen_from_codes(linear, config, rounded.codes, rounded.scale, rounded.zero_point)
    layer = TransformedQuantLinear(frozen, transform)
    if transform.shift:
        assert frozen.bias is not None, "a shift needs a bias to be taken back by"
        frozen.bias.sub_((linear.weight.double().sum(1) * transform.shift).to(frozen.bias.dtype))
    if layer.input_scale is not None and input_scale is not None:
        layer.input_scale.copy_(input_scale)
    if layer.up is not None and layer.down is not None and branch is not None:
        layer.up.copy_(branch[0])
        layer.down.copy_(branch[1])
    return layer


def round_rows(x: Tensor, config: QuantConfig) -> Tensor:
    """Fake-quantized inputs [n, C], as a layer of that config quantizes them at run time."""
    whole = torch.ones(1, device=x.device)
    return activation_fake_quant(x, whole, whole, config)


def output_error(found: Tensor, wanted: Tensor) -> float:
    """Squared error of a layer's output relative to its power; 0 for an output that is all zero."""
    power = float(wanted.square().sum())
    return float((found - wanted).square().sum()) / power if power else 0.0


def positive_scale(scale: Tensor) -> Tensor:
    """A factor for each channel that can be divided by: 1 where it would be 0, infinite or NaN."""
    usable = torch.isfinite(scale) & (scale > 0)
    return torch.where(usable, scale, torch.ones_like(scale))


def fit_groups(config: QuantConfig, channels: int) -> QuantConfig:
    """``config`` with groups that fill a row: the largest divisor of ``channels`` up to the wanted size.

    Where that is 1 (a large prime) a group is the whole row.
    """
    changed: dict[str, Any] = {}
    for side in ("w", "a"):
        wanted = getattr(config, f"{side}_group_size")
        if getattr(config, f"{side}_granularity") == "group" and channels % wanted:
            fitting = _largest_divisor(channels, wanted)
            if fitting > 1:
                changed[f"{side}_group_size"] = fitting
            else:
                changed[f"{side}_granularity"] = {"w": "channel", "a": "token"}[side]
    return dataclasses.replace(config, **changed)


def chosen_layers(model: nn.Module, skip: Collection[str], spared: str = "") -> tuple[str, ...]:
    """Names of the linears to quantize: all but ``skip`` and those that the pattern ``spared`` finds.

    Raises:
        ValueError: nothing is left, or a weight holds NaN or infinity (its layer is named).
    """
    names = quantizable_names(model, skip)
    if spared:  # a shared linear is spared by any of its names, as it is skipped by any
        places = {known[0]: known for known in linears_of(model).values()}
        names = [name for name in names if not any(re.search(spared, place) for place in places[name])]
    kept = tuple(names)
    if not kept:
        raise ValueError(f"nothing to quantize: the method spares every linear that matches {spared!r}")
    check_weights(model, kept)
    return kept


def check_weights(model: nn.Module, names: Sequence[str]) -> None:
    """Raise ValueError, with the layer's name, for a weight that holds NaN or infinity."""
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {name}: a weight to quantize holds NaN or infinity; the model is broken")


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """``count`` of ``names`` (all, if they are fewer) in their order, from all parts and of all kinds.

    Every n-th name would be no choice: transformers repeat the same six or ten linears in each block,
    and a step that shares a factor with that period never meets some kinds. Multiples of the golden
    ratio, modulo 1, fall evenly on the whole and on every period of it.
    """
    golden = (math.sqrt(5) - 1) / 2
    chosen: set[int] = set()
    number = 0
    while len(chosen) < min(count, len(names)):
        chosen.add(int(len(names) * ((number + 0.5) * golden % 1)))
        number += 1
    return [names[index] for index in sorted(chosen)]


def input_groups(statistics: Mapping[str, Statistics]) -> list[list[str]]:
    """Layers that read the same tensor together (q, k and v), in order of appearance."""
    groups: dict[str, list[str]] = {}
    for name, found in statistics.items():
        groups.setdefault(found.shares_input_with, []).append(name)
    return list(groups.values())


@torch.no_grad()
def replace_layers_(
    model: nn.Module,
    groups: list[list[str]],
    build: Callable[[list[str], list[nn.Linear]], list[nn.Module]],
    config: QuantConfig,
    ctx: TrainContext,
    what: str,
) -> nn.Module:
    """Put a finished layer in every place of each linear, group by group; then finish the model.

    Raises:
        ValueError: from ``build``, with the first layer of the group named.
    """
    places = module_names(model)
    for index in ctx.track(range(len(groups)), what):
        names = groups[index]
        linears = [model.get_submodule(name) for name in names]
        try:
            layers = build(names, [linear for linear in linears if isinstance(linear, nn.Linear)])
        except ValueError as error:
            raise ValueError(f"layer {names[0]}: {error}") from None
        for linear, layer in zip(linears, layers, strict=True):
            put_(model, places.pop(linear), layer)  # nothing holds the old weight any more
    return finish_(model, config)


def _largest_divisor(number: int, limit: int) -> int:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return max(d for d in (*small, *(number // s for s in small)) if d <= limit)
