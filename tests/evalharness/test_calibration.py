"""The calibration's own parts; its tables stand in the docs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evalharness.models.tinyworld import TinyWorld
from evalharness.stats import Key, Resampler
from evalharness.tinyworld import judge_files, spec
from evalharness.tinyworld.calibration import document, rules
from evalharness.tinyworld.calibration.__main__ import parse
from evalharness.tinyworld.calibration.cases import contrary, held_out_cases, one_wrong, reversed_relation
from evalharness.tinyworld.calibration.conditions import CONDITIONS
from evalharness.tinyworld.calibration.rules import Rule

CASES = held_out_cases(40)


def frames(name: str, index: int = 0) -> np.ndarray:
    return CONDITIONS[name].make(CASES[index])[0]


def test_cases_are_held_out_different_and_a_prefix_of_more() -> None:
    assert all(spec.is_held_out(case.clip) for case in CASES)
    assert len({case.sample.prompt.text for case in CASES}) == 40
    assert held_out_cases(10) == CASES[:10]


def test_nothing_of_a_contrary_prompt_is_true() -> None:
    for case in CASES:
        own, other = case.sample.prompt.labels, contrary(case).prompt.labels
        assert len(other["things"]) == len(own["things"])
        for key in ("color", "shape"):
            assert not {t[key] for t in own["things"]} & {t[key] for t in other["things"]}
        assert other["motion"] != own["motion"]
        assert other["scene"] != own["scene"]
        assert other["relation"] is None or other["relation"] != own["relation"]
        assert other["caption"] == contrary(case).prompt.text


def test_one_wrong_changes_the_caption_alone() -> None:
    for case in CASES:
        own, other = case.sample.prompt.labels, one_wrong(case).prompt.labels
        assert other["caption"] != own["caption"]
        assert {**other, "caption": ""} == {**own, "caption": ""}


def test_reversed_relation_changes_the_relation_alone() -> None:
    turned = {"on the left of": "on the right of", "above": "below"}
    turned |= {b: a for a, b in turned.items()}
    for case in CASES:
        own, other = case.sample.prompt.labels, reversed_relation(case).prompt.labels
        assert other["things"] == own["things"]
        assert other["relation"] == (turned[own["relation"]] if case.pair else None)


def test_conditions_do_what_they_say() -> None:
    clean = frames("renderings")
    assert clean.shape == (17, 48, 48, 3)
    assert np.array_equal(frames("frozen"), np.repeat(clean[8:9], 17, axis=0))
    shuffled = frames("shuffled")
    assert not np.array_equal(shuffled, clean)
    assert sorted(f.tobytes() for f in shuffled) == sorted(f.tobytes() for f in clean)
    assert np.array_equal(frames("backwards")[::-1], clean)
    middle = (clean > 60) & (clean < 195)
    spread = (frames("noise").astype(float) - clean)[middle].std()
    assert spread == pytest.approx(0.2 * 255, rel=0.12)
    for name in CONDITIONS:
        assert np.array_equal(frames(name), frames(name)), name


def test_flickers_change_one_thing_only() -> None:
    """The clip differs where its things are, or everywhere else."""
    case = 0
    clean, things, scene = (
        frames(n, case).astype(int) for n in ("renderings", "things flicker", "scene flickers")
    )
    changed = [(np.abs(v - clean).max(axis=-1) > 30).mean(axis=(1, 2)) for v in (things, scene)]
    assert 0 < changed[0].max() < 0.2
    assert changed[1].max() > 0.5


def scores(values: dict[str, list[float]]) -> dict[str, dict[str, dict[Key, float]]]:
    return {
        condition: {"action": {Key(case.sample.prompt.id, 0): v for case, v in zip(CASES, row, strict=False)}}
        for condition, row in values.items()
    }


@pytest.mark.parametrize(
    ("verb", "margin", "after", "passed"),
    [
        ("falls", 0.3, 0.5, True),
        ("falls", 0.45, 0.5, False),
        ("falls", 0.0, 0.95, False),
        ("holds", 0.05, 0.88, True),
        ("holds", 0.05, 0.5, False),
        ("holds", 0.05, 1.0, False),
        ("floor", 0.4, 0.5, True),
        ("floor", 0.6, 0.5, False),
    ],
)
def test_rules_by_hand(verb: rules.Verb, margin: float, after: float, passed: bool) -> None:
    """Renderings score 0.9 throughout, the condition ``after``."""
    data = scores({"renderings": [0.9] * 40, "shuffled": [after] * 40})
    rule = Rule("action", "shuffled", verb, margin, "")
    (verdict,) = rules.judge(data, CASES, Resampler(), [rule])
    assert verdict.passed is passed
    assert verdict.measured.value == pytest.approx(after if verb == "floor" else after - 0.9)


def test_a_rule_may_look_at_moving_clips_only() -> None:
    data = scores({"renderings": [1.0] * 40, "shuffled": [0.0 if case.moving else 1.0 for case in CASES]})
    moving, every = (
        rules.judge(data, CASES, Resampler(), [Rule("action", "shuffled", "falls", 0.95, "", clips)])[0]
        for clips in ("moving", "all")
    )
    assert moving.passed
    assert moving.measured.n == sum(case.clip.motion != "standing still" for case in CASES)
    assert not every.passed


def test_a_fall_within_chance_does_not_count() -> None:
    data = scores({"renderings": [0.5, 0.5] * 20, "shuffled": [0.0, 0.9] * 20})
    (verdict,) = rules.judge(data, CASES, Resampler(), [Rule("action", "shuffled", "falls", 0.0, "")])
    assert verdict.measured.value == pytest.approx(-0.05)
    assert not verdict.passed


def test_every_dimension_has_a_rule_that_it_must_fall_by() -> None:
    falls = {rule.dimension for rule in rules.RULES if rule.verb == "falls"}
    assert len(falls) == 12
    assert {rule.condition for rule in rules.RULES} <= set(CONDITIONS)


def test_the_page_shows_the_figures() -> None:
    data = scores({"renderings": [1.0] * 40, "shuffled": [0.25] * 40})
    table = document.intervals(data, Resampler())
    verdicts = rules.judge(data, CASES, Resampler(), [Rule("action", "shuffled", "falls", 0.9, "why")])
    page = document.as_markdown(table, {"0": table["renderings"]}, verdicts, None)
    assert "| `action` | 40 | 100.0 (100.0 to 100.0) | 25.0 (25.0 to 25.0) |" in page
    assert "| falls by more than 90.0 | -75.0 (-75.0 to -75.0) | why | **NO** |" in page
    plain = document.as_json(table, {}, verdicts, None)
    assert plain["conditions"]["shuffled"]["action"] == {"n": 40, "mean": 0.25, "lo": 0.25, "hi": 0.25}
    assert plain["rules"][0]["passed"] is False


def test_too_few_videos_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--videos", "3"])
    assert "expected 20 or more" in capsys.readouterr().err


def test_the_published_tables_are_of_the_shipped_model_and_judges() -> None:
    """Whoever changes the assets must measure again: figures of other weights prove nothing."""
    root = Path(__file__).parents[2]
    model = TinyWorld().fingerprint()
    published = json.loads((root / "docs" / "calibration" / "calibration.json").read_text())
    assert published["model_fingerprint"] == model
    assert published["judges"] == {Path(file.path).name: file.sha256 for file in judge_files.weight_files()}
    for run in ("calibrated", "trained", "author", "cpu"):
        assert model in (root / "results" / "tinyworld" / run / "manifest.json").read_text(), run
    for card in (root / "evalharness" / "tinyworld" / "assets" / "checkpoints").glob("*/evalharness.json"):
        assert json.loads(card.read_text())["model_fingerprint"] == model, card
