"""The bridge to the package ``vbench``, against a stand-in with its shapes and its ways to fail."""

from __future__ import annotations

import hashlib
import http.server
import io
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalharness.api import Prompt
from evalharness.cli.main import main
from evalharness.errors import UserError
from evalharness.native.catalogue import CATALOGUE
from evalharness.protocols.vbench_suite import DIMENSIONS
from evalharness.upstream import files
from evalharness.upstream.download import download
from evalharness.upstream.driver import Scored, Upstream, UpstreamVideo, score_dimensions
from evalharness.upstream.environment import (
    RECORD,
    add_detectron2,
    commands,
    detectron2_commands,
    fetch,
    find,
    has_detectron2,
)
from evalharness.upstream.files import CacheFile
from evalharness.upstream.pins import LVIS, NEEDS_DETECTRON2, PINS, WITH_DETECTRON2, WITHOUT_DEPENDENCIES
from evalharness.upstream.worker import _Failed, _measure, nms
from evalharness.video import write_video

FAKE = Path(__file__).with_name("fake_upstream")
FLICKER = "temporal_flickering"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, level in (("dark.mp4", 51), ("light.mp4", 204)):
        write_video(folder / name, np.full((3, 32, 32, 3), level, np.uint8), 8)
    (folder / "empty.mp4").write_bytes(b"")
    write_video(folder / "single.mp4", np.zeros((1, 32, 32, 3), np.uint8), 8)
    return folder


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    return Upstream(python=Path(sys.executable), path=(str(FAKE),), cache=tmp_path / "cache")


def video(number: int, path: Path, text: str, dimension: str = FLICKER, **labels: str) -> UpstreamVideo:
    prompt = Prompt(id=f"{number:04d}", text=text, dimensions=(dimension,), labels=labels)
    return UpstreamVideo(f"{number:04d}-0", path, prompt)


def score(upstream: Upstream, videos: Sequence[UpstreamVideo], dimension: str = FLICKER) -> Scored:
    [scored] = score_dimensions(upstream, [dimension], videos, timeout=500)
    return scored


def test_prompts_that_collide_or_are_no_names_are_kept_apart(upstream: Upstream, clips: Path) -> None:
    dark, light = clips / "dark.mp4", clips / "light.mp4"
    videos = [
        video(0, dark, "a cat"),
        video(1, light, "a cat"),
        video(2, light, "A cat"),
        video(3, dark, "../../etc/passwd"),
        video(4, light, "x" * 300),
    ]
    scored = score(upstream, videos)
    assert scored.error is None
    levels = [scored.videos[item.id].value for item in videos]
    assert levels == pytest.approx([0.2, 0.8, 0.8, 0.2, 0.8], abs=0.01)
    names = [scored.videos[item.id].extras["name"] for item in videos]
    assert names == ["a cat-0.mp4", "a cat-0.mp4", "A cat-0.mp4", "video.mp4", "video.mp4"]
    assert scored.mean == pytest.approx(0.56, abs=0.01)
    assert scored.versions["python"] == sys.version.split()[0]


def test_the_worker_sees_a_clean_surrounding(
    upstream: Upstream, clips: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "3")
    scored = score(upstream, [video(0, clips / "dark.mp4", "a")])
    extras = scored.videos["0000-0"].extras
    assert extras["environment"] == {"RANK": None, "VBENCH_CACHE_DIR": str(tmp_path / "cache")}
    assert sorted(extras["cwd"]) == ["full_info.json", "videos"]
    assert extras["device"] == "'cpu'"
    assert extras["odd"] is None


