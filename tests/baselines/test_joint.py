"""What looks at the full-precision model before it trains, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from qvgen.training.visiting import float32_by_blocks
from tests.baselines import joint_training
from tests.qvgen.scaled_training import WanContext
from tests.qvgen.test_parallel import torchrun


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """And none of the two ever has the whole model in float32."""
    done = torchrun(tmp_path, script=joint_training.__file__)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "found.json").read_text())
    alone = joint_training.results()
    model = joint_training.model()
    numbers = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.blocks[0].parameters())  # type: ignore[index, union-attr]
    outside = numbers - 3 * block
    assert both.keys() == alone.keys() == joint_training.methods().keys()
    for name, one in alone.items():
        two = both[name]
        assert len(one["losses"]) == 5
        assert two["losses"] == pytest.approx(one["losses"], rel=2e-3), name
        assert two["dtypes"] == one["dtypes"] and "torch.float32" in one["dtypes"].values()
        for layer, weights in one["weights"].items():
            assert two["weights"][layer] == pytest.approx(weights, abs=0.05), (name, layer)
        if name != "efficientdm":
            assert (one["widest"], two["widest"]) == (numbers, block + outside)


def test_block_by_block_is_float32_to_the_bit(tmp_path: Path) -> None:
    """Of a Wan in bfloat16 with parts in float32; afterwards all is as it was, also after an error."""
    ctx = WanContext(tmp_path, torch.device("cpu"))
    model = ctx.teacher()
    batch = next(ctx.batches(2))
    before = {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}
    with torch.no_grad(), float32_by_blocks(model):
        found = ctx.predict(model, batch)
        with pytest.raises(TypeError):
            model.blocks[0](None)  # type: ignore[index, operator]
        assert all(p.dtype == torch.bfloat16 for p in model.blocks[1].attn1.to_q.parameters())  # type: ignore[index, union-attr]
    assert {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()} == before
    with torch.no_grad():
        assert torch.equal(found, ctx.predict(nn.Module.float(model), batch))
    assert found.dtype == torch.float32 and bool(found.any())
