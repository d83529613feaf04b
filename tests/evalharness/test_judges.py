"""tinyworld's judges on renderings that their training never saw."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evalharness.api import Prompt, Video
from evalharness.metrics.consistency import consistency
from evalharness.metrics.scene import Scene
from evalharness.tinyworld import judge_files, judge_nets, spec
from evalharness.tinyworld.calibration.cases import Case, contrary, held_out_cases
from evalharness.tinyworld.calibration.conditions import CONDITIONS, noisy
from evalharness.tinyworld.calibration.model_bar import right
from evalharness.tinyworld.calibration.scoring import through_codec
from evalharness.tinyworld.judges import Judges, Reading, load_judges, read_video
from evalharness.tinyworld.training.judge_data import wrong_captions

CASES = held_out_cases(50)


def watch(case: Case, condition: str = "renderings") -> Reading:
    frames, _ = CONDITIONS[condition].make(case)
    return load_judges().read(through_codec(frames).frames)


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    torch.set_num_threads(1)
    return [watch(case) for case in CASES]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The judges' files, to be spoiled."""
    return Path(shutil.copytree(judge_files.default_folder(), tmp_path / "judges"))


def test_the_cases_are_held_out() -> None:
    assert all(spec.is_held_out(case.clip) for case in CASES)
    assert sum(case.pair for case in CASES) == 20


@pytest.mark.parametrize("what", ["object", "color", "count", "scene", "motion", "relation"])
def test_classifiers_are_right(readings: list[Reading], what: str) -> None:
    verdicts = [right(case.clip, seen) for case, seen in zip(CASES, readings, strict=True)]
    found = [verdict[what] for verdict in verdicts if what in verdict]
    assert len(found) >= 20
    assert np.mean(found) >= 0.97


def test_a_judge_of_everything_would_be_caught(readings: list[Reading]) -> None:
    """``right`` says no when another clip is asked for, so that the test above can fail."""
    for case, seen in zip(CASES, readings, strict=True):
        other = contrary(case).prompt.labels
        things = tuple(spec.Thing(thing["color"], thing["shape"]) for thing in other["things"])
        verdict = right(spec.Clip(things, other["motion"], other["scene"], other["relation"]), seen)
        assert not any(verdict[what] for what in ("object", "scene", "motion"))


def test_probabilities_sum_to_one_and_features_have_length_one(readings: list[Reading]) -> None:
    for seen in readings[::10]:
        assert seen.scene.sum(axis=1) == pytest.approx(1.0, abs=1e-4)
        assert seen.color.sum(axis=2) == pytest.approx(1.0, abs=1e-4)
        assert seen.motion.sum() == pytest.approx(1.0, abs=1e-4)
        assert seen.presence.shape == (17, 8)
        for vectors in (seen.subject, seen.background, seen.agreement[None]):
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-4)


def test_looking_twice_gives_the_same_bytes() -> None:
    frames, _ = CONDITIONS["renderings"].make(CASES[0])
    one, two = (Judges(judge_files.default_folder()).read(frames) for _ in range(2))
    for name in Reading.__slots__:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_a_shuffled_mover_shows_no_motion() -> None:
    movers = [case for case in CASES if case.moving][:15]
    judged = [int(watch(case, "shuffled").motion.argmax()) for case in movers]
    assert np.mean(np.array(judged) == judge_nets.NO_MOTION) >= 0.9


def test_noise_is_felt_step_by_step() -> None:
    judges = load_judges()
    mean = [
        np.mean([judges.read(through_codec(noisy(case, sigma)).frames).severity.mean() for case in CASES[:6]])
        for sigma in (0.0, 0.02, 0.05, 0.1, 0.2)
    ]
    assert np.all(np.diff(mean) > 0.05)
    assert mean[0] < 0.1
    assert mean[-1] > 0.8


