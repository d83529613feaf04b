"""Values of the unmodified upstream package on two committed clips: ours equal them, upstream or not.

Networks are those of the fixtures, small and with random weights; upstream's own functions were run on them.
Where upstream is installed, the kept values are checked too; ``WRITE_GOLDEN=1`` writes them anew there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalharness.api import Prompt, Sample
from evalharness.native.aesthetic_quality import AestheticQuality
from evalharness.native.appearance_style import AppearanceStyle
from evalharness.native.background_consistency import BackgroundConsistency
from evalharness.native.base import NativeMetric
from evalharness.native.dynamic_degree import DynamicDegree
from evalharness.native.human_action import HumanAction, kinetics_labels
from evalharness.native.overall_consistency import OverallConsistency
from evalharness.native.subject_consistency import SubjectConsistency
from evalharness.native.temporal_flickering import steadiness
from evalharness.video import read_video

FOLDER = Path(__file__).parents[1] / "golden" / "clips"
GOLDEN = FOLDER / "upstream.json"
CLIPS = ("square", "wide")
TEXT, STYLE, ACTION = "A cat's photo, zoom in", "Van Gogh style", "playing guitar"
NEEDED = ("vbench", "torchvision", "timm", "decord", "clip", "einops", "ftfy")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
SAMPLE = Sample(
    prompt=Prompt(id="0000", text=TEXT, dimensions=(), labels={"appearance_style": STYLE, "action": ACTION}),
    index=0,
    seed=0,
)


def kept() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(GOLDEN.read_text())
    return read


@pytest.mark.parametrize("clip", CLIPS)
def test_ours_equal_upstream_s_values(clip: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = kept()
    rows = {TEXT: golden["tokens"]["text"], STYLE: golden["tokens"]["style"]}
    # The list of merges is not here; the tokens are upstream's.
    monkeypatch.setattr(
        NativeMetric, "tokens", lambda self, text, context: torch.tensor([rows[text][:context]])
    )
    video, values = read_video(FOLDER / f"{clip}.mp4"), golden["values"][clip]
    assert steadiness(video) == pytest.approx(values["temporal_flickering"], abs=1e-7)
    metrics = (
        SubjectConsistency,
        BackgroundConsistency,
        AestheticQuality,
        AppearanceStyle,
        OverallConsistency,
    )
    for metric in metrics:
        found = metric(folder=folder).score(video, SAMPLE)
        assert found == pytest.approx(values[metric.dimension], abs=1e-5), metric.dimension
    details = DynamicDegree(folder=folder).details(video, SAMPLE)
    assert details["strengths"] == pytest.approx(values["dynamic_degree"]["strengths"], rel=1e-5)
    assert details["dynamic"] is values["dynamic_degree"]["dynamic"]
    told = HumanAction(folder=folder).details(video, SAMPLE)
    assert told["probability"] == pytest.approx(values["human_action"]["probability"], abs=1e-5)
    assert told["seen"] is values["human_action"]["seen"]


@pytest.mark.slow
@pytest.mark.skipif(bool(LACKING), reason=f"upstream cannot be imported: no {', '.join(LACKING)}")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_upstream_still_says_so(
    networks: dict[str, nn.Module], torchvision_operators: object, tmp_path: Path, moving: Any
) -> None:
    if os.environ.get("WRITE_GOLDEN"):
        from evalharness.video import write_video

        write_video(FOLDER / "square.mp4", moving(6, 136, 136), 8)
        write_video(FOLDER / "wide.mp4", moving(18, 136, 240), 16)
    with pytest.MonkeyPatch.context() as patch:
        source = Path(str(importlib.import_module("clip").__file__)).parent / "bpe_simple_vocab_16e6.txt.gz"
        (tmp_path / "ViCLIP").mkdir()
        shutil.copy(source, tmp_path / "ViCLIP")
        patch.setattr(importlib.import_module("vbench.utils"), "CACHE_DIR", str(tmp_path))
        names = ("temporal_flickering", "subject_consistency", "background_consistency", "aesthetic_quality")
        names += ("appearance_style", "overall_consistency", "dynamic_degree", "human_action")
        modules: dict[str, Any] = {name: importlib.import_module(f"vbench.{name}") for name in names}
    tokenize = importlib.import_module("clip").tokenize
    rows = {"text": tokenize([TEXT])[0].tolist(), "style": tokenize([STYLE])[0].tolist()}
    found = {
        "source": "vbench 0.1.5 on the networks of conftest.py",
        "tokens": rows,
        "values": {
            clip: upstream_s(modules, networks, rows, FOLDER / f"{clip}.mp4", tmp_path) for clip in CLIPS
        },
    }
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = kept()
    assert golden["tokens"] == rows
    for clip in CLIPS:
        for name, value in found["values"][clip].items():
            if isinstance(value, float):
                assert golden["values"][clip][name] == pytest.approx(value, abs=1e-6), name


class Clip:
    """Our towers in the shape in which upstream calls CLIP and ViCLIP."""

    def __init__(self, image: Any, text: Any = None, viclip: Any = None, row: Any = ()) -> None:
        self.image, self.text, self.viclip, self.row = image, text, viclip, row

    def eval(self) -> Clip:
        return self

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.image(images)
        return found

    def __call__(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one, other = (
            nn.functional.normalize(x, dim=-1) for x in (self.image(images), self.text(tokens.long()))
        )
        logits = self.text.logit_scale.exp() * one @ other.T
        return logits, logits.T

    def encode_vision(self, clips: torch.Tensor, test: bool) -> torch.Tensor:
        found: torch.Tensor = self.viclip.video(clips[0])[None]
        return found

    def encode_text(self, text: str) -> torch.Tensor:
        found: torch.Tensor = self.viclip.text(torch.tensor([self.row[:32]]))
        return found


def upstream_s(
    modules: dict[str, Any], networks: dict[str, Any], rows: dict[str, list[int]], path: Path, folder: Path
) -> dict[str, Any]:
    """Upstream's per-video values of every dimension that takes our networks."""
    one = [str(path)]
    b32 = Clip(networks["clip-vit-b32"], networks["clip-vit-b32-text"])
    l14 = Clip(networks["clip-vit-l14"])
    viclip = Clip(None, viclip=networks["viclip-l14"], row=rows["text"])
    modules["overall_consistency"].get_text_features.__defaults__[0].clear()
    style = [{"auxiliary_info": {"appearance_style": STYLE}, "video_list": one}]
    prompt = [{"prompt": TEXT, "video_list": one}]
    values: dict[str, Any] = {
        "temporal_flickering": modules["temporal_flickering"].cal_score(one[0]),
        "subject_consistency": modules["subject_consistency"].subject_consistency(
            networks["dino-vitb16"], one, "cpu", False
        )[0],
        "background_consistency": modules["background_consistency"].background_consistency(
            b32, None, one, "cpu", False
        )[0],
        "aesthetic_quality": modules["aesthetic_quality"].laion_aesthetic(
            networks["aesthetic-linear"], l14, one, "cpu"
        )[0],
        "appearance_style": modules["appearance_style"].appearance_style(b32, style, "cpu")[0],
        "overall_consistency": modules["overall_consistency"].overall_consistency(
            viclip, prompt, None, "cpu"
        )[0],
    }
    values = {name: float(value) for name, value in values.items()}
    values["dynamic_degree"] = dynamic(modules["dynamic_degree"], networks["raft-things"], path)
    values["human_action"] = action(modules["human_action"], networks["umt-l16"], path, folder)
    return values


