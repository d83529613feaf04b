"""What rotating activations costs beside the linear that they enter, on a GPU.

    python benchmarks/hadamard.py --output hadamard.json

Parts: ``check`` (codes against float64), ``launches`` (both kernels, launched in other ways; each is
printed and written once it is measured), ``shares`` (quantizers, rotating quantizers and bf16 linear at the
widths of CogVideoX-2B, with the usual launch and the fastest of ``launches``). ``--tiny`` runs all of them
in small on whatever there is and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
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
    from qvgen.fused.rotate import Launch
    from qvgen.hadamard import Hadamard

LIMITS_S = {"check": 20.0, "launches": 55.0, "shares": 20.0}
LINEARS = ((1920, 1920), (1920, 7680), (7680, 1920))
TINY_LINEARS = ((960, 240), (960, 480), (1920, 240))
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
    given.fastest = {}
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

    def integers(self) -> object:
        """What a packed layer multiplies, without rotation."""
        from qvgen.packed.triton_linear import quantize_tokens

        return quantize_tokens(self.x, self.clip, self.clip, Q_MAX, False)

    def rotated(self, how: Launch) -> Tensor:
        """Scale, rotation, range and rounding: one kernel, launched as ``how`` says."""
        from qvgen.fused.rotate import launched

        return launched(*self.operands, Q_MAX, False, how)

    def rotated_integers(self, how: Launch) -> object:
        """The same, as what a packed layer multiplies."""
        from qvgen.packed.triton_rotation import launched_codes

        return launched_codes(*self.operands, Q_MAX, False, how)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, factors of its channels, and both factors of the rotation."""
        first, second = (self.rotation.get_buffer(f"factor_{axis}") for axis in range(2))
        return self.x, self.balance, first, second

    def usual(self, chained: bool, codes: bool = False) -> Launch:
        """The shipped launch of either kernel; ``codes``: to integers."""
        from qvgen.fused.rotate import table_of, usual_launch

        return usual_launch(table_of(self.rotation.factors), chained, codes)

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
        variants = {name: recorded(calls, device) for name, calls in _calls(cases, weight, given).items()}
        times: dict[str, Any] = compare(variants, device, given.repeats, deadline)
        _for_one(times, len(cases))
        median = {name: times[name]["median_ms"] for name in variants}
        name, linear = f"{width} -> {outputs}", median["linear"]
        for rotating in median:
            if rotating.startswith("rotate and quantize"):
                base = median["quantize to integers" if "integers" in rotating else "quantize"]
                what = "rotation" if rotating == "rotate and quantize" else rotating
                ratios[f"{name}: {what} adds, of the linear"] = ratio(median[rotating] - base, linear)
        ratios[f"{name}: quantizer alone, of the linear"] = ratio(median["quantize"], linear)
        ratios[f"{name}: plain rotation, of the linear"] = ratio(median["rotate, plain"], linear)
        added = median["rotate and quantize"] - median["quantize"]
        linears[name] = {"fused": cases[0].fused, "added_ms": added, "times": times}
        least = 4 * given.tokens * width / median["rotate and quantize"] / 1e6
        linears[name]["gb_per_s_of_rotate_and_quantize"] = least
        _say(f"{name}: " + ", ".join(f"{one} {ms * 1e3:.1f}" for one, ms in median.items()) + " us")
        given.save({"ratios": ratios, "linears": linears})
    return {"ratios": ratios, "tokens": given.tokens, "linears": linears}


def _calls(
    cases: list[Case], weight: Tensor, given: argparse.Namespace
) -> dict[str, list[Callable[[], object]]]:
    """What is timed at one width, on each of ``cases``."""
    calls: dict[str, list[Callable[[], object]]] = {
        "linear": [partial(functional.linear, c.x, weight) for c in cases],
        "quantize": [c.quantize for c in cases],
        "rotate and quantize": [c.rotate_and_quantize for c in cases],
        "rotate, plain": [c.rotate for c in cases],
    }
    if not cases[0].fused:
        return calls
    calls["rotate and quantize, long kernel"] = [partial(c.rotated, c.usual(False)) for c in cases]
    calls["quantize to integers"] = [c.integers for c in cases]
    name = "rotate and quantize to integers"
    calls[name] = [partial(c.rotated_integers, c.usual(True, codes=True)) for c in cases]
    how = given.fastest.get(weight.shape[1])
    if how is not None:
        calls["rotate and quantize, fastest launch"] = [partial(c.rotated, how) for c in cases]
        if how.chained:
            calls[f"{name}, fastest launch"] = [partial(c.rotated_integers, how) for c in cases]
    return calls


