"""Train one quantized tinyworld checkpoint by the harness's own prepare stage, for publishing.

    python -m evalharness.tinyworld.training.checkpoints \
        --config configs/tinyworld-published.yaml --method qvgen --bits 3 --out build/checkpoints

The config is one for ``evalharness run``; its ``method_options`` hold the recipe. What is written is
what ``run --train`` would have written into the cell's ``checkpoint/``, and beside it ``train.jsonl``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import yaml

from evalharness.api import Bits
from evalharness.cells import Cell, build_method
from evalharness.checkpoints import CARD_NAME, checkpoint_card
from evalharness.executor import WorkerSpec
from evalharness.hashing import jsonable
from evalharness.models.tinyworld import TinyWorld
from evalharness.session import Session
from evalharness.stages import prepare
from evalharness.store import atomic_write_json


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--bits", type=Bits.parse, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pipeline", type=Path, help="pipeline folder (the package's)")
    parser.add_argument("--clips", type=int, help="training clips to render (the model's default)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text())
    skip = config.get("skip_layers", "std")
    options = config["method_options"].get(args.method, {})
    cell = Cell(model="tinyworld", method=args.method, bits=args.bits, seed=args.seed, options=options)
    session = Session(
        WorkerSpec(model="tinyworld", protocol="tinyworld", device=args.device, skip_layers=skip)
    )
    if args.pipeline:
        session.model = TinyWorld(args.pipeline)
    if args.clips:
        session.loaded.training_clips = args.clips  # type: ignore[attr-defined]
    target = args.out / cell.checkpoint_name
    target.mkdir(parents=True, exist_ok=True)
    payload = {"cell": cell.to_json(), "source": None, "target": str(target)}
    start = time.monotonic()
    prepare.work(session, {**payload, "train_log": str(args.out / f"{cell.checkpoint_name}.train.jsonl")})
    card = checkpoint_card(
        cell,
        jsonable(build_method(session.registry, cell)),
        model_fingerprint=session.model.fingerprint(),
        skip_layers=skip,
        device=args.device,
        training_clips=session.loaded.training_clips,  # type: ignore[attr-defined]
    )
    atomic_write_json(
        target / CARD_NAME, {**card, "train_minutes": round((time.monotonic() - start) / 60, 2)}
    )


if __name__ == "__main__":
    main()
