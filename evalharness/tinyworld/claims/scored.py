"""Run folders of several training seeds, read as one table of scores. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.api import Bits
from evalharness.comparison import KeyedScores, scores_of
from evalharness.errors import UserError
from evalharness.results import CellResult, Results, read_results

__all__ = ["ScoredArm", "Scores", "read_scored"]

# What scores depend on besides the weights: without these alike, seeds are not one experiment.
_ALIKE = ("model_fingerprint", "prompts_sha256", "samples_per_prompt", "device", "skip_layers")
_ALIKE_PREFIXES = ("settings.", "video.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredArm:
    """One training of one arm, scored.

    Attributes:
        scores: dimension -> video -> raw score; all video seeds together.
        expected: dimension -> videos of the whole protocol.
        options: of the method, as JSON values.
    """

    scores: KeyedScores
    expected: Mapping[str, int]
    options: Mapping[str, Any]

    @property
    def gaps(self) -> dict[str, tuple[int, int]]:
        """Dimension -> videos scored and expected, where these differ."""
        counts = {name: (len(self.scores.get(name, ())), full) for name, full in self.expected.items()}
        return {name: (there, full) for name, (there, full) in counts.items() if there != full}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All of them.

    Attributes:
        arms: (bits, arm) -> training seed -> scored training. The reference is not among them.
        sources: training seed -> what its run folder says of itself.
        label, percent: as in ``Results``.
    """

    label: str
    percent: bool
    dimensions: Sequence[str]
    arms: Mapping[tuple[Bits, str], Mapping[str, ScoredArm]]
    sources: Mapping[str, Mapping[str, Any]]

    @property
    def seeds(self) -> list[str]:
        return sorted(self.sources)

    @property
    def bits(self) -> list[Bits]:
        """Many bits first."""
        return sorted({bits for bits, _ in self.arms}, key=lambda bits: (-bits.w, -bits.a))

    def of(self, bits: Bits, arm: str) -> Mapping[str, ScoredArm]:
        """Training seed -> scored training; empty if there is none."""
        return self.arms.get((bits, arm), {})


def read_scored(folders: Mapping[str, Path]) -> Scores:
    """Read ``results.json`` of a run folder for each training seed.

    Raises:
        UserError: a file is missing or damaged, the runs differ in what scores depend on, an arm has
            other options in another seed, or the same scores (then it is no other training).
    """
    runs = {seed: read_results(folder / "results.json") for seed, folder in sorted(folders.items())}
    if not runs:
        raise UserError("--runs is empty; expected s1=FOLDER,s2=FOLDER,...")
    for (first, one), (second, other) in itertools.pairwise(runs.items()):
        _check_alike(first, one, second, other)
    arms: dict[tuple[Bits, str], dict[str, ScoredArm]] = {}
    for seed, results in runs.items():
        for (bits, name), cells in _by_arm(results).items():
            arms.setdefault((bits, name), {})[seed] = _arm(cells, results.dimensions)
    for (bits, name), trained in arms.items():
        _check_trainings(f"{name}-{bits.label}", trained)
    first_run = next(iter(runs.values()))
    return Scores(
        label=first_run.label,
        percent=first_run.percent,
        dimensions=first_run.dimensions,
        arms=arms,
        sources={seed: _source(results) for seed, results in runs.items()},
    )


def _by_arm(results: Results) -> dict[tuple[Bits, str], list[CellResult]]:
    found: dict[tuple[Bits, str], list[CellResult]] = {}
    for cell in results.cells:
        if not cell.is_reference:
            found.setdefault((Bits(cell.w_bits, cell.a_bits), cell.method), []).append(cell)
    return found


def _arm(cells: Sequence[CellResult], dimensions: Sequence[str]) -> ScoredArm:
    expected = {name: sum(cell.dimensions[name].expected for cell in cells) for name in dimensions}
    return ScoredArm(scores=scores_of(cells), expected=expected, options=cells[0].method_config)


def _source(results: Results) -> dict[str, Any]:
    manifest = results.manifest
    return {
        "checkpoints": manifest.get("config", {}).get("load"),
        "commit": (manifest.get("git") or {}).get("commit"),
        "dirty": (manifest.get("git") or {}).get("dirty"),
        "device": manifest.get("config", {}).get("device"),
        "torch": manifest.get("versions", {}).get("torch"),
    }


def _check_alike(first: str, one: Results, second: str, other: Results) -> None:
    facts, others = _facts(one), _facts(other)
    for name in sorted(facts.keys() | others.keys()):
        if facts.get(name) != others.get(name):
            raise UserError(
                f"runs {first} and {second} differ in {name}: {facts.get(name)!r} and {others.get(name)!r}; "
                "score all training seeds with the same command"
            )


def _facts(results: Results) -> dict[str, Any]:
    config = results.manifest.get("config", {})
    named = {k: v for k, v in config.items() if k in _ALIKE or k.startswith(_ALIKE_PREFIXES)}
    return {**named, "protocol": results.protocol, "dimensions": results.dimensions}


def _check_trainings(name: str, trained: Mapping[str, ScoredArm]) -> None:
    for (first, one), (second, other) in itertools.combinations(trained.items(), 2):
        if one.options != other.options:
            raise UserError(
                f"{name}: other options in {first} than in {second}; an arm must be the same in all seeds"
            )
        if any(one.scores.values()) and one.scores == other.scores:
            raise UserError(
                f"{name}: {first} and {second} have the very same scores, so the same weights; give each "
                "training seed its own --load"
            )
