"""YAML recipes of strangers, looked at before the parser of options reads them.

Where a file is nested without end, libyaml's constructor ends the process instead of raising; a key named
``config`` ends in an error from deep inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from evalharness.errors import UserError

__all__ = ["check_recipe", "config_files"]

MOST_DEEP = 100
MOST_BYTES = 16 << 20


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that ``--config`` names in a command line."""
    named = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    named += [text.partition("=")[2] for text in arguments if text.startswith("--config=")]
    return [Path(name) for name in named if name]


def check_recipe(path: Path) -> None:
    """Refuse what is too deep or too large to be meant; whatever else is wrong is left to the parser.

    Raises:
        UserError: says which.
    """
    import yaml

    try:
        if not path.is_file():
            return
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES >> 20} MiB; that is no recipe")
        depth, text = 0, path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEEP:
                raise UserError(f"{path}: nested more than {MOST_DEEP} deep; that is no recipe")
        data = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        return
    if isinstance(data, dict) and "config" in data:
        raise UserError(f"{path}: config: a recipe cannot name another one")
