"""Whether the gate catches planted regressions of a quantizer: 20 sets that share no video.

    python -m benchmarks.planted_sets make     # into runs/planted-sets; stop it and go on as you like
    python -m benchmarks.planted_sets judge    # into --output, results/statistics/planted_sets.json

A set is 32 prompts (or ``--prompts``), drawn anew and spread over the dimensions, and a base seed of its own.
Each arm makes the set's videos: ``clean`` (the reference), three regressions and ``reordered`` of
``benchmarks.planted`` from the same seeds, and ``no-op``: the very code of ``clean`` as somebody else would
run it, with other seeds, in another order and in batches of another size, so that no video of it is one of
the reference's.
Sets share no video, and ``judge`` holds each arm of each by the quality gates of ``results/ci``: with all
prompts, and with half of them, which are what the same rule draws for a set of that size. Without ``--work``
it judges the stored scores again.

On a CPU a video of four sampling steps costs 0.35 s. On a GPU with all steps, eight processes side by side::

    for k in 0 1 2 3 4 5 6 7; do
      python -m benchmarks.planted_sets make --device cuda --steps 20 --batch 16 --part $k/8 &
    done; wait
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.planted import ROW, planted, verdict
from evalharness.api import Bits, Prompt
from evalharness.cells import Cell
from evalharness.seeds import video_seed
from evalharness.store import atomic_write_json, atomic_write_text
from evalharness.subset import spread_prompts

if TYPE_CHECKING:
    from evalharness.result_schema import Results
    from evalharness.session import Session

SETS, PROMPTS = 20, 32
CLEAN, NOOP = "clean", "no-op"
ARMS = (CLEAN, NOOP, "reordered", "sign", "zero", "clip")
OTHER_SEEDS = 1000
HOW = ("device", "steps", "batch", "prompts")
"""What all arms of a set must have in common, and all sets of a record but for the device."""
PROTOCOL = "tinyworld"
CELL = Cell(model="tinyworld", method="rtn", label="rtn", bits=Bits(4, 4), seed=0)
Scores = Mapping[str, Mapping[str, float]]
"""Dimension -> prompt -> score."""


def drawn(
    prompts: Sequence[Prompt], dimensions: Sequence[str], number: int, count: int = PROMPTS
) -> list[Prompt]:
    """The prompts of a set, spread over the dimensions."""
    renamed = {f"set {number}: {prompt.id}": prompt for prompt in prompts}
    pool = [dataclasses.replace(prompt, id=name) for name, prompt in renamed.items()]
    return [renamed[prompt.id] for prompt in spread_prompts(pool, dimensions, count)]


def base_seed(arm: str, number: int) -> int:
    """The same for all arms of a set but the no-op; no two sets have the same."""
    return number + (OTHER_SEEDS if arm == NOOP else 0)


class Maker:
    """tinyworld in memory, and the quantized weights of each arm."""

    def __init__(self, how: Mapping[str, Any], place: Path) -> None:
        import evalharness.models.tinyworld as tinyworld
        from evalharness.executor import WorkerSpec
        from evalharness.session import Session

        tinyworld.SETTINGS = dataclasses.replace(tinyworld.SETTINGS, steps=how["steps"])
        spec = WorkerSpec(model="tinyworld", protocol=PROTOCOL, device=how["device"], skip_layers="std")
        self.session: Session = Session(spec)
        self._batch, self._prompts, self._place = how["batch"], how["prompts"], place
        protocol: Any = self.session.registry.get("protocols", PROTOCOL)
        self.metrics: Mapping[str, str] = protocol().metrics

    def scores(self, arm: str, number: int) -> Scores:
        """Make the videos of a set and judge them, by the stages' own code."""
        everything = list(self.session.prompts.values())
        prompts = drawn(everything, list(self.metrics), number, self._prompts)
        batch = self._batch
        if arm == NOOP:
            random.Random(number).shuffle(prompts)  # noqa: S311 - no secret
            batch = 4 if batch == 8 else 8
        with planted(arm):
            checkpoint = self._checkpoint(arm)
            samples = [self._sample(prompt, base_seed(arm, number)) for prompt in prompts]
            made = [
                video
                for start in range(0, len(samples), batch)
                for video in self._generate(arm, checkpoint, samples[start : start + batch], batch)
            ]
        return self._judge(samples, made)

    def _checkpoint(self, arm: str) -> Path:
        from evalharness.stages import prepare

        folder = self._place / arm
        if not folder.exists():
            folder.mkdir()
            log = str(self._place / "train.jsonl")
            payload = {"cell": CELL.to_json(), "source": None, "train_log": log, "target": str(folder)}
            prepare.work(self.session, payload)
        return folder

    def _sample(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        return {
            "sample": f"{prompt.id}-0",
            "prompt_id": prompt.id,
            "index": 0,
            "seed": video_seed(seed, prompt.id, 0),
            "text": prompt.text,
            "path": str(self._place / f"{prompt.id}.mp4"),
        }

    def _generate(
        self, arm: str, checkpoint: Path, samples: Sequence[Mapping[str, Any]], batch: int
    ) -> Sequence[Mapping[str, Any]]:
        from evalharness.stages import generate

        payload = {"cell": CELL.to_json(), "checkpoint": str(checkpoint), "key": arm, "batch_size": batch}
        videos: list[dict[str, Any]] = generate.work(self.session, {**payload, "samples": samples})["videos"]
        return videos

    def _judge(self, samples: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> Scores:
        from evalharness.stages import score

        found: dict[str, dict[str, float]] = {name: {} for name in self.metrics}
        for sample, video in zip(samples, made, strict=True):
            wanted = self.session.prompts[sample["prompt_id"]].dimensions
            due = [
                {"dimension": name, "metric": metric, "hash": ""}
                for name, metric in self.metrics.items()
                if name in wanted
            ]
            payload = {**sample, "sha256": video["sha256"], "due": due}
            for row in score.work(self.session, payload)["rows"]:
                if row["value"] is not None:
                    found[row["dimension"]][row["prompt_id"]] = round(row["value"], 5)
        return found


def units(sets: int, part: str) -> Iterator[tuple[str, int]]:
    """Arms and sets of one of several processes; set by set."""
    place, count = shared(part)
    everything = [(arm, number) for number in range(sets) for arm in ARMS]
    yield from everything[place::count]


def shared(part: str) -> tuple[int, int]:
    """K and N of ``K/N``.

    Raises:
        ValueError: it is not such a part.
    """
    place, _, count = part.partition("/")
    if not (place.isdecimal() and count.isdecimal() and int(place) < int(count)):
        raise ValueError(f"--part {part}: expected K/N with K from 0 to N - 1")
    return int(place), int(count)


def make(work: Path, how: Mapping[str, Any], sets: int, part: str) -> None:
    """A file of scores for each arm of each set; what is there already is kept."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="planted-") as place:
        maker: Maker | None = None
        for arm, number in units(sets, part):
            path = work / f"{arm}-{number}.json"
            if path.exists():
                continue
            maker = maker or Maker(how, Path(place))
            atomic_write_json(path, {"arm": arm, "set": number, **how, "scores": maker.scores(arm, number)})
            print(f"{arm} {number}", file=sys.stderr, flush=True)


def collected(work: Path) -> dict[str, Any]:
    """All scores of the sets that every arm has.

    ``device`` is that of each set: what is compared are the arms of one.

    Raises:
        ValueError: the arms were not made alike, or no set is whole.
    """
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*-*.json"))]
    made = {(each["arm"], each["set"]): each["scores"] for each in files}
    whole = sorted(number for arm, number in made if arm == CLEAN and all((a, number) in made for a in ARMS))
    how = {tuple(each[key] for key in HOW[1:]) for each in files}
    devices = {(each["set"], each["device"]) for each in files if each["set"] in whole}
    if len(how) != 1 or len(devices) != len(whole):
        raise ValueError(
            f"{work}: {len(whole)} whole sets, made in {len(how)} ways, {len(devices)} sets and devices;"
            " expected one set or more, one way, and one device for all arms of a set"
        )
    [same] = how
    scores = {arm: [made[arm, number] for number in whole] for arm in ARMS}
    device = [on for _, on in sorted(devices)]
    return {"device": device, **dict(zip(HOW[1:], same, strict=True)), "sets": whole, "scores": scores}


def results_of(scores: Scores) -> Results:
    """As a run of this one row would have them."""
    from evalharness.results import CellRecord, ScoreRow, build_results

    rows = {name: [ScoreRow(prompt, 0, value) for prompt, value in of.items()] for name, of in scores.items()}
    count = len({prompt for of in scores.values() for prompt in of})
    record = CellRecord(
        cell_id=f"{ROW}-s0",
        model=CELL.model,
        protocol=PROTOCOL,
        method=CELL.method,
        w_bits=CELL.bits.w,
        a_bits=CELL.bits.a,
        seed=0,
        source="computed",
        execution="fake",
        n_expected={name: len(of) for name, of in rows.items()},
        scores=rows,
        n_videos_expected=count,
        n_videos_ok=count,
        n_failed=0,
    )
    return build_results(
        [record], protocol=PROTOCOL, dimensions=list(rows), percent=True, label="planted", manifest={}
    )


def judged(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> what the gate said of each set, and by how many points the mean fell."""
    from evalharness.compare.selection import Side

    found = {}
    for arm in ARMS[1:]:
        said = [
            verdict(Side(arm, results_of(ours), ROW), Side(CLEAN, results_of(clean), ROW))
            for ours, clean in zip(record["scores"][arm], record["scores"][CLEAN], strict=True)
        ]
        statuses, drops = [status for status, _ in said], [drop for _, drop in said]
        found[arm] = {
            "sets": len(said),
            "regressions": statuses.count("REGRESSION"),
            "passes": statuses.count("PASS"),
            "mean_drop": [round(x, 2) for x in (min(drops), statistics.median(drops), max(drops))],
        }
    return found


def halved(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same sets with half of the prompts: those that ``drawn`` takes for a set of that size."""
    from evalharness.registry import Registry

    protocol: Any = Registry(()).get("protocols", PROTOCOL)()
    everything, names, count = list(protocol.prompts()), list(protocol.metrics), record["prompts"] // 2
    kept = [{prompt.id for prompt in drawn(everything, names, number, count)} for number in record["sets"]]
    scores = {
        arm: [_only(scores, ids) for scores, ids in zip(sets, kept, strict=True)]
        for arm, sets in record["scores"].items()
    }
    return {"prompts": count, "arms": judged({"scores": scores})}


def _only(scores: Scores, prompts: set[str]) -> Scores:
    return {name: {p: value for p, value in of.items() if p in prompts} for name, of in scores.items()}


def document(record: Mapping[str, Any]) -> str:
    """JSON with a line for each set of each arm."""
    head = json.dumps({key: value for key, value in record.items() if key != "scores"}, indent=1)[:-2]
    arms = ",\n".join(
        f'  "{arm}": [\n   ' + ",\n   ".join(json.dumps(each) for each in sets) + "\n  ]"
        for arm, sets in record["scores"].items()
    )
    return f'{head},\n "scores": {{\n{arms}\n }}\n}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=("make", "judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/planted-sets"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of the sampler; tinyworld's own are 20")
    parser.add_argument("--batch", type=int, default=4, help="videos a call; the no-op has 8, or 4")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of a set; results/ci has 32")
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--part", default="0/1", help="K/N: the K-th of N processes that share the work")
    parser.add_argument("--output", type=Path, default=Path("results/statistics/planted_sets.json"))
    options = parser.parse_args(argv)
    try:
        shared(options.part)
    except ValueError as error:
        parser.error(str(error))
    if min(options.sets, options.batch, options.prompts, options.steps) < 1:
        parser.error("--sets, --batch, --prompts and --steps are at least 1")
    if options.verb == "make":
        how = {key: getattr(options, key) for key in HOW}
        make(options.work, how, options.sets, options.part)
        return 0
    target: Path = options.output
    if not options.work.is_dir() and not target.is_file():
        parser.error(f"neither {options.work} nor {target} is there; make the sets first")
    try:
        record = collected(options.work) if options.work.is_dir() else json.loads(target.read_text("utf-8"))
    except ValueError as error:
        parser.error(str(error) if options.work.is_dir() else f"{target}: {error}")
    told = {"arms": judged(record), "half": halved(record)}
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, document({**told, **{k: v for k, v in record.items() if k not in told}}))
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
