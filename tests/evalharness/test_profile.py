"""The profile stage: times in turns, phases of a video, ``--attention``, conditions, and who gets a ratio."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from evalharness import attention, conditions
from evalharness.attention import choose_, chosen
from evalharness.errors import UserError
from evalharness.models.tinyworld import SETTINGS, TinyWorld
from evalharness.phases import measure_phases
from evalharness.stages.profile import _step_times
from evalharness.timing import Times, alternate, percentile, spread

Call = Callable[..., Any]


@pytest.mark.parametrize("count", [1, 2, 7, 15])
@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
def test_percentiles_are_numpys(count: int, percent: int) -> None:
    values = np.random.default_rng(count).random(count).tolist()
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_calls_take_turns() -> None:
    order: list[str] = []

    def called(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    times = alternate({"a": called("a"), "b": called("b")}, "cpu", most=3, most_seconds=10, warm_up=2)
    assert "".join(order) == "aabb" + "ab" * 3
    assert [len(each.seconds) for each in times.values()] == [3, 3]


def test_long_calls_are_warmed_up_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = clocked(monkeypatch, 1.75)
    for warm_up, wanted in ((10, 2), (1, 1)):
        before = len(calls)
        alternate({"a": lambda: calls.append(1)}, "cpu", most=1, most_seconds=1, warm_up=warm_up)
        assert len(calls) - before == wanted + 1


def clocked(monkeypatch: pytest.MonkeyPatch, wall: float) -> list[int]:
    """Each entry of the list takes ``wall`` seconds and a quarter of a second of the processor."""
    calls: list[int] = []
    clock = SimpleNamespace(perf_counter=lambda: wall * len(calls), process_time=lambda: 0.25 * len(calls))
    monkeypatch.setattr("evalharness.timing.time", clock)
    return calls


def test_the_clock_ends_the_turns_but_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = clocked(monkeypatch, 2.0)
    times = alternate({"a": lambda: calls.append(1)}, "cpu", most=100, most_seconds=5, warm_up=0)
    assert (times["a"].seconds, times["a"].processor) == ([2.0] * 3, [0.25] * 3)
    once = alternate({"a": lambda: None}, "cpu", most=5, most_seconds=0, warm_up=0)
    assert len(once["a"].seconds) == 1


def test_spread_is_in_milliseconds() -> None:
    assert spread([0.001, 0.002, 0.003], "x_") == {"x_ms": 2.0, "x_p10_ms": 1.2, "x_p90_ms": 2.8}
    assert spread([]) == {"ms": None, "p10_ms": None, "p90_ms": None}


@pytest.mark.parametrize(("execution", "speedup"), [("real", 2.0), ("emulated", 2.0), ("fake", None)])
def test_a_simulation_gets_no_speedup(execution: str, speedup: float | None) -> None:
    times = {"cell": Times([0.01] * 3, [0.01] * 3), "reference": Times([0.02] * 3, [0.02] * 3)}
    record = _step_times(times, "cpu", execution)
    assert record["step_speedup"] == speedup
    assert (record["step_ms"], record["reference_step_ms"], record["steps_timed"]) == (10.0, 20.0, 3)
    assert _step_times({"cell": times["cell"]}, "cpu", "real")["step_speedup"] is None


def tiny_cogvideox() -> nn.Module:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1,
        time_embed_dim=16, text_embed_dim=24, sample_width=6, sample_height=6, sample_frames=5,
        max_text_seq_length=4,
    ).eval()  # fmt: skip


def call(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 2, 4, 6, 6, generator=g), torch.randn(1, 4, 24, generator=g)
    with torch.no_grad():
        out: Tensor = model(x, text, torch.tensor([500]), return_dict=False)[0]
    return out


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Whether flash and math were allowed at each attention."""
    found: list[tuple[bool, bool]] = []
    original = functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        cuda = torch.backends.cuda
        found.append((cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()))
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    return found


def test_the_choice_reaches_cogvideox_and_copies_and_ends_with_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = choose_(tiny_cogvideox(), "math")
    found = seen(monkeypatch)
    with_math = call(copy.deepcopy(model))
    assert found == [(False, True)] and chosen(copy.deepcopy(model)) == "math"
    assert torch.backends.cuda.flash_sdp_enabled()
    with_flash = call(choose_(model, "flash"))
    assert found[1:] == [(True, False)] and chosen(model) == "flash"
    torch.testing.assert_close(with_flash, with_math, rtol=1e-4, atol=1e-5)
    call(choose_(model, attention.DEFAULT))
    assert found[2:] == [(True, True)] and chosen(model) == "default"


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    model = choose_(tiny_cogvideox(), "math")
    with pytest.raises(TypeError):
        model(nothing=1)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_kernel_that_is_not_there_is_an_error() -> None:
    model = choose_(tiny_cogvideox(), "cudnn")
    with pytest.raises(RuntimeError, match=r"[Nn]o (viable backend|available kernel)"):
        call(model)


def test_what_the_command_refuses(toy_run: Call) -> None:
    from evalharness.config import RunConfig

    with pytest.raises(UserError, match="--attention fast: expected one of default, math"):
        RunConfig(attention="fast")
    result = toy_run("--attention", "cudnn", "--device", "cpu")
    assert result.code == 2 and "--attention cudnn: needs --device cuda" in result.err


