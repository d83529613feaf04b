"""How long post-training quantization of a full-size CogVideoX-2B takes, on a GPU.

    python benchmarks/ptq_time.py --output ptq_time.json

The transformer has random weights; a sampler of random latents and random prompts runs it at full
size (17,776 tokens, two rows of guidance) for the calibration service. One calibration serves all
methods, as in a worker of the harness; its time is in the total of each. ``--tiny`` runs it in small on
whatever there is and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from evalharness.api import LayerStatistics
    from qvgen.method import QuantMethod

METHODS = ("viditq", "svdquant")
TARGETS_S = {"viditq": 300.0, "svdquant": 900.0}
SPARED = ("text_proj", "time_embedding", "norm1.", "norm2.", "norm_out.", "proj_out")


class OutOfTimeError(Exception):
    """Raised between two pieces of work."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "ptq_time.json")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--solver", default="rtn", choices=("rtn", "gptq"), help="of the codes")
    parser.add_argument("--bits", type=int, default=4, help="of weights and activations")
    parser.add_argument("--prompts", type=int, default=4, help="calibration videos")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of each")
    parser.add_argument("--limit-s", type=float, default=540.0, help="begin no layer or step after so long")
    given = parsed(parser, argv, methods=METHODS)
    if given.tiny:
        given.prompts, given.steps = min(given.prompts, 1), min(given.steps, 2)
    return given


class Sampler:
    """The full-precision model and a DDIM sampler of random latents and prompts."""

    def __init__(self, device: torch.device, given: argparse.Namespace) -> None:
        from diffusers import CogVideoXDDIMScheduler

        from benchmarks.qat_training import transformer

        self.model = transformer(device, given.tiny).to(torch.bfloat16).eval().requires_grad_(False)
        self._device, self._steps, self._tiny = device, given.steps, given.tiny
        self._scheduler = CogVideoXDDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
        )  # fmt: skip

    def inputs(self, seed: int) -> dict[str, Any]:
        """One guided step: two rows, of one latent."""
        from benchmarks.qat_training import random_batch

        drawn = random_batch(self._device, self._tiny, 2, 2 if self._tiny else 13).inputs
        g = torch.Generator(self._device).manual_seed(seed)
        for name in ("hidden_states", "encoder_hidden_states"):
            value = drawn[name]
            assert isinstance(value, Tensor)
            drawn[name] = torch.randn(value.shape, device=self._device, generator=g).to(torch.bfloat16)
        drawn["hidden_states"][1] = drawn["hidden_states"][0]
        return {**drawn, "return_dict": False}

    def runs(self, count: int, passed: Callable[[], bool]) -> Iterator[int]:
        """Sample ``count`` videos, one at each ``next``."""
        scheduler = self._scheduler
        for number in range(count):
            inputs = self.inputs(number)
            latents = inputs["hidden_states"][:1]
            scheduler.set_timesteps(self._steps, device=self._device)
            for t in scheduler.timesteps:
                if passed():
                    raise OutOfTimeError
                both = torch.cat([latents, latents])
                found = self.model(**{**inputs, "hidden_states": both, "timestep": t.expand(2)})[0].float()
                guided = found[:1] + 6.0 * (found[1:] - found[:1])
                latents = scheduler.step(guided, t, latents.float(), return_dict=False)[0].to(torch.bfloat16)
            yield number


