"""Phi of every layer of a full-size CogVideoX-2B: its start and the halving of its rank."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import Deadline, ratio, seconds
from benchmarks.qat_training import transformer
from qvgen import api
from qvgen.auxiliary import Phi, by_shape, refactor_all_
from qvgen.config import QuantConfig
from qvgen.linear import QuantLinear
from qvgen.phi_init import attach_phis_, quantization_error

RANK = 32
QUANT = QuantConfig(w_bits=4, a_bits=4, learn_clip=True)


def measure_phi(device: torch.device, tiny: bool, repeats: int, limit_s: float) -> dict[str, Any]:
    """Range search and leading factors of all layers, one rank halving, full SVDs for comparison."""
    deadline = Deadline(limit_s)
    model = transformer(device, tiny)
    range_s = seconds(lambda: api.quantize_(model, QUANT), device)
    layers = [layer for _, layer in api.quant_layers(model)]
    print(f"  phi, range search: {range_s:.1f} s", flush=True)
    factors, attached = _attach(layers, device, deadline)
    print(f"  phi, leading factors: {sum(factors.values()):.1f} s", flush=True)
    phis = [layer.phi for layer in attached if layer.phi is not None]
    halving_s, error = _halve(phis, device, repeats)
    svds = _full_svds(phis, device, deadline)
    extrapolated = sum(svd["seconds"] * svd["layers"] for svd in svds.values())
    timed = sum(svd["layers"] for svd in svds.values())
    return {
        "ratios": {
            "init_s": range_s + sum(factors.values()),
            "halving_s": halving_s,
            "full_svds_to_halving": ratio(extrapolated, halving_s),
            "reconstruction_error": error,
        },
        "layers": len(layers),
        "layers_with_phi": len(attached),
        "layers_in_svd_estimate": timed,
        "rank": RANK,
        "range_search_s": range_s,
        "leading_factors_s": factors,
        "full_svds": svds,
        "full_svds_all_layers_s": extrapolated,
        "captured_energy": _captured_energy(attached, deadline),
    }


def _attach(
    layers: Sequence[QuantLinear], device: torch.device, deadline: Deadline
) -> tuple[dict[str, float], list[QuantLinear]]:
    """Seconds per shape, and the layers that have a Phi now; the deadline may leave shapes out."""
    groups: dict[tuple[int, ...], list[QuantLinear]] = {}
    for layer in layers:
        groups.setdefault(tuple(layer.weight.shape), []).append(layer)
    took: dict[str, float] = {}
    done: list[QuantLinear] = []
    for shape, group in sorted(groups.items(), key=lambda item: min(item[0])):
        if done and deadline.passed:
            break
        took[str(shape)] = seconds(partial(attach_phis_, group, RANK, "error"), device)
        done += group
    return took, done


@torch.no_grad()
def _halve(phis: Sequence[Phi], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of re-factorising every Phi, and the worst relative error of a product L R.

    The factors are turned and disturbed first, as by training: those of the start are sorted already.
    The time is that of half the columns; the error that of keeping all of them.
    """
    for phi in phis:
        turn = torch.linalg.qr(torch.randn(phi.rank, phi.rank, device=device))[0]
        for factor, turned in ((phi.L, phi.L @ turn), (phi.R, turn.mT @ phi.R)):
            factor.copy_(turned + 0.1 * turned.std() * torch.randn_like(turned))
    kept = [phi.L.clone() for phi in phis], [phi.R.clone() for phi in phis]

    def restore() -> None:
        for phi, left, right in zip(phis, *kept, strict=True):
            phi.L.copy_(left)
            phi.R.copy_(right)

    refactor_all_(phis, RANK)
    error = max(
        float((phi.L.double() @ phi.R.double() - (was := a.double() @ b.double())).norm() / was.norm())
        for phi, a, b in zip(phis, *kept, strict=True)
    )
    times = []
    for _ in range(max(3, min(repeats, 10))):
        restore()
        times.append(seconds(lambda: refactor_all_(phis, RANK // 2), device))
    restore()
    return statistics.median(times), error


@torch.no_grad()
def _full_svds(phis: Sequence[Phi], device: torch.device, deadline: Deadline) -> dict[str, dict[str, Any]]:
    """Of one product L R per shape, after a warm-up: seconds, and how many layers have it."""
    found: dict[str, dict[str, Any]] = {}
    for group in sorted(by_shape(phis), key=len, reverse=True):
        if found and deadline.passed:
            break
        product = group[0].L @ group[0].R
        times = [seconds(partial(torch.linalg.svd, product, full_matrices=False), device) for _ in range(2)]
        found[str(tuple(product.shape))] = {"seconds": times[-1], "layers": len(group)}
    return found


@torch.no_grad()
def _captured_energy(layers: Sequence[QuantLinear], deadline: Deadline) -> dict[str, float]:
    """Energy of the error that Phi takes away over the most that its rank can, in float64.

    One layer of each of the three commonest shapes.
    """
    counts = Counter(tuple(layer.weight.shape) for layer in layers)
    found: dict[str, float] = {}
    for shape, _ in counts.most_common(3):
        if found and deadline.passed:
            break
        layer = next(layer for layer in layers if tuple(layer.weight.shape) == shape)
        fresh = QuantLinear.from_linear(_linear(layer), QUANT, layer.aquantizer.context)
        attach_phis_([fresh], RANK, "error")
        assert fresh.phi is not None
        error = quantization_error(fresh).double()
        gram = error @ error.mT if shape[0] <= shape[1] else error.mT @ error
        most = torch.linalg.eigvalsh(gram)[-fresh.phi.rank :].sum()
        left = error - fresh.phi.L.double() @ fresh.phi.R.double()
        found[str(shape)] = float((error.square().sum() - left.square().sum()) / most)
    return found


def _linear(layer: QuantLinear) -> torch.nn.Linear:
    out, columns = layer.weight.shape
    linear = torch.nn.Linear(columns, out, bias=False, device=layer.weight.device)
    linear.weight.copy_(layer.weight)
    return linear
