"""Packed models through ``save_pretrained`` and ``from_pretrained`` of diffusers.

Call ``register()`` once in a process. Diffusers has no public function for that; the two entries are
added to the tables that its own quantizers stand in.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig, QuantMethod, QVGenConfig, from_mapping, to_json
from qvgen.layer_table import make_frozen_
from qvgen.packed.backends import Backend
from qvgen.packed.convert import (
    as_backend,
    described,
    empty_packed_,
    join_reads_,
    pack_,
    packed_layers,
    prepare_,
)
from qvgen.packed.linear import EXACT, PackedLinear
from qvgen.transformed import TransformedQuantLinear

NAME = QuantMethod.QVGEN.value
FORMAT_VERSION = 1
CHECKSUMS = "qvgen_crc32"


class QVGenQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How a model is quantized: what ``config.json`` keeps, and what ``from_pretrained`` takes.

    Given for a full-precision folder it quantizes on loading: rounding to the range that a search finds,
    with the options of ``QuantConfig``, no training and no calibration. A packed folder brings its own.

    Args:
        quant: the quantizers, a ``QuantConfig`` or its fields; or give ``w_bits`` and ``a_bits``.
        w_bits: bits of weights, 2..8.
        a_bits: bits of activations, 2..8.
        backend: how layers are executed, a name of ``qvgen.packed.backends.Backend``.
        modules_to_not_convert: names of linears that stay as they are, when quantizing on loading.
        layers: shapes of the packed matrices; with ``transforms`` and ``layer_configs`` as in
            ``qvgen.layer_table``. Written by ``save_pretrained``, not by hand.
        transforms: see ``layers``.
        layer_configs: see ``layers``.
        format_version: of this description.
        quant_method: ``qvgen``.

    Raises:
        ValueError: unknown or contradicting values.
    """

    def __init__(
        self,
        quant: QuantConfig | Mapping[str, Any] | None = None,
        *,
        w_bits: int | None = None,
        a_bits: int | None = None,
        backend: str = Backend.AUTO.value,
        modules_to_not_convert: Collection[str] = (),
        layers: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        layer_configs: Mapping[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = NAME,
    ) -> None:
        if quant_method != NAME or format_version != FORMAT_VERSION:
            raise ValueError(
                f"quantization config of {quant_method!r} in format {format_version!r}; this is {NAME!r}, "
                f"format {FORMAT_VERSION}"
            )
        if (quant is None) == (w_bits is None or a_bits is None):
            raise ValueError("give either quant, or w_bits and a_bits, the bits of a code, 2..8")
        given = {"w_bits": w_bits, "a_bits": a_bits} if quant is None else quant
        self.quant_method = QuantMethod.QVGEN
        self.quant: QuantConfig = from_mapping(QuantConfig, given, "quant")
        self.backend = as_backend(backend)
        self.modules_to_not_convert = list(modules_to_not_convert)
        self.layers = dict(layers or {})
        self.transforms = dict(transforms or {})
        self.layer_configs = dict(layer_configs or {})
        self.format_version = format_version

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``from_dict`` gives the same config again."""
        table = {"layers": self.layers, "transforms": self.transforms, "layer_configs": self.layer_configs}
        values = to_json(self.quant)
        return {
            "quant_method": NAME,
            "format_version": self.format_version,
            "quant": {key: value for key, value in values.items() if key in QuantConfig.__dataclass_fields__},
            "backend": self.backend.value,
            "modules_to_not_convert": self.modules_to_not_convert,
            **{key: value for key, value in table.items() if value},
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """What diffusers prints."""
        return self.to_dict()

    def describe_(self, model: nn.Module) -> None:
        """Take over which layers of a packed model are of which form."""
        table = described(model, self.quant)
        self.layers = table["layers"]
        self.transforms = table.get("transforms", {})
        self.layer_configs = table.get("layer_configs", {})


class QVGenQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """What diffusers calls around the loading of weights."""

    quantization_config: QVGenQuantizationConfig

    def __init__(
        self, quantization_config: QVGenQuantizationConfig | QuantConfig | QVGenConfig, **kwargs: Any
    ) -> None:
        given = quantization_config
        given = given.quant if isinstance(given, QVGenConfig) else given  # no training, hence no Phi
        config = QVGenQuantizationConfig(given) if isinstance(given, QuantConfig) else given
        super().__init__(config, **kwargs)
        if self.pre_quantized and not config.layers:
            raise ValueError(
                "the folder's quantization_config lists no layers: it was not written by save_pretrained"
            )
        self._file = Path("config.json")
        self._keys: set[str] = set()
        self._checksums: dict[str, int] = {}

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        """Remember what the files hold, and their checksums."""
        self._keys = set(loaded_keys)
        for file in checkpoint_files if self.pre_quantized else ():
            self._file = Path(file)
            self._checksums |= _checksums(self._file)
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        config = self.quantization_config
        header = {
            "layers": config.layers,
            "transforms": config.transforms,
            "layer_configs": config.layer_configs,
        }
        make_frozen_(model, header, config.quant, self._file)
        empty_packed_(model, config.backend)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse files that lack a tensor or have one too many.

        Raises:
            ValueError: with the tensor's name.
        """
        if self.pre_quantized:
            surplus = self._keys - model.state_dict().keys()
            if missing_keys or surplus:
                which, names = ("lacks", missing_keys) if missing_keys else ("has a surplus tensor", surplus)
                raise ValueError(f"{self._file}: {which} {min(names)} ({len(names)} in all)")
        return missing_keys

    def check_if_quantized_param(self, *args: Any, **kwargs: Any) -> bool:
        """All tensors of a packed folder are set here, so that all are checked."""
        return bool(self.pre_quantized)

    def check_quantized_param_shape(self, name: str, wanted: Tensor, given: Tensor) -> bool:
        """Refuse a tensor of another shape.

        Raises:
            ValueError: with the tensor's name.
        """
        raise ValueError(
            f"{self._file}: {name} is {tuple(given.shape)}, the model needs {tuple(wanted.shape)}"
        )

    def create_quantized_param(
        self, model: nn.Module, param: Tensor, name: str, device: Any, state_dict: Mapping[str, Tensor],
        unexpected_keys: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Put one tensor of the file in its place; scales stay in float32 whatever the model's dtype.

        Raises:
            ValueError: its checksum or dtype is another, or a scale is no finite number.
        """
        stored = state_dict[name]
        if name in self._checksums and _crc32(stored) != self._checksums[name]:
            raise ValueError(f"{self._file}: {name} was altered or damaged: its checksum is another")
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        place = module._buffers if leaf in module._buffers else module._parameters
        wanted = place[leaf]
        assert wanted is not None
        both_float = stored.is_floating_point() and wanted.is_floating_point()
        if stored.dtype != wanted.dtype and (not both_float or _is_exact(module, leaf)):
            raise ValueError(f"{self._file}: {name} is {stored.dtype}, the model needs {wanted.dtype}")
        if _is_exact(module, leaf) and not bool(stored.isfinite().all()):
            raise ValueError(f"{self._file}: {name} has numbers that are not finite")
        value = (stored if _is_exact(module, leaf) else param).to(device)
        if place is module._buffers:
            module._buffers[leaf] = value
        else:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        config = self.quantization_config
        if self.pre_quantized:
            return join_reads_(prepare_(model)).requires_grad_(False).eval()
        pack_(convert_(quantize_(model, config.quant, config.modules_to_not_convert)), config.backend)
        config.describe_(model)
        cast(Any, model).register_to_config(quantization_config=config)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors as they are, and a checksum of each.

        Raises:
            ValueError: asked for anything but safetensors.
        """
        if not safe_serialization:
            raise ValueError("packed models are saved as safetensors only; leave safe_serialization on")
        return state_dict, {CHECKSUMS: json.dumps({name: _crc32(t) for name, t in state_dict.items()})}

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Make diffusers know the method ``qvgen``; calling it again changes nothing.

    Raises:
        ValueError: something else is registered under that name.
    """
    for table, entry in (
        (AUTO_QUANTIZATION_CONFIG_MAPPING, QVGenQuantizationConfig),
        (AUTO_QUANTIZER_MAPPING, QVGenQuantizer),
    ):
        if table.setdefault(NAME, entry) is not entry:
            raise ValueError(f"diffusers has another quantizer under the name {NAME!r}: {table[NAME]}")


def attach_(model: nn.Module, backend: Backend | str = Backend.AUTO) -> nn.Module:
    """Make a finished diffusers model one that ``save_pretrained`` stores packed, in place.

    Args:
        model: a diffusers model that a method or ``convert_`` finished; packed here if it is not yet.
        backend: how its layers are executed; of a model that is packed already nothing changes.

    Raises:
        ValueError: as ``pack_``, or no diffusers model.
    """
    if not isinstance(model, ModelMixin):
        raise ValueError(f"{type(model).__name__} is no diffusers model; save it with qvgen.checkpoint")
    register()
    if next(packed_layers(model), None) is None:
        pack_(model, backend)
    layer = next(layer for _, layer in packed_layers(model))
    config = QVGenQuantizationConfig(layer.config, backend=layer.backend.value)
    config.describe_(model)
    model.register_to_config(quantization_config=config)
    model.hf_quantizer = QVGenQuantizer(config)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    return cast(nn.Module, model)


def _is_exact(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, PackedLinear):
        return leaf in EXACT
    return isinstance(module, TransformedQuantLinear) and leaf == "input_scale"


def _crc32(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(cast(Any, flat.view(torch.uint8).numpy()))


def _checksums(file: Path) -> dict[str, int]:
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(CHECKSUMS, "{}")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not valid safetensors ({error})") from None
    found: dict[str, int] = json.loads(text)
    return found
