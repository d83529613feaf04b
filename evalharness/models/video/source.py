"""Where a pipeline's parts come from: the files of a folder. The transformer can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from evalharness.errors import UserError, one_line
from evalharness.models.video.folder import tensor_names
from evalharness.models.video.spec import ModelSpec

__all__ = ["FolderSource", "PipelineSource"]

_FAILURES = (OSError, ValueError, KeyError, ImportError, TypeError, RuntimeError)


class PipelineSource(Protocol):
    """Makes a pipeline of ``spec.pipeline``'s class, and its transformers as often as they are wanted."""

    def pipeline(self, cls: Any, dtypes: dict[str, torch.dtype]) -> Any:
        """A pipeline of class ``cls``; ``dtypes`` by part, ``default`` for the others."""
        ...

    def transformer(self, name: str, dtype: torch.dtype) -> nn.Module:
        """Another module like the pipeline's part ``name`` as it was at first, with the same weights."""
        ...


class FolderSource:
    """What diffusers' ``save_pretrained`` wrote."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = folder, spec

    def pipeline(self, cls: Any, dtypes: dict[str, torch.dtype]) -> Any:
        """Read all parts.

        Raises:
            UserError: they do not fit together, or their files do not fit their configuration.
        """
        try:
            pipeline = cls.from_pretrained(self.folder, dtype=dtypes, local_files_only=True)
        except _FAILURES as error:
            raise UserError(
                f"{self.folder} cannot be loaded as a {self.spec.pipeline}: {one_line(error)}"
            ) from error
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                refuse_unfit(part, self.folder / name)
        return pipeline

    def transformer(self, name: str, dtype: torch.dtype) -> nn.Module:
        """Read one transformer again.

        Raises:
            UserError: the folder has changed since.
        """
        import diffusers

        cls = getattr(diffusers, self.spec.transformer)
        try:
            module: nn.Module = cls.from_pretrained(self.folder / name, dtype=dtype, local_files_only=True)
        except _FAILURES as error:
            raise UserError(f"{self.folder / name} cannot be read again: {one_line(error)}") from error
        refuse_unfit(module, self.folder / name)
        return module


def refuse_unfit(module: nn.Module, folder: Path) -> None:
    """Weights that ``module`` has and its files lack, or blocks that they have and it lacks.

    Libraries load such files with a warning, or none: random numbers, or a model that ends early.

    Raises:
        UserError: names one of them.
    """
    stored = tensor_names(folder)
    present = {tensor.data_ptr() for name, tensor in _kept(module) if name in stored}  # tied ones have names
    lacking = [
        name for name, tensor in _kept(module)
        if name not in stored and (tensor.is_meta or tensor.data_ptr() not in present)
    ]  # fmt: skip
    if lacking:
        raise UserError(
            f"{folder}: {len(lacking)} of its weights are in no file ({lacking[0]}); fetch or copy it again, "
            "or config.json is another model's"
        )
    lists = {name: len(part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    for name in sorted(stored):
        head, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if head in lists and number.isdigit() and int(number) >= lists[head]:
            raise UserError(
                f"{folder}: its files have {name}, and config.json a model with {lists[head]} {head}; "
                "one of them is another model's"
            )


def _kept(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and what else a file holds, under each of their names."""
    return [(name, value) for name, value in module.state_dict(keep_vars=True).items() if value.numel()]
