"""Action, style, agreement with the prompt and imaging quality against the unmodified upstream package.

The same h264 files, and small networks built by upstream's own classes, whose random weights go through
our conversion. Runs in the environment that ``evalharness fetch vbench`` makes; elsewhere it is skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from evalharness.api import Prompt, Sample
from evalharness.native import base
from evalharness.native.appearance_style import AppearanceStyle
from evalharness.native.human_action import HumanAction, kinetics_labels
from evalharness.native.imaging_quality import ImagingQuality
from evalharness.native.overall_consistency import OverallConsistency
from evalharness.native.renaming import clip, clip_text, musiq, umt, viclip
from evalharness.native.temporal_style import TemporalStyle
from evalharness.native.tokens import ClipTokens
from evalharness.native.umt import position_table
from evalharness.native.weights import store
from evalharness.protocols.vbench_suite import suite_prompts
from evalharness.video import read_video, write_video

NEEDED = ("vbench", "torchvision", "timm", "decord", "clip", "einops", "ftfy", "pyiqa")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"upstream cannot be imported: no {', '.join(LACKING)}"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
CLIPS = [(6, 136, 136, 8), (21, 136, 240, 16), (20, 240, 136, 24), (16, 130, 150, 8), (3, 256, 300, 8)]
PROMPTS = ["A cat's photo, Van Gogh style, zoom in", "x", "a person walks " * 30]
ODD = [
    "it's I'LL we've 12ab $%&x_",
    "\u00dcn\u00efc\u00f6d\u00e9 \u4f60\u597d",
    "a &amp;amp; b",
    "",
    "\tx\n y",
]


@pytest.fixture(scope="module")
def merges() -> bytes:
    found = importlib.util.find_spec("clip")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()


@pytest.fixture(scope="module")
def upstream(
    torchvision_operators: object, tmp_path_factory: pytest.TempPathFactory, merges: bytes
) -> dict[str, Any]:
    """Upstream looks for the list of merges while it is imported, and would download it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        (cache / "ViCLIP").mkdir()
        (cache / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(merges)
        patch.setenv("VBENCH_CACHE_DIR", str(cache))
        patch.setattr(importlib.import_module("vbench.utils"), "CACHE_DIR", str(cache))
        names = ("overall_consistency", "temporal_style", "appearance_style", "human_action")
        modules: dict[str, Any] = {name: importlib.import_module(f"vbench.{name}") for name in names}
    for name in ("viclip", "viclip_vision", "viclip_text"):
        modules[name] = importlib.import_module(f"vbench.third_party.ViCLIP.{name}")
    modules["umt"] = importlib.import_module("vbench.third_party.umt.models.modeling_finetune")
    modules["clip"] = importlib.import_module("clip.model")
    return modules


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merges: bytes) -> Path:
    """A weights folder with the list of merges, for networks of other than the published sizes."""
    small = {
        "clip-vit-b32": {"width": 128, "depth": 2, "heads": 2, "patch": 32, "embedding": 24},
        "clip-vit-b32-text": {"width": 64, "depth": 2, "heads": 2, "embedding": 24},
        "viclip-l14": {"width": 64, "depth": 2, "heads": 2, "patch": 14, "embedding": 24}
        | {"text_width": 64, "text_depth": 2, "text_heads": 2},
        "umt-l16": {"width": 64, "depth": 2, "heads": 2, "patch": 16, "classes": 400},
    }
    monkeypatch.setattr(base, "SPECS", MappingProxyType({**base.SPECS, **small}))
    base._network.cache_clear()
    folder = tmp_path / "weights"
    store("clip-bpe", {"bytes": torch.frombuffer(bytearray(merges), dtype=torch.uint8)}, folder)
    return folder


@pytest.fixture(params=CLIPS, ids=lambda c: "x".join(map(str, c)))
def path(request: pytest.FixtureRequest, tmp_path: Path, moving: Any) -> Path:
    frames, height, width, fps = request.param
    write_video(tmp_path / "v.mp4", moving(frames, height, width), fps)
    return tmp_path / "v.mp4"


def asked(text: str, **labels: str) -> Sample:
    return Sample(prompt=Prompt(id="0000", text=text, dimensions=(), labels=labels), index=0, seed=0)


def test_tokens(upstream: dict[str, Any], merges: bytes) -> None:
    theirs = importlib.import_module("clip").tokenize
    ours = ClipTokens(merges)
    for text in [*(prompt.text for prompt in suite_prompts()), *ODD]:
        assert ours.row(text, 77) == theirs([text], truncate=True)[0].tolist(), text


def test_agreement(upstream: dict[str, Any], shelf: Path, path: Path, fill: Any) -> None:
    model = upstream["viclip"].ViCLIP.__new__(upstream["viclip"].ViCLIP)
    nn.Module.__init__(model)
    model.max_txt_l = 32
    model.vision_encoder = upstream["viclip_vision"].VisionTransformer(224, 14, 64, 2, 2, output_dim=24)
    model.text_encoder = upstream["viclip_text"].CLIP_TEXT(24, 32, 49408, 64, 2, 2, 0)
    fill(model, 11)
    store("viclip-l14", viclip(model.state_dict()), shelf)
    for text in PROMPTS:
        for metric in (OverallConsistency, TemporalStyle):
            module = upstream[metric.dimension]
            module.get_text_features.__defaults__[0].clear()  # it keeps texts, whatever the weights
            entry = [{"prompt": text, "video_list": [str(path)]}]
            expected, _ = getattr(module, metric.dimension)(model, entry, None, "cpu")
            found = metric(folder=shelf).score(read_video(path), asked(text))
            assert found == pytest.approx(float(expected), abs=1e-6)
            assert abs(found) > 1e-3


