"""Readers of foreign data under random and mutated input: a value or one clear error, never anything else.

A clear error is a ``ValueError`` (of which ``UserError`` is one) on one line that is not absurdly long.
Anything else,
an ``AttributeError`` from deep inside, a hang, a path outside the folder, fails here.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from evalharness.augment import read_augmented
from evalharness.calibration_files import read_statistics
from evalharness.cli.run import parse_config
from evalharness.frames import decode
from evalharness.gates.spec import parse_gates, read_gates
from evalharness.interchange.found import by_manifest, by_name
from evalharness.interchange.names import is_safe, place, video_name
from evalharness.names import check_name
from evalharness.papers import read_papers
from evalharness.planfile import read_plan_file
from evalharness.records import read_prepare, read_samples, read_scores
from evalharness.result_schema import READABLE_VERSIONS
from evalharness.results import read_results, write_results
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.seeds import video_seed
from evalharness.store import JsonLines, read_json
from evalharness.video import encode_video
from tests.evalharness.conftest import without_sum
from tests.evalharness.test_report import full

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NASTY = (
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "..",
    ".",
    "",
    "con",
    "a/b",
    "a\\b",
    "\u202e",
    "💥" * 80,
    "-rf",
)
NAMES = st.sampled_from(NASTY) | st.text(max_size=40)


def clear(read: Callable[[], Any]) -> Any:
    """Its value, or None for one clear error; anything else is raised."""
    try:
        return read()
    except ValueError as error:
        assert str(error) and len(str(error)) < 5000
        return None


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or put in a few bytes."""
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(4)
        if kind == 0 and place < len(data):
            data = data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + data[max(0, place - rng.randint(1, 64)) :]
        else:
            data = data[:place] + rng.randbytes(rng.randint(1, 16)) + data[place:]
        if not data:
            return data
    return data


