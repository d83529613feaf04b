"""Round to nearest with every weight row clipped to a fixed share of its range. An example plugin.

    evalharness run --plugin docs/examples/clipped_rtn.py --methods rtn,clipped-rtn --bits 3

It stands on no base class: only the shape of ``evalharness.api.Method`` counts. torch is imported
inside the functions, so that ``evalharness ls`` stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from evalharness.api import MethodContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedRTN:
    """Weights rounded per output channel over a clipped range, activations per token.

    Attributes:
        clip: share of each weight row's range that is kept, in (0, 1]; 1 is plain rounding.
    """

    name: ClassVar[str] = "clipped-rtn"
    summary: ClassVar[str] = "round to nearest over a fixed share of each row's range"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "none"

    w_bits: int
    a_bits: int
    clip: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.clip <= 1.0:
            raise ValueError(f"clip is {self.clip}; expected a number in (0, 1]")

    def apply(self, model: nn.Module, ctx: MethodContext) -> nn.Module:
        """Quantize every linear that the preset does not keep, in place."""
        import torch

        from qvgen.api import convert_, quant_layers, quantize_
        from qvgen.config import QuantConfig

        config = QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            range_init="minmax",
            zero_point="fixed",
            scale_param="linear",
        )
        quantize_(model, config, ctx.skip_layers)
        with torch.no_grad():
            for _, layer in quant_layers(model):
                # Both ends of the range shrink alike, so the zero point -low / scale stays.
                layer.wquantizer.scale().mul_(self.clip)
        return convert_(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Packed integer codes and a JSON header."""
        from qvgen.checkpoint import save_quantized

        save_quantized(model, folder, {"method": self.name, "clip": self.clip})

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """The model that ``save`` wrote.

        Raises:
            ValueError: the folder is missing, corrupt, or of another method, bit width or clip.
        """
        from qvgen.checkpoint import load_quantized

        expect = {"method": self.name, "clip": self.clip, "w_bits": self.w_bits, "a_bits": self.a_bits}
        return load_quantized(model, folder, expect)


PLUGINS = {"methods": {"clipped-rtn": ClippedRTN}}
