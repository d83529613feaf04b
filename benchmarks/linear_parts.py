"""Parts of ``benchmarks/linear.py``: kernels alone, and the linears of one block together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.int8_layers import (
    BF16,
    BLOCKS,
    TINY_BLOCKS,
    Group,
    drawn_tokens,
    packed_group,
    packed_layer,
    plain_group,
    shapes,
    worst_error,
)
from benchmarks.measuring import Deadline, compare, ratio, recorded
from benchmarks.tune_rows import Case, cases, draw
from qvgen.packed.layout import row_bytes
from qvgen.packed.triton_linear import (
    Int8Weight,
    expand_codes,
    int8_linears,
    multiply,
)
from qvgen.packed.triton_table import Tiles, parse

BITS = (4, 3)
SETS = 3
Times = dict[str, Any]
Save = Callable[[dict[str, Any]], None]


def forget(found: dict[str, Any]) -> None:
    """Keep nothing of a part before it ends."""


def all_shapes(tiny: bool) -> list[tuple[int, int, int]]:
    """(tokens, rows, columns) of all blocks' products."""
    blocks = TINY_BLOCKS if tiny else BLOCKS
    return list(dict.fromkeys(shape for groups in blocks.values() for shape in shapes(groups)))


def timed(
    variants: dict[str, Sequence[Callable[[], object]]],
    device: torch.device,
    repeats: int,
    deadline: Deadline,
) -> Times:
    """Times of one action of each variant, whose actions are recorded as one graph."""
    graphs = {name: recorded(actions, device) for name, actions in variants.items()}
    times: Times = compare(graphs, device, repeats, deadline)
    for name, found in times.items():
        for key in ("median_ms", "min_ms", "max_ms"):
            found[key] /= len(variants[name])
    return times


def equal_warps(m: int, n: int, k: int) -> Tiles | None:
    """The fastest tiles without jobs that were tried, where the table has taken some with jobs."""
    text = files("qvgen.packed").joinpath("triton_table.json").read_text()
    return next((e.equal for e in parse(text)[0] if (e.m, e.n, e.k) == (m, n, k)), None)


def measure_gemm(
    device: torch.device, tiny: bool, repeats: int, limit_s: float, uniform: bool = False,
    save: Save = forget,
) -> dict[str, Any]:  # fmt: skip
    """The integer product with its full epilogue, beside one bfloat16 product, in PFLOP/s.

    ``int8_equal_warps`` is the best of the other kernel where one whose warps have jobs is taken;
    ``int8_from_zero`` multiplies weight codes as they are, 0 and up, not centred ones: the same results.
    """
    deadline, found, ratios = Deadline(limit_s), {}, {}
    one = torch.ones(1, device=device)
    for m, n, k in all_shapes(tiny):
        if deadline.passed:
            break
        weight = packed_layer(n, k, 4, device, one, one, uniform)
        expanded = expand_codes(weight.codes, 4, weight.shape)
        from_zero = replace(weight, zero_point=weight.zero_point + 8)  # the kernel takes 8 off again
        (plain,) = plain_group(Group("", m, k, (n,)), device)
        tokens = [drawn_tokens(m, k, 4, device, uniform) for _ in range(1 if tiny else SETS)]
        inputs = [torch.randn(m, k, device=device, dtype=BF16) for _ in tokens]
        other = equal_warps(m, n, k)
        variants: dict[str, Sequence[Callable[[], object]]] = {
            "int8": [partial(multiply, t, expanded, weight, BF16) for t in tokens],
            "bf16": [partial(nn.functional.linear, x, *plain) for x in inputs],
            "int8_from_zero": [partial(multiply, t, expanded + 8, from_zero, BF16) for t in tokens],
        }
        if other is not None:
            variants["int8_equal_warps"] = [
                partial(multiply, t, expanded, weight, BF16, other) for t in tokens
            ]
        times = timed(
            variants,
            device,
            repeats,
            deadline,
        )
        work = 2e-12 * m * n * k
        for variant in times.values():
            variant["pflop_per_s"] = work / variant["median_ms"]
        found[f"{m}x{n}x{k}"] = times
        ratios[f"{m}x{n}x{k}"] = {
            "int8_pflop_per_s": ratio(times["int8"]["pflop_per_s"], 1),
            "to_bf16": ratio(times["bf16"]["median_ms"], times["int8"]["median_ms"]),
            **{
                f"to_{name}": ratio(times[name]["median_ms"], times["int8"]["median_ms"])
                for name in times
                if name.startswith("int8_")
            },
        }
        print(f"  {m}x{n}x{k}: {ratios[f'{m}x{n}x{k}']}", flush=True)
        save({"ratios": ratios, "shapes_m_n_k": found})
        del tokens, inputs, expanded, plain, weight
    return {"ratios": ratios, "shapes_m_n_k": found}


