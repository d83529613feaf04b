"""Whole toy runs under injected faults: nothing lost, nothing counted twice, the same bytes in the end.

    python benchmarks/faults.py --faults 210 --output results/reliability

Each fault has a run folder of its own. A run is disturbed once or twice, then the same command is given
until it exits with 0; where it stops with a line that says what to remove, that is done, as a person would.
Then everything that must not depend on how a run went is compared byte by byte with an undisturbed run. Each
run is a fork of one process that has imported everything, so that a fault costs seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.injection import KINDS, Fault, install
from evalharness.store import atomic_write_text, read_record

PLUGINS = Path(__file__).with_name("toy_plugins.py")
RUN = ("run", "--model", "toy", "--methods", "toy-train,toy-round", "--bits", "3", "--workers", "0")
MOST_COMMANDS = 8
CRASHED = 70
"""An exception that reached the top: no fault may do that."""
FLIPPED = "flipped digit in JSON"
AFTERWARDS = (
    *("truncated record", "duplicated records", "damaged video", "truncated JSON", "deleted JSON"),
    *("flipped digit", "damaged training log", FLIPPED),
)
"""What happens to the files between two runs."""
WHOLE = (
    *("plan.json", "manifest.json", "results.json", ".aggregate.json"),
    *("cells/*/prepare.json", "cells/*/profile.json"),
)
"""What is written whole. One is drawn by its name, so that cells do not outweigh the rest."""
MOST_DRAWS = 20
HELD = ("plan.json", "manifest.json", "prepare.json", "profile.json")
"""What the run's log has a copy of: no flipped digit may go unseen."""
MENDED = ("lost or damaged; taken from", "not as written")
RECORDS = ("cells/*/samples.jsonl", "cells/*/scores.jsonl", "events.jsonl")

_ADVICE = re.compile(r"(?P<path>/\S+?): (?:line (?P<line>\d+)|.*delete it)")


def command(folder: Path) -> list[str]:
    """The run's command line."""
    return [
        *RUN,
        "--plugin",
        str(PLUGINS),
        "--output",
        str(folder),
        "--profile",
    ]


