"""Two runs of the same cells, fake-quantized and packed: what became of each score, and why videos differ.

    python benchmarks/packed_runs.py runs/tinyworld runs/tinyworld-real --output packed_runs.json

Scores come from the runs, whose cells must be of the same weights. For every video that is not the same in
both, the fake-quantized model makes it once more with all latents multiplied by 1 + 2^-23, a single
rounding: a packed video no more than twice as far from the fake-quantized one as that is explained
(``benchmarks/packed_scores.py``). It is made as the runs were: on their device, in batches of their size.
How far one rounding moves a video is itself a matter of chance, and as often as a packed video is far beyond
it, it is far beyond the packed one: what the first rounding does not explain is made with up to
``--roundings`` others, signs drawn, and the farthest of all counts.
For the first ``--look-into`` videos of a cell it is also said in which layer codes first fall to the other
side of a border. Results are written after each batch; run again, it goes on with the videos that are
missing, and with those that are unexplained by fewer roundings. Exit code 0: all cells of the packed run, at
least one, were compared in all videos that both runs have, and each video is explained.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from evalharness.api import Sample
    from evalharness.session import Session
    from evalharness.stats import Key


@dataclass(frozen=True)
class Pair:
    """One cell in both runs."""

    fake: Path
    packed: Path
    cell: Any
    checkpoint: Path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON, {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no JSON object")
    return found


def pairs(fake: Path, packed: Path) -> Iterator[Pair]:
    """The packed run's cells that the other has, too: of one method, width and seed.

    Raises:
        ValueError: a cell that is not what its run is said to be, or of other weights in the two.
    """
    from evalharness.api import Bits
    from evalharness.cells import Cell
    from evalharness.models.tinyworld import CHECKPOINTS

    for record in read_object(packed / "manifest.json")["config"]["cells"]:
        if record["method"] == "bf16":
            continue
        bits = Bits(record["w_bits"], record["a_bits"])
        cell = Cell.from_json({**record, "label": record["method"]})
        places = fake / "cells" / cell.id, packed / "cells" / f"{record['label']}-{bits.label}-s{cell.seed}"
        if not all((place / "prepare.json").exists() for place in places):
            continue
        prepared = [read_object(place / "prepare.json") for place in places]
        if prepared[0]["execution"] != "fake" or prepared[1]["execution"] == "fake":
            raise ValueError(
                f"{places[0]} and {places[1]} say {prepared[0]['execution']} and "
                f"{prepared[1]['execution']}; give the fake-quantized run first, then the packed one"
            )
        weights = [one.get("checkpoint_sha256") for one in prepared]
        if weights[0] is None or weights[0] != weights[1]:
            raise ValueError(
                f"{places[0]} and {places[1]} ran other weights (checkpoint_sha256 {weights[0]} and "
                f"{weights[1]}); load those of the fake-quantized run: --load FOLDER of LABEL-BITS folders"
            )
        own = places[0] / "checkpoint"
        yield Pair(*places, cell, own if own.is_dir() else CHECKPOINTS / f"{record['method']}-{bits.label}")


def score_table(cell: Path) -> dict[str, dict[Key, float]]:
    """Dimension -> video -> score, the last where there are several."""
    from evalharness.stats import Key

    found: dict[str, dict[Key, float]] = {}
    for line in (cell / "scores.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["value"] is not None:
            found.setdefault(row["dimension"], {})[Key(row["prompt_id"], row["sample"])] = row["value"]
    return found


def score_differences(pair: Pair) -> dict[str, Any]:
    """Packed minus fake: in each dimension, and the mean of the dimensions' means.

    Dimensions judge the same videos and are no independent draws: standard errors and intervals are
    over whole prompts (``evalharness.effects``).
    """
    from evalharness.effects import Effect, effect

    fake, packed = score_table(pair.fake), score_table(pair.packed)
    apart = {
        name: {key: packed[name][key] - value for key, value in scores.items() if key in packed[name]}
        for name, scores in sorted(fake.items())
        if packed.get(name, {}).keys() & scores.keys()
    }

    def told(found: Effect) -> dict[str, Any]:
        return {"mean": found.value, "standard_error": found.se, "interval": [found.lo, found.hi]}

    values = [value for scores in apart.values() for value in scores.values()]
    return {
        "scores": len(values),
        "equal": sum(value == 0 for value in values),
        **told(effect([apart])),
        "dimensions": {name: told(effect([{name: scores}])) for name, scores in apart.items()},
    }


def equal(pair: Pair, sample: Sample) -> bool:
    """Whether the two videos are the same file."""
    fake, packed = (place / "videos" / f"{sample.id}.mp4" for place in (pair.fake, pair.packed))
    return fake.read_bytes() == packed.read_bytes()


def make_moved(session: Session, model: nn.Module, samples: Sequence[Sample], size: int) -> list[Any]:
    """Frames of ``samples`` by ``model``, one batch that is padded to ``size`` as the harness pads."""
    from evalharness.video import decode_video, encode_video

    session.loaded.transformer = model
    padded = [*samples, *[samples[0]] * (size - len(samples))]
    made = session.loaded.generate([one.prompt.text for one in padded], [one.seed for one in padded])
    fps = session.model.settings.fps
    return [decode_video(encode_video(frames, fps)).frames for frames in made[: len(samples)]]


def explain(
    session: Session, pair: Pair, sample: Sample, models: Mapping[str, nn.Module], again: Any, look: bool
) -> dict[str, Any]:
    """How far both videos are apart and how far one rounding moves the fake-quantized one.

    ``again`` is the moved video's frames.
    """
    import numpy as np

    from benchmarks.packed_scores import parted, psnr
    from evalharness.video import read_video

    files = [place / "videos" / f"{sample.id}.mp4" for place in (pair.fake, pair.packed)]
    fake, packed = (np.asarray(read_video(file).frames) for file in files)
    decibels, moved = psnr(fake, packed), psnr(fake, np.asarray(again))
    where = parted(*codes_of(session, sample, models)) if look else {"first_layer": None}
    found = {"packed_db": decibels, "moved_db": moved, "explanation": reason(decibels, moved, where, look)}
    return {**found, "codes": where} if look else found


def reason(packed_db: float | None, moved_db: float | None, where: Mapping[str, Any], look: bool) -> str:
    """``packed_scores.explained``, also where codes were not looked into."""
    from benchmarks.packed_scores import LATER, explained

    return explained(packed_db, moved_db, where, LATER if look else "codes not looked into")


def is_open(video: Mapping[str, Any], draw: int) -> bool:
    """Whether a video is unexplained, and was not yet made with so many other roundings."""
    unexplained = video["explanation"].startswith("UNEXPLAINED")
    return bool(unexplained and len(video.get("other_roundings_db", ())) < draw)


def look_again(
    session: Session,
    pair: Pair,
    fake: nn.Module,
    samples: Sequence[Sample],
    videos: dict[str, Any],
    given: Any,
) -> None:
    """Other single roundings for the videos that the first did not explain, until one does.

    ``other_roundings_db`` of a video has how far each moved it.
    """
    import numpy as np

    from benchmarks.packed_scores import moved, psnr
    from evalharness.video import read_video

    for draw in range(1, given.roundings + 1):
        left = [sample for sample in samples if is_open(videos[sample.id], draw)]
        if not left:
            continue
        again = make_moved(session, moved(fake, draw), left, given.batch_size)
        for sample, frames in zip(left, again, strict=True):
            known = videos[sample.id]
            made = np.asarray(read_video(pair.fake / "videos" / f"{sample.id}.mp4").frames)
            drawn = known.setdefault("other_roundings_db", [])
            drawn.append(psnr(made, np.asarray(frames)))
            farthest = min((db for db in (known["moved_db"], *drawn) if db is not None), default=None)
            where = known.get("codes", {"first_layer": None})
            known["explanation"] = reason(known["packed_db"], farthest, where, "codes" in known)


def codes_of(session: Session, sample: Sample, models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Integers that the layers of the fake-quantized and of the packed model read first.

    The fake-quantized one runs without fused kernels: one of them rotates, quantizes and hands the input
    to the product without a call of the layer that could be listened to.
    """
    from benchmarks.packed_scores import Codes, first_codes
    from qvgen.fused.switch import disabled

    found: list[Codes] = []
    for name, kernels in (("fake", disabled()), ("packed", nullcontext())):
        found.append({})
        end = first_codes(models[name], models["packed"], found[-1])
        session.loaded.transformer = models[name]
        with kernels:
            session.loaded.generate([sample.prompt.text], [sample.seed])
        end()
    return found


