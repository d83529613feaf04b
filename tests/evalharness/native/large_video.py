"""Scores one video with small networks and prints how much memory that took, in MB above the start.

python large_video.py VIDEO WEIGHTS
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType

import torch

from evalharness.api import Prompt, Sample
from evalharness.memory import call_memory
from evalharness.native import base
from evalharness.native.aesthetic_quality import AestheticQuality
from evalharness.native.background_consistency import BackgroundConsistency
from evalharness.native.subject_consistency import SubjectConsistency
from evalharness.native.vit import ClipImage, Dino
from evalharness.native.weights import store
from evalharness.video import read_video
from tests.evalharness.native.conftest import SMALL, filled


def main() -> None:
    video_file, folder = map(Path, sys.argv[1:])
    base.SPECS = MappingProxyType(SMALL)
    networks = {
        "dino-vitb16": Dino(**SMALL["dino-vitb16"]),
        "clip-vit-b32": ClipImage(**SMALL["clip-vit-b32"]),
        "clip-vit-l14": ClipImage(**SMALL["clip-vit-l14"]),
        "aesthetic-linear": torch.nn.Linear(24, 1),
    }
    for name, network in networks.items():
        store(name, dict(filled(network, 0).state_dict()), folder)
    sample = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)

    def score() -> None:
        video = read_video(video_file)
        for metric in (SubjectConsistency, BackgroundConsistency, AestheticQuality):
            metric(folder=folder).score(video, sample)

    taken = call_memory(score, "cpu").taken
    assert taken is not None
    print(taken / 2**20)


if __name__ == "__main__":
    main()
