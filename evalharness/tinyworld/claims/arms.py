"""Train the arms of a grid, one after another or a few at a time, in one process.

    python -m evalharness.tinyworld.claims.arms --grid configs/claims-main.yaml --device cuda

Start it once for each GPU (``CUDA_VISIBLE_DEVICES``) with the same ``--out``: each process takes the next
arm that is neither finished nor held by another. Started again, it goes on where it was stopped; an arm
that was cut off begins anew. ``--lanes 3`` trains three arms at a time; ``--seeds`` leaves other seeds, and
rendering their clips, to another process. An arm's folder ``arms/<label>-<bits>-s<seed>`` holds
``train.jsonl`` and, once it is finished, ``record.json``. An arm that diverged is finished too: its record
holds the error, the last line counts it, and the exit code is 1. Any other error of a method ends the
process and leaves no record.

With ``--save qvgen-w3a3,kd-qat-w3a3`` these arms' weights stand in ``checkpoints/s<seed>/<label>-<bits>``
(4.4 MB each), and a config beside them: ``evalharness run --config checkpoints/run.yaml --seeds 0 --load
checkpoints/s0`` scores those of seed 0.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import logging
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evalharness.cells import build_method
from evalharness.checkpoints import CARD_NAME, checkpoint_card
from evalharness.config import comma_list, parse_seeds
from evalharness.device import resolve_device, synchronize
from evalharness.errors import UserError, one_line, unknown
from evalharness.hashing import digest, jsonable, tree_sha256
from evalharness.manifest import PACKAGES, git_state, hardware
from evalharness.models.tinyworld import PIPELINE
from evalharness.registry import Registry
from evalharness.runfolder import utc_now
from evalharness.store import TEMP_PREFIX, atomic_write_json, atomic_write_text, read_json, replace_folder
from evalharness.tinyworld.claims.grid import Arm, Grid, read_grid
from evalharness.tinyworld.claims.lanes import run_lanes
from evalharness.tinyworld.claims.runs import LOG_NAME, RECORD_NAME
from evalharness.tinyworld.claims.shared import ArmContext, Shared
from evalharness.versions import package_version

SCHEMA_VERSION = 2  # 2: precision and device are part of an arm's identity
_SECONDS_AN_ARM = 2.0  # beside its steps; for the estimate
_PACKAGE = Path(__file__).parents[2]

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if arms are left that this process did not get to, or ended in an error."""
    args = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    registry = Registry()
    if args.lanes < 1:
        raise UserError(f"--lanes {args.lanes}: expected a whole number from 1")
    seeds = parse_seeds(args.seeds) if args.seeds else []
    grid = read_grid(args.grid).chosen(args.blocks, seeds)
    steps = grid.check(registry)
    seconds = steps * args.step_ms / 1000 + len(grid.arms) * _SECONDS_AN_ARM
    log.info("%d arms, %d steps, about %.1f minutes of one device", len(grid.arms), steps, seconds / 60)
    if args.list:
        for arm in grid.arms:
            log.info("%s  %s", arm.block, arm.cell.id)
        return 0
    for name in args.save:
        if not any(_is_named(arm, [name]) for arm in grid.arms):
            raise unknown("arm in --save", name, {arm.cell.checkpoint_name for arm in grid.arms})
    _check_device(grid, registry, args.device)
    _check_pipeline(args.pipeline, args.save)
    if args.save:
        _write_run_config(grid, args.save, args.out / "checkpoints" / "run.yaml")
    shared = Shared(grid, args.device, args.pipeline)
    if args.tf32:
        _take_tf32(shared)
    left = train_arms(grid, shared, args.out, save=args.save, minutes=args.minutes, lanes=args.lanes)
    failed = _errors(grid, args.out)
    log.info(
        "%d of %d arms finished, %d of them with an error", len(grid.arms) - left, len(grid.arms), len(failed)
    )
    for name, error in failed.items():
        log.warning("%s: %s", name, error)
    if failed:
        log.warning("to train an arm again, delete its folder in %s", args.out / "arms")
    return 1 if left or failed else 0


def _check_device(grid: Grid, registry: Registry, device: str) -> None:
    """Find what would end every arm before the first one begins.

    Raises:
        UserError: no such device here, or a recipe that needs another one.
    """
    resolve_device(device)
    for arm in grid.arms:
        recipe = jsonable(build_method(registry, arm.cell)).get("recipe") or {}
        if recipe.get("compile") == "graph" and device != "cuda":
            raise UserError(
                f"{arm.cell.id}: compile: graph records CUDA graphs, but --device is {device}; take --device "
                "cuda, or compile: off or default in the grid's recipe"
            )


