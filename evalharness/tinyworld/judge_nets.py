"""The networks that look at tinyworld videos: frame, motion, quality and agreement judge.

Small convolutional nets with group normalisation, so that a result depends neither on the batch
nor on a train / eval switch. Trained by ``evalharness.tinyworld.training.judges`` on renderings
only; loaded and used by ``evalharness.tinyworld.judges``.

Shape legend: N frames, B videos, T frames of a video, S = 8 shapes, C = 6 colours, D channels,
G = 12 cells on each side of the feature map, L words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from evalharness.tinyworld import spec

CELLS = spec.SIZE // 4
SHALLOW, DEEP = 32, 64
EMBEDDING = 64
CROP_CELLS = 6
CROP_HALF_WIDTH = 0.25  # of the frame: a little more than the largest object's radius
OBJECT_RADIUS = 0.21  # of the frame: what the background feature does not look at
MOTION_CLASSES = len(spec.MOTIONS) + 1
NO_MOTION = len(spec.MOTIONS)  # "none of these": shuffled frames, cuts, no object
MAX_WORDS = 24
PAD, UNKNOWN = 0, 1


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut; [N, D, h, w] in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.second(self.first(x)))
        return F.relu(x + y)


class FrameOutput(NamedTuple):
    """What the frame judge sees in each of N frames.

    Attributes:
        presence: logits [N, S]: is a thing of this shape in the frame?
        color: logits [N, S, C]: the colour of the thing of this shape, if present.
        heat: logits [N, S, G * G]: where it is.
        center: [N, S, 2], x to the right and y down in [0, 1], the expectation under ``heat``.
        number: logits [N, 3] for 0, 1 or 2 things.
        scene: logits [N, 8].
        pooled: [N, D], the mean of the deep feature map.
        texture: [N, D, G, G], the map that the consistency features are cut from.
    """

    presence: Tensor
    color: Tensor
    heat: Tensor
    center: Tensor
    number: Tensor
    scene: Tensor
    pooled: Tensor
    texture: Tensor


class FrameJudge(nn.Module):
    """Reads single frames [N, 3, 48, 48] in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        shapes = len(spec.SHAPES)
        self.stem = _conv(3, SHALLOW, kernel=5, stride=2)
        self.fine = Residual(SHALLOW)
        self.down = _conv(SHALLOW, DEEP, stride=2)
        self.coarse = nn.Sequential(Residual(DEEP), Residual(DEEP))
        self.heat = nn.Conv2d(DEEP, shapes, 1)
        self.presence_weight = nn.Parameter(torch.randn(shapes, DEEP) / DEEP**0.5)
        self.presence_bias = nn.Parameter(torch.zeros(shapes))
        self.color = nn.Linear(DEEP, len(spec.COLORS))
        self.number = nn.Linear(2 * DEEP, 3)
        self.scene = nn.Linear(2 * DEEP, len(spec.SCENES))
        self.texture = nn.Conv2d(4 * SHALLOW, 24, 1)
        crop = 24 * CROP_CELLS**2
        self.subject_head = nn.Sequential(nn.Linear(crop, 128), nn.ReLU(), nn.Linear(128, EMBEDDING))
        field = 25 * (CELLS // 2) ** 2
        self.background_head = nn.Sequential(nn.Linear(field, 128), nn.ReLU(), nn.Linear(128, EMBEDDING))

    def forward(self, frames: Tensor) -> FrameOutput:
        fine = self.fine(self.stem(2.0 * frames - 1.0))
        deep = self.coarse(self.down(fine))
        heat = self.heat(deep).flatten(2)
        attention = heat.float().softmax(dim=-1)
        attended = torch.einsum("nsg,ndg->nsd", attention, deep.flatten(2).float())
        pooled = deep.mean(dim=(2, 3))
        summary = torch.cat([pooled, deep.amax(dim=(2, 3))], dim=1)
        return FrameOutput(
            presence=(attended * self.presence_weight).sum(-1) + self.presence_bias,
            color=self.color(attended),
            heat=heat,
            center=(attention[..., None] * cell_centers(frames.device)).sum(dim=2),
            number=self.number(summary),
            scene=self.scene(summary),
            pooled=pooled,
            texture=self.texture(F.pixel_unshuffle(fine, 2)),
        )

    def subject(self, texture: Tensor, center: Tensor) -> Tensor:
        """Unit features [N, EMBEDDING] of what stands at ``center`` [N, 2], wherever that is."""
        steps = (torch.arange(CROP_CELLS, device=center.device) + 0.5) / CROP_CELLS * 2.0 - 1.0
        offset = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1) * CROP_HALF_WIDTH
        grid = 2.0 * (center[:, None, None].float() + offset) - 1.0
        crop = F.grid_sample(texture.float(), grid, align_corners=False, padding_mode="border")
        return F.normalize(self.subject_head(crop.flatten(1)).float(), dim=-1)

    def background(self, texture: Tensor, present: Tensor, center: Tensor) -> Tensor:
        """Unit features [N, EMBEDDING] of all but the things.

        ``present`` [N, S] in [0, 1] says how surely a thing stands at ``center`` [N, S, 2].
        """
        mask = background_mask(present, center)[:, None]
        field = F.avg_pool2d(torch.cat([texture.float() * mask, mask], dim=1), 2)
        return F.normalize(self.background_head(field.flatten(1)).float(), dim=-1)


