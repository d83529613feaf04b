"""The shape of ``results.json``: everything that a report needs, without the videos.

Scores are stored raw, as the metrics returned them; ``Results.percent`` tells a table to show them
times 100. How an interval was made stands in ``bootstrap`` (``evalharness.stats``). ``None``
stands for "cannot be said": no score, a total without full coverage, an interval from one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalharness.scoretable import ScoreRow as ScoreRow
from evalharness.scoretable import ScoreTable

SCHEMA_VERSION = 5
READABLE_VERSIONS = (1, 2, 3, 4, SCHEMA_VERSION)
"""1 had percentile bootstraps only and did not say so; 2 had no ``ranges``, which came with 3, and no
``train_log_damage``, which came with 4; since 5 a file ends with its checksum."""

Source = Literal["loaded", "trained", "computed", "reference", "given"]
Execution = Literal["real", "emulated", "fake", "unknown"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Frozen):
    """A mean with its interval.

    Attributes:
        value: the mean; None without a single score.
        lo: lower end of the interval; None from fewer than two prompts.
        hi: upper end.
        n: videos (of a difference: pairs of videos) behind it.
        prompts: distinct prompts behind it, the clusters.
    """

    value: float | None
    lo: float | None
    hi: float | None
    n: int
    prompts: int


class DimensionEstimate(Estimate):
    """An estimate that knows how many videos should have been scored."""

    expected: int

    @property
    def coverage(self) -> float:
        """Share of the expected videos that have a score, 0..1."""
        return self.n / self.expected if self.expected else 0.0


class Profile(BaseModel):
    """Cost of one cell. Times in milliseconds, sizes in MB (10^6 bytes); unknown keys are kept.

    ``step_speedup`` is the time of the full-precision step over that of the cell, measured in turns; it is
    empty for ``fake`` rows, whose time says nothing. ``phases`` and ``conditions`` are those of
    ``evalharness.phases`` and ``evalharness.conditions``. The last four are counted, not measured
    (``evalharness.cost``): mean bits that linears store for a weight, mean bits of their inputs, percent
    of all MACs with both operands of at most 8 bits, and
    the size of all that is stored.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    step_ms: float | None = None
    peak_mem_mb: float | None = None
    weights_mb: float | None = None
    checkpoint_mb: float | None = None
    device: str | None = None
    step_speedup: float | None = None
    phases: dict[str, dict[str, Any]] | None = None
    conditions: dict[str, Any] | None = None
    weight_bits: float | None = None
    act_bits: float | None = None
    low_bit_macs_pct: float | None = None
    stored_mb: float | None = None


class CellResult(_Frozen):
    """One row of the leaderboard, with the scores it was made from.

    Attributes:
        totals: the protocol's totals; None for one that lacks a score.
        method: name of the row: the method's, or a variant's label.
        variant_of: of a variant, its method; None for a method as such.
        options: what was asked of the method; all its options stand in ``method_config``.
        scores: dimension -> rows by prompt, number of the video and value.
        train_log_damage: why ``train_log`` is not what the training wrote; None where it is.
    """

    id: str
    model: str
    protocol: str
    method: str
    w_bits: int
    a_bits: int
    seed: int
    source: Source
    execution: Execution
    n_videos_expected: int
    n_videos_ok: int
    n_failed: int
    coverage: float = Field(ge=0.0, le=1.0)
    dimensions: dict[str, DimensionEstimate]
    mean: Estimate | None
    totals: dict[str, Estimate | None] = Field(default_factory=dict)
    profile: Profile | None
    train_minutes: float | None
    train_log: list[dict[str, Any]]
    train_log_damage: str | None = None
    method_config: dict[str, Any]
    variant_of: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, ScoreTable]

    @property
    def is_reference(self) -> bool:
        return self.source == "reference"

    @property
    def is_complete(self) -> bool:
        """Whether every expected video of every dimension has a score."""
        return self.coverage >= 1.0


class Difference(_Frozen):
    """Cell minus the reference of the same seed, video by video."""

    cell: str
    reference: str
    dimensions: dict[str, Estimate]
    mean: Estimate | None


class PooledResult(_Frozen):
    """One method at one bit width, its seeds taken together; prompts stay the clusters.

    Attributes:
        cells: ids of the cells, in the order of ``seeds``.
        seed_means: each seed's own mean, in the order of ``seeds``; None where it is partial.
        minus_reference: mean difference from the reference cells of the same seeds, if all are there.
    """

    model: str
    method: str
    w_bits: int
    a_bits: int
    sources: list[Source]
    executions: list[Execution]
    seeds: list[int]
    cells: list[str]
    dimensions: dict[str, DimensionEstimate]
    mean: Estimate | None
    totals: dict[str, Estimate | None] = Field(default_factory=dict)
    seed_means: list[float | None]
    minus_reference: Estimate | None

    @property
    def is_reference(self) -> bool:
        return self.sources == ["reference"]


class BootstrapInfo(_Frozen):
    """How the intervals were made: ``kind`` of ``evalharness.stats``, and the draws of percentiles."""

    kind: Literal["percentile", "skew-t"] = "percentile"
    resamples: int
    confidence: float
    seed: int
    cluster: Literal["prompt"] = "prompt"


class Results(_Frozen):
    """The whole of ``results.json``.

    Attributes:
        dimensions: names in the order of the table.
        percent: whether tables show scores times 100.
        label: what these scores are, in words; printed above every table.
        ranges: dimension -> least and largest score, of those whose metric declares another range than
            0..1, as a cosine's; intervals are cut there.
        prompts: prompt id -> text.
        manifest: what was run, by what, on what (copied from ``manifest.json``).
    """

    schema_version: Literal[5] = 5
    protocol: str
    label: str
    dimensions: list[str]
    percent: bool
    totals: list[str] = Field(default_factory=list)
    ranges: Mapping[str, tuple[float, float]] = Field(default_factory=dict)
    bootstrap: BootstrapInfo
    prompts: Mapping[str, str]
    manifest: Mapping[str, Any]
    cells: list[CellResult]
    differences: list[Difference]
    pooled: list[PooledResult]

    @property
    def is_complete(self) -> bool:
        return all(cell.is_complete for cell in self.cells)

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    def cell(self, cell_id: str) -> CellResult:
        """The cell of that id.

        Raises:
            KeyError: there is none.
        """
        for cell in self.cells:
            if cell.id == cell_id:
                return cell
        raise KeyError(cell_id)
