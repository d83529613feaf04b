"""The steps of ``vbench_speed``: what they need, what they measured so far, and in which order they come."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.vbench_clips import Clips, chosen_shapes, make_clips
from benchmarks.vbench_timing import Side, Timed, time_native, time_upstream, told
from benchmarks.vbench_told import as_they_run, summary

__all__ = ["SHARES", "Run", "Step", "plan", "prepared", "set_math"]

MATHS = ("strict", "default")
PRECISIONS = ("float32", "bfloat16", "compiled")
SHARES = {"native": 2.0, "upstream": 5.0, "another mode": 1.5}  # of the time, by what sides take
WARM_FRAMES = 17  # one batch of 16 and one more, the batches that longer clips have too


class Step(NamedTuple):
    """One side under one setting; ``side`` is native, upstream, or another mode of native."""

    math: str
    side: str
    precision: str

    def __str__(self) -> str:
        return f"{self.math} {self.side}" + ("" if self.side == "upstream" else f" {self.precision}")


def plan(maths: Sequence[str], precisions: Sequence[str]) -> list[Step]:
    """What is measured, the most wanted first: both sides in the first precision, then other modes of ours.

    Raises:
        ValueError: a math or precision that is not one.
    """
    for value, allowed, flag in [
        *((math, MATHS, "--math") for math in maths),
        *((precision, PRECISIONS, "--precisions") for precision in precisions),
    ]:
        if value not in allowed:
            raise ValueError(f"{flag} {value}: {', '.join(allowed)}, one or more as a comma list")
    both = [Step(math, side, precisions[0]) for math in maths for side in ("native", "upstream")]
    return both + [Step(maths[-1], "another mode", precision) for precision in precisions[1:]]


def set_math(name: str) -> None:
    """Torch's own settings (``default``), or no TF32 anywhere (``strict``)."""
    assert name in MATHS, name
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = name == "default"


@dataclass
class Run:
    """Networks, clips, and what was measured so far."""

    given: argparse.Namespace
    dimensions: list[str]
    networks: dict[str, Any]
    shelf: Path
    clips: Clips
    warm: Clips
    facts: dict[str, Any]
    upstream: dict[str, Timed] = field(default_factory=dict)
    native: dict[str, dict[str, Timed]] = field(default_factory=dict)

    def timed(self, step: Step, end: float) -> Iterator[str]:
        """Do ``step`` until ``end``, by ``time.monotonic``; after each part, what ``known`` says is more."""
        from benchmarks.vbench_sides import native_judge, upstream_judge

        set_math(step.math)
        given = self.given
        side = Side(
            clips=self.clips,
            warm=self.warm,
            device=given.device,
            clock=given.clock,
            limit_s=given.limit_s,
            end=end,
        )
        timed = self._of(step)
        if step.side == "upstream":
            judges = {
                name: partial(upstream_judge, name, self.networks, given.device) for name in self.dimensions
            }
            on_gpu = torch.device(given.device).type == "cuda"  # on a CPU its networks are there already
            return time_upstream(judges, side if on_gpu else replace(side, warm=[]), timed)
        options = (self.shelf, given.device, step.precision, given.batch)
        return time_native({name: native_judge(name, *options) for name in self.dimensions}, side, timed)

    def _of(self, step: Step) -> Timed:
        if step.side == "upstream":
            return self.upstream.setdefault(step.math, Timed())
        return self.native.setdefault(step.math, {}).setdefault(step.precision, Timed())

    def told(self, step: Step) -> str:
        """In one line."""
        timed = self._of(step)
        return told(timed, self.dimensions if step.side == "upstream" else ["together"])

    def known(self) -> dict[str, Any]:
        """The record."""
        sizes = list(dict.fromkeys(size for size, _ in self.clips))
        math = {
            name: {
                precision: summary(self.upstream.get(name, Timed()), timed, self.dimensions, sizes)
                for precision, timed in by_precision.items()
            }
            for name, by_precision in self.native.items()
        }
        sides = {f"{name} upstream": timed for name, timed in self.upstream.items()} | {
            f"{name} native {precision}": timed
            for name, by_precision in self.native.items()
            for precision, timed in by_precision.items()
        }
        return {
            "math": math,
            "times_faster_as_they_run": as_they_run(math),
            **self.facts,
            "cut_short": {name: timed.cut_short for name, timed in sides.items() if timed.cut_short},
            "clip_seconds": {name: _rounded(timed.seconds) for name, timed in sides.items()},
        }


def _rounded(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {size: [float(f"{one:.4g}") for one in times] for size, times in by_size.items()}
        for name, by_size in seconds.items()
    }


def prepared(root: Path, given: argparse.Namespace, end: float) -> Run:
    """Networks on the device and on the shelf, clips as files."""
    from benchmarks.measuring import surroundings
    from benchmarks.vbench_networks import ACTION, WEIGHTS_SEED
    from benchmarks.vbench_sides import NETWORKS

    shapes = chosen_shapes(tiny=given.tiny, sizes=given.sizes, frames=given.frames)
    clips = make_clips(root / "clips", max(given.clips, len(shapes)), shapes, ACTION)
    short = {name: (min(WARM_FRAMES, shape[0]), *shape[1:]) for name, shape in shapes.items()}
    if torch.device(given.device).type != "cuda":
        short = {"small": (3, 136, 136, 8)}  # networks are loaded, and there are no kernels to choose
    warm = make_clips(root / "warm", len(short), short, ACTION)
    print(f"clips are made, {end - time.monotonic():.0f} s are left", flush=True)
    networks, left_out = _networks(root, given)
    print(f"networks are made, {end - time.monotonic():.0f} s are left", flush=True)
    dimensions = [one for one in given.dimensions if all(need in networks for need in NETWORKS[one])]
    facts = {
        **surroundings(torch.device(given.device)),
        "threads": torch.get_num_threads(),
        "clips": len(clips),
        "batch": given.batch,
        "weights_seed": WEIGHTS_SEED,
        "tiny": given.tiny,
        "clock": given.clock,
        "left_out": {one: left_out for one in given.dimensions if one not in dimensions},
    }
    return Run(given, dimensions, networks, root / "shelf", clips, warm, facts)


def _networks(root: Path, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Upstream's networks on the device, their weights on the shelf; what could not be built, and why."""
    from benchmarks.vbench_networks import build, prepare_imports, shelve, use_sizes
    from benchmarks.vbench_sides import NETWORKS
    from evalharness.native.weights import store

    prepare_imports(given.upstream, root / "cache", given.merges)
    use_sizes(given.tiny)
    networks: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(need for one in given.dimensions for need in NETWORKS[one]):
        try:
            network = build(name, given.tiny, given.device)
        except Exception as error:  # what the other dimensions need may be there
            left_out[name] = f"{type(error).__name__}: {error}"[:400]
            print(f"  {name}: {left_out[name]}", flush=True)
            continue
        shelve(name, network, root / "shelf")
        networks[name] = network.to(given.device)
    merges = (root / "cache" / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    store("clip-bpe", {"bytes": torch.frombuffer(bytearray(merges), dtype=torch.uint8)}, root / "shelf")
    return networks, left_out
