"""Contact sheets of a run folder's videos, for documents.

    python -m evalharness.tinyworld.gallery runs/tinyworld --out docs/images/methods.png --prompts 0003,0020
    python -m evalharness.tinyworld.gallery runs/tinyworld --out docs/images/tinyworld.png --cells bf16-s0

One strip of five frames a video: a row a prompt and a column a cell, or, for a single cell, two
prompts a row. Frames are read from the files that were scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from evalharness.protocols.tinyworld import TinyWorldProtocol
from evalharness.video import read_video

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN_FRAMES = (0, 4, 8, 12, 16)
ZOOM = 2
CAPTION_HEIGHT = 14
GAP = 8


def contact_sheet(strips: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[str]]) -> Image.Image:
    """Rows of videos, uint8 [T, H, W, 3] each, under their captions; all of one size."""
    _, height, width, _ = strips[0][0].shape
    cell_w = len(SHOWN_FRAMES) * width * ZOOM + GAP
    cell_h = height * ZOOM + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (max(len(row) for row in strips) * cell_w, len(strips) * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (row, texts) in enumerate(zip(strips, captions, strict=True)):
        for x, (video, text) in enumerate(zip(row, texts, strict=True)):
            strip = Image.fromarray(np.concatenate([video[frame] for frame in SHOWN_FRAMES], axis=1))
            strip = strip.resize((strip.width * ZOOM, strip.height * ZOOM), Image.Resampling.NEAREST)
            draw.text((x * cell_w + 2, y * cell_h), text, fill="black")
            sheet.paste(strip, (x * cell_w, y * cell_h + CAPTION_HEIGHT))
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Contact sheets of a run folder's videos.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", default="", help="cell ids (all)")
    parser.add_argument("--prompts", default="", help="prompt ids")
    parser.add_argument("--count", type=int, default=8, help="that many prompts, evenly spread")
    args = parser.parse_args(argv)
    texts = {prompt.id: prompt.text for prompt in TinyWorldProtocol().prompts()}
    ids = list(texts)
    prompts = (
        args.prompts.split(",") if args.prompts else ids[:: max(1, len(ids) // args.count)][: args.count]
    )
    cells = (
        args.cells.split(",") if args.cells else sorted(path.name for path in (args.run / "cells").iterdir())
    )

    def frames(cell: str, prompt: str) -> np.ndarray:
        return read_video(args.run / "cells" / cell / "videos" / f"{prompt}-0.mp4").frames

    if len(cells) == 1:
        pairs = [prompts[i : i + 2] for i in range(0, len(prompts), 2)]
        strips = [[frames(cells[0], prompt) for prompt in pair] for pair in pairs]
        captions = [[texts[prompt] for prompt in pair] for pair in pairs]
    else:
        strips = [[frames(cell, prompt) for cell in cells] for prompt in prompts]
        captions = [[f"{cell}: {texts[prompt]}" for cell in cells] for prompt in prompts]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(strips, captions).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
