"""VBench's file view out of a run, and any folder of videos into a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.api import Prompt, Sample
from evalharness.errors import UserError
from evalharness.interchange.found import by_manifest, by_name
from evalharness.interchange.names import is_safe, place, split_stem, video_name
from evalharness.interchange.submission import eval_results, full_info, submittable
from evalharness.protocols.vbench import VBenchProtocol
from evalharness.results import read_results
from evalharness.sampling import samples_by_dimension, samples_of
from evalharness.video import write_video

PLUGIN = str(Path(__file__).with_name("vbench_like.py"))
SCORE = ("--protocol", "vbench-like", "--plugin", PLUGIN, "--workers", "0", "--output", "scored")


def samples(*texts: str, count: int = 1) -> list[Sample]:
    prompts = [Prompt(id=f"{i:04d}", text=text, dimensions=("x",)) for i, text in enumerate(texts)]
    return samples_of(prompts, 0, count, {})


def names(placed: list) -> list[str]:
    return [f"{item.folder}/{item.name}" for item in placed]


# ---- names


def test_the_whole_suite_has_one_name_each() -> None:
    protocol = VBenchProtocol()
    everything = samples_of(protocol.prompts(), 0, 5, samples_by_dimension(protocol))
    for case_sensitive, others in ((True, 10), (False, 15)):
        placed = place(everything, case_sensitive=case_sensitive)
        keys = [name if case_sensitive else name.casefold() for name in names(placed)]
        assert len(set(keys)) == 6230
        assert sum(item.folder == "videos-2" for item in placed) == others
        assert not any(item.folder == "unnamed" for item in placed)


def test_collisions_and_unsafe_prompts_by_hand() -> None:
    texts = ("a", "A", "a", "x/../../y", ".hidden", "line\nbreak", "é" * 127, "a" * 300, "b\\c")
    assert names(place(samples(*texts), case_sensitive=True)) == [
        "videos/a-0.mp4",
        "videos/A-0.mp4",
        "videos-2/a-0.mp4",
        *(f"unnamed/{number:04d}-0.mp4" for number in (3, 4, 5, 6, 7, 8)),
    ]
    folded = names(place(samples("a", "A", "a"), case_sensitive=False))
    assert folded == ["videos/a-0.mp4", "videos-2/A-0.mp4", "videos-3/a-0.mp4"]


@given(st.lists(st.text(max_size=300), max_size=6))
def test_no_name_leaves_its_folder_or_is_taken_twice(texts: list[str]) -> None:
    placed = place(samples(*texts, count=2), case_sensitive=False)
    assert len({name.casefold() for name in names(placed)}) == 2 * len(texts)
    for item in placed:
        assert is_safe(item.name)
        assert (Path("/out") / item.name).parent == Path("/out")


@given(st.text(), st.integers(0, 99))
def test_a_name_is_read_back(prompt: str, number: int) -> None:
    assert split_stem(video_name(prompt, number).removesuffix(".mp4")) == (prompt, number)


def test_stems_without_a_number() -> None:
    assert split_stem("a cat") is split_stem("a-") is split_stem("a-1x") is split_stem("a-1234567") is None


# ---- recognising files


def touch(folder: Path, *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_bytes(b"")
    return folder


def test_files_by_name(tmp_path: Path) -> None:
    strangers = ("Z-0.mp4", "a-b-7.mp4", "a-b.mp4", "notes.txt")
    folder = touch(tmp_path / "v", "a-b-0.mp4", "a-b-1.GIF", "0001-0.webm", *strangers)
    found = by_name(folder, samples("a-b", "z", "a-b", count=2))
    assert {key: path.name for key, path in found.files.items()} == {
        "0000-0": "a-b-0.mp4",
        "0002-0": "a-b-0.mp4",
        "0000-1": "a-b-1.GIF",
        "0002-1": "a-b-1.GIF",
        "0001-0": "0001-0.webm",
    }
    assert found.missing == ["0001-1"]
    assert found.notes() == [
        "1 of 6 videos are missing: 0001-1",
        "3 files belong to no video of the protocol and are left out: Z-0.mp4, a-b-7.mp4, a-b.mp4",
    ]


def test_two_files_for_one_video(tmp_path: Path) -> None:
    found = by_name(touch(tmp_path / "v", "a-0.gif", "a-0.mp4"), samples("a"))
    assert found.files["0000-0"].name == "a-0.gif"
    assert found.notes() == ["1 files are left out, as their video has another file: a-0.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "m.csv",
            "file,prompt_id,prompt,sample\nx.mp4,0000,,1\ny.mp4,,b,\nz.mp4,0009,,0\ngone.mp4,0000,,0\n",
        ),
        (
            "m.json",
            json.dumps(
                [
                    {"file": "x.mp4", "prompt_id": "0000", "sample": 1},
                    {"file": "y.mp4", "prompt": "b"},
                    {"file": "z.mp4", "prompt_id": "0009"},
                    {"file": "gone.mp4", "prompt_id": "0000", "sample": 0},
                ]
            ),
        ),
    ],
)
def test_a_manifest(name: str, text: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "v", "x.mp4", "y.mp4", "z.mp4")
    (tmp_path / name).write_text(text)
    found = by_manifest(folder, tmp_path / name, samples("a", "b", count=2))
    assert {key: path.name for key, path in found.files.items()} == {"0000-1": "x.mp4", "0001-0": "y.mp4"}
    assert (found.extra, found.absent, found.missing) == (["z.mp4"], ["gone.mp4"], ["0000-0", "0001-1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "expected a list of objects"),
        ("{", "neither .csv nor JSON"),
        ('[{"file": "x.mp4"}]', "video 1: expected file, and prompt_id or prompt"),
        ('[{"file": "../x.mp4", "prompt": "a"}]', "lies outside of the folder"),
        ('[{"file": "/etc/passwd", "prompt": "a"}]', "lies outside of the folder"),
        ('[{"file": "x.mp4", "prompt": "a", "sample": -1}]', "expected a whole number"),
        (f'[{{"file": "x.mp4", "prompt": "a", "sample": "{"1" * 5000}"}}]', "expected a whole number"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_manifests(text: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        by_manifest(tmp_path, path, samples("a"))
    with pytest.raises(UserError, match="cannot be read"):
        by_manifest(tmp_path, tmp_path / "absent.csv", samples("a"))


def test_a_manifest_reaches_no_file_outside_by_a_link(tmp_path: Path) -> None:
    """Neither by a linked file nor through a linked folder; a link to within is like any file."""
    folder = touch(tmp_path / "v", "x.mp4")
    touch(tmp_path / "secret", "own.mp4")
    (folder / "out.mp4").symlink_to(tmp_path / "secret" / "own.mp4")
    (folder / "up").symlink_to(tmp_path / "secret")
    (folder / "in.mp4").symlink_to("x.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    path = tmp_path / "m.json"
    for name in ("out.mp4", "up/own.mp4"):
        path.write_text(json.dumps([{"file": name, "prompt": "a"}]))
        with pytest.raises(UserError, match="is a link to outside of the folder") as caught:
            by_manifest(folder, path, samples("a"))
        assert "\n" not in str(caught.value)
    path.write_text('[{"file": "up/own.mp4", "prompt": "a"}]')
    assert by_manifest(folder, path, samples("a"), follow_links=True).files
    path.write_text('[{"file": "in.mp4", "prompt": "a"}, {"file": "loop.mp4", "prompt": "b"}]')
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # the folder itself may be a link
    found = by_manifest(linked, path, samples("a", "b"))
    assert found.files["0000-0"].resolve() == folder / "x.mp4" and found.absent == ["loop.mp4"]


# ---- a run out, and in again


@pytest.fixture
def made(toy_run: Callable[..., Any], tmp_path: Path) -> Path:
    """A run of the toy model under the small protocol; returns the folder of the call."""
    assert toy_run("--protocol", "vbench-like", "--plugin", PLUGIN, "--no-profile").code == 0
    return tmp_path


def test_out_and_in_again_gives_the_same_scores(made: Path, call: Callable[..., Any]) -> None:
    done = call("export", "out", "--vbench", "--out", "view", "--plugin", PLUGIN)
    assert done.code == 0, done.err
    cell = made / "view" / "bf16-s0"
    assert "bf16-s0: 14 videos" in done.out
    assert "have folders of their own: 0003" in done.err
    assert "cannot name a file are in unnamed/: 0002, 0004" in done.err
    assert sorted(path.name for path in (cell / "videos").iterdir()) == sorted(
        [f"{text}-{i}.mp4" for text in ("a cat", "A cat") for i in (0, 1)]
        + [f"still life - red-{i}.mp4" for i in range(4)]
    )
    assert all(path.is_symlink() for path in (cell / "videos").iterdir())
    command = ("score", str(cell), *SCORE, "--manifest", str(cell / "manifest.json"), "--name", "mine")
    refused = call(*command)
    assert refused.code == 2 and len(refused.errors) == 1 and "--follow-links" in refused.err
    done = call(*command, "--follow-links")
    assert done.code == 0, done.err
    before, after = read_results(made / "out/results.json"), read_results(made / "scored/results.json")
    assert [cell.id for cell in after.cells] == ["mine"]
    assert after.cells[0].scores == before.cells[0].scores
    assert after.cells[0].totals["light"] == before.cells[0].totals["light"]
    table = (made / "scored" / "leaderboard.md").read_text()
    assert "unknown" in table and "given" in table


def test_vbench_s_result_files(made: Path, call: Callable[..., Any]) -> None:
    call("export", "out", "--vbench", "--out", "view", "--plugin", PLUGIN, "--copy")
    cell = made / "view" / "bf16-s0"
    scores = json.loads((cell / "bf16-s0_eval_results.json").read_text())
    results = read_results(made / "out" / "results.json").cells[0]
    assert list(scores) == ["brightness", "flicker"]
    overall, rows = scores["flicker"]
    assert overall == results.dimensions["flicker"].value
    assert [row["video_path"] for row in rows] == [f"videos/still life - red-{i}.mp4" for i in (1, 3)]
    assert all((cell / row["video_path"]).is_file() for row in scores["brightness"][1])
    assert not any(path.is_symlink() for path in cell.rglob("*"))
    info = json.loads((cell / "bf16-s0_full_info.json").read_text())
    assert [entry["prompt_en"] for entry in info][:3] == ["a cat", "A cat", "up/down"]
    assert info[3]["video_list"] == ["videos-2/a cat-0.mp4", "videos-2/a cat-1.mp4"]


def test_an_export_is_repeatable_and_touches_nothing_foreign(made: Path, call: Callable[..., Any]) -> None:
    export = ("export", "out", "--vbench", "--plugin", PLUGIN, "--out")
    assert call(*export, "view").code == call(*export, "view").code == 0
    foreign = made / "mine" / "bf16-s0"
    foreign.mkdir(parents=True)
    (foreign / "precious").write_text("x")
    refused = call(*export, "mine")
    assert (refused.code, (foreign / "precious").read_text()) == (2, "x")
    assert "no earlier export" in refused.err
    assert "did you mean 'bf16-s0'" in call(*export, "view", "--cells", "bf16-s1").err
    assert "--vbench" in call("export", "out", "--out", "view").err
    assert call("export", "nowhere", "--vbench", "--out", "view").code == 2


def folder_of(root: Path, *files: str) -> Path:
    root.mkdir()
    ramp = np.linspace(0, 255, 5 * 32 * 32 * 3).astype(np.uint8).reshape(5, 32, 32, 3)
    for number, name in enumerate(files):
        write_video(root / name, np.roll(ramp, 40 * number, axis=1), 8)
    return root


def test_a_folder_of_anyone_s_videos(call: Callable[..., Any], tmp_path: Path) -> None:
    videos = folder_of(tmp_path / "clips", "a cat-0.mp4", "a cat-1.mp4", "A cat-0.mp4", "other-0.mp4")
    (videos / "A cat-1.mp4").write_bytes(b"")
    done = call("score", "clips", *SCORE)
    assert done.code == 1
    assert "8 of 14 videos are missing: 0002-0, 0002-1, 0004-0 and 5 more" in done.err
    assert "1 files belong to no video of the protocol and are left out: other-0.mp4" in done.err
    assert "no metric is installed for rare: not scored" in done.err
    assert "cannot be decoded" in done.err
    [cell] = read_results(tmp_path / "scored/results.json").cells
    assert (cell.id, cell.source, cell.execution) == ("clips", "given", "unknown")
    # Both prompts "a cat" take the same two files, as VBench does.
    assert [row[:2] for row in cell.scores["brightness"]] == [
        ("0000", 0),
        ("0000", 1),
        ("0001", 0),
        ("0003", 0),
        ("0003", 1),
    ]
    assert cell.mean is None and set(cell.totals.values()) == {None}


def test_again_scores_what_changed_and_forgets_what_is_gone(call: Callable[..., Any], tmp_path: Path) -> None:
    videos = folder_of(tmp_path / "clips", "A cat-0.mp4", "A cat-1.mp4", "a cat-0.mp4")
    assert call("score", "clips", *SCORE).code == 0
    assert "nothing to do" in call("score", "clips", *SCORE).err
    shutil.copy(videos / "a cat-0.mp4", videos / "A cat-0.mp4")
    (videos / "A cat-1.mp4").unlink()
    again = call("score", "clips", *SCORE)
    assert again.code == 0 and "score 1" in again.err
    [cell] = read_results(tmp_path / "scored/results.json").cells
    assert [row[:2] for row in cell.scores["brightness"]] == [("0000", 0), ("0001", 0), ("0003", 0)]
    assert cell.scores["brightness"][0].value == cell.scores["brightness"][1].value


def test_mistakes_are_one_line(call: Callable[..., Any], tmp_path: Path) -> None:
    folder_of(tmp_path / "clips", "other.mp4")
    cases = {
        ("score", "clips"): "--protocol vbench",
        ("score", "clips", *SCORE): "no video of protocol vbench-like is there",
        ("score", "nowhere", *SCORE): "expected a folder of videos",
        ("score", "clips", *SCORE, "--name", "a b"): "--name 'a b'",
        ("score", "clips", *SCORE, "--dimensions", "rare"): "no metric is installed for rare",
        ("score", "clips", *SCORE, "--dimensions", "colour"): "unknown dimension",
        ("score", "clips", "--protocol", "vbnch"): "unknown protocol",
    }
    for arguments, words in cases.items():
        done = call(*arguments)
        assert done.code == 2 and words in done.err, arguments
        assert len([line for line in done.errors if "warning" not in line]) == 1
    folder_of(tmp_path / "good", "A cat-0.mp4")
    assert call("score", "good", *SCORE).code == 0
    assert "--protocol: scored is a run folder" in call("score", "scored", "--protocol", "vbench-like").err
    assert "was made from a folder of videos" in call("score", "scored", "--plugin", PLUGIN).err


# ---- VBench's forms


def test_values_in_vbench_s_form() -> None:
    class Row(dict):
        prompt_id, sample = "0000", 0

        @property
        def value(self) -> float:
            return self["value"]

    class Estimate:
        def __init__(self, value: float, n: int = 1) -> None:
            self.value, self.n, self.expected = value, n, 1

    class Cell:
        scores: ClassVar = {
            name: [Row(value=value)]
            for name, value in (("imaging_quality", 0.7), ("dynamic_degree", 1.0), ("scene", 0.5))
        }
        dimensions: ClassVar = {
            "imaging_quality": Estimate(0.7),
            "dynamic_degree": Estimate(1.0),
            "scene": Estimate(0.5, n=0),
        }

    metrics = {name: f"vbench.{name}" for name in Cell.scores}
    assert submittable(Cell, metrics) == ["imaging_quality", "dynamic_degree"]  # type: ignore[arg-type]
    assert submittable(Cell, {"imaging_quality": "tinyworld.imaging_quality"}) == []  # type: ignore[arg-type]
    made = eval_results(Cell, ["imaging_quality", "dynamic_degree"], {"0000-0": "videos/x-0.mp4"})  # type: ignore[arg-type]
    assert made["imaging_quality"] == [0.7, [{"video_path": "videos/x-0.mp4", "video_results": 70.0}]]
    assert made["dynamic_degree"][1][0]["video_results"] is True


def test_full_info_is_the_package_s_own_apart_from_the_videos() -> None:
    info = {entry["prompt_en"]: entry for entry in full_info(VBenchProtocol().prompts(), {})}
    assert info["alley"]["auxiliary_info"] == {"scene": {"scene": {"scene": "alley"}}}
    assert info["a red bicycle"]["auxiliary_info"] == {"color": {"color": "red"}}
    assert "auxiliary_info" not in info["A person is riding a bike"]
    spatial = info["a bicycle on the left of a car, front view"]["auxiliary_info"]
    assert spatial["spatial_relationship"]["spatial_relationship"]["object_b"] == "car"