def test_each_bad_video_is_one_failure(upstream: Upstream, clips: Path) -> None:
    dark = clips / "dark.mp4"
    videos = [video(number, dark, "fine") for number in range(5)]
    videos += [
        video(5, dark, "explode"),
        video(6, dark, "nan"),
        video(7, dark, "skipped"),
        video(8, clips / "empty.mp4", "empty"),
        video(9, clips / "single.mp4", "single"),
        video(10, clips / "absent.mp4", "absent"),
    ]
    scored = score(upstream, videos)
    assert scored.error is None and scored.mean is None
    errors = {key: record.error for key, record in scored.videos.items() if record.error}
    assert errors == {
        "0005-0": "RuntimeError: cannot take this one",
        "0006-0": "vbench returned nan",
        "0007-0": "vbench left the video out without saying why",
        "0008-0": "0 frames can be read, 2 are needed",
        "0009-0": "1 frames can be read, 2 are needed",
        "0010-0": "0 frames can be read, 2 are needed",
    }
    assert all(scored.videos[f"{number:04d}-0"].value is not None for number in range(5))


def test_a_failure_costs_its_dimension_only(upstream: Upstream, clips: Path) -> None:
    videos = [
        video(0, clips / "dark.mp4", "a", "dynamic_degree"),
        video(1, clips / "dark.mp4", "b", "dynamic_degree"),
        video(2, clips / "dark.mp4", "c", "human_action"),
        video(3, clips / "dark.mp4", "d"),
        video(4, clips / "dark.mp4", "e", "motion_smoothness"),
    ]
    dimensions = ["dynamic_degree", "human_action", "motion_smoothness", "object_class", FLICKER]
    missing, died, absent, empty, fine = score_dimensions(upstream, dimensions, videos, timeout=500)
    assert missing.error == "FileNotFoundError: raft-things.pth"
    assert missing.mean is None and missing.videos["0001-0"].value is None
    assert died.error is not None and died.error.startswith("the process ended with 7")
    assert absent.error == "cannot be set up: ModuleNotFoundError: No module named 'vbench.motion_smoothness'"
    assert empty.error == "no video counts for it"
    assert fine.mean == pytest.approx(0.2, abs=0.01)


def test_scales_and_what_color_drops(upstream: Upstream, clips: Path) -> None:
    dark = clips / "dark.mp4"
    imaging = score(upstream, [video(n, dark, "a", "imaging_quality") for n in range(2)], "imaging_quality")
    assert imaging.videos["0000-0"].value == 0.5
    assert imaging.videos["0001-0"].error == "vbench returned 150.0, outside of its range"
    videos = [video(n, dark, "a", "color", color=color) for n, color in enumerate(("red", "blue"))]
    color = score(upstream, videos, "color")
    assert color.videos["0000-0"].extras["label"] == {"color": "red"}
    assert color.videos["0001-0"].left_out and color.videos["0001-0"].error is None
    assert color.mean == 1.0
    nothing = score(upstream, videos[1:], "color")  # the package divides by zero here
    assert (nothing.error, nothing.mean) == (None, None)
    assert nothing.videos["0001-0"].left_out


def test_a_torchvision_for_another_torch_is_mended(tmp_path: Path, clips: Path) -> None:
    path = (str(FAKE), str(FAKE.with_name("fake_upstream_cpu")))
    upstream = Upstream(python=Path(sys.executable), path=path, cache=tmp_path)
    videos = [video(0, clips / "dark.mp4", "a red cat", "color", color="red")]
    scored = score(upstream, videos, "color")
    assert scored.error is None
    assert scored.videos["0000-0"].extras["device"] == "device(type='cpu')"
    assert scored.videos["0000-0"].extras["compiles"] == "1"  # or not: see the worker


def test_a_detector_that_fails_is_not_nothing_detected(upstream: Upstream, clips: Path) -> None:
    """The package takes every exception of GRiT for an empty picture, which would be a score of 0."""
    texts = ("a cat", "an empty room", "a broken cat", "another cat")
    videos = [
        video(n, clips / "dark.mp4", text, "object_class", object="cat") for n, text in enumerate(texts)
    ]
    scored = score(upstream, videos, "object_class")
    assert [scored.videos[f"{n:04d}-0"].value for n in range(4)] == [1.0, 0.0, None, 1.0]
    assert scored.videos["0002-0"].error == "RuntimeError: the detector has no kernel"
    assert scored.mean is None and scored.error is None
    assert scored.videos["0000-0"].extras["gradients"] is False  # memory for which would be kept


