"""Reading ``samples.jsonl``: which videos of a cell are there and fit what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalharness.api import Sample
from evalharness.hashing import digest
from evalharness.records import read_prepare, read_samples
from evalharness.runfolder import CellFolder

__all__ = ["cell_hash", "latest_samples", "made_as", "sample_hash", "valid_samples"]

GENERATE_VERSION = 1


def latest_samples(files: CellFolder) -> dict[str, dict[str, Any]]:
    """Sample id -> its last record; a retried sample has several."""
    return {record["sample"]: record for record in read_samples(files)}


def cell_hash(identity: Mapping[str, Any], files: CellFolder) -> str | None:
    """Hash of all that a cell's videos share; None when the cell is not prepared."""
    record = read_prepare(files)
    if record is None:
        return None
    return digest(["generate", GENERATE_VERSION, dict(identity), record["hash"], record["checkpoint_sha256"]])


def sample_hash(shared: str, sample: Sample) -> str:
    """Hash of all that one video depends on."""
    return digest([shared, sample.prompt.text, sample.id, sample.seed])


def valid_samples(
    identity: Mapping[str, Any], files: CellFolder, samples: list[Sample]
) -> dict[str, tuple[Sample, dict[str, Any]]]:
    """Sample id -> (sample, record) of the videos that were made as ``identity`` says."""
    shared = cell_hash(identity, files)
    latest = latest_samples(files)
    return {
        sample.id: (sample, record)
        for sample in samples
        if shared is not None
        and (record := latest.get(sample.id)) is not None
        and record["status"] == "ok"
        and record["hash"] == sample_hash(shared, sample)
    }


def made_as(identity: Mapping[str, Any], files: CellFolder, samples: list[Sample]) -> bool | None:
    """Whether any video of a cell was made as ``identity`` says; None where there is none to tell by."""
    is_any = any(record["status"] == "ok" for record in latest_samples(files).values())
    if cell_hash(identity, files) is None or not is_any:
        return None
    return bool(valid_samples(identity, files, samples))
