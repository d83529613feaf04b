"""``evalharness data``: clips and captions into cached latents and embeddings to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Encode, and say what was dropped and why; exit code 0."""
    parser = Parser(
        "data",
        "Encode clips and captions for training with run --data DIR. Frames are taken by time at the model's "
        "rate. The same command goes on where it was interrupted.",
    )
    parser.add_argument(
        "source", metavar="CLIPS", help="folder (one.mp4, one.txt), .csv, .jsonl, or .tar shards"
    )
    parser.add_argument("--model", required=True, help="whose latents")
    parser.add_argument("--weights", default=None, metavar="DIR", help="its pipeline folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to")
    parser.add_argument("--bucket", action="append", default=[], metavar="TxHxW", help="size; repeatable")
    parser.add_argument("--fps", type=float, default=None, help="frames per second (the model's)")
    parser.add_argument("--least-words", type=int, default=1, metavar="N", help="of a caption (1)")
    parser.add_argument("--generation", default="{}", metavar="JSON", help="as in run")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="encode every Nth chunk, as one of N")
    parser.add_argument("--chunk", type=int, default=64, metavar="N", help="clips of one shard at most (64)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="that decode (2)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_plugins()
    options = parser.parse_args(arguments)

    from evalharness.data.encode import Encoding, encode
    from evalharness.data.frames import Bucket
    from evalharness.data.sources import read_sources
    from evalharness.device import resolve_device
    from evalharness.modeloptions import ModelOptions, build_model
    from evalharness.registry import Registry

    if options.chunk < 1 or options.threads < 1:
        raise UserError("--chunk and --threads: expected whole numbers from 1")
    asked = ModelOptions(weights=options.weights, generation=_json(options.generation))
    model: Any = build_model(Registry(options.plugin), options.model, asked)
    if not hasattr(model, "training_data"):
        raise UserError(f"--model {options.model}: it brings its own training data; nothing to encode")
    settings = model.settings
    try:
        buckets = [Bucket.parse(text) for text in options.bucket]
    except ValueError as error:
        raise UserError(f"--bucket: {error}") from error
    encoding = Encoding(
        fps=options.fps or settings.fps,
        buckets=tuple(buckets) or (Bucket(settings.frames, settings.height, settings.width),),
        least_words=options.least_words,
        chunk=options.chunk,
        part=_part(options.part),
        threads=options.threads,
    )
    clips = read_sources(Path(options.source))
    fingerprint = model.fingerprint()
    loaded = model.load(resolve_device(options.device))
    for bucket in encoding.buckets:
        loaded.check_size(bucket.frames, bucket.height, bucket.width)
    report = encode(clips, loaded, fingerprint, encoding, Path(options.out), print)
    if report is None:
        print("this part is done; the folder is finished when all parts are, run one of them again then")
        return 0
    why = "".join(f"\n  {count} {kind}" for kind, count in report["dropped"].items())
    done = f"{options.out}: {report['encoded']} of {report['clips']} clips encoded"
    print(f"{done}; dropped:{why}" if why else done)
    return 0


def _part(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise UserError(f"--part {text}: expected K/N with K from 1 to N, e.g. 1/8")


def _json(text: str) -> dict[str, Any]:
    from evalharness.config import literal

    value = literal(text)
    if not isinstance(value, dict):
        raise UserError(f'--generation {text}: expected a JSON object, e.g. {{"frames": 49}}')
    return value
