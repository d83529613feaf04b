"""VBench's two result files, from the scores of one cell.

``<name>_eval_results.json`` is what its leaderboard reads: dimension -> [overall, [one record a video]].
VBench's own script counts a dimension that is absent from it as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalharness.api import Prompt

if TYPE_CHECKING:
    from evalharness.result_schema import CellResult

__all__ = ["eval_results", "full_info", "submittable"]

# The package writes these per video as booleans, and this one as 0..100 beside an overall of 0..1.
_BOOLEAN = ("dynamic_degree", "human_action")
_HUNDREDFOLD = ("imaging_quality",)
_NESTED_TWICE = ("scene", "spatial_relationship")


def submittable(cell: CellResult, metrics: Mapping[str, str]) -> list[str]:
    """Dimensions that are fully scored, by a metric that is called VBench's or is the package itself."""
    theirs = [name for name, metric in metrics.items() if metric in (f"vbench.{name}", f"upstream.{name}")]
    return [name for name in theirs if cell.dimensions[name].n == cell.dimensions[name].expected > 0]


def eval_results(cell: CellResult, dimensions: Sequence[str], paths: Mapping[str, str]) -> dict[str, Any]:
    """The content of ``<name>_eval_results.json``.

    Args:
        cell: with its scores.
        dimensions: of ``submittable``.
        paths: sample id -> path of the exported video.
    """
    return {
        name: [
            cell.dimensions[name].value,
            [
                {
                    "video_path": paths.get(f"{row.prompt_id}-{row.sample}", ""),
                    "video_results": _as_vbench(name, row.value),
                }
                for row in cell.scores[name]
            ],
        ]
        for name in dimensions
    }


def full_info(prompts: Sequence[Prompt], videos: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The content of ``<name>_full_info.json``.

    Args:
        prompts: of the protocol.
        videos: prompt id -> paths of its exported videos.
    """
    return [
        {
            "prompt_en": prompt.text,
            "dimension": list(prompt.dimensions),
            **_auxiliary(prompt),
            "video_list": list(videos.get(prompt.id, ())),
        }
        for prompt in prompts
    ]


def _as_vbench(dimension: str, value: float) -> float | bool:
    if dimension in _BOOLEAN and value in (0, 1):
        return bool(value)
    return value * 100 if dimension in _HUNDREDFOLD else value


def _auxiliary(prompt: Prompt) -> dict[str, Any]:
    """The labels at the depth at which the package looks for them."""
    labels = {key: value for key, value in prompt.labels.items() if key != "action"}
    if not labels:
        return {}
    deep = [name for name in prompt.dimensions if name in _NESTED_TWICE]
    owner = deep[0] if deep else prompt.dimensions[0]
    return {"auxiliary_info": {owner: {owner: labels} if deep else labels}}