@pytest.mark.parametrize("broken", [(0,), (2, 3), (0, 1), (6,), (0, 6), (0, 1, 2, 3)])
def test_videos_that_the_package_refuses_cost_no_other_its_score(
    upstream: Upstream, clips: Path, broken: tuple[int, ...]
) -> None:
    """Wherever in the list they stand."""
    texts = ["explode" if n in broken else "fine" for n in range(7)]
    videos = [video(n, clips / "dark.mp4", text) for n, text in enumerate(texts)]
    found = score(upstream, videos).videos
    told = {n for n in range(7) if found[f"{n:04d}-0"].error == "RuntimeError: cannot take this one"}
    assert told == set(broken)
    assert all((found[f"{n:04d}-0"].value is None) is (n in told) for n in range(7))


def test_what_fails_for_all_is_not_tried_with_each() -> None:
    tried: list[int] = []

    def compute(staged: dict[str, Any]) -> Any:
        tried.append(len(staged))
        raise RuntimeError("no weights")

    staged = {f"{n}.mp4": {"id": str(n)} for n in range(64)}
    found = _measure(compute, staged, FLICKER, _Failed())
    assert found == {str(n): {"value": None, "error": "RuntimeError: no weights"} for n in range(64)}
    assert len(tried) <= 8


def test_detectors_overlapping_boxes_go_where_torchvision_has_no_kernel(tmp_path: Path, clips: Path) -> None:
    path = (str(FAKE), str(FAKE.with_name("fake_upstream_cpu")))
    upstream = Upstream(python=Path(sys.executable), path=path, cache=tmp_path)
    videos = [video(0, clips / "dark.mp4", "a crowded room", "object_class", object="cat")]
    scored = score(upstream, videos, "object_class")
    assert scored.error is None and scored.videos["0000-0"].value == 1.0  # the surest of the boxes


@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 6)] * 2, st.integers(0, 9)), max_size=12),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_overlapping_boxes_by_hand(found: list[tuple[int, int, int, int, int]], threshold: float) -> None:
    """Greedily, in whole numbers; equally sure boxes in their order."""
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in found]

    def shared(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
        across = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return across, areas - across

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -found[i][4]):
        pairs = [shared(boxes[i], boxes[j]) for j in kept]
        if not any(both and across / both > threshold for across, both in pairs):
            kept.append(i)
    tensors = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), torch.tensor([f[4] for f in found])
    assert nms(*tensors, threshold).tolist() == kept


