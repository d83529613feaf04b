"""Scores of several cells as columns: put together, subtracted, laid out for statistics.

What ``stats`` and ``effects`` compute from a mapping ``Key -> score`` they compute from ``Columns`` too, to
the last bit: sums run over the same values in the same order.

Shape legend: N videos, P prompts, S seeds, K videos that all seeds have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from evalharness.scoretable import Codes, Floats, Integers, Names, ScoreTable, union

__all__ = ["Columns", "Common", "common", "mean_over", "running_sum", "together"]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Scores of distinct videos, in any order.

    Attributes:
        names: prompt ids in order [P].
        prompt: place of each video's prompt in ``names`` [N].
        rests: what else tells videos apart (a number, or seed and number), in order, without repeats.
        rest: place of each video's in ``rests`` [N].
        value: [N].
    """

    names: Names
    prompt: Codes
    rests: tuple[Any, ...]
    rest: Integers
    value: Floats

    @classmethod
    def of(cls, parts: Iterable[tuple[int | None, ScoreTable]]) -> Columns:
        """Tables put together, each with the seed that tells its videos from others'; None for no seed.

        Of a video that is there twice the last score counts.
        """
        tables = list(parts)
        if len(tables) == 1:
            return cls._of_one(*tables[0])
        names, places = union([table.names for _, table in tables])
        kinds = [_kinds(seed, table) for seed, table in tables]
        rests = tuple(sorted({kind for found, _ in kinds for kind in found}))
        at = {kind: index for index, kind in enumerate(rests)}
        joined = cls(
            names,
            _joined(
                [place[table.prompt] for place, (_, table) in zip(places, tables, strict=True)], np.int32
            ),
            rests,
            _joined([np.array([at[k] for k in found], np.int64)[w] for found, w in kinds], np.int64),
            _joined([table.value for _, table in tables], np.float64),
        )
        return joined._distinct()

    @classmethod
    def _of_one(cls, seed: int | None, table: ScoreTable) -> Columns:
        """One table's, made once: a check asks for it at every gate."""
        known: Columns | None = table.known.get(seed)
        if known is None or known.names is not table.names:
            kinds, where = _kinds(seed, table)
            known = cls(table.names, table.prompt, tuple(kinds), where, table.value)._distinct()
            table.known[seed] = known
        return known

    def __len__(self) -> int:
        return len(self.value)

    def keys(self) -> Integers:
        """One number a video; videos of ``together`` have the same number in all."""
        return self.prompt.astype(np.int64) * max(1, len(self.rests)) + self.rest

    def take(self, which: Any) -> Columns:
        """Some of the videos, by any index of NumPy."""
        return replace(self, prompt=self.prompt[which], rest=self.rest[which], value=self.value[which])

    def minus(self, other: Columns) -> Columns:
        """Differences on the videos that both have."""
        mine, theirs = together([self, other])
        keys, others = mine.keys(), theirs.keys()
        if np.array_equal(keys, others):  # as of two cells of one run: nothing to look for
            return replace(mine, value=mine.value - theirs.value)
        order = np.argsort(others)
        place = np.searchsorted(others, keys, sorter=order)
        place[place == len(others)] = 0
        match = order[place] if len(others) else np.zeros(len(keys), np.int64)
        both = others[match] == keys if len(others) else np.zeros(len(keys), bool)
        common = mine.take(both)
        return replace(common, value=common.value - theirs.value[match[both]])

    def stretched(self, low: float, factor: float) -> Columns:
        """``factor * (score - low)``."""
        return replace(self, value=factor * (self.value - low))

    def in_order(self) -> Columns:
        """By prompt, and by the text of what else tells videos apart."""
        texts = sorted(range(len(self.rests)), key=lambda index: repr(self.rests[index]))
        rank = np.empty(len(texts), np.int64)
        rank[texts] = np.arange(len(texts))
        return self.take(np.lexsort((rank[self.rest], self.prompt)))

    def _distinct(self) -> Columns:
        keys = self.keys()
        if _rises(keys):
            return self
        _, last = np.unique(keys[::-1], return_index=True)
        return self if len(last) == len(keys) else self.take(np.sort(len(keys) - 1 - last))


