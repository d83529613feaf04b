"""What the model plugins of this folder share. No torch at import."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evalharness.api import Bits
from evalharness.errors import UserError
from evalharness.modeloptions import ModelOptions
from evalharness.models.video.folder import check_folder, fingerprint, resolve_folder
from evalharness.models.video.settings import VideoSettings, override
from evalharness.models.video.spec import ModelSpec

if TYPE_CHECKING:
    from evalharness.models.video.pipeline import LoadedVideo

__all__ = ["VideoModel"]


class VideoModel:
    """A pipeline from a folder; satisfies ``evalharness.api.Model``.

    Attributes:
        spec: what is known of it.
        loaded_class: ``module:class`` of what ``load`` returns.
        settings: of generation: the protocol's, with the user's values in their place.
    """

    configurable: ClassVar[bool] = True
    name: ClassVar[str]
    summary: ClassVar[str]
    default_protocol: ClassVar[str] = "qvgen-8"
    spec: ClassVar[ModelSpec]
    loaded_class: ClassVar[str]

    def __init__(self, options: ModelOptions | None = None) -> None:
        self.options = options or ModelOptions()
        chosen = self.spec.settings_for(self.options.protocol or self.default_protocol)
        chosen = override(chosen, self.options.generation)
        self.settings: VideoSettings = dataclasses.replace(
            chosen, tiled_decode=self.options.memory != "resident"
        )

    def folder(self) -> Path:
        """Where its weights lie.

        Raises:
            UserError: nowhere, or what lies there is not this model, not whole, or of another revision.
        """
        folder = resolve_folder(self.spec, self.options.weights, self.options.revision)
        check_folder(folder, self.spec)
        return folder

    def fingerprint(self) -> str:
        """SHA-256 over names and bytes of the folder's files."""
        return fingerprint(self.folder())

    def training_data(self) -> str | None:
        """What tells its training data from others: a hash, ``teacher``, or None without any.

        Raises:
            UserError: the folder given with ``--data`` is none of ``evalharness data``, or was encoded by
                another model.
        """
        if self.options.data in (None, "teacher"):
            return self.options.data
        from evalharness.data.manifest import read_manifest

        manifest = read_manifest(Path(str(self.options.data)))
        if manifest["model_fingerprint"] != self.fingerprint():
            raise UserError(
                f"--data {self.options.data}: encoded by other weights than those of model {self.name}; make "
                "it again with: evalharness data"
            )
        return str(manifest["sha256"])

    def check_training(self, recipe: Mapping[str, Any], rank: int, gpus: int, observed: int = 0) -> None:
        """Before a training on CUDA: whether it fits the memory of each GPU.

        Args:
            recipe: fields of the method's recipe.
            rank: of Phi; 0 without it.
            gpus: that share the training.
            observed: samples of a batch that the method looks at before it trains.

        Raises:
            UserError: it cannot fit; names what would.
        """
        if self.spec.shape is None:
            return
        import torch

        from evalharness.machine.preflight import Host, Training, preflight
        from evalharness.memory import host_memory_left

        memory = float(torch.cuda.get_device_properties(0).total_memory)
        left = host_memory_left()
        host = None if left is None else Host(left, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        training = Training.of(recipe, rank, gpus, observed)
        preflight(self.spec, self._training_settings(), training, memory, host)

    def _training_settings(self) -> VideoSettings:
        """Of the largest clips of the training data, or of generation."""
        if self.options.data in (None, "teacher"):
            return self.settings
        from evalharness.data.frames import Bucket
        from evalharness.data.manifest import read_manifest

        shards = read_manifest(Path(str(self.options.data)))["shards"]
        largest = max(
            (Bucket.parse(shard["bucket"]) for shard in shards), key=lambda b: b.frames * b.height * b.width
        )
        return dataclasses.replace(
            self.settings, frames=largest.frames, height=largest.height, width=largest.width
        )

    def predicted_seconds(self, device: str) -> tuple[float, float] | None:
        """Of one video and of one sample in training, at nominal rates; None for a model of any size."""
        if self.spec.shape is None:
            return None
        from evalharness.machine.costs import NOMINAL, training_seconds, video_seconds

        rates = NOMINAL[device]
        return (
            video_seconds(self.spec, self.settings, rates),
            training_seconds(self.spec, self._training_settings(), rates),
        )

    def checkpoint(self, method: str, bits: Bits) -> Path | None:
        """None: no checkpoint comes with the harness; ``--load DIR`` takes the user's own."""
        return None

    def load(self, device: str) -> LoadedVideo:
        """Build the pipeline.

        Raises:
            UserError: the folder is unfit, a package is missing, or the settings do not fit the model.
        """
        folder = self.folder()
        _check_packages()
        from evalharness.models.video.source import FolderSource

        module, _, cls = self.loaded_class.partition(":")
        loaded: LoadedVideo = getattr(importlib.import_module(module), cls)(
            self.spec, self.settings, FolderSource(folder, self.spec), device, self.options
        )
        return loaded


def _check_packages() -> None:
    if importlib.util.find_spec("ftfy") is None:
        raise UserError('these models need the package ftfy: pip install "evalharness[models]"')
