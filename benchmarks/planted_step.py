"""Whether ``evalharness check`` calls a denoising step slower that is 5 % slower, and one that is not, not.

    python -m benchmarks.planted_step --draws 20 --output results/statistics/planted_step.json
    python -m benchmarks.planted_step --judge results/statistics/planted_step.json

A step is one call of tinyworld's transformer on the inputs that the profile stage times it with. For each
draw it is measured anew, as ``benchmarks.against`` measures two checkouts: 10 blocks of fresh processes, in
turns on one core, in processor time; here of three sides, all of this checkout, one of which waits for 5 % of
each call's time. Processes are forks of one that has loaded the model, and each copies it: 600 starts of
torch would take hours. Each draw's times are written as ``--timings`` reads them, and ``evalharness check``
says by its exit code what it makes of them. No two draws share a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.against import ROOT, STEADY_MEMORY, Asked, answer_all, block
from evalharness.store import atomic_write_json

DRAWS, BLOCKS, SLOWER, BOUND = 20, 10, 0.05, 0.025
TURNS = 9
"""Of a block; a step takes 50 ms."""
REFERENCE = Path("results/ci")
"""A run that is held against itself: what is judged here are the times."""
GATES = f"gates:\n  - {{metric: timings, max_rise_relative: {BOUND}}}\n"
PATH = "denoising_step"
ARMS = ("no-op", "5 % slower")
SIDES = {"reference": (ROOT, 0.0), "no-op": (ROOT, 0.0), "5 % slower": (ROOT, SLOWER)}


def denoising_step() -> tuple[Any, Any]:
    """The transformer and the inputs that the profile stage times it with."""
    import torch

    from evalharness.models.tinyworld import TinyWorld

    torch.set_num_threads(1)
    loaded = TinyWorld().load("cpu")
    return loaded.transformer, loaded.step_inputs()


def copied(transformer: Any, inputs: Any) -> Callable[[], object]:
    """A call of it, on memory that is new."""
    import torch

    own, own_inputs = copy.deepcopy(transformer), copy.deepcopy(inputs)

    def call() -> object:
        with torch.inference_mode():
            return own(**own_inputs)

    return call


class Fork(Asked):
    """A side in a fork of this process, whose path is ``make``."""

    def __init__(self, make: Callable[[], Callable[[], object]], slower: float = 0.0) -> None:
        questions, ask = os.pipe()
        answers, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(ask)
            os.close(answers)
            try:
                with os.fdopen(questions) as read, os.fdopen(answer, "w") as write:
                    answer_all({PATH: make}, slower, read, write)
            finally:
                os._exit(0)
        os.close(questions)
        os.close(answer)
        super().__init__(os.fdopen(ask, "w"), os.fdopen(answers))

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._questions.close()
        self._answers.close()


def steady() -> None:
    """Start this program again with memory as ``benchmarks.against`` has it, unless it has it."""
    if all(os.environ.get(name) == value for name, value in STEADY_MEMORY.items()):
        return
    same = shutil.which("setarch")
    command = [same, os.uname().machine, "-R"] if same else []
    command += [sys.executable, "-m", "benchmarks.planted_step", *sys.argv[1:]]
    os.execve(command[0], command, {**os.environ, **STEADY_MEMORY, "OMP_NUM_THREADS": "1"})  # noqa: S606


def measure(draws: int, output: Path) -> dict[str, Any]:
    """Milliseconds of each side in each block of each draw; what ``output`` has already is kept."""
    record: dict[str, Any] = {
        "blocks": BLOCKS,
        "turns": TURNS,
        "slower": SLOWER,
        "bound": BOUND,
        "milliseconds": [],
    }
    if output.is_file():
        record = json.loads(output.read_text(encoding="utf-8"))
    transformer, inputs = denoising_step()

    def start(root: Path, slower: float) -> Asked:
        return Fork(lambda: copied(transformer, inputs), slower)

    done: list[dict[str, list[float]]] = record["milliseconds"]
    while len(done) < draws:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(BLOCKS):
            found = block(SIDES, [PATH], number, start, (TURNS, TURNS))[PATH]
            if isinstance(found, str):
                raise SystemExit(f"cannot be timed: {found}")
            for side, seconds in found.items():
                times[side].append(round(1000 * seconds, 4))
        done.append(times)
        atomic_write_json(output, record)
        print(f"draw {len(done)} of {draws}", file=sys.stderr, flush=True)
    return record


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """Arm -> what ``evalharness check`` said of each draw: exit codes and rises in per cent."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        gates, timings = Path(place) / "gates.yaml", Path(place) / "timings.json"
        gates.write_text(GATES, encoding="utf-8")
        for arm in ARMS:
            codes, rises = [], []
            for times in record["milliseconds"]:
                pair = {PATH: {"reference": times["reference"], "run": times[arm]}}
                atomic_write_json(timings, pair)
                code, report = checked(gates, timings)
                [verdict] = report["verdicts"]
                codes.append(code)
                rises.append(float(verdict["reason"].split(" %")[0]))
            found[arm] = {
                "draws": len(codes),
                "exit_codes": codes,
                "regressions": codes.count(1),
                "passes": codes.count(0),
                "rises_pct": sorted(rises),
            }
    return found


def checked(gates: Path, timings: Path) -> tuple[int, dict[str, Any]]:
    """The command itself: its exit code and what it printed."""
    from evalharness.cli.main import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = main(
            ["check", str(REFERENCE), "--against", str(REFERENCE), "--gates", str(gates)]
            + ["--timings", str(timings), "--json"]
        )
    report: dict[str, Any] = json.loads(shown.getvalue())
    return code, report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 unless every slower step is a regression and no other is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--judge", type=Path, default=None, help="a record: judge its times again")
    parser.add_argument("--output", type=Path, default=Path("results/statistics/planted_step.json"))
    options = parser.parse_args(argv)
    if options.judge is None:
        steady()
        record = measure(options.draws, options.output)
    else:
        record = json.loads(options.judge.read_text(encoding="utf-8"))
    record["verdicts"] = judge(record)
    atomic_write_json(options.judge or options.output, record)
    print(json.dumps(record["verdicts"], indent=1))
    caught, alarms = record["verdicts"]["5 % slower"], record["verdicts"]["no-op"]
    return 0 if caught["regressions"] == caught["draws"] and not alarms["regressions"] else 1


if __name__ == "__main__":
    sys.exit(main())
