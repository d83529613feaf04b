"""Train the judges' last layers again, on what their frozen trunks see: short even without a GPU.

    python -m evalharness.tinyworld.training.judge_heads --judges build/judges --clips 3000

The joint training (``judges.py``) leaves three parts short. The consistency features meet two
undamaged frames in one pair of sixteen only, so they charge clean movement for what damage should
cost; here most frames are clean. The motion judge never meets the cross-faded frames of a video
model's temporal decoder and takes them for broken videos; here they are imitated on renderings.
The dual encoder meets too few captions with swapped colours; here it sees every false caption of
every clip. The frame judge's classifiers stay as they are, to the last bit.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evalharness.tinyworld import judge_files, judge_nets, spec, world
from evalharness.tinyworld.judge_nets import by_video
from evalharness.tinyworld.judges import Judges
from evalharness.tinyworld.training import damage, judge_data, judge_losses
from evalharness.tinyworld.training.common import environment, learning_rate
from evalharness.tinyworld.training.judges import finish

VIEWS = 6
MOTION_VIEWS = 4
DAMAGE_CHANCE = 0.12
CHUNK = 25
PEAKS = {"frame heads": 2e-3, "motion heads": 1e-3, "agreement": 2e-3}
PAIRS = 256
CAPTIONED = 64
MOTIONS = 512
LOG_EVERY = 250

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What the frozen trunks saw of N clips, V damaged frames each.

    Attributes:
        batch: ids of the clips.
        fine: float16 [N, V, 4 * SHALLOW, G, G], the map below ``FrameJudge.texture``.
        severity: [N, V].
        center: [N, V, K, 2] of the things, ``place``: [N, V, S, 2] by shape.
        present: [N, S].
        features: [N, AGREEMENT_INPUTS] of the mildly damaged whole clip.
        whole: [N, T - 1, 2 * 64], ``MotionJudge.look`` on the same.
        steps: [N, V, T - 1, 2 * 64], on smeared and broken versions of the clip.
        motion: [N, V], their classes.
    """

    batch: world.WorldBatch
    fine: Tensor
    severity: Tensor
    center: Tensor
    place: Tensor
    present: Tensor
    features: Tensor
    whole: Tensor
    steps: Tensor
    motion: Tensor


@torch.no_grad()
def look(judges: Judges, clips: int, rng: judge_losses.Randomness, device: torch.device) -> Seen:
    """Render ``clips`` training clips and keep what the later losses need of them."""
    parts: list[Seen] = []
    for start in range(0, clips, CHUNK):
        scenes = judge_data.training_scenes(min(CHUNK, clips - start), rng.cpu, device)
        parts.append(_look_at(judges, scenes, rng))
        if len(parts) % 20 == 0:
            log.info("rendered %d of %d clips", start + CHUNK, clips)
    batch = world.WorldBatch(*(torch.cat(ids) for ids in zip(*((*p.batch,) for p in parts), strict=True)))
    return Seen(batch, *(torch.cat(values) for values in list(zip(*parts, strict=True))[1:]))


def _look_at(judges: Judges, scenes: judge_data.Scenes, rng: judge_losses.Randomness) -> Seen:
    count, length = scenes.video.shape[:2]
    device = scenes.video.device
    rows = torch.arange(count, device=device).repeat_interleave(VIEWS)
    times = rng.integers(length, count * VIEWS).to(device)
    frames, severity = damage.random_damage(
        scenes.video[rows, times], rng.device, damage.APPEARANCE_DAMAGES, chance=DAMAGE_CHANCE
    )
    fine = judges.frame.fine(judges.frame.stem(2.0 * damage.codec(frames, rng.device) - 1.0))
    video = judge_data.damaged_clips(scenes.video, rng.device)
    whole = judges.motion.look(video)
    features = judge_nets.video_features(judges.frame(video.flatten(0, 1)), *judges.motion.decide(whole))
    broken = [judge_data.motion_clips(scenes, rng.cpu) for _ in range(MOTION_VIEWS)]
    steps = [judges.motion.look(judge_data.smeared_clips(clips, rng.device)) for clips, _ in broken]
    return Seen(
        batch=scenes.batch,
        fine=by_video(nn.functional.pixel_unshuffle(fine, 2).half(), count),
        severity=by_video(severity, count),
        center=by_video(scenes.center[rows, :, times], count),
        place=by_video(judge_data.shape_centers(scenes, rows, times), count),
        present=scenes.present,
        features=features,
        whole=whole,
        steps=torch.stack(steps, dim=1),
        motion=torch.stack([labels for _, labels in broken], dim=1),
    )


