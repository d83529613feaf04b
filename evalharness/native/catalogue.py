"""Which weight files the native scorers read, under what licence, and where they come from.

Licences are those of the networks' own repositories; sizes are in megabytes of 10^6 bytes.
A hash is given where the publisher gives one: OpenAI's is part of its address, pyiqa's file name ends
with the first eight digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evalharness.upstream.files import FILES

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


def _of_vbench(
    file: str,
    path: str,
    renaming: str,
    dimensions: tuple[str, ...],
    *,
    kind: str = "state_dict",
    inside: str = "",
) -> Entry:
    """An entry whose original VBench uses too: where it is from stands in ``evalharness.upstream.files``."""
    [known] = [each for each in FILES if each.path == path]
    return Entry(
        file=file,
        original=path,
        kind=kind,
        renaming=renaming,
        megabytes=known.megabytes,
        sha256=known.sha256,
        licence=known.licence,
        source=known.url,
        dimensions=dimensions,
        inside=inside,
    )


CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "dino-vitb16": _of_vbench(
            "dino_vitb16.safetensors",
            "dino_model/dino_vitbase16_pretrain.pth",
            "as_is",
            ("subject_consistency",),
        ),
        "clip-vit-b32": _of_vbench(
            "clip_vit_b32.safetensors",
            "clip_model/ViT-B-32.pt",
            "clip",
            ("background_consistency", "appearance_style"),
            kind="torchscript",
        ),
        "clip-vit-b32-text": _of_vbench(
            "clip_vit_b32_text.safetensors",
            "clip_model/ViT-B-32.pt",
            "clip_text",
            ("appearance_style",),
            kind="torchscript",
        ),
        "clip-vit-l14": _of_vbench(
            "clip_vit_l14.safetensors",
            "clip_model/ViT-L-14.pt",
            "clip",
            ("aesthetic_quality",),
            kind="torchscript",
        ),
        "aesthetic-linear": _of_vbench(
            "aesthetic_linear.safetensors",
            "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            "as_is",
            ("aesthetic_quality",),
        ),
        "raft-things": _of_vbench(
            "raft_things.safetensors",
            "raft_model/models/raft-things.pth",
            "raft",
            ("dynamic_degree", "the static filter"),
        ),
        "musiq-spaq": _of_vbench(
            "musiq_spaq.safetensors",
            "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            "musiq",
            ("imaging_quality",),
        ),
        "umt-l16": _of_vbench(
            "umt_l16.safetensors",
            "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            "umt",
            ("human_action",),
        ),
        "viclip-l14": _of_vbench(
            "viclip_l14.safetensors",
            "ViCLIP/ViClip-InternVid-10M-FLT.pth",
            "viclip",
            ("overall_consistency", "temporal_style"),
            inside="model",
        ),
        "clip-bpe": _of_vbench(
            "clip_bpe.safetensors",
            "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            "as_is",
            ("appearance_style", "overall_consistency", "temporal_style"),
            kind="bytes",
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
    }
)
