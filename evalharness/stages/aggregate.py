"""Stage 5: the records of all cells in the folder become ``results.json`` and the reports.

Everything in the folder counts, also what earlier commands made: cells accumulate. Full coverage
is counted against the whole protocol, so that a limited run stays a partial one.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalharness.api import EvalProtocol, Reporter
from evalharness.cells import Cell
from evalharness.checkpoints import displayed_folder
from evalharness.compat import protocol_notes
from evalharness.console import Console
from evalharness.errors import StorageError, UserError, is_storage_error, one_line
from evalharness.hashing import digest, file_sha256, tree_sha256
from evalharness.plan import installed_metrics
from evalharness.planfile import read_plan_file
from evalharness.records import read_prepare
from evalharness.registry import Registry
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.runstate import RunState, StageCount
from evalharness.sampling import Videos, samples_by_dimension
from evalharness.stages.made import CURRENT, LEFT_OUT, VALUE, Made, scored
from evalharness.stages.prepare import inputs_hash
from evalharness.stages.profile import profile_hash
from evalharness.stages.score import MetricHashes
from evalharness.store import atomic_write_json, read_json, read_record
from evalharness.totals import totals_of
from evalharness.trainlog import read_train_log

if TYPE_CHECKING:
    from evalharness.results import CellRecord, Results
    from evalharness.scoretable import ScoreTable

__all__ = ["counted", "harness_sha256", "run", "write_reports"]

VERSION = 1
_INPUT_FILES = ("prepare.json", "samples.jsonl", "scores.jsonl", "profile.json", "train.jsonl")


def run(state: RunState) -> StageCount:
    """Write results and reports unless those there were made from the very same records."""
    # The command's own cells have their options whole; the file's are without secrets.
    own = {cell.id: cell for cell in state.plan.cells}
    cells = [own.get(cell.id, cell) for cell in read_plan_file(state.folder, state.console).cells.values()]
    protocol: EvalProtocol = state.registry.get("protocols", state.plan.protocol)()
    stale = {cell.id: reason for cell in cells if (reason := _why_stale(state, cell)) is not None}
    wanted = _inputs_hash(state, cells, stale, protocol)
    record = _report_state(state.folder)
    files = record.get("files", {})
    if record.get("inputs") == wanted and _all_whole(state.folder.root, files):
        return StageCount(kept=len(files))
    state.begin_work()
    state.registry.load_all("reporters")  # so that the manifest names them too
    from evalharness.results import build_results, write_results

    for cell_id, reason in stale.items():
        state.console.warn(f"{cell_id}: left out of the table, {reason}; run it again to have it made again")
    builder = _RecordBuilder(state, protocol, stale)
    with state.console.progress("aggregate", len(cells), "cell"):
        results = build_results(
            [builder.cell_record(cell) for cell in cells],
            protocol=state.plan.protocol,
            dimensions=list(protocol.metrics),
            percent=protocol.percent,
            totals=totals_of(protocol),
            ranges=_ranges(state, protocol),
            label=_label(state, protocol),
            manifest=state.finish_work(),
            prompts={prompt.id: prompt.text for prompt in state.plan.protocol_prompts},
        )
        write_results(results, state.folder.results)
        written, failed = write_reports(state.registry, state.console, state.folder, results)
    paths = [state.folder.results, *written]
    hashes = {path.relative_to(state.folder.root).as_posix(): file_sha256(path) for path in paths}
    if not failed:
        atomic_write_json(state.folder.report_state, {"inputs": wanted, "files": hashes})
    return StageCount(done=len(paths), failed=failed)


def _report_state(folder: RunFolder) -> dict[str, Any]:
    """What was made of what; of a damaged record nothing is known, and all is made again."""
    try:
        record = read_json(folder.report_state) or {}
    except UserError:
        return {}
    return record if isinstance(record.get("files"), dict) else {}


def harness_sha256() -> str:
    """Hash of the harness's sources, as the manifest records it."""
    return tree_sha256(Path(__file__).parents[1], "*.py")


def write_reports(
    registry: Registry, console: Console, folder: RunFolder, results: Results, names: Sequence[str] = ()
) -> tuple[list[Path], int]:
    """Let the reporters (all, or those named) write; one that fails is warned about and counted.

    Raises:
        UserError: a reporter of that name does not exist.
        StorageError: the disk refuses.
    """
    written: list[Path] = []
    failed = 0
    loaded = {name: registry.get("reporters", name) for name in names} or registry.load_all("reporters")
    for name, cls in loaded.items():
        reporter: Reporter = cls()
        try:
            written += reporter.write(results, folder.root)
        except Exception as error:
            if is_storage_error(error):
                raise StorageError(f"reporter {name}: {one_line(error)}") from error
            console.warn(f"reporter {name} failed: {one_line(error)}")
            failed += 1
    return written, failed


