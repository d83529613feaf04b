"""Contact sheets: a few frames of generated videos under the captions that asked for them.

python -m evalharness.tinyworld.training.sheet --pipeline build/pipeline/pipeline --out docs/images/sheet.png
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXPipeline

from evalharness.tinyworld import components, spec
from evalharness.tinyworld.gallery import contact_sheet


def held_out_captions(count: int, seed: int) -> list[str]:
    """Captions of the held-out split, three singles to two pairs."""
    rng = random.Random(seed)
    clips = [spec.random_clip(rng, held_out=True, pair=index % 5 >= 3) for index in range(count)]
    return [spec.caption(clip) for clip in clips]


def generate(
    pipeline: CogVideoXPipeline, captions: Sequence[str], *, steps: int, guidance: float, seed: int
) -> np.ndarray:
    """Videos uint8 [B, T, H, W, 3]; row i uses CPU noise of seed ``seed + i``."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(captions))]
    output = pipeline(
        prompt=list(captions),
        height=spec.SIZE,
        width=spec.SIZE,
        num_frames=spec.FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        max_sequence_length=components.TEXT_LENGTH,
        output_type="np",
    ).frames
    return np.asarray(np.round(np.clip(output, 0.0, 1.0) * 255.0), dtype=np.uint8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    pipeline = CogVideoXPipeline.from_pretrained(args.pipeline, dtype=torch.float32).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.count, args.seed)
    videos = generate(pipeline, captions, steps=args.steps, guidance=args.guidance, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pairs = [slice(start, start + 2) for start in range(0, len(captions), 2)]
    contact_sheet([list(videos[pair]) for pair in pairs], [captions[pair] for pair in pairs]).save(args.out)


if __name__ == "__main__":
    main()
