"""From a released file to layers: replace, compare every key, fill, and if asked make exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvgen.contents import check_contents
from qvgen.fake_quant import weight_codes
from qvgen.linear import FrozenQuantLinear
from qvgen.official.config import OfficialConfig
from qvgen.official.files import ReleasedFile, cast_as_released_
from qvgen.official.linear import OfficialQuantLinear, OfficialTimestep
from qvgen.quantizers import ClipContext


def make_official_(model: nn.Module, released: ReleasedFile, config: OfficialConfig) -> nn.Module:
    """Turn a float32 diffusers transformer into the released model, in place.

    Its parameters take the dtypes the authors run them in; for mode ``exact`` they stay float32.

    Raises:
        ValueError: with the key: a missing or surplus one, a wrong shape or dtype, NaN or infinity, a
            scale that is not positive, a zero point of LSQ that is no code, or Phi without gamma.
    """
    if config.mode == "official":
        cast_as_released_(model)
    timestep = OfficialTimestep()
    if config.clip_choice == "timestep":
        timestep.follow(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, rank in released.quantized.items():
        if name not in linears:
            raise ValueError(
                f"{released.path}: surplus key {name}.wquantizer.scale: {name!r} is no linear of the model"
            )
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, OfficialQuantLinear(linear, config, timestep, rank))
    _check_scales(released, linears)
    _check_keys(model, released)
    _set_gamma(model, released, config)
    _fill(model, released, config)
    return model


def _check_scales(released: ReleasedFile, linears: set[str]) -> None:
    """Name what is missing where a layer has all of a quantized one but what marks it as one."""
    for key in sorted(released.shapes):
        parts = [key.rpartition(f".{part}")[0] for part in ("wquantizer.", "aquantizer.")]
        name = next(filter(None, parts), key.removesuffix(".w") if key.endswith(".w") else "")
        if name in linears and name not in released.quantized:
            raise ValueError(f"{released.path}: has {key} but lacks {name}.wquantizer.scale")


def _check_keys(model: nn.Module, released: ReleasedFile) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(wanted.keys() - released.shapes.keys())
    surplus = sorted(released.shapes.keys() - wanted.keys())
    if missing or surplus:
        which, key = ("lacks", missing[0]) if missing else ("has the surplus key", surplus[0])
        raise ValueError(
            f"{released.path}: {which} {key} ({len(missing)} missing, {len(surplus)} surplus in all)"
        )
    for key, shape in wanted.items():
        if released.shapes[key] != shape:
            raise ValueError(f"{released.path}: {key} is {released.shapes[key]}, the model needs {shape}")


@torch.no_grad()
def _set_gamma(model: nn.Module, released: ReleasedFile, config: OfficialConfig) -> None:
    """Give Phi the factors the file does not hold.

    A guess would be wrong almost surely: gamma goes from 1 to 0 within each stage, so the weights
    that were trained mean nothing without the step at which they were saved.
    """
    ranks = {name: rank for name, rank in released.quantized.items() if rank}
    if not ranks:
        if config.gamma is not None:
            raise ValueError(f"gamma is given, but {released.path} holds no Phi; leave it out")
        return
    name, rank = next(iter(ranks.items()))
    if config.gamma is None:
        raise ValueError(
            f"{released.path}: {name}.wquantizer.L: saved while Phi was at work, and its factors are not in "
            f"the file; give gamma, {rank} numbers, e.g. RankSchedule(...).gamma(step)"
        )
    if len(config.gamma) != max(ranks.values()):
        raise ValueError(f"gamma has {len(config.gamma)} numbers; Phi has {max(ranks.values())} columns")
    if config.mode == "exact" and any(config.gamma):
        raise ValueError(
            f"{released.path}: {name}.wquantizer.L: Phi is at work and has no integer codes; mode 'exact' "
            "needs gamma of zeros, mode 'official' takes any"
        )
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, OfficialQuantLinear)
        layer.wquantizer.gamma.copy_(torch.tensor(config.gamma[:rank]))


@torch.no_grad()
def _fill(model: nn.Module, released: ReleasedFile, config: OfficialConfig) -> None:
    state = model.state_dict()
    codes = (0.0, float(2**config.w_bits - 1))
    for key, tensor in released.tensors():
        # LSQ adds its zero point to whole codes: a fraction would not be on their grid. LSQ+ takes any.
        whole = config.weights == "lsq" and key.endswith(".wquantizer.zero_point")
        check_contents(
            f"{released.path}: {key}",
            tensor,
            state[key].dtype,
            positive=key.endswith(".wquantizer.scale"),
            within=codes if whole else None,
            whole=whole,
        )
        state[key].copy_(tensor)


@torch.no_grad()
def make_exact_(model: nn.Module, config: OfficialConfig) -> nn.Module:
    """Replace released layers by this library's finished ones, in place.

    Weights, scales and zero points are the same numbers, but codes are computed in float32. The
    clip is applied once, as one ratio ``clip_ratio * sigmoid(mean logit)``: the entries of a
    layer stand for residues of the timestep, not for noise levels, so none of them can be given
    to a timestep bucket, and all are estimates of the same ratio. Ranges include zero.
    """
    context = ClipContext(1)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, OfficialQuantLinear):
            model.set_submodule(name, _exact_layer(layer, config, context))
    return model


def _exact_layer(
    layer: OfficialQuantLinear, config: OfficialConfig, context: ClipContext
) -> FrozenQuantLinear:
    quant = config.exact_config()
    size = (layer.out_features, layer.in_features)
    frozen = FrozenQuantLinear(size, layer.b, quant, context, device=layer.w.device, dtype=torch.float32)
    scale, zero_point = layer.wquantizer.scale, layer.wquantizer.zero_point
    frozen.codes.copy_(weight_codes(layer.w, scale, zero_point, 2**quant.w_bits - 1))
    frozen.scale.copy_(scale)
    frozen.zero_point.copy_(zero_point)
    frozen.lower.copy_(_one_ratio(layer.aquantizer.lower, config))
    frozen.upper.copy_(_one_ratio(layer.aquantizer.upper, config))
    frozen.refresh_()
    return frozen


def _one_ratio(logits: Tensor, config: OfficialConfig) -> Tensor:
    return config.clip_ratio * torch.sigmoid(logits.mean())
