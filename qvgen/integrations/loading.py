"""Packed folders of diffusers tensor by tensor: the peak of memory is that of the packed model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn

from qvgen.integrations.diffusers import QVGenQuantizationConfig, QVGenQuantizer, register
from qvgen.packed.backends import Backend
from qvgen.packed.convert import as_backend
from qvgen.tensor_stream import stream_tensors, tensor_names

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@torch.no_grad()
def load_packed(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
    backend: Backend | str | None = None,
) -> nn.Module:  # fmt: skip
    """What ``from_pretrained`` of diffusers gives for a packed folder, with one tensor in flight at a time.

    On a GPU the host holds no more than the largest tensor; on a CPU each tensor is read into its place.
    The ``cpu`` and ``scaled_mm`` backends then hold the codes as bytes beside it, whoever loads.

    Args:
        folder: written by ``save_pretrained`` after ``attach_``.
        device: where the model goes.
        dtype: of what is not packed; as stored if left out. What diffusers keeps in float32, and scales,
            are float32 whatever it is.
        backend: how layers are executed; as stored if left out.

    Raises:
        ValueError: no packed folder, or a tensor that is missing, surplus, damaged or of another shape, by
            its name; a class that diffusers does not have.
    """
    folder, device = Path(folder), torch.device(device)
    register()
    kind, options, config = _described(folder)
    if backend is not None:
        config.backend = as_backend(backend)
    with init_empty_weights(include_buffers=False):
        model: Any = kind.from_config(options)
    quantizer = QVGenQuantizer(config, pre_quantized=True)
    files = _files(folder)
    found = [name for file in files for name in tensor_names(file)]
    quantizer.maybe_update_loaded_keys(found, [str(file) for file in files])
    quantizer._process_model_before_weight_loading(model)
    wanted = model.state_dict()
    quantizer.update_missing_keys(model, sorted(wanted.keys() - set(found)), "")
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    for file in files:
        for name, stored in stream_tensors(file):
            if stored.shape != shapes[name]:
                quantizer.check_quantized_param_shape(name, torch.empty(shapes[name], device="meta"), stored)
            value = _cast(model, name, stored, dtype)
            quantizer.create_quantized_param(model, value, name, device, {name: stored})
    for module in model.modules():  # what the classes compute themselves
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
    quantizer._process_model_after_weight_loading(model)
    model.register_to_config(quantization_config=config)
    model.hf_quantizer, model.is_quantized = quantizer, True
    model.quantization_method = config.quant_method
    result: nn.Module = model
    return result


def _cast(model: Any, name: str, stored: Tensor, dtype: torch.dtype | None) -> Tensor:
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype is None or not stored.is_floating_point():
        return stored
    return stored.to(torch.float32 if wide & set(name.split(".")) else dtype)


def _described(folder: Path) -> tuple[Any, dict[str, Any], QVGenQuantizationConfig]:
    """Class, options of its constructor, and how it is packed."""
    path = folder / "config.json"
    try:
        options: dict[str, Any] = json.loads(path.read_text())
        name, given = options["_class_name"], options.pop("quantization_config")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no packed folder ({type(error).__name__}: {error}); write one with attach_ and "
            "save_pretrained"
        ) from None
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ValueError(f"{path}: diffusers has no model {name!r}")
    return kind, options, QVGenQuantizationConfig.from_dict(given)


def _files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{folder}: has neither {WEIGHTS} nor {INDEX}")
        return [folder / WEIGHTS]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: a shard lies outside of the folder")
    return [folder / name for name in names]
