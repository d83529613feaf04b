"""Generation settings of a video model, and the user's own values in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from evalharness.api import GenerationSettings
from evalharness.errors import UserError, unknown

__all__ = ["VideoSettings", "override"]

_SCHEDULERS = (("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"), ("UniPCMultistepScheduler",))
_ATTENTION = ("sdpa", "cudnn", "flash", "math")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings(GenerationSettings):
    """``GenerationSettings`` and what these pipelines need beside them.

    Attributes:
        guidance_2: guidance of the low-noise expert, where there are two.
        shift: flow shift of the schedule; None for schedules that have none.
        negative_prompt: what guidance leads away from.
        dynamic_guidance: CogVideoX's guidance that grows along the steps.
        text_length: tokens of a prompt.
        fixed_noise: seed of the one starting noise of all videos (MLPerf); None: each has its own.
        tiled_decode: whether the decoder works in tiles; follows from ``--memory``.
        attention: backend of scaled dot product attention: sdpa (torch decides), cudnn, flash or math.
    """

    guidance_2: float | None = None
    shift: float | None = None
    negative_prompt: str = ""
    dynamic_guidance: bool = False
    text_length: int = 226
    fixed_noise: int | None = None
    tiled_decode: bool = True
    attention: str = "sdpa"

    @property
    def seconds(self) -> float:
        """Duration of a video."""
        return self.frames / self.fps


def override(settings: VideoSettings, values: Mapping[str, Any]) -> VideoSettings:
    """``settings`` with ``values`` in place of its own.

    Raises:
        UserError: an unknown field, a value of the wrong type or out of range.
    """
    hints = get_type_hints(VideoSettings)
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown("generation setting", name, hints)
        if name == "tiled_decode":
            raise UserError("--generation tiled_decode: follows from --memory; resident decodes whole")
        checked[name] = _fit(name, value, hints[name])
    made = dataclasses.replace(settings, **checked)
    if made.attention not in _ATTENTION:
        raise UserError(f"--generation attention={made.attention!r}: expected one of {', '.join(_ATTENTION)}")
    allowed = next(family for family in _SCHEDULERS if settings.scheduler in family)
    if made.scheduler not in allowed:
        raise UserError(
            f"--generation scheduler={made.scheduler!r}: this model samples with {' or '.join(allowed)}"
        )
    for name in ("steps", "frames", "height", "width", "fps", "text_length"):
        if getattr(made, name) < 1:
            raise UserError(f"--generation {name}={getattr(made, name)}: expected a whole number from 1")
    return made


def _fit(name: str, value: Any, hint: Any) -> Any:
    kinds = getattr(hint, "__args__", (hint,))
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UserError(f"--generation {name}={value!r}: expected {wanted}")
    return value
