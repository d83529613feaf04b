"""``step.py``, ``memory.py`` and ``pack.py`` run from end to end in small, and their numbers fit together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.full_models import MODELS, bf16_model, fill_, inputs, packed_model, tokens
from benchmarks.load_once import measure
from benchmarks.measuring import Stopped, stopped_after
from benchmarks.memory import reserved_within
from benchmarks.step_parts import Plain, caller, distance, measure_model
from qvgen.integrations.diffusers import attach_
from qvgen.packed.convert import packed_layers

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def run_script(name: str, *given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *given],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def results(path: Path, name: str, *given: str) -> dict[str, Any]:
    done = run_script(name, "--tiny", "--output", str(path), *given)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    assert list(found["parts"]) == list(found["ratios"])
    return found


def test_sizes_are_those_of_the_papers() -> None:
    """Tokens of a clip; 1.33, 1.39 and 14.05 billion weights in the blocks' linears without modulation."""
    assert {name: tokens(full, False) for name, full in MODELS.items()} == {
        "cog_2b": 17776, "wan_1_3b": 32760, "wan_14b": 32760,
    }  # fmt: skip
    for name, billions in (("cog_2b", 1.327), ("wan_1_3b", 1.392), ("wan_14b", 14.05)):
        full = MODELS[name]
        with torch.device("meta"):
            import diffusers

            model = getattr(diffusers, full.kind)(**full.options)
        inside = [
            part.weight.numel()
            for place, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and "blocks." in place and ".norm" not in place
        ]
        assert sum(inside) / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("name", ["cog_2b", "wan_1_3b"])
def test_random_models_run(name: str) -> None:
    full = MODELS[name]
    x = inputs(full, CPU, True, samples=2)
    with torch.no_grad():
        wanted = bf16_model(full, CPU, True)(**x)[0]
        a, b = (packed_model(full, (4, 4), CPU, True, fuse=fuse)(**x)[0] for fuse in (True, False))
    assert a.shape == wanted.shape and a.dtype == wanted.dtype == torch.bfloat16
    assert a.isfinite().all() and a.float().std() > 0.01
    assert torch.equal(a, b)  # drawn from one seed; on a CPU a fused block is the same bit for bit
    with torch.no_grad():
        three = packed_model(full, (3, 8), CPU, True)
    assert {(m.config.w_bits, m.config.a_bits) for _, m in packed_layers(three)} == {(3, 8)}


@pytest.mark.parametrize("name", ["cog_2b", "wan_1_3b"])
def test_bfloat16_has_the_weights_of_the_packed_model(name: str) -> None:
    """At 8 bits they differ by what quantizing activations costs; drawn apart they have no likeness."""
    full = MODELS[name]
    x = inputs(full, CPU, True)
    packed = packed_model(full, (8, 8), CPU, True)
    with torch.no_grad():
        plain, wanted = bf16_model(full, CPU, True), packed(**x)[0].double()

        def apart() -> float:
            return float((plain(**x)[0].double() - wanted).norm() / wanted.norm())

        assert apart() > 0.5
        kinds = {n: p.dtype for n, p in plain.named_parameters()}
        fill_(plain, packed)
        assert apart() < 0.05
    assert kinds == {n: p.dtype for n, p in plain.named_parameters()}
    layer_name, layer = next(packed_layers(packed))
    weight = plain.get_submodule(layer_name).weight
    # At 8 bits a code is a byte.
    by_hand = (layer.codes[:, : layer.in_features].double() - 128) * layer.scale.double()
    assert isinstance(weight, torch.Tensor) and torch.equal(weight, by_hand.to(torch.bfloat16))


def step_options(**given: Any) -> Namespace:
    known = {
        "tiny": True, "compiler": "eager", "samples": 1, "repeats": 1, "variant_s": 100.0,
        "peer_tuner": "library", "variants": ["w4a4"], "save": lambda found: None,
    }  # fmt: skip
    return Namespace(**{**known, **given})


@pytest.mark.parametrize("name", ["cog_2b", "wan_1_3b"])
def test_both_bfloat16_models_follow_the_bits_of_the_variant(name: str) -> None:
    """Compiled blocks and the table of timesteps included, whichever bits come after which."""
    plain = Plain(name, step_options(), CPU)
    outputs = {}
    with torch.no_grad():
        for bits in ((4, 4), (8, 8), (4, 4)):
            packed = plain.take(bits)
            best = plain.best or plain.build_best()
            out = caller(best, plain.x, best=True)()
            assert (distance(out, caller(plain.model, plain.x, best=False)) or 0) < 0.02
            if bits == (8, 8):
                assert (distance(out, caller(packed, plain.x, best=True)) or 0) < 0.05
            outputs.setdefault(bits, []).append(out)
    first, again = outputs[4, 4]
    assert torch.equal(first, again) and not torch.equal(first, outputs[8, 8][0])


