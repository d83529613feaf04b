"""What benchmark scripts share: their command line, and parts that run one after the other.

    parser = command_line(__doc__, "mine.json", repeats=15, limits_s={"kernels": 60.0, "step": 240.0})
    parser.add_argument("--frames", type=int, default=13)
    given = parsed(parser, argv, PARTS)
    return run_parts(given.parts, lambda part: PARTS[part](given, limit_s(given, part)), given)

A part returns a dict with its ``ratios`` and whatever else is to be recorded. One that fails is
recorded with its error and what it saved before, and costs the others nothing; results are written after
each part, and within one where it calls ``given.save(found)``. ``--limit-s`` holds for all parts together:
none begins after it.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import surroundings, write_json

__all__ = ["attempted", "command_line", "limit_s", "on_device", "parsed", "print_tree", "run_parts"]


def command_line(
    doc: str | None, output: str, *, repeats: int | None = None, limits_s: Mapping[str, float] | None = None
) -> argparse.ArgumentParser:
    """The options that scripts have in common; further ones may be added.

    Args:
        doc: of the script; its first line becomes the description.
        output: name of the file that is written if none is given.
        repeats: default of ``--repeats``; no such option if None.
        limits_s: the script's parts and how many seconds each may take: ``--parts``, and a
            ``--NAME-s`` for each. Without it the script takes care of its parts itself.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    if limits_s is not None:
        parser.add_argument("--parts", default=",".join(limits_s), help="comma-separated; default: all")
        help_ = "seconds for all parts: none begins after it, and those that run end their measurements"
        parser.add_argument("--limit-s", type=float, default=float("inf"), help=help_)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--output", type=Path, default=Path(output))
    if repeats is not None:
        help_ = "timed turns of each variant, at most"
        parser.add_argument("--repeats", type=int, default=repeats, help=help_)
    for part, seconds in (limits_s or {}).items():
        help_ = "seconds after which this part begins no further measurement"
        parser.add_argument(f"--{part.replace('_', '-')}-s", type=float, default=seconds, help=help_)
    return parser


def parsed(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    parts: Collection[str] = (),
    **lists: Collection[str],
) -> argparse.Namespace:
    """What was given, with the parts as a list; ends the program if it makes no sense.

    Args:
        parser: from ``command_line``.
        argv: the arguments; those of the program if None.
        parts: allowed values in ``--parts``, comma-separated; not looked at if there are none.
        lists: names of other options of that kind, and their allowed values.
    """
    given = parser.parse_args(argv)
    for option, allowed in {**({"parts": parts} if parts else {}), **lists}.items():
        names = getattr(given, option).split(",")
        setattr(given, option, names)
        for name in names:
            if name not in allowed:
                parser.error(f"--{option}: {name!r} is none of {', '.join(allowed)}")
    if not given.output.absolute().parent.is_dir():  # found out after minutes of measuring otherwise
        parser.error(f"--output: {given.output.parent} is no folder; make it, or choose another")
    if not torch.cuda.is_available() and not given.tiny:
        parser.error("torch sees no CUDA device; --tiny tries the script without one")
    given.started, given.save = time.monotonic(), lambda found: None
    return given


def on_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def limit_s(given: argparse.Namespace, part: str) -> float:
    """The seconds of ``--PART-s``, or what is left of ``--limit-s``."""
    return min(float(getattr(given, f"{part}_s")), left_s(given))


def left_s(given: argparse.Namespace) -> float:
    """Seconds that are left of ``--limit-s``; endless without one."""
    return float(getattr(given, "limit_s", None) or float("inf")) - (time.monotonic() - given.started)


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` returns, or its error: one part that fails must not cost the others their time."""
    start = time.monotonic()
    try:
        found = measure()
    except Exception as error:
        traceback.print_exc()
        found = {"ratios": {}, "error": f"{type(error).__name__}: {error}"}
    found["took_s"] = round(time.monotonic() - start, 1)
    return found


def run_parts(
    names: Iterable[str],
    measure: Callable[[str], dict[str, Any]],
    given: argparse.Namespace,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> int:
    """Measure the parts; results go to ``given.output`` after each.

    Args:
        names: of the parts, in order.
        measure: gives what is found of one.
        given: from ``parsed``.
        facts: what else is to be recorded; asked after each part.

    Returns:
        0 if all parts ended well, else 1.
    """
    device = on_device()
    parts: dict[str, dict[str, Any]] = {}
    results = {"tiny": given.tiny, **surroundings(device)}

    def save(name: str, found: dict[str, Any]) -> None:
        parts[name] = found
        ratios = {part: entry["ratios"] for part, entry in parts.items()}
        write_json(given.output, {**results, **facts(), "ratios": ratios, "parts": parts})

    for name in names:
        if left_s(given) <= 0:
            save(name, {"ratios": {}, "skipped": "no time was left", "took_s": 0.0})
            continue
        given.save = partial(save, name)
        found = attempted(partial(measure, name))
        if "error" in found:  # what the part had measured until then stays
            found = {**parts.get(name, {}), **found, "ratios": parts.get(name, found)["ratios"]}
        save(name, found)
        print(f"{name}, {found['took_s']} s", flush=True)
        print_tree(found["ratios"])
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 1 if any("error" in found for found in parts.values()) else 0


def print_tree(ratios: Mapping[str, Any], indent: str = "  ") -> None:
    """One ratio a line."""
    for name, value in ratios.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            print(f"{indent}{name}")
            print_tree(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}", flush=True)
