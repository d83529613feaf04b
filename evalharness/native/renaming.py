"""How the tensors of published files are called in our networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RENAMINGS", "State", "alexnet", "clip", "clip_text", "lpips", "musiq", "raft", "umt", "viclip"]

State = dict[str, "Tensor"]
Rule = Callable[[Mapping[str, "Tensor"]], State]

_CLIP_NAMES = (
    ("transformer.resblocks.", "blocks."),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
)
_CLIP_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def raft(state: Mapping[str, Tensor]) -> State:
    """RAFT's published names without the data-parallel prefix and the twice stored third norm."""
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return {
        key: tensor
        for key, tensor in plain.items()
        if ".norm3." not in key and not key.endswith("num_batches_tracked")
    }


def clip(state: Mapping[str, Tensor]) -> State:
    """The image half of OpenAI's CLIP, with the names of ``vit.ClipImage``."""
    return {_clip_name(key): tensor for key, tensor in _below(state, "visual.").items()}


def clip_text(state: Mapping[str, Tensor]) -> State:
    """The text half of OpenAI's CLIP and its scale, with the names of ``text.ClipText``."""
    kept = (*_CLIP_TEXT, "logit_scale")
    return {_clip_name(key): tensor for key, tensor in state.items() if key.startswith(kept)}


def viclip(state: Mapping[str, Tensor]) -> State:
    """Both halves of ViCLIP, with the names of ``viclip.ViClip``; its temperature is not needed."""
    video = {_clip_name(key): tensor for key, tensor in _below(state, "vision_encoder.").items()}
    video["conv1.weight"] = _one_frame(video["conv1.weight"])
    video["temporal_embedding"] = video.pop("temporal_positional_embedding")[0]
    text = {_clip_name(key): tensor for key, tensor in _below(state, "text_encoder.").items()}
    return {f"video.{key}": tensor for key, tensor in video.items()} | {
        f"text.{key}": tensor for key, tensor in text.items()
    }


def umt(state: Mapping[str, Tensor]) -> State:
    """UMT's classifier, with the names of ``umt.Umt``.

    Queries and values have a bias, keys have none. The table of positions is fixed; a file that lacks
    it gets the one that the network is defined with.
    """
    import torch

    from evalharness.native.umt import position_table

    renamed: State = {}
    for key, tensor in state.items():
        if key.endswith(".attn.v_bias"):
            continue
        if key.endswith(".attn.q_bias"):
            values = state[key.replace("q_bias", "v_bias")]
            renamed[key.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), values])
        else:
            renamed[key] = tensor
    weight = _one_frame(renamed.pop("patch_embed.proj.weight"))
    renamed["patch_embed.proj.weight"] = weight
    if "pos_embed" not in renamed:
        renamed["pos_embed"] = position_table(len(weight))
    return renamed


_MUSIQ_NAMES = (
    ("transformer_encoder.posembed_input.position_emb", "position"),
    ("transformer_encoder.scaleembed_input.scale_emb", "scale"),
    ("transformer_encoder.cls", "cls"),
    ("transformer_encoder.encoder_norm.", "norm."),
    ("transformer_encoder.transformer.encoderblock_", "blocks."),
    (".attention.out.", ".attn.proj."),
)


def musiq(state: Mapping[str, Tensor]) -> State:
    """MUSIQ's names in pyiqa's files, with queries, keys and values put together."""
    import torch

    renamed: State = {}
    for key, tensor in state.items():
        if ".attention.key." in key or ".attention.value." in key:
            continue
        name = key
        for old, new in _MUSIQ_NAMES:
            name = name.replace(old, new)
        if ".attention.query." in key:
            parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            renamed[name.replace(".attention.query.", ".attn.qkv.")] = torch.cat(parts)
        else:
            renamed[name] = tensor[0] if name == "position" else tensor
    return renamed


def alexnet(state: Mapping[str, Tensor]) -> State:
    """The convolutions of torchvision's AlexNet; its classifier is not needed."""
    return {key: tensor for key, tensor in state.items() if key.startswith("features.")}


def lpips(state: Mapping[str, Tensor]) -> State:
    """LPIPS's weights of channels: convolutions of one pixel, as vectors."""
    return {key.partition(".")[0]: tensor.flatten() for key, tensor in state.items()}


def _as_is(state: Mapping[str, Tensor]) -> State:
    return dict(state)


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _clip_name(name: str) -> str:
    for old, new in _CLIP_NAMES:
        name = name.replace(old, new)
    return name


def _one_frame(weight: Tensor) -> Tensor:
    """A convolution over one frame at a time [D, 3, 1, P, P], as one over pictures [D, 3, P, P]."""
    if weight.dim() != 5 or weight.shape[2] != 1:
        raise ValueError(f"a patch embedding of shape {list(weight.shape)}; expected [D, 3, 1, P, P]")
    return weight[:, :, 0]


RENAMINGS: Mapping[str, Rule] = MappingProxyType(
    {"as_is": _as_is, "raft": raft, "clip": clip, "clip_text": clip_text, "viclip": viclip, "umt": umt}
    | {"alexnet": alexnet, "lpips": lpips, "musiq": musiq}
)
