"""Every reader of foreign data, to be fed with bytes: by Hypothesis in the tests, and by atheris from here.

    python -m pip install atheris
    python benchmarks/foreign.py papers --seconds 60

A reader gets the bytes as a file and may return a value or raise one ``ValueError``; anything else is a
finding. atheris watches which branches of this project's Python the bytes reach and goes on from those that
reach new ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import random
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.linesums import summed

Read = Callable[[Path], object]
Make = Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a file of this kind is read, and what a good one looks like.

    Attributes:
        name: that the file has.
        read: takes the file's path.
        make: bytes that are read without complaint, to start from.
        source: the module that reads.
        beside: good files that lie in the same folder, by name.
    """

    name: str
    read: Read
    make: bytes | Make
    source: str
    beside: Mapping[str, bytes | Make] = dataclasses.field(default_factory=dict)

    @property
    def good(self) -> bytes:
        """The good bytes, made once."""
        return _made(self.make)

    def put(self, data: bytes, folder: Path) -> Path:
        """The file with these bytes, and what lies beside it."""
        for name, content in self.beside.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_made(content))
        path = folder / self.name
        path.write_bytes(data)
        return path


@functools.cache
def _made(content: bytes | Make) -> bytes:
    return content if isinstance(content, bytes) else content()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _safetensors(header: Mapping[str, object], size: int) -> bytes:
    text = _json(header)
    return struct.pack("<Q", len(text)) + text + b"\0" * size


def _timings(path: Path) -> object:
    from evalharness.gates.timings import read_timings

    return read_timings(path)


def _gates(path: Path) -> object:
    from evalharness.gates.spec import read_gates

    return read_gates(path)


def _recipe(path: Path) -> object:
    from evalharness.cli.run import parse_config

    return parse_config(["--config", str(path)])


def _results(path: Path) -> object:
    from evalharness.results import read_results

    return read_results(path)


def _plan(path: Path) -> object:
    from evalharness.planfile import read_plan_file
    from evalharness.runfolder import RunFolder

    return read_plan_file(RunFolder(path.parent))


def _prepared(path: Path) -> object:
    from evalharness.records import read_prepare
    from evalharness.runfolder import CellFolder

    return read_prepare(CellFolder(path.parent))


def _samples(path: Path) -> object:
    from evalharness.records import read_samples
    from evalharness.runfolder import CellFolder

    return read_samples(CellFolder(path.parent))


def _scores(path: Path) -> object:
    from evalharness.records import read_scores
    from evalharness.runfolder import CellFolder

    return read_scores(CellFolder(path.parent))


def _train_log(path: Path) -> object:
    """As it is, as one that was sealed, and as one that a training goes on with."""
    from evalharness import trainlog
    from evalharness.runfolder import CellFolder

    files = CellFolder(path.parent)
    seal = {"lines": 2, "sha256": hashlib.sha256(_TRAINED).hexdigest(), "lost": 0}
    found = [trainlog.read_train_log(files, record) for record in ({}, {"train_log": seal})]
    trainlog.rewind(path, 2)
    return [*found, trainlog.seal(path)]


def _run_log(path: Path) -> object:
    from evalharness.runfolder import RunFolder
    from evalharness.runlog import logged, logged_plan, older_plan

    folder = RunFolder(path.parent)
    return [logged_plan(folder), older_plan(folder), list(logged(folder, "trained")), folder.events.damaged()]


def _card(path: Path) -> object:
    from evalharness.checkpoints import read_card

    return read_card(path.parent)


def _papers(path: Path) -> object:
    from evalharness.papers import read_papers

    return read_papers(path.parent)


def _clips(path: Path) -> object:
    from evalharness.data.sources import read_sources

    return read_sources(path)


def _encoded(path: Path) -> object:
    import torch

    from evalharness.data.shards import EncodedClips

    clips = EncodedClips(path.parent)
    clips.draw(2, torch.Generator().manual_seed(0))
    return clips.empty_caption()


def _weights(path: Path) -> object:
    from evalharness.models.video.folder import _check_weights

    return _check_weights(path.parent)


