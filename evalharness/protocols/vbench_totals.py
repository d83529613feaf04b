"""VBench's quality, semantic and total score.

Each dimension is stretched from VBench's minimum and maximum to 0..1, without clipping, and weighted
(``scripts/constant.py`` and ``scripts/cal_final_score.py`` of the project). Total = (4 quality +
semantic) / 5.
"""

from __future__ import annotations

from evalharness.api import Total, TotalTerm

__all__ = ["QUALITY", "SEMANTIC", "TOTALS"]

QUALITY = {
    "subject_consistency": TotalTerm(low=0.1462),
    "background_consistency": TotalTerm(low=0.2615),
    "temporal_flickering": TotalTerm(low=0.6293),
    "motion_smoothness": TotalTerm(low=0.706, high=0.9975),
    "dynamic_degree": TotalTerm(weight=0.5),
    "aesthetic_quality": TotalTerm(),
    "imaging_quality": TotalTerm(),
}
SEMANTIC = {
    "object_class": TotalTerm(),
    "multiple_objects": TotalTerm(),
    "human_action": TotalTerm(),
    "color": TotalTerm(),
    "spatial_relationship": TotalTerm(),
    "scene": TotalTerm(high=0.8222),
    "appearance_style": TotalTerm(low=0.0009, high=0.2855),
    "temporal_style": TotalTerm(high=0.364),
    "overall_consistency": TotalTerm(high=0.364),
}
_SHARES = ((4 / 5, QUALITY), (1 / 5, SEMANTIC))


def _all_terms() -> dict[str, TotalTerm]:
    """The terms of both groups, each group scaled to its share of the total."""
    terms: dict[str, TotalTerm] = {}
    for share, group in _SHARES:
        weights = sum(term.weight for term in group.values())
        terms |= {name: term._replace(weight=share * term.weight / weights) for name, term in group.items()}
    return terms


TOTALS = (
    Total(name="quality", terms=QUALITY),
    Total(name="semantic", terms=SEMANTIC),
    Total(name="total", terms=_all_terms()),
)
