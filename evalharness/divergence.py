"""How far a cell's videos lie from the full-precision model's of the same prompt, sample and seed.

*Divergence, not quality*: a video may be as good and yet another, so PSNR, SSIM, LPIPS and the distance of
latents stand in files of their own (``divergence.jsonl`` of a cell, ``divergence.csv`` of the run) and
enter no score and no mean. LPIPS is there where its weights are; latents, where the model encodes videos.

    python -m evalharness.divergence RUN [--latents]
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalharness.cells import REFERENCE, Cell
from evalharness.errors import UserError, guarded
from evalharness.frames import FrameStore
from evalharness.planfile import read_plan_file
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.stages.samples import latest_samples
from evalharness.store import JsonLines, atomic_write_text

if TYPE_CHECKING:
    import numpy as np

    from evalharness.frames import Decoded

__all__ = ["LABEL", "Divergence", "compare", "main", "measure", "ssim"]

LABEL = "divergence from full precision, not quality"
VERSION = 1
PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
COLUMNS = (
    *("cell", "method", "bits", "seed", "videos", "failed", "identical"),
    *("psnr_db", "ssim", "lpips", "latent_rms", "what"),
)
Encode = Callable[["np.ndarray"], "np.ndarray"]


class Divergence(NamedTuple):
    """Of one video: ``mse`` in squared grey levels, ``psnr`` in dB, infinite for equal videos, ``ssim``."""

    mse: float
    psnr: float
    ssim: float


def compare(frames: np.ndarray, reference: np.ndarray) -> Divergence:
    """Two videos, uint8 [T, H, W, 3] of one shape.

    The mean squared error is over all pixels, channels and frames, and PSNR that of it.

    Raises:
        ValueError: the shapes differ, or a side is below 11 pixels.
    """
    import numpy as np

    if frames.shape != reference.shape:
        raise ValueError(
            f"videos of shapes {list(frames.shape)} and {list(reference.shape)} have no divergence"
        )
    squares = [
        float(np.square(one.astype(np.float64) - other).mean())
        for one, other in zip(frames, reference, strict=True)
    ]
    mse = float(np.mean(squares))
    psnr = 10.0 * math.log10(PEAK**2 / mse) if mse else math.inf
    return Divergence(mse, psnr, float(np.mean([ssim(a, b) for a, b in zip(frames, reference, strict=True)])))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two images, uint8 [H, W, 3]; mean over channels.

    Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance; the
    border where the window does not fit is left out.

    Raises:
        ValueError: a side is below 11 pixels.
    """
    import cv2
    import numpy as np

    if min(image.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} pixels a side, the image has {image.shape[:2]}")

    def local(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values, (WINDOW, WINDOW), SIGMA))

    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    edge = WINDOW // 2
    return float(similar[edge:-edge, edge:-edge].mean())


