"""A pipeline's folder: looked at before anything is loaded, and its hash. No torch.

Whatever is wrong with it is said in one line, before minutes go into reading gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.hashing import digest, file_sha256
from evalharness.models.video.spec import ModelSpec
from evalharness.store import atomic_write_json, parse_json

__all__ = [
    "FETCH_RECORD", "check_folder", "fingerprint", "models_cache", "read_config", "resolve_folder",
    "tensor_names",
]  # fmt: skip

FETCH_RECORD = "fetch.json"
_INDEX = "model_index.json"
# Of a folder's config, what is compared with the spec: these make a model of another size.
_SIZES = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "patch_size_t")
_HEADER_LIMIT = 100_000_000
_NAME_LIMIT = 200  # characters of a shard's name; file systems take no more than 255 bytes
_LIBRARIES = ("diffusers", "transformers")
_PIECE = re.compile(r"-\d+-of-\d+\.safetensors$")


def models_cache() -> Path:
    """``$XDG_CACHE_HOME/evalharness/models``, where XDG_CACHE_HOME is ``~/.cache`` by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "evalharness" / "models"


def resolve_folder(spec: ModelSpec, weights: str | None, revision: str | None) -> Path:
    """The folder to load from: the one given, else the one that ``evalharness fetch`` made.

    What was fetched must be of the pinned revision; a folder that is given, only of one that is asked for.

    Raises:
        UserError: there is none, or its revision is not the one asked for.
    """
    wanted = revision or spec.revision
    if weights is not None:
        folder, wanted = Path(weights), revision
        if not folder.is_dir():
            raise UserError(f"--weights {weights}: no such folder")
    else:
        if not spec.repo:
            raise UserError(f"model {spec.name} comes from a folder: give --weights DIR")
        folder = models_cache() / spec.name
        if not (folder / FETCH_RECORD).is_file():
            raise UserError(
                f"model {spec.name}: its weights are not here; get them with: evalharness fetch {spec.name} "
                "(or give --weights DIR)"
            )
    _check_revision(folder, spec, wanted)
    return folder


def _check_revision(folder: Path, spec: ModelSpec, wanted: str | None) -> None:
    if wanted is None:
        return
    found = (_json(folder / FETCH_RECORD) if (folder / FETCH_RECORD).is_file() else {}).get("revision")
    if found != wanted:
        what = f"of revision {found}" if found else f"of no known revision (it has no {FETCH_RECORD})"
        advice = f"fetch that one with: evalharness fetch {spec.name} --revision {wanted}"
        if found:
            advice += f", or take what is there with: --revision {found}"
        if not spec.repo:
            advice = f"leave --revision out, or give a folder whose {FETCH_RECORD} names it"
        raise UserError(f"model {spec.name}: {folder} is {what}, asked was {wanted}; {advice}")


def check_folder(folder: Path, spec: ModelSpec) -> None:
    """Refuse a folder that is not the pipeline of ``spec``, or not whole.

    Raises:
        UserError: not a pipeline's folder, another class or size, a part or a file that is missing or cut.
    """
    if not (folder / _INDEX).is_file():
        hint = _hint(folder)
        raise UserError(f"{folder} is no pipeline's folder: it has no {_INDEX}{hint}")
    index = _json(folder / _INDEX)
    if index.get("_class_name") != spec.pipeline:
        raise UserError(
            f"{folder} holds a {index.get('_class_name')}, model {spec.name} is a {spec.pipeline}"
        )
    if spec.shape is not None and (index.get("transformer_2") or [None])[-1] and spec.experts == 1:
        raise UserError(
            f"{folder} has two transformers, model {spec.name} has one; see: evalharness ls models"
        )
    classes = {name: value for name, value in index.items() if isinstance(value, list)}
    parts = [name for name, value in classes.items() if _is_named(folder / _INDEX, name, value)]
    for part in parts:
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: its part {part} is missing; copy or fetch the folder again")
        _check_files(folder / part, str(classes[part][1]))
    names = ["transformer", "transformer_2"][: spec.experts]
    for name in names:
        if name not in parts:
            raise UserError(f"{folder}: its part {name} is missing; copy or fetch the folder again")
        _check_transformer(folder / name, spec)
    for part in parts:
        _check_weights(folder / part)


def _is_named(index: Path, part: str, value: list[Any]) -> bool:
    """Whether the index names a class for ``part``; one that the folder brings would be foreign code."""
    if len(value) != 2 or not all(name is None or isinstance(name, str) for name in value):
        raise UserError(f"{index}: its part {part} names no class ({value}); copy or fetch the folder again")
    if value[1] is not None and value[0] not in _LIBRARIES:
        raise UserError(
            f"{index}: its part {part} is a class of {value[0]}; "
            f"only {' and '.join(_LIBRARIES)} are loaded from"
        )
    return value[1] is not None


def _check_files(part: Path, cls: str) -> None:
    """What each kind of part cannot do without; a tokenizer without its words would be made from none."""
    needed: tuple[str, ...] = ("config.json",)
    if cls.endswith("Scheduler"):
        needed = ("scheduler_config.json",)
    elif "Tokenizer" in cls:
        needed = ("tokenizer.json", "spiece.model")
    if not any((part / name).is_file() for name in needed):
        raise UserError(f"{part} has no {' or '.join(needed)}; copy or fetch the folder again")


