"""Longer texts for the model to read in place of a protocol's prompts; metrics judge the prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from evalharness.api import Prompt
from evalharness.errors import UserError
from evalharness.store import parse_json

__all__ = ["read_augmented"]


def read_augmented(given: str, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Prompt id -> text for the model.

    Args:
        given: ``MAP.json``, an object of prompt -> longer text; or ``SHORT.txt,LONG.txt``, two files
            aligned line by line, as VBench publishes them. A prompt that occurs twice takes its
            texts in the order of the lines.
        prompts: of the protocol; each needs a text.

    Raises:
        UserError: a file that cannot be read, lines that do not pair, or a prompt without a text.
    """
    texts: dict[str, list[str]] = {}
    for short, long in _pairs(given):
        if short.strip() and long.strip():
            texts.setdefault(short.strip(), []).append(long.strip())
    used: dict[str, int] = {}
    found: dict[str, str] = {}
    missing = []
    for prompt in prompts:
        short = prompt.text.strip()
        if short not in texts:
            missing.append(prompt.text)
            continue
        place = used[short] = used.get(short, -1) + 1
        found[prompt.id] = texts[short][min(place, len(texts[short]) - 1)]
    if missing:
        raise UserError(
            f"--augmented {given}: no text for {len(missing)} of {len(prompts)} prompts, "
            f"the first is {missing[0]!r}"
        )
    return found


def _pairs(given: str) -> Iterable[tuple[str, str]]:
    files = [Path(name.strip()) for name in given.split(",")]
    if len(files) == 2:
        short, long = (_read(file).splitlines() for file in files)
        if len(short) != len(long):
            raise UserError(
                f"--augmented {given}: {len(short)} and {len(long)} lines; they must be aligned line by line"
            )
        return zip(short, long, strict=True)
    if len(files) != 1 or files[0].suffix != ".json":
        raise UserError(f"--augmented {given}: expected MAP.json, or SHORT.txt,LONG.txt")
    try:
        value = parse_json(_read(files[0]))
    except ValueError as error:
        raise UserError(f"--augmented {given}: not JSON ({error})") from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise UserError(f"--augmented {given}: expected an object of prompt -> text")
    return value.items()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--augmented {file}: cannot be read ({error})") from error
