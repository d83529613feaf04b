"""The benchmarks of VBench's scorers: their arithmetic by hand, and motion that is known."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import vbench_grit, vbench_parity, vbench_real
from benchmarks.vbench_clips import chosen_shapes, moving
from benchmarks.vbench_networks import _bare_parents
from benchmarks.vbench_parity_upstream import teach
from benchmarks.vbench_run import Step, plan, set_math
from benchmarks.vbench_timing import Side, Timed, seconds_of, time_native, time_upstream
from benchmarks.vbench_told import as_they_run, merged, summary
from evalharness.upstream.pins import NEEDS_DETECTRON2

RECORDS = Path(__file__).parents[1] / "results" / "benchmarks"


def timed(**seconds: list[float]) -> Timed:
    made = Timed()
    for dimension, times in seconds.items():
        for number, took in enumerate(times):
            made.add(dimension, "small", Path(f"{number}.mp4"), took, number + took / 100)
    return made


def test_the_summary_by_hand() -> None:
    upstream = timed(a=[4.0, 6.0, 5.0], b=[2.0])
    native = timed(decoding=[0.5, 0.5], a=[1.0, 1.0], b=[0.5, 0.25], together=[1.5, 1.5])
    told = summary(upstream, native, ["a", "b"], ["small"])
    row = told["sizes"]["small"]
    assert row["upstream_s"] == {"a": 5.0, "b": 2.0, "together": 7.0}
    assert row["times_faster"] == round(7 / 1.5, 2)
    assert row["times_faster_apart"] == round(7 / (1 + 0.375 + 2 * 0.5), 2)
    assert row["clips_timed"] == {"native": 2, "upstream": {"a": 3, "b": 1}}
    assert told["largest_difference"] == pytest.approx({"a": 0.05, "b": 0.015})


def test_a_run_that_is_cut_off_says_no_ratio() -> None:
    native = timed(decoding=[0.5], a=[1.0], b=[0.5], together=[2.0])
    told = summary(timed(a=[4.0]), native, ["a", "b"], ["small"])
    row = told["sizes"]["small"]
    assert row["times_faster"] is row["times_faster_apart"] is row["upstream_s"]["together"] is None
    assert row["upstream_s"]["a"] == 4.0
    assert set(told["largest_difference"]) == {"a"}


def test_runs_over_some_dimensions_each_are_one() -> None:
    """Merged, they equal one run with all, but for the decoding that each had to do."""
    facts = {"device": "cpu", "threads": 1, "clips": 1, "clock": "cpu", "commit": "c"}

    def part(decoding: float, **seconds: tuple[float, float]) -> dict[str, Any]:
        theirs = timed(**{name: [pair[0]] for name, pair in seconds.items()})
        together = decoding + sum(pair[1] for pair in seconds.values())
        ours = timed(
            decoding=[decoding], together=[together], **{name: [pair[1]] for name, pair in seconds.items()}
        )
        return {**facts, "math": {"default": {"float32": summary(theirs, ours, list(seconds), ["small"])}}}

    whole = part(0.5, a=(4.0, 1.0), b=(2.0, 0.5), c=(8.0, 3.0))
    made = merged([part(0.75, a=(4.0, 1.0), b=(2.0, 0.5)), part(0.5, c=(8.0, 3.0))])
    assert made["math"] == whole["math"]
    assert made["merged"] == 2


FACTS: dict[str, Any] = {
    "device": "cpu",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    "commit": "c",
    "float32_matmul_precision": "highest",
    "threads": 1,
    "clips": 1,
    "batch": 16,
    "weights_seed": 0,
    "tiny": False,
    "clock": "cpu",
}


def one_dimension(name: str, precision: str = "float32", **other: Any) -> dict[str, Any]:
    ours = timed(decoding=[0.5], together=[1.5], **{name: [1.0]})
    told = summary(timed(**{name: [4.0]}), ours, [name], ["small"])
    left_out = {"color": {"detectron2": "absent"}}
    return {**FACTS, "math": {"default": {precision: told}}, "left_out": left_out, **other}


@pytest.mark.parametrize(
    ("fact", "other"),
    [
        ("device", "NVIDIA H100"),
        ("versions", {"torch": "2.12.0", "diffusers": "0.42.1"}),
        ("commit", "d"),
        ("float32_matmul_precision", "high"),
        ("threads", 2),
        ("clips", 2),
        ("batch", 8),
        ("weights_seed", 1),
        ("tiny", True),
        ("clock", "wall"),
        ("precision", "bfloat16"),
    ],
)
def test_runs_that_differ_in_a_fact_are_not_joined(fact: str, other: Any) -> None:
    assert merged([one_dimension("a"), one_dimension("b")])["left_out"] == {"color": {"detectron2": "absent"}}
    named = "cases" if fact == "precision" else fact
    with pytest.raises(ValueError, match=f"the runs differ.*: {named}: "):
        merged([one_dimension("a"), one_dimension("b", **{fact: other})])


def test_a_dimension_that_two_runs_have_is_not_joined() -> None:
    with pytest.raises(ValueError, match="a was timed by more than one"):
        merged([one_dimension("a"), one_dimension("a")])


def test_as_they_run_is_the_package_s_default_over_our_strict() -> None:
    native = timed(decoding=[0.5], a=[1.0], together=[2.0])
    strict = {"float32": summary(timed(a=[9.0]), native, ["a"], ["small"])}
    default = {"float32": summary(timed(a=[7.0]), timed(a=[0.1], together=[0.1]), ["a"], ["small"])}
    assert as_they_run({"strict": strict}) == {}
    assert as_they_run({"strict": strict, "default": default}) == {"small": 3.5}


def side(
    clips: list[tuple[str, Path]], *, clock: str = "wall", limit_s: float = 60.0, s: float = 60.0
) -> Side:
    return Side(clips=clips, warm=[], device="cpu", clock=clock, limit_s=limit_s, end=time.monotonic() + s)


def test_the_processor_s_clock_does_not_run_while_others_do() -> None:
    def slept() -> float:
        time.sleep(0.2)
        return 7.0

    took, value = seconds_of(slept, side([], clock="cpu"))
    assert took < 0.1 and value == 7.0
    assert seconds_of(slept, side([]))[0] >= 0.2


def paths(count: int) -> list[tuple[str, Path]]:
    return [(("small", "large")[number % 2], Path(f"{number}.mp4")) for number in range(count)]


def length(path: Path) -> float:
    return float(len(path.name))


def test_upstream_goes_on_where_one_dimension_fails() -> None:
    """At once, or in the middle of the clips."""

    def absent() -> Any:
        raise ImportError("no detectron2")

    def breaks(path: Path) -> float:
        if path.name == "2.mp4":
            raise RuntimeError("out of memory")
        return 1.0

    found = Timed()
    yielded = list(
        time_upstream({"a": lambda: length, "b": absent, "c": lambda: breaks}, side(paths(4)), found)
    )
    assert yielded == ["a", "c", "a", "c"]
    assert found.values == {"a": {f"{number}.mp4": 5.0 for number in range(4)}}
    assert found.failed == {"b": "ImportError: no detectron2", "c": "RuntimeError: out of memory"}
    assert found.count("a", "small") == found.count("a", "large") == 2
    native = timed(decoding=[0.5], a=[1.0], b=[1.5], c=[2.0], together=[5.0])
    upstream = timed(a=[3.0])
    upstream.failed = found.failed
    told = summary(upstream, native, list("abc"), ["small"])
    assert told["failed"] == {name: {"upstream": found.failed[name]} for name in "bc"}
    row = told["sizes"]["small"]
    assert row["native_s"] == {"decoding": 0.5, "a": 1.0, "together": 1.5, "apart": 1.5}
    assert row["times_faster"] == 2.0


def test_fewer_clips_are_taken_where_time_does_not_do_and_that_is_said() -> None:
    def slow(path: Path) -> float:
        del path
        time.sleep(0.05)
        return 1.0

    found = Timed()
    list(time_upstream({"a": lambda: slow}, side(paths(20), s=0.35), found))
    assert 1 <= found.count("a", "small") == found.count("a", "large") <= 3
    assert found.cut_short.startswith(f"{2 * found.count('a', 'small')} of 20 clips: ")
    late = Timed()
    list(time_upstream({"a": lambda: slow}, side(paths(4), s=-1.0), late))
    assert late.count("a", "small") == late.count("a", "large") == 1  # the first round is always made


def test_a_dimension_past_its_limit_takes_no_further_clip() -> None:
    def slow(path: Path) -> float:
        time.sleep(0.3)
        return length(path)

    found = Timed()
    list(time_upstream({"a": lambda: slow, "b": lambda: length}, side(paths(6), limit_s=0.5), found))
    assert found.count("a", "small") == 1 and found.count("b", "small") == 3


def test_native_goes_on_where_one_dimension_fails(tmp_path: Path) -> None:
    from evalharness.video import write_video

    clips = []
    for number in range(3):
        clips.append(("small", tmp_path / f"{number}.mp4"))
        write_video(clips[-1][1], moving(number, 2 + number, 64, 96), 8)

    def breaks(video: Any) -> float:
        if len(video.frames) == 3:
            raise RuntimeError("no kernel")
        return 0.0

    found = Timed()
    judges = {"a": lambda video: float(len(video.frames)), "b": breaks}
    assert list(time_native(judges, side(clips), found)) == ["together"] * 3
    assert found.values == {"a": {"0.mp4": 2.0, "1.mp4": 3.0, "2.mp4": 4.0}}
    assert found.failed == {"b": "RuntimeError: no kernel"}
    assert found.count("decoding", "small") == 3
    assert found.count("together", "small") == 1  # of the clips that were judged without it from the start


def test_the_most_wanted_comes_first() -> None:
    assert plan(["strict", "default"], ["float32", "bfloat16"]) == [
        Step("strict", "native", "float32"),
        Step("strict", "upstream", "float32"),
        Step("default", "native", "float32"),
        Step("default", "upstream", "float32"),
        Step("default", "another mode", "bfloat16"),
    ]
    with pytest.raises(ValueError, match="--math fast: strict, default, one or more"):
        plan(["fast"], ["float32"])
    with pytest.raises(ValueError, match="--precisions fp8: float32, bfloat16, compiled"):
        plan(["strict"], ["float32", "fp8"])


def test_sizes_are_named_by_the_frames_that_are_kept() -> None:
    assert chosen_shapes(tiny=False, frames=3, sizes=1) == {"3x480x720": (3, 480, 720, 8)}
    assert list(chosen_shapes(tiny=False, frames=0, sizes=2)) == ["49x480x720", "81x480x832"]


def test_math_is_torch_s_own_or_strict() -> None:
    kept = torch.backends.cudnn.allow_tf32
    try:
        set_math("strict")
        assert not torch.backends.cudnn.allow_tf32
        set_math("default")
        assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = kept


def test_votes_that_differ_are_infinitely_far_apart() -> None:
    def row(vote: bool, behind: list[float]) -> dict[str, object]:
        return {"vote": vote, "behind": behind}

    apart = vbench_parity._apart
    assert apart({"upstream": 0.5, "native": 0.25}) == 0.25
    assert apart({"upstream": row(True, [2.0, 0.5]), "native": row(True, [2.5, 0.75])}) == 0.25
    assert apart({"upstream": row(True, [1.0]), "native": row(False, [1.0])}) == float("inf")
    assert apart({"upstream": row(True, [1.0]), "native": row(True, [1.0, 1.0])}) == float("inf")


@pytest.mark.parametrize("pixels", [2, 5])
def test_flow_finds_how_far_a_pattern_was_slid(pixels: int) -> None:
    strengths = vbench_real.strengths(vbench_real.slid(pixels, frames=4, side=160))
    np.testing.assert_allclose(strengths, pixels, rtol=0.1)


def test_the_clip_moves_as_it_says() -> None:
    frames = moving(0, 3, 64, 96)
    np.testing.assert_array_equal(frames[1, :, :-2][:, :10], frames[0, :, 2:][:, :10])  # beside the disc
    assert frames.shape == (3, 64, 96, 3)


def test_a_package_whose_own_imports_fail_gives_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pyiqa's, of which one network is wanted and much is imported."""
    import importlib
    import sys

    package = tmp_path / "halfthere"
    (package / "archs").mkdir(parents=True)
    (package / "__init__.py").write_text("import a_package_that_nobody_has\n")
    (package / "archs" / "__init__.py").write_text("raise ImportError('nor this')\n")
    (package / "archs" / "network.py").write_text("SIZE = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        _bare_parents("halfthere")
        assert importlib.import_module("halfthere.archs.network").SIZE == 7
        _bare_parents("a_package_that_nobody_has")  # left to the import that needs it
    finally:
        for name in [name for name in sys.modules if name.startswith("halfthere")]:
            del sys.modules[name]


def test_records_hold_what_the_scripts_write() -> None:
    parity = json.loads((RECORDS / "vbench_parity.json").read_text())["dimensions"]
    assert set(parity) == set(vbench_parity.NETWORKS)
    for dimension, found in parity.items():
        if dimension not in vbench_parity.UPSTREAM_ONLY:
            assert found["compared"] == len(found["clips"]) > 0, dimension
            assert found["largest_difference"] <= 1e-5, dimension
    values = {name: clip["upstream"] for name, clip in parity["motion_smoothness"]["clips"].items()}
    assert [name for name, value in values.items() if value is None] == ["larger than 512"]  # of two frames
    assert parity["scene"]["clips"] == {"square": {"upstream": 1.0, "native": None}}


def test_grit_gave_every_prompt_what_it_was_made_to_see() -> None:
    record = json.loads((RECORDS / "vbench_grit.json").read_text())
    told = {
        (dimension, text): (row["labels"], row["value"], row["left_out"], row["error"])
        for dimension, found in record["dimensions"].items()
        for text, row in found["prompts"].items()
    }
    assert told == {
        (case.dimension, case.text): (case.labels, case.value, case.value is None, None)
        for case in vbench_grit.CASES
    }
    assert set(record["dimensions"]) == set(NEEDS_DETECTRON2)
    assert record["versions"]["detectron2"] == "0.6"


def test_a_random_decoder_says_what_it_is_taught() -> None:
    """A post-norm transformer worked through apart: of the names and shapes of GRiT's, with two layers."""
    torch.manual_seed(0)
    words, width, hidden = 60, 768, 96
    state = {
        "embedding.words.weight": torch.randn(words, width) * 0.02,
        "embedding.positions.weight": torch.randn(5, width),
    }
    for layer in (0, 1):
        head = f"transformer.encoder.layer.{layer}."
        for part, out, inner in (
            ("attention.output", width, width),
            ("intermediate", hidden, width),
            ("output", width, hidden),
        ):
            state[f"{head}{part}.dense.weight"] = torch.randn(out, inner)
            state[f"{head}{part}.dense.bias"] = torch.randn(out)
    told = {7: 11, 11: 12, 12: 3, 50: 12}
    teach(state, told)
    x = functional.layer_norm(
        state["embedding.words.weight"][list(told)] + state["embedding.positions.weight"][0], (width,)
    )
    for layer in (0, 1):
        part = {name.split(".", 4)[4]: t for name, t in state.items() if f"layer.{layer}." in name}
        seen = functional.linear(
            torch.randn(4, width), part["attention.output.dense.weight"], part["attention.output.dense.bias"]
        )
        x = functional.layer_norm(x + seen, (width,))
        inner = functional.gelu(
            functional.linear(x, part["intermediate.dense.weight"], part["intermediate.dense.bias"])
        )
        x = functional.layer_norm(
            x + functional.linear(inner, part["output.dense.weight"], part["output.dense.bias"]), (width,)
        )
    chances = (x @ state["embedding.words.weight"].T).softmax(dim=1)
    assert chances.argmax(dim=1).tolist() == list(told.values())
    assert chances.amax(dim=1).min() > 0.9  # GRiT drops boxes whose words are unsure


def table(first: str) -> dict[str, list[str]]:
    """Rows of the one table in docs/protocols.md whose heading begins with ``first``, by their first cell."""
    lines = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text().splitlines()
    [start] = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_parity_is_its_record() -> None:
    parity = json.loads((RECORDS / "vbench_parity.json").read_text())["dimensions"]
    assert table("Dimension at its published size") == {
        name: [str(found["compared"]), f"{found['largest_difference']:.0e}"]
        for name, found in parity.items()
        if found["compared"]
    }


def test_the_table_of_real_videos_is_its_record() -> None:
    clips = json.loads((RECORDS / "vbench_real.json").read_text())["clips"]
    shown = table("Clip")
    assert list(shown) == list(clips)
    for name, found in clips.items():
        assert shown[name] == [
            found["shape"],
            f"{found['temporal_flickering']:.4f}",
            f"{found['moving']} of {found['wanted']}",
            f"{found['statistic']:.2f}",
            "yes" if found["dynamic"] else "no",
        ]
        assert found["dynamic"] is (found["moving"] >= found["wanted"])


def test_the_table_of_seconds_is_its_record() -> None:
    record = json.loads((RECORDS / "vbench_speed-cpu.json").read_text())
    [row] = record["math"]["default"]["float32"]["sizes"].values()
    shown = table("Seconds a clip")
    last = shown.pop("together, native decoding once")
    assert last == [f"{row[side]['together']:.2f}" for side in ("upstream_s", "native_s")]
    both = row["upstream_s"], row["native_s"]
    assert shown == {name: [f"{side[name]:.2f}" for side in both] for name in both[0] if name != "together"}
    assert max(record["math"]["default"]["float32"]["largest_difference"].values()) <= 1e-5


def test_the_table_of_speed_on_a_gpu_is_its_record() -> None:
    math = json.loads((RECORDS / "vbench_speed-h100.json").read_text())["math"]["default"]
    shown = table("Seconds a clip on an H100")
    shown["together"] = shown.pop("all eleven")
    exact, half = (math[kind]["sizes"] for kind in ("float32", "bfloat16"))
    sides = [
        side
        for size in exact
        for side in (exact[size]["upstream_s"], exact[size]["native_s"], half[size]["native_s"])
    ]
    assert shown == {name: [f"{side[name]:.2f}" for side in sides] for name in sides[0]}
    told = [f"{kind[size]['times_faster']:.1f} times" for kind in (exact, half) for size in exact]
    text = " ".join((Path(__file__).parents[1] / "docs" / "protocols.md").read_text().split())
    assert "**{} as fast** on clips of 49x480x720 and **{}** on 81x480x832, {} and {}".format(
        told[0], told[1], told[2].removesuffix(" times"), told[3]
    ) in text  # fmt: skip
    assert min(exact[size]["times_faster"] for size in exact) >= 5
    assert max(math["float32"]["largest_difference"].values()) <= 4e-6


def test_the_second_scoring_s_seconds_are_their_record() -> None:
    record = json.loads((RECORDS / "vbench_cache.json").read_text())
    told = record["second_run_s"]
    said = f"takes {told['median']} s (median of five, at best {told['least']} s)"
    assert said in " ".join((Path(__file__).parents[1] / "docs" / "protocols.md").read_text().split())
    assert record["videos"] == 1255 and told["median"] < 2
