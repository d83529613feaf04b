"""Values of command-line flags that several modules here take."""

from __future__ import annotations

from pathlib import Path

from evalharness.config import comma_list
from evalharness.errors import UserError

__all__ = ["named_folders", "pairs"]


def named_folders(flag: str, text: str, name: str, example: str) -> dict[str, Path]:
    """``a=FOLDER,b=FOLDER``; commas in a folder's name are not provided for.

    Args:
        flag: for the message.
        text: the flag's value.
        name: what the names stand for, such as SEED.
        example: one such part, for the message.

    Raises:
        UserError: another form, or a name given twice.
    """
    found: dict[str, Path] = {}
    for part in comma_list(text):
        key, equals, folder = (word.strip() for word in part.partition("="))
        if not (key and equals and folder):
            raise UserError(f"{flag} {part}: expected {name}=FOLDER, such as {example}")
        if key in found:
            raise UserError(f"{flag} names {key} twice; give each {name.lower()} one folder")
        found[key] = Path(folder)
    return found


def pairs(flag: str, text: str, form: str) -> list[tuple[str, str]]:
    """``a:b,c:d``, two arms each; ``form`` says in the message which is which, such as higher:than.

    Raises:
        UserError: another form, or an arm against itself.
    """
    found = []
    for part in comma_list(text):
        one, colon, other = (word.strip() for word in part.partition(":"))
        if not (one and colon and other) or one == other:
            raise UserError(f"{flag} {part}: expected two arms as {form}, such as qvgen:kd-qat")
        found.append((one, other))
    return found