def dynamic(module: Any, raft: nn.Module, path: Path) -> dict[str, Any]:
    class Options(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            return self[name]

    state = dict(raft.state_dict())
    state |= {k.replace("downsample.1", "norm3"): v for k, v in state.items() if ".downsample.1." in k}
    flow = module.RAFT(Options(small=False, mixed_precision=False, alternate_corr=False)).eval()
    flow.load_state_dict(state, strict=False)
    judge = module.DynamicDegree.__new__(module.DynamicDegree)
    judge.model, judge.device = flow, "cpu"
    strengths: list[float] = []
    plain: Callable[..., bool] = judge.check_move
    judge.check_move = lambda scores: (strengths.extend(map(float, scores)), plain(scores))[1]
    return {"dynamic": bool(judge.infer(str(path))), "strengths": strengths}


def action(module: Any, umt: Any, path: Path, folder: Path) -> dict[str, Any]:
    told: list[torch.Tensor] = []

    class Model(nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = umt(clips[0].permute(1, 0, 2, 3))[None]
            told.append(torch.sigmoid(logits)[0])
            return logits

    named = folder / f"A person is {ACTION}-0.mp4"
    shutil.copy(path, named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "create_model", lambda *a, **k: Model())
        patch.setattr(torch, "load", lambda *a, **k: {})
        _, [row] = module.human_action("", [str(named)], "cpu")
    return {
        "seen": bool(row["video_results"]),
        "probability": told[0][kinetics_labels().index(ACTION)].item(),
    }
