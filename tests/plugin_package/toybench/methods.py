"""Two toy methods: rounding, and rounding after a little training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from toybench.hooks import reach

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyRound:
    """Rounds the weights of all layers that are not skipped to ``2 ** w_bits`` levels."""

    name: ClassVar[str] = "toy-round"
    summary: ClassVar[str] = "round every weight matrix"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "none"

    w_bits: int
    a_bits: int
    shrink: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shrink <= 1:
            raise ValueError(f"shrink is {self.shrink}; expected a number in (0, 1]")

    def apply(self, model: nn.Module, ctx: Any) -> nn.Module:
        reach(f"prepare/{self.name}")
        return _round(model, self.w_bits, self.shrink, ctx.skip_layers).eval()

    def save(self, model: nn.Module, folder: Path) -> None:
        _save(self.name, self.w_bits, model, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        return _load(self.name, self.w_bits, model, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyTrain:
    """Trains with SGD, then rounds."""

    name: ClassVar[str] = "toy-train"
    summary: ClassVar[str] = "train a little, then round"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "training"

    w_bits: int
    a_bits: int
    steps: int = 5

    def apply(self, model: nn.Module, ctx: Any) -> nn.Module:
        import torch

        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        batches = ctx.batches(4)
        for step in ctx.track(range(self.steps), "training"):
            reach(f"prepare/{self.name}")
            batch = next(batches)
            loss = torch.nn.functional.mse_loss(ctx.predict(model, batch), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ctx.log({"step": step, "loss": loss.item()})
        return _round(model, self.w_bits, 1.0, ctx.skip_layers).eval()

    def save(self, model: nn.Module, folder: Path) -> None:
        _save(self.name, self.w_bits, model, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        return _load(self.name, self.w_bits, model, folder)


def _round(model: nn.Module, bits: int, shrink: float, skip: tuple[str, ...]) -> nn.Module:
    import torch

    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and name not in skip:
                step = shrink * layer.weight.abs().max() / 2 ** (bits - 1)
                layer.weight.copy_((layer.weight / step).round() * step)
    return model


def _save(name: str, bits: int, model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous().cpu() for key, value in model.state_dict().items()}, folder / "w.safetensors"
    )
    (folder / "toy.json").write_text(json.dumps({"method": name, "w_bits": bits}))


def _load(name: str, bits: int, model: nn.Module, folder: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        header = json.loads((folder / "toy.json").read_text())
        weights = load_file(folder / "w.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"not a toy checkpoint ({error})") from error
    if header != {"method": name, "w_bits": bits}:
        raise ValueError(f"holds {header}, wanted method {name} at {bits} bits")
    model.load_state_dict(weights)
    return model.eval()
