"""Native VBench scorers against frame-by-frame arithmetic written down from VBench's description.

Networks have random weights: of the published size where that is cheap, else of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evalharness.api import Prompt, Sample, Skip, Video
from evalharness.native import base
from evalharness.native.aesthetic_quality import AestheticQuality
from evalharness.native.background_consistency import BackgroundConsistency
from evalharness.native.base import NativeMetric
from evalharness.native.dynamic_degree import DynamicDegree
from evalharness.native.flow import pair_strengths
from evalharness.native.raft import Raft
from evalharness.native.subject_consistency import SubjectConsistency
from evalharness.native.temporal_flickering import TemporalFlickering, steadiness
from evalharness.native.vit import ClipImage, Dino
from evalharness.native.weights import store
from evalharness.video import decode_video, encode_video
from tests.evalharness.native.openai_names import transformers_blocks

Clip = Callable[..., np.ndarray]
SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)


# --- temporal flickering


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50)])
def test_flickering_is_the_mean_difference_of_the_file_s_frames(
    tmp_path: Path, size: tuple[int, int], moving: Clip
) -> None:
    """One pair at a time, float32, from OpenCV's reader: as VBench says it."""
    data = encode_video(moving(7, *size), 8)
    (tmp_path / "v.mp4").write_bytes(data)
    capture, seen = cv2.VideoCapture(str(tmp_path / "v.mp4")), []
    while (step := capture.read())[0]:
        seen.append(step[1].astype(np.float32))
    means = [np.abs(seen[t + 1] - seen[t]).mean() for t in range(len(seen) - 1)]
    expected = (255.0 - float(np.mean(means))) / 255.0
    assert steadiness(decode_video(data)) == pytest.approx(expected, abs=1e-5)


def test_flickering_of_known_pictures() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    assert steadiness(Video(frames, 8.0)) == 1.0
    frames[1] = 255
    assert steadiness(Video(frames, 8.0)) == 0.0
    frames[1] = 0
    frames[2, :2] = 102  # half of one of two differences is 102 of 255: a tenth
    assert steadiness(Video(frames, 8.0)) == pytest.approx(0.9)


# --- the two consistencies


def resized(image: np.ndarray, mode: str) -> torch.Tensor:
    """[1, 3, h, w] float 0..255, shorter side 224, no antialiasing, by torch's own resize."""
    height, width = image.shape[:2]
    small = min(height, width)
    size = (int(224 * height / small), int(224 * width / small))
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return functional.interpolate(tensor, size, mode=mode)


