"""A grid of trainings, read from YAML. No torch here.

Such as the following::

    training_clips: 16384             # rendered for each training seed
    validation: {clips: 1024, batch: 512}
    compare: [qvgen, kd-qat]          # contender and baseline of the report
    kept: qvgen-drop                  # the arm that has Phi to its last step, if there is one
    hypotheses:                       # on the held-out loss at the end, judged by the report
      - {lower: qvgen-until75, than: qvgen}
    recipe: {steps: 500, ...}         # of every arm
    arms:
      kd-qat: {method: kd-qat}
      qvgen-until75: {method: qvgen, options: {decay_until: 0.75}}
    blocks:                           # trained in this order
      core:
        arms: [kd-qat, qvgen-until75]
        bits: [4, 3, 2]
        seeds: [0, 1, 2]              # of training: data order, noise, random starts
        skip_layers: [std]
        axes:                         # every arm at every point of every axis
          steps: {200: {recipe: {steps: 200}}, 600: {recipe: {steps: 600}}}
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evalharness.api import Bits
from evalharness.cells import Cell, build_method
from evalharness.config import parse_bits
from evalharness.errors import UserError, unknown
from evalharness.hashing import jsonable
from evalharness.names import check_name
from evalharness.registry import Registry

__all__ = ["VALIDATION_SEED", "Arm", "Grid", "read_grid"]

VALIDATION_SEED = 1 << 20  # far from any training seed
_MODEL = "tinyworld"
_KEYS = ("training_clips", "validation", "compare", "kept", "hypotheses", "recipe", "arms", "blocks")
_BLOCK_KEYS = ("arms", "bits", "seeds", "skip_layers", "axes")
_ARM_KEYS = ("method", "options")
_PRESETS = ("std", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training.

    Attributes:
        name: of its row in the grid.
        cell: method, options, bits and seed; its label is the name with the axes' points appended.
        skip_layers: preset, ``std`` or ``none``.
        axes: axis -> name of the point.
        block: where the grid names it first.
    """

    name: str
    cell: Cell
    skip_layers: str
    axes: Mapping[str, str]
    block: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All arms, in the order of training: block by block, each seed by seed.

    Attributes:
        compare: names of the contender and the baseline.
        kept: name of the arm that has Phi to its last step; None: there is none.
        hypotheses: (a, b): at the end the held-out loss of arm a is lower than that of b.
        training_clips: rendered for each training seed.
        validation_clips, validation_batch: clips rendered, and samples of the one held-out batch, which
            all arms and seeds share.
    """

    arms: Sequence[Arm]
    compare: tuple[str, str]
    kept: str | None
    hypotheses: Sequence[tuple[str, str]]
    training_clips: int
    validation_clips: int
    validation_batch: int

    @property
    def names(self) -> list[str]:
        """Names of the arms, in the grid's order."""
        return list(dict.fromkeys(arm.name for arm in self.arms))

    def chosen(self, blocks: Sequence[str] = (), seeds: Sequence[int] = ()) -> Grid:
        """The same with some blocks and training seeds only; all of them for none.

        Raises:
            UserError: no such block or seed.
        """
        names = list(dict.fromkeys(arm.block for arm in self.arms))
        for block in blocks:
            if block not in names:
                raise unknown("block", block, names)
        every_seed = sorted({arm.cell.seed for arm in self.arms})
        for seed in seeds:
            if seed not in every_seed:
                raise unknown("training seed", str(seed), [str(known) for known in every_seed])
        arms = [
            arm
            for arm in self.arms
            if arm.block in (blocks or names) and arm.cell.seed in (seeds or every_seed)
        ]
        if not arms:
            raise UserError(f"blocks {', '.join(blocks)} have no training seed {', '.join(map(str, seeds))}")
        return dataclasses.replace(self, arms=arms)

    def check(self, registry: Registry) -> int:
        """Build every arm's method; returns the optimiser steps of all.

        Raises:
            UserError: a method that is not installed or refuses its options.
        """
        return sum(steps_of(registry, arm.cell) for arm in self.arms)


@dataclass(frozen=True, slots=True)
class _Block:
    name: str
    arms: list[str]
    bits: list[Bits]
    seeds: list[int]
    skip_layers: list[str]
    axes: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(default_factory=dict)


def steps_of(registry: Registry, cell: Cell) -> int:
    """Optimiser steps of a cell's training; 0 for a method that does not train."""
    recipe = jsonable(build_method(registry, cell)).get("recipe") or {}
    return int(recipe.get("steps", 0))