def test_a_timeout_ends_the_worker_and_its_children(
    upstream: Upstream, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CHILD", str(tmp_path / "child"))
    videos = [video(0, clips / "dark.mp4", "bar", "scene", scene="bar")]
    for timeout in (8, 60, 400):  # until the worker has come to start a child
        [scored] = score_dimensions(upstream, ["scene"], videos, timeout=timeout)
        assert scored.error == f"no result after {timeout} s; stopped"
        if (tmp_path / "child").exists():
            break
    child = int((tmp_path / "child").read_text())
    for _ in range(600):
        if not _alive(child):
            break
        time.sleep(0.1)
    assert not _alive(child)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_mistakes(upstream: Upstream, clips: Path, tmp_path: Path) -> None:
    twice = [video(0, clips / "dark.mp4", "a")] * 2
    with pytest.raises(UserError, match="two videos have one id"):
        score_dimensions(upstream, [FLICKER], twice)
    outside = UpstreamVideo("../x", clips / "dark.mp4", twice[0].prompt)
    with pytest.raises(UserError, match="can name a file"):
        score_dimensions(upstream, [FLICKER], [outside])
    with pytest.raises(UserError, match="evalharness fetch vbench"):
        score_dimensions(Upstream(python=tmp_path / "none"), [FLICKER], twice[:1])


# ---- the environment


def test_fetch_makes_it_once_and_begins_a_half_made_one_anew(tmp_path: Path) -> None:
    folder = tmp_path / "env"
    ran: list[list[str]] = []

    def run(command: Sequence[str]) -> None:
        ran.append(list(command))
        folder.mkdir(exist_ok=True)
        (folder / "pyvenv.cfg").touch()
        if len(ran) == 2:
            raise UserError("pip was killed")

    with pytest.raises(UserError, match="killed"):
        fetch(folder, run=run)
    assert find(folder) is None
    ran += [["begun anew"]] * 3
    assert fetch(folder, run=run) and not fetch(folder, run=run)
    assert ran[5:] == commands(folder, sys.executable)
    made = find(folder)
    assert made is not None and made.python == folder / "bin" / "python"
    (folder / RECORD).write_text('{"pins": "others"}')
    assert find(folder) is None


def test_fetch_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UserError, match="not empty and no Python environment"):
        fetch(tmp_path, run=lambda command: None)
    with pytest.raises(UserError, match="is a file"):
        fetch(tmp_path / "precious", run=lambda command: None)
    with pytest.raises(UserError, match="failed with"):
        fetch(tmp_path / "new", python="/bin/false")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "vbench", "--env", str(tmp_path / "e"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "transformers==4.51.3" in out and "--no-deps torchvision==0.28.0 vbench==0.1.5" in out
    assert not (tmp_path / "e").exists()
    assert main(["fetch", "vbnech"]) == 2
    assert "did you mean 'vbench'" in capsys.readouterr().err


def test_detectron2_is_built_into_an_environment_that_is_there(tmp_path: Path) -> None:
    folder, ran = tmp_path / "env", list[list[str]]()
    with pytest.raises(UserError, match="no environment of vbench"):
        add_detectron2(folder, run=lambda command: ran.append(list(command)))
    fetch(folder, run=lambda command: folder.mkdir(exist_ok=True))
    assert not has_detectron2(folder)

    def build(command: Sequence[str]) -> None:
        ran.append(list(command))
        if LVIS in command:
            (folder / "lib/python3.11/site-packages/detectron2").mkdir(parents=True)
            (folder / "lib/python3.11/site-packages/detectron2/__init__.py").touch()

    assert add_detectron2(folder, "checkout", run=build)
    assert has_detectron2(folder) and not add_detectron2(folder, "checkout", run=build)
    assert ran == detectron2_commands(folder, "checkout")
    assert {*WITH_DETECTRON2, *PINS} < set(ran[0])  # what both import must not replace the pins
    # Without a slash pip would take the folder's name for that of a package on the index.
    assert ran[1][-4:] == ["--no-build-isolation", "--no-deps", LVIS, str(Path("checkout").absolute())]


def test_the_command_builds_detectron2_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fetch", "vbench", "--env", str(tmp_path / "e"), "--dry-run"]
    assert main([*command, "--detectron2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("facebookresearch/detectron2@02b5c4e")
    assert main([*command, "--detectron2", "a/checkout"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--no-deps {LVIS} {Path.cwd()}/a/checkout")
    assert main(["fetch", "weights", "--detectron2"]) == 2
    assert "--detectron2 is for: evalharness fetch vbench" in capsys.readouterr().err


def test_pins_name_each_package_once() -> None:
    names = [pin.partition("==")[0] for pin in (*PINS, *WITHOUT_DEPENDENCIES, *WITH_DETECTRON2, LVIS)]
    assert len(set(names)) == len(names)
    assert all("==" in pin for pin in (*WITH_DETECTRON2, LVIS))
    assert set(NEEDS_DETECTRON2) < set(DIMENSIONS)


# ---- weights


class Shop(http.server.BaseHTTPRequestHandler):
    """Serves ``files``, parts of them on request; the first answer for ``cut`` ends half way."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[set[str]] = set()
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        data, wanted = self.files.get(self.path), self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if data is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.path in self.cut:
            self.cut.discard(self.path)
            data = data[: start + (len(data) - start) // 2]
        self.wfile.write(data[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Shop, "files", {})
    monkeypatch.setattr(Shop, "cut", set())
    monkeypatch.setattr(Shop, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def published(url: str, data: bytes = b"", path: str = "a/w.pth") -> CacheFile:
    sha256 = hashlib.sha256(data).hexdigest()[:12] if data else ""
    return CacheFile(path=path, url=url, megabytes=1, licence="MIT", dimensions=("scene",), sha256=sha256)


def test_a_download_goes_on_where_it_was_cut_off(shop: str, tmp_path: Path) -> None:
    data, target = bytes(range(256)) * 40, tmp_path / "a" / "w.pth"
    Shop.files["/w"] = data
    Shop.cut.add("/w")
    problem = download(published(f"{shop}/w", data), target)
    assert problem is not None and "goes on from 5120 bytes" in problem
    assert not target.exists()
    assert download(published(f"{shop}/w", data), target) is None
    assert target.read_bytes() == data
    assert Shop.asked == [("/w", None), ("/w", "bytes=5120-")]


def test_what_is_not_the_published_file_is_refused(shop: str, tmp_path: Path) -> None:
    Shop.files["/w"] = b"other"
    problem = download(published(f"{shop}/w", b"right"), tmp_path / "w")
    assert problem is not None and problem.startswith("refused: sha256 ")
    assert list(tmp_path.iterdir()) == []
    for url in (f"{shop}/absent", "file:///etc/passwd", "http://127.0.0.1:9/x"):
        problem = download(published(url), tmp_path / "w")
        assert problem is not None and problem.startswith("failed (")


def test_raft_is_taken_out_of_its_archive(shop: str, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("models/raft-things.pth", b"raft")
        file.writestr("models/raft-small.pth", b"small")
    Shop.files["/models.zip"] = archive.getvalue()
    assert download(published(f"{shop}/models.zip"), tmp_path / "raft-things.pth") is None
    assert (tmp_path / "raft-things.pth").read_bytes() == b"raft"
    Shop.files["/models.zip"] = b"no archive"
    problem = download(published(f"{shop}/models.zip"), tmp_path / "other.pth")
    assert problem is not None and "not the archive" in problem


def test_fetch_weights(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Shop.files["/w"] = b"weights"
    listed = (published(f"{shop}/w", b"weights", "a/w.pth"), published(f"{shop}/absent", path="b/x.pth"))
    monkeypatch.setattr(files, "FILES", listed)
    command = ["fetch", "weights", "--only", "scene", "--vbench-cache", str(tmp_path)]
    assert main([*command, "--dry-run"]) == 0
    assert f"b/x.pth: 1 MB from {shop}/absent (MIT)" in capsys.readouterr().out
    assert Shop.asked == []
    assert main(command) == 1
    out = capsys.readouterr().out
    assert f"a/w.pth: {tmp_path / 'a' / 'w.pth'} (MIT)" in out and "b/x.pth: failed" in out
    main(command)
    assert "a/w.pth: is there" in capsys.readouterr().out
    assert main(["fetch", "weights", "--only", "scent"]) == 2
    assert "did you mean 'scene'" in capsys.readouterr().err
    assert main(["fetch", "vbench", "--only", "scene"]) == 2
    assert "--only is for: evalharness fetch weights" in capsys.readouterr().err


def test_every_dimension_but_one_has_files() -> None:
    without = {dimension for dimension in DIMENSIONS if not files.files_of([dimension])}
    assert without == {"temporal_flickering"}
    assert {d for file in files.FILES for d in file.dimensions} <= set(DIMENSIONS)
    assert len({file.path for file in files.FILES}) == len(files.FILES)
    for entry in CATALOGUE.values():
        assert any(file.path == entry.original for file in files.FILES) or entry.file.startswith(
            ("lpips", "alexnet")
        )


def test_bert_and_dino_are_laid_where_the_package_looks(upstream: Upstream, clips: Path) -> None:
    cache = upstream.cache
    assert cache is not None
    (cache / "bert-base-uncased").mkdir(parents=True)
    (cache / "dino_model").mkdir()
    (cache / "dino_model" / "dino_vitbase16_pretrain.pth").write_bytes(b"dino")
    scored = score(upstream, [video(0, clips / "dark.mp4", "a")])
    extras = scored.videos["0000-0"].extras
    assert sorted(extras["cwd"]) == ["bert-base-uncased", "full_info.json", "videos"]
    assert extras["torch_home"] == ["dino_vitbase16_pretrain.pth"]