def by_video(values: Tensor, videos: int) -> Tensor:
    """[B * T, ...] as [B, T, ...]."""
    return values.reshape(videos, -1, *values.shape[1:])


def cell_centers(device: torch.device) -> Tensor:
    """Coordinates [G * G, 2] (x, y) of the feature map's cells, in [0, 1]."""
    axis = (torch.arange(CELLS, device=device, dtype=torch.float32) + 0.5) / CELLS
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)


def background_mask(present: Tensor, center: Tensor) -> Tensor:
    """Weight [N, G, G] of each cell as background: 0 on a thing, 1 far from all."""
    distance = (cell_centers(center.device) - center[:, :, None]).norm(dim=-1)  # [N, S, G * G]
    disc = ((OBJECT_RADIUS + 0.05 - distance) / 0.08).clamp(0.0, 1.0)
    weight: Tensor = (1.0 - present[:, :, None] * disc).prod(dim=1)
    return weight.reshape(-1, CELLS, CELLS)


class MotionJudge(nn.Module):
    """Reads clips [B, T, 3, 48, 48]; logits [B, 9] over the motions and "none of these"."""

    width = 96

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            _conv(6, 24, kernel=5, stride=2),
            _conv(24, 24),
            _conv(24, 48, stride=2),
            Residual(48),
            _conv(48, 64, stride=2),
        )
        self.project = nn.Linear(2 * 64, self.width)
        self.temporal = nn.ModuleList(nn.Conv1d(self.width, self.width, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(2 * self.width, MOTION_CLASSES)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits and the pooled feature [B, 2 * width] before the last layer."""
        return self.decide(self.look(clips))

    def look(self, clips: Tensor) -> Tensor:
        """Summaries [B, T - 1, 2 * 64] of what each frame and the change to the next show."""
        x = 2.0 * clips - 1.0
        pairs = torch.cat([x[:, :-1], x[:, 1:] - x[:, :-1]], dim=2)
        maps = self.spatial(pairs.flatten(0, 1))
        return by_video(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1), len(clips))

    def decide(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` from the summaries on."""
        y = self.project(steps).transpose(1, 2)  # [B, width, T - 1]
        for layer in self.temporal:
            y = y + F.relu(layer(y))
        feature = torch.cat([y.mean(dim=-1), y.amax(dim=-1)], dim=1)
        return self.head(feature), feature


class QualityJudge(nn.Module):
    """Reads single frames [N, 3, 48, 48]; logits [N] whose sigmoid is the severity of damage.

    No normalisation here: it would hide the strength of the noise, which is the question.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(3 * 48, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, frames: Tensor) -> Tensor:
        maps = self.maps(2.0 * frames - 1.0)
        low = -F.max_pool2d(-F.avg_pool2d(maps, 3), 4).flatten(1)  # the cleanest region
        summary = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3)), low], dim=1)
        severity: Tensor = self.head(summary).squeeze(-1)
        return severity


def vocabulary() -> tuple[str, ...]:
    """All words of tinyworld's captions, sorted; ids start after PAD and UNKNOWN."""
    phrases = (*spec.SCENES, *spec.SHAPES, *spec.COLORS, *spec.MOTIONS, *spec.RELATIONS, "a an and over")
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def word_ids(captions: list[str]) -> Tensor:
    """Ids [B, MAX_WORDS]; words beyond MAX_WORDS are cut, unheard-of ones become UNKNOWN."""
    index = {word: i + 2 for i, word in enumerate(vocabulary())}
    rows = []
    for caption in captions:
        words = [w.strip(".,;:!?") for w in caption.lower().split()][:MAX_WORDS]
        ids = [index.get(word, UNKNOWN) for word in words]
        rows.append(ids + [PAD] * (MAX_WORDS - len(ids)))
    return torch.tensor(rows, dtype=torch.long)


FEATURES = {
    "presence": len(spec.SHAPES),
    "color": len(spec.SHAPES) * len(spec.COLORS),
    "place": len(spec.SHAPES) * 2,
    "number": 3,
    "scene": len(spec.SCENES),
    "pooled": DEEP,
    "motion": MOTION_CLASSES,
    "motion_feature": 2 * MotionJudge.width,
}
FEATURE_PARTS, FEATURE_SIZES = tuple(FEATURES), list(FEATURES.values())
AGREEMENT_INPUTS = sum(FEATURE_SIZES)


class AgreementJudge(nn.Module):
    """A dual encoder: unit vectors of captions and of videos, close if the caption is true.

    The video tower stands on what the frame and the motion judge saw (``video_features``).
    """

    def __init__(self) -> None:
        super().__init__()
        width, heads = 64, 4
        self.words = nn.Embedding(len(vocabulary()) + 2, width)
        self.places = nn.Parameter(0.5 * torch.randn(MAX_WORDS, width))
        self.queries = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mixers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.heads = heads
        self.text_head = nn.Linear(width, EMBEDDING)
        self.video_norm = nn.LayerNorm(AGREEMENT_INPUTS)
        self.video_head = nn.Sequential(
            nn.Linear(AGREEMENT_INPUTS, 192),
            nn.GELU(),
            nn.Linear(192, 192),
            nn.GELU(),
            nn.Linear(192, EMBEDDING),
        )
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def text(self, ids: Tensor) -> Tensor:
        """Unit vectors [B, EMBEDDING] of captions given as ids [B, L]."""
        keep = ids != PAD
        x = self.words(ids) + self.places[: ids.shape[1]]
        for i in range(2):
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in self.queries[i](self.norms[2 * i](x)).chunk(3, dim=-1)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
            x = x + mixed.transpose(1, 2).flatten(2)
            x = x + self.mixers[i](self.norms[2 * i + 1](x))
        weight = keep[..., None].to(x.dtype)
        return F.normalize(self.text_head((x * weight).sum(1) / weight.sum(1)).float(), dim=-1)

    def video(self, features: Tensor) -> Tensor:
        """Unit vectors [B, EMBEDDING] of videos given as ``video_features`` [B, AGREEMENT_INPUTS]."""
        return F.normalize(self.video_head(self.video_norm(features)).float(), dim=-1)


def video_features(seen: FrameOutput, motion: Tensor, motion_feature: Tensor) -> Tensor:
    """Join what was seen in the B * T frames and in the B clips, in the order of ``FEATURE_PARTS``.

    Returns [B, AGREEMENT_INPUTS].

    Args:
        seen: the frame judge's output on all frames, videos one after the other.
        motion: logits [B, 9].
        motion_feature: [B, 2 * width].
    """
    videos = len(motion)
    present = by_video(seen.presence.sigmoid(), videos)  # [B, T, S]
    color = (by_video(seen.color.softmax(-1), videos) * present[..., None]).mean(1)
    place = (by_video(4.0 * seen.center - 2.0, videos) * present[..., None]).mean(1)
    parts = [present.mean(1), color.flatten(1), place.flatten(1)]
    parts += [
        by_video(x, videos).mean(1) for x in (seen.number.softmax(-1), seen.scene.softmax(-1), seen.pooled)
    ]
    return torch.cat(
        [*(part.float() for part in parts), motion.float().softmax(-1), motion_feature.float()], dim=1
    )
