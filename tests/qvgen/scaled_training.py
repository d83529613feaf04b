"""What several processes hold and find: ``torchrun ... scaled_training.py FOLDER [cuda]``.

Each check leaves what it found in FOLDER/found.json; ``test_scale.py`` and ``test_cuda_parallel.py`` say what
that must be.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.training import start
from qvgen.training.dtypes import dtypes_of, restore_dtypes_
from qvgen.training.recipe import TrainRecipe
from qvgen.training.run import quantize_and_train_
from qvgen.training.sharding import convert_sharded_, shard, unshard_
from qvgen.training.start import quantize_by_layers_
from tests.qvgen.killed_training import Context
from tests.qvgen.parallel_training import Blocks

QUANT = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
RECIPE: dict[str, Any] = {
    "steps": 4, "batch_size": 2, "accumulate": 2, "lr_weights": 2e-3, "log_every": 1, "validate_every": 3,
    "precision": "bf16",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "sharded teacher": {"teacher": "sharded"},
    "teacher on the host": {"teacher": "host"},
    "moments on the host": {"offload": "moments"},
    "checkpointed": {"gradient_checkpointing": True},
    "attention kept": {"gradient_checkpointing": True, "checkpointing_keeps": "attention"},
    "all": {
        "teacher": "sharded", "offload": "moments", "offload_share": 0.5, "gradient_checkpointing": True,
        "checkpointing_keeps": "attention", "save_async": True, "save_every": 2,
    },
}  # fmt: skip


class Wide(nn.Module):
    """Blocks of two linears of ``width`` x ``width``."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(count)
        )
        self.out = nn.Linear(width, 8)


class WanContext(Context):
    """Trains a small Wan on random latents, in one place or several."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder)
        self.device = device
        self.records: list[dict[str, Any]] = []

    def teacher(self) -> nn.Module:
        """In bfloat16 but for what diffusers keeps in float32, as a pipeline is loaded."""
        made = wan().to(self.device)
        for name, parameter in made.named_parameters():
            if not any(part in name for part in made._keep_in_fp32_modules):  # type: ignore[operator, union-attr]
                parameter.data = parameter.data.bfloat16()
        return made.eval()

    def batches(self, batch_size: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            inputs = {
                "hidden_states": torch.randn(batch_size, 4, 2, 4, 4, generator=generator),
                "encoder_hidden_states": torch.randn(batch_size, 5, 12, generator=generator),
                "timestep": torch.randint(0, 1000, (batch_size,), generator=generator),
            }
            yield {name: value.to(self.device) for name, value in inputs.items()}

    def validation_batches(self, batch_size: int) -> Iterator[Any]:
        return self.batches(2 * batch_size)

    def predict(self, transformer: nn.Module, batch: Any) -> Tensor:
        out: Tensor = transformer(**batch).sample
        return out

    def log(self, record: Any) -> None:
        self.records.append({key: value for key, value in record.items() if key != "seconds"})

    def rewind_log(self, lines: int) -> None:
        del self.records[lines:]


def wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
            freq_dim=8, ffn_dim=36, num_layers=2, rope_max_seq_len=32,
        ).eval()  # fmt: skip


def blocks_model(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(12)
        return Blocks().to(dtype)


def digest(tensors: dict[str, Tensor]) -> dict[str, str]:
    found = {}
    for name, tensor in tensors.items():
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found[name] = hashlib.sha256(raw.numpy().data).hexdigest()
    return found


def starts(device: torch.device) -> dict[str, Any]:
    """The names in which a start by layers, sharded and brought back, differs from ``quantize_``'s."""
    found: dict[str, Any] = {}
    for source in (torch.float32, torch.bfloat16):
        for init in ("error", "zero", "random", None):
            config: Any = QUANT if init is None else QVGenConfig(quant=QUANT, rank=8, phi_init=init)  # type: ignore[arg-type]
            torch.manual_seed(4)
            plain = quantize_(nn.Module.float(blocks_model(source)).to(device), config)
            after = torch.rand(3)
            torch.manual_seed(4)
            student = quantize_by_layers_(blocks_model(source), config, (), device)
            drawn_alike = torch.equal(after, torch.rand(3))
            trained = shard(student, device)
            empty = sum(p.numel() for p in student.parameters())
            unshard_(trained, student, device)
            ours, theirs = (digest(dict(m.state_dict())) for m in (student, plain))
            differing = sorted(name for name in theirs if ours.get(name) != theirs[name])
            found[f"{init} {source}"] = [differing, sorted(ours.keys() ^ theirs.keys()), drawn_alike, empty]
    return found


