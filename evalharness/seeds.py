"""The seed of a video: the same on one machine or eight, after a resume, in any order."""

from __future__ import annotations

import hashlib

__all__ = ["video_seed"]

_MASK_63_BITS = (1 << 63) - 1


def video_seed(base_seed: int, prompt_id: str, index: int) -> int:
    """A number in ``[0, 2**63)`` that depends on these three alone.

    It is the first 8 bytes (big-endian) of SHA-256 over ``"{base_seed}:{prompt_id}:{index}"``,
    with the top bit cleared so that it fits a signed 64-bit seed.
    """
    key = f"{base_seed}:{prompt_id}:{index}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") & _MASK_63_BITS
