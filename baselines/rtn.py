"""Round to nearest: the floor of every table. No data, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.calibration import SOLVERS, Needs, Solver, Statistics, calibrate
from qvgen.config import QuantConfig, RangeInit, check_choice, check_int
from qvgen.method import QuantMethod

if TYPE_CHECKING:
    from torch import nn

    from qvgen.training.context import TrainContext


@dataclass(frozen=True, slots=True, kw_only=True)
class RTN(QuantMethod):
    """Weights rounded per output channel, activations per token at run time with their full range.

    Attributes:
        range: of a weight row: ``search`` keeps the best of 80 shrunken ranges, ``minmax`` the
            extremes.
        solver: ``rtn`` rounds each weight to nearest; ``gptq`` calibrates and lets later columns
            make good the error of earlier ones.
        activations: ``token``: a range for each token at run time; ``static``: one for the whole
            layer, the extremes of the calibration data (the worst case that others warn of).
        prompts: calibration videos, where one of the two needs them.
    """

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round to nearest, no data, no training"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "none"
    exact: ClassVar[str] = "rounding"
    adapted: ClassVar[str] = "the range search is QVGen's"

    range: RangeInit = "search"
    solver: Solver = "rtn"
    activations: Literal["token", "static"] = "token"
    prompts: int = 16

    def quant_config(self) -> QuantConfig:
        check_choice("range", self.range, ("search", "minmax"))
        check_choice("solver", self.solver, SOLVERS)
        check_choice("activations", self.activations, ("token", "static"))
        check_int("prompts", self.prompts, 1, 4096)
        static = self.activations == "static"
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            range_init=self.range,
            zero_point="fixed",
            scale_param="linear",
            a_granularity="tensor" if static else "token",
            a_range="static" if static else "dynamic",
        )

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from qvgen.api import convert_, quantize_

        if self.solver == "rtn" and self.activations == "token":
            return convert_(quantize_(model, self.quant_config(), ctx.skip_layers))
        return self._apply_calibrated(model, ctx)

    def _apply_calibrated(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from baselines.layerwise import chosen_layers, replace_layers_

        names = chosen_layers(model, ctx.skip_layers)
        hessian = self.solver == "gptq"
        needs = Needs(layers=names, prompts=self.prompts, hessian=hessian)
        statistics = calibrate(ctx, needs, self.name)

        def build(group: list[str], linears: list[nn.Linear]) -> list[nn.Module]:
            return [self._layer(linears[0], statistics[group[0]])]

        return replace_layers_(model, [[n] for n in names], build, self.quant_config(), ctx, self.name)

    def _layer(self, linear: nn.Linear, found: Statistics) -> nn.Module:
        import torch

        from baselines.layerwise import round_weight
        from qvgen.ranges import scale_and_zero_point
        from qvgen.transformed import frozen_from_codes

        config = self.quant_config()
        rounded = round_weight(linear.weight, config, self.solver, found.hessian)
        frozen = frozen_from_codes(linear, config, rounded.codes, rounded.scale, rounded.zero_point)
        if self.activations == "static":
            low, high = torch.tensor([found.low, found.high])
            step = scale_and_zero_point(low, high, 2**config.a_bits - 1, integer_zero=True)
            for target, value in zip((frozen.a_scale, frozen.a_zero_point), step, strict=True):
                target.copy_(value)
        return frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class RTNMinMax(RTN):
    """Round-to-nearest without the range search: what the search is worth, as a row of its own."""

    name: ClassVar[str] = "rtn-minmax"
    summary: ClassVar[str] = "round to nearest over the full range of each row"
    adapted: ClassVar[str] = ""

    range: RangeInit = "minmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class RTNStatic(RTN):
    """The worst case: extremes of the rows, and one activation range for all tokens and steps."""

    name: ClassVar[str] = "rtn-static"
    summary: ClassVar[str] = "round to nearest, one calibrated activation range a layer: the worst case"
    needs: ClassVar[str] = "calibration"
    adapted: ClassVar[str] = "extremes of all calibration inputs, no moving average"

    range: RangeInit = "minmax"
    activations: Literal["token", "static"] = "static"