class Common(NamedTuple):
    """Scores of S seeds on the videos that all of them have.

    Attributes:
        parts: of each dimension the place of each video's prompt among the prompts [K], and scores [S, K].
        prompts: distinct ones; ``videos`` too.
    """

    parts: list[tuple[Any, Floats]]
    prompts: int
    videos: int


def together(several: Sequence[Columns]) -> list[Columns]:
    """The same with common ``names`` and ``rests``, so that their places and keys can be compared."""
    rests = several[0].rests if several else ()
    is_alike = all(each.rests == rests for each in several)
    if is_alike and all(each.names == several[0].names for each in several):
        return list(several)
    names, places = union([each.names for each in several])
    if not is_alike:
        rests = tuple(sorted({kind for each in several for kind in each.rests}))
    at = {kind: index for index, kind in enumerate(rests)}
    found = []
    for each, place in zip(several, places, strict=True):
        prompt = each.prompt if each.names is names else place[each.prompt]
        rest = each.rest
        if each.rests != rests:
            rest = np.array([at[kind] for kind in each.rests], np.int64)[rest]
        found.append(Columns(names, prompt, rests, rest, each.value))
    return found


def common(differences: Sequence[Mapping[str, Columns]]) -> Common:
    """Of one entry a seed: dimension by dimension, in the order of their names."""
    dimensions = sorted(differences[0])
    flat = iter(together([each[name] for name in dimensions for each in differences]))
    parts, keys, prompts = [], [], []
    for _ in dimensions:
        seeds = [next(flat) for _ in differences]
        own = [one.keys() for one in seeds]
        common = own[0] if _rises(own[0]) else np.unique(own[0])
        for each in own[1:]:
            common = common if np.array_equal(common, each) else np.intersect1d(common, each)
        prompt = common // max(1, len(seeds[0].rests))
        values = [_at(one, keys_of, common) for one, keys_of in zip(seeds, own, strict=True)]
        parts.append((prompt, np.array(values, dtype=np.float64)))
        keys.append(common)
        prompts.append(prompt)
    present = np.unique(np.concatenate(prompts)) if prompts else np.zeros(0, np.int64)
    videos = len(np.unique(np.concatenate(keys))) if keys else 0
    return Common([(np.searchsorted(present, p), values) for p, values in parts], len(present), videos)


def mean_over(tables: Sequence[ScoreTable]) -> Columns:
    """Each video's mean over the tables that have it; summed in their order."""
    numbered = together([Columns.of([(None, table)]) for table in tables])
    if not numbered:
        return Columns((), np.zeros(0, np.int32), (), np.zeros(0, np.int64), np.zeros(0))
    keys = np.concatenate([each.keys() for each in numbered])
    values = np.concatenate([each.value for each in numbered])
    distinct, place = np.unique(keys, return_inverse=True)
    means = np.bincount(place, weights=values) / np.bincount(place)
    size = max(1, len(numbered[0].rests))
    return replace(numbered[0], prompt=(distinct // size).astype(np.int32), rest=distinct % size, value=means)


def running_sum(values: Floats) -> float:
    """From the first to the last, as a loop adds them: the same on every machine and version."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _rises(keys: Integers) -> bool:
    """Whether each is above the one before: in order, without repeats."""
    return bool((keys[1:] > keys[:-1]).all())


def _at(one: Columns, own: Integers, keys: Integers) -> Floats:
    """Scores of the videos with these keys, all of which are there; ``own`` are all of its keys."""
    if np.array_equal(own, keys):
        return one.value
    order = np.argsort(own)
    return one.value[order[np.searchsorted(own, keys, sorter=order)]]


def _kinds(seed: int | None, table: ScoreTable) -> tuple[list[Any], Any]:
    """What tells the table's videos of one prompt apart, and the place of each row's among them."""
    if len(table) and bool((table.sample == table.sample[0]).all()):  # one video a prompt
        numbers, where = table.sample[:1], np.zeros(len(table), np.int64)
    else:
        numbers, where = np.unique(table.sample, return_inverse=True)
    return ([number if seed is None else (seed, number) for number in numbers.tolist()], where)


def _joined(arrays: Sequence[Any], kind: Any) -> Any:
    return np.concatenate(arrays).astype(kind, copy=False) if arrays else np.zeros(0, kind)