def _check_pipeline(folder: Path, save: Sequence[str]) -> None:
    """Refuse what is no pipeline, and to keep weights that ``evalharness run`` would load into another.

    Raises:
        UserError: either.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"--pipeline {folder}: no model_index.json there; give a saved pipeline")
    if save and folder != PIPELINE:
        raise UserError("--save is for the shipped model, on which runs score; leave it or --pipeline out")


def _errors(grid: Grid, out: Path) -> dict[str, str]:
    """Cell id -> error, of the finished arms that have one instead of a result."""
    records = {arm.cell.id: read_json(_folder(out, arm) / RECORD_NAME) or {} for arm in grid.arms}
    return {name: str(record["error"]) for name, record in records.items() if record.get("error")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--blocks", type=_names, default=[], help="blocks of the grid: a,b (all)")
    parser.add_argument("--seeds", type=_names, default=[], help="training seeds of the grid: 1,2 (all)")
    parser.add_argument("--lanes", type=int, default=1, help="arms that train at a time")
    parser.add_argument("--out", type=Path, default=Path("build/claims"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--pipeline", type=Path, default=PIPELINE, help="another full-precision model of this make"
    )
    parser.add_argument("--minutes", type=float, help="begin no arm after so many minutes")
    parser.add_argument("--save", type=_names, default=[], help="arms whose weights are kept: a,b-w3a3")
    parser.add_argument("--tf32", action="store_true", help="TF32 products on CUDA; the records say so")
    parser.add_argument("--list", action="store_true", help="name the arms and the cost; train nothing")
    parser.add_argument("--step-ms", type=float, default=30.0, help="for the estimate of the cost")
    return parser.parse_args(arguments)


def _take_tf32(shared: Shared) -> None:
    import torch

    shared.teacher  # noqa: B018  # loading a model chooses exact products
    torch.set_float32_matmul_precision("high")


def _is_named(arm: Arm, names: Sequence[str]) -> bool:
    """By the arm's name, or by that of its checkpoint, which says the bits as well."""
    return arm.name in names or arm.cell.checkpoint_name in names


def _names(text: str) -> list[str]:
    return comma_list(text)


def train_arms(
    grid: Grid,
    shared: Shared,
    out: Path,
    *,
    save: Sequence[str] = (),
    minutes: float | None = None,
    lanes: int = 1,
) -> int:
    """Train what nobody has finished or holds; returns how many arms are not finished.

    Raises:
        UserError: an arm's folder is of other options, data, model, device or precision.
    """
    started = time.monotonic()
    shared.teacher, shared.held_out  # noqa: B018  # made now: no arm's seconds hold them, no two lanes make them

    def work(stop: threading.Event) -> None:
        for arm in grid.arms:
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                log.info("%g minutes have passed: no arm begins any more", minutes)
                break
            folder = _folder(out, arm)
            if stop.is_set() or _is_finished(folder, arm, shared):
                continue
            with _held(folder) as mine:
                if mine and not _is_finished(folder, arm, shared):
                    _train(arm, shared, out, save=_is_named(arm, save), lanes=lanes)

    run_lanes(lanes, shared.session.spec.device, work)
    return sum(not _is_finished(_folder(out, arm), arm, shared) for arm in grid.arms)


def _folder(out: Path, arm: Arm) -> Path:
    return out / "arms" / arm.cell.id


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's while the block lasts; the system frees it at a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def _identity(arm: Arm, shared: Shared) -> dict[str, Any]:
    """What an arm's numbers depend on, code and hardware apart; those stand in the record as facts."""
    import torch

    method = build_method(shared.session.registry, arm.cell)
    return {
        "schema_version": SCHEMA_VERSION,
        "arm": arm.name,
        "label": arm.cell.label,
        "method": arm.cell.method,
        "w_bits": arm.cell.bits.w,
        "a_bits": arm.cell.bits.a,
        "seed": arm.cell.seed,
        "axes": dict(arm.axes),
        "skip_layers": arm.skip_layers,
        "options": jsonable(method),
        "training_clips": shared.grid.training_clips,
        "validation": {"clips": shared.grid.validation_clips, "batch": shared.grid.validation_batch},
        "model_fingerprint": shared.fingerprint,
        "device": shared.session.spec.device,
        "float32_products": torch.get_float32_matmul_precision(),
    }


