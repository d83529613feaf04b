r"""A checkpoint that QVGen's authors released, as a method of its own. An example plugin.

    evalharness run --plugin docs/examples/qvgen_released.py --methods qvgen-released --bits 4 \
        --set qvgen-released.path=QVGen-Wan-1_3B-W4A4 --skip-layers none --model wan2.1-1.3b

The transformer is built from the released folder; text encoder, decoder and sampler are the model's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import nn

    from evalharness.api import MethodContext

_RECORD = "released.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedQVGen:
    """See the module.

    Attributes:
        path: the released transformer folder.
        mode: ``official`` keeps the released arithmetic, ``exact`` gives this library's layers.
        clip_choice: ``last`` or ``counter``, as the authors' scripts run without and with ``--fix``.
    """

    name: ClassVar[str] = "qvgen-released"
    summary: ClassVar[str] = "a checkpoint released by QVGen's authors"
    paper: ClassVar[str] = "arXiv 2505.11497"
    needs: ClassVar[str] = "none"

    w_bits: int
    a_bits: int
    path: str = ""
    mode: Literal["official", "exact"] = "official"
    clip_choice: Literal["last", "counter"] = "last"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; give the released folder: --set qvgen-released.path=DIR")

    def apply(self, model: nn.Module, ctx: MethodContext) -> nn.Module:
        """The released transformer in place of ``model``."""
        if ctx.skip_layers:
            raise ValueError("the released file says itself what is quantized; give --skip-layers none")
        return self._build().to(ctx.device)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Where it came from and what it hashes to; the weights stay where they are."""
        from evalharness.hashing import tree_sha256

        record = {"path": str(Path(self.path).resolve()), "sha256": tree_sha256(Path(self.path))}
        (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """What ``apply`` gave.

        Raises:
            ValueError: the released folder is gone or has changed.
        """
        from evalharness.hashing import tree_sha256

        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if not Path(record["path"]).is_dir() or tree_sha256(Path(record["path"])) != record["sha256"]:
            raise ValueError(f"{record['path']}: gone, or other than when the cell was made")
        return self._build().to(next(model.parameters()).device)

    def _build(self) -> nn.Module:
        from qvgen.checkpoint import load_official
        from qvgen.official.config import OfficialConfig
        from qvgen.official.linear import restart_clip_counters_

        config = OfficialConfig(
            w_bits=self.w_bits, a_bits=self.a_bits, mode=self.mode, clip_choice=self.clip_choice
        )
        model = load_official(Path(self.path), config)
        if self.mode == "official" and self.clip_choice == "counter":
            last = [0.0]

            def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
                """A time above the last one is the first step of another video."""
                time = float(kwargs["timestep"].reshape(-1)[0])
                if time > last[0]:
                    restart_clip_counters_(module)
                last[0] = time

            model.register_forward_pre_hook(begin, with_kwargs=True)
        return model


PLUGINS = {"methods": {"qvgen-released": ReleasedQVGen}}
