"""What each dimension must do, written before its scores were seen, with the reason.

A rule compares a condition with the undamaged renderings, video by video, on the 95 % interval of
the mean difference; or, for the renderings themselves, the mean with a floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evalharness.stats import Interval, Keyed, Resampler, bootstrap_ci, paired_difference
from evalharness.tinyworld.calibration.cases import Case

__all__ = ["RULES", "Rule", "Verdict", "judge"]

Verb = Literal["falls", "holds", "floor"]
Scores = Mapping[str, Mapping[str, Keyed]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation.

    Attributes:
        dimension: whose score.
        condition: under which condition.
        verb: ``falls``: lower than on renderings by more than ``margin``, the whole interval;
            ``holds``: the mean differs by at most ``margin``; ``floor``: the mean is at least that.
        margin: in the raw scale, 0 to 1.
        reason: why a sound measure behaves so.
        clips: ``all``, ``moving`` or ``directed`` ones (see ``Case``).
    """

    dimension: str
    condition: str
    verb: Verb
    margin: float
    reason: str
    clips: Literal["all", "moving", "directed"] = "all"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule, what was measured (a difference, or the mean of a floor), and whether it fits."""

    rule: Rule
    measured: Interval
    passed: bool


LABELLED = ("object_class", "multiple_objects", "color", "spatial_relationship", "scene", "action")
ASKED = (*LABELLED, "overall_consistency")
UNASKED = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "imaging_quality",
)
LOOKS = ("object_class", "multiple_objects", "color", "scene")


def _each(
    dimensions: Sequence[str], condition: str, verb: Verb, margin: float, reason: str
) -> Iterator[Rule]:
    return (Rule(dimension, condition, verb, margin, reason) for dimension in dimensions)


RULES: tuple[Rule, ...] = (
    *_each(LABELLED, "renderings", "floor", 0.95, "what is drawn is what the labels say"),
    *_each(
        ("subject_consistency", "background_consistency"),
        "renderings",
        "floor",
        0.94,
        "nothing changes its looks; movement and animation must cost little",
    ),
    Rule("motion_smoothness", "renderings", "floor", 0.97, "all paths are smooth"),
    Rule("dynamic_degree", "renderings", "floor", 0.9, "moving things move", "moving"),
    Rule("imaging_quality", "renderings", "floor", 0.93, "undamaged but for the codec"),
    Rule("overall_consistency", "renderings", "floor", 0.8, "the caption is true"),
    Rule("dynamic_degree", "frozen", "falls", 0.8, "nothing moves", "moving"),
    Rule("action", "frozen", "falls", 0.8, "a repeated frame stands still", "moving"),
    *_each(LOOKS, "frozen", "holds", 0.05, "looks do not need time"),
    Rule("action", "shuffled", "falls", 0.8, "no named motion jumps about", "moving"),
    Rule("motion_smoothness", "shuffled", "falls", 0.01, "frames no longer follow from neighbours", "moving"),
    *_each(LOOKS, "shuffled", "holds", 0.02, "the same frames"),
    Rule("imaging_quality", "shuffled", "holds", 0.03, "the same frames, coded in another order"),
    Rule("imaging_quality", "noise", "falls", 0.5, "noise is damage"),
    Rule("motion_smoothness", "noise", "falls", 0.02, "noise cannot be foretold from neighbours"),
    Rule("subject_consistency", "noise", "falls", 0.1, "texture differs in every frame"),
    Rule("background_consistency", "noise", "falls", 0.1, "texture differs in every frame"),
    Rule("overall_consistency", "noise", "falls", 0.02, "what is said is harder to see"),
    *_each(ASKED, "wrong captions", "falls", 0.5, "none of it is shown"),
    *_each(UNASKED, "wrong captions", "holds", 0.0, "does not read the caption"),
    Rule("imaging_quality", "blur", "falls", 0.4, "blur is damage"),
    Rule("action", "backwards", "falls", 0.8, "left becomes right, up becomes down", "directed"),
    Rule("subject_consistency", "things flicker", "falls", 0.2, "the things change"),
    Rule("background_consistency", "things flicker", "holds", 0.05, "the background does not change"),
    Rule("object_class", "things flicker", "falls", 0.3, "the named shape is there now and then"),
    Rule("background_consistency", "scene flickers", "falls", 0.2, "the background changes"),
    Rule("scene", "scene flickers", "falls", 0.3, "the named scene is there now and then"),
    *_each(("object_class", "color"), "scene flickers", "holds", 0.1, "the things do not change"),
    Rule("spatial_relationship", "relation reversed", "falls", 0.8, "the relation alone is wrong"),
    Rule("multiple_objects", "relation reversed", "holds", 0.0, "both things are there"),
    Rule("overall_consistency", "one wrong word", "falls", 0.1, "one attribute is wrong"),
)


def judge(
    scores: Scores, cases: Sequence[Case], resampler: Resampler, rules: Sequence[Rule] = RULES
) -> list[Verdict]:
    """Hold ``scores`` (condition -> dimension -> video -> value) against the rules."""
    chosen = {
        "all": {case.sample.prompt.id for case in cases},
        "moving": {case.sample.prompt.id for case in cases if case.moving},
        "directed": {case.sample.prompt.id for case in cases if case.directed},
    }
    return [_verdict(rule, scores, chosen[rule.clips], resampler) for rule in rules]


def _verdict(rule: Rule, scores: Scores, clips: set[str], resampler: Resampler) -> Verdict:
    own = _only(scores[rule.condition][rule.dimension], clips)
    if rule.verb == "floor":
        measured = bootstrap_ci(own, resampler)
        return Verdict(rule, measured, measured.value is not None and measured.value >= rule.margin)
    measured = paired_difference(own, _only(scores["renderings"][rule.dimension], clips), resampler)
    if rule.verb == "falls":
        return Verdict(rule, measured, measured.hi is not None and measured.hi < -rule.margin)
    return Verdict(rule, measured, measured.value is not None and abs(measured.value) <= rule.margin)


def _only(scores: Keyed, clips: set[str]) -> Keyed:
    return {key: value for key, value in scores.items() if key.prompt in clips}
