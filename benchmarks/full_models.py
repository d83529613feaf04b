"""The transformers of CogVideoX-2B and Wan2.1 at full size with random weights: in bfloat16, or packed.

Nothing is downloaded. Packed ones are filled with random codes where they are, without ever having been
bfloat16. ``tiny`` gives models of the same classes that a CPU runs in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BF16 = torch.bfloat16
CLIP_BUCKETS = 50
STD_SKIP = {  # what the presets of the papers keep in 16 bits: embedders, the output
    "CogVideoXTransformer3DModel": ("patch_embed", "time_embedding", "proj_out"),
    "WanTransformer3DModel": ("condition_embedder", "proj_out"),
}


@dataclass(frozen=True)
class Full:
    """One architecture and the size of a clip.

    Attributes:
        kind: diffusers' class.
        options: of its constructor, where they differ from the defaults.
        latent: shape of one sample of latents, as the class takes them.
        text: tokens and width of the text.
    """

    kind: str
    options: dict[str, Any]
    latent: tuple[int, int, int, int]
    text: tuple[int, int]
    tiny: dict[str, Any] = field(default_factory=dict)


_COG_TINY = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "time_embed_dim": 32, "text_embed_dim": 32, "sample_width": 6, "sample_height": 6, "sample_frames": 5,
    "max_text_seq_length": 4,
}  # fmt: skip
_WAN_TINY = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "text_dim": 32, "freq_dim": 16, "ffn_dim": 64, "rope_max_seq_len": 32,
}  # fmt: skip
MODELS = {
    "cog_2b": Full(
        "CogVideoXTransformer3DModel", {"num_layers": 30}, (13, 16, 60, 90), (226, 4096), _COG_TINY
    ),
    "wan_1_3b": Full(
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096},
        (16, 21, 60, 104),
        (512, 4096),
        _WAN_TINY,
    ),
    "wan_14b": Full(
        "WanTransformer3DModel",
        {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "text_dim": 4096},
        (16, 21, 60, 104),
        (512, 4096),
        _WAN_TINY,
    ),
}
TINY_LATENT = {"CogVideoXTransformer3DModel": (2, 4, 6, 6), "WanTransformer3DModel": (4, 2, 6, 6)}
TINY_TEXT = (4, 32)


def model_class(full: Full) -> Any:
    """Diffusers' class."""
    import diffusers

    return getattr(diffusers, full.kind)


def options(full: Full, tiny: bool) -> dict[str, Any]:
    """What the constructor is given."""
    return full.tiny if tiny else full.options


def bf16_model(full: Full, device: torch.device, tiny: bool) -> nn.Module:
    """Random weights in bfloat16; what diffusers keeps in float32 on loading is float32."""
    torch.manual_seed(0)
    kind, default = model_class(full), torch.get_default_dtype()
    torch.set_default_dtype(BF16)
    try:
        with torch.device(device):
            model: nn.Module = kind(**options(full, tiny))
    finally:
        torch.set_default_dtype(default)
    return keep_wide(model.eval().requires_grad_(False))


