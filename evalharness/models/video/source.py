"""Where a pipeline's parts come from: the files of a folder. The transformer can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from evalharness.errors import UserError, one_line
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
            return cls.from_pretrained(self.folder, dtype=dtypes, local_files_only=True)
        except _FAILURES as error:
            raise UserError(
                f"{self.folder} cannot be loaded as a {self.spec.pipeline}: {one_line(error)}"
            ) from error

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
        return module
