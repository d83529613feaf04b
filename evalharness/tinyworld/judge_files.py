"""How the judges lie on disk: one safetensors file each, and ``judges.json`` that vouches for them.

Reading the JSON needs no torch, so that a metric can say which weights it uses at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.api import WeightFile
from evalharness.store import atomic_write_bytes, atomic_write_text
from evalharness.tinyworld import spec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CARD", "PARTS", "default_folder", "load_weights", "read_card", "save_weights", "weight_files"]

FORMAT = 1
CARD = "judges.json"
PARTS = ("frame", "motion", "quality", "agreement")
LICENCE = "Apache-2.0"
REBUILD = "python -m evalharness.tinyworld.training.judges --out <folder>"


def default_folder() -> Path:
    """Where the package keeps its judges."""
    return Path(str(resources.files("evalharness"))) / "tinyworld" / "assets" / "judges"


def world_names() -> dict[str, list[str]]:
    """The vocabulary whose order the judges' outputs follow."""
    names = {"scenes": spec.SCENES, "shapes": spec.SHAPES, "colors": spec.COLORS, "motions": spec.MOTIONS}
    return {key: list(value) for key, value in names.items()}


def read_card(folder: Path) -> dict[str, Any]:
    """``judges.json`` of ``folder``.

    Raises:
        ValueError: it is missing, no JSON, of another format or of another world.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"tinyworld's judges: cannot read {path} ({error}); rebuild with {REBUILD}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"tinyworld's judges: {path} is not JSON ({error}); restore it or {REBUILD}"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"tinyworld's judges: {path} is not of format {FORMAT}; rebuild with {REBUILD}")
    if card.get("world") != world_names():
        raise ValueError(f"tinyworld's judges: {path} was trained on another world; rebuild with {REBUILD}")
    return card


def weight_files(folder: Path | None = None) -> tuple[WeightFile, ...]:
    """What ``judges.json`` says of the weights; empty when there is none (scoring then fails)."""
    folder = folder or default_folder()
    if not (folder / CARD).is_file():
        return ()
    files = read_card(folder)["files"]
    return tuple(
        WeightFile(path=f"tinyworld/assets/judges/{name}", sha256=entry["sha256"], licence=LICENCE)
        for name, entry in sorted(files.items())
    )


def load_weights(module: nn.Module, folder: Path, part: str) -> None:
    """Fill ``module`` from ``<part>.safetensors``; stored in half precision, computed in float32.

    Raises:
        ValueError: the file is missing or not the one that ``judges.json`` names, or it holds
            other tensors than the module has.
    """
    from safetensors.torch import load

    path = folder / f"{part}.safetensors"
    entry = read_card(folder)["files"].get(path.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"tinyworld's judges: cannot read {path} ({error}); rebuild with {REBUILD}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if entry is None or digest != entry["sha256"]:
        wanted = "no entry" if entry is None else f"sha256 {entry['sha256']}"
        raise ValueError(
            f"tinyworld's judges: {path} has sha256 {digest}, {CARD} says {wanted}; restore both or {REBUILD}"
        )
    stored, own = load(data), module.state_dict()
    wrong = sorted(stored.keys() ^ own.keys())
    wrong += sorted(name for name in stored.keys() & own.keys() if stored[name].shape != own[name].shape)
    if wrong:
        raise ValueError(f"tinyworld's judges: {path} does not fit this version: {', '.join(wrong[:5])}")
    module.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=True)


def save_weights(
    modules: Mapping[str, nn.Module], folder: Path, facts: Mapping[str, Any] | None = None
) -> None:
    """Write each module, and the card with ``facts`` added; what the card says of others is kept.

    New weights drop the card's accuracies: they were measured on the old.
    """
    import torch
    from safetensors.torch import save

    card: dict[str, Any] = {"format": FORMAT, "world": world_names(), "files": {}}
    if (folder / CARD).is_file():
        card = read_card(folder)
    if modules:
        card.pop("accuracy", None)
    for part, module in modules.items():
        tensors = {
            name: tensor.detach().to("cpu", torch.float16, memory_format=torch.contiguous_format)
            for name, tensor in module.state_dict().items()
        }
        data = save(tensors)
        atomic_write_bytes(folder / f"{part}.safetensors", data)
        card["files"][f"{part}.safetensors"] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        }
    card.update(facts or {})
    atomic_write_text(folder / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
