"""``packed_runs.py``: which cells belong together, and differences of scores worked out by hand."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import packed_runs
from benchmarks.packed_runs import Pair, expected, main, pairs, score_differences, summary, unsettled

RUN = {"model": "tinyworld", "protocol": "tinyworld", "skip_layers": "std", "device": "cpu", "batch_size": 1}


def write_run(
    folder: Path, label: str, execution: str, scores: dict[tuple[str, str], float | None], weights: str = "w"
) -> Path:
    """A run of one cell of lsq, W4A4, seed 0, with full precision beside it."""
    cells = [
        {"model": "tinyworld", "method": "bf16", "label": "bf16", "w_bits": 16, "a_bits": 16, "seed": 0,
         "options": {}},
        {"model": "tinyworld", "method": "lsq", "label": label, "w_bits": 4, "a_bits": 4, "seed": 0,
         "options": {}},
    ]  # fmt: skip
    cell = folder / "cells" / f"{label}-w4a4-s0"
    cell.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"config": {"cells": cells, **RUN}}))
    (cell / "prepare.json").write_text(json.dumps({"execution": execution, "checkpoint_sha256": weights}))
    lines = [
        {"sample": s, "prompt_id": s.split("-")[0], "dimension": d, "value": value}
        for (s, d), value in scores.items()
    ]
    (cell / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


FAKE: dict[tuple[str, str], float | None] = {
    ("0000-s0", "color"): 0.5, ("0001-s0", "color"): 0.5,
    ("0000-s0", "scene"): 1.0, ("0002-s0", "scene"): None,
}  # fmt: skip
PACKED: dict[tuple[str, str], float | None] = {
    ("0000-s0", "color"): 0.7, ("0001-s0", "color"): 0.5,
    ("0000-s0", "scene"): 0.9, ("0003-s0", "scene"): 0.2,
}  # fmt: skip


def test_cells_of_one_method_width_and_seed_belong_together(tmp_path: Path) -> None:
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE)
    packed = write_run(tmp_path / "packed", "lsq-real", "real", PACKED)
    (pair,) = pairs(fake, packed)
    assert (pair.fake.name, pair.packed.name) == ("lsq-w4a4-s0", "lsq-real-w4a4-s0")
    assert pair.checkpoint.name == "lsq-w4a4" and pair.cell.id == "lsq-w4a4-s0"
    (pair.fake / "checkpoint").mkdir()
    assert next(pairs(fake, packed)).checkpoint == pair.fake / "checkpoint"


def test_runs_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE)
    other = write_run(tmp_path / "other", "lsq", "fake", FAKE)
    with pytest.raises(ValueError, match="say fake and fake; give the fake-quantized run first"):
        list(pairs(fake, other))


def test_differences_of_scores(tmp_path: Path) -> None:
    """Colour: +0.2 and 0, so 0.1 with a standard error of 0.1; scene: -0.1, one prompt; all: 0."""
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE)
    packed = write_run(tmp_path / "packed", "lsq-real", "real", PACKED)
    found: dict[str, Any] = score_differences(next(pairs(fake, packed)))
    assert (found["scores"], found["equal"]) == (3, 1)
    colour, scene = found["dimensions"]["color"], found["dimensions"]["scene"]
    assert (colour["mean"], colour["standard_error"]) == pytest.approx((0.1, 0.1))
    quantile = 12.706205  # Student's t, 97.5 %, one degree of freedom
    assert colour["interval"] == pytest.approx([0.1 - 0.1 * quantile, 0.1 + 0.1 * quantile])
    assert scene["mean"] == pytest.approx(-0.1) and scene["standard_error"] is None
    # each prompt pulls the mean by half of what it pulls colour by: +0.05 and -0.05
    assert (found["mean"], found["standard_error"]) == pytest.approx((0.0, 0.05))
    videos = {
        "a": {"explanation": "equal"},
        "b": {"explanation": "UNEXPLAINED: far"},
        "c": {"explanation": "sums"},
    }
    line = summary({"videos": videos, "videos_in_both": 4, "scores": found})
    assert (line["videos"], line["equal"], line["unexplained"]) == ("3 of 4", 1, 1)
    assert isinstance(next(pairs(fake, packed)), Pair)


def test_dimensions_of_one_video_are_not_independent(tmp_path: Path) -> None:
    """Eight dimensions that say the same tell no more than one; two that cancel out leave nothing."""

    def found(signs: list[int], name: str) -> dict[str, Any]:
        base = {(f"{i:04d}-0", f"d{d}"): 0.5 for i in range(6) for d in range(len(signs))}
        moved = {key: 0.5 + signs[int(key[1][1:])] * 0.01 * int(key[0][:4]) for key in base}
        fake = write_run(tmp_path / name / "fake", "lsq", "fake", dict(base))
        packed = write_run(tmp_path / name / "packed", "lsq-real", "real", dict(moved))
        return score_differences(next(pairs(fake, packed)))

    one, eight, opposed = found([1], "one"), found([1] * 8, "eight"), found([1, -1], "opposed")
    wanted = statistics.stdev(0.01 * i for i in range(6)) / 6**0.5
    assert one["standard_error"] == pytest.approx(wanted)
    assert eight["standard_error"] == pytest.approx(wanted)
    assert opposed["standard_error"] == pytest.approx(0.0, abs=1e-12)


def test_other_weights_are_no_pair(tmp_path: Path) -> None:
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE, "one")
    packed = write_run(tmp_path / "packed", "lsq-real", "real", PACKED, "other")
    with pytest.raises(ValueError, match=r"ran other weights \(checkpoint_sha256 one and other\)"):
        list(pairs(fake, packed))


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE, "one")
    other = write_run(tmp_path / "packed", "lsq-real", "real", PACKED, "other")
    for packed, said in ((tmp_path / "none", "no run is there"), (other, "ran other weights")):
        with pytest.raises(SystemExit) as ended:
            main([str(fake), str(packed), "--output", str(tmp_path / "out.json")])
        assert ended.value.code == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert said in line and str(packed) in line
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("packed/manifest.json", "{", "packed/manifest.json: no JSON"),
        ("packed/manifest.json", "{}", "'config' is missing"),
        ("out.json", "[]", "out.json: no JSON object"),
    ],
)
def test_a_file_that_is_another_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, said: str
) -> None:
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE)
    packed = write_run(tmp_path / "packed", "lsq-real", "real", PACKED)
    (tmp_path / file).write_text(text)
    with pytest.raises(SystemExit) as ended:
        main([str(fake), str(packed), "--output", str(tmp_path / "out.json")])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_leaves_a_comparison_open() -> None:
    def total(videos: str, unexplained: int = 0) -> dict[str, Any]:
        return {"videos": videos, "unexplained": unexplained}

    assert unsettled({"a": total("2 of 2"), "b": total("1 of 1")}, ["a", "b"]) == []
    assert unsettled({}, ["a"]) == unsettled({"a": total("0 of 0")}, ["a"]) != []
    assert unsettled({"a": total("2 of 2")}, ["a", "b"]) == ["b: not compared"]
    assert unsettled({"a": total("2 of 2"), "b": total("0 of 0")}, []) == ["b: 0 of 0 videos were compared"]
    assert unsettled({"a": total("1 of 2")}, ["a"]) == ["a: 1 of 2 videos were compared"]
    (line,) = unsettled({"a": total("2 of 2", 1)}, ["a"])
    assert line == "a: 1 videos differ by more than rounding explains"


def test_runs_without_a_video_in_common_are_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a cell whose videos are the same files needs no model."""
    fake = write_run(tmp_path / "fake", "lsq", "fake", FAKE)
    packed = write_run(tmp_path / "packed", "lsq-real", "real", PACKED)
    config = json.loads((packed / "manifest.json").read_text())["config"]
    assert expected(config) == ["lsq-w4a4-s0"]
    output = tmp_path / "found.json"
    assert main([str(fake), str(packed), "--output", str(output)]) == 1
    assert "nothing was compared" in capsys.readouterr().err
    for cell in (fake / "cells" / "lsq-w4a4-s0", packed / "cells" / "lsq-real-w4a4-s0"):
        (cell / "videos").mkdir()
        (cell / "videos" / "0000-0.mp4").write_bytes(b"same")
    assert main([str(fake), str(packed), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["summary"]["lsq-w4a4-s0"]["equal"] == 1


class Latents(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


def test_other_roundings_are_single_ones_whose_signs_are_drawn() -> None:
    from benchmarks.packed_scores import moved

    x = torch.ones(1000)
    up, down = 1 + 2**-23, 1 - 2**-23
    assert moved(Latents())(hidden_states=x).unique().tolist() == [up]
    drawn = [moved(Latents(), draw)(hidden_states=x) for draw in (1, 1, 2)]
    assert all(one.unique().tolist() == [down, up] for one in drawn)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_unexplained_videos_are_made_with_other_roundings_until_one_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packed one is 8 levels off, the first rounding 1; others move by 2, by 3, and by 5 of 255."""
    from evalharness.video import read_video, write_video

    made: list[int] = []

    def make(session: Any, model: nn.Module, samples: list[Any], size: int) -> list[Any]:
        made.append(len(samples))
        return [read_video(path).frames + (2, 3, 5)[len(made) - 1]] * len(samples)

    monkeypatch.setattr(packed_runs, "make_moved", make)
    path = tmp_path / "videos" / "a.mp4"
    path.parent.mkdir()
    write_video(path, np.full((4, 16, 16, 3), 100, np.uint8), 8)

    def decibels(levels: int) -> float:
        return float(20 * np.log10(255 / levels))

    entry = {"packed_db": decibels(8), "moved_db": decibels(1), "explanation": "UNEXPLAINED: far"}
    other = {"packed_db": None, "moved_db": None, "explanation": "equal"}
    videos: dict[str, Any] = {"a": entry, "b": other}
    samples: Any = [SimpleNamespace(id="a"), SimpleNamespace(id="b")]
    pair: Any = SimpleNamespace(fake=tmp_path)
    for roundings, wanted in ((2, [2, 3]), (2, [2, 3]), (9, [2, 3, 5])):
        given = SimpleNamespace(roundings=roundings, batch_size=2)
        packed_runs.look_again(None, pair, Latents(), samples, videos, given)  # type: ignore[arg-type]
        assert entry["other_roundings_db"] == pytest.approx([decibels(levels) for levels in wanted])
        assert str(entry["explanation"]).startswith("UNEXPLAINED") == (wanted[-1] < 4)
    assert made == [1, 1, 1] and "other_roundings_db" not in other
