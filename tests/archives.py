"""Shipped records out of their archives."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Write the plain files below ``folder``; early releases of Python 3.11 have no filter for it."""
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.isfile():
                continue
            target = (folder / member.name).resolve()
            assert target.is_relative_to(folder.resolve())
            content = opened.extractfile(member)
            assert content is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
