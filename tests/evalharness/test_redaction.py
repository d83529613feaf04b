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


def test_a_secret_need_not_be_text() -> None:
    value = {
        "hub_token": 123456789012,
        "api_key": ["abc"],
        "auth": {"value": "x"},
        "secret": None,
        "token": False,
    }
    shown = redact(value)
    assert shown == {"hub_token": HIDDEN, "api_key": HIDDEN, "auth": HIDDEN, "secret": None, "token": False}


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


TOKEN_METHOD = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from toybench.methods import ToyRound


@dataclass(frozen=True, slots=True, kw_only=True)
class Private(ToyRound):
    """Rounds as ``toy-round`` if it gets the token that it wants."""

    name: ClassVar[str] = "private"

    hub_token: str = ""
    source: str = "https://hub.example/a"

    def apply(self, model: Any, ctx: Any) -> Any:
        if not self.hub_token.startswith("s3cr3t") or "s3cr3t" not in self.source:
            raise ValueError("no token came through")
        return ToyRound.apply(self, model, ctx)


PLUGINS = {"methods": {"private": Private}}
'''


def test_secrets_in_options_reach_the_method_and_no_file(call, toy_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The method gets its token; plan.json, prepare.json, the checkpoint's card and the rest do not.

    A new token is no other recipe: nothing is made again. Another source is one.
    """
    (tmp_path / "private.py").write_text(TOKEN_METHOD)

    def run(token: str, source: str = "hub.example/a") -> Any:
        return toy_run(
            "--plugin", "private.py", "--methods", "private", "--bits", "3", "--limit", "1", "--no-profile",
            "--set", f"private.hub_token={token}", "--set", f"private.source=https://me:{token}@{source}",
        )  # fmt: skip

    prepare = tmp_path / "out" / "cells" / "private-w3a3-s0" / "prepare.json"

    def rows() -> dict[str, Any]:
        cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
        return {cell["id"]: cell["dimensions"] for cell in cells}

    assert run(SECRET).code == 0
    first, table = prepare.read_bytes(), rows()
    assert set(table) == {"bf16-s0", "private-w3a3-s0"}
    assert run("s3cr3t-another-9876543210").code == 0
    assert prepare.read_bytes() == first
    done = call("score", "out", "--plugin", "private.py", "--workers", "0")
    assert (done.code, "left out" in done.err + done.out) == (0, False)
    assert rows() == table
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert b"s3cr3t" not in path.read_bytes(), path
    stored = json.loads((tmp_path / "out" / "plan.json").read_text())["cells"][1]["options"]
    assert stored == {"hub_token": HIDDEN, "source": f"https://{HIDDEN}@hub.example/a"}
    assert run(SECRET, "hub.example/b").code == 0
    assert prepare.read_bytes() != first


def test_a_secret_is_no_part_of_a_rows_name(toy_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "private.py").write_text(TOKEN_METHOD)
    done = toy_run("--plugin", "private.py", "--methods", f"private[hub_token={SECRET}]", "--bits", "3")
    assert done.code == 2 and "a secret would be part of a name" in done.err and SECRET not in done.err


def test_identity_does_not_hang_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MODE", "per-token-and-more")
    value = {"mode": "per-token-and-more", "url": f"https://{SECRET}@example.org/"}
    assert redact(value)["mode"] == HIDDEN
    assert redact(value, environment=False) == {
        "mode": "per-token-and-more",
        "url": f"https://{HIDDEN}@example.org/",
    }


def test_a_mistake_in_a_command_is_told_without_its_secret(toy_run) -> None:  # type: ignore[no-untyped-def]
    done = toy_run("--set", "x.y=1", f"x.url=https://me:{SECRET}@hub.example/a")
    assert done.code == 2 and "hub.example/a" in done.err and SECRET not in done.err
