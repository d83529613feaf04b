"""Native scorers against the unmodified upstream package: same h264 files, same random weights.

Runs where ``vbench`` 0.1.5, torchvision, timm and decord can be imported; elsewhere it is skipped.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evalharness.api import Prompt, Sample
from evalharness.native import base
from evalharness.native.aesthetic_quality import AestheticQuality
from evalharness.native.background_consistency import BackgroundConsistency
from evalharness.native.dynamic_degree import DynamicDegree
from evalharness.native.subject_consistency import SubjectConsistency
from evalharness.native.temporal_flickering import steadiness
from evalharness.video import read_video, write_video

NEEDED = ("vbench", "torchvision", "timm", "decord", "tqdm", "scipy")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"upstream cannot be imported: no {', '.join(LACKING)}"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)
CLIPS = [(6, 136, 136, 8), (6, 136, 240, 16), (5, 240, 136, 24), (6, 130, 150, 8)]


class Attributes(dict[str, Any]):
    """What easydict gives."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.fixture(scope="module")
def upstream(torchvision_operators: None) -> dict[str, types.ModuleType]:
    """Modules of upstream."""
    for name in ("clip", "easydict"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].EasyDict = Attributes  # type: ignore[attr-defined]
    names = ("temporal_flickering", "dynamic_degree", "subject_consistency", "background_consistency")
    return {name: importlib.import_module(f"vbench.{name}") for name in (*names, "aesthetic_quality")}


class Encoder:
    """The part of CLIP that upstream calls."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def encode_image(self, images: torch.Tensor) -> Any:
        with torch.no_grad():
            return self.network(images)

    def eval(self) -> Encoder:
        return self


@pytest.fixture(params=CLIPS, ids=lambda c: "x".join(map(str, c)))
def path(request: pytest.FixtureRequest, tmp_path: Path, moving: Any) -> Path:
    frames, height, width, fps = request.param
    write_video(tmp_path / "v.mp4", moving(frames, height, width), fps)
    return tmp_path / "v.mp4"


def test_flickering(upstream: dict[str, Any], path: Path) -> None:
    expected = upstream["temporal_flickering"].cal_score(str(path))
    assert steadiness(read_video(path)) == pytest.approx(expected, abs=1e-7)


def test_consistencies(
    upstream: dict[str, Any], path: Path, folder: Path, networks: dict[str, nn.Module]
) -> None:
    dino, clip = networks["dino-vitb16"], Encoder(networks["clip-vit-b32"])
    expected, _ = upstream["subject_consistency"].subject_consistency(dino, [str(path)], "cpu", False)
    found = SubjectConsistency(folder=folder).score(read_video(path), SAMPLE)
    assert found == pytest.approx(expected, abs=1e-6)
    expected, _ = upstream["background_consistency"].background_consistency(
        clip, None, [str(path)], "cpu", False
    )
    found = BackgroundConsistency(folder=folder).score(read_video(path), SAMPLE)
    assert found == pytest.approx(expected, abs=1e-6)


def test_aesthetics(
    upstream: dict[str, Any], path: Path, folder: Path, networks: dict[str, nn.Module]
) -> None:
    head, clip = networks["aesthetic-linear"], Encoder(networks["clip-vit-l14"])
    expected, _ = upstream["aesthetic_quality"].laion_aesthetic(head, clip, [str(path)], "cpu")
    assert AestheticQuality(folder=folder).score(read_video(path), SAMPLE) == pytest.approx(
        expected, abs=1e-6
    )


def test_dynamic_degree(
    upstream: dict[str, Any], path: Path, folder: Path, networks: dict[str, nn.Module]
) -> None:
    module = upstream["dynamic_degree"]
    state = dict(networks["raft-things"].state_dict())
    state |= {k.replace("downsample.1", "norm3"): v for k, v in state.items() if ".downsample.1." in k}
    flow = module.RAFT(Attributes(small=False, mixed_precision=False, alternate_corr=False)).eval()
    lacking = flow.load_state_dict(state, strict=False)
    assert not lacking.unexpected_keys
    assert all("num_batches_tracked" in key for key in lacking.missing_keys)
    judge = module.DynamicDegree.__new__(module.DynamicDegree)
    judge.model, judge.device = flow, "cpu"
    strengths: list[float] = []
    plain = judge.check_move
    judge.check_move = lambda scores: (strengths.extend(scores), plain(scores))[1]
    dynamic = judge.infer(str(path))
    details = DynamicDegree(folder=folder).details(read_video(path), SAMPLE)
    np.testing.assert_allclose(details["strengths"], strengths, rtol=1e-6)
    assert details["dynamic"] is dynamic


def test_the_published_sizes_are_those_of_timm_and_torchvision(upstream: dict[str, Any]) -> None:
    """DINO's names and shapes are timm's ViT-B/16; RAFT's parameters as many as torchvision's."""
    timm = importlib.import_module("timm")
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    ours = base._build("dino-vitb16").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    raft = importlib.import_module("torchvision.models.optical_flow").raft_large(weights=None)
    count = sum(parameter.numel() for parameter in raft.parameters())
    assert count == sum(parameter.numel() for parameter in base._build("raft-things").parameters())