def measure_prologue(device: torch.device, tiny: bool, repeats: int, limit_s: float) -> dict[str, Any]:
    """Quantizing tokens, beside copies of as many bytes: the driver's, and an elementwise kernel of torch's.

    Plain, and as blocks read them: behind GELU, behind a norm with modulation, and for three layers that clip
    each their own way (q, k, v). The share is of the faster copy: on an H200 the driver's moved hardly more
    than half of what memory can.
    """
    deadline, found = Deadline(limit_s), {}
    ratios: dict[str, dict[str, Any]] = {}
    for kind in ("plain", "gelu", "norm", "plain_groups", "norm_groups"):
        shapes, shares = found.setdefault(kind, {}), ratios.setdefault(kind, {})
        for case in dict.fromkeys(case for case in cases(tiny) if case.kind == kind):
            if deadline.passed:
                break
            shape = f"{case.tokens}x{case.columns}"
            shapes[shape] = times = _prologue_times(case, device, tiny, repeats, deadline)
            copied = min(times[name]["median_ms"] for name in ("copy", "copy_by_kernel"))
            shares[shape] = ratio(copied, times["quantize"]["median_ms"])
    plain, others = found.pop("plain"), {kind: shapes for kind, shapes in found.items() if shapes}
    shares = {"share_of_copy_bandwidth": ratios.pop("plain")}
    shares |= {f"{kind}_share_of_copy_bandwidth": ratios[kind] for kind in others}
    return {"ratios": shares, "shapes_m_k": plain, "kinds_shapes_m_k": others}


