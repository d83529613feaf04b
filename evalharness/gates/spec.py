"""Gates: what a run may lose against its reference. Read from YAML, every mistake named.

A file looks so; ``docs/ci.md`` explains every key::

    significance: 0.01
    gates:
      - {metric: mean, max_drop: 0.5}
      - {metric: dimensions, max_drop: 2.0, max_drop_relative: 0.03}
      - {metric: step_ms, over: reference, max_rise_relative: 0.05}
      - {metric: weights_mb, max_rise_relative: 0.01}
      - {metric: imaging_quality, min: 60}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.errors import UserError, unknown

__all__ = [
    "COSTS",
    "DEFAULT",
    "EACH_DIMENSION",
    "MEAN",
    "TIMES",
    "TIMINGS",
    "Gate",
    "Gates",
    "parse_gates",
    "read_gates",
]

MEAN = "mean"
EACH_DIMENSION = "dimensions"
TIMINGS = "timings"
TIMES = ("step_ms", "step_cpu_ms")
_MEMORY = ("peak_mem_mb", "step_mem_mb", "process_mem_mb")
_SIZES = ("weights_mb", "checkpoint_mb", "executed_mb", "stored_mb", "weight_bits", "act_bits")
COSTS = (*TIMES, *_MEMORY, *_SIZES)
_SEEDS = ("same", "any")
_QUALITY_BOUNDS = ("max_drop", "max_drop_relative", "min")
_COST_BOUNDS = ("max_rise", "max_rise_relative", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Bounds on one metric. Where both an absolute and a relative change are bounded, both must be passed.

    Attributes:
        metric: ``mean``, a dimension, ``dimensions`` (each of them on its own), one of ``COSTS``, or
            ``timings``: each entry of a file of times taken in turns in one job (``gates.timings``).
        over: of a cost: ``reference`` divides it by the full-precision row of the same run first.
        max_drop, max_rise: change from the reference, scores in the unit of the tables.
        max_drop_relative, max_rise_relative: the same as a share of the reference, 0.05 is 5 %.
        min, max: bound on the value itself, whatever the reference has.
        rows: names without seed, e.g. ``lsq-w3a3``, or of timings; empty for all.
    """

    metric: str
    over: str | None = None
    max_drop: float | None = None
    max_drop_relative: float | None = None
    max_rise: float | None = None
    max_rise_relative: float | None = None
    min: float | None = None
    max: float | None = None
    rows: tuple[str, ...] = ()

    @property
    def is_cost(self) -> bool:
        return self.metric in (*COSTS, TIMINGS)

    def __post_init__(self) -> None:
        own, others = (_COST_BOUNDS, _QUALITY_BOUNDS) if self.is_cost else (_QUALITY_BOUNDS, _COST_BOUNDS)
        if wrong := [name for name in others if getattr(self, name) is not None]:
            kind = "a cost" if self.is_cost else "a quality"
            raise UserError(f"gate on {self.metric}: {wrong[0]} does not bound {kind}; use {', '.join(own)}")
        given = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        if not given:
            raise UserError(f"gate on {self.metric}: give at least one of {', '.join(own)}")
        for name, value in given.items():
            if not math.isfinite(value) or value < 0:
                raise UserError(f"gate on {self.metric}: {name}: {value}; expected a number from 0")
        if self.over not in (None, "reference"):
            raise UserError(
                f"gate on {self.metric}: over: {self.over!r}; expected reference, or leave it out"
            )
        if self.metric == TIMINGS and set(given) != {"max_rise_relative"}:
            raise UserError("gate on timings: give max_rise_relative alone; the reference stands in the file")
        if self.over and (not self.is_cost or self.metric == TIMINGS):
            raise UserError(
                f"gate on {self.metric}: over divides a cost by that of full precision; leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """All gates of a check.

    Attributes:
        significance: a drop of quality must be significant at this level, one-sided, corrected by Holm
            for the number of means, or of dimensions, that one check judges; None to take every drop at
            its face value.
        seeds: ``same`` compares seed by seed, and all of the reference's must be there; ``any`` compares
            means over whatever seeds each side has.
        ignore_recipe: keys of the declared recipe that may differ, e.g. ``model_fingerprint``.
        same_hardware: whether gates on times refuse a reference from other hardware.
    """

    gates: tuple[Gate, ...]
    significance: float | None = 0.01
    seeds: str = "same"
    ignore_recipe: tuple[str, ...] = ()
    same_hardware: bool = True

    def __post_init__(self) -> None:
        if not self.gates:
            raise UserError("gates: the list is empty, so that everything would pass; give at least one")
        if self.significance is not None and not 0.0 < self.significance < 1.0:
            raise UserError(f"significance: {self.significance}; expected between 0 and 1, or null")
        if self.seeds not in _SEEDS:
            raise UserError(f"seeds: {self.seeds!r}; expected one of {', '.join(_SEEDS)}")
        _refuse_twice(self.gates)


def _refuse_twice(gates: Sequence[Gate]) -> None:
    """Each would have its share of the error, and of two numbers nobody knows which is meant."""
    seen: dict[tuple[str, str | None, frozenset[str], str], int] = {}
    for place, gate in enumerate(gates, start=1):
        for bound in (*_QUALITY_BOUNDS, *_COST_BOUNDS):
            if getattr(gate, bound) is None:
                continue
            first = seen.setdefault((gate.metric, gate.over, frozenset(gate.rows), bound), place)
            if first != place:
                rows = f" for {', '.join(sorted(gate.rows))}" if gate.rows else ""
                raise UserError(
                    f"gates {first} and {place} both give {bound} of {gate.metric}{rows}; leave one"
                )


DEFAULT = Gates(
    gates=(
        Gate(metric=MEAN, max_drop=0.5),
        Gate(metric=EACH_DIMENSION, max_drop=2.0, max_drop_relative=0.03),
        Gate(metric="weights_mb", max_rise_relative=0.01),
    )
)
"""Without a file: quality and size. Times are left out, as they need a quiet machine."""


def read_gates(path: Path) -> Gates:
    """Read a YAML file.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of another type or out of range.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())[:200]})") from None
    try:
        return parse_gates(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_gates(data: Any) -> Gates:
    """From what YAML gave.

    Raises:
        UserError: as ``read_gates``.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("gates"), list):
        raise UserError("expected a mapping with a list called gates; docs/ci.md shows one")
    gates = tuple(_gate(entry, place) for place, entry in enumerate(data["gates"], 1))
    values = _checked(data, {f.name: str(f.type) for f in dataclasses.fields(Gates)}, "key")
    return Gates(**{**values, "gates": gates})


def _gate(entry: Any, place: int) -> Gate:
    if not isinstance(entry, Mapping) or "metric" not in entry:
        raise UserError(f"gate {place}: expected a mapping with a metric, got {entry!r}")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(Gate)}
    return Gate(**_checked(entry, kinds, f"key of gate {place}"))


def _checked(data: Mapping[Any, Any], kinds: Mapping[str, str], what: str) -> dict[str, Any]:
    """Values whose names and types fit the dataclass whose annotations ``kinds`` holds."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key not in kinds:
            raise unknown(what, str(key), kinds)
        found[key] = value if key == "gates" else _fit(value, kinds[key], f"{what} {key}")
    return found


def _fit(value: Any, kind: str, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if "tuple" in kind:
        entries = [value] if isinstance(value, str) else value
        if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
            return tuple(entries)
        raise UserError(f"{where}: {value!r}; expected a list of names")
    fits = {"float": is_number, "str": isinstance(value, str), "bool": isinstance(value, bool)}
    if (value is None and "None" in kind) or fits[kind.removesuffix(" | None")]:
        return value
    raise UserError(f"{where}: {value!r}; expected {kind.replace('None', 'null')}")
