"""What a training pins on the host: by hand, by FSDP2's own shards, by the library's own packing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from evalharness.machine.pinned import (
    _parameters,
    block_bytes,
    shard_bytes,
    sharded_teacher,
    training_host_memory,
)
from evalharness.modeloptions import ModelOptions
from evalharness.registry import Registry
from qvgen.training.pinned import HostMemory
from qvgen.training.sharding import blocks
from qvgen.training.teacher import _shard

MODELS = ("cogvideox-2b", "cogvideox1.5-5b", "wan2.1-1.3b", "wan2.1-14b", "wan2.2-5b")


def spec_of(name: str) -> Any:
    built: Any = Registry().get("models", name)(ModelOptions())
    return built.spec


def on_meta(name: str) -> nn.Module:
    import diffusers

    spec = spec_of(name)
    with torch.device("meta"):
        module: nn.Module = getattr(diffusers, spec.transformer)(**spec.shape.config)
    return module.to(torch.bfloat16)


def test_a_block_is_the_next_power_of_two() -> None:
    asked = [0, 1, 2, 3, 4096, 4097, 26_214_400, 33_554_432, 70_778_880]
    assert [block_bytes(size) for size in asked] == [
        0, 1, 2, 4, 4096, 8192, 33_554_432, 33_554_432, 134_217_728,
    ]  # fmt: skip


@pytest.mark.cuda
def test_a_block_is_what_torch_says_that_it_took() -> None:
    """Run on a GPU alone: by the statistics of torch's own allocator."""
    torch.cuda.init()
    torch._C._host_emptyCache()
    before = torch.cuda.host_memory_stats()["allocated_bytes.allocated"]
    sizes = [3 << 20, (4 << 20) + 1, 16 << 20]
    pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
    took = torch.cuda.host_memory_stats()["allocated_bytes.allocated"] - before
    assert all(tensor.is_pinned() for tensor in pinned)
    assert took == sum(map(block_bytes, sizes)) == (4 + 8 + 16) << 20


def test_rows_are_padded_to_the_largest_share() -> None:
    assert shard_bytes((5120, 5120), 2, 2) == 2560 * 5120 * 2
    assert shard_bytes((7, 3), 3, 2) == 3 * 3 * 2
    assert shard_bytes((64,), 3, 4) == 22 * 4
    assert shard_bytes((1, 6, 5120), 8, 4) == 6 * 5120 * 4, "one row: all of it on each"


def test_a_teacher_of_14b_by_hand() -> None:
    """On two processes: how many, what each asks for, what it gets."""
    block = [
        (8, 2560 * 5120 * 2, 1 << 25), (2, 2560 * 13824 * 2, 1 << 27),  # queries to outputs; feed-forward
        (9, 2560 * 2, 1 << 13), (1, 6912 * 2, 1 << 14),  # their biases
        (4, 2560 * 2, 1 << 13), (2, 2560 * 4, 1 << 14), (1, 6 * 5120 * 4, 1 << 17),  # norms; the table
    ]  # fmt: skip
    rest = [
        (1, 2560 * 64 * 2, 1 << 19), (1, 32 * 5120 * 2, 1 << 19),  # patches in, numbers out
        (1, 2560 * 256 * 4, 1 << 22), (1, 2560 * 5120 * 4, 1 << 26), (2, 2560 * 4, 1 << 14),  # the time
        (1, 15360 * 5120 * 2, 1 << 28), (1, 15360 * 2, 1 << 15), (1, 2 * 5120 * 4, 1 << 16),  # modulation
        (1, 2560 * 4096 * 2, 1 << 25), (1, 2560 * 5120 * 2, 1 << 25),  # the text
        (3, 2560 * 2, 1 << 13), (1, 32 * 2, 1 << 6),  # biases
    ]  # fmt: skip
    for _, asked, got in (*block, *rest):
        assert got // 2 < asked <= got
    wanted = 40 * sum(count * got for count, _, got in block) + sum(count * got for count, _, got in rest)
    assert sharded_teacher(spec_of("wan2.1-14b"), 2) == wanted
    assert sharded_teacher(spec_of("wan2.2-a14b"), 2) == 2 * wanted
    exact = 40 * sum(count * asked for count, asked, _ in block) + sum(count * a for count, a, _ in rest)
    assert wanted / exact == pytest.approx(1.52, abs=0.01)


@contextmanager
def as_one_of(processes: int) -> Iterator[None]:
    """A group whose other members are not there: enough to share out weights."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "processes"), [("wan2.1-14b", 2), ("cogvideox-2b", 3), ("wan2.1-1.3b", 8)])
def test_shards_are_those_that_fsdp_makes(name: str, processes: int) -> None:
    """Of the full size, on the meta device: FSDP2's own padded shards, which it pins one by one."""
    teacher: Any = on_meta(name)
    with as_one_of(processes):
        _shard(teacher, torch.device("cpu"), rests=True)
        made = {}
        for unit in (*blocks(teacher), teacher):
            for parameter in unit._get_fsdp_state()._fsdp_param_group.fsdp_params:
                assert parameter.pin_memory
                made[parameter._param_fqn or id(parameter)] = parameter._sharded_param_data.numel()
    spec = spec_of(name)
    known = _parameters(spec.transformer, json.dumps(spec.shape.config, sort_keys=True))
    assert len(made) == len(known)
    ours = sorted(shard_bytes(shape, processes, 1) for shape, _ in known)
    assert ours == sorted(made.values())
    # In bfloat16 alone; what stays in float32 is small.
    pinned = sum(2 ** math.ceil(math.log2(2 * size)) for size in made.values())
    assert pinned <= sharded_teacher(spec, processes) < 1.02 * pinned


@pytest.mark.parametrize("kind", ["wan2.1", "cogvideox-2b"])
def test_what_stays_in_float32_is_what_diffusers_keeps(folders: Callable[[str], Path], kind: str) -> None:
    import diffusers

    folder = folders(kind) / "transformer"
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(diffusers, config["_class_name"])
    loaded = cls.from_pretrained(folder, dtype=torch.bfloat16)
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    wanted = tuple((tuple(p.shape), p.element_size()) for p in loaded.parameters())
    assert _parameters(config["_class_name"], json.dumps(options)) == wanted


class Counted(HostMemory):
    """Chunks without memory, by size."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = 0

    def _chunk(self, size: int) -> Tensor:
        self.pinned += 2 ** math.ceil(math.log2(size))
        return torch.empty(size, dtype=torch.uint8, device="meta")


@pytest.mark.parametrize("name", MODELS)
def test_chunks_hold_what_the_library_packs(name: str) -> None:
    """The same places as a training's moments and its teacher take; predicted is never less."""
    shapes = [tuple(p.shape) for p in on_meta(name).parameters()]
    for gpus in (1, 2, 8):
        moments, teacher = Counted(), Counted()
        for shape in shapes:
            local = (-(-shape[0] // gpus), *shape[1:])
            for _ in range(2):
                moments.like(torch.empty(local, device="meta"), pinned=True)
            if gpus == 1:
                teacher.like(torch.empty(local, device="meta", dtype=torch.bfloat16), pinned=True)
        spec = spec_of(name)
        resting = training_host_memory(spec, gpus=gpus, teacher_on_host=False, offload=1.0)
        assert moments.pinned <= resting < moments.pinned + 0.05 * resting + 2**30
        if gpus == 1:
            whole = training_host_memory(spec, gpus=1, teacher_on_host=True, offload=0.0)
            assert teacher.pinned <= whole < teacher.pinned + 0.05 * whole + 2**30
