"""What a quantization-aware training step of tinyworld costs on a CPU, against the same plain step.

    python benchmarks/qat_cpu.py --output qat_cpu.json

Both sides in one run, in turns: teacher forward, student forward and backward, clipping, AdamW, in
float32 on the same batch of rendered clips. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from evalharness.models.tinyworld import LoadedTinyWorld
    from qvgen.config import QuantConfig, QVGenConfig

CPU = torch.device("cpu")
BITS, RANK = 3, 32


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batches", type=numbers, default=[16, 8], help="batch sizes, comma-separated")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="threads of torch, comma-separated")
    parser.add_argument(
        "--skip", choices=("std", "none"), default="std", help="layers left in full precision"
    )
    parser.add_argument("--repeats", type=int, default=8, help="timed turns of each side")
    parser.add_argument(
        "--limit-s", type=float, default=90.0, help="of each setting: no further turn after it"
    )
    parser.add_argument("--output", type=Path, default=Path("qat_cpu.json"))
    return parser.parse_args(argv)


def configs() -> dict[str, QuantConfig | QVGenConfig]:
    """QVGen with Phi and learnt clips, and LSQ as of a fair comparison."""
    from baselines.lsq import LSQ
    from qvgen.method import QVGen

    return {
        "qvgen": QVGen(w_bits=BITS, a_bits=BITS, rank=RANK).training_config(),
        "lsq": LSQ(w_bits=BITS, a_bits=BITS).quant_config(),
    }


def measure(
    loaded: LoadedTinyWorld, batch_size: int, skip: str, repeats: int, limit_s: float
) -> dict[str, Any]:
    """Every side's step in turns. A turn gives one ratio for each side: to the plain step next to it."""
    from benchmarks.measuring import WARMUP, Deadline, elapsed_ms, ratio, summary

    steps = sides(loaded, batch_size, skip)
    losses = {name: [step() for _ in range(WARMUP)] for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    deadline = Deadline(limit_s)
    while len(times["plain"]) < repeats and not (times["plain"] and deadline.passed):
        # Every side comes first in turn: what is left in the heap helps or hurts.
        names = list(steps)
        shift = len(times["plain"]) % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(elapsed_ms(partial(_record, losses[name], steps[name]), CPU))
    plain = times.pop("plain")
    medians = {name: statistics.median(values) for name, values in times.items()}
    by_turn = {
        name: sorted(a / b for a, b in zip(values, plain, strict=True)) for name, values in times.items()
    }
    return {
        "ratios": {f"{name}_to_plain": ratio(m, statistics.median(plain)) for name, m in medians.items()},
        "ratios_of_turns": {
            f"{name}_to_plain": {"min": ratio(r[0], 1), "max": ratio(r[-1], 1)} for name, r in by_turn.items()
        },
        "sides": {name: summary(values) for name, values in {"plain": plain, **times}.items()},
        "losses": losses,
    }


def sides(loaded: LoadedTinyWorld, batch_size: int, skip: str) -> dict[str, Callable[[], float]]:
    """One training step of each side; each has a student of its own and the same teacher and batch."""
    from qvgen import fused
    from qvgen.api import quantize_

    batch = next(loaded.few_batches(batch_size=batch_size, seed=0))
    teacher = copy.deepcopy(loaded.transformer).eval().requires_grad_(False)
    plain = copy.deepcopy(loaded.transformer).requires_grad_(True)
    with torch.no_grad():  # the teacher's own weights would have no gradient
        for parameter in plain.parameters():
            parameter.mul_(1.01)
    steps = {"plain": _step(plain, teacher, batch, loaded)}
    for name, config in configs().items():
        student = quantize_(copy.deepcopy(loaded.transformer), config, loaded.skip_layers(skip))
        steps[name] = _step(student, teacher, batch, loaded)
    # The same student trains on; only the way its fake quantization is computed changes.
    steps["qvgen_reference"] = _within(fused.disabled, steps["qvgen"])
    return steps


def _record(losses: list[float], step: Callable[[], float]) -> None:
    losses.append(step())


def _within(context: Callable[[], Any], step: Callable[[], float]) -> Callable[[], float]:
    def inside() -> float:
        with context():
            return step()

    return inside


def _step(
    student: torch.nn.Module, teacher: torch.nn.Module, batch: Any, loaded: LoadedTinyWorld
) -> Callable[[], float]:
    from benchmarks.qat_training import Context
    from qvgen.training.optim import build_optimizer
    from qvgen.training.recipe import TrainRecipe
    from qvgen.training.step import TrainStep

    class Predicting(Context):
        def predict(self, transformer: torch.nn.Module, batch: Any) -> torch.Tensor:
            return loaded.predict(transformer, batch)

    recipe = TrainRecipe()
    context = Predicting(CPU, teacher)
    step = TrainStep(student.train(), teacher, build_optimizer(student, recipe), recipe, context)
    return lambda: float(step([batch]).loss)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all settings; results are written after each."""
    from benchmarks.measuring import surroundings, write_json
    from evalharness.models.tinyworld import TinyWorld

    given = arguments(argv)
    loaded = TinyWorld().load("cpu")
    settings: dict[str, Any] = {}
    results = {
        "ratios": {},
        **surroundings(CPU),
        "model": "tinyworld",
        "w_bits": BITS, "a_bits": BITS, "rank": RANK, "skip_layers": given.skip,
        "parameters": sum(p.numel() for p in loaded.transformer.parameters()),
        "settings": settings,
    }  # fmt: skip
    for threads in given.threads:
        torch.set_num_threads(threads)
        for batch_size in given.batches:
            start = time.monotonic()
            name = f"batch {batch_size}, threads {threads}"
            settings[name] = measure(loaded, batch_size, given.skip, given.repeats, given.limit_s)
            settings[name]["took_s"] = round(time.monotonic() - start, 1)
            results["ratios"] = {key: found["ratios"] for key, found in settings.items()}
            write_json(given.output, results)
            print(f"{name}: {settings[name]['ratios']} in {settings[name]['took_s']} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