@FUZZ
@given(st.text(max_size=200) | JSON.map(lambda value: json.dumps(value)))
def test_yaml_of_a_run_and_of_gates(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    clear(lambda: parse_config(["--config", str(path)]))
    clear(lambda: read_gates(path))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "methods: !!python/name:os.system",
        "&a [*a, *a]",
        "a: &b [x]\n" + "\n".join(f"c{i}: [*b, *b, *b]" for i in range(50)),
        "{" * 2000,
        "methods: [[[[[]]]]]",
    ],
)
def test_yaml_runs_nothing_and_does_not_blow_up(tmp_path: Path, text: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    begin = time.process_time()
    for read in (lambda: parse_config(["--config", str(path)]), lambda: read_gates(path)):
        clear(read)
    assert not (tmp_path / "pwned").exists() and time.process_time() - begin < 20


@FUZZ
@given(JSON)
def test_gates_of_any_shape(value: Any) -> None:
    clear(lambda: parse_gates(value))
    clear(lambda: parse_gates({"gates": value}))
    clear(lambda: parse_gates({"gates": [{"metric": "mean", "max_drop": value}], "significance": value}))


@FUZZ
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_every_json_file_of_a_run_folder(tmp_path: Path, data: bytes) -> None:
    folder = RunFolder(tmp_path)
    cell = CellFolder(tmp_path / "cells" / "a")
    cell.root.mkdir(parents=True, exist_ok=True)
    for path in (folder.results, folder.plan, cell.prepare, cell.samples.path, cell.scores.path):
        path.write_bytes(data)
    for read in (
        lambda: read_results(folder.results),
        lambda: read_plan_file(folder),
        lambda: read_json(cell.prepare),
        lambda: read_prepare(cell),
        lambda: read_samples(cell),
        lambda: read_scores(cell),
        lambda: JsonLines(cell.samples.path).read(),
    ):
        clear(read)


@FUZZ
@given(st.integers(0, 2**32))
def test_mutated_results(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "results.json"
    write_results(full(), path)
    path.write_bytes(mutate(without_sum(path.read_text()).encode(), random.Random(seed)))
    clear(lambda: read_results(path))


@FUZZ
@given(
    JSON,
    st.sampled_from(["bootstrap", "prompts", "cells", "differences", "pooled", "manifest", "dimensions"]),
)
def test_results_with_any_value_in_any_place(tmp_path: Path, value: Any, key: str) -> None:
    path = tmp_path / "results.json"
    for version in READABLE_VERSIONS:
        data = json.loads(full().model_dump_json()) | {"schema_version": version, key: value}
        path.write_text(json.dumps(data))
        clear(lambda: read_results(path))


def test_deeply_nested_json_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[" * 100_000)
    clear(lambda: read_results(path))
    clear(lambda: read_json(path))


@FUZZ
@given(st.binary(max_size=200) | st.integers(0, 2**32))
def test_mutated_videos(given_bytes: bytes | int) -> None:
    data = given_bytes if isinstance(given_bytes, bytes) else mutate(CLIP, random.Random(given_bytes))
    begin = time.process_time()
    video = clear(lambda: decode(data, "clip", limit=10_000_000))
    assert video is None or video.frames.nbytes <= 10_000_000
    assert time.process_time() - begin < 10


CLIP = encode_video(np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8), 8)


def test_a_video_larger_than_the_limit_is_refused_while_it_is_read() -> None:
    with pytest.raises(ValueError, match="too large"):
        decode(CLIP, "clip", limit=32 * 32 * 3 * 2)


@given(NAMES)
def test_a_name_that_is_accepted_stays_inside_its_folder(name: str) -> None:
    if clear(lambda: check_name(name, "id") or True):
        path = (Path("/run/cells") / f"{name}-0.mp4").resolve()
        assert path.parent == Path("/run/cells") and "\x00" not in name
    if is_safe(video_name(name, 0)):
        assert (Path("/out") / video_name(name, 0)).resolve().parent == Path("/out")


def samples(texts: list[str]) -> list[Any]:
    from evalharness.api import Prompt, Sample

    return [
        Sample(
            prompt=Prompt(id=f"p{i}", text=text, dimensions=("a",)), index=0, seed=video_seed(0, f"p{i}", 0)
        )
        for i, text in enumerate(texts)
    ]


@FUZZ
@given(st.lists(NAMES, max_size=6), st.booleans())
def test_prompts_become_file_names_without_escape_or_collision(texts: list[str], case: bool) -> None:
    placed = clear(lambda: place(samples(texts), case_sensitive=case))
    paths = [f"{each.folder}/{each.name}" for each in placed or ()]
    for path in paths:
        assert Path("/out", path).resolve().parent == Path("/out", path.split("/")[0])
    seen = [path if case else path.lower() for path in paths]
    assert len(set(seen)) == len(seen)


@FUZZ
@given(st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=4))
def test_folders_and_manifests_of_strangers(tmp_path: Path, files: list[str], rows: list[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name in files:
        plain = "".join(c for c in name if c in string.printable and c not in "/\\\x0b\x0c\r\n\x00")[:60]
        if plain not in ("", ".", ".."):
            (folder / f"{plain}-0.mp4").write_bytes(b"x")
    wanted = samples(["one", *files])
    found = clear(lambda: by_name(folder, wanted))
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps([{"file": row, "prompt_id": "p0", "sample": 0} for row in rows]))
    listed = clear(lambda: by_manifest(folder, manifest, wanted))
    for each in (found, listed):
        for path in (each.files if each is not None else {}).values():
            assert path.resolve().is_relative_to(folder.resolve())
    manifest.write_bytes(json.dumps(rows).encode())
    clear(lambda: by_manifest(folder, manifest, wanted))


@FUZZ
@given(st.binary(max_size=200))
def test_manifests_augmented_texts_and_papers_of_any_bytes(tmp_path: Path, data: bytes) -> None:
    for name in ("m.csv", "m.json", "m.txt"):
        (tmp_path / name).write_bytes(data)
        clear(lambda name=name: by_manifest(tmp_path, tmp_path / name, samples(["one"])))
        clear(lambda name=name: read_augmented(str(tmp_path / name), [s.prompt for s in samples(["one"])]))
    clear(lambda: read_papers(tmp_path))


TENSORS = save({"a.weight": torch.zeros(4, 4), "a.bias": torch.zeros(4)})


def headers() -> st.SearchStrategy[bytes]:
    """Safetensors with any header, also one that claims terabytes."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "U8", "X9"]),
            "shape": st.lists(st.integers(-1, 2**62), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 2**62), min_size=1, max_size=3),
        }
    )
    header = st.dictionaries(NAMES, entry | JSON, max_size=3).map(lambda value: json.dumps(value).encode())
    claimed = header.map(lambda text: len(text).to_bytes(8, "little") + text + b"\0" * 64)
    huge = st.integers(0, 2**64 - 1).map(lambda size: size.to_bytes(8, "little") + b"{}")
    return claimed | huge | st.binary(max_size=100) | st.integers(0, 2**32).map(
        lambda seed: mutate(TENSORS, random.Random(seed))
    )  # fmt: skip


@FUZZ
@given(headers())
def test_safetensors_of_strangers(tmp_path: Path, data: bytes) -> None:
    """Our packed checkpoints, the official ones, and calibration: refused in words, with no memory taken."""
    from qvgen.checkpoint import WEIGHTS_NAME, load_quantized
    from qvgen.official.files import WEIGHTS_NAME as RELEASED
    from qvgen.official.files import ReleasedFile

    (tmp_path / RELEASED).write_bytes(data)
    clear(lambda: ReleasedFile(tmp_path / RELEASED))
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    (tmp_path / "quantization_config.json").write_text(
        json.dumps({"format": "qvgen-quantized", "version": 1})
    )
    clear(lambda: load_quantized(torch.nn.Linear(4, 4), tmp_path, {}))
    (tmp_path / "calibration.safetensors").write_bytes(data)
    clear(lambda: read_statistics(tmp_path / "calibration.safetensors", torch.device("cpu")))


@FUZZ
@given(JSON | st.text(max_size=60), st.sampled_from(["config.json", "quantization_config.json"]))
def test_configurations_of_checkpoints(tmp_path: Path, value: Any, name: str) -> None:
    from qvgen.checkpoint import read_header
    from qvgen.official.files import build_transformer

    (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    clear(lambda: read_header(tmp_path))
    clear(lambda: build_transformer(tmp_path))
