"""Action, style and agreement: against other libraries and formulas by hand, on small random networks."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import models
from torch import nn
from torch.nn import functional

from evalharness.api import Prompt, Sample, Skip, Video
from evalharness.native import convert, weights
from evalharness.native.antialias import antialiased
from evalharness.native.appearance_style import AppearanceStyle
from evalharness.native.base import NativeMetric
from evalharness.native.dynamic_degree import DynamicDegree
from evalharness.native.human_action import HumanAction, kinetics_labels
from evalharness.native.inputs import action_input, clip_antialiased_input, clip_bytes_input, planes
from evalharness.native.overall_consistency import OverallConsistency
from evalharness.native.subject_consistency import SubjectConsistency
from evalharness.native.temporal_style import TemporalStyle
from evalharness.native.text import ClipText
from evalharness.native.tokens import MERGES, ClipTokens, cleaned
from evalharness.native.umt import Umt, position_table
from evalharness.native.viclip import ViClip, ViClipVideo
from evalharness.native.vit import ClipImage
from evalharness.native.weights import store
from evalharness.stages.score_rows import checked
from evalharness.upstream import metrics as upstream
from tests.evalharness.native.openai_names import OPENAI, transformers_blocks

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """As many merges as CLIP has, of letters drawn at random; each can be reached from those before."""
    drawn = random.Random(5)
    starts, ends = list("abcdefghij"), [f"{letter}</w>" for letter in "abcdefghij"]
    found: dict[str, tuple[str, str]] = {}
    while len(found) < MERGES:
        pair = (drawn.choice(starts), drawn.choice(starts if drawn.random() < 0.5 else ends))
        if (word := "".join(pair)) not in found:
            found[word] = pair
            kind = ends if word.endswith("</w>") else starts
            if len(kind) < 400:
                kind.append(word)
    return list(found.values())


@pytest.fixture(scope="module")
def merges(pairs: list[tuple[str, str]]) -> bytes:
    return gzip.compress("\n".join(["#version", *map(" ".join, pairs), "more below"]).encode())


@pytest.fixture
def shelf(folder: Path, merges: bytes) -> Path:
    """``folder`` with a list of merges."""
    store("clip-bpe", {"bytes": torch.frombuffer(bytearray(merges), dtype=torch.uint8)}, folder)
    return folder


def asked(text: str = "", **labels: Any) -> Sample:
    return Sample(prompt=Prompt(id="0000", text=text, dimensions=(), labels=labels), index=0, seed=0)


# ---- tokens


def test_merging_equals_the_library_tokenizers(pairs: list[tuple[str, str]], merges: bytes) -> None:
    ours = ClipTokens(merges)
    known = {word: number for word, number in ours._numbers.items() if not word.startswith("<|")}
    theirs = models.BPE(vocab=known, merges=pairs, end_of_word_suffix="</w>")
    drawn = random.Random(6)
    for _ in range(300):
        word = "".join(drawn.choices("abcdefghijkz", k=drawn.randint(1, 14)))
        assert ours.encode(word) == [token.id for token in theirs.tokenize(word)], word


def test_rows_by_hand(merges: bytes) -> None:
    ours = ClipTokens(merges)
    assert ours.row("", 5) == [49406, 49407, 0, 0, 0]
    # '!' is the first visible byte; its form at a word's end comes 256 later.
    assert ours.row("!", 5) == [49406, 256, 49407, 0, 0]
    assert ours.row("! ! ! ! !", 5) == [49406, 256, 256, 256, 49407]
    assert ours.encode("<|startoftext|>") == [49406]
    assert len(ours.encode("1234")) == 4  # digits stand alone


def test_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cleaned("  A &amp;amp; B\tc\n") == "a & b c"
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert cleaned("It's PLAIN") == "it's plain"
    with pytest.raises(Skip, match="pip install ftfy"):
        cleaned("façade")


@pytest.mark.parametrize("data", [b"plain", gzip.compress(b"#v\na b\nc d\n")], ids=["no gzip", "short"])
def test_another_list_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not CLIP's list of merges"):
        ClipTokens(data)


# ---- networks


def test_clip_s_text_equals_transformers(fill: Callable[..., nn.Module]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = fill(ClipText(width=64, depth=2, heads=2, embedding=24, context=20, vocabulary=300), 3)
    config = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        hidden_act="quick_gelu",
        eos_token_id=299,
        bos_token_id=298,
        pad_token_id=0,
    )
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    theirs.load_state_dict(text_names(ours.state_dict()), strict=True)
    tokens = torch.zeros(3, 20, dtype=torch.int64)
    for row, length in enumerate((2, 9, 20)):
        tokens[row, :length] = torch.randint(1, 290, (length,), generator=torch.Generator().manual_seed(row))
        tokens[row, length - 1] = 299
    with torch.no_grad():
        np.testing.assert_allclose(ours(tokens), theirs(tokens).text_embeds, atol=1e-5)


def text_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
    }
    for end in ("weight", "bias"):
        renamed[f"text_model.final_layer_norm.{end}"] = state[f"ln_final.{end}"]
    return renamed | transformers_blocks(state, "text_model", 2)


def test_umt_equals_videomae_with_its_positions(fill: Callable[..., nn.Module]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = fill(Umt(width=64, depth=2, heads=2, classes=10), 4)
    with torch.no_grad():
        ours.pos_embed.copy_(position_table(64))
        for block in ours.blocks:
            block.attn.qkv.bias[64:128] = 0  # VideoMAE's keys have none
    config = transformers.VideoMAEConfig(
        num_frames=16,
        tubelet_size=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        layer_norm_eps=1e-6,
        use_mean_pooling=True,
        num_labels=10,
    )
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    theirs.videomae.embeddings.position_embeddings = position_table(64)
    theirs.load_state_dict(videomae_names(ours.state_dict()), strict=True)
    clip = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(ours(clip), theirs(clip[None]).logits[0], atol=2e-5)


def videomae_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "videomae.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"][
            :, :, None
        ],
        "videomae.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
    }
    for end in ("weight", "bias"):
        renamed[f"fc_norm.{end}"] = state[f"fc_norm.{end}"]
        renamed[f"classifier.{end}"] = state[f"head.{end}"]
    for i in range(2):
        to, of = f"videomae.encoder.layer.{i}", f"blocks.{i}"
        q, k, v = state[f"{of}.attn.qkv.weight"].chunk(3)
        for name, part in (("query", q), ("key", k), ("value", v)):
            renamed[f"{to}.attention.attention.{name}.weight"] = part
        q, _, v = state[f"{of}.attn.qkv.bias"].chunk(3)
        renamed |= {
            f"{to}.attention.attention.{name}.bias": part for name, part in (("query", q), ("value", v))
        }
        for end in ("weight", "bias"):
            renamed[f"{to}.attention.output.dense.{end}"] = state[f"{of}.attn.proj.{end}"]
            renamed[f"{to}.layernorm_before.{end}"] = state[f"{of}.norm1.{end}"]
            renamed[f"{to}.layernorm_after.{end}"] = state[f"{of}.norm2.{end}"]
            renamed[f"{to}.intermediate.dense.{end}"] = state[f"{of}.mlp.fc1.{end}"]
            renamed[f"{to}.output.dense.{end}"] = state[f"{of}.mlp.fc2.{end}"]
    return renamed


def test_viclip_of_one_frame_is_clip(fill: Callable[..., nn.Module]) -> None:
    sizes = {"width": 64, "depth": 2, "heads": 2, "patch": 14, "embedding": 24}
    clip, video = fill(ClipImage(**sizes), 8), ViClipVideo(**sizes, frames=1)
    video.load_state_dict({**clip.state_dict(), "temporal_embedding": torch.zeros(1, 64)})
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(video(image), clip(image)[0], atol=1e-5)


def test_viclip_sees_the_order_of_frames_by_their_embedding_alone(networks: dict[str, Any]) -> None:
    video = networks["viclip-l14"].video
    clip = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    embedding = video.temporal_embedding.data.clone()
    with torch.no_grad():
        assert (video(clip) - video(clip.flip(0))).abs().max() > 1e-4
        try:
            video.temporal_embedding.zero_()
            np.testing.assert_allclose(video(clip), video(clip.flip(0)), atol=1e-5)
        finally:
            video.temporal_embedding.copy_(embedding)


# ---- inputs


def cut(image: np.ndarray) -> np.ndarray:
    top, left = round((image.shape[0] - 224) / 2), round((image.shape[1] - 224) / 2)
    return image[top : top + 224, left : left + 224]


@pytest.mark.parametrize("size", [(136, 200), (200, 136), (150, 150), (300, 422)])
def test_pictures_as_each_network_wants_them(
    moving: Callable[..., np.ndarray], size: tuple[int, int]
) -> None:
    [frame] = moving(1, *size)
    small = min(size)
    for side, mean, std, resize, made in (
        (224, CLIP_MEAN, CLIP_STD, "pillow", clip_antialiased_input(frame[None])),
        (224, CLIP_MEAN, CLIP_STD, "bytes", clip_bytes_input(planes(frame[None]))),
        (256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "opencv", action_input(frame[None])),
    ):
        height, width = (int(side * length / small) for length in size)
        if resize == "pillow":
            resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        elif resize == "opencv":
            resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            floats = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
            grown = functional.interpolate(floats, (height, width), mode="bicubic")[0].permute(1, 2, 0)
            resized = np.rint(np.clip(grown.numpy(), 0, 255))
        expected = (cut(resized) / 255.0 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(made[0].permute(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(136, 200), (300, 224), (480, 832), (131, 777), (460, 225), (600, 250)])
@pytest.mark.parametrize("extreme", [False, True])
def test_resizing_on_a_gpu_gives_pillow_s_bytes(size: tuple[int, int], extreme: bool) -> None:
    """Noise, and noise of black and white alone, whose overshoot is cut. Pillow 13 lowers tall ones first."""
    frames = np.random.default_rng(3).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    frames = np.where(frames > 127, 255, 0).astype(np.uint8) if extreme else frames
    height, width = (int(224 * length / min(size)) for length in size)
    expected = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        for frame in frames
    ]
    made = antialiased(torch.from_numpy(frames), (height, width))
    assert made is not None and np.array_equal(made.numpy(), expected)


def test_a_pillow_that_resizes_otherwise_is_not_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, _: resize(self, size, Image.Resampling.BOX))
    assert antialiased(torch.zeros(1, 50, 70, 3, dtype=torch.uint8), (20, 28)) is None


# ---- scores


def test_style_is_the_mean_of_the_frames_logits(
    shelf: Path, networks: dict[str, nn.Module], moving: Callable[..., np.ndarray], merges: bytes
) -> None:
    frames = moving(5)
    tokens = torch.tensor([ClipTokens(merges).row("abc def", 77)])
    with torch.no_grad():
        text = functional.normalize(networks["clip-vit-b32-text"](tokens), dim=-1)
        cosines = []
        for frame in frames:
            image = functional.normalize(
                networks["clip-vit-b32"](clip_antialiased_input(frame[None])), dim=-1
            )
            cosines.append((image @ text.T).item())
        scale = networks["clip-vit-b32-text"].logit_scale.exp().item() / 100
    expected = sum(cosines) / 5 * scale
    for batch in (1, 2, 16):
        metric = AppearanceStyle(folder=shelf, batch=batch)
        assert metric.score(Video(frames, 8.0), asked(appearance_style="ABC  def")) == pytest.approx(
            expected, abs=1e-7
        )
    with pytest.raises(Skip, match="names no appearance_style"):
        metric.score(Video(frames, 8.0), asked("abc"))


@pytest.mark.cuda
@pytest.mark.parametrize("metric", [AppearanceStyle, OverallConsistency, DynamicDegree, SubjectConsistency])
def test_a_gpu_gives_the_cpu_s_value(
    shelf: Path,
    moving: Callable[..., np.ndarray],
    metric: type[NativeMetric],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without TF32, as in the harness; of a vote the flow that is behind it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    frames, sample = moving(5, 136, 240), asked("a bad cafe", appearance_style="abc def")
    values = []
    for device in ("cpu", "cuda"):
        judge: Any = metric(folder=shelf, device=device, batch=3)
        video = Video(frames, 8.0)
        found = (
            judge.details(video, sample)["strengths"]
            if metric is DynamicDegree
            else judge.score(video, sample)
        )
        values.append(found)
    assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("frames", [3, 8, 21])
def test_agreement_is_a_cosine_of_eight_frames_and_the_prompt(
    shelf: Path, networks: dict[str, Any], moving: Callable[..., np.ndarray], merges: bytes, frames: int
) -> None:
    shown = moving(frames)
    middles = {3: [0, 1, 2, 2, 2, 2, 2, 2], 8: list(range(8)), 21: [0, 3, 5, 8, 11, 13, 16, 19]}[frames]
    network: ViClip = networks["viclip-l14"]
    with torch.no_grad():
        video = network.video(clip_bytes_input(planes(shown[middles])))
        text = network.text(torch.tensor([ClipTokens(merges).row("a bad cafe", 32)]))[0]
    expected = functional.cosine_similarity(video, text, dim=0).item()
    for metric in (OverallConsistency, TemporalStyle):
        found = metric(folder=shelf).score(Video(shown, 8.0), asked("a bad cafe"))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [OverallConsistency, TemporalStyle, AppearanceStyle])
def test_a_negative_cosine_is_a_score(
    shelf: Path, networks: dict[str, Any], moving: Callable[..., np.ndarray], metric: Any
) -> None:
    """With the text's feature turned round the cosine changes its sign and nothing else."""
    video, sample = Video(moving(4), 8.0), asked("a bad cafe", appearance_style="a bad cafe")
    plain = checked(metric(folder=shelf), metric(folder=shelf).score(video, sample))
    for name, inner in (("viclip-l14", "text."), ("clip-vit-b32-text", "")):
        turned = dict(networks[name].state_dict())
        turned[f"{inner}text_projection"] = -turned[f"{inner}text_projection"]
        store(name, turned, shelf)
    scorer = metric(folder=shelf)
    found = checked(scorer, scorer.score(Video(moving(4), 8.0), sample))
    assert found == pytest.approx(-plain, abs=1e-7)
    assert min(found, plain) < -1e-4
    assert getattr(upstream, metric.__name__)().info.low == scorer.info.low == -1.0


