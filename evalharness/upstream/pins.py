"""Versions with which the package ``vbench`` works on Python 3.11 (each was run; see docs/protocols.md).

``vbench`` itself asks for transformers 4.33.2 and pyiqa 0.1.10, which pull in much that is dead; so it
is installed without its requirements, and these stand in for them.
"""

from __future__ import annotations

__all__ = [
    "DETECTRON2",
    "LVIS",
    "NEEDS_DETECTRON2",
    "PINS",
    "WITHOUT_DEPENDENCIES",
    "WITH_DETECTRON2",
]

PINS = (
    "torch==2.13.0",
    "numpy==1.26.4",
    "setuptools==80.9.0",
    "timm==1.0.12",
    "openai-clip==1.0.1",
    "decord==0.6.0",
    "opencv-python-headless==4.11.0.86",
    "transformers==4.51.3",
    "tokenizers==0.21.4",
    "huggingface_hub==0.36.0",
    "fairscale==0.4.13",
    "fvcore==0.1.5.post20221221",
    "iopath==0.1.10",
    "omegaconf==2.3.0",
    "scipy==1.16.3",
    "pandas==2.3.3",
    "scikit-image==0.26.0",
    "pillow==13.0.0",
    "boto3",
    "easydict",
    "einops",
    "imageio",
    "ftfy",
    "regex",
    "tqdm",
    "pyyaml",
    "requests",
    "safetensors",
    "addict",
    "future",
    "yapf",
    "tensorboard",
)
WITHOUT_DEPENDENCIES = ("torchvision==0.28.0", "vbench==0.1.5", "pyiqa==0.1.15.post2")
NEEDS_DETECTRON2 = ("object_class", "multiple_objects", "color", "spatial_relationship")
# Built from source, as it is not on PyPI; beside it what it and GRiT import, its own bounds being older.
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2@02b5c4e"
WITH_DETECTRON2 = (
    "cloudpickle==3.1.2",
    "hydra-core==1.3.8",
    "matplotlib==3.11.2",
    "ninja==1.13.2",
    "pycocotools==2.0.11",
    "tabulate==0.10.0",
    "termcolor==3.3.0",
    "wheel==0.48.0",
    "yacs==0.1.8",
)
# What detectron2 imports and GRiT does not use; it asks for an OpenCV with windows.
LVIS = "lvis==0.5.3"
