"""Back to full precision from a cell's transformer: one goes before the other is read."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from evalharness.executor import WorkerSpec
from evalharness.modeloptions import ModelOptions
from evalharness.models.video.source import FolderSource
from evalharness.session import Session


@pytest.mark.parametrize("kind", ["cogvideox-2b", "wan2.2-pair"])
def test_no_other_transformer_lives_while_one_is_read(
    kind: str, tiny: ModuleType, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name, generation = tiny.KINDS[kind]
    options = ModelOptions(weights=str(folders(kind)), generation=generation)
    spec = WorkerSpec(model=name, protocol="smoke", device="cpu", skip_layers="std", model_options=options)
    session = Session(spec)
    alive: list[weakref.ref[nn.Module]] = []
    lives_at_read: list[int] = []
    read = FolderSource.transformer

    def counted(self: FolderSource, part: str, dtype: torch.dtype) -> nn.Module:
        lives_at_read.append(sum(one() is not None for one in alive))
        return read(self, part, dtype)

    monkeypatch.setattr(FolderSource, "transformer", counted)
    first = {key: value.clone() for key, value in session.loaded.transformer.state_dict().items()}

    changed = session.fresh_transformer()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    session.loaded.transformer = changed  # as a cell's
    alive.append(weakref.ref(changed))
    del changed
    gc.collect()
    assert alive[0]() is not None and lives_at_read == []

    back = session.full_precision().transformer
    experts = 2 if "pair" in kind else 1
    assert lives_at_read == [0] * experts
    assert back.state_dict().keys() == first.keys()
    assert all(torch.equal(value, first[key]) for key, value in back.state_dict().items())

    assert session.full_precision().transformer is back  # it is kept, and not read once more
    assert len(lives_at_read) == experts
