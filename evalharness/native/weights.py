"""The weights folder: safetensors files, and ``weights.json``, which vouches for each by its hash.

Nothing is ever downloaded here. Looking what is there needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.api import Skip, WeightFile
from evalharness.errors import UserError
from evalharness.native.catalogue import CATALOGUE
from evalharness.store import atomic_write_bytes, atomic_write_json, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CARD", "FOLDER_VARIABLE", "declared", "fill", "missing", "store", "tensors", "weights_folder"]

CARD = "weights.json"
FOLDER_VARIABLE = "EVALHARNESS_WEIGHTS"
ABSENT = "absent"
FETCH = "python -m evalharness fetch weights"
CONVERT = "python -m evalharness.native.convert"


def weights_folder() -> Path:
    """``$EVALHARNESS_WEIGHTS``, else ``~/.cache/evalharness/weights``."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "evalharness" / "weights"


def missing(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Those of ``names`` whose file or entry in the card is not there."""
    folder = folder or weights_folder()
    card = _card(folder)
    return [
        name
        for name in names
        if CATALOGUE[name].file not in card or not (folder / CATALOGUE[name].file).is_file()
    ]


def declared(names: Sequence[str], folder: Path | None = None) -> tuple[WeightFile, ...]:
    """What a metric says of its weights; a file that is not there has the hash ``absent``.

    The hash enters that of every score, so that scores and skips go stale when weights change or come.
    """
    folder = folder or weights_folder()
    card = _card(folder)
    gone = missing(names, folder)
    return tuple(
        WeightFile(
            path=CATALOGUE[name].file,
            sha256=ABSENT if name in gone else str(card[CATALOGUE[name].file]["sha256"]),
            licence=CATALOGUE[name].licence,
        )
        for name in names
    )


def tensors(name: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of ``name``, after a check of the file's hash.

    Raises:
        Skip: the file is not there; says how to get it.
        ValueError: it is not the file that ``weights.json`` vouches for.
    """
    from safetensors.torch import load

    folder = folder or weights_folder()
    entry = CATALOGUE[name]
    if missing([name], folder):
        raise Skip(
            f"weights {name} are missing: get {entry.original} ({entry.licence}) from {entry.source}, "
            f"or with {FETCH}; then {CONVERT} --vbench-cache FOLDER"
        )
    path = folder / entry.file
    data = path.read_bytes()
    found, wanted = hashlib.sha256(data).hexdigest(), _card(folder)[entry.file]["sha256"]
    if found != wanted:
        raise ValueError(
            f"{path}: sha256 {found}, but {CARD} says {wanted}; the file is damaged or "
            "foreign: convert it again"
        )
    return load(data)


def fill(module: nn.Module, stored: dict[str, Tensor], name: str) -> nn.Module:
    """Load ``stored`` into ``module`` exactly, in float32 and eval mode.

    Raises:
        ValueError: names or shapes differ; lists the first of them.
    """
    own = module.state_dict()
    wrong = sorted(stored.keys() ^ own.keys())
    wrong += sorted(key for key in stored.keys() & own.keys() if stored[key].shape != own[key].shape)
    if wrong:
        raise ValueError(
            f"weights {name} do not fit the network: {', '.join(wrong[:5])} ({len(wrong)} in all)"
        )
    module.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in stored.items()}, strict=True)
    return module.eval().requires_grad_(False)


def store(
    name: str, stored: dict[str, Tensor], folder: Path | None = None, facts: dict[str, Any] | None = None
) -> Path:
    """Write the tensors of ``name`` and its entry in the card, with ``facts`` beside the hash."""
    from safetensors.torch import save

    folder = folder or weights_folder()
    entry = CATALOGUE[name]
    data = save({key: stored[key].detach().to("cpu", copy=True).contiguous() for key in sorted(stored)})
    atomic_write_bytes(folder / entry.file, data)
    card = {**_card(folder), entry.file: {"sha256": hashlib.sha256(data).hexdigest(), **(facts or {})}}
    atomic_write_json(folder / CARD, card)
    return folder / entry.file


def _card(folder: Path) -> dict[str, Any]:
    card = read_json(folder / CARD) or {}
    if not all(isinstance(entry, dict) and "sha256" in entry for entry in card.values()):
        raise UserError(f"{folder / CARD}: an entry lacks its sha256; delete the file and convert again")
    return card
