"""What a tinyworld step costs on a CPU with packed weights, against its float32 and fake-quantized forms.

``python benchmarks/packed_cpu.py --output results/benchmarks/packed_cpu.json`` measures the bundled
``qvgen`` checkpoints: one call of the transformer on the harness's own step inputs, all sides in turns.
Beside times by the clock stands what the processor worked for them, which other processes change less.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from evalharness.models.tinyworld import LoadedTinyWorld

CPU = torch.device("cpu")
BITS = ("w4a4", "w3a3", "w2a2")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", nargs="+", default=list(BITS), choices=BITS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--limit-s", type=float, default=20.0, help="seconds for each setting, at most")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(argv)


def sides(loaded: LoadedTinyWorld, bits: str) -> dict[str, nn.Module]:
    """The forms of one checkpoint that are timed beside each other."""
    from evalharness.models.tinyworld import CHECKPOINTS
    from qvgen.checkpoint import load_quantized
    from qvgen.packed.convert import pack_

    fake = load_quantized(copy.deepcopy(loaded.transformer), CHECKPOINTS / f"qvgen-{bits}", {})
    return {
        "fp32": loaded.transformer,
        "fake": fake,
        "packed_cpu": pack_(copy.deepcopy(fake), "cpu"),
        "packed_reference": pack_(copy.deepcopy(fake), "reference"),
    }


class Worked:
    """Calls an action and remembers what the processor worked for it: milliseconds of all threads."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action = action
        self.times: list[float] = []

    def __call__(self) -> Any:
        start = time.process_time()
        found = self._action()
        self.times.append((time.process_time() - start) * 1e3)
        return found


def weights_mb(model: nn.Module) -> float:
    """MB of all tensors that the model holds while it runs."""
    tensors = [*model.parameters(), *model.buffers()]
    return round(sum(t.numel() * t.element_size() for t in tensors) / 1e6, 3)


def measure(loaded: LoadedTinyWorld, bits: str, repeats: int, limit_s: float) -> dict[str, Any]:
    """Medians in milliseconds, ratios to float32, memory, and how far outputs are apart."""
    from benchmarks.measuring import WARMUP, Deadline, compare, ratio, summary

    models, inputs = sides(loaded, bits), loaded.step_inputs()
    with torch.inference_mode():
        actions = {name: Worked(partial(model, **inputs)) for name, model in models.items()}
        times = compare(actions, CPU, repeats, Deadline(limit_s))
        worked = {name: summary(action.times[WARMUP:]) for name, action in actions.items()}
        outputs = {name: action()[0] for name, action in actions.items()}
    exact, scale = outputs["packed_reference"], outputs["packed_reference"].abs().max()
    return {
        "ratios": {
            f"{name}_to_fp32": ratio(t["median_ms"], times["fp32"]["median_ms"])
            for name, t in times.items()
            if name != "fp32"
        },
        "processor_ratios": {
            f"{name}_to_fp32": ratio(t["median_ms"], worked["fp32"]["median_ms"])
            for name, t in worked.items()
            if name != "fp32"
        },
        "times": times,
        "processor": worked,
        "held_mb": {name: weights_mb(model) for name, model in models.items()},
        "packed_mb": round(_packed_bytes(models["packed_cpu"]) / 1e6, 3),
        "largest_difference_of_output": {
            name: float((out - exact).abs().max() / scale) for name, out in outputs.items() if name != "fp32"
        },
    }


def _packed_bytes(model: nn.Module) -> int:
    from qvgen.packed.convert import packed_layers

    return sum(layer.stored_bits() // 8 for _, layer in packed_layers(model))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all settings; results are written after each."""
    from benchmarks.measuring import surroundings, write_json
    from evalharness.models.tinyworld import TinyWorld

    given = arguments(argv)
    loaded = TinyWorld().load("cpu")
    facts = {
        **surroundings(CPU),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "model": "tinyworld",
    }
    settings: dict[str, Any] = {}
    for threads, bits in itertools.product(given.threads, given.bits):
        torch.set_num_threads(threads)
        name = f"{bits}, threads {threads}"
        settings[name] = found = measure(loaded, bits, given.repeats, given.limit_s)
        ratios = {
            kind: {key: value[kind] for key, value in settings.items()}
            for kind in ("ratios", "processor_ratios")
        }
        write_json(given.output, {**ratios, **facts, "settings": settings})
        print(f"{name}: {found['ratios']}, processor: {found['processor_ratios']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