@pytest.fixture
def guitar(shelf: Path, networks: dict[str, nn.Module]) -> Path:
    """The classifier is sure of four classes and, less, of one more; all else is unlikely."""
    state = {key: tensor.clone() for key, tensor in networks["umt-l16"].state_dict().items()}
    state["head.weight"].zero_()
    state["head.bias"].fill_(-5.0)
    names = ("playing guitar", "marching", "dodgeball", "rock climbing", "riding a bike", "baking cookies")
    for name, logit in zip(names, (4.0, 3.5, 3.0, 2.5, 1.7346, 1.7340), strict=True):
        state["head.bias"][kinetics_labels().index(name)] = logit
    store("umt-l16", state, shelf)
    return shelf


@pytest.mark.parametrize(
    ("action", "seen", "rank"),
    [
        ("playing guitar", True, 1),
        ("Marching", True, 2),
        ("riding a bike", True, 5),  # 0.85000 after rounding
        ("baking cookies", False, 6),
        ("yoga", False, None),
    ],
)
def test_action(
    guitar: Path, moving: Callable[..., np.ndarray], action: str, seen: bool, rank: int | None
) -> None:
    metric, video = HumanAction(folder=guitar), Video(moving(4), 8.0)
    details = metric.details(video, asked(action=action))
    assert details["seen"] is seen and metric.score(video, asked(action=action)) == float(seen)
    assert rank in (None, details["rank"])
    assert details["likeliest"] == "playing guitar"
    assert 0 < details["probability"] < 1
    with pytest.raises(Skip, match="no action of Kinetics-400"):
        metric.score(video, asked(action="juggling planets"))


