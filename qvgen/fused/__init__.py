"""The two fake quantizers of ``qvgen.fake_quant`` as one Triton kernel each way, for CUDA.

``token_fake_quant`` and ``weight_fake_quant`` take this path where it fits, unless the environment
has ``QVGEN_FUSED=0``; nothing else has to call it. Triton is imported at the first kernel's launch.
"""

from __future__ import annotations

from qvgen.fused.switch import AVAILABLE, MAX_COLUMNS, MAX_RANK, disabled

__all__ = ["AVAILABLE", "MAX_COLUMNS", "MAX_RANK", "disabled"]