@torch.no_grad()
def fill_(model: nn.Module, packed: nn.Module) -> nn.Module:
    """Give ``model`` the numbers of ``packed``, in place: those that its codes stand for, rounded once.

    What a multiplier draws, and so the clock, depends on the numbers: sides that are compared have the same.

    Args:
        model: the architecture of ``packed`` with plain linears; keeps its dtypes.
        packed: from ``packed_model``; norms in its reads or not.
    """
    from qvgen.packed.convert import packed_layers

    layers = dict(packed_layers(packed))
    others = {**dict(packed.named_parameters()), **dict(packed.named_buffers())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            tensor.copy_(others[name])
            continue
        codes = layer.packed_weight().unpacked().float()
        tensor.copy_(codes.sub_(layer.zero_point).mul_(layer.scale))
    return model


def keep_wide(model: nn.Module) -> nn.Module:
    """Float32 for what diffusers and packed layers keep so, whatever dtype is asked for; else bfloat16."""
    from qvgen.packed.convert import packed_layers
    from qvgen.packed.linear import EXACT

    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    exact = {f"{name}.{leaf}" for name, _ in packed_layers(model) for leaf in EXACT}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name not in exact:
            tensor.data = tensor.data.float() if wide & set(name.split(".")) else tensor.data.to(BF16)
    return model


def inputs(full: Full, device: torch.device, tiny: bool, samples: int = 1) -> dict[str, Any]:
    """Random inputs of one call."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, generator=generator, device=device).to(BF16)

    return {
        "hidden_states": draw(*(TINY_LATENT[full.kind] if tiny else full.latent)),
        "encoder_hidden_states": draw(*(TINY_TEXT if tiny else full.text)),
        "timestep": torch.full((samples,), 500, device=device),
        "return_dict": False,
    }


def tokens(full: Full, tiny: bool) -> int:
    """Of one sample, as self-attention sees them."""
    latent = TINY_LATENT[full.kind] if tiny else full.latent
    is_cog = full.kind.startswith("Cog")
    frames = latent[0] if is_cog else latent[1]
    text = (TINY_TEXT if tiny else full.text)[0] if is_cog else 0
    return text + frames * (latent[2] // 2) * (latent[3] // 2)


def packed_model(
    full: Full, bits: tuple[int, int], device: torch.device, tiny: bool, *, fuse: bool = True
) -> nn.Module:
    """Random codes at (weight, activation) ``bits``, random parameters of the rest, ready to run.

    Every layer has clips of its own by timestep, as QVGen trains them: q, k and v read the same input with
    three sets of codes. ``fuse`` as in ``pack_``; the same arguments give the same model.
    Scales are such that weights have the size of initial ones, so that outputs stay finite.
    """
    from qvgen.api import quantizable_names
    from qvgen.config import QuantConfig
    from qvgen.packed.backends import Backend
    from qvgen.packed.convert import empty_packed_, join_reads_, packed_layers, prepare_

    config = QuantConfig(w_bits=bits[0], a_bits=bits[1], learn_clip=True, clip_buckets=CLIP_BUCKETS)
    with torch.device("meta"):
        model: nn.Module = model_class(full)(**options(full, tiny))
    spared = STD_SKIP[full.kind]
    names = [n for n in quantizable_names(model, ()) if n.split(".")[0] not in spared]
    _freeze_(model, names, config)
    empty_packed_(model, Backend.AUTO)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _place(model, name, _random(name, tensor, device, generator))
    for _, layer in packed_layers(model):
        layer.scale.fill_(1.5 / (2 ** bits[0] * layer.in_features**0.5))
        layer.zero_point.fill_(2 ** (bits[0] - 1))
        layer.codes.random_(0, 256, generator=generator)
        for clip in (layer.lower, layer.upper):
            clip.uniform_(0.85, 0.99, generator=generator)
    _rebuild_tables(model, full, device, tiny)
    return join_reads_(prepare_(keep_wide(model.eval().requires_grad_(False))), fuse=fuse)


def _freeze_(model: nn.Module, names: list[str], config: Any) -> None:
    from pathlib import Path

    from qvgen.layer_table import make_frozen_

    shapes = {name: list(model.get_submodule(name).weight.shape) for name in names}  # type: ignore[arg-type]
    make_frozen_(model, {"layers": shapes}, config, Path("random"))


def _random(name: str, tensor: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    if tensor.device.type != "meta":  # of no file: set by the class itself
        return tensor.detach().to(device)
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if not tensor.is_floating_point():
        return made.zero_()
    if name.endswith("weight") and tensor.dim() == 1:
        return made.fill_(1)
    return made.normal_(0, 0.02, generator=generator)


def _place(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _rebuild_tables(model: nn.Module, full: Full, device: torch.device, tiny: bool) -> None:
    """Positions, which the classes compute when they are built, cannot be random."""
    small = {**options(full, tiny), "num_layers": 0}
    reference = model_class(full)(**small)
    for name, buffer in reference.named_buffers():
        _place(model, name, buffer.to(device))
