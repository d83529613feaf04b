"""SVDQuant (Li et al., ICLR 2025, arXiv 2411.05007): outliers go into weights, then into a branch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from baselines.calibration import Needs, Statistics, calibrate
from baselines.two_modes import TwoModes
from qvgen.config import QuantConfig, check_int

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvgen.training.context import TrainContext

# GELU is never below -0.17; the authors shift by the next number that is exact in 16 bit.
GELU_SHIFT = 0.171875

# What the authors keep in 16 bit, by the names of the CogVideoX and Wan families.
AUTHOR_SPARES = (
    r"(^|\.)(condition_embedder|patch_embed|time_embedding|norm1|norm2|norm_out|proj_out)(\.|$)"
    r"|attn2\.to_[kv]$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SVDQuant(TwoModes):
    """Smoothing by grid search, a 16-bit branch of low rank, the residual quantized.

    Author mode is symmetric in groups of 64 (the largest divisor of a layer's inputs up to 64), has
    inputs after GELU shifted and unsigned, and spares embedders, modulation, output and the k and v
    of cross-attention.

    Attributes:
        rank: of the branch.
        range: of a block of the final residual in fair mode; both modes search with the extremes.
        grid: steps of the smoothing's exponent; 20 gives the authors' 39 candidates.
        iterations: at most so many refinements of the branch, ended by the first rise of the error.
    """

    name: ClassVar[str] = "svdquant"
    summary: ClassVar[str] = "outliers smoothed into the weight and absorbed by a 16-bit low-rank branch"
    paper: ClassVar[str] = "arXiv 2411.05007"
    needs: ClassVar[str] = "calibration"
    exact: ClassVar[str] = "smoothing grid, alternating refinement, early stop"
    adapted: ClassVar[str] = "fair mode: others' granularity; q, k, v judged by layer output"

    rank: int = 32
    grid: int = 20
    iterations: int = 100

    def quant_config(self) -> QuantConfig:
        shared = self.shared_config()
        for name, high in {"rank": 4096, "grid": 1000, "iterations": 10000}.items():
            check_int(name, getattr(self, name), 1, high)
        if self.mode == "fair":
            return shared
        return replace(
            shared, w_symmetric=True, a_symmetric=True, w_granularity="group", a_granularity="group"
        )

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from baselines.layerwise import chosen_layers, input_groups, replace_layers_

        spared = AUTHOR_SPARES if self.mode == "author" else ""
        needs = Needs(
            layers=chosen_layers(model, ctx.skip_layers, spared),
            prompts=self.prompts,
            rows=self.rows,
            hessian=self.solver == "gptq",
        )
        statistics = calibrate(ctx, needs, self.name)

        def build(group: list[str], linears: list[nn.Linear]) -> list[nn.Module]:
            layers, errors = self._layers(linears, statistics[group[0]])
            ctx.log(
                {"layer": group[0], "linears": len(group), "iterations": len(errors), "error": errors[-1]}
            )
            return layers

        groups = input_groups(statistics)
        return replace_layers_(model, groups, build, self.quant_config(), ctx, self.name)

    def _layers(self, linears: list[nn.Linear], found: Statistics) -> tuple[list[nn.Module], list[float]]:
        """Finished layers of linears that share their input, and the falling errors of the branch."""
        import torch

        from baselines.layerwise import round_weight, transformed_layer
        from baselines.low_rank import Problem, refine_branch, search_smoothing, smoothed
        from qvgen.transformed import Transform

        config, shift = self._layer_config(linears, found)
        problem = Problem(
            weight=torch.cat([linear.weight.float() for linear in linears]),
            x=found.rows.float() + shift,
            absmax=found.absmax.amax(0) + shift,
            config=replace(config, range_init="minmax"),
        )
        factor = search_smoothing(problem, self.rank, self.grid)
        smooth = smoothed(problem, factor)
        branch, errors = refine_branch(smooth, self.rank, self.iterations)
        branch = branch.rounded(torch.bfloat16 if config.store_dtype == "bfloat16" else torch.float32)
        residual = smooth.weight - branch.weight()
        hessian = _hessian(found, shift, factor) if self.solver == "gptq" else None
        transform = Transform(scaled=True, rank=len(branch.down), shift=shift)
        sizes = [linear.out_features for linear in linears]
        layers: list[nn.Module] = [
            transformed_layer(
                linear,
                config,
                transform,
                round_weight(part, config, self.solver, hessian),
                input_scale=1 / factor,
                branch=(up, branch.down),
            )
            for linear, part, up in zip(linears, residual.split(sizes), branch.up.split(sizes), strict=True)
        ]
        return layers, errors

    def _layer_config(self, linears: list[nn.Linear], found: Statistics) -> tuple[QuantConfig, float]:
        """Quantizers of a layer and the shift of its input: groups that fit, unsigned after GELU."""
        from baselines.layerwise import fit_groups

        config = fit_groups(self.quant_config(), linears[0].in_features)
        after_gelu = -GELU_SHIFT <= found.low < 0 and found.high > 4 * GELU_SHIFT
        if self.mode == "author" and after_gelu and all(linear.bias is not None for linear in linears):
            # All values are positive now, so the asymmetric quantizer's zero point is always 0.
            return replace(config, a_symmetric=False), GELU_SHIFT
        return config, 0.0


def _hessian(found: Statistics, shift: float, factor: Tensor) -> Tensor:
    """Mean of x x^T of the shifted and smoothed input."""
    assert found.hessian is not None and found.mean is not None
    crossed = shift * (found.mean[:, None] + found.mean[None]) + shift**2
    return (found.hessian + crossed) / (factor[:, None] * factor[None])