def launches(given: argparse.Namespace, device: torch.device, deadline: Deadline) -> dict[str, Any]:
    """Milliseconds of both kernels, launched in other ways; fastest first."""
    from benchmarks.measuring import Deadline
    from qvgen.fused.rotate import Launch

    ratios: dict[str, str] = {}
    results: dict[str, Any] = {}
    widths = sorted({i for i, _ in _linears(given)})
    for place, width in enumerate(widths):
        cases = [Case(given.tokens, width, device) for _ in range(1 if given.tiny else SETS)]
        if not cases[0].fused:
            return {"ratios": {}, "skipped": "the kernel needs CUDA and Triton"}
        own = Deadline(deadline.left / (len(widths) - place))
        found: list[dict[str, Any]] = []
        for how in _tried(cases[0], given.tiny):
            if found and own.passed:
                break
            found.append(_timed(how, cases, device, own))
            _say(f"{width}: {found[-1]}")
            results[str(width)] = sorted(found, key=lambda entry: entry.get("median_ms", float("inf")))
            given.save({"ratios": ratios, "launches": results})
        best = dict(results[str(width)][0])
        ratios[f"{width}: fastest, ms"] = str(best)
        if best.pop("median_ms", None) is not None:
            given.fastest[width] = Launch(**best)
    return {"ratios": ratios, "launches": results}


def _timed(how: Launch, cases: list[Case], device: torch.device, deadline: Deadline) -> dict[str, Any]:
    """The launch and its milliseconds, or why there are none."""
    from benchmarks.measuring import compare, recorded

    entry = dataclasses.asdict(how)
    try:
        run = recorded([partial(case.rotated, how) for case in cases], device)
        times: dict[str, Any] = compare({"": run}, device, 5, deadline)
    except Exception as error:  # a launch that needs more than the chip has
        return {**entry, "error": f"{type(error).__name__}: {error}"[:200]}
    _for_one(times, len(cases))
    return {**entry, "median_ms": times[""]["median_ms"]}


def _tried(case: Case, tiny: bool) -> list[Launch]:
    """Launches to try: the shipped ones, then what the compiler's output promises most of."""
    from qvgen.fused.rotate import Launch

    def chained(warps: int, stages: int, resident: int, turned: bool, registers: int = 0) -> Launch:
        return Launch(0, warps, stages, True, resident, turned, registers)

    shipped = [case.usual(True), case.usual(False)]
    if tiny:
        return shipped
    if case.x.shape[1] <= 2048:
        others = [
            chained(1, 3, 8, True), chained(1, 2, 11, True, 168), chained(1, 1, 8, True),
            chained(1, 2, 16, True), chained(2, 2, 7, False), chained(2, 3, 7, False),
            chained(4, 2, 6, False), chained(2, 2, 7, True), chained(4, 3, 5, False),
            chained(1, 2, 8, False), chained(2, 2, 8, False, 120), chained(1, 2, 11, True, 128),
            chained(4, 2, 8, False), chained(4, 1, 6, False), chained(8, 2, 3, False),
            chained(1, 4, 8, True), chained(4, 2, 4, True), chained(2, 1, 7, False),
        ]  # fmt: skip
    else:
        others = [
            chained(4, 2, 2, True), chained(8, 1, 2, False, 128), chained(8, 1, 1, False),
            chained(4, 1, 2, False), chained(8, 2, 2, False, 128), chained(4, 1, 3, True, 168),
            chained(8, 1, 2, True, 128), chained(16, 1, 1, False), chained(8, 2, 1, False),
            chained(4, 2, 3, True, 168), chained(4, 3, 2, True), chained(4, 1, 4, True),
        ]  # fmt: skip
    return [*shipped, *(one for one in others if one not in shipped)]


def _say(text: str) -> None:
    print(text, flush=True)


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
