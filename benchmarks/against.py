"""The hot paths of this checkout against those of another one, in turns, on one machine, in one job.

    python -m benchmarks.against ../base --markdown benchmarks.md
    python -m benchmarks.against --planted 20 --paths scoring --output results/statistics/timings.json

Each checkout has a process of its own; they take turns, first one, then the other ahead, a coin says who
begins, and what counts is processor time. After 12 blocks the paths that cannot be judged yet, for noise, are
measured on, each with more turns as fewer paths are left, up to three times 12; each look has a third of both
errors. The second form measures the judge itself: this checkout against itself, and against itself slowed by
5 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = 12
LOOKS = 3
"""So many blocks at most are measured so many times; what is told earlier is not measured on."""
BLOCK_SECONDS = 12.0
"""Of measuring two sides in one block, shared by its paths: to start the processes costs as much."""
TURNS = (15, 150)
"""Of a path in a block, at least and at most; see ``of_turns``."""
BROKEN = "fails in the head alone: "
BOUND = 0.025
SIGNIFICANCE = 0.01
STEADY_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "PYTHONHASHSEED": "0",
}
"""Freed memory is kept, in large pages: else pages that the system hands out anew, and where they lie, are
timed, by luck of the process."""
LEAST_SECONDS = 0.02
"""One measurement repeats a call for at least so long."""


class Asked(ABC):
    """A process that measures: ``prepare`` a path, then ``measure`` it."""

    def __init__(self, questions: TextIO, answers: TextIO) -> None:
        self._questions, self._answers = questions, answers

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer to one line of JSON."""
        self._questions.write(json.dumps(question) + "\n")
        self._questions.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the measuring process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @abstractmethod
    def close(self) -> None:
        """End the process."""


