"""What packed transformers of full size take: weights, loading a folder, one denoising call.

    python benchmarks/memory.py --output results/benchmarks/memory.json

Parts: ``weights`` (bytes of all three models in bfloat16, counted, and packed, as the allocator has
them), ``load`` (a packed folder, in a process of its own, tensor by tensor and by diffusers'
``from_pretrained``) and ``denoise`` (a call of Wan2.1-14B at 480 x 832, 81 frames). ``--tiny`` runs all of
it in small on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {"weights": 60.0, "load": 150.0, "denoise": 90.0}
BITS = ((4, 4), (3, 3), (8, 8))
ROOM_GB = 12.0  # what the 14B transformer is to denoise in


def weights(given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Bytes of quantized linears and of whole models, bfloat16 over packed."""
    from benchmarks.driver import on_device
    from benchmarks.full_models import MODELS, packed_model
    from benchmarks.measuring import Deadline, held_mb, ratio
    from qvgen.packed.convert import packed_layers

    deadline, device, found, ratios = Deadline(limit_s), on_device(), {}, {}
    for name, full in MODELS.items():
        for bits in BITS:
            if deadline.passed:
                break
            free_()
            before = held_mb(device)
            model = packed_model(full, bits, device, given.tiny)
            after = held_mb(device)
            layers = [layer for _, layer in packed_layers(model)]
            numbers = sum(layer.in_features * layer.out_features for layer in layers)
            packed = sum(layer.stored_bits() // 8 for layer in layers)
            tensors = [*model.parameters(), *model.buffers()]
            total = sum(t.numel() * t.element_size() for t in tensors)
            inside = sum(
                t.numel() * t.element_size()
                for layer in layers
                for t in [*layer.parameters(), *layer.buffers()]
            )
            label = f"{name} w{bits[0]}"
            found[label] = {
                "quantized_weights": numbers,
                "bf16_of_quantized_mb": 2 * numbers / 1e6,
                "packed_mb": packed / 1e6,
                "whole_model_mb": total / 1e6,
                "held_on_device_mb": None if before is None or after is None else after - before,
            }
            ratios[label] = {
                "quantized": ratio(2 * numbers, packed),
                "whole_model": ratio(2 * numbers + total - inside, total),
            }
            del model, layers, tensors
            given.save({"ratios": ratios, "models": found})
    return {"ratios": ratios, "models": found}


def free_() -> None:
    """Give back what nothing refers to any more: models have cycles, which wait for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load(given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Peaks over the packed size of both ways to load."""
    from benchmarks.driver import on_device
    from benchmarks.full_models import MODELS, packed_model
    from benchmarks.measuring import ROOT, Deadline, ratio
    from qvgen.integrations.diffusers import attach_

    device, deadline, found, ratios = on_device(), Deadline(limit_s), {}, {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        model: Any = attach_(packed_model(MODELS[given.load_model], (4, 4), device, given.tiny))
        model.save_pretrained(scratch, max_shard_size="4GB")
        del model
        free_()
        for how in ("stream", "from_pretrained"):
            done = subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / "load_once.py"), scratch, "--how", how,
                 "--device", str(device)],
                capture_output=True, text=True, check=False, timeout=max(1.0, deadline.left),
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{how}: {(done.stderr.splitlines() or ['no word'])[-1]}")
            found[how] = entry = json.loads(done.stdout.splitlines()[-1])
            ratios[how] = {
                "host_peak_to_disk": ratio(entry["host_peak"], entry["disk"]),
                "device_peak_to_disk": ratio(entry["device_peak"], entry["disk"]),
            }
            given.save({"ratios": ratios, "model": given.load_model, "loads": found})
    return {"ratios": ratios, "model": given.load_model, "loads": found}


def denoise(given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Peak of one call with nothing else on the device; again where the allocator may take ``ROOM_GB``."""
    from benchmarks.driver import on_device
    from benchmarks.full_models import MODELS, inputs, packed_model, tokens
    from benchmarks.measuring import Deadline, held_mb
    from benchmarks.step_parts import caller
    from evalharness.memory import peak_within

    device, deadline, full = on_device(), Deadline(limit_s), MODELS["wan_14b"]
    found: dict[str, Any] = {}
    gigabytes: dict[str, float | None] = {}
    size = tokens(full, given.tiny)
    result = {"ratios": {"peak_allocated_gb": gigabytes}, "tokens": size, "calls": found}
    for bits in BITS:
        if deadline.passed:
            break
        free_()
        model = packed_model(full, bits, device, given.tiny)
        call = caller(model, inputs(full, device, given.tiny), best=True)
        with torch.inference_mode():
            call()
            with peak_within(device.type) as peak:
                call()
        found[f"w{bits[0]}a{bits[1]}"] = {
            "held_mb": held_mb(device),
            "allocated_mb": None if peak.allocated is None else peak.allocated / 1e6,
            "reserved_mb": None if peak.reserved is None else peak.reserved / 1e6,
            "process_mb": None if peak.process is None else peak.process / 1e6,
            "device_mb": None if peak.device is None else peak.device / 1e6,
        }
        found[f"w{bits[0]}a{bits[1]}"]["reserved_mb_in_room"] = reserved_within(call, device, ROOM_GB)
        del model, call
        gigabytes[f"w{bits[0]}a{bits[1]}"] = None if peak.allocated is None else peak.allocated / 1e9
        given.save(result)
    return result


def reserved_within(call: Callable[[], object], device: torch.device, room_gb: float) -> float | None:
    """MB that the allocator keeps for a call if it may keep ``room_gb``; None if that is too little.

    What it keeps in a roomy GPU does not tell what a small one needs: it frees leftovers when it has to.
    """
    if device.type != "cuda":
        return None
    free_()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_per_process_memory_fraction(room_gb * 1e9 / torch.cuda.mem_get_info(device)[1], device)
    try:
        with torch.inference_mode():
            call()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return torch.cuda.max_memory_reserved(device) / 1e6


PARTS: dict[str, Callable[[argparse.Namespace, float], dict[str, Any]]] = {
    "weights": weights,
    "load": load,
    "denoise": denoise,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import command_line, limit_s, parsed, run_parts

    parser = command_line(__doc__, "memory.json", limits_s=LIMITS_S)
    models = ("cog_2b", "wan_1_3b", "wan_14b")
    parser.add_argument("--load-model", choices=models, default="wan_14b", help="part load: which")
    parser.add_argument("--scratch", type=Path, help="part load: where the folder is written for a while")
    given = parsed(parser, argv, PARTS)
    return run_parts(given.parts, lambda part: PARTS[part](given, limit_s(given, part)), given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
