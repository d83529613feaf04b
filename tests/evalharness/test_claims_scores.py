"""Scores of several trainings: what is compared, what is said of it, what is refused."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalharness.api import Bits
from evalharness.cli.main import main as evalharness
from evalharness.errors import UserError
from evalharness.models import tinyworld
from evalharness.results import CellRecord, ScoreRow, build_results, write_results
from evalharness.tinyworld.claims import arms, scores
from evalharness.tinyworld.claims.score_findings import MEAN, score_findings
from evalharness.tinyworld.claims.scored import read_scored

T1, T2 = 12.706204736432095, 4.302652729911275  # 97.5 % points, from a table
PAIRS = [("qvgen", "kd-qat")]

# arm -> bits -> what it adds to the base of a video, for training seeds s1, s2, s3
GAINS: Mapping[str, Mapping[int, tuple[float, float, float]]] = {
    "kd-qat": {4: (0.0, 0.0, 0.0), 3: (0.0, 0.0, 0.0)},
    "qvgen": {4: (0.01, 0.02, 0.03), 3: (0.10, 0.11, 0.12)},
    "lsq": {4: (0.01, 0.02, 0.03), 3: (-0.10, 0.10, 0.0)},
}


def score(prompt: int, seed: int, gain: float) -> float:
    """Depends on prompt and training, so that only pairs make the gain visible."""
    return 0.3 + 0.05 * prompt + 0.02 * seed + gain


def run_folder(
    folder: Path,
    seed: int,
    gains: Mapping[str, Mapping[int, Sequence[float]]] = GAINS,
    *,
    lacks: Sequence[tuple[str, str, int]] = (),
    options: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """What ``evalharness run`` leaves: four prompts count for color, the last two for scene as well."""
    cells = []
    for arm, by_bits in gains.items():
        for bits, gain in by_bits.items():
            rows = {
                "color": [ScoreRow(f"{p}", 0, score(p, seed, gain[seed - 1])) for p in range(4)],
                "scene": [ScoreRow(f"{p}", 0, score(p, seed, 3 * gain[seed - 1])) for p in (2, 3)],
            }
            for lacking, dimension, prompt in lacks:
                if lacking == f"{arm}-w{bits}a{bits}":
                    rows[dimension] = [row for row in rows[dimension] if row.prompt_id != str(prompt)]
            cells.append(
                CellRecord(
                    cell_id=f"{arm}-w{bits}a{bits}-s0", model="toy", protocol="toy", method=arm,
                    w_bits=bits, a_bits=bits, seed=0, source="loaded", execution="fake",
                    n_expected={"color": 4, "scene": 2}, scores=rows,
                    n_videos_expected=4, n_videos_ok=4, n_failed=0,
                    method_config={"rank": 4, **(options or {})},
                )
            )  # fmt: skip
    manifest = {
        "config": {"load": f"s{seed}", "device": "cpu", "model_fingerprint": "f", "workers": seed, **config},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"torch": "2.13"},
    }
    target = folder / f"s{seed}"
    dimensions = ["color", "scene"]
    results = build_results(
        cells, protocol="toy", dimensions=dimensions, percent=True, label="toy scores", manifest=manifest
    )
    write_results(results, target / "results.json")
    return target


def three(folder: Path, **changes: Any) -> dict[str, Path]:
    return {f"s{seed}": run_folder(folder, seed, **changes) for seed in (1, 2, 3)}


def find(folders: Mapping[str, Path], **changes: Any) -> dict[str, Any]:
    asked = {"hypotheses": PAIRS, "trends": [], "most_at": Bits(3, 3), **changes}
    return score_findings(read_scored(folders), **asked)


def only(rows: Sequence[dict[str, Any]], **want: Any) -> dict[str, Any]:
    [row] = [row for row in rows if all(row[key] == value for key, value in want.items())]
    return row


# -- what is compared


def test_differences_are_paired_and_averaged_over_dimensions(tmp_path: Path) -> None:
    found = find(three(tmp_path))
    # color +g, scene +3 g: mean 2 g; g = 0.01, 0.02, 0.03: mean 0.04, deviation 0.02
    row = only(found["hypotheses"], setting="W4A4", dimension=MEAN)
    half = T2 * 0.02 / math.sqrt(3)
    assert row["value"] == pytest.approx(0.04)
    assert row["by_seed"] == pytest.approx({"s1": 0.02, "s2": 0.04, "s3": 0.06})
    assert row["seeds"] == pytest.approx({"value": 0.04, "lo": 0.04 - half, "hi": 0.04 + half, "n": 3})
    # all prompts agree about the gain, however their own levels differ
    assert row["prompts"] == pytest.approx({"value": 0.04, "lo": 0.04, "hi": 0.04, "n": 4})
    assert row["both"] == pytest.approx(row["seeds"])
    scene = only(found["hypotheses"], setting="W4A4", dimension="scene")
    assert (scene["value"], scene["videos"], scene["prompts"]["n"]) == (pytest.approx(0.06), 2, 2)
    assert scene["verdict"] is None, "the hypothesis is about the mean"


def test_verdicts_on_the_mean(tmp_path: Path) -> None:
    pairs = [("qvgen", "kd-qat"), ("kd-qat", "qvgen"), ("qvgen", "lsq")]
    found = find(three(tmp_path), hypotheses=pairs)
    verdicts = {
        (row["setting"], row["higher"], row["than"]): row["verdict"]
        for row in found["hypotheses"]
        if row["dimension"] == MEAN
    }
    assert verdicts["W3A3", "qvgen", "kd-qat"] == "reproduced"
    assert verdicts["W3A3", "kd-qat", "qvgen"] == "not reproduced"
    assert verdicts["W3A3", "qvgen", "lsq"] == "undecided", "the three seeds are all over the place"
    assert verdicts["W4A4", "qvgen", "lsq"] == "undecided", "they are the same"


def test_a_trend_is_a_difference_of_paired_differences(tmp_path: Path) -> None:
    found = find(three(tmp_path), trends=[("qvgen", "kd-qat"), ("qvgen", "lsq")])
    row = only(found["trends"], than="kd-qat", dimension=MEAN)
    # 2 x (0.10 - 0.01, 0.11 - 0.02, 0.12 - 0.03): what varies with the seed is the same at both widths
    assert (row["setting"], row["over"], row["verdict"]) == ("W3A3", "W4A4", "reproduced")
    assert list(row["by_seed"].values()) == pytest.approx([0.18] * 3)
    assert row["both"]["lo"] == pytest.approx(0.18)
    # against lsq: at W3A3 2 x (0.20, 0.01, 0.12), at W4A4 nothing
    row = only(found["trends"], than="lsq", dimension=MEAN)
    assert list(row["by_seed"].values()) == pytest.approx([0.40, 0.02, 0.24])
    assert row["verdict"] == "undecided"


def test_mean_scores_of_each_arm(tmp_path: Path) -> None:
    row = only(find(three(tmp_path))["levels"], setting="W4A4", arm="kd-qat")
    # color: prompts 0 to 3, 0.375 + 0.02 s; scene: prompts 2 and 3, 0.425 + 0.02 s
    assert row["by_seed"] == pytest.approx({"s1": 0.42, "s2": 0.44, "s3": 0.46})
    assert row["mean"]["value"] == pytest.approx(0.44) and row["mean"]["n"] == 3


def test_one_training_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    row = only(find({"s1": run_folder(tmp_path, 1)})["hypotheses"], setting="W3A3", dimension=MEAN)
    assert row["value"] == pytest.approx(0.2) and row["both"]["lo"] is None
    assert row["verdict"] == "undecided" and row["prompts"]["lo"] is not None


# -- what is missing


def test_what_is_missing_is_named_and_never_zero(tmp_path: Path) -> None:
    without = {arm: by_bits for arm, by_bits in GAINS.items() if arm != "qvgen"}
    folders = {
        "s1": run_folder(tmp_path, 1, lacks=[("qvgen-w3a3", "scene", 3)]),
        "s2": run_folder(tmp_path, 2, without),
        "s3": run_folder(tmp_path, 3),
    }
    found = find(folders, hypotheses=[("qvgen", "kd-qat"), ("qvgen", "none")], trends=PAIRS)
    assert found["missing"] == [
        "qvgen-w4a4: not scored in s2",
        "none-w4a4: not scored in s1, s2, s3",
        "qvgen-w3a3: not scored in s2",
        "qvgen-w3a3 in s1, scores there: scene 1/2",
        "none-w3a3: not scored in s1, s2, s3",
    ]
    row = only(found["hypotheses"], setting="W3A3", than="kd-qat", dimension=MEAN)
    assert row["by_seed"] == pytest.approx({"s3": 0.24}), "s1 has not all scores, so it has no mean"
    scene = only(found["hypotheses"], setting="W3A3", than="kd-qat", dimension="scene")
    assert scene["by_seed"] == pytest.approx({"s1": 0.30, "s3": 0.36}) and scene["videos"] == 1
    row = only(found["hypotheses"], setting="W3A3", than="none", dimension=MEAN)
    assert row["value"] is None and row["both"]["n"] == 0 and row["verdict"] == "undecided"
    assert find(folders, trends=PAIRS, most_at=Bits(2, 2))["missing"][-1] == (
        "w2a2: no arm at this width, so no trend"
    )


# -- what is refused


def test_runs_that_are_not_one_experiment_are_refused(tmp_path: Path) -> None:
    one = run_folder(tmp_path, 1)
    with pytest.raises(UserError, match="runs s1 and s2 differ in device: 'cpu' and 'cuda'; score all"):
        read_scored({"s1": one, "s2": run_folder(tmp_path, 2, device="cuda")})
    with pytest.raises(UserError, match="kd-qat-w4a4: other options in s1 than in s2"):
        read_scored({"s1": one, "s2": run_folder(tmp_path, 2, options={"rank": 5})})
    with pytest.raises(UserError, match="s1 and s2 have the very same scores, so the same weights"):
        read_scored({"s1": one, "s2": one})
    with pytest.raises(UserError, match=r"nowhere/results\.json: no such file"):
        read_scored({"s1": tmp_path / "nowhere"})
    assert read_scored({"s1": one, "s2": run_folder(tmp_path, 2)}).seeds == ["s1", "s2"], "workers may differ"


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--runs", "s1", "--runs s1: expected SEED=FOLDER, such as s1=runs/claims-s1"),
    ("--runs", "s1=a,s1=b", "--runs names s1 twice"),
    ("--runs", "", "--runs is empty"),
    ("--hypotheses", "qvgen", "--hypotheses qvgen: expected two arms as higher:than"),
    ("--trends", "lsq:lsq", "--trends lsq:lsq: expected two arms"),
    ("--most-at", "17", "bits '17'"),
])  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, flag: str, value: str, message: str) -> None:
    given = {"--runs": f"s1={run_folder(tmp_path, 1)}", "--out": str(tmp_path / "out"), flag: value}
    with pytest.raises(UserError, match=message):
        scores.main([word for pair in given.items() for word in pair])
    assert not (tmp_path / "out").exists()


# -- files


def test_the_files_are_the_same_for_the_same_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = three(tmp_path / "runs")
    runs = [f"{seed}={folder}" for seed, folder in folders.items()]
    caplog.set_level(logging.INFO)
    for out, order in (("a", runs), ("b", runs[::-1])):
        assert scores.main(["--runs", ",".join(order), "--out", str(tmp_path / out)]) == 0
    assert "4 gaps, named in claims-scores.md; the first: qvgen-until75-w4a4: not scored" in caplog.text
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    plots = ["claims-scores-dimensions.png", "claims-scores.png"]
    assert names == sorted(["claims-scores.csv", "claims-scores.json", "claims-scores.md", *plots])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    page = (tmp_path / "a" / "claims-scores.md").read_text()
    # 2 x (0.10, 0.11, 0.12): 22 points, deviation 2, half-width 4.3027 x 2 / sqrt(3) = 4.97
    assert (
        "| W3A3 | qvgen | kd-qat | +22.00 [+17.03, +26.97] | [+17.03, +26.97] | [+22.00, +22.00] | "
        "+20.00 +22.00 +24.00 | 3 | reproduced |" in page
    )
    assert "| scene | +6.00 [-1.45, +13.45] | +33.00 [+25.55, +40.45] |" in page
    assert "| W4A4 | kd-qat | 44.00 [39.03, 48.97] | 42.00 44.00 46.00 | 3 |" in page
    assert "- 3 training seeds: s1, s2, s3\n- code 0123456789ab\n- torch 2.13\n- videos made on cpu" in page
    assert "- qvgen-until75-w3a3: not scored in s1, s2, s3" in page
    assert "| W3A3 | qvgen-until75 | qvgen | - | - | - | - - - | 0 | undecided |" in page
    assert str(tmp_path) not in page + (tmp_path / "a" / "claims-scores.json").read_text()

    rows = list(csv.DictReader(io.StringIO((tmp_path / "a" / "claims-scores.csv").read_text())))
    row = only(rows, setting="W3A3", over="", than="kd-qat", dimension="scene")
    assert (row["difference"], row["seeds"], row["prompts"], row["videos"]) == ("0.330000", "3", "2", "2")
    assert only(rows, setting="W3A3", over="", than="qvgen", dimension="color")["difference"] == ""


def test_a_partial_run_has_dimensions_and_no_means(tmp_path: Path) -> None:
    lacks = [(f"{arm}-w3a3", "scene", 3) for arm in GAINS]
    folders = three(tmp_path, gains={arm: {3: by_bits[3]} for arm, by_bits in GAINS.items()}, lacks=lacks)
    runs = ",".join(f"{seed}={folder}" for seed, folder in folders.items())
    scores.main(["--runs", runs, "--out", str(tmp_path / "out"), "--hypotheses", "qvgen:kd-qat"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "claims-scores.png" not in names and "claims-scores-dimensions.png" in names
    page = (tmp_path / "out" / "claims-scores.md").read_text()
    assert "| W3A3 | qvgen | kd-qat | - | - | - | - - - | 0 | undecided |" in page
    assert "| color | +11.00 [+8.52, +13.48] |" in page and "in s1, s2, s3, scores there: scene 1/2" in page


# -- from training to verdict

GRID = {
    "compare": ["qvgen", "kd-qat"],
    "training_clips": 4,
    "validation": {"clips": 2, "batch": 2},
    "recipe": {"steps": 4, "batch_size": 2, "log_every": 4},
    "arms": {"kd-qat": {"method": "kd-qat"}, "qvgen-r4": {"method": "qvgen", "options": {"rank": 4}}},
    "blocks": {"core": {"bits": [3], "seeds": [1, 2]}},
}


@pytest.mark.slow
def test_trained_saved_scored_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two arms of two training seeds, four steps each, two prompts: the whole way that the docs show."""
    monkeypatch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=3))  # of each video
    grid, out = tmp_path / "grid.yaml", tmp_path / "claims"
    grid.write_text(yaml.safe_dump({**GRID, "compare": ["qvgen-r4", "kd-qat"]}))
    assert arms.main(["--grid", str(grid), "--out", str(out), "--save", "kd-qat,qvgen-r4"]) == 0
    for seed in (1, 2):
        command = ["run", "--config", str(out / "checkpoints" / "run.yaml"), "--seeds", "0", "--no-profile"]
        command += ["--load", str(out / "checkpoints" / f"s{seed}"), "--limit", "2", "--workers", "0"]
        assert evalharness([*command, "--output", str(tmp_path / f"run-s{seed}")]) == 0
    capfd.readouterr()
    runs = f"s1={tmp_path / 'run-s1'},s2={tmp_path / 'run-s2'}"
    scores.main(["--runs", runs, "--out", str(tmp_path / "out"), "--hypotheses", "qvgen-r4:kd-qat"])
    found = json.loads((tmp_path / "out" / "claims-scores.json").read_text())
    assert [source["checkpoints"] for source in found["sources"].values()] == ["s1", "s2"]
    row = only(found["hypotheses"], dimension="imaging_quality")

    def mean(seed: int, arm: str) -> float:
        """From the harness's own table of single scores."""
        table = csv.DictReader((tmp_path / f"run-s{seed}" / "scores.csv").open())
        rows = [r for r in table if r["method"] == arm and r["dimension"] == "imaging_quality"]
        assert len(rows) == 2
        return sum(float(r["value"]) for r in rows) / 2

    by_hand = [mean(seed, "qvgen-r4") - mean(seed, "kd-qat") for seed in (1, 2)]
    assert list(row["by_seed"].values()) == pytest.approx(by_hand, abs=1e-6) and by_hand[0] != by_hand[1]
    assert row["value"] == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    assert row["seeds"]["hi"] - row["value"] == pytest.approx(T1 * abs(by_hand[0] - by_hand[1]) / 2, rel=1e-3)
    assert any(line.startswith("qvgen-r4-w3a3 in s1, s2, scores there: ") for line in found["missing"])
