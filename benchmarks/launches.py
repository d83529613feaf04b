"""What Python takes to launch the kernels of a packed linear, on a machine without a GPU.

    python benchmarks/launches.py --output launches.json

Triton compiles the kernels for Hopper as it does elsewhere; only what would load and start them is replaced
by nothing, and tensors are on the CPU. Each kind of call is timed launched Triton's way
and again by ``qvgen.packed.triton_launch`` (``QVGEN_RELAUNCH=1``). What the driver takes, to describe
matrices and to start, is not in it. Needs Triton 3.6 on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROWS, SIZE = 32, 256  # small, so that making outputs takes no time
BF16 = torch.bfloat16


class Launched:
    """In place of Triton's launcher: tells what it was called with."""

    told: list[Callable[..., None]] = []  # noqa: RUF012

    def __init__(self, source: Any, metadata: Any) -> None:
        from triton.backends.nvidia.driver import wrap_handle_tensordesc

        described = getattr(metadata, "tensordesc_meta", None)
        self.name = metadata.name
        self.launch = wrap_handle_tensordesc(self._started, dict(source.signature), described)

    def _started(self, *given: Any) -> None:
        for tell in Launched.told:
            tell(self.name, *given)

    def __call__(self, *given: Any) -> None:
        *grid, stream, function = given[:5]
        self.launch(*grid, stream, function, False, False, None, None, *given[5:])


class Utilities:
    """Of the driver: loads nothing, describes nothing."""

    @staticmethod
    def load_binary(name: str, binary: bytes, *_: Any) -> tuple[int, str, int, int, int]:
        return 1, f"{name} {zlib.crc32(binary)}", 32, 0, 1024

    @staticmethod
    def get_device_properties(_: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    @staticmethod
    def fill_tma_descriptor(*given: Any) -> tuple[Any, ...]:
        return given


class Hopper:
    """A driver of a device that is not there."""

    utils, launcher_cls = Utilities(), Launched

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 7

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextlib.contextmanager
def without_a_device() -> Iterator[None]:
    """CPU tensors are launched on as on a Hopper GPU, and nothing runs."""
    from triton.runtime import driver

    from qvgen.packed import triton_linear, triton_product

    facts: dict[str, Any] = {
        "capability": lambda _: (9, 0), "copy_engine": lambda _: True, "multiprocessors": lambda _: 132,
        "runs_on": lambda _: True,
    }  # fmt: skip
    places = (triton_linear, triton_product)
    before = [
        (place, name, getattr(place, name)) for place in places for name in facts if hasattr(place, name)
    ]
    for place, name, _ in before:
        setattr(place, name, facts[name])
    active = driver._active  # to ask for it properly fails where there is no GPU
    driver.set_active(Hopper())
    triton_product._chosen.cache_clear()  # what it knows of a CPU, and then of this one
    try:
        yield
    finally:
        triton_product._chosen.cache_clear()
        driver.set_active(active)
        for place, name, value in before:
            setattr(place, name, value)


def calls(tiles: Any) -> dict[str, Callable[[], object]]:
    """Kinds of calls, by what they are for."""
    from qvgen.config import QuantConfig
    from qvgen.packed import reading, triton_linear
    from qvgen.packed.backends import Backend
    from qvgen.packed.layout import row_bytes
    from qvgen.packed.linear import PackedLinear
    from qvgen.quantizers import ClipContext

    x, one = torch.zeros(1, ROWS, SIZE, dtype=BF16), torch.ones(1)
    codes = torch.zeros(SIZE, row_bytes(SIZE, 4), dtype=torch.uint8)
    column, bias = torch.ones(SIZE, 1), torch.zeros(SIZE, dtype=BF16)
    weight = triton_linear.Int8Weight(codes, 4, (SIZE, SIZE), column, column, None, bias, one, one, 15, False)
    tokens = triton_linear.quantize_tokens(x, one, one, 15, False)
    expanded = triton_linear.expand_codes(codes, 4, (SIZE, SIZE))
    config = QuantConfig(w_bits=4, a_bits=4)
    layers = []
    for _ in range(3):
        parameter = torch.nn.Parameter(bias, requires_grad=False)
        layer = PackedLinear(
            (SIZE, SIZE), parameter, config, ClipContext(1), device=torch.device("cpu"),
            backend=Backend.TRITON_INT8,
        )  # fmt: skip
        layers.append(layer.prepare_())
    return {
        "quantize": lambda: triton_linear.quantize_tokens(x, one, one, 15, False),
        "expand": lambda: triton_linear.expand_codes(codes, 4, (SIZE, SIZE)),
        "multiply": lambda: triton_linear.multiply(tokens, expanded, weight, BF16, tiles),
        "a layer": lambda: layers[0](x),
        "three layers of one input": lambda: reading.linears(x, layers),
    }


def microseconds(call: Callable[[], object], number: int, rounds: int) -> float:
    """Of the processor for a call: the least mean of so many rounds, since others may use the cores."""
    for _ in range(20):
        call()
    means = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(number):
            call()
        means.append((time.process_time() - start) / number)
    return round(min(means) * 1e6, 1)


def measure(number: int, rounds: int) -> dict[str, dict[str, float]]:
    """Both ways of each kind of call."""
    from qvgen.packed import triton_launch
    from qvgen.packed.triton_table import JOBS_LONG

    found: dict[str, dict[str, float]] = {}
    repeats = triton_launch.repeats
    try:
        with without_a_device(), torch.no_grad():
            for way in (False, True):
                triton_launch.repeats = (lambda answer: lambda: answer)(way)  # type: ignore[assignment]
                for name, call in calls(JOBS_LONG).items():
                    took = microseconds(call, number, rounds)
                    found.setdefault(name, {})["again_us" if way else "tritons_way_us"] = took
    finally:
        triton_launch.repeats = repeats
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    from benchmarks.measuring import ratio, surroundings, version, write_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--number", type=int, default=300, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("launches.json"))
    given = parser.parse_args(argv)
    if given.number < 1 or given.rounds < 1:
        parser.error("--number and --rounds are at least 1")
    found_version = version("triton")
    if found_version is None or not found_version.startswith("3.6."):
        parser.error(f"needs Triton 3.6 (pip install triton==3.6.0); found {found_version or 'none'}")
    gc.disable()
    found = measure(given.number, given.rounds)
    ratios = {name: ratio(entry["tritons_way_us"], entry["again_us"]) for name, entry in found.items()}
    for name, entry in found.items():
        print(
            f"{name}: {entry['tritons_way_us']} us, again {entry['again_us']} us, {ratios[name]}", flush=True
        )
    write_json(given.output, {**surroundings(torch.device("cpu")), "ratios": ratios, "calls": found})
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
