"""Every reader of foreign data, to be fed with bytes: by Hypothesis in the tests, and by atheris from here.

    python -m pip install atheris
    python benchmarks/foreign.py papers --seconds 60

A reader gets the bytes as a file and may return a value or raise one ``ValueError``; anything else is a
finding. atheris watches which branches of this project's Python the bytes reach and goes on from those that
reach new ones.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """How a file of this kind is read, and what a good one looks like.

    Attributes:
        name: that the file has.
        read: takes the file's path.
        good: bytes that are read without complaint, to start from.
        source: the module that reads.
    """

    name: str
    read: Read
    good: bytes
    source: str


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _safetensors(header: dict[str, object], size: int) -> bytes:
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
    from evalharness.data.manifest import read_manifest

    return read_manifest(path.parent)


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
_SAMPLE = {"sample": "0001-0", "status": "ok", "sha256": "0" * 64, "hash": "x"}

READERS: dict[str, Reader] = {
    "recipe": Reader("run.yaml", _recipe, b"model: tinyworld\nbits: 4,3\n", "evalharness/config.py"),
    "gates": Reader("gates.yaml", _gates, _GATES, "evalharness/gates/spec.py"),
    "timings": Reader("times.json", _timings, _json(_TIMES), "evalharness/gates/timings.py"),
    "results": Reader("results.json", _results, b"{}", "evalharness/results.py"),
    "plan": Reader(
        "plan.json",
        _plan,
        _json({"schema_version": 1, "identity": _IDENTITY, "cells": [_CELL]}),
        "evalharness/planfile.py",
    ),
    "prepare": Reader("prepare.json", _prepared, b'{"cell": "x", "hash": "y"}', "evalharness/records.py"),
    "samples": Reader("samples.jsonl", _samples, _json(_SAMPLE) + b"\n", "evalharness/records.py"),
    "scores": Reader("scores.jsonl", _scores, _json(_SAMPLE) + b"\n", "evalharness/records.py"),
    "card": Reader("evalharness.json", _card, _json({"config": {}}), "evalharness/checkpoints.py"),
    "papers": Reader("a.csv", _papers, _PAPER.encode(), "evalharness/papers.py"),
    "clips": Reader(
        "c.jsonl", _clips, b'{"video": "a.mp4", "caption": "b"}\n', "evalharness/data/sources.py"
    ),
    "clip table": Reader("c.csv", _clips, b"video,caption\na.mp4,b\n", "evalharness/data/sources.py"),
    "encoded clips": Reader(
        "manifest.json",
        _encoded,
        _json({"schema_version": 1, "sha256": "a", "model_fingerprint": "b", "shards": [], "clips": 0}),
        "evalharness/data/manifest.py",
    ),
    "weight index": Reader(
        "model.safetensors.index.json",
        _weights,
        _json({"weight_map": {}}),
        "evalharness/models/video/folder.py",
    ),
    "weights": Reader(
        "model.safetensors", _weights, _safetensors(_TENSORS, 9), "evalharness/models/video/folder.py"
    ),
    "tensors": Reader("t.safetensors", _streamed, _safetensors(_TENSORS, 9), "qvgen/tensor_stream.py"),
    "training state": Reader(
        "train_state.safetensors",
        _training_state,
        _safetensors({"__metadata__": {"header": "{}", "sha256": "x"}}, 0),
        "qvgen/training/state_file.py",
    ),
    "prompt file": Reader("v.json", _prompt_file, _json(_PROMPTS), "evalharness/protocols/vbench_data.py"),
    "video": Reader("a.mp4", _video, b"\0\0\0\x20ftypisom", "evalharness/video.py"),
}


def feed(reader: Reader, data: bytes, folder: Path) -> object:
    """The reader's value of these bytes, or None for one clear error; anything else is raised."""
    path = folder / reader.name
    path.write_bytes(data)
    try:
        return reader.read(path)
    except ValueError as error:
        assert str(error) and len(str(error)) < 5000, "an error without words, or with too many"
        return None


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
        (corpus / "good").write_bytes(reader.good)
        with atheris.instrument_imports(include=["evalharness", "qvgen"]):
            feed(reader, reader.good, folder)  # imports what it needs, to be watched
        limits = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=4096", "-verbosity=1"]
        artifacts = f"-artifact_prefix={tempfile.gettempdir()}/"
        atheris.Setup([sys.argv[0], *limits, artifacts, str(corpus)], lambda data: feed(reader, data, folder))
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
