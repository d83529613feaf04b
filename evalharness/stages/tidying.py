"""The order of ``scores.jsonl``: the latest row of each video and dimension, by name."""

from __future__ import annotations

from array import array

import numpy as np

from evalharness.records import each_score
from evalharness.runfolder import CellFolder

__all__ = ["tidy"]


def tidy(files: CellFolder) -> None:
    """Rewrite the file unless it is so already; what is kept meanwhile are places, not rows."""
    samples: dict[str, int] = {}
    dimensions: dict[str, int] = {}
    columns = [array("q"), array("q"), array("q")]
    for place, row in each_score(files):
        columns[0].append(samples.setdefault(row["sample"], len(samples)))
        columns[1].append(dimensions.setdefault(row["dimension"], len(dimensions)))
        columns[2].append(place)
    sample, dimension, places = (np.frombuffer(column, np.int64) for column in columns)
    keys = _ranks(samples)[sample] * max(1, len(dimensions)) + _ranks(dimensions)[dimension]
    if bool((np.diff(keys) > 0).all()):
        return
    order = np.lexsort((np.arange(len(keys)), keys))
    is_last = np.append(np.diff(keys[order]) > 0, [True] * bool(len(order)))
    files.scores.rewrite(files.scores.at(places[order[is_last]].tolist()))


def _ranks(names: dict[str, int]) -> np.ndarray:
    ranks = np.empty(len(names), np.int64)
    for rank, name in enumerate(sorted(names)):
        ranks[names[name]] = rank
    return ranks