def work(session: Session, pair: Pair, given: argparse.Namespace, known: dict[str, Any]) -> Iterator[None]:
    """Fill in what is missing of one cell; yields after each batch."""
    from benchmarks.packed_scores import moved
    from evalharness.sampling import samples_of
    from qvgen.packed.convert import pack_

    known["scores"] = score_differences(pair)
    videos: dict[str, Any] = known.setdefault("videos", {})
    samples = samples_of(session.prompts.values(), pair.cell.seed, 1, {})
    both = [
        sample
        for sample in samples
        if all((place / "videos" / f"{sample.id}.mp4").exists() for place in (pair.fake, pair.packed))
    ]
    known["videos_in_both"] = len(both)
    left = [sample for sample in both if sample.id not in videos]
    videos |= {sample.id: {"explanation": "equal"} for sample in left if equal(pair, sample)}
    left = [sample for sample in left if sample.id not in videos]
    doubtful = [one for one in both if one.id in videos and is_open(videos[one.id], given.roundings)]
    if not left and not doubtful:
        return
    fake = session.activate(pair.cell, pair.checkpoint, str(pair.checkpoint)).transformer
    models = {"fake": fake, "packed": pack_(copy.deepcopy(fake)), "moved": moved(fake)}
    looked = sum("codes" in video for video in videos.values())
    for first in range(0, len(left), given.batch_size):
        batch = left[first : first + given.batch_size]
        again = make_moved(session, models["moved"], batch, given.batch_size)
        for sample, frames in zip(batch, again, strict=True):
            look = looked < given.look_into
            looked += look
            videos[sample.id] = explain(session, pair, sample, models, frames, look)
        look_again(session, pair, fake, batch, videos, given)
        yield
    for first in range(0, len(doubtful), given.batch_size):
        look_again(session, pair, fake, doubtful[first : first + given.batch_size], videos, given)
        yield


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a cell."""
    videos = found["videos"].values()
    texts = [video["explanation"] for video in videos]
    pairs = [(video.get("packed_db"), video.get("moved_db")) for video in videos]
    apart = [packed - moved for packed, moved in pairs if packed is not None and moved is not None]
    return {
        "videos": f"{len(texts)} of {found['videos_in_both']}",
        "equal": sum(text == "equal" for text in texts),
        "unexplained": sum(text.startswith("UNEXPLAINED") for text in texts),
        "other_roundings": sum("other_roundings_db" in video for video in videos),
        "nearer_than_one_rounding": f"{sum(db > 0 for db in apart)} of {len(apart)}",
        "median_db_nearer": statistics.median(apart) if apart else None,
        "mean_difference": found["scores"]["mean"],
        "standard_error": found["scores"]["standard_error"],
        "interval": found["scores"]["interval"],
    }


def expected(config: Mapping[str, Any]) -> list[str]:
    """Cells of a packed run, by the names they have where they are fake-quantized."""
    from evalharness.cells import Cell

    cells = [Cell.from_json({**record, "label": record["method"]}) for record in config["cells"]]
    return [cell.id for cell in cells if not cell.is_reference]


def unsettled(totals: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """What is in the way of saying that both runs give the same; nothing if they do.

    Args:
        totals: ``summary`` of each cell that was looked at.
        names: of the cells that there should be.
    """
    if not any(int(total["videos"].split(" ")[0]) for total in totals.values()):
        return ["nothing was compared: the runs have no video in common"]
    found = [f"{name}: not compared" for name in names if name not in totals]
    for name, total in totals.items():
        done, wanted = total["videos"].split(" of ")
        if done != wanted or wanted == "0":
            found.append(f"{name}: {total['videos']} videos were compared")
        if total["unexplained"]:
            found.append(f"{name}: {total['unexplained']} videos differ by more than rounding explains")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """All cells; 0 if there were videos to compare, all of them were, and each is explained."""
    from benchmarks.measuring import surroundings, write_json
    from evalharness.executor import WorkerSpec
    from evalharness.session import Session

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("fake", type=Path, help="run folder, fake-quantized")
    parser.add_argument("packed", type=Path, help="run folder, --execution packed")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, and to go on from")
    parser.add_argument("--roundings", type=int, default=8, help="drawn for what the first does not explain")
    parser.add_argument("--look-into", type=int, default=1, help="videos of a cell whose codes are compared")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no further video after so long")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: that of the packed run")
    parser.add_argument("--batch-size", type=int, help="videos made at once; default: as in the packed run")
    given = parser.parse_args(argv)
    for run in (given.fake, given.packed):
        if not (run / "manifest.json").exists():
            parser.error(
                f"{run}: no run is there (manifest.json); give the folder that `evalharness run` made"
            )
    if given.batch_size is not None and given.batch_size < 1:
        parser.error("--batch-size is at least 1")
    if not given.output.absolute().parent.is_dir():
        parser.error(f"{given.output.parent}: no such folder, for --output")
    try:
        both = list(pairs(given.fake, given.packed))
        cells: dict[str, Any] = read_object(given.output)["cells"] if given.output.exists() else {}
    except KeyError as error:
        parser.error(f"not what these scripts and `evalharness run` write: {error} is missing")
    except ValueError as error:
        parser.error(str(error))
    import torch

    config = json.loads((given.packed / "manifest.json").read_text())["config"]
    given.device = given.device or config["device"]
    given.batch_size = given.batch_size or config["batch_size"]
    session = Session(
        WorkerSpec(
            model=config["model"], protocol=config["protocol"], device=given.device,
            skip_layers=config["skip_layers"],
        )
    )  # fmt: skip
    facts, end = surroundings(torch.device(given.device)), time.monotonic() + given.limit_s

    def save() -> dict[str, Any]:
        totals = {name: summary(found) for name, found in cells.items()}
        write_json(given.output, {"summary": totals, **facts, "cells": cells})
        return totals

    totals: dict[str, Any] = {}
    for pair in both:
        known = cells.setdefault(pair.cell.id, {})
        for _ in work(session, pair, given, known):
            totals = save()
            if time.monotonic() > end:
                break
        totals = save()
        print(f"{pair.cell.id}: {totals[pair.cell.id]}", flush=True)
        if time.monotonic() > end:
            break
    wrong = unsettled(totals, expected(config))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
