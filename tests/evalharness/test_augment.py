"""Longer texts for the model, the protocol's own prompts for everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.api import Prompt
from evalharness.augment import read_augmented
from evalharness.errors import UserError

TEXTS = ("cat", "dog", "cat", "A cat")
PROMPTS = [Prompt(id=f"{n:04d}", text=text, dimensions=("x",)) for n, text in enumerate(TEXTS)]


def write(folder: Path, **files: str) -> list[str]:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return [str(folder / name.replace("_", ".")) for name in files]


def test_aligned_files_in_any_order_and_twice_the_same_prompt(tmp_path: Path) -> None:
    short, long = write(
        tmp_path,
        s_txt="dog\ncat \nA cat\ncat\nbird\n",
        l_txt="a long dog\nfirst cat\nbig Cat\nsecond cat\nb\n",
    )
    expected = {"0000": "first cat", "0001": "a long dog", "0002": "second cat", "0003": "big Cat"}
    assert read_augmented(f"{short},{long}", PROMPTS) == expected


def test_a_map(tmp_path: Path) -> None:
    [file] = write(tmp_path, m_json=json.dumps({"cat": "c", "dog": "d", "A cat": "C"}))
    assert list(read_augmented(file, PROMPTS).values()) == ["c", "d", "c", "C"]


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        ({"s_txt": "cat\n", "l_txt": "a\nb\n"}, "s.txt,l.txt", "1 and 2 lines"),
        ({"s_txt": "cat\n", "l_txt": "a\n"}, "s.txt,l.txt", "no text for 2 of 4 prompts, the first is 'dog'"),
        ({"m_json": "[]"}, "m.json", "an object of prompt -> text"),
        ({"m_json": "{"}, "m.json", "not JSON"),
        ({}, "m.json", "cannot be read"),
        ({}, "m.txt", "expected MAP.json, or SHORT.txt,LONG.txt"),
    ],
)
def test_mistakes(
    files: dict[str, str], given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, **files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        read_augmented(given, PROMPTS)


def test_the_model_reads_the_longer_text(
    toy_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toybench.model

    read: list[str] = []
    original = toybench.model.LoadedToy.generate

    def generate(self: Any, prompts: Any, seeds: Any) -> Any:
        read.extend(prompts)
        return original(self, prompts, seeds)

    monkeypatch.setattr(toybench.model.LoadedToy, "generate", generate)
    texts = ("one", "two", "three", "four", "five", "six")
    [file] = write(tmp_path, m_json=json.dumps({text: f"a long {text}" for text in texts}))
    assert toy_run("--no-profile", "--augmented", file).code == 0
    assert read == [f"a long {text}" for text in texts]
    assert json.loads((tmp_path / "out/results.json").read_text())["prompts"]["p00"] == "one"
    other = toy_run("--no-profile")
    assert other.code == 2 and "augmented_sha256" in other.err
