"""Downloads from a small hub on this machine: checked, resumable, and honest about what fails."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evalharness.cli.main import main
from evalharness.errors import UserError
from evalharness.machine import fetch as fetching
from evalharness.machine.fetch import Hub, HubFile, Listing, fetch, verify, wanted
from evalharness.modeloptions import ModelOptions
from evalharness.models.video.folder import models_cache
from evalharness.models.video.wan import Wan21Small
from evalharness.registry import Registry

REPO = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
COMMIT = str(Wan21Small.spec.revision)
LATER = "c0ffee" * 6 + "abcd"


class FakeHub:
    """Serves a folder as one revision; ``cut``: bytes after which the next answers break off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        self.cut: list[int] = []
        self.spoil = ""
        self.ranges = True
        self.commit = COMMIT
        self.refusals: list[
            tuple[str, int, dict[str, str]]
        ] = []  # part of a path, status, headers; once each
        self.moved = False  # files lie elsewhere, as the hub's large ones do
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path in self.files():
            data = path.read_bytes()
            entry: dict[str, Any] = {"rfilename": path.relative_to(self.folder).as_posix(), "size": len(data)}
            if path.suffix == ".safetensors":
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            siblings.append(entry)
        return {"sha": self.commit, "cardData": {"license": "apache-2.0"}, "siblings": siblings}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append((request.path, request.headers.get("Range")))
        for number, (part, status, headers) in enumerate(self.refusals):
            if part in request.path:
                del self.refusals[number]
                return self.say(request, status, b"no", headers=headers)
        if self.moved and request.path.startswith(f"/{REPO}/resolve/"):
            elsewhere = {"Location": f"{self.address}/cdn{request.path}?signed=1"}
            return self.say(request, 302, b"", headers=elsewhere)
        if request.path.startswith(f"/api/models/{REPO}/revision/"):
            revision = request.path.rpartition("/")[2].partition("?")[0]
            if revision not in ("main", COMMIT, self.commit):
                return self.say(request, 404, b"")
            return self.say(request, 200, json.dumps(self.listing()).encode())
        prefix = f"/{REPO}/resolve/{self.commit}/"
        path = request.path.removeprefix("/cdn").partition("?")[0]
        if not path.startswith(prefix):
            return self.say(request, 404, b"")
        name = path.removeprefix(prefix)
        data = (self.folder / name).read_bytes()
        if name == self.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status = 0, 200
        if self.ranges and (asked := request.headers.get("Range")):
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
        self.say(
            request, status, data[start:], self.cut.pop(0) if self.cut and name.endswith("tensors") else None
        )

    def say(
        self, request: BaseHTTPRequestHandler, status: int, data: bytes, cut: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data if cut is None else data[:cut])


