"""How often the judges are right on renderings of combinations that training never saw."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from evalharness.tinyworld import judge_nets, spec, world
from evalharness.tinyworld.judges import Judges
from evalharness.tinyworld.training import damage, judge_data
from evalharness.tinyworld.training.judge_data import Scenes

REQUIRED = 0.97
CLASSIFIERS = ("object", "color", "count", "relation", "scene", "motion")
BATCH = 100


@torch.inference_mode()
def evaluate(judges: Judges, device: torch.device, *, clips: int, seed: int = 90_000) -> dict[str, Any]:
    """Accuracies with n on ``clips`` held-out clips (half singles, half pairs), after the codec.

    A clip's judgement is what its frames say on average: the shapes with the highest presence, the
    likeliest colour of each true shape (right only if all are), the likeliest count and scene, the
    side on which the centres lie. ``agreement``: the true caption is closer than every caption
    that is false by one attribute. ``motion_shuffled``: moving clips with their frames in random
    order are called "none of these". ``severity_error``: mean absolute error, damage of all kinds.
    """
    for module in judges.parts().values():
        module.to(device)
    right: dict[str, list[Tensor]] = defaultdict(list)
    generator = torch.Generator(device).manual_seed(seed)
    rng = random.Random(seed)
    for start in range(0, clips, 2 * BATCH):
        size = min(BATCH, (clips - start + 1) // 2)
        for pair in (False, True):
            scenes = judge_data.held_out_scenes(size, seed + start + pair, device, pair=pair)
            video = judge_nets.by_video(damage.codec(scenes.video.flatten(0, 1), generator), size)
            for name, values in _judge(judges, scenes, video, rng).items():
                right[name].append(values.float().cpu())
            right["severity_error"].append(_severity_error(judges, scenes, generator).cpu())
    return {
        name: {"value": round(torch.cat(values).mean().item(), 5), "n": sum(len(v) for v in values)}
        for name, values in right.items()
    }


def shortfalls(accuracies: dict[str, Any]) -> list[str]:
    """The classifiers below the required accuracy."""
    return [name for name in CLASSIFIERS if accuracies[name]["value"] < REQUIRED]


def _judge(judges: Judges, scenes: Scenes, video: Tensor, rng: random.Random) -> dict[str, Tensor]:
    seen = judges.frame(video.flatten(0, 1))
    logits, feature = judges.motion(video)
    size = len(video)
    presence = judge_nets.by_video(seen.presence.sigmoid(), size).mean(1)
    color = judge_nets.by_video(seen.color.softmax(-1), size).mean(1)
    batch, number = scenes.batch, int(scenes.batch.count[0])
    found = torch.zeros_like(scenes.present).scatter(1, presence.topk(number, dim=1).indices, True)
    rows = torch.arange(len(video), device=video.device)
    colors = [color[rows, batch.shape[:, slot]].argmax(-1) == batch.color[:, slot] for slot in range(number)]
    result = {
        "object": (found == scenes.present).all(1),
        "color": torch.stack(colors).all(0),
        "count": judge_nets.by_video(seen.number.softmax(-1), size).mean(1).argmax(-1) == batch.count,
        "scene": judge_nets.by_video(seen.scene.softmax(-1), size).mean(1).argmax(-1) == batch.scene,
        "motion": logits.argmax(-1) == batch.motion,
        "agreement": _agreement(judges, scenes, judge_nets.video_features(seen, logits, feature), rng),
    }
    if number > 1:
        center = judge_nets.by_video(seen.center, size).mean(1)
        step = center[rows, batch.shape[:, 0]] - center[rows, batch.shape[:, 1]]
        result["relation"] = relation_ids(step) == batch.relation
    order = torch.stack([torch.randperm(video.shape[1], device=video.device) for _ in range(len(video))])
    shuffled = video[rows[:, None], order]
    moving = batch.motion != spec.MOTIONS.index("standing still")
    result["motion_shuffled"] = judges.motion(shuffled)[0].argmax(-1)[moving] == judge_nets.NO_MOTION
    return result


def relation_ids(step: Tensor) -> Tensor:
    """Relation of a thing displaced by ``step`` [B, 2] from another, by the dominant axis."""
    sideways = step[:, 0].abs() > step[:, 1].abs()
    return torch.where(sideways, (step[:, 0] > 0).long(), 2 + (step[:, 1] > 0).long())


def _agreement(judges: Judges, scenes: Scenes, features: Tensor, rng: random.Random) -> Tensor:
    right = []
    videos = judges.agreement.video(features)
    for clip, vector in zip(world.decode_clips(scenes.batch), videos, strict=True):
        captions = [spec.caption(clip), *judge_data.wrong_captions(clip, rng)]
        cosine = judges.agreement.text(judge_nets.word_ids(captions).to(vector.device)) @ vector
        right.append(cosine[0] > cosine[1:].max())
    return torch.stack(right)


def _severity_error(judges: Judges, scenes: Scenes, generator: torch.Generator) -> Tensor:
    frames, severity = damage.random_damage(
        scenes.video[:, ::4].flatten(0, 1), generator, damage.QUALITY_DAMAGES, chance=0.4
    )
    judged: Tensor = judges.quality(damage.codec(frames, generator)).sigmoid()
    return (judged - severity).abs()
