"""The rules of GRiT's four dimensions: the unmodified package, by the driver, on detections that are given.

Only the detector is a stand-in; what is counted comes from the package. Runs where its environment is
(``evalharness fetch vbench``; detectron2 is not needed), else it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import vbench_grit
from evalharness.api import Prompt
from evalharness.upstream.driver import Upstream, UpstreamVideo, VideoScore, score_dimensions
from evalharness.upstream.environment import find, has_detectron2
from evalharness.upstream.metrics import environment_folder
from evalharness.video import write_video

HERE = find(environment_folder())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HERE is None, reason="no environment of the package vbench"),
]
FRAMES = 16
# Python reads this before anything else. The frame's grey level tells its number, and that its detections.
STAND_IN = """
import importlib.util, json, pathlib, sys, types


class DenseCaptioning:
    def __init__(self, device):
        import torch
        assert isinstance(device, torch.device)

    def initialize_model(self, model_weight):
        self.seen = json.loads(pathlib.Path(__file__).with_name("seen.json").read_text())

    initialize_model_det = initialize_model

    def run_caption_tensor(self, frame):
        found = self.seen[round((float(frame.mean()) - 8) / 15)]
        if found == "broken":
            raise RuntimeError("the detector broke")
        kinds = [kind for _, _, kind in found]
        return [(told, box, kinds) for told, box, _ in found], None


if importlib.util.find_spec("vbench"):
    module = types.ModuleType("vbench.third_party.grit_model")
    module.DenseCaptioning = DenseCaptioning
    sys.modules[module.__name__] = module
"""
LEFT, RIGHT, FAR_RIGHT, BELOW = [0, 0, 10, 10], [5, 0, 15, 10], [30, 2, 40, 12], [0, 30, 10, 40]
Seen = list[tuple[str, list[int], str]]  # of one frame: description, box, kind


def scored(
    tmp_path: Path, dimension: str, prompt: str, labels: dict[str, str], seen: Sequence[Seen | str]
) -> VideoScore:
    """What the driver says of a video of 16 frames in which the detector sees that."""
    assert HERE is not None and len(seen) == FRAMES
    cache = tmp_path / "cache"
    (cache / "grit_model").mkdir(parents=True)
    (cache / "grit_model" / "grit_b_densecap_objectdet.pth").touch()  # else the package fetches it
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    (tmp_path / "seen.json").write_text(json.dumps(list(seen)))
    grey = np.repeat(np.arange(8, 8 + 15 * FRAMES, 15, dtype=np.uint8), 64 * 64 * 3)
    write_video(tmp_path / "video.mp4", grey.reshape(FRAMES, 64, 64, 3), 8)
    asked = Prompt(id="0000", text=prompt, dimensions=(dimension,), labels=labels)
    where = Upstream(python=HERE.python, path=(str(tmp_path),), cache=cache, local=True)
    [found] = score_dimensions(where, [dimension], [UpstreamVideo("0", tmp_path / "video.mp4", asked)])
    return found.videos["0"]


def test_a_frame_counts_for_object_class_if_the_label_is_a_kind_that_is_seen(tmp_path: Path) -> None:
    """A description that names it, a kind that only holds it, and a frame without anything do not count."""
    kinds = [["dog"], ["cat", "dog"], ["cat"], ["hot dog"], []]
    seen: list[Any] = [[(f"a dog {n}", LEFT, kind) for n, kind in enumerate(each)] for each in kinds]
    found = scored(tmp_path, "object_class", "a dog", {"object": "dog"}, [*seen, *[seen[0]] * 11])
    assert (found.value, found.error) == (13 / 16, None)
    assert found.extras == {"success_frame_count": 13, "frame_count": 16}


def test_a_detector_that_fails_is_an_error_and_no_empty_picture(tmp_path: Path) -> None:
    """``object_class`` itself takes it for one."""
    seen: list[Any] = [[("a dog", LEFT, "dog")]] * 15
    found = scored(tmp_path, "object_class", "a dog", {"object": "dog"}, [*seen, "broken"])
    assert (found.value, found.error) == (None, "RuntimeError: the detector broke")


def test_both_objects_have_to_be_in_one_frame(tmp_path: Path) -> None:
    dog, cat = ("one", LEFT, "dog"), ("other", RIGHT, "cat")
    seen: list[Any] = [[dog, cat], [cat, dog, dog], [dog], [cat], []]
    found = scored(
        tmp_path, "multiple_objects", "a dog and a cat", {"object": "dog and cat"}, [*seen, *[[dog]] * 11]
    )
    assert found.value == 2 / 16


def test_color_is_of_the_frames_that_show_the_object_in_any_colour(tmp_path: Path) -> None:
    """The kind of all is that of the frame's first; a colour is looked for within words: bored is red."""
    seen: list[Any] = [
        [("a red car", LEFT, "car")],  # counts
        [("a blue car", LEFT, "car")],  # another colour: among those
        [("a shiny car", LEFT, "car")],  # no colour: not among them
        [("a red dog", LEFT, "dog")],  # another object
        [("a blue car", LEFT, "car"), ("a red dog", RIGHT, "dog")],  # taken for a red car
        [("a red car", LEFT, "dog"), ("a car", RIGHT, "car")],  # taken for a red dog
        [("a bored car", LEFT, "car")],
        [],
        *[[("a shiny car", LEFT, "car")]] * 8,
    ]
    found = scored(tmp_path, "color", "a red car", {"color": "red"}, seen)
    assert found.value == 3 / 4  # frames 0, 4 and 6 of those and 1


