"""Part ``peers`` of ``benchmarks/linear.py``: the linears of a block as other libraries run them."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.int8_layers import BF16, BLOCKS, TINY_BLOCKS, Group, packed_group, plain_group
from benchmarks.linear_parts import Save, Times, forget, timed
from benchmarks.measuring import Deadline, Stopped, ratio, stopped_after
from evalharness.peers import AbsentError, build_peer, compiler_settings_kept, held_bytes
from qvgen.packed.triton_linear import int8_linears

PEERS = ("torchao-float8", "torchao-int8")


class Linears(nn.Module):
    """The linears of one block, each called with the input of its group."""

    def __init__(self, groups: Sequence[Group], weights: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        super().__init__()
        self.groups = [len(group.rows) for group in groups]
        self.layers = nn.ModuleList()
        for pairs in weights:
            for weight, bias in pairs:
                layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
                layer.weight, layer.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
                self.layers.append(layer)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        of = [x for x, count in zip(inputs, self.groups, strict=True) for _ in range(count)]
        return [layer(x) for layer, x in zip(self.layers, of, strict=True)]


class Model(nn.Module):
    """One block, where a peer looks for blocks."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        out: list[Tensor] = self.blocks[0](inputs)
        return out


def measure_peers(
    device: torch.device, tiny: bool, repeats: int, limit_s: float, uniform: bool = False,
    save: Save = forget, *, blocks: Sequence[str], each_s: float, tuner: bool,
) -> dict[str, Any]:  # fmt: skip
    """Each peer in turns with ``F.linear`` in bfloat16 and with ours at W4A4, as CUDA graphs.

    A peer runs as its library gives it, under ``torch.compile``; each of its linears quantizes its own input.
    All ``blocks`` in their order with the first peer, then with the next.

    Args:
        device: where.
        tiny: small blocks.
        repeats: turns.
        limit_s: for all; what has not begun then is left out.
        uniform: see ``drawn_codes``.
        save: is given what is known after each.
        blocks: names of ``BLOCKS``.
        each_s: for one peer on one block: if it is not compiled by then, it is given up.
        tuner: whether a library may turn on its compiler's tuner.
    """
    deadline, known = Deadline(limit_s), TINY_BLOCKS if tiny else BLOCKS
    found: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    whole: dict[str, Any] = {"ratios": ratios, "blocks": found, "skipped": skipped, "tuner": tuner}
    for peer in PEERS:
        for name in (name for name in blocks if name in known):
            if deadline.passed:
                skipped[f"{name} {peer}"] = "no time was left"
                continue
            try:
                with compiler_settings_kept():
                    entry = measure_peer(
                        peer, known[name], device, tiny, repeats, deadline, uniform, each_s, tuner
                    )
            except (AbsentError, Stopped) as error:
                skipped[f"{name} {peer}"] = str(error)
                print(f"  {name} {peer}: {error}", flush=True)
            except Exception as error:  # one must not cost the others their time
                traceback.print_exc()
                whole["error"] = skipped[f"{name} {peer}"] = f"{type(error).__name__}: {error}"
            else:
                ratios.setdefault(name, {})[peer] = entry.pop("ratios")
                found.setdefault(name, {})[peer] = entry
                print(f"  {name} {peer}: {ratios[name][peer]}", flush=True)
            save(whole)
            torch.compiler.reset()
            gc.collect()
    return whole


def measure_peer(
    peer: str, groups: list[Group], device: torch.device, tiny: bool, repeats: int, deadline: Deadline,
    uniform: bool, each_s: float, tuner: bool,
) -> dict[str, Any]:  # fmt: skip
    """One peer on one block."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, g.tokens, g.columns, device=device, dtype=BF16) for g in groups]
    weights = [plain_group(g, device) for g in groups]
    ours = [packed_group(g, 4, device, True, uniform) for g in groups]
    plain = Model(Linears(groups, weights))
    names = [f"blocks.0.layers.{i}" for i in range(sum(len(pairs) for pairs in weights))]
    began = time.monotonic()
    with stopped_after(min(each_s, deadline.left)):
        theirs = build_peer(peer, plain, names, compiler="eager" if tiny else "inductor")
        if not tuner:
            torch._inductor.config.coordinate_descent_tuning = False
        got = theirs(inputs)
    ready_s = round(time.monotonic() - began, 1)
    return in_turns_with(plain, theirs, got, peer, inputs, ours, device, repeats, deadline) | {
        "ready_s": ready_s
    }


def in_turns_with(
    plain: nn.Module, theirs: nn.Module, got: list[Tensor], peer: str, inputs: list[Tensor],
    ours: Sequence[list[Any]], device: torch.device, repeats: int, deadline: Deadline,
) -> dict[str, Any]:  # fmt: skip
    """Times of the three, the peer's distance from bfloat16, and what each holds for its weights."""
    exact = plain(inputs)
    actions: dict[str, Sequence[Callable[[], object]]] = {
        "bf16": [partial(plain, inputs)],
        peer: [partial(theirs, inputs)],
        "w4a4": [partial(packed, inputs, ours)],
    }
    times: Times = timed(actions, device, repeats, deadline)
    medians = {key: value["median_ms"] for key, value in times.items()}
    held = {
        "bf16": held_bytes(plain) / 1e6,
        peer: held_bytes(theirs) / 1e6,
        "w4a4": sum(weight_bytes(weight) for group in ours for weight in group) / 1e6,
    }
    apart = sum(float((g.float() - e.float()).square().sum()) for g, e in zip(got, exact, strict=True))
    size = sum(float(e.float().square().sum()) for e in exact)
    return {
        "ratios": {
            f"{peer}_to_bf16": ratio(medians["bf16"], medians[peer]),
            "w4a4_to_bf16": ratio(medians["bf16"], medians["w4a4"]),
            f"w4a4_to_{peer}": ratio(medians[peer], medians["w4a4"]),
            f"weights_of_{peer}_to_w4a4": ratio(held[peer], held["w4a4"]),
        },
        "times": times,
        "weights_mb": held,
        "distance_from_bf16": (apart / size) ** 0.5,
    }


def packed(inputs: Sequence[Tensor], groups: Sequence[list[Any]]) -> list[list[Tensor]]:
    """Outputs of our linears."""
    return [int8_linears(x, group) for x, group in zip(inputs, groups, strict=True)]


def weight_bytes(weight: Any) -> int:
    """Bytes of codes, scales, zero points and bias."""
    tensors = (weight.codes, weight.scale, weight.zero_point, weight.bias)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
