"""The part of a checkpoint's header that says which layer is of which form, and its inverse.

``layers`` lists the integer matrices with their shapes. Two keys are there only where needed:
``transforms`` (layers of ``qvgen.transformed``; their matrix is called ``NAME.inner``) and
``layer_configs`` (matrices whose quantizers differ from the checkpoint's own).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from qvgen.api import frozen_layers, linears_of, make_clip_context, put_
from qvgen.config import QuantConfig, from_json, from_mapping, to_json
from qvgen.linear import FrozenQuantLinear
from qvgen.transformed import INNER, Transform, TransformedQuantLinear


class Configured(Protocol):
    """A finished matrix, whichever its form."""

    config: QuantConfig


def described_layers(model: nn.Module, config: QuantConfig) -> dict[str, Any]:
    """The optional keys of the header; empty for a plain model."""
    return header_tables(model, dict(frozen_layers(model)), config)


def header_tables(model: nn.Module, layers: Mapping[str, Configured], config: QuantConfig) -> dict[str, Any]:
    """``described_layers`` for ``layers``, the finished matrices of ``model`` by name."""
    transforms = {
        name: dataclasses.asdict(module.transform)
        for name, module in model.named_modules()
        if isinstance(module, TransformedQuantLinear)
    }
    configs = {name: to_json(m.config) for name, m in layers.items() if m.config != config}
    keys = {"transforms": transforms, "layer_configs": configs}
    return {key: value for key, value in keys.items() if value}


def make_frozen_(model: nn.Module, header: Mapping[str, Any], config: QuantConfig, path: Path) -> None:
    """Replace the linears that ``header`` lists by empty inference layers of the right form.

    Args:
        model: the full-precision model.
        header: of the checkpoint, checked for its obligatory keys.
        config: the checkpoint's own quantizers.
        path: of the header, for messages.

    Raises:
        ValueError: an entry that does not fit the model or is malformed.
    """
    transforms = {name: _transform(name, value, path) for name, value in _table(header, "transforms", path)}
    configs = {name: _config(name, value, path) for name, value in _table(header, "layer_configs", path)}
    layers: Mapping[str, Any] = header["layers"]
    # A layer of a class of its own may be there, unquantized: what is listed counts.
    linears = {names[0]: names for m, names in linears_of(model).items() if type(m) is nn.Linear}
    for name, shape in layers.items():
        place = _place(name, transforms)
        if place not in linears:
            raise ValueError(f"layer {place!r} of the checkpoint is no linear of this model")
        weight = model.get_submodule(place).weight
        assert isinstance(weight, Tensor)
        if list(weight.shape) != shape:
            raise ValueError(f"layer {place!r}: checkpoint has {shape}, the model {list(weight.shape)}")
    for key, names in (
        ("transforms", {f"{n}.{INNER}" for n in transforms}),
        ("layer_configs", set(configs)),
    ):
        if names - layers.keys():
            raise ValueError(f"{path}: {key} names {min(names - layers.keys())}, which layers does not list")
    context = make_clip_context(model, config)
    for name in layers:
        place = _place(name, transforms)
        linear = model.get_submodule(place)
        assert isinstance(linear, nn.Linear)
        size, device = (linear.out_features, linear.in_features), linear.weight.device
        frozen = FrozenQuantLinear(
            size,
            linear.bias,
            configs.get(name, config),
            context,
            device=device,
            dtype=linear.weight.dtype,
        )
        wrapped = TransformedQuantLinear(frozen, transforms[place]) if place in transforms else frozen
        put_(model, linears[place], wrapped)


def _place(name: str, transforms: Mapping[str, Transform]) -> str:
    """Name of the linear that stood where the matrix ``name`` is."""
    outer = name.removesuffix(f".{INNER}")
    return outer if outer in transforms else name


def _table(header: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, Any]]:
    value = header.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key!r} is no dict")
    return list(value.items())


def _transform(name: str, value: Any, path: Path) -> Transform:
    if isinstance(value, dict) and value.get("static") is False:
        value = {key: part for key, part in value.items() if key != "static"}  # a field of old files
    try:
        transform: Transform = from_mapping(Transform, value, f"transform of {name}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return transform


def _config(name: str, value: Any, path: Path) -> QuantConfig:
    try:
        config = from_json(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: layer {name}: {error}") from None
    if not isinstance(config, QuantConfig):
        raise ValueError(f"{path}: layer {name}: expected a QuantConfig, got {type(config).__name__}")
    return config
