"""Secrets of the environment or of URLs in no file that a person may publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.errors import one_line
from evalharness.redaction import HIDDEN, redact, redact_text
from evalharness.report.html import render
from evalharness.report.tables import CsvReporter, markdown
from tests.evalharness.test_report import build, record

SECRET = "s3cr3t-Value-0123456789"
PLACES = [
    f"https://user:{SECRET}@example.org/model",
    f"https://{SECRET}@example.org/model.git",
    f"s3://bucket/key?X-Amz-Signature={SECRET}&x=1",
    f"https://example.org/?access_token={SECRET}#part",
    f"Authorization: Bearer {SECRET}",
    f"api_key = {SECRET}",
    f"--hub-token={SECRET}",
    f"PASSWORD: {SECRET}",
]


@pytest.mark.parametrize("text", PLACES)
def test_secrets_are_hidden_and_the_rest_stays(text: str) -> None:
    shown = redact_text(f"before {text} after")
    assert SECRET not in shown and HIDDEN in shown
    assert shown.startswith("before ") and shown.endswith(" after")
    assert ("example.org" in text) == ("example.org" in shown)
    assert redact_text(shown) == shown


@pytest.mark.parametrize(
    "token", ["hf_" + "a1" * 12, "ghp_" + "B2" * 15, "AKIA" + "ABCD1234EFGH", "sk-" + "x9" * 12]
)
def test_tokens_of_known_services_are_hidden_anywhere(token: str) -> None:
    assert redact_text(f"could not read {token}!") == f"could not read {HIDDEN}!"


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a/b?x=1#c", "tokens: of one image", "per_token: 3",
        "author: Jane", "8 tokens per row", "a secretary said",
        "cells/lsq-w3a3-s0/videos/0001-0.mp4", "48ac7ff2307a6d8ba6313da8b428e33bd56ab32a70309796c5eb",
        "mail someone@example.org", "author of the paper", "bias",
    ],
)  # fmt: skip
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


def test_values_of_secret_environment_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("HOME_SWEET", "ordinary-value")
    assert redact_text(f"x{SECRET}y abc ordinary-value") == f"x{HIDDEN}y abc ordinary-value"
    assert SECRET not in one_line(RuntimeError(f"failed with {SECRET}"))


def test_nested_values_and_keys_that_name_secrets() -> None:
    value = {"a": [{"hub_token": SECRET, "n": 3}], "tokens": 5, f"https://u:{SECRET}@h/": 1, "password": ""}
    shown = redact(value)
    assert SECRET not in json.dumps(shown)
    assert shown["a"][0] == {"hub_token": HIDDEN, "n": 3} and shown["tokens"] == 5 and shown["password"] == ""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_redaction_keeps_the_shape_and_is_stable(value: Any) -> None:
    shown = redact(value)
    json.dumps(shown)
    assert type(shown) is type(value) and redact(shown) == shown


def test_no_report_and_no_results_hold_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    cells = [record("bf16", 16), record("lsq", 3)]
    from dataclasses import replace

    odd = {"source": PLACES[0], "nested": {"password": SECRET}}
    cells[1] = replace(cells[1], method_config=odd, options=odd)
    results = build(cells, manifest={"config": {"url": PLACES[1], "plain": f"key {SECRET}"}})
    for text in (results.model_dump_json(), render(results, tmp_path), markdown(results)):
        assert SECRET not in text
    for path in CsvReporter().write(results, tmp_path):
        assert SECRET not in path.read_text()


def test_a_whole_run_writes_no_secret(toy_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The model fails with the secret in its message; no file of the folder has it."""
    monkeypatch.setenv("HUB_TOKEN", SECRET)
    from toybench.model import LoadedToy

    def generate(self: Any, prompts: Any, seeds: Any) -> Any:
        raise RuntimeError(f"cannot reach https://user:{SECRET}@hub.example/x with {SECRET}")

    monkeypatch.setattr(LoadedToy, "generate", generate)
    done = toy_run("--methods", "toy-round", "--bits", "3", "--limit", "1", "--no-profile")
    assert done.code == 1
    assert SECRET not in done.err + done.out and HIDDEN in done.err
    held = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert held == []
