"""What a reader of scores must know about this model under this protocol."""

from __future__ import annotations

from evalharness.api import EvalProtocol

__all__ = ["protocol_notes"]

# From here on VBench's authors advise VBench-Long.
LONG_SECONDS = 5.0
_MLPERF_MODEL = "wan2.2-a14b"


def protocol_notes(
    protocol: EvalProtocol, model: str, frames: int, fps: int, *, fixed_noise: bool = False
) -> list[str]:
    """One sentence for each thing, none where all is as the protocol means it."""
    notes = []
    is_vbench = any(metric.startswith("vbench.") for metric in protocol.metrics.values())
    if is_vbench and fps > 0 and frames / fps >= LONG_SECONDS:
        notes.append(
            f"{frames} frames at {fps} fps are {frames / fps:.2f} s: from {LONG_SECONDS:.0f} s on VBench's "
            "authors advise VBench-Long; QVGen and MLPerf use plain VBench there too, and so does this"
        )
    if protocol.name == "mlperf-t2v" and model != _MLPERF_MODEL:
        notes.append(f"MLPerf defines this for {_MLPERF_MODEL}: its 70.48 is no reference for {model}")
    if fixed_noise:
        notes.append(
            "one starting noise for all videos, from seed 42; it is not MLPerf's own file of noise, and "
            "--seeds changes nothing"
        )
    return notes
