"""Encoded clips on disk: safetensors shards, one bucket each, and reading batches from them.

A shard has ``latents`` [n, C, F, h, w] and ``text`` [n, L, D], both float16. Latents are normalised as
the model's decoder undoes it; the distribution's mean, no sample of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalharness.data.manifest import read_manifest
from evalharness.errors import UserError, one_line

__all__ = ["EncodedClips"]


HELD_OUT = 50
_LEAST = 100  # clips of a bucket from which on some are held out


def _held(index: int, rows: list[tuple[str, int]]) -> bool:
    return len(rows) >= _LEAST and index % HELD_OUT == 0


class EncodedClips:
    """Draws batches; reads only the rows that it needs.

    Raises:
        UserError: no finished folder, or a shard that is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        every: dict[str, list[tuple[str, int]]] = {}
        for shard in self.manifest["shards"]:
            if not (folder / shard["file"]).is_file():
                raise UserError(f"--data {folder}: {shard['file']} is missing; encode again")
            rows = [(shard["file"], row) for row in range(len(shard["clips"]))]
            every.setdefault(shard["bucket"], []).extend(rows)
        if not every:
            raise UserError(f"--data {folder}: every clip was dropped; see report.json there")
        self._trained = {
            name: [row for i, row in enumerate(rows) if not _held(i, rows)] for name, rows in every.items()
        }
        self._held = {
            name: kept for name, rows in every.items() if (kept := rows[::HELD_OUT]) and _held(0, rows)
        }
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._trained.values())

    def draw(self, size: int, generator: torch.Generator, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """``size`` clips of one bucket, with replacement; every clip is as likely as any other.

        ``held_out``: of those that are not trained on, one in ``HELD_OUT``; of all where there are too few.
        """
        buckets = self._held if held_out and self._held else self._trained
        names = sorted(buckets)
        weights = torch.tensor([float(len(buckets[name])) for name in names])
        bucket = buckets[names[int(torch.multinomial(weights, 1, generator=generator))]]
        rows = torch.randint(len(bucket), (size,), generator=generator).tolist()
        drawn = [self.row(*bucket[row]) for row in rows]
        return torch.stack([latents for latents, _ in drawn]), torch.stack([text for _, text in drawn])

    def empty_caption(self) -> Tensor | None:
        """Embedding [L, D] of no words; None in a folder from before it was stored.

        Raises:
            UserError: its file is missing, or is not the one that was encoded.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        stored = self.manifest.get("empty_caption")
        if stored is None:
            return None
        try:
            data = (self.folder / stored["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != stored["sha256"]:
                raise ValueError("altered since it was written")
            text = load(data)["text"]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise self._damaged(stored["file"], error) from error
        return text

    def _damaged(self, file: str, error: Exception) -> UserError:
        return UserError(f"--data {self.folder}: {file} is damaged ({one_line(error)}); encode again")

    def row(self, file: str, number: int) -> tuple[Tensor, Tensor]:
        """Latents [C, F, h, w] and embedding [L, D] of one clip."""
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._open:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            shard = self._open[file]
            latents: Tensor = shard.get_slice("latents")[number : number + 1][0]
            text: Tensor = shard.get_slice("text")[number : number + 1][0]
        except (OSError, ValueError, IndexError, SafetensorError) as error:
            raise self._damaged(file, error) from error
        return latents, text
