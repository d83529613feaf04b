"""What the benchmark scripts share: parts, limits, and that a failure costs the others nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.driver import attempted, command_line, limit_s, parsed, run_parts

LIMITS_S = {"one": 1.0, "two_parts": 2.5, "three": 3.0}


def given_by(*options: str) -> Any:
    return parsed(command_line("Doc.\n\nMore.", "x.json", repeats=9, limits_s=LIMITS_S), options, LIMITS_S)


def test_defaults_are_all_parts_and_their_limits() -> None:
    given = given_by("--tiny")
    assert given.parts == ["one", "two_parts", "three"]
    assert [limit_s(given, part) for part in given.parts] == [1.0, 2.5, 3.0]
    assert (given.output, given.repeats) == (Path("x.json"), 9)


def test_parts_and_limits_are_taken() -> None:
    given = given_by("--tiny", "--parts", "three,one", "--two-parts-s", "7", "--output", "y.json")
    assert given.parts == ["three", "one"]
    assert limit_s(given, "two_parts") == 7
    assert given.output == Path("y.json")


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        given_by("--tiny", "--parts", "one,four")
    assert "--parts: 'four' is none of one, two_parts, three" in capsys.readouterr().err


def test_other_lists_are_checked_alike(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_line("Doc.", "x.json", limits_s=LIMITS_S)
    parser.add_argument("--runs", default="slow,fast")
    given = parsed(parser, ["--tiny", "--parts", "one"], LIMITS_S, runs=("fast", "slow"))
    assert (given.parts, given.runs) == (["one"], ["slow", "fast"])
    with pytest.raises(SystemExit, match="2"):
        parsed(parser, ["--tiny", "--runs", "fast,late"], LIMITS_S, runs=("fast", "slow"))
    assert "--runs: 'late' is none of fast, slow" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_only_tiny_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        given_by()
    assert "--tiny tries the script without one" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_line("Tests. More.", "out.json", repeats=1)
    with pytest.raises(SystemExit):
        parsed(parser, ["--tiny", "--output", str(tmp_path / "none" / "out.json")])
    assert f"--output: {tmp_path / 'none'} is no folder" in capsys.readouterr().err
    assert parsed(parser, ["--tiny", "--output", str(tmp_path / "out.json")]).tiny


def test_a_part_that_fails_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = given_by("--tiny", "--output", str(tmp_path / "out.json"))
    written: list[list[str]] = []

    def measure(part: str) -> dict[str, Any]:
        if written or part != "one":
            written.append(list(json.loads(given.output.read_text())["parts"]))
        if part == "two_parts":
            raise RuntimeError("out of luck")
        return {"ratios": {"a": {"b": {"c": 0.5}}}, "n": 3}

    assert run_parts(given.parts, measure, given, lambda: {"seen": len(written)}) == 1
    assert written == [["one"], ["one", "two_parts"]]
    found = json.loads(given.output.read_text())
    assert found["parts"]["two_parts"]["error"] == "RuntimeError: out of luck"
    assert found["ratios"] == {
        "one": {"a": {"b": {"c": 0.5}}},
        "two_parts": {},
        "three": {"a": {"b": {"c": 0.5}}},
    }
    assert found["parts"]["three"]["n"] == 3
    assert (found["tiny"], found["seen"]) == (True, 2)
    assert found["versions"]["torch"] == torch.__version__
    assert {"device", "commit"} <= found.keys()
    captured = capsys.readouterr()
    assert "RuntimeError: out of luck" in captured.err
    assert "  a\n    b: {'c': 0.5}\n" in captured.out


def test_all_well_is_exit_code_0(tmp_path: Path) -> None:
    given = given_by("--tiny", "--parts", "one", "--output", str(tmp_path / "out.json"))
    assert run_parts(given.parts, lambda part: {"ratios": {}}, given) == 0


def test_an_interrupt_is_no_failed_part() -> None:
    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempted(interrupted)


def test_a_limit_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds: the first part takes eight of them, the second gets what is left, the third none."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    given = given_by("--tiny", "--limit-s", "10", "--three-s", "60", "--output", str(tmp_path / "out.json"))
    given.one_s = given.two_parts_s = 60.0
    limits = {}

    def measure(part: str) -> dict[str, Any]:
        limits[part] = limit_s(given, part)
        clock[0] += 8 if part == "one" else 3
        return {"ratios": {part: 1.0}}

    assert run_parts(given.parts, measure, given) == 0
    assert limits == {"one": 10.0, "two_parts": 2.0}
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["parts"]["three"]["skipped"] == "no time was left"
    assert found["ratios"] == {"one": {"one": 1.0}, "two_parts": {"two_parts": 1.0}, "three": {}}


def test_what_a_part_saves_is_there_when_it_is_killed(tmp_path: Path) -> None:
    given = given_by("--tiny", "--parts", "one,three", "--output", str(tmp_path / "out.json"))

    def measure(part: str) -> dict[str, Any]:
        given.save({"ratios": {"half": 0.5}})
        if part == "three":
            raise KeyboardInterrupt
        return {"ratios": {"whole": 1.0}}

    with pytest.raises(KeyboardInterrupt):
        run_parts(given.parts, measure, given)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ratios"] == {"one": {"whole": 1.0}, "three": {"half": 0.5}}


def test_what_a_part_saves_is_there_when_it_fails(tmp_path: Path) -> None:
    given = given_by("--tiny", "--parts", "one,three", "--output", str(tmp_path / "out.json"))

    def measure(part: str) -> dict[str, Any]:
        if part == "one":
            given.save({"ratios": {"half": 0.5}, "calls": 3})
        raise TimeoutError("no time")

    assert run_parts(given.parts, measure, given) == 1
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert (parts["one"]["ratios"], parts["one"]["calls"]) == ({"half": 0.5}, 3)
    assert parts["one"]["error"] == parts["three"]["error"] == "TimeoutError: no time"
    assert parts["three"]["ratios"] == {}
