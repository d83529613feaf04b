"""ViDiT-Q (Zhao et al., ICLR 2025, arXiv 2406.02540): channels balanced and rotated before rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.calibration import Needs, Statistics, calibrate
from baselines.two_modes import TwoModes
from qvgen.config import QuantConfig, check_choice, check_float, check_int

if TYPE_CHECKING:
    from torch import nn

    from qvgen.training.context import TrainContext

# The authors' choice for OpenSora 1.2; the exponent is the method's one free parameter.
AUTHOR_ALPHA = 0.5665
ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))

# What the authors' configurations keep in 16 bit, by the names of the CogVideoX and Wan families.
AUTHOR_SPARES = (
    r"(^|\.)(condition_embedder|patch_embed|time_embedding|norm1|norm2|norm_out|proj_out)(\.|$)|attn2\."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViDiTQ(TwoModes):
    """Input channels scaled by what calibration saw (static), then a Hadamard rotation (dynamic).

    Channel j of the input is multiplied by ``max|W_j|^alpha / max|X_j|^(1-alpha)``, the weight divided
    by it; both are then rotated, and rounded once. Author mode has symmetric activations, plain
    extremes, the authors' alpha and spared layers (embedders, modulation, output, cross-attention)
    and mixed precision.

    Attributes:
        alpha: exponent in [0, 1]; None: the one of 0.1, 0.2, ..., 0.9 with the least output error
            over ``sweep_layers`` layers; in author mode 0.5665.
        rotate: whether to rotate. A layer of a width without a known transform is never rotated.
        buckets: timestep ranges with maxima of their own.
        over_time: how a channel's maxima over the ranges become one: ``max`` as the authors' code
            does, ``mean`` as it says that it does.
        promoted: share of the layers that mixed precision keeps at 8 bits (author mode).
        double_quant: reproduce the public code, which rounds the balanced weight, rotates the
            rounded one and rounds again over the largest range of all three.
        sweep_layers: layers that alpha is judged on, of all kinds and depths; see ``spread_out``.
    """

    name: ClassVar[str] = "viditq"
    summary: ClassVar[str] = "channels balanced by calibration and rotated by a fast Hadamard transform"
    paper: ClassVar[str] = "arXiv 2406.02540"
    needs: ClassVar[str] = "calibration"
    exact: ClassVar[str] = "balancing, rotation"
    adapted: ClassVar[str] = (
        "fair mode: no mixed precision, alpha swept; author mode: layers ranked by output error"
    )

    alpha: float | None = None
    rotate: bool = True
    buckets: int = 10
    over_time: Literal["max", "mean"] = "max"
    promoted: float = 0.25
    double_quant: bool = False
    sweep_layers: int = 24

    def quant_config(self) -> QuantConfig:
        shared = self.shared_config()
        if self.alpha is not None:
            check_float("alpha", self.alpha, 0.0, 1.0)
        check_choice("over_time", self.over_time, ("max", "mean"))
        check_float("promoted", self.promoted, 0.0, 1.0)
        for name in ("rotate", "double_quant"):
            check_choice(name, getattr(self, name), (True, False))
        for name, high in {"buckets": 1000, "sweep_layers": 4096}.items():
            check_int(name, getattr(self, name), 1, high)
        if self.double_quant and self.solver == "gptq":
            raise ValueError("double_quant reproduces code that rounds to nearest; leave solver at rtn")
        return replace(shared, a_symmetric=self.mode == "author")

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from baselines.layerwise import chosen_layers, replace_layers_

        spared = AUTHOR_SPARES if self.mode == "author" else ""
        names = chosen_layers(model, ctx.skip_layers, spared)
        needs = Needs(
            layers=names,
            prompts=self.prompts,
            buckets=self.buckets,
            rows=self.rows,
            hessian=self.solver == "gptq",
        )
        statistics = calibrate(ctx, needs, self.name)
        alpha = self._chosen_alpha(model, names, statistics, ctx)
        configs = self._layer_configs(model, names, statistics, alpha, ctx)

        def build(group: list[str], linears: list[nn.Linear]) -> list[nn.Module]:
            return [self._layer(linears[0], statistics[group[0]], alpha, configs[group[0]])]

        return replace_layers_(model, [[n] for n in names], build, self.quant_config(), ctx, self.name)

    def _chosen_alpha(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        statistics: Mapping[str, Statistics],
        ctx: TrainContext,
    ) -> float:
        from baselines.balancing import balanced_error
        from baselines.layerwise import spread_out

        if self.alpha is not None or self.mode == "author":
            return AUTHOR_ALPHA if self.alpha is None else self.alpha
        config = replace(self.quant_config(), range_init="minmax")
        judged = spread_out(names, self.sweep_layers)
        errors: dict[float, float] = {}
        for index in ctx.track(range(len(ALPHAS)), f"{self.name} alpha"):
            alpha = ALPHAS[index]
            found = [
                balanced_error(model.get_submodule(n), statistics[n], self._balance(alpha), config)
                for n in judged
            ]
            errors[alpha] = sum(found) / len(found)
            ctx.log({"alpha": alpha, "error": errors[alpha]})
        return min(errors, key=lambda alpha: errors[alpha])

    def _layer_configs(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        statistics: Mapping[str, Statistics],
        alpha: float,
        ctx: TrainContext,
    ) -> dict[str, QuantConfig]:
        """Quantizers by layer; in author mode some have 8 bits."""
        from baselines.balancing import balanced_error
        from baselines.mixed_precision import promoted_layers

        config = self.quant_config()
        configs = dict.fromkeys(names, config)
        if self.mode == "author" and self.promoted:
            balance = self._balance(alpha)
            errors = {
                n: balanced_error(model.get_submodule(n), statistics[n], balance, config) for n in names
            }
            for name in promoted_layers(errors, self.promoted):
                configs[name] = replace(config, w_bits=8, a_bits=8)
                ctx.log({"layer": name, "bits": 8, "error": errors[name]})
        return configs

    def _layer(self, linear: nn.Linear, found: Statistics, alpha: float, config: QuantConfig) -> nn.Module:
        from baselines.balancing import balance, rounded_twice
        from baselines.layerwise import round_weight, transformed_layer
        from qvgen.transformed import Transform

        balanced = balance(linear.weight, found, self._balance(alpha))
        rotation = balanced.rotation
        paired = rotation is not None and rotation.paired
        transform = Transform(scaled=True, rotated=rotation is not None, paired=paired)
        if self.double_quant:
            rounded = rounded_twice(linear.weight, balanced, config)
        else:
            hessian = balanced.hessian(found) if self.solver == "gptq" else None
            rounded = round_weight(balanced.weight, config, self.solver, hessian)
        return transformed_layer(linear, config, transform, rounded, input_scale=balanced.input_scale)

    def _balance(self, alpha: float) -> BalanceOptions:
        return BalanceOptions(alpha=alpha, rotate=self.rotate, over_time=self.over_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceOptions:
    """How inputs are balanced: see the fields of ``ViDiTQ``."""

    alpha: float
    rotate: bool
    over_time: Literal["max", "mean"]
