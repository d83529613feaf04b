"""Launches that are repeated without Triton's search: the same kernel, given the same, as Triton gives it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qvgen.packed import triton_launch
from qvgen.packed.triton_launch import Described, launch

ROOT = Path(__file__).parents[3]


class Kernel:
    """A jitted function's outside: what Triton's way and the compiled one are called with."""

    arg_names = ("x", "n", "B", "A")

    def __init__(self) -> None:
        self.tritons_way: list[tuple[Any, ...]] = []
        self.again: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*operands: Any, **constants: Any) -> Any:
            self.tritons_way.append((grid, operands, constants))
            return SimpleNamespace(
                run=lambda *given: self.again.append(given), function="handle", packed_metadata="facts"
            )

        return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    known: dict[Any, Any] = {}
    driver = SimpleNamespace(
        active=SimpleNamespace(get_current_stream=lambda index: 40 + index, get_current_device=lambda: 2)
    )
    hooks = SimpleNamespace(
        launch_enter_hook=SimpleNamespace(calls=[]), launch_exit_hook=SimpleNamespace(calls=[])
    )
    for name, value in {"repeats": True, "_launches": known, "_driver": driver, "_hooks": hooks}.items():
        monkeypatch.setattr(triton_launch, name, (lambda answer: lambda: answer)(value))
    return Kernel()


def start(kernel: Kernel, x: Any, n: Any = 3, a: int = 5) -> None:
    on = x.base if isinstance(x, Described) else x
    launch(kernel, 9, (x, n), on, (a,), lambda: {"A": a, "B": 1, "num_warps": 4})


def test_the_first_goes_tritons_way_and_others_again(kernel: Kernel) -> None:
    first, second = torch.zeros(8), torch.ones(8)
    start(kernel, first)
    assert kernel.tritons_way == [((9,), (first, 3), {"A": 5, "B": 1, "num_warps": 4})] and not kernel.again
    start(kernel, second)
    assert len(kernel.tritons_way) == 1
    [given] = kernel.again
    # Constants stand in the order of the parameters, options are compiled in.
    assert given == (9, 1, 1, 42, "handle", "facts", None, None, None, second, 3, 1, 5)
    assert given[9] is second, "the operand of this launch, not of the first"


def test_whatever_a_kernel_is_made_for_tells_launches_apart(kernel: Kernel) -> None:
    base = torch.zeros(64)
    kinds: list[tuple[Any, ...]] = [
        (base,), (base.half(),), (base[1:],), (base[2:],), (base, 4), (base, 3, 6), (base, 3.0),
    ]  # fmt: skip
    for kind in kinds:
        start(kernel, *kind)
    assert len(kernel.tritons_way) == len(kinds) and not kernel.again
    for kind in kinds:
        start(kernel, *kind)
    assert len(kernel.tritons_way) == len(kinds) == len(kernel.again)
    start(kernel, base[4:], 3.5)  # 16 bytes on; a float is passed on as it is
    assert len(kernel.tritons_way) == len(kinds) and kernel.again[-1][10] == 3.5
    start(Kernel(), base)
    assert len(kernel.again) == len(kinds) + 1, "another kernel knows nothing of it"


def test_a_matrix_is_checked_once_and_not_kept(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Described] = []

    def check(self: Described) -> str:
        checked.append(self)
        return "descriptor"

    monkeypatch.setattr(Described, "checked", check)
    for wide in (16, 16, 32):
        start(kernel, Described(torch.zeros(4, wide), (2, 16)))
    assert [each.shape[1] for each in checked] == [16, 32], "other strides are another kind"
    assert [operands[0] for _, operands, _ in kernel.tritons_way] == ["descriptor"] * 2
    again = kernel.again[0][9]
    assert isinstance(again, Described) and tuple(again.strides) == (16, 1) and again.padding == "zero"
    x: Tensor | None = torch.zeros(8)
    assert x is not None
    gone = weakref.ref(x)
    start(kernel, x)
    kernel.tritons_way.clear()
    x = None
    assert gone() is None


def test_a_profiler_is_told_of_every_launch(kernel: Kernel) -> None:
    x = torch.zeros(8)
    start(kernel, x)
    triton_launch._hooks().launch_exit_hook.calls.append(print)
    start(kernel, x)
    assert len(kernel.tritons_way) == 2 and not kernel.again


def test_no_more_kinds_than_so_many_are_kept(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_MOST", 3)
    x = torch.zeros(8)
    for n in range(10):
        start(kernel, x, n)
    assert len(triton_launch._launches()) <= 3
    start(kernel, x, 9)
    assert len(kernel.again) == 1


def test_launches_are_repeated_where_asked_for_with_a_known_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, switch, wanted in (
        ("3.6.0", "1", True), ("3.6.1+git", "1", True), ("3.7.0", "1", False), ("3.6.0", "0", False),
        ("3.6.0", None, False), ("3.6rc1", "1", False), ("3.60.0", "1", False),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
        monkeypatch.setattr(triton_launch, "INTERPRETED", False)
        monkeypatch.delenv("QVGEN_RELAUNCH", raising=False)
        if switch is not None:
            monkeypatch.setenv("QVGEN_RELAUNCH", switch)
        assert triton_launch.repeats.__wrapped__() is wanted


COMPARED = """
import json, sys, torch
from benchmarks import launches
from qvgen.packed import triton_launch, triton_linear, triton_product, triton_reading, triton_scaling
from qvgen.packed.layout import ActivationSpec, row_bytes
from qvgen.packed.sources import Normed, Part
from qvgen.packed.triton_table import JOBS_SHORT, JOBS_LONG, LONG, SHORT, FEW