def _prologue_times(case: Case, device: torch.device, tiny: bool, repeats: int, deadline: Deadline) -> Times:
    actions = [draw(case, device, seed)[0] for seed in range(1 if tiny else SETS)]
    sources = [torch.empty(case.bytes_moved // 8, dtype=torch.int32, device=device) for _ in actions]
    targets = [torch.empty_like(s) for s in sources]
    copies = list(zip(targets, sources, strict=True))
    variants: dict[str, Sequence[Callable[[], object]]] = {
        "quantize": actions,
        "copy": [partial(t.copy_, s) for t, s in copies],
        "copy_by_kernel": [partial(torch.bitwise_not, s, out=t) for t, s in copies],
    }
    times = timed(variants, device, repeats, deadline)
    for variant in times.values():
        variant["tb_per_s"] = case.bytes_moved / variant["median_ms"] / 1e9
    return times


def measure_expand(device: torch.device, tiny: bool, repeats: int, limit_s: float) -> dict[str, Any]:
    """Unpacking weights of each width; the matrices take turns so that none is found in the cache."""
    deadline, found = Deadline(limit_s), {}
    for n, k in dict.fromkeys((n, k) for _, n, k in all_shapes(tiny)):
        if deadline.passed:
            break
        variants: dict[str, Sequence[Callable[[], object]]] = {}
        for bits in (2, 3, 4, 8):
            streams = [
                torch.randint(0, 256, (n, row_bytes(k, bits)), device=device, dtype=torch.uint8)
                for _ in range(1 if tiny else 2 * SETS)
            ]
            variants[str(bits)] = [partial(expand_codes, s, bits, (n, k)) for s in streams]
        times = timed(variants, device, repeats, deadline)
        for width, variant in times.items():
            variant["tb_per_s"] = n * (k + row_bytes(k, int(width))) / variant["median_ms"] / 1e9
        found[f"{n}x{k}"] = times
    return {"ratios": {}, "matrices_n_k": found}


def _plain(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [nn.functional.linear(x, weight, bias) for weight, bias in layers]


def _all(actions: Sequence[Callable[[], object]]) -> None:
    for action in actions:
        action()


def measure_block(
    name: str, device: torch.device, tiny: bool, repeats: int, limit_s: float, uniform: bool = False,
    save: Save = forget,
) -> dict[str, Any]:  # fmt: skip
    """Linears of one block: ours with quantizing and expanding, and ``F.linear`` in bfloat16.

    ``save`` gets what is known as soon as the whole block is timed, and after each of its groups.
    """
    deadline = Deadline(limit_s)
    groups = (TINY_BLOCKS if tiny else BLOCKS).get(name)
    if groups is None:
        return {"ratios": {}, "skipped": "not in --tiny"}
    torch.manual_seed(0)
    inputs = [torch.randn(1, g.tokens, g.columns, device=device, dtype=BF16) for g in groups]
    plain = [plain_group(g, device) for g in groups]
    layers = {bits: [packed_group(g, bits, device, True, uniform) for g in groups] for bits in BITS}
    shared = [packed_group(g, 4, device, False, uniform) for g in groups]
    variants: dict[str, list[Callable[[], object]]] = {
        "bf16": [partial(_plain, x, p) for x, p in zip(inputs, plain, strict=True)],
        **{f"w{b}a{b}": _ours(inputs, layers[b]) for b in BITS},
        "w4a4_shared_clips": _ours(inputs, shared),
    }
    wholes: dict[str, Callable[[], object]] = {n: partial(_all, actions) for n, actions in variants.items()}
    errors = _errors(groups, inputs, layers)
    graphs = timed({n: [whole] for n, whole in wholes.items()}, device, repeats, deadline)
    eager: Times = {}
    each: dict[str, Times] = {}
    known = {
        "groups": {g.name: {"tokens": g.tokens, "in": g.columns, "out": g.rows} for g in groups},
        "as_graphs": graphs,
        "eager": eager,
        "each": each,
        "errors_in_roundings": errors,
    }
    names = [n for n in variants if n != "bf16"]

    def found() -> dict[str, Any]:
        ratios = {
            **{f"{n}_as_graph": _speed(graphs, n) for n in names},
            **{f"{n}_eager": _speed(eager, n) for n in names if eager},
            "each_as_graph": {g: {n: _speed(t, n) for n in t if n != "bf16"} for g, t in each.items()},
            "worst_error_in_roundings": max(errors.values(), default=None),
        }
        return {"ratios": ratios, **known}

    print(f"  {name}: " + ", ".join(f"{n} {_speed(graphs, n)}" for n in names), flush=True)
    save(found())
    eager |= compare(wholes, device, repeats, deadline)
    save(found())
    for i, group in enumerate(groups):
        if deadline.passed:
            break
        each[group.name] = timed({n: [a[i]] * 2 for n, a in variants.items()}, device, repeats, deadline)
        save(found())
    return found()


def _ours(inputs: Sequence[Tensor], layers: Sequence[list[Int8Weight]]) -> list[Callable[[], object]]:
    return [partial(int8_linears, x, group) for x, group in zip(inputs, layers, strict=True)]


def _speed(times: Times, name: str) -> float | None:
    return ratio(times["bf16"]["median_ms"], times[name]["median_ms"])


def _errors(
    groups: Sequence[Group], inputs: Sequence[Tensor], layers: dict[int, list[list[Int8Weight]]]
) -> dict[str, float]:
    found = {}
    for bits, blocks in layers.items():
        for group, x, weights in zip(groups, inputs, blocks, strict=True):
            for i, (weight, y) in enumerate(zip(weights, int8_linears(x, weights), strict=True)):
                found[f"w{bits}a{bits} {group.name} {i}"] = worst_error(x, weight, y)
    return found
