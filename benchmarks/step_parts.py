"""Variants of ``benchmarks/step.py`` and the turns they take."""

from __future__ import annotations

import argparse
import copy
import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.full_models import MODELS, bf16_model, fill_, inputs, packed_model, tokens
from benchmarks.measuring import Deadline, Stopped, in_turns, peak_mb, ratio, recorded, stopped_after, wait
from evalharness.conditions import clocks, conditions
from evalharness.cost import executed_as
from evalharness.peers import AbsentError, build_peer, compiler_settings_kept, held_bytes
from evalharness.timing import spread
from qvgen.integrations.attention import attend_in_8_bits_
from qvgen.integrations.timesteps import Tabled, cache_timesteps_

PEER_OF = {
    "float8": "torchao-float8", "int8": "torchao-int8", "nf4": "bitsandbytes-nf4", "quanto": "quanto-int8",
}  # fmt: skip
BITS = {"w4a4": (4, 4), "w3a3": (3, 3), "w8a8": (8, 8)}
DEFAULT_BITS = "w4a4"
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


def what_is_compiled(model: nn.Module, compiler: str) -> str:
    """For the record, as the blocks themselves have it."""
    blocks = blocks_of(model)
    count = sum(getattr(block, "_compiled_call_impl", None) is not None for block in blocks)
    return f"{count} of {len(blocks)} blocks by {compiler}" if count else "nothing"


class Plain:
    """Both bfloat16 models, on one set of weights: those of the packed model that takes turns with them."""

    def __init__(self, name: str, given: argparse.Namespace, device: torch.device) -> None:
        self.full, self.given, self.device = MODELS[name], given, device
        self.model = bf16_model(self.full, device, given.tiny)
        self.best: nn.Module | None = None
        self.bits: tuple[int, int] | None = None
        self.x = inputs(self.full, device, given.tiny, given.samples)

    def build_best(self) -> nn.Module:
        """``bf16_best``: shares the weights of ``model``."""
        self.best = compiled(self._tabled(), self.given.compiler)
        return self.best

    def take(self, bits: tuple[int, int]) -> nn.Module:
        """Have the weights of the packed model of these bits, which is returned, unfused."""
        packed = packed_model(self.full, bits, self.device, self.given.tiny, fuse=False)
        if bits != self.bits:
            fill_(self.model, packed)
            self.bits = bits
            if self.best is not None:  # tables in place: nothing is compiled again
                old, new = (
                    [part.table for part in model.modules() if isinstance(part, Tabled)]
                    for model in (self.best, self._tabled())
                )
                for table, numbers in zip(old, new, strict=True):
                    table.copy_(numbers)
        return packed

    def _tabled(self) -> nn.Module:
        return cache_timesteps_(sharing_copy(self.model), self.x["timestep"][:1])


def bits_of(variant: str) -> tuple[int, int]:
    """Of weights and activations; those whose weights a peer is given."""
    return BITS[DEFAULT_BITS if variant in PEER_OF else variant.partition("_")[0]]


def build(variant: str, plain: Plain) -> tuple[nn.Module, Call | None]:
    """The model of a variant as it is called, and the call that its output is held against."""
    given, x, device = plain.given, plain.x, plain.device
    packed: nn.Module | None = plain.take(bits_of(variant))
    if variant in PEER_OF:
        packed = None
        model = build_peer(PEER_OF[variant], plain.model, linears_of(plain.model), compiler=given.compiler)
        if given.peer_tuner == "off":
            torch._inductor.config.coordinate_descent_tuning = False
        return model, None
    assert packed is not None
    how = variant.partition("_")[2]
    model = packed_model(plain.full, bits_of(variant), device, given.tiny, fuse=how != "unfused")
    if how == "attention8":
        if device.type != "cuda":
            raise AbsentError("8-bit attention needs an NVIDIA GPU")
        attend_in_8_bits_(model)
    model = cache_timesteps_(model, x["timestep"][:1])
    return (model if how == "eager" else compiled(model, given.compiler)), caller(packed, x, best=True)