def test_a_run_of_other_attention_is_another_run(toy_run: Call, tmp_path: Path) -> None:
    assert toy_run("--attention", "math", "--limit", "1").code == 0
    profile = json.loads((tmp_path / "out" / "cells" / "bf16-s0" / "profile.json").read_text())
    assert profile["conditions"]["attention"] == "math" and profile["conditions"]["compile"] is False
    assert profile["conditions"]["tokens"] == 64 and profile["conditions"]["steps"] == 2
    assert profile["phases"] is None and profile["execution"] == "real"
    refused = toy_run("--limit", "1")
    assert refused.code == 2 and "different run" in refused.err


def test_quantized_cells_are_timed_beside_full_precision(toy_run: Call, tmp_path: Path) -> None:
    assert toy_run("--methods", "toy-round", "--limit", "1").code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {cell["method"]: cell["profile"] for cell in results["cells"]}
    assert rows["toy-round"]["reference_step_ms"] > 0 and rows["toy-round"]["step_speedup"] is None
    assert rows["toy-round"]["execution"] == "fake"
    assert rows["bf16"]["reference_step_ms"] is None
    for row in rows.values():
        assert row["step_p10_ms"] <= row["step_ms"] <= row["step_p90_ms"]


def test_phases_of_a_video() -> None:
    loaded = TinyWorld().load("cpu")
    torch.set_num_threads(1)
    start = time.perf_counter()
    record = measure_phases(loaded, "a red ball", 0, "cpu")
    took = (time.perf_counter() - start) * 1000
    assert record is not None
    assert record["transformer_step"]["calls"] == SETTINGS.steps
    assert record["vae_decode"]["calls"] == 1 <= record["vae_decode"]["timed"]
    assert record["text_encoder"]["calls"] == 2  # with and without the prompt
    assert record["text_encoder"]["timed"] == 5
    for phase in ("text_encoder", "transformer_step", "vae_decode"):
        assert 0 < record[phase]["p10_ms"] <= record[phase]["ms"] <= record[phase]["p90_ms"]
        assert record[phase]["process_mb"] > 100 and record[phase]["allocated_mb"] is None
    parts = sum(record[phase]["total_ms"] for phase in ("text_encoder", "transformer_step", "vae_decode"))
    assert record["total"]["ms"] == pytest.approx(parts + record["total"]["elsewhere_ms"], abs=0.01)
    assert 0 < record["total"]["elsewhere_ms"] < record["total"]["ms"] < took
    steps = record["transformer_step"]  # half of them took the median or longer
    assert steps["ms"] < steps["total_ms"] >= 0.499 * steps["ms"] * SETTINGS.steps
    assert "decode" not in vars(loaded.pipeline.vae) and "forward" not in vars(loaded.transformer)


def test_a_large_models_further_steps_are_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 20 s: five are run, the others count as these did; text and VAE are measured."""
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now)
    for module in ("phases", "timing"):
        monkeypatch.setattr(f"evalharness.{module}.time", clock)

    class Part(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: int) -> int:
            nonlocal now
            now += self.seconds
            return x + 1

        decode = forward

    class Pipeline:
        text_encoder, transformer, vae = Part(0.002), Part(0.01), Part(0.03)

    class Loaded:
        pipeline = Pipeline()

        def generate(self, prompts: list[str], seeds: list[int]) -> int:
            parts = self.pipeline
            x = parts.text_encoder(0)
            for _ in range(50):
                x = parts.transformer(x)
            return int(parts.vae.decode(x))

    record = measure_phases(Loaded(), "a", 0, "cpu", step_seconds=20.0)
    assert record is not None
    steps, total = record["transformer_step"], record["total"]
    assert (steps["calls"], steps["timed"], total["calls_left_out"]) == (50, 5, 45)
    assert steps["total_ms"] == pytest.approx(50 * steps["ms"]) == pytest.approx(500)
    assert total["ms"] == pytest.approx(500 + 32)
    assert record["vae_decode"]["timed"] == 5 and record["vae_decode"]["ms"] == pytest.approx(30)
    every = measure_phases(Loaded(), "a", 0, "cpu", step_seconds=0.01)
    assert every is not None and every["total"]["calls_left_out"] == 0


def test_no_pipeline_no_phases() -> None:
    assert measure_phases(object(), "a", 0, "cpu") is None


def test_the_gpu_is_asked_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"clocks.sm": "1980, 2619, 41, 98.51", "driver": "575.57.08, 1980", "pid": "811\n977"}
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> str | None:
        asked.append(command)
        return next(text for key, text in answers.items() if key in command[3])

    monkeypatch.setattr(conditions, "probe", answer)
    monkeypatch.setattr(conditions, "_which", lambda: ("-i", "GPU-1"))
    assert conditions.clocks("cuda") == {"sm_mhz": 1980, "memory_mhz": 2619, "celsius": 41, "watts": 98.51}
    record = conditions.conditions("cuda", "cudnn", 50)
    assert (record["driver"], record["sm_clock_limit_mhz"], record["other_processes"]) == (
        "575.57.08",
        1980,
        1,
    )
    assert all(command[1:3] == ("-i", "GPU-1") for command in asked)
    answers.update({"clocks.sm": "[N/A], 1, 2, 3"})
    assert conditions.clocks("cuda") == {"sm_mhz": None, "memory_mhz": 1, "celsius": 2, "watts": 3}
    monkeypatch.setattr(conditions, "probe", lambda *command: None)
    record = conditions.conditions("cuda", "cudnn", 50)
    assert (record["driver"], record["other_processes"]) == (None, None)
    assert conditions.clocks("cpu") is None


def test_tokens_are_the_longest_sequence_of_one_sample() -> None:
    model = tiny_cogvideox()
    assert conditions.tokens_of(model, lambda: call(model)) == 4 + 2 * 3 * 3  # text, then patches
    assert conditions.tokens_of(nn.ReLU(), lambda: None) is None
