"""tinyworld's prompt suite; the whole of it stands in ``golden/tinyworld_prompts.json``."""

from __future__ import annotations

import json
from pathlib import Path

from evalharness.protocols.tinyworld import DIMENSIONS, TinyWorldProtocol
from evalharness.registry import Registry
from evalharness.tinyworld import spec
from evalharness.tinyworld.calibration.cases import labels_of

GOLDEN = Path(__file__).parent / "golden" / "tinyworld_prompts.json"
NEEDED = {
    "object_class": ("things",),
    "multiple_objects": ("things",),
    "color": ("things",),
    "spatial_relationship": ("things", "relation"),
    "scene": ("scene",),
    "action": ("motion",),
    "overall_consistency": ("caption",),
}
PROMPTS = TinyWorldProtocol().prompts()


def clip_of(prompt_labels: dict) -> spec.Clip:
    things = tuple(spec.Thing(thing["color"], thing["shape"]) for thing in prompt_labels["things"])
    return spec.Clip(things, prompt_labels["motion"], prompt_labels["scene"], prompt_labels["relation"])


def test_the_suite_is_the_published_one() -> None:
    """A changed suite makes every earlier score stale: change the golden file knowingly."""
    rows = [
        {"id": p.id, "text": p.text, "dimensions": list(p.dimensions), "labels": dict(p.labels)}
        for p in PROMPTS
    ]
    assert rows == json.loads(GOLDEN.read_text())
    again = TinyWorldProtocol().prompts()
    assert [p.text for p in again] == [p.text for p in PROMPTS]


def test_eighty_different_prompts_with_plain_ids() -> None:
    assert len(PROMPTS) == 80
    assert len({p.text for p in PROMPTS}) == 80
    assert [p.id for p in PROMPTS] == [f"{number:04d}" for number in range(80)]


def test_training_never_saw_a_prompt() -> None:
    assert all(spec.is_held_out(clip_of(dict(p.labels))) for p in PROMPTS)


def test_labels_say_what_the_text_says() -> None:
    for prompt in PROMPTS:
        clip = clip_of(dict(prompt.labels))
        assert prompt.text == spec.caption(clip, name_relation=clip.relation is not None)
        assert prompt.labels["caption"] == prompt.text
        if len(clip.things) == 1 or clip.relation:
            assert prompt.labels == labels_of(clip)


def test_each_dimension_finds_its_labels_and_enough_prompts() -> None:
    for dimension in DIMENSIONS:
        asked = [p for p in PROMPTS if dimension in p.dimensions]
        assert len(asked) >= 24, dimension
        for prompt in asked:
            assert all(prompt.labels[key] for key in NEEDED.get(dimension, ()))
    pairs = [p for p in PROMPTS if len(p.labels["things"]) == 2]
    assert {p.id for p in pairs} == {p.id for p in PROMPTS if "multiple_objects" in p.dimensions}
    assert not any("color" in p.dimensions for p in pairs)
    still = [p for p in PROMPTS if p.labels["motion"] == "standing still"]
    assert still
    assert not any("dynamic_degree" in p.dimensions for p in still)


def test_every_value_of_the_world_is_asked_for() -> None:
    singles = [p for p in PROMPTS if len(p.labels["things"]) == 1]
    for motion in spec.MOTIONS:
        assert sum(p.labels["motion"] == motion for p in singles) == 6
    for shape in spec.SHAPES:
        assert sum(p.labels["things"][0]["shape"] == shape for p in singles) == 6
    assert {p.labels["scene"] for p in PROMPTS} == set(spec.SCENES)
    assert {t["color"] for p in PROMPTS for t in p.labels["things"]} == set(spec.COLORS)
    assert {p.labels["relation"] for p in PROMPTS} == {*spec.RELATIONS, None}


def test_metrics_are_registered_for_their_dimension() -> None:
    registry = Registry()
    assert tuple(TinyWorldProtocol.metrics) == DIMENSIONS
    for dimension, name in TinyWorldProtocol.metrics.items():
        metric = registry.get("metrics", name)()
        assert (metric.name, metric.dimension) == (name, dimension)
        assert (metric.info.low, metric.info.high, metric.info.higher_is_better) == (0.0, 1.0, True)
        assert "VBench" in metric.info.faithful_to
