"""WebDataset shards: what ``tarfile`` wrote in every format, and shards that nobody should have written."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evalharness.data import sources
from evalharness.data.frames import Bucket, Dropped, read_clip
from evalharness.data.sources import Clip, read_sources
from evalharness.data.tars import clips_of
from evalharness.errors import UserError
from evalharness.video import encode_video

BUCKET = [Bucket(5, 32, 32)]


def video(seed: int = 0, size: int = 32) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (8, size, size, 3), np.uint8)
    return encode_video(noise, 8)


def shard(path: Path, members: Sequence[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


LONG = "deep/" * 60 + "a clip with spaces and an é"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_reads(kind: int, tmp_path: Path) -> None:
    long = "deep/" * 25 + "name" * 20 if kind == tarfile.USTAR_FORMAT else LONG
    members = [
        ("one.mp4", b"1" * 700), ("one.txt", b" a boat \n"),
        (f"{long}.mp4", b"2" * 512), (f"{long}.txt", b"far"),
        ("empty.mp4", b""), ("three.cam.MP4", b"3"), ("three.json", json.dumps({"text": "a goat"}).encode()),
        ("words.txt", b"no clip"), ("no.mkv", b"4"), ("no.json", b"[1"),
    ]  # fmt: skip
    path = shard(tmp_path / "a.tar", members, kind)
    found = list(clips_of(path))
    with tarfile.open(path) as file:
        wanted = [m for m in file if m.name.lower().endswith((".mp4", ".mkv"))]
    assert [(f.name, f.offset, f.size) for f in found] == [(m.name, m.offset_data, m.size) for m in wanted]
    assert [f.caption for f in found] == ["a boat", "far", "", "a goat", ""]
    data = path.read_bytes()
    assert all(data[f.offset : f.offset + f.size] == dict(members)[f.name] for f in found)


def test_a_clip_is_the_same_within_a_shard(tmp_path: Path) -> None:
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(video())
    members = [("x.mp4", video(1)), ("x.txt", b"words"), ("y.mp4", video()), ("y.txt", b"a boat")]
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "s-000.tar", members)
    shard(tmp_path / "in" / "s-001.tar", members[:2])
    clips = read_sources(tmp_path / "in")
    assert [clip.name for clip in clips] == ["s-000.tar/x.mp4", "s-000.tar/y.mp4", "s-001.tar/x.mp4"]
    _, wanted = read_clip(Clip("alone.mp4", alone, "a boat"), 8, BUCKET)
    _, found = read_clip(clips[1], 8, BUCKET)
    assert np.array_equal(wanted, found)
    assert not np.array_equal(found, read_clip(clips[0], 8, BUCKET)[1])
    [one] = read_sources(tmp_path / "in" / "s-001.tar")
    assert (one.name, one.caption) == ("s-001.tar/x.mp4", "words")


def test_nothing_is_unpacked_or_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that lead out, links, devices and pickles: names, and never opened."""

    monkeypatch.chdir(tmp_path)
    bomb = b"cposix\nsystem\n(Vtouch exploded\ntR."
    path = tmp_path / "in" / "h.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as file:
        members = [("../../out.mp4", video()), ("../../out.txt", b"a boat"), ("/etc/x.mp4", b"no")]
        members += [(f"p.{suffix}", bomb) for suffix in ("pkl", "pyd", "pth")]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, kind in (
            ("link.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("dev.mp4", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    clips = read_sources(path)
    assert [clip.name for clip in clips] == ["h.tar/../../out.mp4", "h.tar//etc/x.mp4"]
    assert all(clip.path == path for clip in clips)
    bucket, _ = read_clip(clips[0], 8, BUCKET)
    assert bucket == BUCKET[0]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["h.tar", "in"]


def test_damaged_shards_are_one_line(tmp_path: Path) -> None:
    whole = shard(tmp_path / "w.tar", [("x.mp4", video()), ("x.txt", b"words")]).read_bytes()
    path = tmp_path / "d.tar"
    for data, line in (
        (whole[:1500], "ends too early"),
        (whole[: len(whole) // 2], "ends too early"),
        (b"x" * 2048, "no header of a tar file at byte 0; damaged"),
        (gzip.compress(whole), r"it is compressed \(gzip\): unpack that first"),
        (b"", "ends too early"),
        (whole[:512].replace(b"x.mp4", b"y.mp4") + whole[512:], "no header of a tar file at byte 0"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=line):
            read_sources(path)
    shard(path, [("x.mp4", b"1"), ("y.mp4", b"2"), ("x.mp4", b"3")])
    with pytest.raises(UserError, match=r"d\.tar/x\.mp4 is named twice"):
        read_sources(path)
    shard(path, [("x.txt", b"words")])
    with pytest.raises(UserError, match="no clip is there"):
        read_sources(path)


def header(name: bytes, size: int, kind: bytes) -> bytes:
    made = tarfile.TarInfo(name.decode())
    made.size, made.type = size, kind
    return made.tobuf(tarfile.GNU_FORMAT)


def test_what_a_header_says_costs_no_memory(tmp_path: Path) -> None:
    """Names of gigabytes, sizes beyond the file or without end; the file has holes, so it is small."""
    path = tmp_path / "b.tar"
    for kind, line in ((b"L", "a name of 4000000000 bytes"), (b"x", "a name of 4000000000 bytes")):
        with path.open("wb") as file:
            file.write(header(b"x", 4_000_000_000, kind))
            file.truncate(4_000_002_048)
        with pytest.raises(UserError, match=line):
            read_sources(path)
    path.write_bytes(header(b"x.mp4", 2**60, b"0") + b"\0" * 4096)
    with pytest.raises(UserError, match="ends too early"):
        read_sources(path)
    with path.open("wb") as file:
        file.write(header(b"x.mp4", 3_000_000_000, b"0"))
        file.truncate(512 + 3_000_000_000 + 2048)
    [clip] = read_sources(path)
    with pytest.raises(Dropped, match=r"3\.0 GB within a shard") as caught:
        read_clip(Clip(clip.name, clip.path, "words", clip.place), 8, BUCKET)
    assert caught.value.kind == "too large"


def test_numbers_of_thousands_of_digits_are_one_line(tmp_path: Path) -> None:
    """Python itself refuses to convert them, with an error of another kind."""
    path, digits = tmp_path / "n.tar", b"9" * 5000
    last = header(b"x.mp4", 600, b"0") + b"\0" * (1024 + 1024)

    def write(record: bytes) -> None:
        padded = record + b"\0" * (-len(record) % 512)
        path.write_bytes(header(b"pax", len(record), b"x") + padded + last)

    record = b" size=" + digits + b"\n"
    write(b"%d" % (len(record) + 4) + record)
    with pytest.raises(UserError, match="ends too early"):
        read_sources(path)
    write(digits + b" path=elsewhere\n")  # no record of that length: the header's own name counts
    assert [(clip.name, clip.place) for clip in read_sources(path)] == [
        ("n.tar/x.mp4", (512 + 5120 + 512, 600))
    ]


def test_a_shard_that_shrank_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.tar", [("x.mp4", video()), ("x.txt", b"words")])
    [clip] = read_sources(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(Dropped, match="the shard ends within it"):
        read_clip(clip, 8, BUCKET)


def test_a_playlist_is_no_clip(tmp_path: Path) -> None:
    """FFmpeg would open whatever it names."""
    (tmp_path / "secret.ts").write_bytes(video())
    for name, text in (
        (
            "hls.mp4",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n",
        ),
        ("concat.mp4", f"ffconcat version 1.0\nfile {tmp_path}/secret.ts\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        inside = shard(tmp_path / "p.tar", [(name, text.encode()), (name.replace("mp4", "txt"), b"words")])
        for clip in (Clip(name, path, "words"), *read_sources(inside)):
            with pytest.raises(Dropped) as caught:
                read_clip(clip, 8, BUCKET)
            assert caught.value.kind == "damaged"


def test_memory_of_a_clip_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MEMBER_LIMIT", 100)
    [clip] = read_sources(shard(tmp_path / "a.tar", [("x.mp4", video())]))
    with pytest.raises(ValueError, match="larger than is read"):
        clip.opened()
