"""Fair and author mode. No torch: method classes are listed before it is imported."""

from __future__ import annotations

from typing import Literal

from qvgen.config import QuantConfig, check_choice

Mode = Literal["fair", "author"]


def check_mode(mode: object) -> None:
    """Raise ValueError for anything but ``fair`` or ``author``."""
    check_choice("mode", mode, ("fair", "author"))


def clipped_config(w_bits: int, a_bits: int, buckets: int) -> QuantConfig:
    """Fair quantizers of a method that knows the timestep: a learnt clip for each of ``buckets``."""
    return QuantConfig(
        w_bits=w_bits, a_bits=a_bits, zero_point="fixed", learn_clip=True, clip_buckets=buckets
    )
