"""Where a cell's published checkpoint lies, if there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalharness.api import Bits, Model, Needs
from evalharness.cells import Cell, build_method
from evalharness.errors import UserError
from evalharness.hashing import jsonable
from evalharness.plan import RunPlan
from evalharness.redaction import redact
from evalharness.registry import Registry
from evalharness.store import read_json
from evalharness.versions import package_version

__all__ = [
    "CARD_NAME",
    "card_for",
    "checkpoint_card",
    "display_path",
    "displayed_folder",
    "find_checkpoints",
    "read_card",
    "training_clips",
]

CARD_NAME = "evalharness.json"
_CONFIG_NAME = "quantization_config.json"


def find_checkpoints(plan: RunPlan, registry: Registry) -> dict[str, Path]:
    """Cell id -> folder to load from; a cell that is missing there is made by its method.

    With ``--load auto`` a cell whose options the user set is loaded only if the checkpoint's card
    says that it was made with exactly these: nothing asked for is silently ignored. A variant is
    looked for under its label and then under its method's name. With ``--load PATH`` it is looked
    for under its label alone.

    Raises:
        UserError: ``--load PATH`` does not hold what the plan needs, or a checkpoint's card names
            another method, bit width or model, or for a variant other options.
    """
    if plan.load == "never":
        return {}
    quantized = [cell for cell in plan.cells if not cell.is_reference]
    if plan.load == "auto":
        found = _published(plan, quantized, registry)
    else:
        found = _in_folder(Path(plan.load), quantized, registry)
    for cell in quantized:
        if cell.id in found:
            _check_card(found[cell.id], cell, plan, registry)
    return found


def card_for(
    cell: Cell, plan: RunPlan, config: Mapping[str, Any], clips: int | None = None
) -> dict[str, Any]:
    """The card of a checkpoint that ``plan`` asked for."""
    return checkpoint_card(
        cell,
        config,
        model_fingerprint=plan.model_fingerprint,
        skip_layers=plan.skip_layers,
        device=plan.device,
        training_clips=clips,
    )


def checkpoint_card(
    cell: Cell,
    config: Mapping[str, Any],
    *,
    model_fingerprint: str,
    skip_layers: str,
    device: str,
    training_clips: int | None = None,
) -> dict[str, Any]:
    """What is written beside a checkpoint that this harness made. Holds no time and no path.

    ``training_clips`` is how many clips it was trained on, where that is known.
    """
    clips = {} if training_clips is None else {"training_clips": training_clips}
    return {
        "schema_version": 1,
        "method": cell.method,
        "label": cell.label,
        "w_bits": cell.bits.w,
        "a_bits": cell.bits.a,
        "seed": cell.seed,
        "config": dict(config),
        "model": cell.model,
        "model_fingerprint": model_fingerprint,
        "skip_layers": skip_layers,
        "device": device,
        **clips,
        "torch": package_version("torch"),
    }


def training_clips(registry: Registry, model: str, device: str) -> int | None:
    """How many clips a model trains on; None where it does not say.

    That is its optional attribute ``training_clips``, a number or a function of the device.
    """
    clips = getattr(registry.get("models", model)(), "training_clips", None)
    value = clips(device) if callable(clips) else clips
    return None if value is None else int(value)


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a checkpoint; None when it was made by other means.

    Raises:
        UserError: it is no card.
    """
    try:
        card = read_json(folder / CARD_NAME)
    except UserError as error:
        raise UserError(f"{_no_card(folder)}: it is not a JSON object") from error
    if card is not None and not isinstance(card.get("config"), dict):
        raise UserError(f"{_no_card(folder)}: it has no config")
    return card


def _no_card(folder: Path) -> str:
    return (
        f"checkpoint {display_path(folder)}: {CARD_NAME} is damaged or foreign, so what was trained how is "
        "not known; copy the checkpoint anew, or make one with --load never"
    )


def display_path(folder: Path) -> str:
    """A path for the record that does not give away this machine's folders."""
    for base in _bases():
        if folder.resolve().is_relative_to(base):
            return folder.resolve().relative_to(base).as_posix()
    return folder.name


