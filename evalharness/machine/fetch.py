"""Weights from a hub: one revision, every file checked, goes on where it stopped. No torch.

Nothing is downloaded by any other verb. The folder gets ``fetch.json``: repository, commit, licence,
and size and hash of every file. A file counts as there when its bytes hash to what the hub says:
SHA-256 for large files, git's own SHA-1 for small ones.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from evalharness.errors import UserError
from evalharness.models.video.folder import FETCH_RECORD
from evalharness.store import atomic_write_json, read_json

__all__ = ["Hub", "HubFile", "Listing", "fetch", "verify"]

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_OFFLINE = ("HF_HUB_OFFLINE", "EVALHARNESS_OFFLINE")
# What a pipeline of diffusers needs; not demo videos, not the same weights in a second form.
_WANTED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".md")
_TRIES = 3
# A hub that is busy (429) or ails (5xx) is asked again after what it says, or after these seconds.
_WAITS_S = (2.0, 10.0, 30.0)
_LONGEST_WAIT_S = 120.0
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """``sha256`` of a large file; for others ``git_sha1``, of git's blob."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A revision: its commit, its licence as the hub states it, and its files."""

    repo: str
    revision: str
    licence: str
    files: tuple[HubFile, ...]


class _Answer(Protocol):
    status: int

    def read(self, size: int) -> bytes: ...
    def close(self) -> None: ...


class Hub:
    """The two requests that are made, of the hub at ``$HF_ENDPOINT`` (https://huggingface.co)."""

    def __init__(self) -> None:
        given = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self.endpoint = given.rstrip("/")
        if not self.endpoint.startswith(("https://", "http://")):
            raise UserError(f"HF_ENDPOINT {given}: expected an address that begins with https://")

    def listing(self, repo: str, revision: str) -> Listing:
        """What the revision holds.

        Raises:
            UserError: offline, unreachable, no such repository or revision, or one that needs a login.
        """
        _refuse_offline(repo)
        quoted = urllib.parse.quote(revision, safe="")
        address = f"{self.endpoint}/api/models/{repo}/revision/{quoted}?blobs=true"
        answer = self._open(address, f"{repo} at revision {revision}")
        try:
            record = json.loads(b"".join(_pieces(answer)))
            files = tuple(_hub_file(entry) for entry in record["siblings"])
            licence = str((record.get("cardData") or {}).get("license") or "not stated")
            found = Listing(repo, str(record["sha"]), licence, files)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.endpoint}: its answer about {repo} was not understood ({error})"
            ) from error
        finally:
            answer.close()
        if _COMMIT.fullmatch(revision) and found.revision != revision:
            raise UserError(
                f"{self.endpoint}: asked for {repo} at {revision}, it answered with {found.revision}; "
                "nothing was taken"
            )
        return found

    def open(self, listing: Listing, path: str, start: int) -> tuple[_Answer, int]:
        """A file from byte ``start`` on; and where the answer really begins (0 if it ignores that)."""
        _refuse_offline(listing.repo)
        address = f"{self.endpoint}/{listing.repo}/resolve/{listing.revision}/{urllib.parse.quote(path)}"
        answer = self._open(address, path, {"Range": f"bytes={start}-"} if start else {})
        return answer, start if answer.status == 206 else 0

    def _open(self, address: str, what: str, headers: dict[str, str] | None = None) -> _Answer:
        request = urllib.request.Request(address, headers={"User-Agent": "evalharness", **(headers or {})})  # noqa: S310
        for wait in (*_WAITS_S, None):
            try:
                answer: _Answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
            except urllib.error.HTTPError as error:
                error.close()
                if wait is None or not (error.code == 429 or error.code >= 500):
                    raise UserError(f"{self.endpoint}: {_refusal(error, what)}") from error
                time.sleep(_told_wait_s(error) or wait)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                raise UserError(f"{self.endpoint} cannot be reached ({reason}); {_GOES_ON}") from error
            else:
                return answer
        raise AssertionError


_GOES_ON = "what is there already is kept, and the same command goes on"


def _refusal(error: urllib.error.HTTPError, what: str) -> str:
    """What a user can do about it; the hub says in a header what a code leaves open."""
    code = error.headers.get("X-Error-Code", "")
    if error.code == 404:
        advice = "check the name and --revision"
        if code == "RevisionNotFound" or (not code and " at revision " in what):
            advice = "--revision main takes the newest, whose commit is recorded, or check the name"
        return f"there is no {what}; {advice}"
    if error.code in (401, 403):
        why = "wants terms accepted and a login" if code == "GatedRepo" else "needs a login or is not there"
        return (
            f"{what} {why}; no login is done here: download it with the hub's own tool and give --weights DIR"
        )
    return f"{what}: HTTP {error.code}; try again later: {_GOES_ON}"


def _told_wait_s(error: urllib.error.HTTPError) -> float | None:
    """``Retry-After`` where it is seconds."""
    told = error.headers.get("Retry-After", "")
    return min(float(told), _LONGEST_WAIT_S) if told.isdecimal() else None


def _refuse_offline(repo: str) -> None:
    name = next(
        (name for name in _OFFLINE if os.environ.get(name, "") not in ("", "0", "false", "False")), None
    )
    if name:
        raise UserError(
            f"{name} is set, so {repo} is not asked for; unset it, or copy the folder by other means"
        )