def consistency_loss(judge: judge_nets.FrameJudge, seen: Seen, rng: judge_losses.Randomness) -> Tensor:
    """``judge_losses.frame_loss``'s second half, on two of the kept views of each clip."""
    device = seen.severity.device
    rows = torch.randperm(len(seen.severity), generator=rng.cpu)[:PAIRS].to(device)
    views = torch.rand(len(rows), VIEWS, generator=rng.cpu).argsort(1)[:, :2].T.flatten().to(device)
    both = rows.repeat(2)
    batch = world.WorldBatch(*(ids[rows] for ids in (*seen.batch,)))
    slot = rng.integers(world.SLOTS, len(rows)).to(device) * (batch.count > 1)
    center = seen.center[both, views, slot.repeat(2)]
    center = center + 0.02 * torch.randn(center.shape, generator=rng.device, device=device)
    texture = judge.texture(seen.fine[both, views].float())
    return judge_losses.likeness_loss(
        judge.subject(texture, center),
        judge.background(texture, seen.present[both].float(), seen.place[both, views]),
        seen.severity[both, views],
        batch,
        slot,
    )


def motion_loss(judge: judge_nets.MotionJudge, seen: Seen, rng: judge_losses.Randomness) -> Tensor:
    """The motion of a version of a clip, or that it shows none."""
    rows = rng.integers(len(seen.motion), MOTIONS).to(seen.motion.device)
    views = rng.integers(MOTION_VIEWS, MOTIONS).to(seen.motion.device)
    logits, _ = judge.decide(seen.steps[rows, views])
    return nn.functional.cross_entropy(logits, seen.motion[rows, views])


def agreement_loss(judge: judge_nets.AgreementJudge, seen: Seen, rng: judge_losses.Randomness) -> Tensor:
    """Contrast each clip's caption with the batch's and with all its false ones.

    The clips are renamed first, so that a few thousand show all combinations.
    """
    rows = (seen.batch.count > 0).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=rng.cpu)[:CAPTIONED].to(rows.device)]
    batch = world.WorldBatch(*(ids[rows] for ids in (*seen.batch,)))
    batch, features = renamed(batch, seen.features[rows], rng.cpu)
    clips = world.decode_clips(batch)
    true = [spec.caption(clip, name_relation=rng.python.random() < 0.8) for clip in clips]
    wrong = [text for clip in clips for text in judge_data.wrong_captions(clip, rng.python)]
    return judge_losses.contrast(judge, judge.video(features), true, wrong)


def renamed(
    batch: world.WorldBatch, features: Tensor, generator: torch.Generator
) -> tuple[world.WorldBatch, Tensor]:
    """The same clips in a world in which shapes, colours and scenes have changed their names.

    What the judges found is renamed alike. The parts of ``features`` [b, AGREEMENT_INPUTS] that
    have no name are dealt to other clips, so that nothing can be learned by heart from them.
    """
    device = features.device
    shape, color, scene = (
        torch.randperm(len(names), generator=generator).to(device)
        for names in (spec.SHAPES, spec.COLORS, spec.SCENES)
    )
    parts = dict(zip(judge_nets.FEATURE_PARTS, features.split(judge_nets.FEATURE_SIZES, dim=1), strict=True))
    back_shape, back_color, back_scene = shape.argsort(), color.argsort(), scene.argsort()
    colors = parts["color"].unflatten(1, (len(spec.SHAPES), -1))
    places = parts["place"].unflatten(1, (len(spec.SHAPES), -1))
    parts["presence"] = parts["presence"][:, back_shape]
    parts["color"] = colors[:, back_shape][:, :, back_color].flatten(1)
    parts["place"] = places[:, back_shape].flatten(1)
    parts["scene"] = parts["scene"][:, back_scene]
    for nameless in ("pooled", "motion_feature"):
        parts[nameless] = parts[nameless].roll(1, 0)
    batch = batch._replace(shape=shape[batch.shape], color=color[batch.color], scene=scene[batch.scene])
    return batch, torch.cat([parts[name] for name in judge_nets.FEATURE_PARTS], dim=1)


