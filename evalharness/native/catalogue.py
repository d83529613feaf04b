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
        renaming: name of the rule in ``evalharness.native.convert`` that fits it to our network.
        megabytes: size of the original.
        sha256: of the original, or its first digits; empty where the publisher gives none.
        licence: of the weights.
        source: where the original is to be had.
        dimensions: what needs it.
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
            dimensions=("background_consistency",),
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
            renaming="as_is",
            megabytes=109.0,
            sha256="358bb6af",
            licence="as pyiqa: non-commercial",
            source="pyiqa's release on GitHub (chaofengc/IQA-PyTorch), musiq_spaq_ckpt-358bb6af.pth",
            dimensions=("imaging_quality",),
        ),
    }
)