class Side(Asked):
    """One checkout in a process."""

    def __init__(self, root: Path, slower: float = 0.0) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **STEADY_MEMORY}
        same = shutil.which("setarch")  # the same addresses in every process
        command = [same, os.uname().machine, "-R"] if same else []
        command += [sys.executable, str(Path(__file__).resolve()), "--serve", "--slower", str(slower)]
        self._process = subprocess.Popen(
            command, env=environment, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(slower: float) -> None:
    """In a side's process: answer questions until the input ends, that share slower."""
    spec = importlib.util.spec_from_file_location("hot_paths", Path(__file__).with_name("hot_paths.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes elsewhere
    answer_all(module.HOT_PATHS, slower, sys.stdin, answers)


def answer_all(
    paths: Mapping[str, Callable[[], Callable[[], object]]], slower: float, questions: TextIO, answers: TextIO
) -> None:
    """Until there are no more questions."""
    action: Callable[[], object] | None = None
    loops = 1
    for line in questions:
        question = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "prepare" in question:
                action = paths[question["prepare"]]()
                action()
                answer["seconds"] = min(_timed(action, 1, 0.0) for _ in range(3))
            else:
                loops = question["loops"]
                os.sched_setaffinity(0, {question["cpu"]})
                assert action is not None
                answer["seconds"] = _timed(action, loops, slower)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(action: Callable[[], object], loops: int, slower: float) -> float:
    """Processor seconds of a call: the median of so many but the first, which finds the caches cold.

    Not their mean: each time that another process got the core in between, a call finds them cold too.
    """
    times = []
    for _ in range(loops):
        start = time.process_time()
        action()
        end = start + (time.process_time() - start) * (1 + slower)
        while time.process_time() < end:
            pass
        times.append(time.process_time() - start)
    return statistics.median(times[1:] if len(times) > 2 else times)


def block(
    sides: dict[str, tuple[Path, float]],
    names: Sequence[str],
    number: int,
    start: Callable[[Path, float], Asked] | None = None,
    turns: tuple[int, int] = TURNS,
) -> dict[str, Any]:
    """Medians of a few turns of every path, each side in a fresh process; or why there are none.

    Two processes of the same code differ by some per cent for as long as they live, by where their
    memory lies.
    So processes are drawn anew for each block, and a block counts as one pair. Who is started first, and goes
    first in the first turn, is drawn too: this is what makes the judge's test exact.
    """
    order = list(sides)
    random.SystemRandom().shuffle(order)
    started: dict[str, Asked] = {key: (start or Side)(*sides[key]) for key in order}
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[number // 2 % len(cpus)]  # one core for all: another may have a busy neighbour
    found: dict[str, Any] = {}
    try:
        for name in names:
            first = {key: started[key].ask(prepare=name) for key in order}
            if errors := {key: str(answer["error"]) for key, answer in first.items() if "error" in answer}:
                head_alone = "run" in errors and "reference" not in errors
                found[name] = (BROKEN if head_alone else "") + next(iter(errors.values()))
                continue
            longest = max(answer["seconds"] for answer in first.values())
            loops = max(1, round(LEAST_SECONDS / longest))
            times: dict[str, list[float]] = {key: [] for key in sides}
            for turn in range(turns_of(loops * longest, len(names), turns)):
                ahead = turn % len(order)  # nobody is always ahead, nor always behind the same one
                for key in order[ahead:] + order[:ahead]:
                    times[key].append(started[key].ask(loops=loops, cpu=cpu)["seconds"])
            found[name] = of_turns(times, next(iter(sides)))
    finally:
        for side in started.values():
            side.close()
    return found


def turns_of(seconds: float, paths: int, turns: tuple[int, int] = TURNS) -> int:
    """How many turns a path has in a block of so many paths, by what one side's turn takes.

    Short turns scatter by ten per cent and more on a busy machine, processes by one or two.
    """
    least, most = turns
    return min(most, max(least, int(BLOCK_SECONDS / paths / (2 * seconds))))


def of_turns(times: dict[str, list[float]], reference: str) -> dict[str, float]:
    """One time a side: the reference's median, and that times the median ratio of neighbours in the turns.

    Neighbours share what the machine does in these milliseconds, which medians of each side do not: of code
    that did not change, ratios of blocks scattered by a tenth to a third less.
    """
    base = statistics.median(times[reference])
    return {
        key: base * statistics.median(new / old for old, new in zip(times[reference], values, strict=True))
        for key, values in times.items()
    }


def collect(
    sides: dict[str, tuple[Path, float]], names: Sequence[str], blocks: int, start: int = 0
) -> dict[str, Any]:
    """Name -> side -> one time a block; name -> a text where a path could not be timed."""
    found: dict[str, Any] = {}
    for number in range(start, start + blocks):
        for name, times in block(
            sides, [n for n in names if not isinstance(found.get(n), str)], number
        ).items():
            if isinstance(times, str):
                found[name] = times
            else:
                for key, value in times.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    return found


def until_told(
    measure: Callable[[Sequence[str], int], dict[str, Any]],
    names: Sequence[str],
    bound: float,
    looks: int,
    significance: float = SIGNIFICANCE,
) -> tuple[dict[str, Any], list[Any]]:
    """Times and verdicts; paths are measured again and again, until told or looked at so many times.

    Args:
        measure: of the paths to go on with and the number of the look, as ``collect``: both sides' times.
        names: of the paths.
        bound: of the rise, e.g. 0.025; what is told is whether it is passed, or twice that ruled out.
        looks: at most.
        significance: error of calling anything slower, shared among paths and looks.
    """
    from evalharness.gates.spec import Gate
    from evalharness.gates.status import Status
    from evalharness.gates.timings import Timing, judge_timings

    gate = Gate(metric="timings", max_rise_relative=bound)
    times: dict[str, Any] = {}
    verdicts: dict[str, Any] = {}
    open_names = list(names)
    for look in range(looks):
        for name, found in measure(open_names, look).items():
            if isinstance(found, str):
                times[name] = found
                verdicts.pop(name, None)
            if isinstance(times.get(name), str):
                continue
            for key, values in found.items():
                times.setdefault(name, {}).setdefault(key, []).extend(values)
        pairs = {
            name: Timing(tuple(t["reference"]), tuple(t["run"]), looks)
            for name, t in times.items()
            if not isinstance(t, str)
        }
        verdicts |= {v.row: v for v in judge_timings(gate, pairs, significance) if v.row in open_names}
        open_names = [name for name in verdicts if verdicts[name].status is Status.INCOMPLETE]
        if not open_names:
            break
    return times, list(verdicts.values())


def document(verdicts: Sequence[Any], skipped: dict[str, str]) -> str:
    """Markdown, the worst first."""
    lines = ["# Hot paths against the base commit", "", "| path | base ms | head ms | change | verdict |"]
    lines.append("|---|---|---|---|---|")
    for each in sorted(verdicts, key=lambda v: -(v.run / v.reference)):
        times = f"{1000 * each.reference:.3g} | {1000 * each.run:.3g}"
        lines.append(f"| {each.row} | {times} | {each.reason} | {each.status.value} |")
    lines += [f"| {name} | - | - | not timed: {why[:80]} | - |" for name, why in skipped.items()]
    return "\n".join(lines) + "\n"


def compare(
    base: Path, names: Sequence[str], blocks: int, looks: int, bound: float
) -> tuple[dict[str, Any], str, bool]:
    """Times, the document, and whether anything is slower, or fails where the base does not."""
    from evalharness.gates.status import Status

    sides = {"reference": (base, 0.0), "run": (ROOT, 0.0)}
    found, verdicts = until_told(
        lambda paths, look: collect(sides, paths, blocks, look * blocks), names, bound, looks
    )
    skipped = {name: times for name, times in found.items() if isinstance(times, str)}
    timings = {name: {**times, "looks": looks} for name, times in found.items() if name not in skipped}
    is_worse = any(v.status is Status.REGRESSION for v in verdicts)
    is_worse |= any(why.startswith(BROKEN) for why in skipped.values())
    return timings, document(verdicts, skipped), is_worse


def planted(draws: int, names: Sequence[str], blocks: int, looks: int, bound: float) -> dict[str, Any]:
    """How often the judge sees 5 % more, and how often it sees something where nothing is.

    A third more blocks are measured than one verdict may take, and each draw takes them in another order: the
    draws share their blocks, and show that the verdict does not hang on which. Ctrl-C ends the measuring.

    Raises:
        SystemExit: it was ended before one verdict's worth of blocks.
    """
    sides = {"reference": (ROOT, 0.0), "no-op": (ROOT, 0.0), "5 % slower": (ROOT, 0.05)}
    times: dict[str, Any] = {name: {side: [] for side in sides} for name in names}
    for number in range(blocks * (looks + 1)):
        try:
            new = block(sides, names, number)
        except KeyboardInterrupt:
            break
        for name, found in new.items():
            if isinstance(found, str):
                raise SystemExit(f"{name} cannot be timed: {found}")
            for side, seconds in found.items():
                times[name][side].append(seconds)
        print(f"block {number + 1} of {blocks * (looks + 1)}", file=sys.stderr, flush=True)
    if min(len(found["no-op"]) for found in times.values()) < blocks * looks:
        raise SystemExit(f"too early: a verdict may take {blocks * looks} blocks")
    record: dict[str, Any] = {"draws": draws, "blocks": blocks, "looks": looks, "bound": bound}
    record |= {"turns": list(TURNS), "block_seconds": BLOCK_SECONDS}
    record["milliseconds"] = {
        name: {side: [round(1000 * value, 4) for value in values] for side, values in times[name].items()}
        for name in names
    }
    return record | verdicts_of_draws(record)


def verdicts_of_draws(record: dict[str, Any]) -> dict[str, Any]:
    """Path -> arm -> how the draws of a record's times were judged, and by how much they rose."""
    from benchmarks.hot_paths import HOT_PATHS

    rng, blocks, looks = random.Random(0), record["blocks"], record["looks"]  # noqa: S311 - no secrets
    share = SIGNIFICANCE / len(HOT_PATHS)  # as where all of them are timed
    found: dict[str, Any] = {}
    for name, times in record["milliseconds"].items():
        found[name] = {}
        for arm in ("no-op", "5 % slower"):
            statuses, rises, used = [], [], []
            for _ in range(record["draws"]):
                order = rng.sample(range(len(times[arm])), blocks * looks)

                def measure(paths: Sequence[str], look: int) -> dict[str, Any]:
                    places = order[look * blocks : (look + 1) * blocks]  # noqa: B023 - used within the draw
                    pair = {"reference": times["reference"], "run": times[arm]}  # noqa: B023
                    return {n: {k: [v[place] for place in places] for k, v in pair.items()} for n in paths}

                taken, [verdict] = until_told(measure, [name], record["bound"], looks, share)
                statuses.append(verdict.status.value)
                used.append(len(taken[name]["run"]))
                rises.append(float(verdict.reason.split(" %")[0]))
            found[name][arm] = {
                "regressions": statuses.count("REGRESSION"),
                "passes": statuses.count("PASS"),
                "not_told": statuses.count("INCOMPLETE"),
                "blocks_used": sorted(used),
                "rises_pct": sorted(rises),
            }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 where something is slower or fails in the head alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base", type=Path, nargs="?", help="another checkout")
    parser.add_argument("--paths", nargs="+", default=None)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--looks", type=int, default=LOOKS, help="times so many blocks at most")
    parser.add_argument("--bound", type=float, default=BOUND)
    parser.add_argument("--planted", type=int, default=0, metavar="DRAWS")
    parser.add_argument("--markdown", type=Path, default=None)
    parser.add_argument(
        "--output", type=Path, default=None, help="JSON; of two checkouts for check --timings"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--slower", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve(options.slower)
        return 0
    from benchmarks.hot_paths import HOT_PATHS
    from evalharness.store import atomic_write_json, atomic_write_text

    names = options.paths or list(HOT_PATHS)
    if options.planted:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it runs in the background
        found = planted(options.planted, names, options.blocks, options.looks, options.bound)
        text, is_slower = json.dumps({k: v for k, v in found.items() if k != "milliseconds"}, indent=1), False
    elif options.base is None:
        parser.error("give another checkout, or --planted")
    else:
        found, text, is_slower = compare(
            options.base.resolve(), names, options.blocks, options.looks, options.bound
        )
    print(text)
    if options.markdown is not None:
        atomic_write_text(options.markdown, text)
    if options.output is not None:
        atomic_write_json(options.output, found)
    return 1 if is_slower else 0


if __name__ == "__main__":
    sys.exit(main())