def _hub_file(entry: dict[str, Any]) -> HubFile:
    path = str(entry["rfilename"])
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise ValueError(f"file name {path!r}")
    large = entry.get("lfs") or {}
    return HubFile(path, int(entry["size"]), large.get("sha256"), entry.get("blobId"))


def wanted(listing: Listing) -> list[HubFile]:
    """The files of the pipeline's parts: safetensors, configurations, tokenizers, the model card."""
    return [
        file
        for file in listing.files
        if file.path.endswith(_WANTED_SUFFIXES) and not PurePosixPath(file.path).name.startswith(".")
    ]


def fetch(hub: Hub, repo: str, revision: str | None, folder: Path, tell: Callable[[str], None]) -> Listing:
    """Bring the revision into ``folder``; files that are there and right are not asked for again.

    Args:
        hub: where from.
        repo: which.
        revision: commit, branch or tag; None: the one that the folder has, else the newest.
        folder: where to. Files of another revision in it are replaced where they differ.
        tell: progress, one line a file.

    Raises:
        UserError: see ``Hub``; no room on the disk; a file that does not hash as the hub says; the folder is
            of another repository.
    """
    known = _recorded(folder)
    if known is not None and known.repo != repo:
        raise UserError(f"{folder} holds {known.repo}, not {repo}; give another --out")
    if known is not None and revision is None:
        revision = known.revision
    if known is not None and revision == known.revision and not verify(folder):
        tell(f"{repo} at {known.revision}: is there, verified")
        return known
    listing = hub.listing(repo, revision or "main")
    files = wanted(listing)
    missing = [file for file in files if not _is_right(folder / file.path, file)]
    _check_room(folder, sum(file.size - _came(folder / f"{file.path}.part") for file in missing))
    for number, file in enumerate(missing, start=1):
        tell(f"{number}/{len(missing)} {file.path} ({file.size / 1e9:.2f} GB)")
        _download(hub, listing, file, folder)
    kept = Listing(repo, listing.revision, listing.licence, tuple(files))
    atomic_write_json(folder / FETCH_RECORD, asdict(kept))
    return kept


def verify(folder: Path) -> list[str]:
    """Files of the record that are missing or do not hash as it says; empty: all is right.

    Raises:
        UserError: no record.
    """
    record = _recorded(folder)
    if record is None:
        raise UserError(f"{folder} has no {FETCH_RECORD}: it was not made by evalharness fetch")
    return [file.path for file in record.files if not _is_right(folder / file.path, file)]


def _recorded(folder: Path) -> Listing | None:
    record = read_json(folder / FETCH_RECORD)
    if record is None:
        return None
    try:
        files = tuple(HubFile(**file) for file in record["files"])
        return Listing(record["repo"], record["revision"], record["licence"], files)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / FETCH_RECORD}: damaged; delete it and fetch again") from error


def _check_room(folder: Path, size: int) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free; give another --out"
        )


def _is_right(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _hashes(path, file)


def _hashes(path: Path, file: HubFile) -> bool:
    """Against the hub's own hash; where it gives none, the size must do."""
    if file.sha256 is not None:
        total, expected = hashlib.sha256(), file.sha256
    elif file.git_sha1 is not None:
        total, expected = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False), file.git_sha1
    else:
        return True
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            total.update(piece)
    return total.hexdigest() == expected


def _download(hub: Hub, listing: Listing, file: HubFile, folder: Path) -> None:
    """Into ``NAME.part``, which a killed command leaves behind to be gone on with.

    A connection may break as often as it likes while each leaves more of the file than any before; of a hub
    that begins anew each time, one that brings less has brought nothing.
    """
    target, part = folder / file.path, folder / f"{file.path}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    spoiled = idle = 0
    most = _came(part)
    while spoiled < _TRIES and idle < _TRIES:
        start = _came(part)
        if start < file.size or file.size == 0:
            _append(hub, listing, file, part, start)
        if _came(part) < file.size:
            idle = idle + 1 if _came(part) <= most else 0
            most = max(most, _came(part))
        elif _came(part) == file.size and _hashes(part, file):
            part.replace(target)
            return
        else:
            part.unlink()
            spoiled, most = spoiled + 1, 0
    if spoiled < _TRIES:
        raise UserError(
            f"{file.path}: {_TRIES} connections in a row brought nothing more ({_came(part)} of {file.size} "
            f"bytes came); {_GOES_ON}"
        )
    raise UserError(
        f"{file.path}: came {_TRIES} times in another form than the hub says (size or hash); nothing of it "
        "was kept, try again later"
    )


def _came(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _append(hub: Hub, listing: Listing, file: HubFile, part: Path, start: int) -> None:
    answer, start = hub.open(listing, file.path, start)
    try:
        with part.open("ab") as stream:
            stream.truncate(start)
            for piece in _pieces(answer):
                stream.write(piece)
    finally:
        answer.close()


def _pieces(answer: _Answer) -> Iterator[bytes]:
    """What comes before the end, or before the connection breaks."""
    while True:
        try:
            piece = answer.read(_CHUNK)
        except http.client.IncompleteRead as error:
            yield error.partial
            return
        except (OSError, http.client.HTTPException, ValueError):
            return
        if not piece:
            return
        yield piece