def test_color_leaves_a_video_without_the_object_out(tmp_path: Path) -> None:
    found = scored(tmp_path, "color", "a red car", {"color": "red"}, [[("a red dog", LEFT, "dog")]] * 16)
    assert (found.value, found.error, found.left_out) == (None, None, True)


def test_places_count_along_the_longer_axis_less_where_boxes_overlap(tmp_path: Path) -> None:
    """By description, whichever side is whose: the sign is not looked at. LEFT and RIGHT share a third."""
    labels = {"object_a": "dog", "object_b": "cat", "relationship": "on the left of"}
    seen: list[Any] = [
        [("dog", LEFT, "x"), ("cat", FAR_RIGHT, "x")],  # 1
        [("cat", LEFT, "x"), ("dog", FAR_RIGHT, "x")],  # 1: the sign
        [("dog", LEFT, "x"), ("cat", RIGHT, "x")],  # 0.1 / (1 / 3)
        [("dog", LEFT, "x"), ("cat", BELOW, "x")],  # 0
        [("dog", LEFT, "x"), ("dog", FAR_RIGHT, "x")],  # 1: two of one name are a pair
        [("dog", LEFT, "x"), ("bird", FAR_RIGHT, "cat")],  # 0
        *[[]] * 10,
    ]
    found = scored(tmp_path, "spatial_relationship", "a dog on the left of a cat", labels, seen)
    assert found.value == pytest.approx((3 + 0.3) / 16, abs=1e-12)
    assert found.extras["frame_results"][:6] == pytest.approx([1, 1, 0.3, 0, 1, 0])


@pytest.mark.skipif(HERE is None or not has_detectron2(HERE.python.parent.parent), reason="no detectron2")
def test_grit_itself_with_random_weights_gives_what_it_was_made_to_see(tmp_path: Path) -> None:
    """Minutes on a CPU; ``results/benchmarks/vbench_grit.json`` has all four."""
    assert HERE is not None
    record = tmp_path / "grit.json"
    env = str(HERE.python.parent.parent)
    options = ["--env", env, "--dimensions", "spatial_relationship", "--output", str(record)]
    assert vbench_grit.main(options) == 0
    prompts = json.loads(record.read_text())["dimensions"]["spatial_relationship"]["prompts"]
    assert [told["value"] for told in prompts.values()] == [1.0]
