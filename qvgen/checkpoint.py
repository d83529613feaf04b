"""Quantized models on disk: ``model.safetensors`` and ``quantization_config.json``, nothing else.

Weight codes are stored packed (``NAME.codes``, a uint8 byte stream, see ``qvgen.packed.bits``),
their ``scale`` and ``zero_point`` and learnt clip ratios as float32 and all other tensors of the
model as ``QuantConfig.store_dtype`` says. The JSON file is written last: a folder without it was
never finished. Reading is strict: anything missing, surplus, of another shape or of another kind of
numbers is an error, and so are NaN, infinity and scales that are not positive.

``load_official`` reads the other format there is, that of the authors' released checkpoints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from qvgen.api import frozen_layers, module_names, stored_dtype, unquantized_tensors
from qvgen.config import QuantConfig, from_json, to_json
from qvgen.contents import check_contents
from qvgen.files import atomic_write_bytes
from qvgen.layer_table import described_layers, make_frozen_
from qvgen.linear import FrozenQuantLinear
from qvgen.official.config import OfficialConfig
from qvgen.official.files import WEIGHTS_NAME as RELEASED_NAME
from qvgen.official.files import ReleasedFile, build_transformer, released_folder
from qvgen.official.load import make_exact_, make_official_
from qvgen.packed.bits import pack, packed_bytes, unpack

FORMAT = "qvgen-quantized"
FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "quantization_config.json"


def save_quantized(
    model: nn.Module, folder: Path, meta: Mapping[str, Any], config: QuantConfig | None = None
) -> None:
    """Write a model from ``convert_`` into an existing folder.

    Args:
        model: the converted model.
        folder: where the two files go; older ones are replaced.
        meta: JSON values to keep beside, e.g. ``{"method": "qvgen"}``; ``load_quantized`` compares
            those it is asked to.
        config: the quantizers by which the model is called, where layers differ; those of the first
            layer if left out. A layer with others of its own is listed under ``layer_configs``.

    Raises:
        ValueError: the model has no converted layer.
    """
    layers = dict(frozen_layers(model))
    if not layers:
        raise ValueError("nothing to save: the model holds no converted layer; call convert_ first")
    if config is None:
        config = next(iter(layers.values())).config
    data = format_safetensors(_stored_tensors(model, layers, config))
    header: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "meta": dict(meta),
        "config": to_json(config),
        "layers": {name: [layer.out_features, layer.in_features] for name, layer in layers.items()},
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    header |= described_layers(model, config)
    atomic_write_bytes(folder / WEIGHTS_NAME, data)
    atomic_write_bytes(folder / CONFIG_NAME, (json.dumps(header, indent=1) + "\n").encode())


def load_quantized(model: nn.Module, folder: Path, expect: Mapping[str, Any]) -> nn.Module:
    """Turn a fresh full-precision ``model`` into the one that was saved, in place.

    Args:
        model: of the architecture that was quantized; keeps its device and dtype.
        folder: what ``save_quantized`` wrote.
        expect: entries of the saved ``meta`` that must be equal, and fields of the ``QuantConfig``.

    Returns:
        ``model`` in eval mode.

    Raises:
        ValueError: naming the file or tensor, for a missing, truncated, altered or foreign
            checkpoint, or one of another model, method or bit width.
    """
    header = read_header(folder)
    config = _checked_config(header, folder, expect)
    tensors = _read_tensors(folder / WEIGHTS_NAME, header["weights_sha256"])
    make_frozen_(model, header, config, folder / CONFIG_NAME)
    _fill(model, tensors, folder / WEIGHTS_NAME)
    return model.requires_grad_(False).eval()


def load_official(path: Path, config: OfficialConfig) -> nn.Module:
    """Build a CogVideoX or Wan transformer from a checkpoint that the authors of QVGen released.

    Args:
        path: transformer folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``.
        config: what the files do not say. Mode ``official`` gives modules that compute as the
            authors' code does, quirks included, in bfloat16, and follow its choice of activation
            clips. Mode ``exact`` gives this library's finished layers in float32 with the same
            weights, scales and zero points and one clip a layer, from the mean of its logits (the
            entries have no timesteps of their own); ``save_quantized`` can store that model.

    Returns:
        The model in eval mode, no parameter requiring gradients.

    Raises:
        ValueError: a pickle, not such a folder, a missing or surplus key or a wrong shape (named),
            tensors of another kind, NaN or infinity, a scale that is not positive, zero points of LSQ
            that are no codes, or Phi in the file without its ``gamma``.
    """
    folder = released_folder(Path(path))
    released = ReleasedFile(folder / RELEASED_NAME)
    model = make_official_(build_transformer(folder), released, config)
    if config.mode == "exact":
        make_exact_(model, config)
    return model.requires_grad_(False).eval()


def read_header(folder: Path) -> dict[str, Any]:
    """The parsed ``quantization_config.json``, checked for format and version only.

    Raises:
        ValueError: missing, not JSON, or not a checkpoint of this format.
    """
    path = folder / CONFIG_NAME
    try:
        header = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); is this a quantized checkpoint?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this library (no format {FORMAT!r})")
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {header.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    for key, kind in {"meta": dict, "config": dict, "layers": dict, "weights_sha256": str}.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(f"{path}: {key!r} is missing or no {kind.__name__}")
    return header


def _stored_tensors(
    model: nn.Module, layers: Mapping[str, FrozenQuantLinear], config: QuantConfig
) -> dict[str, Tensor]:
    tensors = {name: tensor.detach().cpu() for name, tensor in _state(model).items()}
    for name, tensor in unquantized_tensors(model):
        if name not in tensors:
            continue
        tensors[name] = tensor.detach().cpu().to(stored_dtype(tensor, config))
    for name, layer in layers.items():
        tensors[f"{name}.codes"] = pack(tensors[f"{name}.codes"], layer.config.w_bits)
    return {name: tensors[name].contiguous() for name in sorted(tensors)}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state, of a finished layer under several names only what stands under the first."""
    others = tuple(
        f"{name}."
        for module, names in module_names(model).items()
        if isinstance(module, FrozenQuantLinear)
        for name in names[1:]
    )
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(others)}


