"""What each judge is trained to do, one loss a judge, all on the same rendered batch.

Shape legend: B clips, N frames, S shapes, G cells a side.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from evalharness.tinyworld import judge_nets, spec, world
from evalharness.tinyworld.training import damage, judge_data
from evalharness.tinyworld.training.judge_data import Scenes

FRAMES_PER_CLIP = 4
QUALITY_FRAMES_PER_CLIP = 3
AGREEMENT_CLIPS = 128


class Randomness:
    """The generators of one training: ``cpu`` and ``python`` for plans, ``device`` for pixels."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.cpu = torch.Generator().manual_seed(seed)
        self.device = torch.Generator(device).manual_seed(seed)
        self.python = random.Random(seed)

    def integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.cpu)


def frame_loss(judge: judge_nets.FrameJudge, scenes: Scenes, rng: Randomness) -> Tensor:
    """Attributes of single frames, and the two consistency features."""
    device = scenes.video.device
    rows = torch.arange(len(scenes.video), device=device).repeat(FRAMES_PER_CLIP)
    times = rng.integers(scenes.video.shape[1], len(rows)).to(device)
    frames, _ = damage.random_damage(
        scenes.video[rows, times], rng.device, damage.QUALITY_DAMAGES, chance=0.25, limit=0.5
    )
    with _autocast(device):
        seen = judge(damage.codec(frames, rng.device))
    return _attributes(seen, scenes, rows, times) + _consistency(judge, scenes, rng)


def _attributes(seen: judge_nets.FrameOutput, scenes: Scenes, rows: Tensor, times: Tensor) -> Tensor:
    present = scenes.present[rows]
    loss = F.binary_cross_entropy_with_logits(seen.presence.float(), present.float()) * len(spec.SHAPES)
    loss = loss + F.cross_entropy(seen.number.float(), scenes.batch.count[rows])
    loss = loss + F.cross_entropy(seen.scene.float(), scenes.batch.scene[rows])
    center = judge_data.shape_centers(scenes, rows, times)[present]
    color = _shape_colors(scenes, rows)[present]
    loss = loss + F.cross_entropy(seen.color.float()[present], color)
    heat = -(_cell_weights(center) * seen.heat.float()[present].log_softmax(-1)).sum(-1).mean()
    return loss + heat + 10.0 * (seen.center[present] - center).abs().mean()


def _shape_colors(scenes: Scenes, rows: Tensor) -> Tensor:
    """Colour ids [N, S]; 0 where the shape is absent."""
    colors = torch.zeros(len(rows), len(spec.SHAPES), dtype=torch.long, device=rows.device)
    for slot in range(world.SLOTS):
        there = (scenes.batch.count[rows] > slot).nonzero()[:, 0]
        colors[there, scenes.batch.shape[rows[there], slot]] = scenes.batch.color[rows[there], slot]
    return colors


def _cell_weights(center: Tensor) -> Tensor:
    """Bilinear weights [n, G * G] whose expectation is ``center`` [n, 2]."""
    cells = judge_nets.cell_centers(center.device)
    reach = 1.0 - (center[:, None] - cells).abs() * judge_nets.CELLS
    weight = reach.clamp(min=0.0).prod(-1) + 1e-8
    return weight / weight.sum(-1, keepdim=True)


def _consistency(judge: judge_nets.FrameJudge, scenes: Scenes, rng: Randomness) -> Tensor:
    """Cosines must follow hand-made targets.

    Two frames of one clip: 1, less the larger damage. Frames of two clips: 0.1 and 0.4 more each
    for the same shape and the same colour; for backgrounds 0.6 of the same scene, else 0.1.
    """
    count, length = scenes.video.shape[:2]
    device = scenes.video.device
    rows = torch.arange(count, device=device).repeat(2)
    times = rng.integers(length, 2 * count).to(device)
    frames, severity = damage.random_damage(
        scenes.video[rows, times], rng.device, damage.APPEARANCE_DAMAGES, chance=0.3
    )
    with _autocast(device):
        texture = judge(damage.codec(frames, rng.device)).texture
    slot = (rng.integers(world.SLOTS, count).to(device) * (scenes.batch.count > 1)).repeat(2)
    center = scenes.center[rows, slot, times]
    center = center + 0.02 * torch.randn(center.shape, generator=rng.device, device=device)
    subject = judge.subject(texture, center)
    present = scenes.present[rows].float()
    background = judge.background(texture, present, judge_data.shape_centers(scenes, rows, times))

    return likeness_loss(subject, background, severity, scenes.batch, slot[:count])


def likeness_loss(
    subject: Tensor, background: Tensor, severity: Tensor, batch: world.WorldBatch, slot: Tensor
) -> Tensor:
    """The loss of ``_consistency`` for features [2n, D] of two frames of each of n clips.

    ``subject`` is of the thing in ``slot`` [n], ``background`` of the rest; ``severity`` [2n] is
    that of the damage done to the frames; ``batch`` holds the clips' ids.
    """
    first = torch.arange(len(slot), device=slot.device)
    worse = torch.maximum(*severity.chunk(2))
    shape, color = batch.shape[first, slot], batch.color[first, slot]
    kin = 0.1 + 0.4 * (shape == shape.roll(1)).float() + 0.4 * (color == color.roll(1)).float()
    place = 0.1 + 0.5 * (batch.scene == batch.scene.roll(1)).float()
    there = (batch.count > 0).float()
    loss = _cosine_loss(subject, worse, kin, weight=there * there.roll(1), own=there)
    return 4.0 * (loss + _cosine_loss(background, worse, place))


