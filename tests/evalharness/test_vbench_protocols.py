"""VBench's suite and its parts: counts, content, ids, subsets."""

from __future__ import annotations

import importlib.util
import json
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.api import Prompt
from evalharness.errors import UserError
from evalharness.names import check_name
from evalharness.protocols.vbench import MLPerfProtocol, QVGen8Protocol, VBenchProtocol
from evalharness.protocols.vbench_data import DATA, PROMPT_FILE, condense, main, read_prompt_file
from evalharness.protocols.vbench_suite import DIMENSIONS
from evalharness.sampling import Videos, samples_by_dimension, samples_of
from evalharness.stages.aggregate import counted
from evalharness.stages.made import LEFT_OUT, VALUE
from evalharness.subset import stratified_prompts

PROMPTS = VBenchProtocol().prompts()
# Written down from the published suite, not from our file.
PER_DIMENSION = {
    "subject_consistency": 72,
    "background_consistency": 86,
    "temporal_flickering": 75,
    "motion_smoothness": 72,
    "dynamic_degree": 72,
    "aesthetic_quality": 93,
    "imaging_quality": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "scene": 86,
    "appearance_style": 90,
    "temporal_style": 100,
    "overall_consistency": 93,
}
LABELS = {
    "object_class": {"object"},
    "multiple_objects": {"object"},
    "color": {"color"},
    "scene": {"scene"},
    "appearance_style": {"appearance_style"},
    "spatial_relationship": {"object_a", "object_b", "relationship"},
    "human_action": {"action"},
}


def videos(protocol: object) -> int:
    counts = samples_by_dimension(protocol)  # type: ignore[arg-type]
    return len(samples_of(protocol.prompts(), 0, protocol.samples_per_prompt, counts))  # type: ignore[attr-defined]


def test_the_suite_has_the_published_counts() -> None:
    assert len(PROMPTS) == 946
    assert len({prompt.text for prompt in PROMPTS}) == 944
    assert len({prompt.text.lower() for prompt in PROMPTS}) == 943
    assert max(len(prompt.text) for prompt in PROMPTS) == 210
    assert sum("-" in prompt.text for prompt in PROMPTS) == 13
    assert Counter(name for prompt in PROMPTS for name in prompt.dimensions) == PER_DIMENSION
    assert tuple(VBenchProtocol.metrics) == DIMENSIONS == tuple(PER_DIMENSION)
    assert sum(PER_DIMENSION.values()) == 1362
    # VBench counts 6,220 files, as the videos of its two repeated entries overwrite each other.
    assert videos(VBenchProtocol()) == 871 * 5 + 75 * 25 == 6220 + 2 * 5


def test_duplicates_and_case_collisions_have_their_own_ids_and_videos() -> None:
    assert len({prompt.id for prompt in PROMPTS}) == 946
    for prompt in PROMPTS:
        check_name(prompt.id, "id")
    bund = [prompt for prompt in PROMPTS if prompt.text == "The bund Shanghai, oil painting"]
    assert sorted(prompt.dimensions for prompt in bund) == [
        ("aesthetic_quality", "imaging_quality", "overall_consistency"),
        ("appearance_style",),
    ]
    fantasy = [prompt for prompt in PROMPTS if prompt.text.lower() == "a fantasy landscape"]
    assert len({prompt.id for prompt in fantasy}) == len({prompt.text for prompt in fantasy}) == 2


def test_labels_are_flat_and_complete() -> None:
    for prompt in PROMPTS:
        wanted = set().union(*(LABELS.get(name, set()) for name in prompt.dimensions))
        assert set(prompt.labels) == wanted
        assert all(isinstance(value, str) and value for value in prompt.labels.values())
    action = next(prompt for prompt in PROMPTS if prompt.text == "A person is riding a bike")
    assert action.labels == {"action": "riding a bike"}
    scene = next(prompt for prompt in PROMPTS if prompt.text == "alley")
    assert scene.labels == {"scene": "alley"}


def test_the_paper_s_part() -> None:
    protocol = QVGen8Protocol()
    prompts = protocol.prompts()
    assert len(prompts) == 251
    assert videos(protocol) == 1255
    assert {name for prompt in prompts for name in prompt.dimensions} == set(protocol.metrics)
    assert len(protocol.metrics) == 8
    assert not hasattr(protocol, "totals")
    whole = {prompt.id: prompt for prompt in PROMPTS}
    assert all(whole[prompt.id] == prompt for prompt in prompts)


def test_mlperf_s_part() -> None:
    protocol = MLPerfProtocol()
    prompts = protocol.prompts()
    counts = Counter(name for prompt in prompts for name in prompt.dimensions)
    assert len(prompts) == videos(protocol) == 248
    assert counts["subject_consistency"] == counts["dynamic_degree"] == counts["motion_smoothness"] == 72
    assert counts["appearance_style"] == 90
    assert counts["scene"] == counts["background_consistency"] == 86
    assert set(counts) == set(protocol.metrics)
    assert prompts[0].text == "a person swimming in ocean"
    assert prompts[-1].text == "windmill"