def _judges(state: RunState, protocol: EvalProtocol) -> dict[str, str]:
    """The metric of each dimension, as this command has it."""
    return installed_metrics(protocol, protocol.metrics, state.registry, state.plan.chosen_metrics)


def _ranges(state: RunState, protocol: EvalProtocol) -> dict[str, tuple[float, float]]:
    """Of the scores of each dimension, as its metric declares it."""
    infos = {
        name: state.registry.get("metrics", metric)().info
        for name, metric in _judges(state, protocol).items()
    }
    return {name: (float(info.low), float(info.high)) for name, info in infos.items()}


class _Judged(NamedTuple):
    """Of one cell: how many scores each dimension should have, those it has, videos made and failed."""

    expected: dict[str, int]
    scores: dict[str, ScoreTable]
    videos: int
    failed: int


class _RecordBuilder:
    """Collects a cell's records, leaving out all that is stale."""

    def __init__(self, state: RunState, protocol: EvalProtocol, stale: Mapping[str, str]) -> None:
        self._state = state
        self._stale = stale
        self._protocol = protocol
        self._hashes = MetricHashes(state.registry)
        self._metrics = _judges(state, protocol)
        self._videos = Videos(
            state.plan.protocol_prompts, protocol.samples_per_prompt, samples_by_dimension(protocol)
        )

    def cell_record(self, cell: Cell) -> CellRecord:
        from evalharness.results import CellRecord

        files = self._state.folder.cell(cell.id)
        record = None if cell.id in self._stale else read_prepare(files)
        current = record is not None
        prepare = record or self._unprepared(cell)
        found = self._judged(cell, files) if current else self._nothing()
        train_log, train_log_damage = read_train_log(files, prepare) if current else ([], None)
        return CellRecord(
            cell_id=cell.id,
            model=cell.model,
            protocol=self._state.plan.protocol,
            method=cell.label,
            variant_of=cell.method if cell.is_variant else None,
            options=cell.options,
            w_bits=cell.bits.w,
            a_bits=cell.bits.a,
            seed=cell.seed,
            source=prepare["source"],
            execution=prepare["execution"],
            n_expected=found.expected,
            scores=found.scores,
            n_videos_expected=len(self._videos),
            n_videos_ok=found.videos,
            n_failed=found.failed,
            profile=self._profile(files) if current else None,
            train_minutes=prepare["train_minutes"],
            train_log=train_log,
            train_log_damage=train_log_damage,
            method_config=prepare["config"],
        )

    def _unprepared(self, cell: Cell) -> dict[str, Any]:
        """A cell whose preparation failed or is stale still has its row, with nothing in it."""
        return {
            "source": "reference" if cell.is_reference else "computed",
            "execution": "real" if cell.is_reference else "fake",
            "train_minutes": None,
            "config": dict(cell.options),
        }

    def _profile(self, files: CellFolder) -> dict[str, Any] | None:
        record = read_record(files.profile)
        if record is None or record.get("hash") != profile_hash(self._state.identity, files):
            return None
        return {key: value for key, value in record.items() if key != "hash"}

    def _nothing(self) -> _Judged:
        """Of a cell without records: no score, and as many expected as ever."""
        return self._counted({name: bytes(len(self._videos)) for name in self._protocol.metrics}, {})

    def _judged(self, cell: Cell, files: CellFolder) -> _Judged:
        """Scores of the very videos that are there by the present metrics; says how many others there are."""
        videos = self._videos
        made = Made(self._state.identity, files, videos)
        rows = scored(files, videos, made, self._metrics, self._hashes, with_values=True)
        count = stale = 0
        for place, sample in enumerate(videos.of(cell.seed)):
            is_valid = made.is_valid(place, sample)
            count += is_valid
            for flags in rows.flags.values():
                stale += is_valid and flags[place] & (CURRENT | VALUE) == VALUE
                if not is_valid or not flags[place] & CURRENT:
                    flags[place] = 0
        if stale:
            self._state.console.warn(
                f"{cell.id}: {stale} scores by another version of their metric are left out; "
                f"renew them with: evalharness score {self._state.folder.root}"
            )
        return self._counted(rows.flags, rows.values)._replace(videos=count, failed=made.failed)

    def _counted(
        self, flags: Mapping[str, bytes | bytearray], values: Mapping[str, Sequence[float]]
    ) -> _Judged:
        protocol = self._protocol
        return counted(self._videos, protocol.samples_per_prompt, tuple(protocol.metrics), flags, values)