def read_grid(path: Path) -> Grid:
    """Read and expand a grid.

    Raises:
        UserError: unreadable, an unknown key or arm, one name for two different trainings.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--grid {path}: {error}") from error
    _check_keys(data, _KEYS, f"{path}")
    _mapping(data, "recipe", "recipe")
    arms = _mapping(data, "arms", "arms")
    for name, entry in arms.items():
        _check_keys(entry, _ARM_KEYS, f"arm {name!r}")
        _mapping(entry, "options", f"options of arm {name!r}")
        if "method" not in entry:
            raise UserError(f"arm {name!r}: no method; expected {{method: NAME, options: {{...}}}}")
    compare, hypotheses = _comparisons(data, arms)
    kept = data.get("kept")
    if kept is not None and kept not in arms:
        raise unknown("arm in kept", str(kept), arms)
    found = _all_arms(data, arms)
    if not found:
        raise UserError(f"{path}: no arms; expected blocks with arms, bits and seeds")
    validation = data.get("validation") or {}
    _check_keys(validation, ("clips", "batch"), "validation")
    return Grid(
        arms=found,
        compare=compare,
        kept=kept,
        hypotheses=hypotheses,
        training_clips=_positive(data.get("training_clips", 16384), "training_clips"),
        validation_clips=_positive(validation.get("clips", 1024), "validation.clips"),
        validation_batch=_positive(validation.get("batch", 512), "validation.batch"),
    )


def _all_arms(data: Mapping[str, Any], arms: Mapping[str, Any]) -> list[Arm]:
    found: dict[str, Arm] = {}
    for block in _blocks(_mapping(data, "blocks", "blocks"), arms):
        for arm in _expand(block, arms, data.get("recipe") or {}):
            first = found.setdefault(arm.cell.id, arm)
            if dataclasses.replace(first, block=arm.block) != arm:
                raise UserError(f"{arm.cell.id}: two trainings, of blocks {first.block} and {block.name}")
    return list(found.values())


def _comparisons(
    data: Mapping[str, Any], arms: Mapping[str, Any]
) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    compare = tuple(str(name) for name in _list(data, "compare", "compare", ()))
    if len(compare) != 2:
        raise UserError(f"compare is {list(compare)!r}; expected [contender, baseline]")
    pairs = [compare]
    for entry in _list(data, "hypotheses", "hypotheses", ()):
        _check_keys(entry, ("lower", "than"), "hypothesis")
        pairs.append((str(entry.get("lower")), str(entry.get("than"))))
    for name in (name for pair in pairs for name in pair):
        if name not in arms:
            raise unknown("arm that is compared", name, arms)
    return (compare[0], compare[1]), [(a, b) for a, b in pairs]


def _blocks(entries: Mapping[str, Any], arms: Mapping[str, Any]) -> Iterator[_Block]:
    for name, entry in entries.items():
        _check_keys(entry, _BLOCK_KEYS, f"block {name!r}")
        of = f"of block {name!r}"
        block = _Block(
            name=str(name),
            arms=[str(arm) for arm in _list(entry, "arms", f"arms {of}", ()) or arms],
            bits=_bits(entry.get("bits", 3), f"bits {of}"),
            seeds=_list(entry, "seeds", f"seeds {of}", [0]),
            skip_layers=_list(entry, "skip_layers", f"skip_layers {of}", ["std"]),
            axes=_mapping(entry, "axes", f"axes {of}"),
        )
        for axis, points in block.axes.items():
            for point in _mapping(block.axes, axis, f"axis {axis!r} {of}"):
                _mapping(points, point, f"point {point!r} of axis {axis!r}")
        for arm in block.arms:
            if arm not in arms:
                raise unknown(f"arm in block {name!r}", arm, arms)
        for preset in block.skip_layers:
            if preset not in _PRESETS:
                raise unknown(f"skip_layers in block {name!r}", str(preset), _PRESETS)
        for seed in block.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < VALIDATION_SEED:
                raise UserError(f"block {name!r}: seed {seed!r}; expected whole numbers from 0")
        yield block


def _expand(block: _Block, arms: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[Arm]:
    points = [
        [(str(axis), str(point), options or {}) for point, options in entries.items()]
        for axis, entries in block.axes.items()
    ]
    rows = itertools.product(
        block.seeds, block.bits, block.skip_layers, itertools.product(*points), block.arms
    )
    for seed, bits, preset, chosen, name in rows:
        options: dict[str, Any] = _merged({"recipe": recipe}, arms[name].get("options") or {})
        for _, _, more in chosen:
            options = _merged(options, more)
        label = "-".join([name, *(f"{axis}{point}" for axis, point, _ in chosen)])
        label += "" if preset == "std" else f"-{preset}"
        check_name(label, "arm")
        cell = Cell(
            model=_MODEL, method=arms[name]["method"], bits=bits, seed=seed, options=options, label=label
        )
        axes = {axis: point for axis, point, _ in chosen}
        yield Arm(name=name, cell=cell, skip_layers=preset, axes=axes, block=block.name)


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, at every depth."""
    merged = copy.deepcopy(dict(low))
    for key, value in high.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, value) if both and old is not None else copy.deepcopy(value)
    return merged


def _check_keys(entry: Any, allowed: Sequence[str], what: str) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"{what}: expected a mapping, got {entry!r}")
    for key in entry:
        if key not in allowed:
            raise unknown(f"key of {what}", str(key), allowed)


def _mapping(entry: Mapping[str, Any], key: str, what: str) -> Mapping[Any, Any]:
    """The entry of that name; empty if there is none.

    Raises:
        UserError: it is something else.
    """
    value = entry.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{what}: expected a mapping, got {value!r}")
    return value


def _list(entry: Mapping[str, Any], key: str, what: str, default: Iterable[Any]) -> list[Any]:
    """The entry of that name; the default if there is none. A text is no list of its letters.

    Raises:
        UserError: it is something else.
    """
    value = entry.get(key)
    if value is None:
        return list(default)
    if not isinstance(value, list):
        raise UserError(f"{what}: expected a list such as [a, b], got {value!r}")
    return value


def _bits(value: Any, what: str) -> list[Bits]:
    if isinstance(value, bool) or not isinstance(value, (int, str, list)):
        raise UserError(f"{what}: expected bit widths such as 3 or [4, w3a4], got {value!r}")
    return parse_bits(value)


def _positive(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} is {value!r}; expected a whole number from 1")
    return value
