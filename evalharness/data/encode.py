"""Clips into shards, chunk by chunk, so that a killed run goes on where it stood.

Each chunk of the sorted clips becomes one shard for each bucket and a record in ``chunks/``; which
clips stand where depends on the source alone, not on kills, threads or parts. The manifest is written
last: a folder without it is not finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.data.frames import Bucket, Dropped, read_clip
from evalharness.data.manifest import MANIFEST
from evalharness.data.sources import Clip
from evalharness.errors import UserError
from evalharness.hashing import digest, file_sha256
from evalharness.store import atomic_write_bytes, atomic_write_json, read_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from evalharness.models.video.pipeline import LoadedVideo

__all__ = ["Encoding", "encode"]

VERSION = 1
_BLANK = 1.0  # standard deviation of all pixels, of 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How clips are encoded.

    Attributes:
        fps: frames per second that the model works at.
        buckets: sizes that clips are brought to.
        least_words: of a caption.
        chunk: clips of one chunk.
        part: of how many, counted from 1: which chunks this process encodes.
        threads: that decode beside the encoding.
    """

    fps: float
    buckets: tuple[Bucket, ...]
    least_words: int = 1
    chunk: int = 64
    part: tuple[int, int] = (1, 1)
    threads: int = 2

    def identity(self) -> list[Any]:
        """What changes shards."""
        return [VERSION, self.fps, self.buckets, self.least_words, self.chunk]


def encode(
    clips: Sequence[Clip],
    loaded: LoadedVideo,
    fingerprint: str,
    encoding: Encoding,
    out: Path,
    tell: Callable[[str], None],
) -> dict[str, Any] | None:
    """Encode what is missing; the report once all chunks are there, else None.

    Args:
        clips: sorted; all of the source, whatever the part.
        loaded: the model.
        fingerprint: of its weights.
        encoding: how.
        out: folder of the shards.
        tell: progress, one line a chunk.

    Raises:
        UserError: no clip could be used at all.
    """
    chunks = [clips[start : start + encoding.chunk] for start in range(0, len(clips), encoding.chunk)]
    records = []
    for number, members in enumerate(chunks):
        wanted = digest([encoding.identity(), fingerprint, [_state(clip) for clip in members]])
        record = _finished(out, number, wanted)
        if record is None and number % encoding.part[1] == encoding.part[0] - 1:
            (out / MANIFEST).unlink(missing_ok=True)
            record = {"inputs": wanted, **_encode_chunk(members, number, loaded, encoding, out)}
            atomic_write_json(_record_path(out, number), record)
            tell(f"chunk {number + 1} of {len(chunks)}: {_summary(record)}")
        if record is not None:
            records.append(record)
    if len(records) < len(chunks):
        return None
    return _finish(records, len(clips), fingerprint, encoding, out, _empty_caption(loaded, out))


def _state(clip: Clip) -> list[Any]:
    try:
        state = clip.path.stat()
    except OSError:
        return [clip.name, clip.caption, None]
    place = [] if clip.place is None else [clip.place]
    return [clip.name, clip.caption, state.st_size, state.st_mtime_ns, *place]


def _record_path(out: Path, number: int) -> Path:
    return out / "chunks" / f"{number:06d}.json"


def _finished(out: Path, number: int, wanted: str) -> dict[str, Any] | None:
    record = read_json(_record_path(out, number))
    if record is None or record.get("inputs") != wanted:
        return None
    whole = all(
        (out / shard["file"]).is_file() and file_sha256(out / shard["file"]) == shard["sha256"]
        for shard in record["shards"]
    )
    return record if whole else None


