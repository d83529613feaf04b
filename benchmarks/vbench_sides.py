"""What ``vbench_speed`` times: each dimension by upstream's own functions and by the native scorers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.vbench_networks import ACTION
from evalharness.api import Prompt, Sample, Video
from evalharness.native import (
    aesthetic_quality,
    appearance_style,
    background_consistency,
    dynamic_degree,
    human_action,
    imaging_quality,
    overall_consistency,
    static_filter,
    subject_consistency,
    temporal_flickering,
    temporal_style,
)

TEXT, STYLE = "A person is playing guitar, oil painting, zoom in", "oil painting"
NETWORKS = {
    "temporal_flickering": (),
    "static_filter": ("raft-things",),
    "dynamic_degree": ("raft-things",),
    "subject_consistency": ("dino-vitb16",),
    "background_consistency": ("clip-vit-b32",),
    "aesthetic_quality": ("clip-vit-l14", "aesthetic-linear"),
    "imaging_quality": ("musiq-spaq",),
    "appearance_style": ("clip-vit-b32",),
    "human_action": ("umt-l16",),
    "overall_consistency": ("viclip-l14",),
    "temporal_style": ("viclip-l14",),
}
Judge = Callable[[Path], float]
NativeJudge = Callable[[Video], float]
Networks = dict[str, Any]


def upstream_judge(dimension: str, networks: Networks, device: str) -> Judge:
    """Upstream's value of one file, decoding included, with networks that are loaded already.

    Raises:
        ImportError: upstream's module cannot be imported.
    """
    where = {"static_filter": "vbench.cli.static_filter"}.get(dimension, f"vbench.{dimension}")
    module = importlib.import_module(where)
    return _UPSTREAM[dimension](module, networks, device)


def _frames_then_mean(module: Any, networks: Networks, device: str) -> Judge:
    del networks, device
    return lambda path: float(module.cal_score(str(path)))


def _static(module: Any, networks: Networks, device: str) -> Judge:
    judge = module.StaticFilter.__new__(module.StaticFilter)
    judge.model, judge.device, module.DEVICE = networks["raft-things"], device, device
    return lambda path: float(judge.infer(str(path)))


def _dynamic(module: Any, networks: Networks, device: str) -> Judge:
    judge = module.DynamicDegree.__new__(module.DynamicDegree)
    judge.model, judge.device = networks["raft-things"], device
    return lambda path: float(judge.infer(str(path)))


def _subject(module: Any, networks: Networks, device: str) -> Judge:
    dino = networks["dino-vitb16"]
    return lambda path: float(module.subject_consistency(dino, [str(path)], device, False)[0])


def _background(module: Any, networks: Networks, device: str) -> Judge:
    clip = networks["clip-vit-b32"]
    return lambda path: float(module.background_consistency(clip, None, [str(path)], device, False)[0])


def _aesthetic(module: Any, networks: Networks, device: str) -> Judge:
    head, clip = networks["aesthetic-linear"], networks["clip-vit-l14"]
    return lambda path: float(module.laion_aesthetic(head, clip, [str(path)], device)[0])


def _imaging(module: Any, networks: Networks, device: str) -> Judge:
    musiq = networks["musiq-spaq"]
    return lambda path: float(module.technical_quality(musiq, [str(path)], device)[0])


def _style(module: Any, networks: Networks, device: str) -> Judge:
    def judge(path: Path) -> float:
        entry = {"auxiliary_info": {"appearance_style": STYLE}, "video_list": [str(path)]}
        return float(module.appearance_style(networks["clip-vit-b32"], [entry], device)[0])

    return judge


def _agreement(module: Any, networks: Networks, device: str) -> Judge:
    function = getattr(module, module.__name__.rpartition(".")[2])

    def judge(path: Path) -> float:
        entry = {"prompt": TEXT, "video_list": [str(path)]}
        return float(function(networks["viclip-l14"], [entry], None, device)[0])

    return judge


def _action(module: Any, networks: Networks, device: str) -> Judge:
    """Upstream loads inside of the function: it gets the loaded network instead."""
    network: nn.Module = networks["umt-l16"]
    state = network.state_dict()
    module.create_model = lambda *args, **options: network

    def judge(path: Path) -> float:
        load, torch.load = torch.load, lambda *args, **options: state  # noqa: TID251
        try:
            return float(module.human_action("", [str(path)], device)[0])
        finally:
            torch.load = load  # noqa: TID251

    return judge


_UPSTREAM: dict[str, Callable[[Any, Networks, str], Judge]] = {
    "temporal_flickering": _frames_then_mean,
    "static_filter": _static,
    "dynamic_degree": _dynamic,
    "subject_consistency": _subject,
    "background_consistency": _background,
    "aesthetic_quality": _aesthetic,
    "imaging_quality": _imaging,
    "appearance_style": _style,
    "human_action": _action,
    "overall_consistency": _agreement,
    "temporal_style": _agreement,
}


def native_judge(dimension: str, shelf: Path, device: str, precision: str, batch: int) -> NativeJudge:
    """Our value of one decoded video; RAFT and MUSIQ run in float32 whatever the precision.

    ``compiled`` as precision is bfloat16 with compiled networks.
    """
    if dimension in ("static_filter", "dynamic_degree", "imaging_quality"):
        precision = "float32"
    options: dict[str, Any] = {"folder": shelf, "device": device, "precision": precision, "batch": batch}
    if precision == "compiled":
        options |= {"precision": "bfloat16", "compiled": True}
    prompt = Prompt(id="0000", text=TEXT, dimensions=(), labels={"action": ACTION, "appearance_style": STYLE})
    sample = Sample(prompt=prompt, index=0, seed=0)
    if dimension == "temporal_flickering":
        return temporal_flickering.steadiness
    if dimension == "static_filter":
        judge = static_filter.StaticFilter(**options)
        return lambda video: float(judge.judge(video)["static"])
    metric = NATIVE[dimension](**options)
    return lambda video: float(metric.score(video, sample))


NATIVE: dict[str, Callable[..., Any]] = {
    "dynamic_degree": dynamic_degree.DynamicDegree,
    "subject_consistency": subject_consistency.SubjectConsistency,
    "background_consistency": background_consistency.BackgroundConsistency,
    "aesthetic_quality": aesthetic_quality.AestheticQuality,
    "imaging_quality": imaging_quality.ImagingQuality,
    "appearance_style": appearance_style.AppearanceStyle,
    "human_action": human_action.HumanAction,
    "overall_consistency": overall_consistency.OverallConsistency,
    "temporal_style": temporal_style.TemporalStyle,
}