def test_weights_that_are_missing_are_skips(tmp_path: Path, moving: Callable[..., np.ndarray]) -> None:
    video = Video(moving(4), 8.0)
    for metric, sample in (
        (HumanAction(folder=tmp_path), asked(action="yoga")),
        (AppearanceStyle(folder=tmp_path), asked(appearance_style="oil")),
        (OverallConsistency(folder=tmp_path), asked("a")),
    ):
        with pytest.raises(Skip, match="are missing: get"):
            metric.score(video, sample)
        assert metric.missing == list(metric.weights)


# ---- conversion


def test_published_forms_become_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: Any) -> None:
    """ViCLIP's tensors lie under a key, UMT's biases apart; the list of merges stays as it is."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    video = {f"vision_encoder.{k}": v for k, v in published(networks["viclip-l14"].video).items()}
    video["vision_encoder.temporal_positional_embedding"] = video.pop("vision_encoder.temporal_embedding")[
        None
    ]
    text = {f"text_encoder.{k}": v for k, v in published(networks["viclip-l14"].text).items()}
    (tmp_path / "ViCLIP").mkdir()
    torch.save({"model": {**video, **text, "temp": torch.ones(())}, "step": 3}, tmp_path / "v.pth")
    convert.convert("viclip-l14", tmp_path / "v.pth")
    ours = weights.tensors("viclip-l14")
    assert ours.keys() == networks["viclip-l14"].state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in networks["viclip-l14"].state_dict().items())

    state = dict(networks["umt-l16"].state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, None]
    del state["pos_embed"]
    for i in range(2):
        q, _, v = state.pop(f"blocks.{i}.attn.qkv.bias").chunk(3)
        state |= {f"blocks.{i}.attn.q_bias": q, f"blocks.{i}.attn.v_bias": v}
    torch.save(state, tmp_path / "u.pth")
    convert.convert("umt-l16", tmp_path / "u.pth")
    ours = weights.tensors("umt-l16")
    assert ours.keys() == networks["umt-l16"].state_dict().keys()
    assert torch.equal(ours["pos_embed"], position_table(64))
    assert not ours["blocks.1.attn.qkv.bias"][64:128].any()
    assert torch.equal(ours["blocks.1.attn.qkv.bias"][128:], state["blocks.1.attn.v_bias"])


def published(module: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in module.state_dict().items():
        value = tensor[:, :, None] if key == "conv1.weight" else tensor
        for ours, theirs in OPENAI:
            key = key.replace(ours, theirs)
        state[key] = value
    return state
