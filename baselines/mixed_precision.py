"""Which layers ViDiT-Q's author mode keeps at 8 bits."""

from __future__ import annotations

import re
from collections.abc import Mapping

# ViDiT-Q decouples the metrics: cross-attention decides text alignment, temporal attention motion,
# the rest image quality. A layer is ranked only against those that hurt the same metric.
_KINDS = (("text", r"attn2\."), ("motion", r"temporal|attn_temp"), ("quality", r""))


def promoted_layers(errors: Mapping[str, float], share: float) -> tuple[str, ...]:
    """The most sensitive layers of each kind.

    A budget of ``share`` of all layers is divided between the kinds by their total error; within a
    kind it goes to the layers with the largest.

    Args:
        errors: relative output error of each layer at low bits.
        share: of the layers, in [0, 1].
    """
    kinds: dict[str, list[str]] = {}
    for name in errors:
        kind = next(kind for kind, pattern in _KINDS if re.search(pattern, name))
        kinds.setdefault(kind, []).append(name)
    total = sum(errors.values())
    budget = round(share * len(errors))
    chosen: list[str] = []
    for names in kinds.values():
        part = sum(errors[name] for name in names) / total if total else len(names) / len(errors)
        ranked = sorted(names, key=lambda name: (-errors[name], name))
        chosen += ranked[: min(len(names), round(budget * part))]
    return tuple(sorted(chosen))
