r"""Fake-quantized runs of the same cells with other roundings, beside a run and its packed one.

    python benchmarks/moved_runs.py viditq-seeds/results.json viditq-w3a3-s0 \
        "batches of 16=runs/b/results.json" "plain torch=runs/c/results.json" --output moved_runs.json

Of each run: the mean over the dimensions, and its paired difference from the fake-quantized run of the first
file, with standard error and interval over prompts. ``by_prompt`` is each prompt's part in the difference
(``evalharness.effects.table``): their mean is the difference. ``same_calibration`` says whether the run's
log of calibration equals the first's, to the last digit. With an ``--output`` that is there, the cell is
added to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalharness.stats import Key

Scores = dict[str, dict["Key", float]]


def cell_of(results: Path, name: str) -> dict[str, Any]:
    """One cell of a run's ``results.json``.

    Raises:
        ValueError: it has none of that name, or is no such file.
    """
    from benchmarks.packed_runs import read_object

    for cell in read_object(results).get("cells", ()):
        if cell["id"] == name:
            return dict(cell)
    raise ValueError(f"{results}: no cell {name}")


def scores(cell: Mapping[str, Any]) -> Scores:
    """Dimension -> video -> score."""
    from evalharness.stats import Key

    return {
        name: {Key(*key): value for *key, value in rows if value is not None}
        for name, rows in cell["scores"].items()
    }


def compared(cell: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A run of the cell beside the first one.

    Raises:
        ValueError: the two have not the same videos.
    """
    from evalharness.effects import effect_of, table

    one, other = scores(cell), scores(base)
    if {name: set(rows) for name, rows in one.items()} != {name: set(rows) for name, rows in other.items()}:
        raise ValueError(f"{cell['id']}: not the videos of {base['id']}")
    apart = {
        name: {key: value - other[name][key] for key, value in rows.items()} for name, rows in one.items()
    }
    z, videos = table([apart])
    found = effect_of(z, videos)
    return {
        "execution": cell["execution"],
        "mean": cell["mean"]["value"],
        "difference": found.value,
        "standard_error": found.se,
        "interval": [found.lo, found.hi],
        "same_calibration": cell["train_log"] == base["train_log"],
        "by_prompt": z[0].tolist(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the record; 0 if all runs were compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", type=Path, help="results.json of the fake-quantized run and its packed one")
    parser.add_argument("cell", help="by the name it has where it is fake-quantized, as viditq-w3a3-s0")
    parser.add_argument("others", nargs="+", help="WORDS=results.json of a fake-quantized run")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, or to add to")
    given = parser.parse_args(argv)
    from benchmarks.measuring import write_json
    from benchmarks.packed_runs import read_object

    name: str = given.cell
    try:
        base = cell_of(given.first, name)
        packed = cell_of(given.first, "-real-w".join(name.rsplit("-w", 1)))
        runs = {"packed": compared(packed, base)}
        for words, found, path in (each.partition("=") for each in given.others):
            if not found:
                raise ValueError(f"{words}: expected WORDS=results.json")
            runs[words] = compared(cell_of(Path(path), name), base)
        known = read_object(given.output) if given.output.exists() else {}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    del runs["packed"]["same_calibration"]  # it loads the first run's weights, and calibrates nothing
    known[name] = {"first": base["mean"]["value"], "runs": runs}
    write_json(given.output, known)
    for words, run in runs.items():
        print(f"{name}, {words}: {run['mean']:.4f}, {run['difference']:+.4f} ({run['standard_error']:.4f})")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
