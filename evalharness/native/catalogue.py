"""Which weight files the native scorers read, under what licence, and where they come from.

Licences are those of the networks' own repositories; sizes are in megabytes of 10^6 bytes.
A hash is given where the publisher gives one: OpenAI's is part of its address, pyiqa's file name ends
with the first eight digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CATALOGUE", "Entry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One network's weights.

    Attributes:
        file: the converted file in the weights folder, safetensors.
        original: the file as published, below VBench's cache folder.
        kind: what ``evalharness.torchfiles`` finds in the original: ``state_dict`` (names and tensors, from
            ``torch.save``) or ``torchscript`` (a module's archive, whose code is left alone).
        renaming: name of the rule in ``evalharness.native.renaming`` that fits it to our network.
        megabytes: size of the original.
        sha256: of the original, or its first digits; empty where the publisher gives none.
        licence: of the weights.
        source: where the original is to be had.
        dimensions: what needs it.
        inside: key of the tensors, where the file wraps them in a mapping; ``kind`` ``bytes`` stands for
            a file that is kept as it is.
    """

    file: str
    original: str
    kind: str
    renaming: str
    megabytes: float
    sha256: str
    licence: str
    source: str
    dimensions: tuple[str, ...]
    inside: str = ""


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "dino-vitb16": Entry(
            file="dino_vitb16.safetensors",
            original="dino_model/dino_vitbase16_pretrain.pth",
            kind="state_dict",
            renaming="as_is",
            megabytes=343.0,
            sha256="",
            licence="Apache-2.0",
            source="the DINO repository (facebookresearch/dino), ViT-B/16, backbone only",
            dimensions=("subject_consistency",),
        ),
        "clip-vit-b32": Entry(
            file="clip_vit_b32.safetensors",
            original="clip_model/ViT-B-32.pt",
            kind="torchscript",
            renaming="clip",
            megabytes=354.0,
            sha256=_B32,
            licence="MIT",
            source=f"{_OPENAI}/{_B32}/ViT-B-32.pt",
            dimensions=("background_consistency", "appearance_style"),
        ),
        "clip-vit-b32-text": Entry(
            file="clip_vit_b32_text.safetensors",
            original="clip_model/ViT-B-32.pt",
            kind="torchscript",
            renaming="clip_text",
            megabytes=354.0,
            sha256=_B32,
            licence="MIT",
            source=f"{_OPENAI}/{_B32}/ViT-B-32.pt",
            dimensions=("appearance_style",),
        ),
        "clip-vit-l14": Entry(
            file="clip_vit_l14.safetensors",
            original="clip_model/ViT-L-14.pt",
            kind="torchscript",
            renaming="clip",
            megabytes=933.0,
            sha256=_L14,
            licence="MIT",
            source=f"{_OPENAI}/{_L14}/ViT-L-14.pt",
            dimensions=("aesthetic_quality",),
        ),
        "aesthetic-linear": Entry(
            file="aesthetic_linear.safetensors",
            original="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            kind="state_dict",
            renaming="as_is",
            megabytes=0.004,
            sha256="",
            licence="MIT",
            source="LAION's aesthetic-predictor repository, sa_0_4_vit_l_14_linear.pth",
            dimensions=("aesthetic_quality",),
        ),
        "raft-things": Entry(
            file="raft_things.safetensors",
            original="raft_model/models/raft-things.pth",
            kind="state_dict",
            renaming="raft",
            megabytes=21.0,
            sha256="",
            licence="BSD-3-Clause",
            source="the RAFT repository (princeton-vl/RAFT), models.zip, raft-things.pth",
            dimensions=("dynamic_degree", "the static filter"),
        ),
        "musiq-spaq": Entry(
            file="musiq_spaq.safetensors",
            original="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            kind="state_dict",
            renaming="musiq",
            megabytes=109.0,
            sha256="358bb6af",
            licence="of pyiqa's file: non-commercial",
            source="pyiqa's release on GitHub (chaofengc/IQA-PyTorch), musiq_spaq_ckpt-358bb6af.pth",
            dimensions=("imaging_quality",),
        ),
        "umt-l16": Entry(
            file="umt_l16.safetensors",
            original="umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            kind="state_dict",
            renaming="umt",
            megabytes=1214.0,
            sha256="",
            licence="not stated with the file",
            source="OpenGVLab/VBench_Used_Models on Hugging Face, l16_ptk710_ftk710_ftk400_f16_res224.pth",
            dimensions=("human_action",),
        ),
        "viclip-l14": Entry(
            file="viclip_l14.safetensors",
            original="ViCLIP/ViClip-InternVid-10M-FLT.pth",
            kind="state_dict",
            inside="model",
            renaming="viclip",
            megabytes=1711.0,
            sha256="",
            licence="MIT",
            source="OpenGVLab/ViCLIP on Hugging Face, ViClip-InternVid-10M-FLT.pth",
            dimensions=("overall_consistency", "temporal_style"),
        ),
        "alexnet": Entry(
            file="alexnet.safetensors",
            original="lpips/alexnet-owt-7be5be79.pth",
            kind="state_dict",
            renaming="alexnet",
            megabytes=244.0,
            sha256="7be5be79",
            licence="BSD-3-Clause",
            source="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            dimensions=("divergence: LPIPS",),
        ),
        "lpips-alex": Entry(
            file="lpips_alex.safetensors",
            original="lpips/alex.pth",
            kind="state_dict",
            renaming="lpips",
            megabytes=0.006,
            sha256="",
            licence="BSD-2-Clause",
            source="the package lpips 0.1.4 (PyPI), lpips/weights/v0.1/alex.pth",
            dimensions=("divergence: LPIPS",),
        ),
        "clip-bpe": Entry(
            file="clip_bpe.safetensors",
            original="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            kind="bytes",
            renaming="as_is",
            megabytes=1.4,
            sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
            licence="MIT",
            source="the CLIP repository (openai/CLIP), clip/bpe_simple_vocab_16e6.txt.gz",
            dimensions=("appearance_style", "overall_consistency", "temporal_style"),
        ),
    }
)
