"""Round to nearest: the floor of every table. No data, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qvgen.config import QuantConfig, RangeInit, check_choice
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
    """

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round to nearest, no data, no training"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "none"

    range: RangeInit = "search"

    def quant_config(self) -> QuantConfig:
        check_choice("range", self.range, ("search", "minmax"))
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            range_init=self.range,
            zero_point="fixed",
            scale_param="linear",
        )

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from qvgen.api import convert_, quantize_

        return convert_(quantize_(model, self.quant_config(), ctx.skip_layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class RTNMinMax(RTN):
    """Round-to-nearest without the range search: what the search is worth, as a row of its own."""

    name: ClassVar[str] = "rtn-minmax"
    summary: ClassVar[str] = "round to nearest over the full range of each row"

    range: RangeInit = "minmax"