@pytest.fixture
def hub(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(folders("wan2.1"))
    for name in ("HF_HUB_OFFLINE", "EVALHARNESS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", fake.address)
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "fetch.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def quiet(line: str) -> None:
    pass


def test_all_comes_and_is_recorded(hub: FakeHub, tmp_path: Path) -> None:
    listing = fetch(Hub(), REPO, None, tmp_path, quiet)
    assert tree(tmp_path) == tree(hub.folder)
    record = json.loads((tmp_path / "fetch.json").read_text())
    assert (record["revision"], record["licence"], record["repo"]) == (COMMIT, "apache-2.0", REPO)
    assert listing.revision == COMMIT and verify(tmp_path) == []
    before = len(hub.asked)
    fetch(Hub(), REPO, None, tmp_path, quiet)
    assert len(hub.asked) == before
    fetch(Hub(), REPO, "main", tmp_path, quiet)
    assert len(hub.asked) == before + 1  # the listing alone
    fetch(Hub(), REPO, COMMIT, tmp_path, quiet)
    assert len(hub.asked) == before + 1  # nothing: this commit is there and right


def test_damage_is_found_and_mended(hub: FakeHub, tmp_path: Path) -> None:
    fetch(Hub(), REPO, None, tmp_path, quiet)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    data = (tmp_path / weights).read_bytes()
    (tmp_path / weights).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    config = (tmp_path / "model_index.json").read_bytes()
    (tmp_path / "model_index.json").write_bytes(config.replace(b"Wan", b"Wun", 1))
    assert sorted(verify(tmp_path)) == sorted(["model_index.json", weights])
    hub.asked.clear()
    fetch(Hub(), REPO, COMMIT, tmp_path, quiet)
    assert tree(tmp_path) == tree(hub.folder)
    assert len(hub.asked) == 3


def test_a_broken_connection_is_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = [1000, 500]
    fetch(Hub(), REPO, None, tmp_path, quiet)
    assert tree(tmp_path) == tree(hub.folder)
    assert [asked for _, asked in hub.asked if asked] == ["bytes=1000-", "bytes=1500-"]


def test_a_killed_command_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    weights = "vae/diffusion_pytorch_model.safetensors"
    whole = (hub.folder / weights).read_bytes()
    (tmp_path / "vae").mkdir()
    (tmp_path / f"{weights}.part").write_bytes(whole[:700])
    fetch(Hub(), REPO, None, tmp_path, quiet)
    assert ("bytes=700-") in [asked for _, asked in hub.asked]
    assert tree(tmp_path) == tree(hub.folder)


def test_a_hub_without_ranges_begins_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.cut = [1000]
    fetch(Hub(), REPO, None, tmp_path, quiet)
    assert tree(tmp_path) == tree(hub.folder)


def test_connections_may_break_while_they_bring_something(hub: FakeHub, tmp_path: Path) -> None:
    """Eight times; but three in a row that bring nothing end it, with what came kept."""
    hub.cut = [100] * 8
    fetch(Hub(), REPO, None, tmp_path / "a", quiet)
    assert tree(tmp_path / "a") == tree(hub.folder)
    first = next(path for path in hub.files() if path.suffix == ".safetensors")
    size = first.stat().st_size
    hub.cut = [100, 0, 0, 0]
    with pytest.raises(
        UserError, match=rf"3 connections in a row brought nothing more \(100 of {size} bytes"
    ):
        fetch(Hub(), REPO, None, tmp_path / "b", quiet)
    fetch(Hub(), REPO, None, tmp_path / "b", quiet)
    assert tree(tmp_path / "b") == tree(hub.folder)
    assert [asked for _, asked in hub.asked if asked][-1] == "bytes=100-"


def test_a_hub_that_begins_anew_each_time_is_not_asked_for_ever(hub: FakeHub, tmp_path: Path) -> None:
    """It breaks off at 500 bytes, then three times before that: nothing is gained, however they lie."""
    hub.ranges, hub.cut = False, [500, 300, 400, 200, 350]
    with pytest.raises(UserError, match="3 connections in a row brought nothing more"):
        fetch(Hub(), REPO, None, tmp_path, quiet)
    assert hub.cut == [350]


def test_an_encrypted_connection_may_break_too(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TLS says then has a number, as errors of the disk have; and an answer may be no HTTP at all."""
    plain, broken = Hub.open, [700]

    class Answer:
        status = 200

        def __init__(self, data: bytes) -> None:
            self.pieces = [data]

        def read(self, size: int) -> bytes:
            if self.pieces:
                return self.pieces.pop()
            raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")

        def close(self) -> None: ...

    def open_(self: Hub, listing: Listing, path: str, start: int) -> tuple[Any, int]:
        if path.endswith(".safetensors") and broken:
            return Answer((hub.folder / path).read_bytes()[: broken.pop()]), 0
        return plain(self, listing, path, start)

    monkeypatch.setattr(Hub, "open", open_)
    fetch(Hub(), REPO, None, tmp_path / "a", quiet)
    assert tree(tmp_path / "a") == tree(hub.folder)
    assert [asked for _, asked in hub.asked if asked] == ["bytes=700-"]

    def garbled(*_: Any, **__: Any) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr(fetching.urllib.request, "urlopen", garbled)
    with pytest.raises(UserError, match=r"cannot be reached \(SSH-2\.0\); what is there already is kept"):
        fetch(Hub(), REPO, None, tmp_path / "b", quiet)


def test_large_files_lie_elsewhere_and_are_gone_on_with_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.moved, hub.cut = True, [1000]
    fetch(Hub(), REPO, None, tmp_path, quiet)
    assert tree(tmp_path) == tree(hub.folder)
    assert [path for path, asked in hub.asked if asked and path.startswith("/cdn/")]


def test_a_busy_hub_is_waited_for(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it says; else 2, 10, 30 seconds; then the command ends, and goes on when given again."""
    waited: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    hub.refusals = [
        ("/api/", 429, {"Retry-After": "7"}), ("/api/", 503, {}), ("/vae/", 429, {"Retry-After": "100000"}),
        ("/vae/", 500, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]  # fmt: skip
    fetch(Hub(), REPO, None, tmp_path / "a", quiet)
    assert tree(tmp_path / "a") == tree(hub.folder)
    assert waited == [7.0, 10.0, 120.0, 10.0]
    waited.clear()
    hub.refusals = [("/vae/diffusion", 503, {})] * 4
    with pytest.raises(
        UserError, match=r"safetensors: HTTP 503; try again later: what is there already is kept"
    ):
        fetch(Hub(), REPO, None, tmp_path / "b", quiet)
    assert waited == [2.0, 10.0, 30.0]
    fetch(Hub(), REPO, None, tmp_path / "b", quiet)
    assert tree(tmp_path / "b") == tree(hub.folder)


def test_bytes_that_hash_otherwise_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.spoil = "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="came 3 times in another form"):
        fetch(Hub(), REPO, None, tmp_path, quiet)
    assert not (tmp_path / hub.spoil).exists() and not (tmp_path / "fetch.json").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_name_that_leads_out_of_the_folder_is_refused(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"sha": COMMIT, "siblings": [{"rfilename": "../evil.json", "size": 1, "blobId": "0" * 40}]}
    monkeypatch.setattr(FakeHub, "listing", lambda self: bad)
    with pytest.raises(UserError, match="was not understood"):
        Hub().listing(REPO, "main")


def test_only_the_pipelines_files_are_wanted() -> None:
    names = [
        "a.safetensors",
        "demo.mp4",
        "config.json",
        ".gitattributes",
        "x.bin",
        "spiece.model",
        "README.md",
    ]
    listing = Listing("r", "c", "l", tuple(HubFile(name, 1, None, None) for name in names))
    assert [f.path for f in wanted(listing)] == ["a.safetensors", "config.json", "spiece.model", "README.md"]


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main(["fetch", *arguments]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_fails_is_one_line(hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = ["--out", str(tmp_path / "w")]
    line = said(capfd, "wan2.1-1.3b", "--revision", "deadbeef", *out)
    assert "there is no Wan-AI/Wan2.1-T2V-1.3B-Diffusers at revision deadbeef" in line
    assert "did you mean 'wan2.1-1.3b'" in said(capfd, "wan2.1-1.3", *out)
    assert "nothing to fetch" in said(capfd, "wan", *out)
    assert "nothing to fetch" in said(capfd, "tinyworld", *out)
    assert "--revision main takes the newest, whose commit is recorded" in line
    hub.commit = LATER  # the pinned commit is gone
    hub.refusals = [("/revision/", 404, {"X-Error-Code": "RevisionNotFound"})]
    line = said(capfd, "wan2.1-1.3b", *out)
    assert f"there is no {REPO} at revision {COMMIT}; --revision main takes the newest" in line
    hub.refusals = [("/revision/", 404, {"X-Error-Code": "RepoNotFound"})]
    assert f"at revision {COMMIT}; check the name" in said(capfd, "wan2.1-1.3b", *out)
    hub.refusals = [("/revision/", 401, {}), ("/revision/", 403, {"X-Error-Code": "GatedRepo"})]
    assert "needs a login or is not there; no login is done here" in said(capfd, "wan2.1-1.3b", *out)
    assert "wants terms accepted and a login" in said(capfd, "wan2.1-1.3b", *out)
    hub.refusals = [("/revision/", 418, {})]
    assert "HTTP 418; try again later" in said(capfd, "wan2.1-1.3b", *out)
    assert hub.refusals == []
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    assert "expected an address that begins with https://" in said(capfd, "wan2.1-1.3b", *out)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in said(capfd, "wan2.1-1.3b", *out)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in said(capfd, "wan2.1-1.3b", *out)
    assert "was not made by evalharness fetch" in said(capfd, "wan2.1-1.3b", "--verify", *out)


def test_offline_use_of_what_is_there(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(Hub(), REPO, None, tmp_path, quiet)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(Hub(), REPO, COMMIT, tmp_path, quiet).revision == COMMIT


def test_a_folder_stays_with_the_revision_of_its_first_fetch(hub: FakeHub, tmp_path: Path) -> None:
    fetch(Hub(), REPO, None, tmp_path, quiet)
    hub.commit = LATER  # the repository went on
    asked = len(hub.asked)
    assert fetch(Hub(), REPO, None, tmp_path, quiet).revision == COMMIT
    assert len(hub.asked) == asked, "all is there and right"
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(UserError, match=f"asked for {REPO} at {COMMIT}, it answered with {LATER}; nothing"):
        fetch(Hub(), REPO, None, tmp_path, quiet)
    assert fetch(Hub(), REPO, "main", tmp_path, quiet).revision == LATER
    with pytest.raises(UserError, match=f"holds {REPO}, not x/y; give another --out"):
        fetch(Hub(), "x/y", None, tmp_path, quiet)


def test_from_fetch_to_a_video(hub: FakeHub, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch,
                               capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The verb, with a spec of the small pipeline's size: fetched into the cache, then loaded from there."""
    import dataclasses

    small = dataclasses.replace(Wan21Small.spec, shape=None)
    monkeypatch.setattr(Registry().get("models", "wan2.1-1.3b"), "spec", small)
    assert main(["fetch", "wan2.1-1.3b", "--dry-run"]) == 0
    assert "licence apache-2.0" in capfd.readouterr().out
    assert main(["fetch", "wan2.1-1.3b"]) == 0
    out = capfd.readouterr().out
    assert f"at {COMMIT}" in out and "licence apache-2.0" in out
    assert main(["fetch", "wan2.1-1.3b", "--verify"]) == 0
    options = ModelOptions(generation=tiny.WAN)
    loaded = Registry().get("models", "wan2.1-1.3b")(options).load("cpu")
    assert loaded.generate(["a goat"], [0]).shape == (1, 5, 32, 32, 3)
    with pytest.raises(UserError, match="asked was def"):
        Registry().get("models", "wan2.1-1.3b")(ModelOptions(revision="def")).folder()
    # The newest, where the pinned commit is gone: what it prints is what a run then takes.
    hub.commit = LATER
    capfd.readouterr()
    assert main(["fetch", "wan2.1-1.3b", "--revision", "main"]) == 0
    assert f"not the pinned revision: --revision {LATER} in every run" in capfd.readouterr().out
    with pytest.raises(UserError, match=f"or take what is there with: --revision {LATER}"):
        Registry().get("models", "wan2.1-1.3b")(ModelOptions()).folder()
    assert Registry().get("models", "wan2.1-1.3b")(ModelOptions(revision=LATER)).folder()
    own = Registry().get("models", "wan2.1-1.3b")(ModelOptions(weights=str(hub.folder))).folder()
    assert own == hub.folder, "a folder that is given need not be of the pinned revision"
    record = models_cache() / "wan2.1-1.3b" / "fetch.json"
    record.write_text(record.read_text().replace(COMMIT, LATER))
    with pytest.raises(UserError, match=f"is of revision {LATER}, asked was {COMMIT}; fetch that one"):
        Registry().get("models", "wan2.1-1.3b")(options).folder()
