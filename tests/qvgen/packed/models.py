"""Small CogVideoX and Wan transformers, finished at some bits, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig


def cog(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "time_embed_dim": 24, "text_embed_dim": 24, "num_layers": 2, "sample_width": 6, "sample_height": 6,
        "sample_frames": 5, "max_text_seq_length": 4, **options,
    }  # fmt: skip
    return CogVideoXTransformer3DModel(**values).eval()


def wan(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4,
        "text_dim": 20, "freq_dim": 16, "ffn_dim": 80, "num_layers": 2, "rope_max_seq_len": 32, **options,
    }  # fmt: skip
    return WanTransformer3DModel(**values).eval()


MODELS = {"cog": cog, "wan": wan}
SPARED = {
    "cog": ("proj_out", "patch_embed.text_proj"),
    "wan": ("proj_out", "condition_embedder.text_embedder.linear_1"),
}


def finished(name: str, *, w_bits: int = 4, a_bits: int = 4, layers: int = 2, **quant: Any) -> nn.Module:
    """Rounded to searched ranges; with ``learn_clip`` every layer has clips of its own."""
    model = MODELS[name](num_layers=layers)
    config = QuantConfig(w_bits=w_bits, a_bits=a_bits, **quant)
    spared = [n for n in SPARED[name] if isinstance(model.get_submodule(n), nn.Linear)]
    model = convert_(quantize_(model, config, spared))
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if quant.get("learn_clip") and hasattr(layer, "codes"):
            for clip in (layer.lower, layer.upper):
                clip.uniform_(0.7, 1.0, generator=generator)
    return model


def inputs(name: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    if name == "cog":
        x, text = draw(batch, 2, 4, 6, 6), draw(batch, 4, 24)
    else:
        x, text = draw(batch, 4, 2, 6, 6), draw(batch, 5, 20)
    timestep = torch.tensor([20, 900, 500][:batch])
    return {"hidden_states": x, "encoder_hidden_states": text, "timestep": timestep, "return_dict": False}
