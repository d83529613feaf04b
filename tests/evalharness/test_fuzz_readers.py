"""Every reader of foreign data, from the list that atheris works through too (``benchmarks/foreign.py``)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.foreign import READERS, feed, restructure
from tests.evalharness.test_fuzz import JSON, headers, mutate

ROOT = Path(__file__).parents[2]
FUZZ = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEEP = b"[" * 30_000
PLACES = st.sampled_from(["weight_map", "a", "config", "identity", "cells", "gates", "shards", "looks"])


STRUCTURED = sorted(name for name, reader in READERS.items() if restructure(reader.good, random.Random(0)))


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    """All of them, or the fuzzing would never get behind a reader's first check."""
    reader = READERS[name]
    value = reader.read(reader.put(reader.good, tmp_path))
    assert value is not None or name in ("weights", "weight index"), "a check alone has no value"


@pytest.mark.parametrize("name", STRUCTURED)
def test_documents_that_parse_but_are_wrong_inside(name: str, tmp_path: Path) -> None:
    """Values replaced, removed, moved and doubled; reads go behind the parser, and some are still good."""
    reader, rng = READERS[name], random.Random(1)
    accepted, refusals = 0, set()
    for _ in range(120):
        data = restructure(reader.good, rng)
        assert data is not None
        try:
            reader.read(reader.put(data, tmp_path))
            accepted += 1
        except ValueError as error:
            assert 0 < len(str(error)) < 5000
            refusals.add(" ".join(str(error).replace(str(tmp_path), "").split()[:12]))
    least = 1 if name in ("card", "clips") else 3  # those two have one thing to check
    assert accepted and len(refusals) >= least, (accepted, refusals)


@pytest.mark.parametrize("name", READERS)
def test_the_reader_is_where_the_list_says(name: str) -> None:
    assert (ROOT / READERS[name].source).is_file()


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(st.data())
def test_any_bytes_are_a_value_or_one_clear_error(name: str, tmp_path: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    seeds = st.integers(0, 2**32).map(random.Random)
    mutated = seeds.map(lambda rng: mutate(reader.good, rng))
    inside = seeds.map(lambda rng: restructure(reader.good, rng) or reader.good)
    placed = st.tuples(PLACES, JSON).map(lambda pair: json.dumps({pair[0]: pair[1]}).encode())
    plain = JSON.map(lambda value: json.dumps(value).encode())
    given_bytes = data.draw(mutated | inside | placed | plain | st.binary(max_size=120) | headers())
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
        ("plan", json.dumps({"schema_version": "0" * 5000}).encode()),
        ("prepare", json.dumps({"hash": ["0" * 5000]}).encode()),
        ("tensors", json.dumps({"a": {"dtype": "0" * 5000, "shape": [], "data_offsets": [0, 0]}}).encode()),
    ],
)
def test_what_was_found_once_stays_mended(name: str, data: bytes, tmp_path: Path) -> None:
    if name == "tensors":
        data = len(data).to_bytes(8, "little") + data
    path = READERS[name].put(data, tmp_path)
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        READERS[name].read(path)
    assert len(str(caught.value)) < 1000, "not the whole of a foreign text"
