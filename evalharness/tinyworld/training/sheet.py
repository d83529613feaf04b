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
from PIL import Image, ImageDraw

from evalharness.tinyworld import components, spec

SHOWN_FRAMES = (0, 4, 8, 12, 16)
ZOOM = 2
CAPTION_HEIGHT = 14


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


def contact_sheet(videos: np.ndarray, captions: Sequence[str], columns: int = 2) -> Image.Image:
    """One strip of ``SHOWN_FRAMES`` per video, caption on top."""
    _, _, height, width, _ = videos.shape
    cell_w, cell_h = len(SHOWN_FRAMES) * width * ZOOM + 8, height * ZOOM + CAPTION_HEIGHT + 6
    rows = -(-len(videos) // columns)
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        left, top = (index % columns) * cell_w, (index // columns) * cell_h
        strip = Image.fromarray(np.concatenate([video[frame] for frame in SHOWN_FRAMES], axis=1))
        draw.text((left + 2, top), caption, fill="black")
        sheet.paste(strip.resize((strip.width * ZOOM, strip.height * ZOOM), Image.Resampling.NEAREST), (left, top + CAPTION_HEIGHT))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    pipeline = CogVideoXPipeline.from_pretrained(args.pipeline, dtype=torch.float32).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.count, args.seed)
    videos = generate(pipeline, captions, steps=args.steps, guidance=args.guidance, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(videos, captions).save(args.out)


if __name__ == "__main__":
    main()
