"""Reading a released transformer folder: its model description and its one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvgen.contents import check_contents

if TYPE_CHECKING:
    from torch import nn

MODEL_CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
MODEL_CLASSES = ("CogVideoXTransformer3DModel", "WanTransformer3DModel")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def released_folder(path: Path) -> Path:
    """``path``, if it is a folder with the two files of a released transformer.

    Raises:
        ValueError: a pickle, no folder, or a file missing from it.
    """
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path}: a pickle can run any code when it is read and is refused; give the folder with "
            f"{WEIGHTS_NAME}"
        )
    if not path.is_dir():
        raise ValueError(f"{path}: no folder; give the one with {MODEL_CONFIG_NAME} and {WEIGHTS_NAME}")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    for name in (MODEL_CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            hint = f" ({pickles[0]} is a pickle and is not read)" if pickles else ""
            raise ValueError(f"{path}: lacks {name}{hint}")
    return path


def build_transformer(folder: Path) -> nn.Module:
    """The diffusers transformer that ``config.json`` describes, with meaningless weights, float32.

    Raises:
        ValueError: not JSON, a class other than those the authors released, or values it cannot take.
    """
    path = folder / MODEL_CONFIG_NAME
    try:
        description = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    name = description.get("_class_name") if isinstance(description, dict) else None
    if name not in MODEL_CLASSES:
        raise ValueError(f"{path}: _class_name is {name!r}; allowed: {', '.join(MODEL_CLASSES)}")
    import diffusers

    try:
        model: nn.Module = getattr(diffusers, name).from_config(description)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: describes no {name} ({type(error).__name__}: {error})") from error
    return model


def cast_as_released_(model: nn.Module) -> nn.Module:
    """Parameters to bfloat16, but for those that the model's class keeps in float32.

    That is what the authors' scripts load a model as (``torch_dtype=torch.bfloat16``): the time
    embedder of Wan, for one, computes and is quantized in float32.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if kept.intersection(name.split(".")) else torch.bfloat16
        parameter.data = parameter.data.to(dtype)
    return model


class ReleasedFile:
    """The tensors of a released file with its adapters merged; read one at a time.

    Raises:
        ValueError: not safetensors, or an adapter without its other half or its layer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self._shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: not valid safetensors ({error})") from None
        self._adapters = _adapters(self._shapes, path)
        self.shapes: dict[str, tuple[int, ...]] = {
            key: shape for key, shape in self._shapes.items() if not _is_adapter(key)
        }

    @property
    def quantized(self) -> dict[str, int]:
        """Layers with a weight quantizer, and the rank of their Phi (0: none)."""
        names = [k.removesuffix(".wquantizer.scale") for k in self.shapes if k.endswith(".wquantizer.scale")]
        return {name: _rank(self.shapes.get(f"{name}.wquantizer.L", ())) for name in names}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Key and tensor one after another, ``w`` with its adapter added, in the dtypes of the file.

        Raises:
            ValueError: an adapter or its weight that does not hold finite floating-point numbers.
        """
        adapted = {f"{name}.w": name for name in self._adapters}
        with safe_open(self.path, framework="pt") as file:
            for key in self.shapes:
                tensor: Tensor = file.get_tensor(key)
                if key in adapted:
                    halves = [f"{adapted[key]}.{half}.weight" for half in ("loraB", "loraA")]
                    up, down = (file.get_tensor(half) for half in halves)
                    for name, part in zip([key, *halves], (tensor, up, down), strict=True):
                        check_contents(f"{self.path}: {name}", part, torch.float32)
                    # alpha equals the rank: no factor. Both steps round to the file's dtype, as theirs do.
                    tensor = up @ down + tensor
                yield key, tensor


def _is_adapter(key: str) -> bool:
    return key.endswith((".loraA.weight", ".loraB.weight"))


def _rank(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 2 else 0


def _adapters(shapes: Mapping[str, Any], path: Path) -> list[str]:
    """Names of the layers with adapters; if one layer has them, all quantized layers must."""
    if not any(_is_adapter(key) for key in shapes):
        return []
    names = sorted(
        {key.rsplit(".", 2)[0] for key in shapes if _is_adapter(key)}
        | {key.removesuffix(".w") for key in shapes if key.endswith(".w")}
    )
    for name in names:
        keys = [f"{name}.w", f"{name}.loraA.weight", f"{name}.loraB.weight"]
        for key in keys:
            if key not in shapes:
                raise ValueError(f"{path}: has adapters but lacks {key}")
        weight, down, up = (shapes[key] for key in keys)
        if len(down) != 2 or tuple(up) != (weight[0], down[0]) or down[1] != weight[1]:
            raise ValueError(
                f"{path}: {keys[1]} {tuple(down)} and {keys[2]} {tuple(up)} do not fit "
                f"{keys[0]} {tuple(weight)}"
            )
    return names