def normal(image: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def dino_picture(image: np.ndarray) -> torch.Tensor:
    return normal(resized(image, "bilinear"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def clip_picture(image: np.ndarray) -> torch.Tensor:
    whole = resized(image, "bicubic")
    top, left = round((whole.shape[2] - 224) / 2), round((whole.shape[3] - 224) / 2)
    centre = whole[..., top : top + 224, left : left + 224]
    return normal(centre, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def chained(features: list[torch.Tensor]) -> float:
    """VBench's sum, one frame after the other."""
    unit = [functional.normalize(feature, dim=-1) for feature in features]
    total = 0.0
    for t in range(1, len(unit)):
        before = max(0.0, functional.cosine_similarity(unit[t - 1], unit[t]).item())
        first = max(0.0, functional.cosine_similarity(unit[0], unit[t]).item())
        total += (before + first) / 2
    return total / (len(unit) - 1)


@pytest.mark.parametrize("size", [(136, 200), (200, 136), (144, 144), (131, 97)])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_consistencies_equal_one_frame_at_a_time(
    folder: Path,
    networks: dict[str, nn.Module],
    size: tuple[int, int],
    batch: int,
    video: Callable[..., Video],
) -> None:
    clip = video(frames=5, height=size[0], width=size[1])
    for metric, name, picture in (
        (SubjectConsistency, "dino-vitb16", dino_picture),
        (BackgroundConsistency, "clip-vit-b32", clip_picture),
    ):
        with torch.no_grad():
            expected = chained([networks[name](picture(frame)) for frame in clip.frames])
        score = metric(folder=folder, batch=batch).score(Video(clip.frames, 8.0), SAMPLE)
        assert 0.5 < expected < 0.99999
        assert score == pytest.approx(expected, abs=1e-5)


def test_still_videos_are_wholly_consistent(folder: Path, moving: Clip) -> None:
    frames = np.repeat(moving(1), 3, axis=0)
    for metric in (SubjectConsistency, BackgroundConsistency):
        assert metric(folder=folder).score(Video(frames, 8.0), SAMPLE) == pytest.approx(1.0, abs=1e-6)


def test_dino_spreads_its_positions_by_the_scale_with_a_tenth_added(fill: Callable[..., nn.Module]) -> None:
    """Row 0 of a 14 x 24 field by hand: sampled at (j + 1/2) / (24.1 / 14) - 1/2 by Keys' cubic, a = -3/4."""
    dino = fill(Dino(width=64, depth=2, heads=2), 5)
    table = dino.pos_embed[0, 1:].detach().view(14, 14, -1).double().numpy()

    def weights(at: float) -> list[tuple[int, float]]:
        base_, a, found = math.floor(at), -0.75, []
        for i in range(base_ - 1, base_ + 3):
            d = abs(at - i)
            w = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            found.append((min(max(i, 0), 13), w))
        return found

    def sampled(row: int, column: int) -> np.ndarray:
        y, x = (row + 0.5) * 14 / 14.1 - 0.5, (column + 0.5) * 14 / 24.1 - 0.5
        return sum(wy * wx * table[i, j] for i, wy in weights(y) for j, wx in weights(x))

    with torch.no_grad():
        spread = dino._positions(14, 24, square=False)[0, 1:].view(14, 24, -1).numpy()
    for row, column in ((0, 0), (3, 11), (13, 23), (7, 20)):
        np.testing.assert_allclose(spread[row, column], sampled(row, column), atol=1e-6)
    assert dino._positions(14, 14, square=True) is dino.pos_embed


def test_dino_equals_transformers(fill: Callable[..., nn.Module]) -> None:
    """Square input, where no position is interpolated; q, k and v are one matrix here, three there."""
    transformers = pytest.importorskip("transformers")
    dino = fill(Dino(width=64, depth=2, heads=2), 6)
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, layer_norm_eps=1e-6
    )
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(vit_names(dino.state_dict()), strict=True)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images).last_hidden_state[:, 0].numpy()
        np.testing.assert_allclose(dino(images).numpy(), expected, atol=1e-5)


def vit_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
    }
    for end in ("weight", "bias"):
        renamed[f"embeddings.patch_embeddings.projection.{end}"] = state[f"patch_embed.proj.{end}"]
        renamed[f"layernorm.{end}"] = state[f"norm.{end}"]
        for i in range(2):
            to, of = f"layers.{i}", f"blocks.{i}"
            for letter, part in zip("qkv", state[f"{of}.attn.qkv.{end}"].chunk(3), strict=True):
                renamed[f"{to}.attention.{letter}_proj.{end}"] = part
            renamed[f"{to}.attention.o_proj.{end}"] = state[f"{of}.attn.proj.{end}"]
            renamed[f"{to}.layernorm_before.{end}"] = state[f"{of}.norm1.{end}"]
            renamed[f"{to}.layernorm_after.{end}"] = state[f"{of}.norm2.{end}"]
            for n in (1, 2):
                renamed[f"{to}.mlp.fc{n}.{end}"] = state[f"{of}.mlp.fc{n}.{end}"]
    return renamed


def test_clip_equals_transformers(fill: Callable[..., nn.Module]) -> None:
    """OpenAI's tower as transformers has it, quick GELU included."""
    transformers = pytest.importorskip("transformers")
    clip = fill(ClipImage(width=64, depth=2, heads=2, embedding=24), 7)
    config = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        hidden_act="quick_gelu",
    )
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict(transformers_names(clip.state_dict()), strict=False)
    keys = set(dict(theirs.named_parameters()))
    assert keys == set(transformers_names(clip.state_dict()))
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(clip(images).numpy(), theirs(images).image_embeds.numpy(), atol=1e-5)


def transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "vision_model.embeddings.class_embedding": state["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "visual_projection.weight": state["proj"].T,
    }
    for end in ("weight", "bias"):
        renamed[f"vision_model.pre_layrnorm.{end}"] = state[f"ln_pre.{end}"]
        renamed[f"vision_model.post_layernorm.{end}"] = state[f"ln_post.{end}"]
    return renamed | transformers_blocks(state, "vision_model", 2)


# --- aesthetic quality


@pytest.mark.parametrize("batch", [1, 4])
def test_aesthetics_equal_one_frame_at_a_time(
    folder: Path, networks: dict[str, nn.Module], batch: int, video: Callable[..., Video]
) -> None:
    clip, grades = video(frames=5), []
    with torch.no_grad():
        for frame in clip.frames:
            feature = functional.normalize(networks["clip-vit-l14"](clip_picture(frame)), dim=-1)
            grades.append(networks["aesthetic-linear"](feature).item() / 10)
    score = AestheticQuality(folder=folder, batch=batch).score(clip, SAMPLE)
    assert score == pytest.approx(sum(grades) / 5, abs=1e-6)