def _is_finished(folder: Path, arm: Arm, shared: Shared) -> bool:
    record = read_json(folder / RECORD_NAME)
    if record is None:
        return False
    if record.get("identity_sha256") != digest(_identity(arm, shared)):
        raise UserError(
            f"{folder}: its record is of other options, data or weights than the grid asks for, or of "
            "another device or precision (--device, --tf32); choose another --out, or delete the folder to "
            "train it again"
        )
    return True


def _train(arm: Arm, shared: Shared, out: Path, *, save: bool, lanes: int) -> None:
    """One arm from the start to its record.

    Raises:
        UserError: the method refused something that only a training shows; there is no record then.
    """
    folder = _folder(out, arm)
    (folder / LOG_NAME).unlink(missing_ok=True)
    method = build_method(shared.session.registry, arm.cell)
    module, error = None, None
    _seed_libraries(arm.cell.seed)
    context = ArmContext(shared, arm, folder / LOG_NAME)
    next(context.batches(1))
    start = time.monotonic()
    try:
        module = method.apply(shared.session.fresh_transformer(), context)
        synchronize(shared.session.spec.device)
    except UserError:
        raise
    except FloatingPointError as failure:
        error = one_line(failure)
    except ValueError as failure:
        raise UserError(f"{arm.cell.id}: {one_line(failure)}") from failure
    seconds = time.monotonic() - start
    final = None if module is None else shared.losses(module)
    if final is not None and (error := _not_finite(final)):
        module, final = None, None
    if save and module is not None:
        _save(method, module, arm, shared, out)
    _write_record(folder, arm, shared, seconds=round(seconds, 2), final=final, error=error, lanes=lanes)
    log.info("%s: %.1f s, %s", arm.cell.id, seconds, error or final)
    del module, context
    _free()


def _not_finite(losses: Mapping[str, float]) -> str | None:
    """What to record of a model that trained to the end and has no finite loss; None if all are."""
    bad = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    return f"training diverged: held-out {', '.join(bad)}" if bad else None


def _write_record(folder: Path, arm: Arm, shared: Shared, **outcome: Any) -> None:
    identity = _identity(arm, shared)
    record = {
        **identity,
        "identity_sha256": digest(identity),
        **outcome,
        "finished": utc_now(),
        "method_code": shared.session.registry.code_hash("methods", arm.cell.method),
        **_surroundings(),
    }
    atomic_write_json(folder / RECORD_NAME, record)


@functools.cache
def _surroundings() -> dict[str, Any]:
    """The same for all arms of a process."""
    return {
        "git": git_state(_PACKAGE),
        "harness_code": tree_sha256(_PACKAGE, "*.py"),
        "versions": {name: package_version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def _save(method: Any, module: Any, arm: Arm, shared: Shared, out: Path) -> None:
    """What ``evalharness run --load`` takes, whole or not at all."""
    target = out / "checkpoints" / f"s{arm.cell.seed}" / arm.cell.checkpoint_name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=target.parent) as spare:
        folder = Path(spare) / "new"
        folder.mkdir()
        method.save(module, folder)
        card = checkpoint_card(
            arm.cell,
            jsonable(method),
            model_fingerprint=shared.fingerprint,
            skip_layers=arm.skip_layers,
            device=shared.session.spec.device,
            training_clips=shared.grid.training_clips,
        )
        atomic_write_json(folder / CARD_NAME, card)
        replace_folder(folder, target)


def _write_run_config(grid: Grid, names: Sequence[str], path: Path) -> None:
    """The saved rows as ``evalharness run`` knows them; of the preset std only, since a run has one."""
    cells = [arm.cell for arm in grid.arms if arm.skip_layers == "std" and _is_named(arm, names)]
    variants = {c.label: {"method": c.method, "options": jsonable(c.options)} for c in cells if c.is_variant}
    plain = {c.method: jsonable(c.options) for c in cells if not c.is_variant}
    config: Mapping[str, Any] = {
        "model": "tinyworld",
        "methods": list(dict.fromkeys(cell.label for cell in cells)),
        "bits": sorted({cell.bits.label for cell in cells}, reverse=True),
        "method_options": plain,
        "variants": variants,
    }
    atomic_write_text(path, yaml.safe_dump(dict(config), sort_keys=False))


def _seed_libraries(seed: int) -> None:
    """For methods that draw from the global generators; among lanes their draws depend on timing."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _free() -> None:
    """A recorded graph holds its memory until it is collected; the next recording gives it back."""
    import gc

    gc.collect()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