def _checked_config(header: Mapping[str, Any], folder: Path, expect: Mapping[str, Any]) -> QuantConfig:
    path = folder / CONFIG_NAME
    try:
        config = from_json(header["config"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(config, QuantConfig):
        raise ValueError(f"{path}: config is a {type(config).__name__}; expected a QuantConfig")
    found = {**header["meta"], **dataclasses.asdict(config)}
    for key, value in expect.items():
        if found.get(key) != value:
            raise ValueError(f"{path}: the checkpoint has {key} {found.get(key)!r}, wanted {value!r}")
    return config


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"{path}: truncated or altered ({len(data)} bytes, checksum differs from {CONFIG_NAME})"
        )
    try:
        return parse_safetensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: not valid safetensors ({error})") from None


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    layers = dict(frozen_layers(model))
    state = _state(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, layer in layers.items():
        shapes[f"{name}.codes"] = (packed_bytes(layer.codes.numel(), layer.config.w_bits),)
    missing, surplus = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or surplus:
        which = "lacks" if missing else "has a surplus tensor"
        raise ValueError(f"{path}: {which} {(missing or surplus)[0]} ({len(missing) + len(surplus)} in all)")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{path}: {name} is {tuple(tensors[name].shape)}, the model needs {shape}")
    _check_numbers(model, layers, tensors, path)
    for name, tensor in state.items():
        if not (name.endswith(".codes") and name.removesuffix(".codes") in layers):
            tensor.copy_(tensors[name])
    for name, layer in layers.items():
        layer.codes.copy_(unpack(tensors[f"{name}.codes"], layer.config.w_bits, tuple(layer.codes.shape)))
        layer.refresh_()


def _check_numbers(
    model: nn.Module, layers: Mapping[str, FrozenQuantLinear], tensors: Mapping[str, Tensor], path: Path
) -> None:
    """A checksum only says that the file is what was written; this, that it makes sense."""
    own = {f"{name}.{part}": part for name, layer in layers.items() for part in layer.state_dict()}
    parameters = dict(model.named_parameters())
    for name, tensor in _state(model).items():
        part = own.get(name)
        check_contents(
            f"{path}: {name}",
            tensors[name],
            tensor.dtype,
            finite=part is not None or name in parameters,  # a mask of the model's own may be infinite
            positive=part in ("scale", "a_scale"),
            within=(0.0, 1.0) if part in ("lower", "upper") else None,
        )