def _streamed(path: Path) -> object:
    from qvgen.tensor_stream import stream_tensors

    return list(stream_tensors(path))


def _training_state(path: Path) -> object:
    from qvgen.training.state_file import StateFile

    state = StateFile(path)
    state.check(lambda *_: None)
    return state.header


def _prompt_file(path: Path) -> object:
    from evalharness.protocols.vbench_data import condense, read_prompt_file

    return condense(read_prompt_file(path))


def _video(path: Path) -> object:
    from evalharness.frames import decode

    return decode(path.read_bytes(), path.name, limit=1 << 24)


_TIMES = {"a": {"reference": [1.0] * 10, "run": [1.0] * 10, "looks": 2}}
_GATES = b"significance: 0.01\ngates:\n  - {metric: mean, max_drop: 0.5}\n"
_CELL = {
    "model": "toy", "method": "lsq", "label": "x", "w_bits": 3, "a_bits": 3, "seed": 0, "options": {"a": 1}
}  # fmt: skip
_IDENTITY = dict.fromkeys(
    ("model", "model_fingerprint", "protocol", "prompts_sha256", "skip_layers", "device"), "x"
)
_TENSORS = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
}
_PROMPTS = [
    {
        "prompt_en": "a red car",
        "dimension": ["color"],
        "auxiliary_info": {"color": {"color": "red"}},
    }
]
_PAPER = (
    "paper,arxiv,table,model,protocol,method,row,bits_w,bits_a,scheme,metric,value,unit,hand,read_in,"
    "reference,note\nA,1,2,m,p,x,,4,4,,q,1.5,percent,first,there,s,\n"
)
_PREPARE = {
    "cell": "lsq-w3a3-s0", "hash": "y", "method": "lsq", "source": "trained", "execution": "fake",
    "config": {"a": 1}, "checkpoint": None, "checkpoint_sha256": None, "train_minutes": 1.5,
}  # fmt: skip
_SAMPLE = {"sample": "0001-0", "status": "ok", "hash": "x", "sha256": "0" * 64, "ms": 1.5}
_SCORE = {
    "sample": "0001-0", "prompt_id": "0001", "dimension": "color", "metric": "color", "value": 0.5,
    "skip": None, "video_sha256": "0" * 64, "metric_hash": "x",
}  # fmt: skip
_CARD = {"config": {"method": "lsq", "bits": 3}, "steps": 10}
_SHARD = _safetensors(
    {
        "latents": {"dtype": "F16", "shape": [2, 1, 1, 1, 1], "data_offsets": [0, 4]},
        "text": {"dtype": "F16", "shape": [2, 1, 2], "data_offsets": [4, 12]},
    },
    12,
)
_EMPTY = _safetensors({"text": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}}, 4)
_ENCODED = {
    "schema_version": 1, "sha256": "a", "model_fingerprint": "b", "clips": 2, "fps": 8.0,
    "shards": [{"file": "shards/a.safetensors", "bucket": "5x32x32", "sha256": "c", "clips": ["x", "y"]}],
    "empty_caption": {"file": "empty.safetensors", "sha256": hashlib.sha256(_EMPTY).hexdigest()},
}  # fmt: skip