def ends(device: torch.device) -> list[str]:
    """Tensors of a model converted from its shards that differ from those of ``convert_``."""
    model = blocks_model(torch.bfloat16)
    model.get_parameter("blocks.1.net.0.bias").data = model.get_parameter("blocks.1.net.0.bias").float()
    dtypes = dtypes_of(model)
    plain = quantize_(nn.Module.float(copy.deepcopy(model)).to(device), QUANT)
    student = quantize_by_layers_(model, QUANT, (), device)
    trained = shard(student, device)
    ours, theirs = convert_sharded_(trained, student, device, dtypes), convert_(plain)
    restore_dtypes_(theirs, dtypes)
    left = sum(p.to_local().untyped_storage().nbytes() for p in trained.parameters())  # type: ignore[attr-defined]
    assert left == 0, "shards are given free"
    assert dtypes_of(ours) == dtypes_of(theirs)
    mine, other = (dict(m.named_buffers()) | dict(m.named_parameters()) for m in (ours, theirs))
    assert mine.keys() == other.keys()
    return [name for name, value in digest(mine).items() if value != digest(other)[name]]


def held_at_once(device: torch.device) -> dict[str, int]:
    """Bytes of float32 while a bfloat16 model of the host is quantized and sharded: most, all, a block's."""
    width, count = (2048, 12) if device.type == "cuda" else (64, 6)
    model = Wide(width, count).to(torch.bfloat16)
    config = QuantConfig(w_bits=4, a_bits=4, range_init="minmax")
    whole = 4 * sum(p.numel() for p in model.parameters())
    block = 4 * sum(p.numel() for p in model.blocks[0].parameters())
    most = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal most
            whole_now = [p for p in model.parameters() if p.dtype == torch.float32]
            most = max(most, sum(4 * p.numel() for p in whole_now))
            return real(*arguments, **named)

        return call

    patches = [(fsdp, "fully_shard"), (start, "_found"), (start, "_empty")]
    reals = [getattr(module, name) for module, name in patches]
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for (module, name), real in zip(patches, reals, strict=True):
        setattr(module, name, counted(real))
    quantize_by_layers_(model, config, (), device)
    trained = shard(model, device)
    for (module, name), real in zip(patches, reals, strict=True):
        setattr(module, name, real)
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated() - before
    assert all(isinstance(p, DTensor) for p in trained.parameters())
    return {"most": most, "whole": whole, "block": block}


def trainings(folder: Path, device: torch.device) -> dict[str, Any]:
    """Log lines and weights of one training under each variant.

    The state that ``all`` left after two steps is then gone on from without any option: ``resumed``.
    """
    found: dict[str, Any] = {}
    variants = {"plain": {}, **VARIANTS, "resumed": {}}
    records: list[dict[str, Any]] = []
    for name, changes in variants.items():
        if device.type == "cpu" and name not in ("plain", "all", "resumed"):
            continue  # what all of them together leave as it is, each does
        ctx = WanContext(folder, device)
        if name not in ("all", "resumed"):
            ctx.state_folder = None  # type: ignore[assignment]
        if name == "resumed":
            ctx.records = records
        recipe = TrainRecipe(**{**RECIPE, "save_every_s": 0.0, **changes})
        model = quantize_and_train_(wan().to(device), QVGenConfig(quant=QUANT, rank=4), recipe, ctx)
        found[name] = {"log": list(ctx.records), "weights": digest(dict(model.state_dict()))}
        if name == "all":
            records = ctx.records
            with safe_open(folder / "state" / "train_state.safetensors", framework="pt") as file:
                found[name]["saved"] = json.loads(file.metadata()["train_state"])["step"]
    return found


def one_bad_pass(folder: Path, device: torch.device) -> dict[str, Any]:
    """Log and weights where one process alone meets NaN, in the third step."""

    class Bad(WanContext):
        def batches(self, batch_size: int) -> Iterator[Any]:
            for number, batch in enumerate(super().batches(batch_size)):
                if number == 5:  # the second process' pass of the third step
                    batch["hidden_states"][0, 0, 0, 0, 0] = torch.nan
                yield batch

    ctx = Bad(folder, device)
    ctx.state_folder = None  # type: ignore[assignment]
    recipe = TrainRecipe(**{**RECIPE, "validate_every": 0, "skip_bad_steps": 1})
    model = quantize_and_train_(wan().to(device), QUANT, recipe, ctx)
    finite = all(bool(t.isfinite().all()) for t in model.parameters())
    return {"steps": [(r["step"], r.get("skipped")) for r in ctx.records], "finite": finite}


def main(folder: Path, kind: str) -> None:
    device = torch.device(kind, int(os.environ["LOCAL_RANK"]) if kind == "cuda" else None)
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    checks: dict[str, Callable[[], Any]] = {
        "starts": lambda: starts(device),
        "ends": lambda: ends(device),
        "held": lambda: held_at_once(device),
        "bad": lambda: one_bad_pass(folder / "bad", device),
        "trainings": lambda: trainings(folder, device),
    }
    try:
        found = {name: check() for name, check in checks.items()}
        if distributed.get_rank() == 0:
            (folder / "found.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cpu")