def test_a_variant_that_does_not_get_ready_costs_its_own_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import step_parts

    built, build = [], step_parts.build

    def slow(variant: str, plain: Plain) -> Any:
        built.append(variant)
        if variant == "float8":
            signal.setitimer(signal.ITIMER_REAL, 0.1, 30.0)  # its time is as good as over
            time.sleep(600)
        return build(variant, plain)

    monkeypatch.setattr(step_parts, "build", slow)
    saved: list[dict[str, Any]] = []
    options = step_options(
        variants=["w4a4", "float8", "w4a4_eager"],
        variant_s=400.0,
        save=lambda f: saved.append(json.loads(json.dumps(f))),
    )
    found = measure_model("wan_1_3b", options, 5000.0)
    assert found["skipped"] == {"float8": "not ready after 400 s"} and "error" not in found
    assert list(found["variants"]) == ["w4a4", "w4a4_eager"]
    assert [list(each["variants"]) for each in saved] == [["w4a4"], ["w4a4"], ["w4a4", "w4a4_eager"]]
    assert found["compiled"] == {
        "bf16_eager": "nothing", "bf16_best": "2 of 2 blocks by eager", "w4a4": "2 of 2 blocks by eager",
        "w4a4_eager": "nothing",
    }  # fmt: skip


def test_a_compiler_is_stopped_and_the_next_one_works() -> None:
    def sleepy(graph: Any, _: Any) -> Any:
        time.sleep(600)
        return graph

    x = torch.arange(3.0)
    with pytest.raises(Stopped, match="not ready after 1 s"), stopped_after(1.0):
        torch.compile(lambda t: t + 1, backend=sleepy)(x)
    with stopped_after(500.0):
        assert torch.equal(torch.compile(lambda t: t + 1, backend="eager")(x), x + 1)
    with stopped_after(float("inf")):
        pass


def test_unknown_variants_and_parts_are_refused() -> None:
    done = run_script("step.py", "--tiny", "--variants", "w4a4,w5a5")
    assert done.returncode == 2 and "'w5a5' is none of w4a4, w3a3" in done.stderr
    done = run_script("memory.py", "--tiny", "--parts", "speed")
    assert done.returncode == 2 and "'speed' is none of weights, load, denoise" in done.stderr


@pytest.mark.slow
def test_a_step_in_small(tmp_path: Path) -> None:
    given = ("--parts", "cog_2b", "--variants", "w4a4,float8", "--repeats", "2")
    part = results(tmp_path / "out.json", "step.py", *given)["parts"]["cog_2b"]
    entry = part["variants"]["w4a4"]
    for base in ("bf16_eager", "bf16_best"):
        expected = entry["times"][base]["ms"] / entry["times"]["w4a4"]["ms"]
        assert part["ratios"]["w4a4"][f"to_{base}"] == pytest.approx(expected, rel=2e-2)
    assert entry["execution"] == "real" and entry["distance_to_plain_execution"] < 0.02
    assert part["bf16_best_to_eager_distance"] < 0.02
    assert "not installed" in part["skipped"].get("float8", "not installed")


@pytest.mark.slow
def test_memory_in_small(tmp_path: Path) -> None:
    found = results(tmp_path / "out.json", "memory.py", "--parts", "weights,denoise")
    models = found["parts"]["weights"]["models"]
    four, three = models["wan_14b w4"], models["wan_14b w3"]
    assert four["quantized_weights"] == three["quantized_weights"]
    saved_bits = 8e6 * (four["packed_mb"] - three["packed_mb"])
    assert saved_bits == pytest.approx(four["quantized_weights"]), "one bit a weight; the rest is the same"
    assert four["packed_mb"] < four["bf16_of_quantized_mb"]
    calls = found["parts"]["denoise"]["calls"]
    assert set(calls) == {"w4a4", "w3a3", "w8a8"}
    assert all(call["reserved_mb_in_room"] is None for call in calls.values()), (
        "a CPU has no allocator to bind"
    )


def test_an_allocator_is_bound_for_one_call_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []
    fake = {
        "is_available": lambda: False, "synchronize": lambda _: None,
        "mem_get_info": lambda _: (10, 48 * 10**9),
        "reset_peak_memory_stats": lambda _: None, "max_memory_reserved": lambda _: 11_000_000_000,
        "set_per_process_memory_fraction": lambda share, _: bounds.append(share),
    }  # fmt: skip
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    cuda = torch.device("cuda", 0)
    assert reserved_within(lambda: None, cuda, 12.0) == 11_000.0

    def too_much() -> None:
        raise torch.OutOfMemoryError("no room")

    assert reserved_within(too_much, cuda, 12.0) is None
    assert bounds == [0.25, 1.0] * 2


def test_both_ways_to_load_are_measured(tmp_path: Path) -> None:
    attach_(packed_model(MODELS["wan_1_3b"], (4, 4), CPU, True)).save_pretrained(tmp_path)  # type: ignore[operator]
    stream, other = (measure(tmp_path, CPU, how, "auto") for how in ("stream", "from_pretrained"))
    assert (
        stream["disk"] == other["disk"] == (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    )
    assert stream["tensors"] == pytest.approx(other["tensors"], rel=0.1)
    assert stream["device_peak"] is None and stream["seconds"] > 0


@pytest.mark.slow
def test_packing_in_small(tmp_path: Path) -> None:
    found = results(tmp_path / "out.json", "pack.py", "--repeats", "2")
    times = found["parts"]["unpack"]["matrices"]["48x80 3 bits"]
    rate = 48 * 80 * 1e-6 / times["unpack"]["median_ms"]
    ratios = found["ratios"]["unpack"]["48x80 3 bits"]
    assert ratios["codes_per_ns"] == pytest.approx(rate, rel=1e-3)