@pytest.mark.skipif(importlib.util.find_spec("vbench") is None, reason="the vbench package is not installed")
def test_the_data_is_what_the_package_says() -> None:
    spec = importlib.util.find_spec("vbench")
    assert spec is not None and spec.origin is not None
    original = Path(spec.origin).with_name("VBench_full_info.json")
    assert condense(read_prompt_file(original)) == json.loads(DATA.read_text())
    for prompt, entry in zip(PROMPTS, json.loads(original.read_text()), strict=True):
        assert prompt.text == entry["prompt_en"]
        assert set(prompt.dimensions) == set(entry["dimension"])


def test_the_entry_points_are_declared() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    points = declared["project"]["entry-points"]["evalharness.protocols"]
    for protocol in (VBenchProtocol, QVGen8Protocol, MLPerfProtocol):
        assert points[protocol.name] == f"{protocol.__module__}:{protocol.__name__}"


def test_condense_reads_a_wheel_and_both_depths_of_labels(tmp_path: Path) -> None:
    entries = [
        {"prompt_en": "cat", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
        {"prompt_en": "bar", "dimension": ["scene"], "auxiliary_info": {"scene": {"scene": {"scene": "b"}}}},
    ]
    wheel = tmp_path / "vbench.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(PROMPT_FILE, json.dumps(entries))
    value = condense(read_prompt_file(wheel))
    assert value["entries"] == [["cat", "color", {"color": "red"}], ["bar", "scene", {"scene": "b"}]]


@pytest.mark.parametrize("text", ["not json", '[{"prompt_en": "x"}]', '[{"prompt_en": 1, "dimension": []}]'])
def test_condense_refuses_other_files(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not VBench's prompt file"):
        condense(text.encode())


def test_the_script_complains_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = DATA.read_bytes()
    assert main([]) == 2
    assert main([str(tmp_path / "absent.whl")]) == 2
    assert "absent.whl" in capsys.readouterr().err
    assert DATA.read_bytes() == before


@given(st.integers(1, 946))
def test_a_stratified_subset_keeps_the_proportions_and_is_nested(limit: int) -> None:
    chosen = stratified_prompts(PROMPTS, DIMENSIONS, limit)
    assert len(chosen) == limit
    counts = Counter(prompt.dimensions for prompt in chosen)
    for dimensions, size in Counter(prompt.dimensions for prompt in PROMPTS).items():
        assert abs(counts[dimensions] - size * limit / 946) < 1.01
    assert {p.id for p in chosen} <= {p.id for p in stratified_prompts(PROMPTS, DIMENSIONS, limit + 1)}
    order = [prompt.id for prompt in chosen]
    assert order == sorted(order)


def test_a_stratified_subset_of_one_dimension_takes_its_prompts_only() -> None:
    chosen = stratified_prompts(PROMPTS, ("scene",), 10)
    assert len(chosen) == 10
    assert all("scene" in prompt.dimensions for prompt in chosen)
    assert len(stratified_prompts(PROMPTS, ("scene",), None)) == 86


def test_the_first_videos_that_are_not_left_out_count() -> None:
    static = Prompt(id="a", text="a", dimensions=("temporal_flickering",))
    other = Prompt(id="b", text="b", dimensions=("scene", "color"))
    videos = Videos([static, other], 5, {"temporal_flickering": 25})
    assert len(videos) == len(samples_of([static, other], 0, 5, {"temporal_flickering": 25})) == 30

    def scored(left_out: dict[str, set[str]]) -> tuple[dict[str, int], dict[str, list[tuple[str, int]]]]:
        dimensions = ("temporal_flickering", "scene", "color")
        flags = {name: bytearray([VALUE] * 30) for name in dimensions}
        for name, samples in left_out.items():
            for sample in samples:
                flags[name][videos.find(sample)[1]] = LEFT_OUT
        found = counted(videos, 5, dimensions, flags, dict.fromkeys(dimensions, [0.5] * 30))
        rows = {name: [(row.prompt_id, row.sample) for row in table] for name, table in found.scores.items()}
        return found.expected, rows

    moving = {f"a-{index}" for index in range(25) if index not in (3, 4, 7, 9, 20, 21)}
    expected, rows = scored({"temporal_flickering": moving, "color": {"b-1"}})
    assert rows["temporal_flickering"] == [("a", index) for index in (3, 4, 7, 9, 20)]
    assert rows["scene"] == [("b", index) for index in (0, 1, 2, 3, 4)]
    assert rows["color"] == [("b", index) for index in (0, 2, 3, 4)]
    assert expected == {"temporal_flickering": 5, "scene": 5, "color": 4}
    expected, rows = scored({"temporal_flickering": moving | {"a-3", "a-4"}})
    assert rows["temporal_flickering"] == [("a", index) for index in (7, 9, 20, 21)]
    assert expected["temporal_flickering"] == 4
