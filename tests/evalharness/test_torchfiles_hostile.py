"""PyTorch files of strangers: whatever is in them, one line of refusal, and nothing runs."""

from __future__ import annotations

import os
import pickletools
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalharness.errors import UserError
from evalharness.torchfiles.machine import MAX_BYTES, interpret
from evalharness.torchfiles.tensors import read, read_module, read_state

READERS = (read, read_state, read_module)


def refused(path: Path) -> str:
    """What every reader says of a file; they must all refuse it in one line."""
    said = set()
    for reader in READERS:
        with pytest.raises(UserError) as caught:
            reader(path)
        said.add(str(caught.value))
    (line,) = said
    assert "\n" not in line
    assert len(line) < 400
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def archive(
    path: Path, pickle: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("archive/data.pkl", pickle)
        for name, data in (members or {}).items():
            made.writestr(name, data)
    return path


class Trap:
    """An object whose pickle calls ``called`` with ``arguments``."""

    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self.told = (called, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.told


@pytest.fixture(params=[True, False], ids=["zip", "sequence"])
def new_form(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_call_is_refused_by_its_name(tmp_path: Path, new_form: bool) -> None:
    sprung = tmp_path / "sprung"
    trap = Trap(os.system, f"touch {sprung}")
    torch.save(
        {"w": torch.ones(2), "trap": trap}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_form
    )
    assert "it names posix.system, which no tensor needs" in refused(tmp_path / "a.pth")
    torch.save({"trap": Trap(eval, "1")}, tmp_path / "b.pth", _use_new_zipfile_serialization=new_form)
    assert "builtin" in refused(tmp_path / "b.pth")
    assert not sprung.exists()


def test_classes_and_functions_of_torch_are_refused_too(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "module.pth")
    torch.save({"d": torch.float16}, tmp_path / "dtype.pth")
    assert "torch.float16" in refused(tmp_path / "dtype.pth")
    torch.save({"z": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    assert "torch.ComplexFloatStorage" in refused(tmp_path / "complex.pth")


@pytest.mark.parametrize(
    ("pickle", "said"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "it names builtins.eval"),
        (b"\x80\x02c__main__\nTrap\n)\x81.", "it names __main__.Trap"),
        (b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "opcode STACK_GLOBAL"),
        (b"\x80\x04\x95\x01\x00\x00\x00\x00\x00\x00\x00N.", "protocol 4"),
        (b"\x80\x02(S'touch x'\nios\nsystem\n.", "opcode STRING"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02(cos\nsystem\no.", "it names os.system"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "its pickle calls a str"),
        (b"\x80\x02X\x01\x00\x00\x00a)\x81.", "makes an object of str"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "makes an object of collections.OrderedDict"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "collections.OrderedDict with 1 arguments"),
        (b"\x80\x02c__torch__\nM\n)R.", "calls __torch__.M with 0 arguments"),
        (b"\x80\x02c__torch__evil\nM\n)\x81.", "it names __torch__evil.M"),
        (b"\x80\x02c__torch__\nM\n)\x81]b.", "gives a Module a state of list"),
        (b"\x80\x02]}b.", "gives a list a state of dict"),
        (b"\x80\x02X\x01\x00\x00\x00a}b.", "gives a str a state of dict"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "gives a torch.FloatStorage a state of dict"),
        (b"\x80\x02}]NNs.", "sets items of a list"),
        (b"\x80\x02})Ns.", "a tuple as a key"),
        (b"\x80\x02}(Nu.", "1 keys and values"),
        (b"\x80\x02}Na.", "appends to a dict"),
        (b"\x80\x02R.", "takes a value where there is none"),
        (b"\x80\x02t.", "up to a mark where there is none"),
        (b"\x80\x02NN.", "values left over"),
        (b"\x80\x02(N.", "values left over"),
        (b"\x80\x02h\x05.", "refers to value 5"),
        (b"\x80\x02Q.", "takes a value where there is none"),
        (b"\x80\x02NQ.", "something outside"),
        (b"\x80\x02N", "damaged or cut short"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged or cut short"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged or cut short"),
        (b"\x80\x02\xfe.", "damaged or cut short"),
        (b"", "damaged or cut short"),
        (b"\x80\x02c" + b"a" * 300 + b"\n" + b"b\\n\x1b" * 90 + b"\n.", "it names aaaa"),
    ],
)
def test_other_opcodes_and_names(tmp_path: Path, pickle: bytes, said: str) -> None:
    line = refused(archive(tmp_path / "a.pth", pickle))
    assert said in line
    assert line.isascii()
    assert line.isprintable()


KNOWN = """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL BINPERSID REDUCE NEWOBJ BUILD
"""


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_all_other_opcodes_are_refused_by_name(opcode: pickletools.OpcodeInfo) -> None:
    said = []
    for argument in (bytes(16), b"0\n0\n", b"''\n"):  # counted, lines, quoted: one is of its form
        try:
            interpret(opcode.code.encode("latin-1") + argument)
        except UserError as error:
            said.append(f"uses the opcode {opcode.name}," in str(error))
    assert any(said) == (opcode.name not in KNOWN.split())


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(
    *,
    kind: str = "FloatStorage",
    key: bytes = text("0"),
    elements: bytes = number(4),
    offset: bytes = number(0),
    size: bytes = b"(K\x04t",
    stride: bytes = b"(K\x01t",
    hooks: bytes = b"}",
    first: bytes = text("storage"),
) -> bytes:
    """The pickle of a dict with one tensor of four numbers, with a part changed."""
    outside = b"(" + first + f"ctorch\n{kind}\n".encode() + key + text("cpu") + elements + b"tQ"
    inner = b"(" + outside + offset + size + stride + b"\x89" + hooks + b"t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + inner + b"Rs."


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def test_a_tensor_written_by_hand_is_read(tmp_path: Path) -> None:
    found = read_state(archive(tmp_path / "a.pth", tensor(), {"archive/data/0": NUMBERS}))
    assert torch.equal(found["w"], torch.tensor([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    ("pickle", "said"),
    [
        (tensor(elements=number(5)), "data/0 has 16 bytes, but its tensors need 20"),
        (tensor(elements=number(2**62)), "data/0 has 16 bytes, but its tensors need"),
        (tensor(elements=number(-1)), "number of elements makes no sense"),
        (tensor(elements=b"\x88"), "number of elements makes no sense"),
        (tensor(kind="HalfStorage"), "data/0 has 16 bytes, but its tensors need 8"),
        (tensor(kind="UntypedStorage"), "it names torch.UntypedStorage"),
        (tensor(offset=number(1)), "reaches element 4 of storage 0, which has 4"),
        (tensor(offset=number(-1)), "lacks its storage or its offset"),
        (tensor(offset=number(2**63 - 1)), "reaches element 9223372036854775810"),
        (tensor(size=b"(K\x05t"), "reaches element 4"),
        (tensor(size=b"(K\x02t", stride=b"(K\x04t"), "reaches element 4"),
        (tensor(size=b"(K\x02t", stride=b"(" + number(-1) + b"t"), "size and stride"),
        (tensor(size=b"(" + number(2**63 - 1) + b"t"), "more than 4 times the file"),
        (tensor(size=b"(" + number(2**62) + b"t", stride=b"(K\x00t"), "more than 4 times the file"),
        (tensor(size=b"(" + number(2**64) + b"t"), "size and stride"),
        (
            tensor(size=b"(K\x00" + number(2**62) * 2 + b"t", stride=b"(" + b"K\x01" * 3 + b"t"),
            "empty tensor",
        ),
        (tensor(size=b"(" + b"K\x01" * 17 + b"t", stride=b"(" + b"K\x01" * 17 + b"t"), "size and stride"),
        (tensor(size=b"(K\x02K\x02t"), "size and stride"),
        (tensor(size=b"]"), "size and stride"),
        (tensor(size=b"(Nt"), "size and stride"),
        (tensor(hooks=b"}K\x01Ns"), "hooks or marks"),
        (tensor(key=text("../../../etc/passwd")), "a storage's key is '../../../etc/passwd'"),
        (tensor(key=text("0/../1")), "a storage's key is '0/../1'"),
        (tensor(key=text("")), "a storage's key is ''"),
        (tensor(key=number(0)), "a storage's key is a int"),
        (tensor(key=text("7")), "the archive lacks data/7"),
        (tensor(first=text("module")), "something outside that is no storage"),
    ],
)
def test_a_tensor_that_does_not_fit_its_numbers(tmp_path: Path, pickle: bytes, said: str) -> None:
    path = archive(tmp_path / "a.pth", pickle, {"archive/data/0": NUMBERS})
    with pytest.raises(UserError) as caught:
        read_state(path)
    assert said in str(caught.value)


def test_truth_values_other_than_0_and_1(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", tensor(kind="BoolStorage"), {"archive/data/0": b"\x01\x00\x02\x01"})
    with pytest.raises(UserError, match="holds other bytes than 0 and 1"):
        read_state(path)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What grows by more than 256 MB fails instead of filling the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_compressed_members_are_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    zeros = tensor(elements=number(2**28), size=b"(" + number(2**28) + b"t")
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as bomb:
        bomb.writestr("archive/data.pkl", zeros)
        with bomb.open(zipfile.ZipInfo("archive/data/0"), "w") as member:
            member.write(NUMBERS)
        info = zipfile.ZipInfo("archive/data/1")
        info.compress_type = zipfile.ZIP_DEFLATED
        with bomb.open(info, "w") as member:
            for _ in range(64):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="more than 4 times the file"):
        read_state(path)
    small = tensor(key=text("1"), elements=number(2**24))
    with (
        zipfile.ZipFile(path) as bomb,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as other,
    ):
        other.writestr("archive/data.pkl", small, zipfile.ZIP_STORED)
        other.writestr("archive/data/1", bomb.read("archive/data/1"))
    with pytest.raises(UserError, match="data/1 is compressed"):
        read_state(tmp_path / "b.pth")
    assert "data.pkl is compressed" in refused(
        archive(tmp_path / "c.pth", b"\x80\x02N." + bytes(1000), compression=zipfile.ZIP_DEFLATED)
    )


def test_members_at_one_place(tmp_path: Path) -> None:
    """A small file must not stand for a large one."""
    two = tensor()[:-1] + text("v") + tensor(key=text("1"))[3 + len(text("w")) :]
    path = archive(tmp_path / "a.pth", two, {"archive/data/0": NUMBERS, "archive/data/1": NUMBERS})
    assert set(read_state(path)) == {"w", "v"}
    data = bytearray(path.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[2] + 42 : entries[2] + 46] = data[entries[1] + 42 : entries[1] + 46]
    path.write_bytes(data)
    assert "damaged archive" in str(_error(read_state, path))


def test_members_larger_than_the_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", tensor(elements=number(2**28)), {"archive/data/0": NUMBERS})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**30, 2**30)
    path.write_bytes(data)
    assert "together larger than the file" in str(_error(read_state, path))


def _error(reader: Callable[[Path], object], path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        reader(path)
    return caught.value


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["other/data.pkl"], "2 folders that hold a data.pkl"),
        (["archive/data.pkl"], "same name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_two_minds(tmp_path: Path, names: list[str], said: str) -> None:
    path = archive(tmp_path / "a.pth", b"\x80\x02N.", dict.fromkeys(names, b"\x80\x02N."))
    assert said in refused(path)


def test_names_like_paths_stay_names(tmp_path: Path) -> None:
    members = {
        "archive/data/0": NUMBERS,
        "../../escaped": b"x",
        "/tmp/escaped-absolute": b"x",
        "archive/../../escaped": b"x",
    }
    path = archive(tmp_path / "deep.pth", tensor(), members)
    before = sorted(tmp_path.rglob("*"))
    assert read_state(path)["w"].sum() == 10
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-absolute").exists()


def test_an_order_of_bytes_that_there_is_not(tmp_path: Path) -> None:
    members = {"archive/data/0": NUMBERS, "archive/byteorder": b"middle"}
    assert "byte order is 'middle'" in refused(archive(tmp_path / "a.pth", tensor(), members))


def _doubled(empty: bytes, filled: Callable[[bytes, bytes], bytes], levels: int = 60) -> bytes:
    """A pickle in which each level holds the one below twice."""
    made = empty + b"q\x00"
    for level in range(levels):
        made = filled(made, b"h%c" % level) + b"q%c" % (level + 1)
    return b"\x80\x02" + made + b"."


def test_references_do_not_multiply(tmp_path: Path, little_memory: None) -> None:
    """2^60 leaves in some hundred bytes."""
    lists = _doubled(b"]", lambda below, again: b"](" + below + again + b"e")
    found = read(archive(tmp_path / "a.pth", lists))
    assert isinstance(found, list)
    assert found[0] is found[1]
    module = b"c__torch__\nM\n)\x81"
    modules = _doubled(
        module, lambda below, again: module + b"}(" + text("a") + below + text("b") + again + b"ub"
    )
    assert "over 100000 parts" in str(_error(read_module, archive(tmp_path / "m.pt", modules)))


def test_containers_that_hold_themselves(tmp_path: Path) -> None:
    assert "hold themselves" in str(_error(read, archive(tmp_path / "a.pth", b"\x80\x02]q\x00h\x00a.")))
    module = b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("self") + b"h\x00sb."
    assert "deep" in str(_error(read_module, archive(tmp_path / "m.pt", module)))


def test_a_long_name_is_not_multiplied(tmp_path: Path, little_memory: None) -> None:
    inner = tensor()[3 + len(text("w")) : -2] + b"q\x01"
    module = b"\x80\x02c__torch__\nM\n)\x81}" + text("n" * 2_000) + inner + b"sb."
    path = archive(tmp_path / "m.pt", module, {"archive/data/0": NUMBERS})
    assert "name has over 1000 characters" in str(_error(read_module, path))


def test_a_pickle_has_a_longest_length(tmp_path: Path) -> None:
    pickle = b"\x80\x02" + b"]" * MAX_BYTES + b"."
    assert f"at most {MAX_BYTES} are read" in refused(archive(tmp_path / "a.pth", pickle))


@pytest.mark.parametrize("start", [b"", b"\x7fELF", b"PK\x05\x06" + bytes(18), b"\x80\x04N.", b"{}"])
def test_other_files(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(start)
    assert "not a file that torch.save or torch.jit.save wrote" in refused(tmp_path / "a.pth")


def test_tar_files_are_too_old(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.pth", "w") as old:
        old.add(__file__, "tensors")
    assert "a tar file as PyTorch wrote before 0.1.10" in refused(tmp_path / "a.pth")


def test_a_pickle_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x80\x02K\x01.\x80\x02K\x02.")
    assert "not one that torch.save wrote" in refused(tmp_path / "a.pth")


def test_a_sequence_whose_numbers_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "is cut short or of another size" in refused(path)
    path.write_bytes(data[:-24] + (2**62).to_bytes(8, "little") + data[-16:])
    assert "is cut short or of another size" in refused(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path, new_form: bool) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"w": torch.ones(4)}, whole, _use_new_zipfile_serialization=new_form)
    data = whole.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(data), 1 if len(data) < 600 else 7):
        cut.write_bytes(data[:length])
        refused(cut)


_STATE = OrderedDict([("a.w", torch.arange(6.0).reshape(2, 3)), ("b", torch.tensor([True, False]))])


def _outcome(path: Path) -> None:
    """Either tensors whose numbers lie in the file, or one line."""
    for reader in READERS:
        try:
            found = reader(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
        else:
            if isinstance(found, dict):
                for value in found.values():
                    if isinstance(value, torch.Tensor):
                        value.sum()


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


@given(edits=edits, new_form=st.booleans())
@settings(max_examples=300, deadline=None)
def test_changed_bytes(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int]], new_form: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"changed-{new_form}.pth"
    torch.save(_STATE, path, _use_new_zipfile_serialization=new_form)
    data = bytearray(path.read_bytes())
    for where, byte in edits:
        data[int(where * len(data))] = byte
    path.write_bytes(data)
    _outcome(path)


@given(edits=edits, cut=st.floats(0, 1))
@settings(max_examples=400, deadline=None)
def test_changed_pickles_in_whole_archives(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int]], cut: float
) -> None:
    """The archive's checksums would catch most changes; here they fit."""
    source = tmp_path_factory.getbasetemp() / "source.pth"
    torch.save(_STATE, source)
    with zipfile.ZipFile(source) as whole:
        members = {name: whole.read(name) for name in whole.namelist() if "/data/" in name}
        pickle = bytearray(next(whole.read(name) for name in whole.namelist() if name.endswith("/data.pkl")))
    for where, byte in edits:
        pickle[int(where * len(pickle))] = byte
    renamed = {name.replace("source/", "archive/"): data for name, data in members.items()}
    kept = len(pickle) if cut > 0.2 else int(cut * 5 * len(pickle))
    _outcome(archive(source.with_name("rewritten.pth"), bytes(pickle[:kept]), renamed))


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_pickles(data: bytes) -> None:
    try:
        interpret(b"\x80\x02" + data)
    except UserError as error:
        assert str(error).isprintable()
