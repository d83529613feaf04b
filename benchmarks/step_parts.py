"""Variants of ``benchmarks/step.py`` and the turns they take."""

from __future__ import annotations

import argparse
import copy
import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.full_models import MODELS, bf16_model, inputs, packed_model, tokens
from benchmarks.measuring import Deadline, in_turns, peak_mb, ratio, recorded, wait
from evalharness.conditions import clocks, conditions
from evalharness.cost import executed_as
from evalharness.peers import AbsentError, build_peer, held_bytes
from evalharness.timing import spread
from qvgen.integrations.attention import attend_in_8_bits_
from qvgen.integrations.timesteps import cache_timesteps_

PEER_OF = {
    "float8": "torchao-float8", "int8": "torchao-int8", "nf4": "bitsandbytes-nf4", "quanto": "quanto-int8",
}  # fmt: skip
BITS = {"w4a4": (4, 4), "w3a3": (3, 3), "w8a8": (8, 8)}
BEST_ATTENTION = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
WARM_UP = 2
KERNELS = 20
Call = Callable[[], Tensor]


def best_attention() -> AbstractContextManager[Any]:
    """CuDNN's kernel where it runs, then flash."""
    return sdpa_kernel(list(BEST_ATTENTION), set_priority=True)


def caller(model: nn.Module, given: Mapping[str, Any], *, best: bool) -> Call:
    """One call of ``model`` with the best attention, or torch's own choice."""

    def call() -> Tensor:
        with best_attention() if best else nullcontext():
            out: Tensor = model(**given)[0]
        return out

    return call


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The repeated blocks."""
    found = model.transformer_blocks if hasattr(model, "transformer_blocks") else model.blocks
    assert isinstance(found, nn.ModuleList)
    return found


def compiled(model: nn.Module, compiler: str) -> nn.Module:
    """Each block compiled in place: they share what is compiled."""
    torch._dynamo.config.recompile_limit = 64
    for block in blocks_of(model):
        block.compile(backend=compiler, fullgraph=True, dynamic=False)
    return model


def sharing_copy(model: nn.Module) -> nn.Module:
    """A second module with the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def linears_of(model: nn.Module) -> list[str]:
    """Names of the linears of the blocks: what peers change."""
    ours = {id(part) for block in blocks_of(model) for part in block.modules()}
    return [name for name, part in model.named_modules() if type(part) is nn.Linear and id(part) in ours]


def build(
    variant: str, name: str, base: nn.Module, given: argparse.Namespace
) -> tuple[nn.Module, Call | None]:
    """The model of a variant as it is called, and the call that its output is held against."""
    full, device, tiny = MODELS[name], next(base.parameters()).device, given.tiny
    x = inputs(full, device, tiny, given.samples)
    if variant in PEER_OF:
        return build_peer(PEER_OF[variant], base, linears_of(base), compiler=given.compiler), None
    if variant == "bf16_best":
        model = cache_timesteps_(sharing_copy(base), x["timestep"][:1])
        return compiled(model, given.compiler), caller(base, x, best=False)
    bits, _, how = variant.partition("_")
    model = packed_model(full, BITS[bits], device, tiny, fuse=how != "unfused")
    plain = packed_model(full, BITS[bits], device, tiny, fuse=False)
    if how == "attention8":
        if device.type != "cuda":
            raise AbsentError("8-bit attention needs an NVIDIA GPU")
        attend_in_8_bits_(model)
    model = cache_timesteps_(model, x["timestep"][:1])
    return (model if how == "eager" else compiled(model, given.compiler)), caller(plain, x, best=True)


