"""``export --vbench``: the videos of a run under VBench's names, and its result files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import EvalProtocol, Prompt, Sample
from evalharness.cells import Cell
from evalharness.console import Console
from evalharness.errors import UserError, unknown
from evalharness.hashing import digest
from evalharness.interchange.names import Placed, place
from evalharness.interchange.submission import eval_results, full_info, submittable
from evalharness.planfile import read_plan_file
from evalharness.registry import Registry
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.runlog import warn_of_damage
from evalharness.sampling import samples_by_dimension, samples_of
from evalharness.stages.samples import valid_samples
from evalharness.stages.score import latest_scores
from evalharness.store import atomic_write_json, replace_folder, temporary_folder

if TYPE_CHECKING:
    from evalharness.results import Results

__all__ = ["MANIFEST", "Exported", "export_vbench"]

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """One cell's folder, and what a reader must know about it, a line each."""

    folder: Path
    videos: int
    notes: tuple[str, ...]


def export_vbench(
    run: RunFolder, out: Path, registry: Registry, *, cells: Sequence[str] = (), copy: bool = False
) -> list[Exported]:
    """Write ``out/<cell>/`` for each cell: ``videos/``, ``manifest.json`` and VBench's JSON files.

    Args:
        run: the run folder; it is read only.
        out: a new folder, or an earlier export, which is replaced cell by cell.
        registry: for the protocol.
        cells: ids; all if none is named.
        copy: copies instead of symbolic links to the run's files.

    Raises:
        UserError: no run folder, an unknown cell, other prompts, or a target that is no export.
    """
    stored = read_plan_file(run)
    warn_of_damage(run, Console())
    for name in cells:
        if name not in stored.cells:
            raise unknown(f"cell of {run.root}", name, stored.cells)
    protocol: EvalProtocol = registry.get("protocols", str(stored.identity["protocol"]))()
    prompts = tuple(protocol.prompts())
    if stored.identity["prompts_sha256"] != digest(prompts):
        raise UserError(
            f"{run.root}: its protocol {protocol.name} has other prompts now; nothing is exported"
        )
    results = _results(run)
    exporter = _Exporter(run, out, protocol, prompts, stored.identity, results, copy)
    return [exporter.cell(stored.cells[name]) for name in cells or stored.cells]


def _results(run: RunFolder) -> Results | None:
    if not run.results.is_file():
        return None
    from evalharness.results import read_results

    return read_results(run.results)


@dataclass(frozen=True, slots=True)
class _Exporter:
    run: RunFolder
    out: Path
    protocol: EvalProtocol
    prompts: Sequence[Prompt]
    identity: Mapping[str, object]
    results: Results | None
    copy: bool

    def cell(self, cell: Cell) -> Exported:
        files, target = self.run.cell(cell.id), self.out / cell.id
        _refuse_foreign(target)
        counts = samples_by_dimension(self.protocol)
        samples = samples_of(self.prompts, cell.seed, self.protocol.samples_per_prompt, counts)
        valid = valid_samples(self.identity, files, samples)
        there = [sample for sample in samples if sample.id in valid and files.video(sample.id).is_file()]
        with temporary_folder(self.out) as folder:
            placed = place(there, case_sensitive=_tells_case(folder))
            self._write_videos(folder, files, placed)
            paths = {item.sample.id: f"{item.folder}/{item.name}" for item in placed}
            notes = [*_notes(samples, placed), *self._write_json(folder, cell, there, paths)]
            replace_folder(folder, target)
        return Exported(target, len(placed), tuple(notes))

    def _write_videos(self, folder: Path, files: CellFolder, placed: Sequence[Placed]) -> None:
        for item in placed:
            target = folder / item.folder / item.name
            target.parent.mkdir(exist_ok=True)
            source = files.video(item.sample.id).resolve()
            if self.copy:
                shutil.copyfile(source, target)
            else:
                target.symlink_to(source)

    def _write_json(
        self, folder: Path, cell: Cell, there: Sequence[Sample], paths: Mapping[str, str]
    ) -> list[str]:
        videos: dict[str, list[str]] = {}
        entries = []
        for sample in there:
            videos.setdefault(sample.prompt.id, []).append(paths[sample.id])
            entries.append(
                {"file": paths[sample.id], "prompt_id": sample.prompt.id, "sample": sample.index}
                | {"prompt": sample.prompt.text, "seed": sample.seed}
            )
        record = {"protocol": self.protocol.name, "cell": cell.to_json(), "videos": entries}
        atomic_write_json(folder / MANIFEST, record)
        atomic_write_json(folder / f"{cell.id}_full_info.json", full_info(self.prompts, videos))
        return self._write_scores(folder, cell.id, paths)

    def _write_scores(self, folder: Path, cell_id: str, paths: Mapping[str, str]) -> list[str]:
        found = [cell for cell in self.results.cells if cell.id == cell_id] if self.results else []
        dimensions = submittable(found[0], self._judges(cell_id)) if found else []
        missing = [name for name in self.protocol.metrics if name not in dimensions]
        if not dimensions:
            return ["no dimension is fully scored by a vbench metric: no eval_results.json"]
        scores = eval_results(found[0], dimensions, paths)
        atomic_write_json(folder / f"{cell_id}_eval_results.json", scores)
        if not missing:
            return []
        return [f"not fully scored, left out (VBench's own script counts these as 0): {', '.join(missing)}"]

    def _judges(self, cell_id: str) -> dict[str, str]:
        """Dimension -> the metric that judged it; without those that several did."""
        judges: dict[str, set[str]] = {}
        for (_, dimension), row in latest_scores(self.run.cell(cell_id)).items():
            judges.setdefault(dimension, set()).add(row["metric"])
        return {name: min(judges[name]) for name in self.protocol.metrics if len(judges.get(name, ())) == 1}


def _notes(samples: Sequence[Sample], placed: Sequence[Placed]) -> list[str]:
    notes = []
    if missing := len(samples) - len(placed):
        notes.append(f"{missing} of {len(samples)} videos are missing in the run")
    twins = {item.sample.prompt.id for item in placed if item.folder.startswith("videos-")}
    if twins:
        notes.append(
            f"prompts that share another's name have folders of their own: {', '.join(sorted(twins))}"
        )
    unnamed = {item.sample.prompt.id for item in placed if item.folder == "unnamed"}
    if unnamed:
        notes.append(f"prompts that cannot name a file are in unnamed/: {', '.join(sorted(unnamed))}")
    return notes


def _refuse_foreign(target: Path) -> None:
    if (
        target.exists()
        and not (target / MANIFEST).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise UserError(f"{target} is not empty and no earlier export; choose another --out")


def _tells_case(folder: Path) -> bool:
    """Whether this file system tells ``A`` from ``a``."""
    with tempfile.NamedTemporaryFile(prefix="case-", dir=folder) as file:
        return not (folder / Path(file.name).name.upper()).exists()
