"""Turn published weight files into safetensors, once.

    python -m evalharness.native.convert --vbench-cache ~/.cache/vbench

Published files are checkpoints or TorchScript archives of PyTorch. ``evalharness.torchfiles`` reads
them as data: nothing is unpickled, no code in them is looked at. A file whose hash is known is refused
before it is opened if it differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evalharness.errors import UserError, guarded, one_line, unknown
from evalharness.hashing import file_sha256
from evalharness.native.catalogue import CATALOGUE, Entry
from evalharness.native.renaming import RENAMINGS, State
from evalharness.native.weights import store, weights_folder
from evalharness.torchfiles.tensors import read_module, read_state

__all__ = ["convert", "find", "main"]


def convert(name: str, original: Path, folder: Path | None = None) -> Path:
    """Read a published file, check its hash, and store it as safetensors.

    Raises:
        ValueError: the hash is not the published one, or the file cannot be read safely.
    """
    entry = CATALOGUE[name]
    sha256 = file_sha256(original)
    if not sha256.startswith(entry.sha256):
        raise UserError(
            f"{original}: sha256 {sha256}, but the published {name} has {entry.sha256}; get it again from "
            f"{entry.source}"
        )
    state = RENAMINGS[entry.renaming](_read(original, entry))
    facts = {"original": original.name, "original_sha256": sha256, "licence": entry.licence}
    return store(name, state, folder, facts)


def find(entry: Entry, vbench_cache: Path) -> Path | None:
    """The published file in VBench's cache folder or, of DINO, in torch hub's; None if it is not there."""
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    candidates = (vbench_cache / entry.original, home / "hub" / "checkpoints" / Path(entry.original).name)
    return next((path for path in candidates if path.is_file()), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what VBench's cache holds; exit code 1 if a file was refused."""
    parser = argparse.ArgumentParser(prog="python -m evalharness.native.convert", description=__doc__)
    parser.add_argument("--vbench-cache", type=Path, required=True, metavar="FOLDER", help="VBench's cache")
    parser.add_argument("--only", default="", metavar="A,B", help=f"of {', '.join(CATALOGUE)} (all)")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name] or list(CATALOGUE)
    if not options.vbench_cache.is_dir():
        raise UserError(
            f"{options.vbench_cache}: no such folder; VBench's cache is ~/.cache/vbench by default"
        )
    refused = 0
    for name in names:
        if name not in CATALOGUE:
            raise unknown("weights", name, CATALOGUE)
        line, bad = _one(name, options.vbench_cache)
        refused += bad
        sys.stdout.write(line + "\n")
    return 1 if refused else 0


def _one(name: str, cache: Path) -> tuple[str, bool]:
    entry = CATALOGUE[name]
    original = find(entry, cache)
    if original is None:
        return f"{name}: not there; {entry.original} from {entry.source} ({entry.licence})", False
    try:
        convert(name, original)
    except Exception as error:
        return f"{name}: refused: {error if isinstance(error, UserError) else one_line(error)}", True
    return f"{name}: {weights_folder() / entry.file}", False


def _read(path: Path, entry: Entry) -> State:
    if entry.kind == "bytes":
        import torch

        return {"bytes": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)}
    if entry.kind == "torchscript":
        return {k: tensor.float() for k, tensor in read_module(path).items() if tensor.is_floating_point()}
    return read_state(path, entry.inside)


if __name__ == "__main__":
    sys.exit(guarded(main))