def measure_model(name: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """All variants of one model, each in turns with both bfloat16 ones."""
    deadline, full = Deadline(limit_s), MODELS[name]
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind = device.type
    given.compiler = "eager" if given.tiny and given.compiler == "inductor" else given.compiler
    x = inputs(full, device, given.tiny, given.samples)
    given.warm = False
    attention = "torch's choice for bf16_eager, attention_of_best for the others"
    found: dict[str, Any] = {
        "ratios": {},
        "tokens": tokens(full, given.tiny),
        "samples": given.samples,
        "compiler": given.compiler,
        "attention_of_best": [backend.name for backend in BEST_ATTENTION],
        "skipped": {},
        "variants": {},
        "conditions": {**conditions(kind, attention, None), "compile": f"{given.compiler}, but bf16_eager"},
    }
    with torch.no_grad():  # as diffusers' pipelines; tensors of other libraries take no inference mode
        base = bf16_model(full, device, given.tiny)
        calls = {"bf16_eager": caller(base, x, best=False)}
        try:
            best_model, reference = build("bf16_best", name, base, given)
            best = caller(best_model, x, best=True)
            found["bf16_best_to_eager_distance"] = distance(best(), reference)
            calls["bf16_best"] = best
            found["bf16_best_kernels"] = kernels_of(best, device)
        except Exception as error:  # the packed ones can still be held against the eager one
            found["error"] = found["skipped"]["bf16_best"] = failure(error)
        for variant in given.variants:
            if deadline.passed:
                found["skipped"][variant] = "no time was left"
                continue
            try:
                entry = measure_variant(variant, name, base, calls, x, given, deadline)
            except AbsentError as error:
                found["skipped"][variant] = str(error)
            except Exception as error:  # one variant must not cost the others their time
                found["error"] = found["skipped"][variant] = failure(error)
            else:
                found["variants"][variant] = entry
                found["ratios"][variant] = entry.pop("ratios")
            said = found["ratios"].get(variant, found["skipped"].get(variant))
            print(f"  {name} {variant}: {said}", flush=True)
            given.save(found)
            gc.collect()
            if kind == "cuda":
                torch.cuda.empty_cache()
    found["clocks"] = clocks(kind)
    return found


def failure(error: Exception) -> str:
    """One line, with the place in the log."""
    traceback.print_exc()
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def kernels_of(call: Call, device: torch.device) -> list[dict[str, Any]]:
    """What one call spends its time in, by torch's profiler: the largest first, ``ms`` of all launches."""
    on_gpu = device.type == "cuda"
    try:
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            call()
            wait(device)
        name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        rows = sorted(seen.key_averages(), key=lambda row: getattr(row, name), reverse=True)
    except Exception as error:  # a machine without counters must not cost the times
        return [{"error": failure(error)}]
    return [
        {"name": row.key[:100], "launches": row.count, "ms": round(getattr(row, name) / 1e3, 4)}
        for row in rows[:KERNELS]
    ]


def measure_variant(
    variant: str, name: str, base: nn.Module, calls: dict[str, Call], x: Mapping[str, Any],
    given: argparse.Namespace, deadline: Deadline,
) -> dict[str, Any]:  # fmt: skip
    """Times in turns, memory of a call, and how far the output is from the plain way's."""
    model, reference = build(variant, name, base, given)
    device = next(base.parameters()).device
    ours = caller(model, x, best=True)
    apart = distance(ours(), reference)
    reference = None  # a second packed model: its memory goes before anything is measured
    gc.collect()
    timed: dict[str, Callable[[], object]] = {**calls, variant: ours}
    if variant.endswith("_graph"):
        timed[variant] = recorded([ours], device)
    times = turns(timed, device, given.repeats, deadline, warm=tuple(calls) if given.warm else ())
    given.warm = (
        True  # both bfloat16 ones have run: one call, to have the clock as it is under load, is enough
    )
    medians = {key: value["ms"] for key, value in times.items()}
    return {
        "ratios": {f"to_{key}": ratio(medians[key], medians[variant]) for key in calls},
        "times": times,
        "execution": executed_as(model) or "real",
        "distance_to_plain_execution": apart,
        "weights_mb": held_bytes(model) / 1e6,
        "peak_mb_with_bf16_held": peak_mb(ours, device),
        "kernels": kernels_of(ours, device),
    }


def distance(output: Tensor, reference: Call | None) -> float | None:
    """Relative, of all elements together; None without a reference."""
    if reference is None:
        return None
    wanted = reference().float()
    return float((output.float() - wanted).norm() / wanted.norm())


def turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, deadline: Deadline,
    warm: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Milliseconds of each in turns; after the deadline no further turn begins, the first is finished.

    Those that are ``warm`` are called once before, the others more often.
    """
    warm_ups = {key: 1 if key in warm else WARM_UP for key in calls}
    times = in_turns(calls, device, repeats, deadline, warm_ups)
    return {key: {**spread([ms / 1e3 for ms in values]), "n": len(values)} for key, values in times.items()}