def displayed_folder(text: str) -> Path | None:
    """The folder that ``display_path`` showed as ``text``, if it is still there."""
    found = (base / text for base in _bases())
    return next((folder for folder in found if folder.is_dir()), None)


def _bases() -> tuple[Path, Path]:
    return Path.cwd(), Path(__file__).resolve().parents[1]


def _published(plan: RunPlan, cells: list[Cell], registry: Registry) -> dict[str, Path]:
    model: Model = registry.get("models", plan.model)()
    found: dict[str, Path] = {}
    for cell in cells:
        for name in dict.fromkeys((cell.label, cell.method)):
            folder = model.checkpoint(name, cell.bits)
            if folder is None or not _skips_the_same(folder, plan):
                continue
            is_plain = name == cell.method and not cell.options
            if is_plain or _made_as_asked(folder, cell, registry):
                found.setdefault(cell.id, folder)
    return found


def _skips_the_same(folder: Path, plan: RunPlan) -> bool:
    card = read_card(folder)
    return card is None or card.get("skip_layers") == plan.skip_layers


def _made_as_asked(folder: Path, cell: Cell, registry: Registry) -> bool:
    """Whether the card is of this method and says the very options of the cell."""
    card = read_card(folder)
    if card is None or card.get("method") != cell.method or not isinstance(card.get("config"), dict):
        return False
    asked: dict[str, Any] = jsonable(build_method(registry, cell))
    return bool(redact(_rebuilt(card["config"], cell, registry)) == redact(asked))  # cards hold no secrets


def _rebuilt(config: Mapping[str, Any], cell: Cell, registry: Registry) -> dict[str, Any] | None:
    """The configuration of a card as the method states it now; None where it knows it no more.

    A field that is younger than the card takes its default, which is what the card's method did.
    """
    options = {key: value for key, value in config.items() if key not in ("w_bits", "a_bits")}
    try:
        bits = Bits(config["w_bits"], config["a_bits"])
        made = dataclasses.replace(cell, bits=bits, options=options)
        rebuilt: dict[str, Any] = jsonable(build_method(registry, made))
    except (ValueError, TypeError, KeyError):
        return None
    return rebuilt


def _check_card(folder: Path, cell: Cell, plan: RunPlan, registry: Registry) -> None:
    card = read_card(folder)
    if card is None:
        return
    asked = card_for(cell, plan, {})
    for key in ("method", "w_bits", "a_bits", "model", "model_fingerprint", "skip_layers"):
        if card.get(key) != asked[key]:
            raise UserError(
                f"{cell.id}: checkpoint {display_path(folder)} was made for {key} {str(card.get(key))[:12]}, "
                f"this is {str(asked[key])[:12]}; to make one: --load never"
            )
    if cell.is_variant and cell.options and not _made_as_asked(folder, cell, registry):
        raise UserError(
            f"{cell.id}: checkpoint {display_path(folder)} was made with other options than those of variant "
            f"{cell.label}; to make one: --load never"
        )


def _in_folder(path: Path, cells: list[Cell], registry: Registry) -> dict[str, Path]:
    if not path.is_dir():
        raise UserError(f"--load {path}: no such folder; give auto, never, or a folder with checkpoints")
    found = {cell.id: path / cell.checkpoint_name for cell in cells if (path / cell.checkpoint_name).is_dir()}
    names = {cell.checkpoint_name for cell in cells}
    if not found and len(names) == 1 and any((path / name).is_file() for name in (CARD_NAME, _CONFIG_NAME)):
        return {cell.id: path for cell in cells}
    missing = sorted(
        {
            cell.checkpoint_name
            for cell in cells
            if cell.id not in found
            and (not found or registry.get("methods", cell.method).needs == Needs.TRAINING)
        }
    )
    if missing:
        raise UserError(
            f"--load {path}: has no {', '.join(missing)}; expected one folder for each method and bit width, "
            "named like lsq-w3a3 (or use --load auto)"
        )
    return found
