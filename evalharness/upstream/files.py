"""The files that the package ``vbench`` looks for, in the layout in which it looks for them.

Addresses are the package's own, with two exceptions: GRiT's file moved since release 0.1.5, and BERT is
taken from a folder here, since the package asks the network for it. Licences are of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FILES", "CacheFile", "cache_folder", "files_of", "lacking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFile:
    """One file below VBench's cache folder.

    Attributes:
        path: below the folder.
        url: where it is published.
        megabytes: about how large, in 10^6 bytes.
        licence: of its content.
        dimensions: what needs it.
        sha256: of the file, or its first digits; empty where nobody publishes it.
    """

    path: str
    url: str
    megabytes: float
    licence: str
    dimensions: tuple[str, ...]
    sha256: str = ""


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_VBENCH = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
_DINO = "https://raw.githubusercontent.com/facebookresearch/dino/main"
_BERT = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main"
_GRIT = ("object_class", "multiple_objects", "color", "spatial_relationship")
_VICLIP = ("temporal_style", "overall_consistency")


def _dino(name: str, kilobytes: float) -> CacheFile:
    return CacheFile(
        path=f"dino_model/facebookresearch_dino_main/{name}",
        url=f"{_DINO}/{name}",
        megabytes=kilobytes / 1000,
        licence="Apache-2.0",
        dimensions=("subject_consistency",),
    )


def _bert(name: str, megabytes: float, dimensions: tuple[str, ...]) -> CacheFile:
    return CacheFile(
        path=f"bert-base-uncased/{name}",
        url=f"{_BERT}/{name}",
        megabytes=megabytes,
        licence="Apache-2.0",
        dimensions=dimensions,
    )


FILES = (
    CacheFile(
        path="dino_model/dino_vitbase16_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        megabytes=343.0,
        licence="Apache-2.0",
        dimensions=("subject_consistency",),
    ),
    _dino("hubconf.py", 6),
    _dino("vision_transformer.py", 12),
    _dino("utils.py", 29),
    CacheFile(
        path="clip_model/ViT-B-32.pt",
        url=f"{_OPENAI}/{_B32}/ViT-B-32.pt",
        megabytes=354.0,
        licence="MIT",
        dimensions=("background_consistency", "appearance_style"),
        sha256=_B32,
    ),
    CacheFile(
        path="clip_model/ViT-L-14.pt",
        url=f"{_OPENAI}/{_L14}/ViT-L-14.pt",
        megabytes=933.0,
        licence="MIT",
        dimensions=("aesthetic_quality",),
        sha256=_L14,
    ),
    CacheFile(
        path="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth",
        megabytes=0.004,
        licence="MIT",
        dimensions=("aesthetic_quality",),
    ),
    CacheFile(
        path="amt_model/amt-s.pth",
        url="https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
        megabytes=12.0,
        licence="CC BY-NC 4.0",
        dimensions=("motion_smoothness",),
    ),
    CacheFile(
        path="raft_model/models/raft-things.pth",
        url="https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
        megabytes=21.0,
        licence="BSD-3-Clause",
        dimensions=("dynamic_degree",),
    ),
    CacheFile(
        path="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        url="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
        "musiq_spaq_ckpt-358bb6af.pth",
        megabytes=109.0,
        licence="as pyiqa: non-commercial",
        dimensions=("imaging_quality",),
        sha256="358bb6af",
    ),
    CacheFile(
        path="umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        url=f"{_VBENCH}/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        megabytes=1214.0,
        licence="not stated with the file; see OpenGVLab/unmasked_teacher",
        dimensions=("human_action",),
    ),
    CacheFile(
        path="ViCLIP/ViClip-InternVid-10M-FLT.pth",
        url=f"{_VBENCH}/ViClip-InternVid-10M-FLT.pth",
        megabytes=1711.0,
        licence="MIT",
        dimensions=_VICLIP,
    ),
    CacheFile(
        path="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
        url="https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
        megabytes=1.4,
        licence="MIT",
        dimensions=_VICLIP,
        sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    CacheFile(
        path="caption_model/tag2text_swin_14m.pth",
        url="https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
        megabytes=4480.0,
        licence="Apache-2.0",
        dimensions=("scene",),
    ),
    CacheFile(
        path="grit_model/grit_b_densecap_objectdet.pth",
        url=f"{_VBENCH}/grit_b_densecap_objectdet.pth",
        megabytes=835.0,
        licence="not stated with the file; see JialianW/GRiT",
        dimensions=_GRIT,
    ),
    _bert("config.json", 0.001, ("scene", *_GRIT)),
    _bert("tokenizer_config.json", 0.001, ("scene", *_GRIT)),
    _bert("vocab.txt", 0.2, ("scene", *_GRIT)),
    _bert("model.safetensors", 440.0, ("scene",)),
)


def cache_folder() -> Path:
    """``$VBENCH_CACHE_DIR``, else ``~/.cache/vbench``, as the package has it."""
    given = os.environ.get("VBENCH_CACHE_DIR")
    return Path(given) if given else Path.home() / ".cache" / "vbench"


def files_of(dimensions: Iterable[str] | None = None) -> list[CacheFile]:
    """The files that the dimensions need; all by default."""
    wanted = None if dimensions is None else set(dimensions)
    return [file for file in FILES if wanted is None or wanted & set(file.dimensions)]


def lacking(dimension: str, folder: Path) -> list[CacheFile]:
    """Those of a dimension's files that are not below ``folder``."""
    return [file for file in files_of([dimension]) if not (folder / file.path).is_file()]