def shown(value):
    if isinstance(value, torch.Tensor):
        return ["tensor", str(value.dtype), list(value.shape), list(value.stride()), value.data_ptr() % 16]
    if isinstance(value, (tuple, list)):
        return [shown(each) for each in value]
    return repr(value)

def run(*, again, rows, size, bits, out, tiles, offset, tilted):
    triton_launch.repeats = lambda: again
    kept = []
    launches.Launched.told[:] = [lambda name, *given: kept.append([name, shown(given)])]
    x = torch.zeros(rows, size + tilted, dtype=out)[:, tilted:]
    one = torch.ones(1)
    q_max = 255 if offset else 15
    tokens = triton_linear.quantize_tokens(x, one, one, q_max, False)
    codes = torch.zeros(size, row_bytes(size, bits), dtype=torch.uint8)
    expanded = triton_linear.expand_codes(codes, bits, (size, size))
    column = torch.ones(size, 1)
    weight = triton_linear.Int8Weight(
        codes, bits, (size, size), column, column, None, None, one, one, q_max, False
    )
    triton_linear.multiply(tokens, expanded, weight, out, tiles)
    spec = ActivationSpec(4, "token", 0, False, False, one, one)
    scale = torch.ones(1, 1, size)
    source = Normed((Part(x[None], scale, scale),), None, None, 1e-5, True)
    triton_reading.read_tokens(source, [spec], [False])
    triton_scaling._launch(x, torch.ones(size), 0.25, True, one, one, 15, False)
    return kept

def strip(kept):
    # What tells profilers of a launch is left out where there is none; eight numbers describe a matrix, the
    # first of them says where it begins, which differs from call to call.
    for name, given in kept:
        del given[10:13]
        for i, value in enumerate(given):
            if isinstance(value, list) and value[0].isdigit() and len(value) == 8:
                given[i] = value[1:]
    return kept

same, count = True, 0
with launches.without_a_device(), torch.no_grad():
    for case in (
        dict(rows=32, size=256, bits=4, out=torch.bfloat16, tiles=JOBS_SHORT, offset=False, tilted=0),
        dict(rows=33, size=256, bits=3, out=torch.float16, tiles=JOBS_LONG, offset=False, tilted=1),
        dict(rows=1, size=160, bits=4, out=torch.bfloat16, tiles=SHORT, offset=True, tilted=0),
        dict(rows=48, size=200, bits=2, out=torch.float32, tiles=LONG, offset=False, tilted=3),
    ):
        wanted = strip(run(again=False, **case))
        first, second = strip(run(again=True, **case)), strip(run(again=True, **case))
        count += len(wanted)
        for one, two, three in zip(wanted, first, second, strict=True):
            if not one == two == three:
                same = False
                print("differ", one, two, three, sep="\\n", file=sys.stderr)
    kinds = len(triton_launch._launches())
kept = triton_product._chosen.cache_info().currsize  # of a GPU that is not there
print(json.dumps({"same": same, "launches": count, "kinds": kinds, "kept": kept}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_compiled_kernel_gets_what_triton_gives_it(tmp_path: Path) -> None:
    """Real kernels, compiled for Hopper by Triton: its launcher is called alike, whoever calls it."""
    import triton

    if not triton.__version__.startswith("3.6."):
        pytest.skip("launches are repeated with Triton 3.6 only")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", COMPARED],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"], done.stderr
    assert found == {"same": True, "launches": 20, "kinds": 20, "kept": 0}


@pytest.mark.cuda
def test_on_a_gpu_both_ways_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tensors come after which, where they stand, and in a graph replayed on other numbers."""
    from benchmarks.int8_layers import packed_layer
    from qvgen.packed.triton_linear import int8_linears

    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    one = torch.ones(1, device=device)
    weights = [packed_layer(n, 1536, 4, device, one, one) for n in (1536, 1544, 8960)]

    def outputs(again: bool) -> list[Tensor]:
        monkeypatch.setattr(triton_launch, "repeats", lambda: again)
        torch.manual_seed(1)
        found = []
        for rows, tilt, dtype in (
            (4096, 0, torch.bfloat16),
            (77, 1, torch.bfloat16),
            (512, 4, torch.float16),
        ):
            for _ in range(3):
                x = torch.randn(rows, 1536 + tilt, device=device).to(dtype)[:, tilt:]
                found += int8_linears(x, weights)
        return found

    for wanted, first, second in zip(outputs(False), outputs(True), outputs(True), strict=True):
        assert torch.equal(wanted, first) and torch.equal(wanted, second)
    x = torch.randn(4096, 1536, device=device, dtype=torch.bfloat16, generator=generator)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        int8_linears(x, weights)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        recorded = int8_linears(x, weights)
    x.normal_(generator=generator)
    graph.replay()
    for wanted, got in zip(int8_linears(x.clone(), weights), recorded, strict=True):
        assert torch.equal(wanted, got)
