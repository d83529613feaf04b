"""Make all of tinyworld's shipped assets again, from nothing.

    python -m evalharness.tinyworld.training.rebuild --device cuda --build build/tinyworld

Runs the trainings one after the other, each in its own process, and skips what lies finished in the
build folder, so that a call that was cut short goes on where it stopped. At the end the assets are
copied into the package with ``--install``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ASSETS = Path(__file__).parent.parent / "assets"
PUBLISHED = [(method, bits) for bits in ("4", "3", "2") for method in ("lsq", "kd-qat", "qvgen")]
MODULES = "evalharness.tinyworld.training"

Call = Callable[[Sequence[str]], int]


class Stage(NamedTuple):
    """One training: ``done`` exists once it has finished."""

    name: str
    arguments: list[str]
    done: Path


def stages(build: Path, device: str, config: Path, scale: float) -> list[Stage]:
    """The recipe. Steps are those of the published weights; ``scale`` shortens all, for a trial."""

    def steps(count: int) -> list[str]:
        return ["--steps", str(max(2, round(count * scale))), "--device", device]

    def clips(count: int, flag: str = "--clips") -> list[str]:
        return [flag, str(max(8, round(count * scale)))]

    def batch(size: int) -> list[str]:
        return ["--batch", str(size if scale == 1.0 else min(size, 4))]

    vae, decoder, model = build / "vae", build / "vae-decoder", build / "text2video"
    pipeline, joint = model / "pipeline", build / "judges-joint"
    plan = [
        Stage(
            "vae",
            ["--out", str(vae)] + batch(64) + steps(3000) + clips(16384, "--pool"),
            vae / "training.json",
        ),
        Stage(
            "vae",
            ["--init", str(vae), "--decoder-only", "--out", str(decoder), "--lr", "1e-3", "--seed", "300"]
            + (["--channels-last", "--graph"] if device == "cuda" else [])
            + batch(64)
            + steps(10000)
            + clips(16384, "--pool"),
            decoder / "training.json",
        ),
        Stage(
            "text2video",
            ["--vae", str(vae), "--out", str(model), "--lr", "1.2e-3"]
            + batch(384)
            + steps(49000)
            + clips(65536),
            model / "training.json",
        ),
        Stage(
            "judges",
            ["--out", str(joint)] + batch(256) + steps(1050) + clips(2000, "--eval-clips"),
            joint / "judges.json",
        ),
        Stage(
            "judge_heads",
            ["--judges", str(joint), "--out", str(build / "judges"), "--device", device]
            + clips(5000)
            + ["--agreement-steps", str(max(2, round(12000 * scale)))],
            build / "judges" / "judges.json",
        ),
    ]
    for method, bits in PUBLISHED:
        out = build / "checkpoints"
        arguments = ["--config", str(config), "--method", method, "--bits", bits, "--device", device]
        arguments += ["--pipeline", str(pipeline), "--out", str(out)]
        plan.append(Stage("checkpoints", arguments, out / f"{method}-w{bits}a{bits}" / "evalharness.json"))
    return plan


def run_stages(plan: Sequence[Stage], build: Path, call: Call) -> None:
    """Run what is not done yet, in order.

    Args:
        plan: from ``stages``.
        build: the build folder.
        call: runs a command and returns its exit code.

    Raises:
        SystemExit: a stage ended without its result.
    """
    for stage in plan:
        if stage.done.exists():
            continue
        if stage.name == "checkpoints":
            _better_decoder(build)
        command = [sys.executable, "-m", f"{MODULES}.{stage.name}", *stage.arguments]
        sys.stderr.write(" ".join(["+", *command[1:]]) + "\n")
        # The judges' training reports accuracies below its bar by exit code 1; the files are there.
        code = call(command)
        if not stage.done.exists():
            sys.exit(
                f"{stage.name} stopped with exit code {code} and without {stage.done}; "
                "run the same command again to go on"
            )


def install(build: Path, assets: Path) -> None:
    """Put the finished assets into the package, each folder whole: no file of an older one stays."""
    pairs = [
        (build / "text2video" / "pipeline", assets / "pipeline"),
        (build / "judges", assets / "judges"),
    ]
    made = sorted(path for path in (build / "checkpoints").iterdir() if path.is_dir())
    pairs += [(folder, assets / "checkpoints" / folder.name) for folder in made]
    for source, target in pairs:
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(source, target)
    names = {folder.name for folder in made}
    others = sorted(path.name for path in (assets / "checkpoints").iterdir() if path.name not in names)
    if others:
        sys.stderr.write(
            f"checkpoints of another pipeline, to be trained again or removed: {', '.join(others)}\n"
        )


def main(arguments: Sequence[str] | None = None, *, call: Call | None = None, assets: Path = ASSETS) -> None:
    """Command line; ``call`` and ``assets`` are for tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--config", type=Path, default=Path("configs/tinyworld-published.yaml"))
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every training, for a trial")
    parser.add_argument("--install", action="store_true", help="copy the result into the package")
    args = parser.parse_args(arguments)
    plan = stages(args.build, args.device, args.config, args.scale)
    run_stages(plan, args.build, call or _call)
    if args.install:
        install(args.build, assets)


def _call(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode


def _better_decoder(build: Path) -> None:
    """Give the pipeline the longer-trained decoder; the latents it decodes are the same."""
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(build / "vae-decoder" / name, build / "text2video" / "pipeline" / "vae" / name)


if __name__ == "__main__":
    main()