def _cosine_loss(
    features: Tensor,
    severity: Tensor,
    kin: Tensor,
    *,
    weight: Tensor | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Squared error of cosines: clip i against itself, and against clip i - 1."""
    one, two = features.chunk(2)
    same = ((one * two).sum(-1) - (1.0 - severity)).square()
    other = (
        (one * two.roll(1, 0)).sum(-1) - kin * (1.0 - torch.maximum(severity, severity.roll(1)))
    ).square()
    if weight is not None and own is not None:
        same, other = same * own, other * weight
    return same.mean() + 0.5 * other.mean()


def motion_loss(judge: judge_nets.MotionJudge, scenes: Scenes, rng: Randomness) -> Tensor:
    """The motion of a clip, or that it shows none."""
    video, labels = judge_data.motion_clips(scenes, rng.cpu)
    video = judge_data.damaged_clips(video, rng.device)
    with _autocast(video.device):
        logits, _ = judge(video)
    return F.cross_entropy(logits.float(), labels)


def quality_loss(judge: judge_nets.QualityJudge, scenes: Scenes, rng: Randomness) -> Tensor:
    """Severity of blur, blocking and noise, as it was dealt."""
    device = scenes.video.device
    rows = torch.arange(len(scenes.video), device=device).repeat(QUALITY_FRAMES_PER_CLIP)
    times = rng.integers(scenes.video.shape[1], len(rows)).to(device)
    frames, severity = damage.random_damage(
        scenes.video[rows, times], rng.device, damage.QUALITY_DAMAGES, chance=0.4
    )
    # Float32 throughout: the smallest noise is below bfloat16's resolution.
    logits: Tensor = judge(damage.codec(frames, rng.device))
    error = (logits.sigmoid() - severity).abs().mean()
    return F.binary_cross_entropy_with_logits(logits, severity) + 4.0 * error


def agreement_loss(
    judge: judge_nets.AgreementJudge,
    frame: judge_nets.FrameJudge,
    motion: judge_nets.MotionJudge,
    scenes: Scenes,
    rng: Randomness,
) -> Tensor:
    """Contrast each clip's caption with the batch's and with captions false by one attribute."""
    rows = (scenes.batch.count > 0).nonzero()[:, 0][:AGREEMENT_CLIPS]
    device = rows.device
    video = judge_data.damaged_clips(scenes.video[rows], rng.device)
    clips = world.decode_clips(scenes.batch.take(rows))
    named = [rng.python.random() < 0.7 for _ in clips]
    true = [spec.caption(clip, name_relation=name) for clip, name in zip(clips, named, strict=True)]
    wrong = [w for clip in clips for w in rng.python.sample(judge_data.wrong_captions(clip, rng.python), 3)]
    with torch.no_grad(), _autocast(device):
        features = judge_nets.video_features(frame(video.flatten(0, 1)), *motion(video))
    videos = judge.video(features)
    return contrast(judge, videos, true, wrong)


def contrast(judge: judge_nets.AgreementJudge, videos: Tensor, true: list[str], wrong: list[str]) -> Tensor:
    """Cross entropies of vectors ``videos`` [b, D] against their captions, the batch's and ``wrong``."""
    device = videos.device
    ids = judge_nets.word_ids(true + wrong)
    used = int((ids != judge_nets.PAD).any(0).sum())
    texts = judge.text(ids[:, :used].to(device))
    scale = judge.log_scale.clamp(max=4.0).exp()
    logits = scale * videos @ texts.T
    twins = _twins(true, true + wrong).to(device)
    logits = logits.masked_fill(twins, -1e4)
    target = torch.arange(len(true), device=device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(true)].T, target)


def _twins(true: list[str], captions: list[str]) -> Tensor:
    """Bool [b, len(captions)]: the same words as the row's own caption, in another place."""
    ids = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    row = torch.tensor([ids[caption] for caption in true])
    column = torch.tensor([ids[caption] for caption in captions])
    same = row[:, None] == column
    same[torch.arange(len(true)), torch.arange(len(true))] = False
    return same


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


Loss = Callable[[Scenes, Randomness], Tensor]


def losses(modules: dict[str, nn.Module]) -> dict[str, Loss]:
    """The loss of each judge, by the name of its file."""
    frame, motion, quality, agreement = (
        modules[name] for name in ("frame", "motion", "quality", "agreement")
    )
    assert isinstance(frame, judge_nets.FrameJudge)
    assert isinstance(motion, judge_nets.MotionJudge)
    assert isinstance(quality, judge_nets.QualityJudge)
    assert isinstance(agreement, judge_nets.AgreementJudge)
    return {
        "frame": lambda scenes, rng: frame_loss(frame, scenes, rng),
        "motion": lambda scenes, rng: motion_loss(motion, scenes, rng),
        "quality": lambda scenes, rng: quality_loss(quality, scenes, rng),
        "agreement": lambda scenes, rng: agreement_loss(agreement, frame, motion, scenes, rng),
    }
