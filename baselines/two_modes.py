"""Methods with a fair and an author mode; checkpoints tell which one made them. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.calibration import SOLVERS, Solver
from baselines.modes import Mode, check_mode
from qvgen.config import QuantConfig, RangeInit, check_choice, check_int
from qvgen.method import QuantMethod

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoModes(QuantMethod):
    """A calibrated method with two modes.

    Attributes:
        mode: ``fair``: the granularity, symmetry and skip list of all methods; ``author``: the
            method's published settings.
        range: of a weight block in fair mode: ``search`` or ``minmax``; author mode takes the extremes.
        solver: of the weight's codes: ``rtn`` rounds to nearest, ``gptq`` against the Hessian.
        prompts: calibration videos.
        rows: input rows of each layer that errors are measured on.
    """

    mode: Mode = "fair"
    range: RangeInit = "search"
    solver: Solver = "rtn"
    prompts: int = 16
    rows: int = 512

    def shared_config(self) -> QuantConfig:
        """The quantizers, but for what author mode has of its own: symmetry and groups.

        Raises:
            ValueError: one of these fields is out of range.
        """
        check_mode(self.mode)
        check_choice("range", self.range, ("search", "minmax"))
        check_choice("solver", self.solver, SOLVERS)
        check_int("prompts", self.prompts, 1, 4096)
        check_int("rows", self.rows, 1, 1 << 16)
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            range_init="minmax" if self.mode == "author" else self.range,
            zero_point="fixed",
            scale_param="linear",
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        from qvgen.checkpoint import save_quantized

        save_quantized(model, folder, {"method": self.name, "mode": self.mode}, self.quant_config())

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        from qvgen.checkpoint import load_quantized

        expect = {"method": self.name, "mode": self.mode, "w_bits": self.w_bits, "a_bits": self.a_bits}
        return load_quantized(model, folder, expect)