def _good_results() -> bytes:
    """Two rows, two prompts, a dimension and a total."""
    from evalharness.api import Total, TotalTerm
    from evalharness.results import CellRecord, ScoreRow, build_results, write_results

    cells = [
        CellRecord(
            cell_id=f"{method}-s0", model="m", protocol="p", method=method, w_bits=bits, a_bits=bits, seed=0,
            source="reference" if method == "bf16" else "trained", execution="fake",
            n_expected={"color": 2}, n_videos_expected=2, n_videos_ok=2, n_failed=0,
            scores={"color": [ScoreRow("0000", 0, 0.25), ScoreRow("0001", 0, 0.75)]},
            profile={"step_ms": 1.0}, train_log=[{"step": 1, "loss": 0.5}], method_config={"a": 1},
        )
        for method, bits in (("bf16", 16), ("lsq", 3))
    ]  # fmt: skip
    results = build_results(
        cells, protocol="p", dimensions=["color"], percent=True, label="l", manifest={"config": {"a": 1}},
        prompts={"0000": "a", "0001": "b"}, totals=[Total(name="all", terms={"color": TotalTerm()})],
        ranges={"color": (-1.0, 1.0)},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        write_results(results, Path(name, "r.json"))
        text = Path(name, "r.json").read_text()
        return re.sub(r',\n "crc": "\w+"', "", text).encode()  # with its sum nothing changed gets further


def _good_state() -> bytes:
    """A training state of one tensor, with its checksum."""
    import torch

    from qvgen.training.state_file import new_state

    log = {"count": 1, "lines": 1, "losses": [0.5], "pending": {}, "seconds": 1.5}
    header = {"identity": {"steps": 2}, "log": log, "random": ["cpu"], "step": 1}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "s")
        with new_state(path, header, {"a": (torch.float32, (2,))}) as writer:
            writer.put("a", torch.ones(2))
        return path.read_bytes()


def _good_video() -> bytes:
    """Three frames of 16 x 16."""
    import numpy as np

    from evalharness.video import encode_video

    return encode_video(np.indices((3, 16, 16, 3)).sum(axis=0).astype(np.uint8), 8)


_TRAINED = b'{"step": 0, "loss": 0.5}\n{"step": 1, "loss": NaN, "rank": 8}\n'
_BEGUN = _json({"event": "begin", "identity": _IDENTITY, "manifest": {"config": {"cells": [_CELL]}}})
_PLANNED = {"schema_version": 1, "identity": _IDENTITY, "cells": [_CELL]}
_LOGGED = (
    summed(json.dumps({"event": "planned", "record": _PLANNED}))
    + "\n"
    + summed(_BEGUN.decode())
    + "\n"
    + summed('{"event": "trained", "cell": "a-s0", "log": "{}"}')
    + "\n"
).encode()

READERS: dict[str, Reader] = {
    "recipe": Reader("run.yaml", _recipe, b"model: tinyworld\nbits: 4,3\n", "evalharness/config.py"),
    "gates": Reader("gates.yaml", _gates, _GATES, "evalharness/gates/spec.py"),
    "timings": Reader("times.json", _timings, _json(_TIMES), "evalharness/gates/timings.py"),
    "results": Reader("results.json", _results, _good_results, "evalharness/results.py"),
    "plan": Reader(
        "plan.json",
        _plan,
        _json(_PLANNED),
        "evalharness/planfile.py",
    ),
    "prepare": Reader("prepare.json", _prepared, _json(_PREPARE), "evalharness/records.py"),
    "samples": Reader("samples.jsonl", _samples, _json(_SAMPLE) + b"\n", "evalharness/records.py"),
    "scores": Reader("scores.jsonl", _scores, _json(_SCORE) + b"\n", "evalharness/records.py"),
    "training log": Reader("train.jsonl", _train_log, lambda: _TRAINED, "evalharness/trainlog.py"),
    "run log": Reader("events.jsonl", _run_log, lambda: _LOGGED, "evalharness/runlog.py"),
    "card": Reader("evalharness.json", _card, _json(_CARD), "evalharness/checkpoints.py"),
    "papers": Reader("a.csv", _papers, _PAPER.encode(), "evalharness/papers.py"),
    "clips": Reader(
        "c.jsonl", _clips, b'{"video": "a.mp4", "caption": "b"}\n', "evalharness/data/sources.py"
    ),
    "clip table": Reader("c.csv", _clips, b"video,caption\na.mp4,b\n", "evalharness/data/sources.py"),
    "encoded clips": Reader(
        "manifest.json",
        _encoded,
        _json(_ENCODED),
        "evalharness/data/manifest.py",
        {"shards/a.safetensors": _SHARD, "empty.safetensors": _EMPTY},
    ),
    "weight index": Reader(
        "model.safetensors.index.json",
        _weights,
        _json({"metadata": {"total_size": 9}, "weight_map": {"a": "m.safetensors", "b": "m.safetensors"}}),
        "evalharness/models/video/folder.py",
        {"m.safetensors": _safetensors(_TENSORS, 9)},
    ),
    "weights": Reader(
        "model.safetensors", _weights, _safetensors(_TENSORS, 9), "evalharness/models/video/folder.py"
    ),
    "tensors": Reader("t.safetensors", _streamed, _safetensors(_TENSORS, 9), "qvgen/tensor_stream.py"),
    "training state": Reader(
        "train_state.safetensors",
        _training_state,
        _good_state,
        "qvgen/training/state_file.py",
    ),
    "prompt file": Reader("v.json", _prompt_file, _json(_PROMPTS), "evalharness/protocols/vbench_data.py"),
    "video": Reader("a.mp4", _video, _good_video, "evalharness/video.py"),
}