# --- what all share


METRICS = [TemporalFlickering, SubjectConsistency, BackgroundConsistency, DynamicDegree]


@pytest.mark.parametrize("metric", METRICS)
def test_one_frame_is_a_skip(folder: Path, metric: type[NativeMetric], video: Callable[..., Video]) -> None:
    with pytest.raises(Skip, match="at least 2 frames"):
        metric(folder=folder).score(video(frames=1), SAMPLE)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "metric",
    [TemporalFlickering, SubjectConsistency, BackgroundConsistency, AestheticQuality, DynamicDegree],
)
def test_missing_weights_are_a_skip_that_says_what_to_do(
    tmp_path: Path, metric: type[NativeMetric], video: Callable[..., Video]
) -> None:
    lacking = metric(folder=tmp_path)
    assert lacking.missing == list(metric.weights)
    assert {file.sha256 for file in lacking.info.weights} == {"absent"}
    with pytest.raises(Skip, match=rf"{metric.weights[0]} are missing.*evalharness\.native\.convert"):
        lacking.score(video(), SAMPLE)  # type: ignore[attr-defined]


def test_weights_that_come_later_change_what_is_declared(
    tmp_path: Path, networks: dict[str, nn.Module]
) -> None:
    before = SubjectConsistency(folder=tmp_path).info
    store("dino-vitb16", dict(networks["dino-vitb16"].state_dict()), tmp_path)
    assert SubjectConsistency(folder=tmp_path).info != before
    assert SubjectConsistency(folder=tmp_path).missing == []


def test_half_precision_is_said_and_near(folder: Path, moving: Clip) -> None:
    clip = moving(4)
    full = SubjectConsistency(folder=folder)
    half = SubjectConsistency(folder=folder, precision="bfloat16")
    assert full.info.faithful_to == "vbench"
    assert half.info.faithful_to == "vbench, in bfloat16"
    exact, near = full.score(Video(clip, 8.0), SAMPLE), half.score(Video(clip, 8.0), SAMPLE)
    assert near == pytest.approx(exact, abs=2e-2)
    assert near != exact


def test_two_precisions_do_not_share_features(folder: Path, video: Callable[..., Video]) -> None:
    one = video(frames=3)
    alone = SubjectConsistency(folder=folder).score(Video(one.frames, 8.0), SAMPLE)
    SubjectConsistency(folder=folder, precision="bfloat16").score(one, SAMPLE)
    assert SubjectConsistency(folder=folder).score(one, SAMPLE) == alone


@pytest.mark.parametrize(
    ("wrong", "says"), [({"precision": "int8"}, "float32"), ({"batch": 0}, "at least 1")]
)
def test_wrong_options_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TemporalFlickering(**wrong)


def test_frames_are_sent_to_a_device_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """``meta`` stands for a GPU: a device of its own, without memory."""
    video = Video(np.zeros((2, 4, 4, 3), np.uint8), 8.0)
    one, other = SubjectConsistency(device="meta"), DynamicDegree(device="meta")
    sent = one.frames(video)
    assert isinstance(sent, torch.Tensor)
    assert (sent.device.type, sent.shape, sent.dtype) == ("meta", (2, 4, 4, 3), torch.uint8)
    assert other.frames(video) is sent
    assert SubjectConsistency().frames(video) is video.frames
    monkeypatch.setattr(base, "ON_GPU_BYTES", 95)
    assert one.frames(video) is video.frames  # 96 bytes


def test_golden_values(folder: Path, moving: Clip, networks: dict[str, nn.Module]) -> None:
    """Of the seeded networks on one clip, as computed when upstream's own code agreed with them."""
    clip = moving(4)
    scores = {
        metric.dimension: metric(folder=folder).score(Video(clip, 8.0), SAMPLE)
        for metric in (SubjectConsistency, BackgroundConsistency, AestheticQuality)
    }
    scores["temporal_flickering"] = steadiness(Video(clip, 8.0))
    assert scores == pytest.approx(GOLDEN, rel=1e-4)
    network = networks["raft-things"]
    assert isinstance(network, Raft)
    found = pair_strengths(network, clip, [(0, 1), (0, 3)], share=0.05, batch=2, device="cpu")
    assert found == pytest.approx([72.356596, 72.841155], rel=1e-4)


GOLDEN = {
    "temporal_flickering": 0.94514970,
    "subject_consistency": 0.99544676,
    "background_consistency": 0.97339539,
    "aesthetic_quality": 0.01539854,
}
