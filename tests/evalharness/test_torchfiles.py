"""PyTorch's files, read without unpickling: what torch wrote comes back, bit by bit."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evalharness.torchfiles.tensors import read, read_module, read_state

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.fixture(params=[True, False], ids=["zip", "sequence"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[object], Path]:
    def save(value: object) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def same(found: object, written: Any) -> None:
    if isinstance(written, Tensor):
        assert isinstance(found, Tensor)
        assert found.dtype == written.dtype
        assert found.shape == written.shape
        assert found.stride() == written.stride() or not written.numel()
        assert torch.equal(found, written)
    elif isinstance(written, dict):
        assert type(found) is dict
        assert list(found) == list(written)
        for key in written:
            same(found[key], written[key])
    elif isinstance(written, list | tuple):
        assert type(found) is type(written)
        assert len(found) == len(written)
        for one, other in zip(found, written, strict=True):
            same(one, other)
    else:
        assert type(found) is type(written)
        assert found == written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(saved: Callable[[object], Path], dtype: torch.dtype) -> None:
    numbers = torch.tensor([[0, 1, 1], [1, 0, 1]]) if dtype == torch.bool else torch.randn(2, 3) * 50
    same(read_state(saved({"a": numbers.to(dtype)})), {"a": numbers.to(dtype)})


def test_a_whole_training_checkpoint(saved: Callable[[object], Path]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 6, 6))[..., 0].sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": -0.25,
        "name": "größer",
        "flags": [True, False, None, (), (1, -2, 2**40), ((1, 2), 3)],
        "ordered": OrderedDict([("z", torch.ones(1)), ("a", OrderedDict())]),
        7: -(2**70),
    }
    same(read(saved(checkpoint)), checkpoint)


def test_parameters_become_tensors(saved: Callable[[object], Path]) -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    found = read_state(saved({"w": weight, "frozen": nn.Parameter(torch.ones(2), requires_grad=False)}))
    assert not found["w"].requires_grad
    same(found["w"], weight.detach())
    same(found["frozen"], torch.ones(2))


def test_views_keep_their_strides_and_share_their_storage(saved: Callable[[object], Path]) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1, :, 1::2],
        "expanded": base[0, 0, :1].expand(5),
        "scalar": base[1, 2, 3],
        "empty": base[:, :0],
        "again": base,
    }
    found = read_state(saved(views))
    same(found, views)
    found["base"][1, 2, 3] = -1
    assert found["scalar"].item() == -1
    assert found["transposed"][3, 1, 2].item() == -1
    assert found["again"] is found["base"]


def test_containers_may_be_shared(saved: Callable[[object], Path]) -> None:
    inner = {"w": torch.ones(2)}
    found = read(saved({"one": inner, "two": inner}))
    assert isinstance(found, dict)
    assert found["one"] is found["two"]


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from(DTYPES),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_permuted_slice(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: torch.dtype, order: Any
) -> None:
    whole = (torch.rand([n + 1 for n in shape]) * 2).to(dtype)
    dims = list(range(len(shape)))
    order.shuffle(dims)
    view = whole[tuple(slice(0, n, order.choice([1, 2])) for n in shape)].permute(dims)
    path = tmp_path_factory.mktemp("slices") / "given.pth"
    torch.save({"v": view}, path)
    same(read_state(path), {"v": view})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8], ids=str)
def test_files_of_big_endian_machines(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype).reshape(2, 3).t()
    torch.save({"t": tensor}, tmp_path / "little.pth")
    with (
        zipfile.ZipFile(tmp_path / "little.pth") as little,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as big,
    ):
        for name in little.namelist():
            data = little.read(name)
            if name.endswith("/data/0"):
                step = dtype.itemsize
                data = b"".join(data[i : i + step][::-1] for i in range(0, len(data), step))
            big.writestr(name, b"big" if name.endswith("/byteorder") else data)
    same(read_state(tmp_path / "big.pth"), {"t": tensor})


def test_files_before_byte_orders_were_written(tmp_path: Path) -> None:
    torch.save({"t": torch.arange(5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            if not name.endswith("/byteorder"):
                old.writestr(name, new.read(name))
    same(read_state(tmp_path / "old.pth"), {"t": torch.arange(5)})


class Block(nn.Module):
    """Attributes of all kinds beside the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.scale = nn.Parameter(torch.randn(3).half())
        self.register_buffer("steps", torch.tensor(4))
        self.sizes = [1, 2]
        self.names = {"a": 0.5}
        self.pair = (1, "two")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * self.scale[:, None, None] * self.sizes[0] * self.names["a"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "scripted"])
def test_modules_of_torchscript(tmp_path: Path, traced: bool) -> None:
    block = Block().eval()
    made = torch.jit.trace(block, torch.zeros(1, 2, 4, 4)) if traced else torch.jit.script(block)
    torch.jit.save(made, tmp_path / "m.pt")
    found, wanted = read_module(tmp_path / "m.pt"), block.state_dict()
    assert found.keys() == wanted.keys()
    for key in wanted:
        same(found[key], wanted[key].detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_two_kinds_are_told_apart(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "s.pth")
    with pytest.raises(ValueError, match=r"m\.pt: not a mapping of names to tensors but a Module"):
        read_state(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"s\.pth: not a TorchScript module but a dict"):
        read_module(tmp_path / "s.pth")


@pytest.mark.parametrize("value", [[torch.ones(1)], {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}, 5])
def test_a_state_is_flat(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not a mapping of names to tensors"):
        read_state(tmp_path / "a.pth")


def test_a_state_within_a_mapping_is_found_and_its_neighbours_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pt"
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"model": {"weight": weight}, "epoch": 3, "optimizer": [torch.ones(2)]}, path)
    assert torch.equal(read_state(path, "model")["weight"], weight)
    with pytest.raises(ValueError, match="not a mapping of names to tensors"):
        read_state(path)
    torch.save({"weight": weight}, path)
    assert list(read_state(path, "model")) == ["weight"], "published with and without the wrapping"
