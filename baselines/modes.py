"""Fair and author mode. No torch: method classes are listed before it is imported."""

from __future__ import annotations

from typing import Literal

from qvgen.config import check_choice

Mode = Literal["fair", "author"]


def check_mode(mode: object) -> None:
    """Raise ValueError for anything but ``fair`` or ``author``."""
    check_choice("mode", mode, ("fair", "author"))
