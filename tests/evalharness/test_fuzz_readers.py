"""Every reader of foreign data, from the list that atheris works through too (``benchmarks/foreign.py``)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.foreign import READERS, feed
from tests.evalharness.test_fuzz import JSON, headers, mutate

ROOT = Path(__file__).parents[2]
FUZZ = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEEP = b"[" * 30_000
PLACES = st.sampled_from(["weight_map", "a", "config", "identity", "cells", "gates", "shards", "looks"])


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    """Or its refusal is known: the example lacks what would be too long to write here."""
    refused = {"results", "prepare", "samples", "scores", "training state", "video", "weight index"}
    path = tmp_path / READERS[name].name
    path.write_bytes(READERS[name].good)
    if name in refused:
        feed(READERS[name], READERS[name].good, tmp_path)
    else:
        READERS[name].read(path)  # an error would be one of the example


@pytest.mark.parametrize("name", READERS)
def test_the_reader_is_where_the_list_says(name: str) -> None:
    assert (ROOT / READERS[name].source).is_file()


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(st.data())
def test_any_bytes_are_a_value_or_one_clear_error(name: str, tmp_path: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    mutated = st.integers(0, 2**32).map(lambda seed: mutate(reader.good, random.Random(seed)))
    placed = st.tuples(PLACES, JSON).map(lambda pair: json.dumps({pair[0]: pair[1]}).encode())
    plain = JSON.map(lambda value: json.dumps(value).encode())
    given_bytes = data.draw(mutated | placed | plain | st.binary(max_size=120) | headers())
    feed(reader, given_bytes, tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("wrap", [b"%b", b'{"a": %b', len(DEEP).to_bytes(8, "little") + b"%b"])
def test_endless_nesting_is_an_error(name: str, wrap: bytes, tmp_path: Path) -> None:
    feed(READERS[name], wrap % DEEP, tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("recipe", b'{"config": {}}'),
        ("weight index", b'{"weight_map": 1}'),
        ("weight index", b'{"weight_map": {"a": []}}'),
        ("tensors", b'{"a": {"dtype": {}, "shape": [], "data_offsets": [0, 0]}}'),
        ("prompt file", b'["a"]'),
    ],
)
def test_what_was_found_once_stays_mended(name: str, data: bytes, tmp_path: Path) -> None:
    if name == "tensors":
        data = len(data).to_bytes(8, "little") + data
    path = tmp_path / READERS[name].name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"[a-z]"):
        READERS[name].read(path)
