"""What a released checkpoint does not say about itself. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qvgen.config import MAX_BITS, MIN_BITS, QuantConfig, check_choice, check_float, check_int

ClipChoice = Literal["last", "counter", "timestep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialConfig:
    """The options of the authors' scripts that a checkpoint was trained or is run with.

    Attributes:
        w_bits: bits of weights (``--w_bit``).
        a_bits: bits of activations (``--act_bit``).
        weights: ``lsq+`` adds its real-valued zero point inside the rounding, ``lsq`` a whole one
            after it (``--w_quantizer``).
        mode: ``official`` keeps the released arithmetic, ``exact`` gives this library's layers.
        clip_choice: which activation clip serves a call. ``last``: the last entry (the scripts
            without ``--fix``); ``counter``: the last but 0, 1, 2, ... by calls of the layer, then
            entry 0 for good (``--fix``); ``timestep``: ``int(t[0]) mod clip_entries`` (training).
            For mode ``official`` only.
        clip_ratio: the constant that multiplies the learnt ratio (``--act_clip_ratio``).
        clip_entries: clips a layer (``--clip_group_num``).
        grad_scaling: ``--w_use_grad_scaling``; in bfloat16 it also moves the values of scale and
            zero point by up to a rounding step.
        gamma: factors of Phi's columns, for a checkpoint saved while Phi was at work; such a file
            does not hold them.
    """

    w_bits: int = 4
    a_bits: int = 4
    weights: Literal["lsq+", "lsq"] = "lsq+"
    mode: Literal["official", "exact"] = "official"
    clip_choice: ClipChoice = "last"
    clip_ratio: float = 0.95
    clip_entries: int = 50
    grad_scaling: bool = True
    gamma: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_int("w_bits", self.w_bits, MIN_BITS, MAX_BITS)
        check_int("a_bits", self.a_bits, MIN_BITS, MAX_BITS)
        check_choice("weights", self.weights, ("lsq+", "lsq"))
        check_choice("mode", self.mode, ("official", "exact"))
        check_choice("clip_choice", self.clip_choice, ("last", "counter", "timestep"))
        check_float("clip_ratio", self.clip_ratio, 0.0, 1.0, open_low=True)
        check_int("clip_entries", self.clip_entries, 1, 1000)
        check_choice("grad_scaling", self.grad_scaling, (True, False))
        if self.gamma is not None and not isinstance(self.gamma, tuple | list):
            raise ValueError(
                f"gamma is {self.gamma!r}; expected a tuple with a number for each column of Phi"
            )
        for factor in self.gamma or ():
            check_float("gamma", factor, 0.0, 1.0)

    def exact_config(self) -> QuantConfig:
        """The quantizers of mode ``exact``."""
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            zero_point="learned" if self.weights == "lsq+" else "fixed",
            scale_param="linear",
            learn_clip=True,
        )
