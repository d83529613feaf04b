"""Part ``peers`` of ``benchmarks/linear.py``: the linears of a block as other libraries run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.int8_layers import BF16, BLOCKS, TINY_BLOCKS, Group, packed_group, plain_group
from benchmarks.linear_parts import Save, Times, forget, timed
from benchmarks.measuring import Deadline, ratio
from evalharness.peers import AbsentError, build_peer, held_bytes
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
    save: Save = forget,
) -> dict[str, Any]:  # fmt: skip
    """Each peer in turns with ``F.linear`` in bfloat16 and with ours at W4A4, as CUDA graphs.

    A peer runs as its library gives it, under ``torch.compile``; each of its linears quantizes its own input.
    """
    deadline = Deadline(limit_s)
    found: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name, groups in (TINY_BLOCKS if tiny else BLOCKS).items():
        torch.manual_seed(0)
        inputs = [torch.randn(1, g.tokens, g.columns, device=device, dtype=BF16) for g in groups]
        weights = [plain_group(g, device) for g in groups]
        ours = [packed_group(g, 4, device, True, uniform) for g in groups]
        plain = Model(Linears(groups, weights))
        names = [f"blocks.0.layers.{i}" for i in range(sum(len(pairs) for pairs in weights))]
        for peer in PEERS:
            if deadline.passed:
                skipped[f"{name} {peer}"] = "no time was left"
                continue
            try:
                theirs = build_peer(peer, plain, names, compiler="eager" if tiny else "inductor")
                entry = in_turns_with(plain, theirs, peer, inputs, ours, device, repeats, deadline)
            except AbsentError as error:
                skipped[f"{name} {peer}"] = str(error)
                continue
            ratios.setdefault(name, {})[peer] = entry.pop("ratios")
            found.setdefault(name, {})[peer] = entry
            print(f"  {name} {peer}: {ratios[name][peer]}", flush=True)
            save({"ratios": ratios, "blocks": found, "skipped": skipped})
            del theirs
            torch.compiler.reset()
    return {"ratios": ratios, "blocks": found, "skipped": skipped}


def in_turns_with(
    plain: nn.Module, theirs: nn.Module, peer: str, inputs: list[Tensor], ours: Sequence[list[Any]],
    device: torch.device, repeats: int, deadline: Deadline,
) -> dict[str, Any]:  # fmt: skip
    """Times of the three, the peer's distance from bfloat16, and what each holds for its weights."""
    exact, got = plain(inputs), theirs(inputs)
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
