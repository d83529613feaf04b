"""How well each quantized linear of tinyworld reproduces its output, on inputs that nobody calibrated on.

    python -m evalharness.tinyworld.layer_quality --methods rtn-minmax,rtn,gptq --bits 4 \
        --out results/tinyworld/layer_quality

Layers are judged one by one, each on inputs of the full-precision model: signal to quantization noise
ratio of the output (SQNR), in dB. Calibration is the harness's own; the judged inputs are of videos of
another seed. Methods that train have no place here: their weights are no longer those of the model.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import LayerStatistics, Needs
from evalharness.calibration import calibrate
from evalharness.cells import Cell, build_method
from evalharness.config import RunConfig, parse_bits
from evalharness.errors import UserError
from evalharness.executor import WorkerSpec
from evalharness.registry import Registry
from evalharness.session import Session
from evalharness.stages.context import StageContext
from evalharness.store import atomic_write_text
from evalharness.tinyworld.layer_quality_document import Row, as_markdown
from evalharness.variants import resolve_rows

if TYPE_CHECKING:
    from torch import nn

HELD_OUT_SEED = 1 << 20  # far from any seed of calibration
FIELDS = ("method", "bits", "seed", "layer", "kind", "sqnr_db")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What is collected for judging; satisfies ``api.CalibrationNeeds``."""

    layers: tuple[str, ...]
    prompts: int
    rows: int
    buckets: int = 1
    hessian: bool = False
    hessian_rows_per_call: int = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", required=True, help="as for evalharness run, variants too")
    parser.add_argument("--bits", default="4", help="as for evalharness run")
    parser.add_argument("--seed", type=int, default=0, help="of calibration")
    parser.add_argument("--held-out-prompts", type=int, default=4, help="videos whose inputs judge")
    parser.add_argument("--rows", type=int, default=2048, help="input rows of each layer that judge")
    parser.add_argument("--skip-layers", default="std", choices=("std", "none"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not 0 <= args.seed < HELD_OUT_SEED:
        raise UserError(f"--seed {args.seed}: expected a whole number from 0, below {HELD_OUT_SEED}")
    session = Session(
        WorkerSpec(model="tinyworld", protocol="tinyworld", device=args.device, skip_layers=args.skip_layers)
    )
    cells = chosen_cells(session.registry, args.methods, args.bits, args.seed)
    unseen = held_out(session, args.skip_layers, args.held_out_prompts, args.rows)
    rows: list[Row] = []
    for cell in cells:
        start = time.monotonic()
        rows += judge(session, cell, unseen)
        log.info("%s: %.1f s", cell.id, time.monotonic() - start)
    judged = f"{args.rows} input rows a layer, of {args.held_out_prompts} videos of seed {HELD_OUT_SEED}"
    given = shlex.join(sys.argv[1:] if arguments is None else arguments)
    write(rows, args.out, judged, f"python -m evalharness.tinyworld.layer_quality {given}")
    return 0


def chosen_cells(registry: Registry, methods: str, bits: str, seed: int) -> list[Cell]:
    """Cells of the methods at all bit widths, width by width.

    Raises:
        UserError: an unknown method or option, or one that trains.
    """
    rows = resolve_rows(RunConfig(methods=methods), registry)
    cells = [
        Cell(
            model="tinyworld", method=row.method, label=row.label, options=row.options, bits=width, seed=seed
        )
        for width in parse_bits(bits)
        for row in rows
    ]
    for cell in cells:
        if build_method(registry, cell).needs == Needs.TRAINING:
            raise UserError(f"{cell.title}: it trains, so its layers are not the model's; leave it out")
    return cells


def held_out(session: Session, preset: str, prompts: int, rows: int) -> Mapping[str, LayerStatistics]:
    """Inputs of each linear that the preset quantizes, from videos that calibration never samples."""
    from torch import nn

    loaded = session.full_precision()
    skip = set(loaded.skip_layers(preset))
    linears = [name for name, part in session.pristine.named_modules() if isinstance(part, nn.Linear)]
    needs = HeldOut(layers=tuple(n for n in linears if n not in skip), prompts=prompts, rows=rows)
    runs = getattr(loaded, "calibration_runs", None)
    assert runs is not None, "tinyworld can calibrate"
    steps = StageContext(session, HELD_OUT_SEED, Path("unused")).track
    return calibrate(session.pristine, runs(seed=HELD_OUT_SEED), needs, HELD_OUT_SEED, steps)


def judge(session: Session, cell: Cell, unseen: Mapping[str, LayerStatistics]) -> list[Row]:
    """One row for each layer that the method has quantized."""
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(session, cell.seed, Path(folder) / "log.jsonl")
        method = build_method(session.registry, cell)
        model = method.apply(session.fresh_transformer(), context).eval()
    rows = []
    for name, found in unseen.items():
        layer, original = model.get_submodule(name), session.pristine.get_submodule(name)
        if not is_plain(layer):
            count = getattr(layer, "stored_bits", None)
            size = original.weight.numel()  # type: ignore[operator]
            bits = int(count()) if callable(count) else None
            quality = sqnr_db(layer, original, found)
            rows.append(Row(cell.label, cell.bits.label, cell.seed, name, quality, bits, size))
    return rows


def is_plain(layer: nn.Module) -> bool:
    """Whether a method has left the linear as it was."""
    from torch import nn

    return type(layer) is nn.Linear


def sqnr_db(layer: nn.Module, original: nn.Module, found: LayerStatistics) -> float:
    """10 log10 of the power of the full-precision output over that of the difference; inf for none."""
    import torch

    with torch.no_grad():
        x = found.rows
        wanted = original(x).double()
        noise = float((layer(x).double() - wanted).square().sum())
    power = float(wanted.square().sum())
    return 10 * math.log10(power / noise) if noise and power else math.inf


def write(rows: Sequence[Row], out: Path, judged: str, command: str) -> None:
    """``layers.csv`` with every layer, ``README.md`` with medians and paired comparisons."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(FIELDS)
    for row in rows:
        table.writerow([row.method, row.bits, row.seed, row.layer, row.kind, f"{row.sqnr_db:.3f}"])
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "layers.csv", text.getvalue())
    atomic_write_text(out / "README.md", as_markdown(rows, judged, command))


if __name__ == "__main__":
    raise SystemExit(main())
