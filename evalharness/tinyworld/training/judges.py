"""Train tinyworld's judges on renderings, never on generated videos.

    python -m evalharness.tinyworld.training.judges --out build/judges --device cuda --minutes 3

One loop renders a batch and gives every judge a step on it. ``--part`` trains a single judge beside
the ones that lie in ``--out``. Writes one safetensors file a judge and ``judges.json`` with the
accuracies on held-out renderings, measured on the files as stored.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalharness.tinyworld import judge_files, judge_nets
from evalharness.tinyworld.judges import Judges
from evalharness.tinyworld.training import judge_data, judge_evaluation, judge_losses
from evalharness.tinyworld.training.common import Budget, environment, learning_rate

PEAKS = {"frame": 3e-3, "motion": 2e-3, "quality": 2e-3, "agreement": 2e-3}
LOG_EVERY = 100

log = logging.getLogger(__name__)


def build() -> dict[str, nn.Module]:
    """Fresh networks by the name of their file."""
    kinds = (
        judge_nets.FrameJudge,
        judge_nets.MotionJudge,
        judge_nets.QualityJudge,
        judge_nets.AgreementJudge,
    )
    return {name: kind() for name, kind in zip(judge_files.PARTS, kinds, strict=True)}


def prepare(
    modules: Mapping[str, nn.Module], parts: Sequence[str], folder: Path, device: torch.device
) -> None:
    """Move to ``device``; fill what is not trained, from ``folder`` if it is needed."""
    for name, module in modules.items():
        if name not in parts:
            if name in {"frame", "motion"} and "agreement" in parts:
                judge_files.load_weights(module, folder, name)
            module.requires_grad_(False)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(
    modules: dict[str, nn.Module],
    parts: Sequence[str],
    budget: Budget,
    *,
    batch: int,
    seed: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Train until the budget is spent; returns samples of the loss curve."""
    rng = judge_losses.Randomness(seed, device)
    every_loss = judge_losses.losses(modules)
    optimizers = {
        name: torch.optim.AdamW(modules[name].parameters(), lr=PEAKS[name], weight_decay=0.01)
        for name in parts
    }
    curve: list[dict[str, float]] = []
    while budget.fraction < 1.0:
        scenes = judge_data.training_scenes(batch, rng.cpu, device)
        values = {}
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(PEAKS[name], budget.fraction, step=budget.step, warmup=50)
            loss = every_loss[name](scenes, rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(modules[name].parameters(), 1.0)
            optimizer.step()
            values[name] = loss.detach()
        if budget.step % LOG_EVERY == 0:
            row = {name: round(value.item(), 4) for name, value in values.items()}
            curve.append({"step": budget.step, "seconds": round(budget.seconds, 1), **row})
            log.info("%s", curve[-1])
        budget.step += 1
    return curve


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``--minutes`` or ``--steps`` says when to stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=256, help="clips a step")
    parser.add_argument("--part", choices=judge_files.PARTS, help="train this judge alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-clips", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, measure. Returns 1 when a classifier stays below 97 %."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    parts = (args.part,) if args.part else judge_files.PARTS
    modules = build()
    prepare(modules, parts, args.out, device)
    budget = Budget(args.steps, args.minutes)
    curve = train(modules, parts, budget, batch=args.batch, seed=args.seed, device=device)
    trained = {name: modules[name] for name in parts}
    command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    record: dict[str, Any] = {
        "command": f"python -m evalharness.tinyworld.training.judges {command}",
        "parts": list(parts),
        "steps": budget.step,
        "clips": budget.step * args.batch,
        "seconds": round(budget.seconds),
        "seed": args.seed,
        **environment(device),
        "curve": curve,
    }
    judge_files.save_weights(trained, args.out)
    return finish(args.out, record, device, clips=args.eval_clips)


def finish(folder: Path, record: Mapping[str, Any], device: torch.device, *, clips: int) -> int:
    """Measure the judges as stored, when all are there, and complete the card.

    The card lists the trainings, the latest last; one of all judges starts the list anew.
    """
    whole = set(record["parts"]) == set(judge_files.PARTS)
    earlier = [] if whole else judge_files.read_card(folder).get("training", [])
    facts: dict[str, Any] = {"training": [*earlier, dict(record)]}
    missing = [name for name in judge_files.PARTS if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        judge_files.save_weights({}, folder, facts)
        log.info("not measured: %s still to be trained", ", ".join(missing))
        return 0
    accuracies = judge_evaluation.evaluate(Judges(folder), device, clips=clips)
    judge_files.save_weights({}, folder, {"accuracy": accuracies, **facts})
    for name, entry in accuracies.items():
        log.info("%-16s %.4f  (n=%d)", name, entry["value"], entry["n"])
    short = judge_evaluation.shortfalls(accuracies)
    if short:
        log.error("below %.0f %%: %s", 100 * judge_evaluation.REQUIRED, ", ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