def train(
    judges: Judges, seen: Seen, rng: judge_losses.Randomness, *, steps: int, agreement_steps: int
) -> dict[str, list[dict[str, float]]]:
    """Train all parts, the agreement judge last: it reads the motion judge's output."""
    frame, motion = judges.frame, judges.motion
    heads = nn.ModuleList([frame.texture, frame.subject_head, frame.background_head])
    deciding = nn.ModuleList([motion.project, motion.temporal, motion.head])
    curves = {
        "frame heads": fit("frame heads", heads, lambda: consistency_loss(frame, seen, rng), steps),
        "motion heads": fit("motion heads", deciding, lambda: motion_loss(motion, seen, rng), steps),
    }
    now = seen._replace(features=_with_motion(seen.features, *motion.decide(seen.whole)))
    curves["agreement"] = fit(
        "agreement",
        judges.agreement,
        lambda: agreement_loss(judges.agreement, now, rng),
        agreement_steps,
    )
    return curves


def _with_motion(features: Tensor, logits: Tensor, feature: Tensor) -> Tensor:
    """``video_features`` with its last part, the motion judge's, replaced."""
    judged = torch.cat([logits.softmax(-1), feature], dim=1).detach()
    return torch.cat([features[:, : -judged.shape[1]], judged], dim=1)


def fit(name: str, module: nn.Module, loss_of: Callable[[], Tensor], steps: int) -> list[dict[str, float]]:
    """``steps`` steps of AdamW on ``module``; returns samples of the loss curve."""
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAKS[name], weight_decay=0.01)
    curve: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAKS[name], step / steps, step=step, warmup=50)
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % LOG_EVERY == 0 or step == steps - 1:
            curve.append({"step": step, "loss": round(loss.item(), 4)})
            log.info("%s %s", name, curve[-1])
    module.requires_grad_(False)
    return curve


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, measure. Returns 1 when a classifier stays below 97 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--judges", type=Path, required=True, help="trained judges")
    parser.add_argument("--out", type=Path, help="where the result goes (in place)")
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=2500, help="for each part of frame and motion judge")
    parser.add_argument("--agreement-steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-clips", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device(args.device)
    started = time.monotonic()
    out: Path = args.out or args.judges
    if args.out:
        shutil.copytree(args.judges, out, dirs_exist_ok=True)
    judges = Judges(out)
    for module in judges.parts().values():
        module.to(device)
    rng = judge_losses.Randomness(args.seed, device)
    seen = look(judges, args.clips, rng, device)
    curves = train(judges, seen, rng, steps=args.steps, agreement_steps=args.agreement_steps)
    command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    record = {
        "command": f"python -m evalharness.tinyworld.training.judge_heads {command}",
        "parts": list(curves),
        "steps": [args.steps, args.steps, args.agreement_steps],
        "clips": args.clips,
        "seconds": round(time.monotonic() - started),
        "seed": args.seed,
        **environment(device),
        "curve": curves,
    }
    changed = {name: judges.parts()[name] for name in ("frame", "motion", "agreement")}
    judge_files.save_weights(changed, out)
    return finish(out, record, device, clips=args.eval_clips)


if __name__ == "__main__":
    sys.exit(main())