def measure(
    folder: RunFolder, *, device: str = "cpu", encode: tuple[str, Encode] | None = None
) -> list[dict[str, Any]]:
    """Measure what is missing or stale in every cell; writes both files; returns the rows of the table.

    A pair that cannot be compared is one row with its error, and is tried again next time.

    Args:
        folder: of the run.
        device: where LPIPS runs.
        encode: what identifies the encoder, and frames [T, H, W, 3] to latents; None: without latents.

    Raises:
        UserError: not a run folder, in use, or without a reference cell.
    """
    cells = read_plan_file(folder).cells
    references = {cell.seed: folder.cell(cell.id) for cell in cells.values() if cell.is_reference}
    if not references:
        raise UserError(
            f"{folder.root}: no cell {REFERENCE} to compare with; evalharness run makes one with every run"
        )
    further = _Further(device, encode)
    with folder.lock():
        table = [
            _summary(cell, _cell_rows(folder.cell(cell.id), references[cell.seed], further))
            for cell in cells.values()
            if not cell.is_reference and cell.seed in references
        ]
        atomic_write_text(folder.root / "divergence.csv", _csv(table))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if a pair could not be compared."""
    parser = argparse.ArgumentParser(prog="python -m evalharness.divergence", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--latents", action="store_true", help="also the distance of the model's latents")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of LPIPS and the encoder")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    encode = _encoder(folder, options.device) if options.latents else None
    table = measure(folder, device=options.device, encode=encode)
    sys.stdout.write(_csv(table))
    return 1 if any(row["failed"] for row in table) else 0


class _Further:
    """What is measured beside PSNR and SSIM, and what it depends on."""

    def __init__(self, device: str, encode: tuple[str, Encode] | None) -> None:
        from evalharness.native.weights import declared, missing, weights_folder

        self._device, self._encode = device, encode
        self._folder = weights_folder()
        self._lpips = not missing(_LPIPS, self._folder)
        marks = [weight.sha256 for weight in declared(_LPIPS, self._folder)] if self._lpips else []
        self.identity = {"lpips_weights": marks, "encoder": encode[0] if encode else None}

    def is_current(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has all that can be measured now; what it has beyond that may stay."""
        return all(not mark or row.get(key) == mark for key, mark in self.identity.items())

    def of(self, frames: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
        """``lpips`` and ``latent_rms``, the root of the mean square; None for what is not measured."""
        import numpy as np

        found: dict[str, float | None] = {"lpips": None, "latent_rms": None}
        if self._lpips and min(frames.shape[1:3]) >= _LPIPS_SIDE:
            from evalharness.native.lpips import lpips

            found["lpips"] = lpips(frames, reference, self._folder, self._device)
        if self._encode is not None:
            apart = self._encode[1](frames).astype(np.float64) - self._encode[1](reference)
            found["latent_rms"] = float(np.sqrt(np.square(apart).mean()))
        return found


_LPIPS = ("alexnet", "lpips-alex")
_LPIPS_SIDE = 32


def _encoder(folder: RunFolder, device: str) -> tuple[str, Encode]:
    """The encoder of the run's model.

    Raises:
        UserError: the model does not offer it, or is not installed.
    """
    from evalharness.registry import Registry

    name = str(read_plan_file(folder).identity["model"])
    model = Registry().get("models", name)()
    encode = getattr(model.load(device), "latents", None)
    if encode is None:
        raise UserError(f"--latents: model {name} does not encode videos (its plugin lacks latents(frames))")
    return model.fingerprint(), encode


def _cell_rows(files: CellFolder, reference: CellFolder, further: _Further) -> list[dict[str, Any]]:
    """A row for each video that both cells have, those already there kept."""
    log = JsonLines(files.root / "divergence.jsonl")
    ours, theirs = _made(files), _made(reference)
    known = {row.get("sample"): row for row in log.read()}
    due = []
    for sample in sorted(ours.keys() & theirs.keys()):
        wanted = {"sample": sample, "video_sha256": ours[sample], "reference_sha256": theirs[sample]}
        row = known.get(sample, {})
        if (
            row.get("version") != VERSION
            or row.get("error")
            or not further.is_current(row)
            or any(row.get(k) != v for k, v in wanted.items())
        ):
            due.append(wanted)
    paths = [path for row in due for path in (files.video(row["sample"]), reference.video(row["sample"]))]
    pairs = _in_pairs(FrameStore().stream(paths))
    for wanted, (one, other) in zip(due, pairs, strict=True):
        row = {**wanted, "version": VERSION, **further.identity, **_measured(wanted, one, other, further)}
        log.append([row])  # at once, so that a kill costs one video at most
        known[wanted["sample"]] = row
    rows = [known[sample] for sample in sorted(ours.keys() & theirs.keys())]
    if rows != log.read():
        log.rewrite(rows)
    return rows


def _made(files: CellFolder) -> dict[str, str]:
    """Sample -> hash of its video, as generated."""
    return {
        name: str(record["sha256"])
        for name, record in latest_samples(files).items()
        if record["status"] == "ok"
    }


def _in_pairs(items: Iterator[Decoded]) -> Iterator[tuple[Decoded, Decoded]]:
    return zip(items, items, strict=True)


def _measured(wanted: Mapping[str, Any], one: Decoded, other: Decoded, further: _Further) -> dict[str, Any]:
    nothing = {"mse": None, "psnr": None, "ssim": None, "lpips": None, "latent_rms": None}
    for item, key in ((one, "video_sha256"), (other, "reference_sha256")):
        if item.error is not None:
            return {**nothing, "error": item.error}
        if item.sha256 != wanted[key]:
            return {**nothing, "error": f"{item.path.name}: changed since it was made"}
    assert one.video is not None
    assert other.video is not None
    try:
        found = compare(one.video.frames, other.video.frames)
        more = further.of(one.video.frames, other.video.frames)
    except ValueError as error:
        return {**nothing, "error": str(error)}
    psnr = found.psnr if math.isfinite(found.psnr) else None  # JSON has no infinity; mse 0 says it
    return {"mse": found.mse, "psnr": psnr, "ssim": found.ssim, **more, "error": None}


def _summary(cell: Cell, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [row for row in rows if row["error"] is None]
    psnrs = [row["psnr"] for row in whole if row["psnr"] is not None]
    return {
        "cell": cell.id,
        "method": cell.label,
        "bits": cell.bits.label,
        "seed": cell.seed,
        "videos": len(whole),
        "failed": len(rows) - len(whole),
        "identical": len(whole) - len(psnrs),
        "psnr_db": f"{sum(psnrs) / len(psnrs):.3f}" if psnrs else "",
        **{name: _mean_of(whole, name) for name in ("ssim", "lpips", "latent_rms")},
        "what": LABEL,
    }


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Of a number that all rows have; empty otherwise."""
    values = [row.get(name) for row in rows]
    return "" if not values or None in values else f"{sum(map(float, values)) / len(values):.4f}"  # type: ignore[arg-type]


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(guarded(main))