def feed(reader: Reader, data: bytes, folder: Path) -> object:
    """The reader's value of these bytes, or None for one clear error; anything else is raised."""
    path = reader.put(data, folder)
    try:
        return reader.read(path)
    except ValueError as error:
        assert str(error) and len(str(error)) < 5000, "an error without words, or with too many"
        return None


_LEAVES: tuple[object, ...] = (
    None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../x", "a\0b", "0" * 5000,
    [], {}, [[]], {"a": None},
)  # fmt: skip


def restructure(data: bytes, rng: random.Random) -> bytes | None:
    """The same document with a few of its values replaced, removed, moved or doubled; None if it is no JSON.

    It still parses, so what is tried is all that a reader checks after parsing. JSON, lines of JSON and the
    header of a safetensors file or of the text in its metadata, whose lengths are put right.
    """
    if len(data) > 8 and struct.unpack("<Q", data[:8])[0] <= len(data) - 8:
        size = struct.unpack("<Q", data[:8])[0]
        head = restructure(data[8 : 8 + size], rng)
        return None if head is None else struct.pack("<Q", len(head)) + head + data[8 + size :]
    value = _parsed(data)
    if value is None:
        return None
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    return _json(value) + b"\n" * data.endswith(b"\n")


def _parsed(text: bytes | str) -> Any:
    """Its value; None of what is no JSON, or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _changed(value: Any, rng: random.Random) -> Any:
    """One change, at a random place."""
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        return json.dumps(_changed(_parsed(value), rng))  # JSON within JSON
    if not value or not isinstance(value, dict | list) or rng.random() < 0.1:
        return rng.choice(_LEAVES)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        rest = {k: v for k, v in value.items() if k != key}
        if kind == 0:
            return rest
        if kind == 1:
            return {**rest, rng.choice(("", "x", "schema_version", "__proto__", "\u202e")): value[key]}
        if kind == 2:
            return {**value, key: value[rng.choice(list(value))]}
        return {**value, key: _changed(value[key], rng)}
    place = rng.randrange(len(value))
    kind = rng.randrange(6)
    if kind == 0:
        return value[:place] + value[place + 1 :]
    if kind == 1:
        return [*value, value[place]]
    return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; atheris ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args(argv)
    import atheris

    reader = READERS[options.reader]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        with atheris.instrument_imports(include=["evalharness", "qvgen"]):
            (corpus / "good").write_bytes(reader.good)  # imports what it needs, to be watched
            feed(reader, reader.good, folder)

        def change(data: bytes, most: int, seed: int) -> bytes:
            """Half of the time within the document, else as libFuzzer changes bytes."""
            inside = restructure(data, random.Random(seed)) if seed % 2 else None  # noqa: S311 - repeatable
            return atheris.Mutate(data, most) if inside is None or len(inside) > most else inside

        limits = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=4096", "-verbosity=1"]
        limits += ["-len_control=0", "-max_len=20000", f"-artifact_prefix={tempfile.gettempdir()}/"]
        atheris.Setup(
            [sys.argv[0], *limits, str(corpus)],
            lambda data: feed(reader, data, folder),
            custom_mutator=change,
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