def test_style(upstream: dict[str, Any], shelf: Path, path: Path, fill: Any) -> None:
    model = fill(upstream["clip"].CLIP(24, 224, 2, 128, 32, 77, 49408, 64, 2, 2), 12)
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    store("clip-vit-b32", clip(model.state_dict()), shelf)
    store("clip-vit-b32-text", clip_text(model.state_dict()), shelf)
    for style in PROMPTS[:2]:
        entry = [{"auxiliary_info": {"appearance_style": style}, "video_list": [str(path)]}]
        expected, _ = upstream["appearance_style"].appearance_style(model, entry, "cpu")
        metric = AppearanceStyle(folder=shelf, batch=4)
        found = metric.score(read_video(path), asked("", appearance_style=style))
        assert found == pytest.approx(float(expected), abs=1e-6)
        assert abs(found) > 1e-3


@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_action(
    upstream: dict[str, Any], shelf: Path, path: Path, fill: Any, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    module, action = upstream["human_action"], "playing guitar"
    small = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2, "qkv_bias": True}
    model = upstream["umt"].VisionTransformer(
        **small,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        all_frames=16,
        tubelet_size=1,
        num_classes=400,
        use_mean_pooling=True,
    )
    torch.testing.assert_close(model.pos_embed.detach(), position_table(64), atol=1e-6, rtol=0)
    table = model.pos_embed.detach().clone()
    fill(model, 13)
    with torch.no_grad():
        model.pos_embed.copy_(table)
        model.head.bias[kinetics_labels().index(action)] += bias
    state = dict(model.state_dict())
    store("umt-l16", umt(state), shelf)
    monkeypatch.setattr(module, "create_model", lambda *a, **k: model)
    monkeypatch.setattr(torch, "load", lambda *a, **k: state)
    told: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda m, i, out: told.append(torch.sigmoid(out)[0]))
    named = path.with_name(f"A person is {action}-0.mp4")
    shutil.copy(path, named)
    _, [row] = module.human_action("", [str(named)], "cpu")
    hook.remove()
    details = HumanAction(folder=shelf).details(read_video(path), asked("", action=action))
    assert details["seen"] is row["video_results"] is bool(bias)
    assert details["probability"] == pytest.approx(told[0][kinetics_labels().index(action)].item(), abs=1e-5)
    assert details["likeliest"] == kinetics_labels()[int(told[0].argmax())]


def test_imaging(upstream: dict[str, Any], shelf: Path, path: Path, fill: Any) -> None:
    module = importlib.import_module("vbench.imaging_quality")
    model = fill(importlib.import_module("pyiqa.archs.musiq_arch").MUSIQ(pretrained=False), 14)
    store("musiq-spaq", musiq(model.state_dict()), shelf)
    expected, _ = module.technical_quality(model, [str(path)], "cpu")
    found = ImagingQuality(folder=shelf).score(read_video(path), asked(""))
    assert found == pytest.approx(float(expected), abs=1e-6)
    assert abs(found) > 1e-4


def test_a_table_of_positions_that_the_file_lacks(upstream: dict[str, Any]) -> None:
    table = upstream["umt"].get_sinusoid_encoding_table(16 * 196, 1024, 16)
    torch.testing.assert_close(table.detach(), position_table(1024), atol=1e-6, rtol=0)


def test_the_classes_are_upstream_s(upstream: dict[str, Any]) -> None:
    theirs = upstream["human_action"].build_dict()
    assert tuple(theirs[str(number)] for number in range(400)) == kinetics_labels()


def test_the_published_sizes(upstream: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes of the converted files are those of the networks that upstream builds."""
    monkeypatch.setattr(torch, "linspace", lambda low, high, n: torch.zeros(n, device="cpu"))
    with torch.device("meta"):
        theirs = upstream["umt"].vit_large_patch16_224(
            num_classes=400, all_frames=16, tubelet_size=1, use_mean_pooling=True
        )
        state = {key: torch.empty(tensor.shape, device="meta") for key, tensor in theirs.state_dict().items()}
        sizes = {key: tensor.shape for key, tensor in umt(state).items()}
        ours = base._build("umt-l16").state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == sizes
    with torch.device("meta"):
        vision = upstream["viclip_vision"].clip_joint_l14(pretrained=False)
        text = upstream["viclip_text"].clip_text_l14(pretrained=False, context_length=32)
        both = {f"vision_encoder.{k}": v for k, v in vision.state_dict().items()}
        both |= {f"text_encoder.{k}": v for k, v in text.state_dict().items()}
        ours = base._build("viclip-l14").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in viclip(both).items()}
