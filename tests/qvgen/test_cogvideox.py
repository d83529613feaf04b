"""The real architecture, two layers of it: every linear quantized, trained, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen.api import frozen_layers
from qvgen.method import QVGen


def tiny() -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
            time_embed_dim=16, text_embed_dim=24, sample_width=6, sample_height=6, sample_frames=5,
            patch_size=2, max_text_seq_length=4, temporal_compression_ratio=4,
        ).eval()  # fmt: skip


class CogContext:
    seed = 0
    device = torch.device("cpu")
    skip_layers = ("proj_out",)

    def __init__(self) -> None:
        self.losses: list[float] = []

    def teacher(self) -> nn.Module:
        return tiny()

    def batches(self, batch_size: int) -> Any:
        g = torch.Generator().manual_seed(0)
        while True:
            yield {
                "hidden_states": torch.randn(batch_size, 2, 4, 6, 6, generator=g),
                "encoder_hidden_states": torch.randn(batch_size, 4, 24, generator=g),
                "timestep": torch.randint(0, 1000, (batch_size,), generator=g),
            }

    def predict(self, transformer: nn.Module, batch: Any) -> Tensor:
        out: Tensor = transformer(**batch).sample
        return out

    def log(self, record: Any) -> None:
        self.losses.append(record["loss"])

    def track(self, steps: range, what: str) -> Any:
        return iter(steps)


@pytest.mark.parametrize("buckets", [1, 4])
def test_quantize_train_save_load(buckets: int, tmp_path: Path) -> None:
    ctx = CogContext()
    recipe = {"steps": 12, "batch_size": 4, "log_every": 4, "lr_weights": 1e-3}
    method = QVGen(w_bits=3, a_bits=3, clip_buckets=buckets, recipe=recipe)  # type: ignore[arg-type]
    live = method.apply(tiny(), ctx)
    linears = [n for n, m in tiny().named_modules() if isinstance(m, nn.Linear)]
    assert [n for n, _ in frozen_layers(live)] == [n for n in linears if n != "proj_out"]
    assert len(ctx.losses) == 3
    method.save(live, tmp_path)
    loaded = method.load(tiny(), tmp_path)
    batch = next(ctx.batches(2))
    with torch.no_grad():
        assert torch.equal(ctx.predict(live, batch), ctx.predict(loaded, batch))
        plain = ctx.predict(tiny(), batch)
        assert not torch.equal(ctx.predict(live, batch), plain)
        # a sample's output does not depend on its neighbours in the batch
        half = {key: value[:1] for key, value in batch.items()}
        torch.testing.assert_close(
            ctx.predict(live, half), ctx.predict(live, batch)[:1], rtol=1e-3, atol=1e-3
        )