def test_consistency_features_tell_things_from_scenery(readings: list[Reading]) -> None:
    clean = [(consistency(seen.subject), consistency(seen.background)) for seen in readings[:12]]
    assert np.mean(clean, axis=0).min() > 0.9
    flicker = [watch(case, "things flicker") for case in CASES[:12]]
    assert np.mean([consistency(seen.subject) for seen in flicker]) < 0.7
    scenes = [watch(case, "scene flickers") for case in CASES[:12]]
    assert np.mean([consistency(seen.background) for seen in scenes]) < 0.7


def cosine(seen: Reading, prompt: Prompt) -> float:
    return float(seen.agreement @ load_judges().text(prompt.text))


def test_the_true_caption_agrees_better_than_a_contrary_one(readings: list[Reading]) -> None:
    gaps = [
        cosine(seen, case.sample.prompt) - cosine(seen, contrary(case).prompt)
        for case, seen in zip(CASES, readings, strict=True)
    ]
    assert np.mean(np.array(gaps) > 0.2) >= 0.97


@pytest.mark.parametrize("attribute", range(4), ids=["color", "shape", "motion", "scene"])
def test_the_true_caption_agrees_better_than_one_with_a_wrong_word(
    readings: list[Reading], attribute: int
) -> None:
    """Who is where and who has which colour is not asked: the judge is known not to read order."""
    rng = random.Random(0)
    right_ones = []
    for case, seen in zip(CASES, readings, strict=True):
        false = replace(case.sample.prompt, text=wrong_captions(case.clip, rng)[attribute])
        right_ones.append(cosine(seen, case.sample.prompt) > cosine(seen, false))
    assert np.mean(right_ones) >= 0.94


def test_unknown_words_are_read_and_no_word_is_refused() -> None:
    judges = load_judges()
    assert judges.text("a banana juggling over an ocean").shape == (judge_nets.EMBEDDING,)
    with pytest.raises(ValueError, match="at least one word"):
        judges.text(" ")


@pytest.mark.parametrize("shape", [(17, 64, 64, 3), (1, 48, 48, 3), (17, 48, 48)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 RGB frames of 48x48"):
        load_judges().read(np.zeros(shape, np.uint8))


def test_a_video_is_read_once() -> None:
    video = Video(CONDITIONS["renderings"].make(CASES[0])[0], 8.0)
    assert read_video(video) is read_video(video)


def test_metrics_declare_the_files_as_they_are() -> None:
    folder = judge_files.default_folder()
    declared = {Path(file.path).name: file.sha256 for file in Scene().info.weights}
    assert declared == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")
    }
    assert len(declared) == 4


def test_a_flipped_byte_is_refused(copy: Path) -> None:
    path = copy / "motion.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"motion\.safetensors has sha256 .* judges\.json says"):
        Judges(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "frame.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*frame\.safetensors.*rebuild with"):
        Judges(copy)


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    card = json.loads((copy / "judges.json").read_text())
    shutil.copy(copy / "quality.safetensors", copy / "motion.safetensors")
    card["files"]["motion.safetensors"] = card["files"]["quality.safetensors"]
    (copy / "judges.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"motion\.safetensors does not fit this version"):
        Judges(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 99}, "not of format 1"), ({"world": {"scenes": ["a kitchen"]}}, "another world")],
)
def test_a_foreign_card_is_refused(copy: Path, change: dict[str, object], words: str) -> None:
    card = json.loads((copy / "judges.json").read_text())
    (copy / "judges.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(ValueError, match=words):
        Judges(copy)


def test_a_card_that_is_no_json_or_missing_is_refused(copy: Path) -> None:
    (copy / "judges.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Judges(copy)
    (copy / "judges.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*judges\.json"):
        Judges(copy)
    assert judge_files.weight_files(copy) == ()


def test_saved_weights_are_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = judge_nets.QualityJudge(), judge_nets.QualityJudge()
    judge_files.save_weights({"quality": one}, tmp_path)
    judge_files.load_weights(two, tmp_path, "quality")
    frames = torch.rand(2, 3, 48, 48)
    assert torch.allclose(one(frames), two(frames), atol=1e-2)
    assert json.loads((tmp_path / "judges.json").read_text())["files"]["quality.safetensors"][
        "parameters"
    ] == sum(p.numel() for p in one.parameters())