def counted(
    videos: Videos,
    most: int,
    dimensions: Sequence[str],
    flags: Mapping[str, bytes | bytearray],
    values: Mapping[str, Sequence[float]],
) -> _Judged:
    """Per dimension, the videos that should have a score in it, and the scores that they have.

    Of each prompt the first ``most`` count, those that are left out by rule taken away.
    """
    import numpy as np

    from evalharness.scoretable import ScoreTable

    starts = videos.starts
    names = tuple(sorted(prompt.id for prompt in videos.prompts))
    codes = {name: code for code, name in enumerate(names)}
    columns = {name: (array("i"), array("q"), array("d")) for name in dimensions}
    expected = dict.fromkeys(columns, 0)
    for number, prompt in enumerate(videos.prompts):
        places = range(starts[number], starts[number + 1])
        for dimension in prompt.dimensions:
            told = flags.get(dimension, b"")
            kept = [place for place in places if not told or not told[place] & LEFT_OUT][:most]
            expected[dimension] += len(kept)
            code, samples, scores = columns[dimension]
            for place in kept:
                if told and told[place] & VALUE:
                    code.append(codes[prompt.id])
                    samples.append(place - places.start)
                    scores.append(values[dimension][place])
    tables = {
        name: ScoreTable(names, *(np.frombuffer(each, each.typecode) for each in found))
        for name, found in columns.items()
    }
    return _Judged(expected, tables, 0, 0)


def _label(state: RunState, protocol: EvalProtocol) -> str:
    """What the scores are, and what else a reader must know; settings as the folder records them."""
    label = getattr(protocol, "label", f"{state.plan.protocol} scores")
    identity = state.identity
    notes = protocol_notes(
        protocol,
        str(identity["model"]),
        int(identity.get("settings.frames", 0)),
        int(identity.get("settings.fps", 0)),
        fixed_noise=identity.get("settings.fixed_noise") is not None,
    )
    return ". ".join([label, *notes])


def _why_stale(state: RunState, cell: Cell) -> str | None:
    """Why a cell's weights are not those that its plan gives now; None when they are, or none are there.

    Cells of other commands are checked too, or old rows would stand beside new ones. A method that
    is not installed here cannot be asked: its row stands as recorded.
    """
    record = read_prepare(state.folder.cell(cell.id))
    if record is None:
        return None
    if not cell.is_reference and cell.method not in state.registry.names("methods"):
        return None
    try:
        wanted = inputs_hash(state.registry, state.identity, cell, _published_sha256(state, cell, record))
    except UserError as error:
        return str(error)
    return None if record["hash"] == wanted else "made with other options, weights or code"


def _published_sha256(state: RunState, cell: Cell, record: Mapping[str, Any]) -> str | None:
    """Of the checkpoint that the cell was loaded from: as it is now, or as it was if it is gone."""
    if record["source"] != "loaded":
        return None
    prepared = state.prepared.get(cell.id)
    folder = prepared.checkpoint if prepared else None
    folder = folder or displayed_folder(record["checkpoint"])
    return record["checkpoint_sha256"] if folder is None else tree_sha256(folder)


def _inputs_hash(
    state: RunState, cells: Sequence[Cell], stale: Mapping[str, str], protocol: EvalProtocol
) -> str:
    contents = {}
    for cell in cells:
        root = state.folder.cell(cell.id).root
        contents[cell.id] = [_content(root / name) for name in _INPUT_FILES]
    registry = state.registry
    reporters = {name: registry.code_hash("reporters", name) for name in registry.names("reporters")}
    metrics = {
        dimension: [metric, registry.get("metrics", metric)().info, registry.code_hash("metrics", metric)]
        for dimension, metric in _judges(state, protocol).items()
    }
    code = harness_sha256()
    return digest(["aggregate", VERSION, code, contents, stale, reporters, metrics, dict(state.identity)])


def _content(path: Path) -> str | None:
    """Hash of a file; of a training's log that the disk refuses, which no score depends on, why."""
    try:
        return file_sha256(path) if path.is_file() else None
    except OSError as error:
        if path.name == "train.jsonl":
            return error.strerror
        raise


def _all_whole(root: Path, files: Mapping[str, str]) -> bool:
    return all(
        (root / name).is_file() and file_sha256(root / name) == sha256 for name, sha256 in files.items()
    )
