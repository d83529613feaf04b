"""A toy "text-to-video model": a small network whose output moves a square."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evalharness.api import Bits, GenerationSettings, TrainBatch
from toybench.hooks import reach

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

WIDTH = 16


class ToyModel:
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a square that moves as a small network says"
    default_protocol: ClassVar[str] = "toy"
    settings: ClassVar[GenerationSettings] = GenerationSettings(
        steps=2, guidance=1.0, frames=5, height=32, width=32, fps=8, scheduler="none"
    )

    def fingerprint(self) -> str:
        return hashlib.sha256(b"toy weights, drawn from seed 0").hexdigest()

    def checkpoint(self, method: str, bits: Bits) -> Path | None:
        root = os.environ.get("TOY_PUBLISHED")
        folder = Path(root) / f"{method}-{bits.label}" if root else None
        return folder if folder is not None and folder.is_dir() else None

    def load(self, device: str) -> LoadedToy:
        return LoadedToy(device)


class LoadedToy:
    def __init__(self, device: str) -> None:
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.device = device
        self.transformer: nn.Module = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)).to(
            device
        )

    def skip_layers(self, preset: str) -> tuple[str, ...]:
        from torch import nn

        linears = [name for name, part in self.transformer.named_modules() if isinstance(part, nn.Linear)]
        return (linears[-1],) if preset == "std" else ()

    def batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        while True:
            x = torch.randn(batch_size, WIDTH, generator=generator).to(self.device)
            yield TrainBatch({"input": x}, x.flip(1))

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor:
        out: torch.Tensor = transformer(**batch.inputs)
        return out

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        import numpy as np

        return np.stack([self._one(text, seed) for text, seed in zip(prompts, seeds, strict=True)])

    def step_inputs(self) -> dict[str, Any]:
        import torch

        reach("profile/step_inputs")
        return {"input": torch.zeros(64, WIDTH, device=self.device)}

    def _one(self, text: str, seed: int) -> np.ndarray:
        import numpy as np
        import torch

        reach(f"generate/{text}")
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            x = torch.randn(1, WIDTH, generator=generator).to(self.device)
            out = torch.sigmoid(self.transformer(input=x))[0].cpu().numpy()
        size = self_size = ToyModel.settings
        video = np.zeros((size.frames, self_size.height, self_size.width, 3), np.uint8)
        video += np.uint8(out[0] * 60)
        for t in range(size.frames):
            left = int(out[1] * 16 + t * out[2] * 2)
            top = int(out[3] * 16)
            video[t, top : top + 8, left : left + 8] = (out[4:7] * 255).astype(np.uint8)
        return video
