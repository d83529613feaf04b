"""What rotating activations costs beside the linear that they enter, on a GPU.

    python benchmarks/hadamard.py --output hadamard.json

Parts: ``check`` (codes against float64), ``shares`` (quantizer, rotating quantizer and bf16 linear
at the widths of CogVideoX-2B), ``launches`` (other shapes of the kernel's launch). ``--tiny`` runs all of
them in small on whatever there is and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from benchmarks.measuring import Deadline
    from qvgen.hadamard import Hadamard

LIMITS_S = {"check": 30.0, "shares": 60.0, "launches": 60.0}
LINEARS = ((1920, 1920), (1920, 7680), (7680, 1920))
TINY_LINEARS = ((240, 240), (240, 960), (960, 240))
SETS = 4
Q_MAX = 15
BF16 = torch.bfloat16


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "hadamard.json", repeats=25)
    parser.add_argument("--parts", default=",".join(LIMITS_S), help="comma-separated; default: all")
    parser.add_argument("--tokens", type=int, default=17776, help="rows of the activations")
    parser.add_argument("--limit-s", type=float, help="seconds for each part (its own)")
    given = parsed(parser, argv, LIMITS_S)
    given.tokens = 40 if given.tiny else given.tokens
    return given


class Case:
    """Inputs of one width, as a layer of ViDiT-Q gets them."""

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        from qvgen.hadamard import Hadamard, paired_factors, random_signs

        self.x = torch.randn(tokens, width, device=device).to(BF16)
        self.balance = random_signs(width, 0).to(device) * torch.rand(width, device=device).add_(0.5)
        self.rotation = Hadamard(width, device, paired=paired_factors(width) is not None)
        self.clip = torch.ones(1, device=device)

    @property
    def fused(self) -> bool:
        """Whether the one kernel can do it."""
        from qvgen.fused.rotate import rotation_fits

        return rotation_fits(self.x, self.balance, self.rotation)

    def quantize(self) -> Tensor:
        """Without rotation: the cost that every method with dynamic activations has."""
        from qvgen.fake_quant import token_fake_quant

        return token_fake_quant(self.x, self.clip, self.clip, Q_MAX)

    def rotate(self) -> Tensor:
        """The plain transform, a pass for each factor."""
        balanced = (self.x * self.balance).to(self.x.dtype)
        turned: Tensor = self.rotation(balanced)
        return turned

    def rotate_and_quantize(self) -> Tensor:
        """Scale, rotation, range and rounding: one kernel where it fits."""
        from qvgen.fake_quant import token_fake_quant
        from qvgen.fused.rotate import rotate_fake_quant

        if self.fused:
            return rotate_fake_quant(self.x, self.balance, self.rotation, Q_MAX, False)
        return token_fake_quant(self.rotate(), self.clip, self.clip, Q_MAX)


def check(given: argparse.Namespace, device: torch.device, deadline: Deadline) -> dict[str, Any]:
    """Rounded results of both forms against the rotation in float64.

    ``error``: relative root mean square of what is not the rounding of the exact rotation;
    ``codes_differ``: share of codes that are others than those of the exact rotation.
    """
    from qvgen.fake_quant import token_fake_quant

    found: dict[str, Any] = {}
    for width in sorted({i for i, _ in _linears(given)}):
        case = Case(64, width, device)
        exact = _exact(case.x, case.balance, case.rotation)
        one = torch.ones(1, device=device, dtype=torch.float64)
        wanted = token_fake_quant(exact, one, one, Q_MAX)
        step = (exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)) / Q_MAX
        plain = token_fake_quant(case.rotate(), case.clip, case.clip, Q_MAX)
        for name, out in (("one kernel", case.rotate_and_quantize()), ("plain", plain)):
            off = (out.double() - wanted).abs()
            found[f"{name}, {width}"] = {
                "error": float(off.square().mean().sqrt() / wanted.square().mean().sqrt()),
                "codes_differ": float((off > step / 2).double().mean()),
                "fused": case.fused and name == "one kernel",
                "factors": case.rotation.factors,
            }
    worst = max(entry["codes_differ"] for entry in found.values())
    return {"ratios": {"largest_share_of_codes_that_differ": worst}, "results": found}


def shares(given: argparse.Namespace, device: torch.device, deadline: Deadline) -> dict[str, Any]:
    """For each linear: what rotation adds to the quantizer, over the time of the bf16 product."""
    from benchmarks.measuring import compare, ratio, recorded

    linears: dict[str, Any] = {}
    ratios: dict[str, float | None] = {}
    for width, outputs in _linears(given):
        if linears and deadline.passed:
            break
        cases = [Case(given.tokens, width, device) for _ in range(1 if given.tiny else SETS)]
        weight = torch.randn(outputs, width, device=device).to(BF16)
        variants: dict[str, Callable[[], object]] = {
            "linear": recorded([partial(functional.linear, c.x, weight) for c in cases], device),
            "quantize": recorded([c.quantize for c in cases], device),
            "rotate and quantize": recorded([c.rotate_and_quantize for c in cases], device),
            "rotate, plain": recorded([c.rotate for c in cases], device),
        }
        times: dict[str, Any] = compare(variants, device, given.repeats, deadline)
        _for_one(times, len(cases))
        median = {name: times[name]["median_ms"] for name in variants}
        added = median["rotate and quantize"] - median["quantize"]
        name = f"{width} -> {outputs}"
        ratios[f"{name}: rotation adds, of the linear"] = ratio(added, median["linear"])
        ratios[f"{name}: quantizer alone, of the linear"] = ratio(median["quantize"], median["linear"])
        ratios[f"{name}: plain rotation, of the linear"] = ratio(median["rotate, plain"], median["linear"])
        linears[name] = {"fused": cases[0].fused, "added_ms": added, "times": times}
        least = 4 * given.tokens * width / median["rotate and quantize"] / 1e6
        linears[name]["gb_per_s_of_rotate_and_quantize"] = least
    return {"ratios": ratios, "tokens": given.tokens, "linears": linears}


def launches(given: argparse.Namespace, device: torch.device, deadline: Deadline) -> dict[str, Any]:
    """Milliseconds of the kernel for other rows of a program, warps and stages; fastest first."""
    from benchmarks.measuring import compare, recorded
    from qvgen.fused.rotate import Launch, launched

    ratios: dict[str, str] = {}
    results: dict[str, Any] = {}
    for width in sorted({i for i, _ in _linears(given)}):
        cases = [Case(given.tokens, width, device) for _ in range(1 if given.tiny else SETS)]
        if not cases[0].fused:
            return {"ratios": {}, "skipped": "the kernel needs CUDA and Triton"}
        found: list[dict[str, Any]] = []
        warps = (8, 16) if width > 4096 else (2, 4, 8)
        grid = itertools.product((1, 4, 8, 16, 32), warps, (1, 2, 3))
        for how in [Launch(8, 4, 2)] if given.tiny else [Launch(*one) for one in grid]:
            if found and deadline.passed:
                break
            calls = [partial(launched, *_operands(c), Q_MAX, False, how) for c in cases]
            entry: dict[str, Any] = {"rows": how.rows, "warps": how.warps, "stages": how.stages}
            try:
                times: dict[str, Any] = compare({"": recorded(calls, device)}, device, 5, deadline)
                _for_one(times, len(cases))
                entry["median_ms"] = times[""]["median_ms"]
            except Exception as error:  # a launch that needs more than the chip has
                entry["error"] = f"{type(error).__name__}: {error}"[:200]
            found.append(entry)
        found.sort(key=lambda entry: entry.get("median_ms", float("inf")))
        results[str(width)] = found
        best = found[0]
        ratios[f"{width}: fastest rows, warps, stages, ms"] = (
            f"{best['rows']}, {best['warps']}, {best['stages']}, {best.get('median_ms', float('nan')):.4f}"
        )
    return {"ratios": ratios, "launches": results}


def _operands(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = (case.rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    return case.x, case.balance, first, second


def _linears(given: argparse.Namespace) -> tuple[tuple[int, int], ...]:
    return TINY_LINEARS if given.tiny else LINEARS


def _exact(x: Tensor, balance: Tensor, rotation: Hadamard) -> Tensor:
    table = (x.float() * balance).to(x.dtype).double().reshape(-1, *rotation.factors)
    for axis in range(len(rotation.factors)):
        matrix = rotation.get_buffer(f"factor_{axis}").double()
        table = torch.tensordot(table, matrix, dims=([1], [0]))  # the axis goes last: all in turn
    result: Tensor = table.reshape(x.shape) / rotation.size**0.5
    return result


def _for_one(times: dict[str, Any], sets: int) -> None:
    """Times of one call from those of ``sets``."""
    for entry in times.values():
        for key in ("median_ms", "min_ms", "max_ms"):
            entry[key] /= sets


PARTS = {"check": check, "shares": shares, "launches": launches}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import on_device, run_parts
    from benchmarks.measuring import Deadline

    given, device = arguments(argv), on_device()
    torch.manual_seed(0)

    @torch.inference_mode()
    def measure(part: str) -> dict[str, Any]:
        limit_s = LIMITS_S[part] if given.limit_s is None else given.limit_s
        return PARTS[part](given, device, Deadline(limit_s))

    return run_parts(given.parts, measure, given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