def _encode_chunk(
    members: Sequence[Clip], number: int, loaded: LoadedVideo, encoding: Encoding, out: Path
) -> dict[str, Any]:
    import torch
    from safetensors.torch import save

    kept: dict[Bucket, list[tuple[Clip, Tensor]]] = {}
    dropped: list[dict[str, str]] = []
    with loaded.encoding():
        for clip, found in _read_all(members, encoding):
            if isinstance(found, Dropped):
                dropped.append({"clip": clip.name, "kind": found.kind, "why": str(found)})
                continue
            bucket, frames = found
            kept.setdefault(bucket, []).append((clip, _latents(loaded, frames)))
    shards = []
    for bucket, rows in sorted(kept.items(), key=lambda item: item[0]):
        text = loaded.embed([clip.caption for clip, _ in rows])
        latents = torch.stack([latents for _, latents in rows])
        data = save({"latents": latents.half().contiguous(), "text": text.half().contiguous()})
        name = f"shards/{number:06d}-{bucket.label}.safetensors"
        atomic_write_bytes(out / name, data)
        shards.append(
            {
                "file": name,
                "bucket": bucket.label,
                "sha256": file_sha256(out / name),
                "clips": [clip.name for clip, _ in rows],
            }
        )
    return {"shards": shards, "dropped": dropped}


def _read_all(
    members: Sequence[Clip], encoding: Encoding
) -> Iterator[tuple[Clip, Dropped | tuple[Bucket, np.ndarray]]]:
    """In order; the next few are decoded meanwhile."""

    def read(clip: Clip) -> Dropped | tuple[Bucket, np.ndarray]:
        try:
            bucket, frames = read_clip(
                clip, encoding.fps, list(encoding.buckets), least_words=encoding.least_words
            )
            if float(frames.std()) < _BLANK:
                raise Dropped("blank", "all pixels are nearly the same")
        except Dropped as reason:
            return reason
        return bucket, frames

    ahead = max(1, encoding.threads)
    with ThreadPoolExecutor(ahead) as pool:
        waiting = [(clip, pool.submit(read, clip)) for clip in members[:ahead]]
        for clip in members[ahead:]:
            first, future = waiting.pop(0)
            waiting.append((clip, pool.submit(read, clip)))
            yield first, future.result()
        for clip, future in waiting:
            yield clip, future.result()


def _latents(loaded: LoadedVideo, frames: np.ndarray) -> Tensor:
    import torch

    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return loaded.encode_video(video)[0].cpu()


def _empty_caption(loaded: LoadedVideo, out: Path) -> dict[str, str]:
    """What a dropped caption is replaced by, so that a training needs no text encoder."""
    from safetensors.torch import save

    name = "empty.safetensors"
    atomic_write_bytes(out / name, save({"text": loaded.embed([""])[0].half().contiguous()}))
    return {"file": name, "sha256": file_sha256(out / name)}


def _summary(record: dict[str, Any]) -> str:
    count = sum(len(shard["clips"]) for shard in record["shards"])
    return f"{count} clips encoded, {len(record['dropped'])} dropped"


def _finish(
    records: Sequence[dict[str, Any]],
    total: int,
    fingerprint: str,
    encoding: Encoding,
    out: Path,
    empty: dict[str, str],
) -> dict[str, Any]:
    shards = [shard for record in records for shard in record["shards"]]
    dropped = [clip for record in records for clip in record["dropped"]]
    report: dict[str, Any] = {
        "clips": total,
        "encoded": sum(len(shard["clips"]) for shard in shards),
        "by_bucket": dict(sorted(Counter(s["bucket"] for s in shards for _ in s["clips"]).items())),
        "dropped": dict(sorted(Counter(clip["kind"] for clip in dropped).items())),
        "dropped_clips": dropped,
    }
    atomic_write_json(out / "report.json", report)
    if not shards:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in report["dropped"].items())
        raise UserError(f"{out}: every clip was dropped ({kinds}); see {out / 'report.json'}")
    manifest = {
        "schema_version": 1,
        "sha256": digest(
            [fingerprint, encoding.identity(), [shard["sha256"] for shard in shards], empty["sha256"]]
        ),
        "model_fingerprint": fingerprint,
        "fps": encoding.fps,
        "clips": report["encoded"],
        "latents": "float16, normalised as the decoder undoes it, the distribution's mean",
        "empty_caption": empty,
        "shards": shards,
    }
    atomic_write_json(out / MANIFEST, manifest)
    return report
