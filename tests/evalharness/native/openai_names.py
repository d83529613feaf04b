"""Names of our networks and those of OpenAI's and transformers' files, written down once for the tests."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

OPENAI = (
    ("blocks.", "transformer.resblocks."),
    ("attn.qkv.weight", "attn.in_proj_weight"),
    ("attn.qkv.bias", "attn.in_proj_bias"),
    ("attn.proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
)
"""(ours, theirs): parts of names that are replaced, in this order."""


def transformers_blocks(state: Mapping[str, Tensor], tower: str, count: int) -> dict[str, Tensor]:
    """Blocks of a CLIP tower (``vision_model`` or ``text_model``) under the names of transformers."""
    renamed = {}
    for end in ("weight", "bias"):
        for i in range(count):
            to, of = f"{tower}.encoder.layers.{i}", f"blocks.{i}"
            for letter, part in zip("qkv", state[f"{of}.attn.qkv.{end}"].chunk(3), strict=True):
                renamed[f"{to}.self_attn.{letter}_proj.{end}"] = part
            renamed[f"{to}.self_attn.out_proj.{end}"] = state[f"{of}.attn.proj.{end}"]
            for n in (1, 2):
                renamed[f"{to}.layer_norm{n}.{end}"] = state[f"{of}.norm{n}.{end}"]
                renamed[f"{to}.mlp.fc{n}.{end}"] = state[f"{of}.mlp.fc{n}.{end}"]
    return renamed
