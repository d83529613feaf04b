"""What ``vbench_speed`` writes: how many times faster, seconds for a clip, and how far values are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.vbench_timing import Timed

__all__ = ["as_they_run", "differences", "merged", "summary"]


def summary(
    upstream: Timed, native: Timed, dimensions: Sequence[str], sizes: Sequence[str]
) -> dict[str, Any]:
    """Seconds for a clip, how many times faster, and how far values are apart.

    Seconds are medians over the clips that a side took. ``apart`` sums native's dimensions as if each had
    decoded the clip for itself. A dimension that failed on either side is named and in no sum.
    """
    failed = {
        name: {
            side: timed.failed[name]
            for side, timed in (("upstream", upstream), ("native", native))
            if name in timed.failed
        }
        for name in dimensions
        if name in upstream.failed or name in native.failed
    }
    compared = [name for name in dimensions if name not in failed]
    return {
        "sizes": {size: _row(upstream, native, compared, list(failed), size) for size in sizes},
        "largest_difference": differences(upstream, native),
        **({"failed": failed} if failed else {}),
    }


def _row(
    upstream: Timed, native: Timed, compared: Sequence[str], failed: Sequence[str], size: str
) -> dict[str, Any]:
    theirs = {name: upstream.typical(name, size) for name in compared}
    ours = {name: native.typical(name, size) for name in ("decoding", *compared, "together")}
    if ours["together"] is not None:  # it may hold a dimension that failed on the other side
        ours["together"] -= sum(native.typical(name, size) or 0.0 for name in failed)
    whole = bool(theirs) and all(value is not None for value in theirs.values())
    total = sum(value for value in theirs.values() if value is not None) if whole else None
    alone = sum((ours[name] or 0.0) + (ours["decoding"] or 0.0) for name in compared)
    return {
        "times_faster": _over(total, ours["together"]),
        "times_faster_apart": _over(total, alone),
        "upstream_s": {**theirs, "together": total},
        "native_s": {**ours, "apart": alone},
        "clips_timed": {
            "native": native.count("together", size),
            "upstream": {name: upstream.count(name, size) for name in compared},
        },
    }


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of runs that had some dimensions each, where memory does not hold all networks at once.

    The clip is decoded once, as in one run: the shortest of the times that were taken.

    Raises:
        ValueError: they differ in anything but their dimensions, or have one in common.
    """
    facts = [_but_for_dimensions(part) for part in parts]
    for fact in facts[1:]:
        unequal = sorted(key for key in fact.keys() | facts[0].keys() if fact.get(key) != facts[0].get(key))
        if unequal:
            told = "; ".join(f"{key}: {facts[0].get(key)} and {fact.get(key)}" for key in unequal)
            raise ValueError(f"--merge: the runs differ, so that no record holds for both: {told}")
    found: dict[str, Any] = {}
    for math, by_precision in parts[0]["math"].items():
        found[math] = {}
        for precision in by_precision:
            told_by = [part["math"][math][precision] for part in parts]
            table = {
                size: _one_row([each["sizes"][size] for each in told_by])
                for size in by_precision[precision]["sizes"]
            }
            apart = {name: value for each in told_by for name, value in each["largest_difference"].items()}
            found[math][precision] = {"sizes": table, "largest_difference": apart}
    left_out = {name: why for part in parts for name, why in part.get("left_out", {}).items()}
    joined = {key: value for key, value in parts[0].items() if key not in ("clip_seconds", "cut_short")}
    return {
        **joined,
        "math": found,
        "times_faster_as_they_run": as_they_run(found),
        "left_out": left_out,
        "merged": len(parts),
    }


def _but_for_dimensions(part: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run recorded but results and dimensions; of the results what they are of."""
    own = ("math", "times_faster_as_they_run", "left_out", "merged", "clip_seconds", "cut_short")
    cases = [
        f"{math} {precision} {size}"
        for math, by_precision in part["math"].items()
        for precision, told in by_precision.items()
        for size in told["sizes"]
    ]
    return {**{key: value for key, value in part.items() if key not in own}, "cases": sorted(cases)}


def _one_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = ("decoding", "together", "apart")
    names = [name for row in rows for name in row["upstream_s"] if name not in own]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--merge: {', '.join(twice)} was timed by more than one of the runs")
    theirs = {name: value for row in rows for name, value in row["upstream_s"].items() if name not in own}
    ours = {name: value for row in rows for name, value in row["native_s"].items() if name not in own}
    decoding = min(row["native_s"]["decoding"] for row in rows)
    total = None if None in theirs.values() else sum(theirs.values())  # None: a run was cut off
    together = decoding + sum(ours.values())
    alone = together + decoding * (len(ours) - 1)
    counts = {name: n for row in rows for name, n in row["clips_timed"]["upstream"].items()}
    return {
        "times_faster": _over(total, together),
        "times_faster_apart": _over(total, alone),
        "upstream_s": {**theirs, "together": total},
        "native_s": {"decoding": decoding, **ours, "together": together, "apart": alone},
        "clips_timed": {"native": min(row["clips_timed"]["native"] for row in rows), "upstream": counts},
    }


def differences(upstream: Timed, native: Timed) -> dict[str, float]:
    """The largest of all clips, by dimension."""
    return {
        name: max(
            abs(value - native.values[name][path])
            for path, value in found.items()
            if path in native.values[name]
        )
        for name, found in upstream.values.items()
        if found.keys() & native.values.get(name, {}).keys()
    }


def as_they_run(found: Mapping[str, Any]) -> dict[str, float | None]:
    """By size: the package with torch's own settings over native without TF32, as in the harness."""
    if not {"default", "strict"} <= found.keys():
        return {}
    [theirs, ours] = (next(iter(found[name].values()))["sizes"] for name in ("default", "strict"))
    return {
        size: _over(theirs[size]["upstream_s"]["together"], ours[size]["native_s"]["together"])
        for size in ours
    }


def _over(value: float | None, base: float | None) -> float | None:
    return round(value / base, 2) if value and base else None
