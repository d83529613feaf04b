"""Fair and author mode. No torch: method classes are listed before it is imported."""

from __future__ import annotations

from typing import Literal

from qvgen.config import QuantConfig, check_choice

Mode = Literal["fair", "author"]


def check_mode(mode: object) -> None:
    """Raise ValueError for anything but ``fair`` or ``author``."""
    check_choice("mode", mode, ("fair", "author"))


def timestep_config(mode: Mode, w_bits: int, a_bits: int, buckets: int) -> QuantConfig:
    """Quantizers of a method that knows the timestep, by equal parts of the timesteps.

    Fair: a learnt clip for each of ``buckets``; author: a static step and offset for each.
    """
    fair = mode == "fair"
    return QuantConfig(
        w_bits=w_bits,
        a_bits=a_bits,
        zero_point="fixed",
        learn_clip=fair,
        clip_buckets=buckets,
        a_granularity="token" if fair else "tensor",
        a_range="dynamic" if fair else "static",
    )
