"""What two runs were made with: the declared recipe, the environment, and where the two differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalharness.api import GenerationSettings
from evalharness.result_schema import CellResult, Results

__all__ = [
    "Change",
    "cell_recipe",
    "changes",
    "declared",
    "environment",
    "hardware",
    "recipe_keys",
    "run_recipe",
]

# Of the identity of a run (``plan.Plan.identity``): what was asked for. Versions are environment.
_DECLARED = ("model", "model_fingerprint", "protocol", "prompts_sha256", "samples_per_prompt", "skip_layers")
_DECLARED_PARTS = ("settings.", "video.")


@dataclass(frozen=True, slots=True)
class Change:
    """One fact that differs; None where a side lacks it."""

    key: str
    a: Any
    b: Any


def run_recipe(results: Results) -> dict[str, Any]:
    """What decides what is generated and how it is judged, as declared; no versions, no hardware.

    Declared values only: a resolved one (a library's version, a kernel's name) changes without anybody's
    doing, and a gate that then refuses to compare would be turned off.
    """
    config = _mapping(results.manifest.get("config"))
    found = {
        key: value for key, value in config.items() if key in _DECLARED or key.startswith(_DECLARED_PARTS)
    }
    return {**found, "protocol": results.protocol, "dimensions": sorted(results.dimensions)}


def declared(cell: CellResult) -> dict[str, Any]:
    """Method, bits and the options that were asked for, options of options by dots."""
    named = {"method": cell.variant_of or cell.method, "w_bits": cell.w_bits, "a_bits": cell.a_bits}
    return {**named, **_flat(cell.options)}


def recipe_keys(*sides: Results) -> set[str]:
    """What a recipe can differ in: of any run, whatever these declare, and every option of their methods."""
    settings = {f"settings.{field.name}" for field in dataclasses.fields(GenerationSettings)}
    found = {*_DECLARED, *settings, "dimensions"}
    for results in sides:
        found |= run_recipe(results).keys()
        for cell in results.cells:
            found |= declared(cell).keys() | _flat(cell.method_config).keys()
    return found


def cell_recipe(cell: CellResult) -> dict[str, Any]:
    """As ``declared``, with every option's value and how it ran."""
    return {**declared(cell), **_flat(cell.method_config), "execution": cell.execution}


def environment(results: Results) -> dict[str, Any]:
    """Code, library versions and hardware: what a difference may come from without being a recipe."""
    manifest = results.manifest
    git = _mapping(manifest.get("git"))
    return {
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "code_sha256": manifest.get("code_sha256"),
        **{f"version of {name}": v for name, v in _mapping(manifest.get("versions")).items()},
        **hardware(results),
    }


def hardware(results: Results) -> dict[str, Any]:
    """What times depend on."""
    found = _mapping(results.manifest.get("hardware"))
    config = _mapping(results.manifest.get("config"))
    return {
        "cpu": found.get("cpu"),
        "cores": found.get("cores"),
        "gpus": found.get("gpus"),
        "device": config.get("device"),
    }


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Keys whose values differ, by name."""
    return [Change(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