class Clock:
    """Seconds and peak memory of phases; a phase ends where the next begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.phases: dict[str, dict[str, float | None]] = {}
        self._name = ""
        self._start = 0.0

    def phase(self, name: str) -> None:
        """Begin a phase; an empty name only ends the last."""
        from benchmarks.measuring import wait

        wait(self._device)
        now = time.monotonic()
        if self._name:
            peak = torch.cuda.max_memory_allocated(self._device) / 1e9 if self._is_gpu() else None
            before = self.phases.get(self._name, {})
            self.phases[self._name] = {
                "seconds": now - self._start + (before.get("seconds") or 0.0),
                "peak_gb": peak if peak is None else max(peak, before.get("peak_gb") or 0.0),
            }
        if self._is_gpu():
            torch.cuda.reset_peak_memory_stats(self._device)
        self._name, self._start = name, now

    def seconds(self) -> float:
        """Of all finished phases."""
        return sum(phase["seconds"] or 0.0 for phase in self.phases.values())

    def _is_gpu(self) -> bool:
        return self._device.type == "cuda"


class Context:
    """What a post-training method asks of its surroundings, with a clock."""

    seed = 0

    def __init__(
        self, sampler: Sampler, clock: Clock, given: argparse.Namespace, passed: Callable[[], bool]
    ) -> None:
        self.device = next(sampler.model.parameters()).device
        linears = [name for name, part in sampler.model.named_modules() if isinstance(part, nn.Linear)]
        self.skip_layers = tuple(name for name in linears if any(part in name for part in SPARED))
        self.done = self.total = 0
        self.records: list[dict[str, float | int | str]] = []
        self.cached: dict[Any, Mapping[str, LayerStatistics]] = {}
        self.calibration_phase: dict[str, float | None] = {}
        self._sampler, self._clock, self._given, self._passed = sampler, clock, given, passed

    def calibration(self, needs: Any) -> Mapping[str, LayerStatistics]:
        from evalharness.calibration import calibrate

        if needs not in self.cached:
            self._clock.phase("calibration")
            runs = self._sampler.runs(needs.prompts, self._passed)
            self.cached[needs] = calibrate(self._sampler.model, runs, needs, self.seed, self.track)
            self._clock.phase("choosing")
            self.calibration_phase = dict(self._clock.phases["calibration"])
        self._clock.phase("choosing")
        return self.cached[needs]

    def track(self, steps: range, what: str) -> Iterator[int]:
        solving = what in METHODS  # not the search for an exponent, nor calibration
        if solving:
            self._clock.phase("solving")
        self.done, self.total = 0, len(steps)
        for step in steps:
            if self._passed():
                raise OutOfTimeError
            yield step
            self.done += 1
            if self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
                print(f"  {what}: {self.done} of {self.total}", flush=True)
        if solving:
            self._clock.phase("finishing")

    def log(self, record: Mapping[str, float | int | str]) -> None:
        self.records.append(dict(record))

    def teacher(self) -> nn.Module:
        raise AssertionError("post-training methods have no teacher")

    def batches(self, batch_size: int) -> Iterator[Any]:
        raise AssertionError("post-training methods do not train")

    def predict(self, transformer: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("post-training methods do not train")


def build(name: str, given: argparse.Namespace) -> QuantMethod:
    """The method in fair mode with its defaults but for the prompts."""
    from baselines.svdquant import SVDQuant
    from baselines.viditq import ViDiTQ

    cls: type[ViDiTQ | SVDQuant] = {"viditq": ViDiTQ, "svdquant": SVDQuant}[name]
    return cls(w_bits=given.bits, a_bits=given.bits, prompts=given.prompts, solver=given.solver)


def measure(name: str, context: Context, clock: Clock, sampler: Sampler, given: Any) -> dict[str, Any]:
    """Time one method; on a passed deadline what is known, and an estimate that says so."""
    model = copy.deepcopy(sampler.model)
    clock.phases = {}
    result: dict[str, Any] = {"complete": True}
    clock.phase("choosing")
    try:
        model = build(name, given).apply(model, context)
    except OutOfTimeError:
        result["complete"] = False
    clock.phase("")
    phases = {"calibration": context.calibration_phase, **clock.phases}
    result |= {"phases": phases, "groups_done": context.done, "groups": context.total}
    total = sum(phase.get("seconds") or 0.0 for phase in phases.values())
    result["ratios"] = {"seconds": total, "target_s": TARGETS_S[name]}
    if result["complete"]:
        result["log"] = context.records[-3:]
        result["output_error"] = _error(model, sampler)
        iterations = [int(r["iterations"]) for r in context.records if "iterations" in r]
        if iterations:
            result["iterations"] = {"mean": sum(iterations) / len(iterations), "max": max(iterations)}
    elif "solving" in phases and context.done:
        left = (phases["solving"]["seconds"] or 0.0) * (context.total / context.done - 1)
        result["ratios"] |= {"estimated_seconds": total + left, "estimate": "extrapolated from layers done"}
    return result


@torch.no_grad()
def _error(model: nn.Module, sampler: Sampler) -> float:
    """Relative squared error of one pass that calibration did not see."""
    inputs = sampler.inputs(1 << 20)
    wanted, found = (one(**inputs)[0].float() for one in (sampler.model, model))
    return float((found - wanted).square().sum() / wanted.square().sum())


@torch.no_grad()
def plain_pass_ms(sampler: Sampler, device: torch.device) -> float:
    """One guided pass without hooks: median of three after one."""
    from benchmarks.measuring import elapsed_ms

    inputs = sampler.inputs(0)
    times = [elapsed_ms(lambda: sampler.model(**inputs), device) for _ in range(4)]
    return sorted(times[1:])[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the methods one after the other; results are written after each."""
    from benchmarks.driver import on_device, run_parts
    from benchmarks.measuring import Deadline

    given, device = arguments(argv), on_device()
    deadline = Deadline(given.limit_s)
    sampler, clock = Sampler(device, given), Clock(device)
    context = Context(sampler, clock, given, lambda: deadline.passed)
    settings = {name: getattr(given, name) for name in ("prompts", "steps", "bits", "solver")}
    settings["parameters"] = sum(p.numel() for p in sampler.model.parameters())
    settings["plain_pass_ms"] = plain_pass_ms(sampler, device)

    def measure_one(name: str) -> dict[str, Any]:
        print(f"{name}:", flush=True)
        context.records.clear()
        context.done = context.total = 0
        return measure(name, context, clock, sampler, given)

    def facts() -> dict[str, Any]:
        return settings | overhead(context, given, settings["plain_pass_ms"])

    return run_parts(given.methods, measure_one, given, facts)


def overhead(context: Context, given: argparse.Namespace, plain_pass_ms: float) -> dict[str, float]:
    """What watching the layers costs beside the passes themselves; nothing before a calibration."""
    seconds = context.calibration_phase.get("seconds")
    if not seconds:
        return {}
    passes_s = given.prompts * given.steps * plain_pass_ms / 1e3
    return {"calibration_s": seconds, "calibration_to_plain_passes": seconds / passes_s}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