def tensor_names(part: Path) -> set[str]:
    """Of all tensors in the files of a part that are read; ``check_folder`` has looked at them."""
    return {name for path in _files_read(part) for name in _header(path)}


def _files_read(part: Path) -> list[Path]:
    """Safetensors files but those of a variant, such as ``model.fp16.safetensors``, which none asks for."""
    named = {name for index in part.glob("*.index.json") for name in _shards(index)}
    return sorted(p for p in part.glob("*.safetensors") if "." not in p.stem or p.name in named)


def _check_transformer(folder: Path, spec: ModelSpec) -> None:
    config = read_config(folder)
    if config.get("_class_name") != spec.transformer:
        raise UserError(
            f"{folder} holds a {config.get('_class_name')}, model {spec.name} needs a {spec.transformer}"
        )
    if spec.shape is None:
        return
    for key in _SIZES:
        if key in spec.shape.config and config.get(key) != spec.shape.config[key]:
            general = "cogvideox" if "CogVideoX" in spec.transformer else "wan"
            raise UserError(
                f"{folder}: {key} is {config.get(key)}, model {spec.name} has {spec.shape.config[key]}; "
                f"for a pipeline of any size: --model {general} --weights DIR"
            )


def _check_weights(part: Path) -> None:
    """All shards that an index names are there, and every safetensors file is as long as it says."""
    for index in sorted(part.glob("*.index.json")):
        shards = _shards(index)
        missing = sorted(name for name in shards if not (part / name).is_file())
        if missing:
            raise UserError(
                f"{part}: {len(missing)} of {len(shards)} shards are missing ({missing[0]}); fetch again"
            )
    files = _files_read(part)
    needs = (part / "config.json").is_file()
    if needs and not files:
        variants = [path.name for path in sorted(part.glob("*.safetensors"))]
        others = [path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in sorted(part.glob(pattern))]
        found = f" (only {others[0]}, a pickle, which is never read)" if others else ""
        if variants:
            found = f" (only {variants[0]}, a variant, and none is read; save the pipeline without)"
        raise UserError(f"{part}: no safetensors file{found}; fetch again")
    for path in files:
        _header(path)
    pieces = [path.name for path in files if _PIECE.search(path.name)]
    if pieces and len(pieces) == len(files) and not list(part.glob("*.index.json")):
        raise UserError(
            f"{part}: {pieces[0]} is one of several, whose index (*.index.json) is missing; fetch again"
        )


def _shards(index: Path) -> set[str]:
    """The files that an index names."""
    named = _json(index).get("weight_map") or {}
    names = named.values() if isinstance(named, dict) else [None]
    if not all(isinstance(name, str) and 0 < len(name) <= _NAME_LIMIT and "\0" not in name for name in names):
        raise UserError(f"{index}: weight_map names no files; fetch again")
    return set(names)


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, by name.

    Raises:
        UserError: it is none, is not as long as it says, or has numbers of 8 bits, which stand for nothing
            without scales that no library would apply.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length >= min(size, _HEADER_LIMIT):
                raise ValueError("longer than the file, or than any header")
            header: dict[str, dict[str, Any]] = parse_json(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        narrow = next((name for name, entry in header.items() if entry["dtype"].startswith("F8_")), None)
        whole = size == 8 + length + end
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        whole, narrow, header = False, None, {}
    if not whole:
        raise UserError(f"{path}: truncated or no safetensors file ({size} bytes); fetch or copy it again")
    if narrow is not None:
        raise UserError(
            f"{path}: {narrow} is {header[narrow]['dtype']}, numbers of 8 bits; the harness quantizes "
            "by itself: give the pipeline in bfloat16, float16 or float32"
        )
    return header


def read_config(folder: Path) -> Mapping[str, Any]:
    """``config.json`` of a part.

    Raises:
        UserError: missing or not JSON.
    """
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy or fetch the folder again") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; copy or fetch the folder again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; copy or fetch the folder again")
    return value


def _hint(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return "; it looks like one part of a pipeline: give the folder around it"
    inner = next((path.parent.name for path in sorted(folder.glob(f"*/{_INDEX}"))), None)
    if inner:
        return f"; did you mean {folder / inner}?"
    if any(folder.glob("*.pth")):
        return "; it looks like the model's original form: the harness needs the diffusers form of it"
    return ""


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over names and contents of the folder's files, but for the record of the fetch.

    Hashing tens of gigabytes takes minutes, so the hash of a file is kept in the cache under its path,
    size and time of change.
    """
    cache = _HashCache(models_cache() / "hashes.json")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != FETCH_RECORD
        and not path.name.endswith(".part")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    found = [(path.relative_to(folder).as_posix(), cache.sha256(path)) for path in files]
    cache.save()
    return digest(found)


class _HashCache:
    """Hashes of large files by path, size and time of change. Losing it costs time, nothing else."""

    large = 1 << 24

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}
        self._new = False

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        state = real.stat()
        if state.st_size < self.large:
            return file_sha256(real)
        key = hashlib.sha256(f"{real}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
        if key not in self._known:
            self._known[key] = file_sha256(real)
            self._new = True
        return self._known[key]

    def save(self) -> None:
        if self._new:
            try:
                atomic_write_json(self._path, self._known)
            except OSError:
                self._new = False  # a cache that cannot be written is done without