def outcome(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run went; of results.json all but the manifest and the clock."""
    kept = [folder / "scores.csv"]
    for pattern in ("scores.jsonl", "videos/*", "checkpoint/*", "train.jsonl"):
        kept += folder.glob(f"cells/*/{pattern}")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del results["manifest"], results["crc"]
    for cell in results["cells"]:
        cell["profile"] = cell["train_minutes"] = None
    plan = read_record(folder / "plan.json")  # without its checksum, which knows the next line's key
    assert plan is not None
    del plan["identity"]["batch_size"]  # one kind of fault asks for another
    whole = {"results.json": results, "plan.json": plan}
    return found | {name: json.dumps(value, sort_keys=True).encode() for name, value in whole.items()}


def run_once(folder: Path, fault: Fault | None = None) -> tuple[int, str]:
    """One command in a process of its own: its exit code (minus the signal's number) and its messages."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if fault is not None:
                install(fault, folder)
            from evalharness.cli.main import main

            code = main(command(folder))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")


def damage(kind: str, folder: Path, rng: random.Random) -> str:
    """Do to a file what a bad disk or a copy gone wrong does; says which, or nothing if none is there."""
    patterns: dict[str, Sequence[str]] = {
        "truncated record": RECORDS,
        "flipped digit": RECORDS,
        "damaged training log": ["cells/*/train.jsonl"],
        "duplicated records": ["cells/*/samples.jsonl", "cells/*/scores.jsonl"],
        "damaged video": ["cells/*/videos/*.mp4"],
        "truncated JSON": WHOLE,
        "deleted JSON": WHOLE,
        FLIPPED: WHOLE,
    }
    there = [sorted(path for path in folder.glob(p) if path.stat().st_size) for p in patterns[kind]]
    there = [files for files in there if files]
    if not there:
        return ""
    path = rng.choice(rng.choice(there))
    data = path.read_bytes()
    how = rng.choice(("deleted", "cut", "changed")) if kind == "damaged training log" else kind
    if how in ("deleted", "deleted JSON"):
        path.unlink()
        return path.relative_to(folder).as_posix()
    if kind == "duplicated records":
        lines = data.splitlines(keepends=True)
        again = rng.sample(lines, rng.randint(1, len(lines)))
        path.write_bytes(data + b"".join(line for line in again if line.endswith(b"\n")))
    elif how in ("flipped digit", FLIPPED, "changed"):
        place = rng.choice([at for at, byte in enumerate(data) if chr(byte).isdigit()])
        path.write_bytes(data[:place] + b"%d" % ((data[place] - 47) % 10) + data[place + 1 :])
    elif kind == "damaged video" and rng.random() < 0.5:
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    else:
        path.write_bytes(data[: rng.randrange(len(data))])
    return path.relative_to(folder).as_posix()


def obey(message: str) -> bool:
    """Remove the file or the line that an error names; whether it named one."""
    for line in message.splitlines():
        if not line.startswith("error: "):
            continue
        if match := _ADVICE.search(line):
            path = Path(match["path"])
            if match["line"] is None:
                path.unlink()
            else:
                lines = path.read_bytes().splitlines(keepends=True)
                del lines[int(match["line"]) - 1]
                path.write_bytes(b"".join(lines))
            return True
    return False


def suffer(
    number: int, kind: str, operations: int, folder: Path, expected: dict[str, bytes]
) -> dict[str, Any]:
    """One fault from beginning to end."""
    rng = random.Random(number)  # noqa: S311 - repeatable, no secrets
    codes: list[int] = []
    advice, mended, drawn, what = 0, 0, 0, ""
    while drawn < MOST_DRAWS:  # until there is something to damage
        drawn += 1
        fault = Fault(
            kind if kind in KINDS else "kill",
            rng.randrange(operations),
            when=rng.choice(("before", "within", "after")),
            length=rng.choice((1, 5, 10**9)),
            seed=number,
        )
        code, message = run_once(folder, fault)
        codes = [code]
        what = damage(kind, folder, rng) if kind in AFTERWARDS else ""
        if what or kind not in AFTERWARDS:
            break
        shutil.rmtree(folder, ignore_errors=True)
    else:
        raise RuntimeError(f"fault {number}, {kind}: nothing to damage in {MOST_DRAWS} draws")
    while len(codes) < MOST_COMMANDS and (code != 0 or len(codes) == 1):
        # A GPU stays as small as it is, and a smaller batch asked for would be another run.
        code, message = run_once(folder, fault if kind == "out of GPU memory" else None)
        codes.append(code)
        mended += sum(message.count(sign) for sign in MENDED)
        if code == 2 and obey(message):
            advice += 1
    if CRASHED in codes:
        raise RuntimeError(f"fault {number}, {kind}: the command crashed: {message}")
    same = code == 0 and outcome(folder) == expected
    if kind == FLIPPED and Path(what).name in HELD:
        same = same and bool(mended)
    left = [path.name for path in folder.rglob(".tmp-*")]
    record = {
        "fault": number,
        "kind": kind,
        "operation": fault.operation,
        "when": fault.when,
        "exit codes": codes,
        "advice followed": advice,
        "same bytes": same and not left,
    }
    if what:
        record |= {"file": what, "drawn": drawn, "mended": bool(mended)}
    if not record["same bytes"]:
        record["message"] = message[-2000:]
    return record


def undisturbed(folder: Path) -> tuple[dict[str, bytes], int]:
    """The outcome of a quiet run, and how many file operations it makes."""
    code, message = run_once(folder, Fault("count", -1))
    if code:
        raise RuntimeError(message)
    return outcome(folder), int(folder.with_suffix(".operations").read_text())


def warm(folder: Path) -> None:
    """Import and set up everything once, in this process: forks then start at once."""
    from evalharness.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(command(folder))
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}")


def campaign(numbers: Sequence[int], kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A record for each fault; the kinds take turns."""
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        warm(Path(place) / "warm")
        expected, operations = undisturbed(Path(place) / "quiet")
        for number in numbers:
            folder = Path(place) / f"run{number}"
            begin = time.monotonic()
            record = suffer(number, kinds[number % len(kinds)], operations, folder, expected)
            yield {**record, "seconds": round(time.monotonic() - begin, 1)}
            shutil.rmtree(folder, ignore_errors=True)


def document(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line a kind."""
    same = sum(record["same bytes"] for record in records)
    seconds = sum(record["seconds"] for record in records)
    lines = [
        "# Injected faults",
        "",
        f"Made by `python benchmarks/faults.py --faults {len(records)}` in {seconds / 60:.0f} min.",
        f"{same} of {len(records)} runs ended with the bytes of an undisturbed run.",
        "",
        "| fault | runs | same bytes | commands until done (most) | a line or file removed as told "
        "| mended from the run's log |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(record["kind"] for record in records):
        mine = [record for record in records if record["kind"] == kind]
        lines.append(
            f"| {kind} | {len(mine)} | {sum(r['same bytes'] for r in mine)} | "
            f"{max(len(r['exit codes']) for r in mine)} | {sum(r['advice followed'] > 0 for r in mine)} | "
            f"{sum(r.get('mended', False) for r in mine)} |"
        )
    return "\n".join(lines) + "\n"


def write(records: Sequence[dict[str, Any]], output: Path) -> None:
    """Whole after each fault, so that a campaign that was ended can be gone on with (``--first``)."""
    lines = ",\n ".join(json.dumps(record) for record in records)
    atomic_write_text(output / "faults.json", f"[\n {lines}\n]\n")
    atomic_write_text(output / "faults.md", document(records))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 if any run ended with other bytes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=210)
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one or to go on")
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, *AFTERWARDS])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    records: list[dict[str, Any]] = []
    if options.output is not None and options.first:
        known = json.loads((options.output / "faults.json").read_text(encoding="utf-8"))
        records = [record for record in known if record["fault"] < options.first]
    for record in campaign(range(options.first, options.faults + options.first), options.kinds):
        records.append(record)
        if not record["same bytes"]:
            print(json.dumps(record), flush=True)
        if options.output is not None:
            write(records, options.output)
    print(document(records))
    return 0 if all(record["same bytes"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