def measure_model(name: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """All variants of one model, each in turns with both bfloat16 ones."""
    deadline, full = Deadline(limit_s), MODELS[name]
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind = device.type
    given.compiler = "eager" if given.tiny and given.compiler == "inductor" else given.compiler
    given.warm = False
    attention = "torch's choice for bf16_eager, attention_of_best for the others"
    found: dict[str, Any] = {
        "ratios": {},
        "tokens": tokens(full, given.tiny),
        "samples": given.samples,
        "compiler": given.compiler,
        "compiled": {"bf16_eager": "nothing"},
        "bf16_weights": "those that the codes of the variant in turn stand for; w4a4's beside peers",
        "attention_of_best": [backend.name for backend in BEST_ATTENTION],
        "skipped": {},
        "variants": {},
        "conditions": {**conditions(kind, attention, None), "compile": "see compiled"},
    }
    with torch.no_grad():  # as diffusers' pipelines; tensors of other libraries take no inference mode
        plain = Plain(name, given, device)
        plain.take(bits_of(given.variants[0]))
        calls = {"bf16_eager": caller(plain.model, plain.x, best=False)}
        try:
            best = caller(plain.build_best(), plain.x, best=True)
            found["bf16_best_to_eager_distance"] = distance(best(), calls["bf16_eager"])
            calls["bf16_best"] = best
            assert plain.best is not None
            found["compiled"]["bf16_best"] = what_is_compiled(plain.best, given.compiler)
            found["bf16_best_kernels"] = kernels_of(best, device)
        except Exception as error:  # the packed ones can still be held against the eager one
            found["error"] = found["skipped"]["bf16_best"] = failure(error)
        for variant in given.variants:
            if deadline.passed:
                found["skipped"][variant] = "no time was left"
                continue
            try:
                entry = measure_variant(variant, plain, calls, deadline)
            except (AbsentError, Stopped) as error:
                found["skipped"][variant] = str(error)
            except Exception as error:  # one variant must not cost the others their time
                found["error"] = found["skipped"][variant] = failure(error)
            else:
                found["variants"][variant] = entry
                found["ratios"][variant] = entry.pop("ratios")
                found["compiled"][variant] = entry["compiled"]
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


def measure_variant(variant: str, plain: Plain, calls: dict[str, Call], deadline: Deadline) -> dict[str, Any]:
    """Times in turns, memory of a call, and how far the output is from the plain way's.

    Raises:
        Stopped: it was not ready, which means compiled and called once, in the time of ``--variant-s``.
    """
    given, device, started = plain.given, plain.device, time.monotonic()
    is_peer = variant in PEER_OF
    limit_s = min(given.variant_s, deadline.left) if is_peer else given.variant_s
    with compiler_settings_kept():
        with stopped_after(limit_s):
            model, reference = build(variant, plain)
            ours = caller(model, plain.x, best=True)
            apart = distance(ours(), reference)
        ready_s = time.monotonic() - started
        reference = None  # a second packed model: its memory goes before anything is measured
        gc.collect()
        timed: dict[str, Callable[[], object]] = {**calls, variant: ours}
        if variant.endswith("_graph"):
            timed[variant] = recorded([ours], device)
        times = turns(timed, device, given.repeats, deadline, warm=tuple(calls) if given.warm else ())
    # Once both bfloat16 ones have run, one call is enough to have the clock as it is under load.
    given.warm = True
    medians = {key: value["ms"] for key, value in times.items()}
    return {
        "ratios": {f"to_{key}": ratio(medians[key], medians[variant]) for key in calls},
        "times": times,
        "ready_s": round(ready_s, 1),
        "compiled": what_is_compiled(model, given.compiler)
        + (f", tuner: {given.peer_tuner}" if is_peer else ""),
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
