"""Training data: times against hand-worked ones, latents against a direct encode, damage, resume, parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from evalharness.cli.main import main
from evalharness.data import encode as encode_module
from evalharness.data.frames import Bucket, Dropped, choose_bucket, fit, pick_frames, read_clip
from evalharness.data.manifest import read_manifest
from evalharness.data.shards import EncodedClips
from evalharness.data.sources import Clip, read_sources
from evalharness.errors import UserError
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.registry import Registry

Folders = Callable[[str], Path]
SIZE = {"frames": 5, "height": 32, "width": 32, "text_length": 8, "steps": 2}


def picture(value: int, height: int, width: int) -> np.ndarray:
    """One grey value, with a frame of noise that no codec takes for blank."""
    image = np.full((height, width, 3), value, np.uint8)
    image[: height // 4] = np.random.default_rng(value).integers(0, 255, (height // 4, width, 3), np.uint8)
    return image


def write(
    path: Path, times: Sequence[float], height: int = 64, width: int = 64, *, sound: bool = False
) -> Path:
    """A video whose frame at ``times[i]`` seconds has the grey value 3 i + 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(600))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "4"}
        stream.codec_context.time_base = Fraction(1, 600)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(3 * index + 10, height, width), format="rgb24")
            frame.pts, frame.time_base = round(time * 600), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            wave = np.zeros((1, 1024), np.float32)
            block = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            block.sample_rate, block.pts = 8000, 0
            container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def steady(count: int, fps: float) -> list[float]:
    return [index / fps for index in range(count)]


def shown(frames: np.ndarray) -> list[int]:
    """Which of ``write``'s frames these are."""
    return [round((float(frame[-8:].mean()) - 10) / 3) for frame in frames]


def clip(path: Path, caption: str = "a goat") -> Clip:
    return Clip(path.name, path, caption)


def test_frames_are_taken_by_time(tmp_path: Path) -> None:
    """30 fps shown at 8: what is on the screen at 0, 0.125, 0.25 ... seconds."""
    path = write(tmp_path / "a.mp4", steady(60, 30))
    bucket, frames = read_clip(clip(path), 8, [Bucket(9, 32, 32)])
    assert (bucket, frames.shape) == (Bucket(9, 32, 32), (9, 32, 32, 3))
    assert shown(frames) == [0, 3, 7, 11, 15, 18, 22, 26, 30]
    _, frames = read_clip(clip(write(tmp_path / "b.mp4", steady(12, 4))), 8, [Bucket(9, 32, 32)])
    assert shown(frames) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_a_varying_rate_keeps_its_speed(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.5, 2.0]
    _, frames = read_clip(clip(write(tmp_path / "v.mkv", times)), 4, [Bucket(5, 32, 32)])
    assert shown(frames) == [0, 2, 2, 2, 4]  # at 0, 0.25, 0.5, 0.75 and 1 s


def test_picking_by_hand() -> None:
    assert pick_frames([5.0, 5.5, 6.0], 5, 4) == [0, 0, 1, 1, 2]
    assert pick_frames(steady(10, 3), 4, 3) == [0, 1, 2, 3]


def test_the_nearest_bucket() -> None:
    wide, tall, long = Bucket(17, 32, 64), Bucket(17, 64, 32), Bucket(49, 32, 64)
    every = [wide, tall, long]
    assert choose_bucket(72, 128, 3, 8, every) == wide
    assert choose_bucket(128, 72, 3, 8, every) == tall
    assert choose_bucket(72, 128, 6.1, 8, every) == long
    with pytest.raises(Dropped, match=r"needs 2\.00 s"):
        choose_bucket(72, 128, 1.9, 8, every)
    with pytest.raises(Dropped, match="smaller than every bucket"):
        choose_bucket(20, 20, 3, 8, every)


def test_shrunk_then_cut_around_the_middle() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200
    assert (fit(image, 20, 20) == 200).all()
    assert fit(image, 40, 80) is not None and (fit(image, 40, 80) == image).all()


def test_vertical_audio_and_turned_files(tmp_path: Path) -> None:
    path = write(tmp_path / "tall.mp4", steady(20, 10), 96, 48, sound=True)
    bucket, frames = read_clip(clip(path), 8, [Bucket(9, 32, 64), Bucket(9, 64, 32)])
    assert bucket == Bucket(9, 64, 32)
    assert shown(frames)[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("short", "too short"),
        ("cut", "damaged"),
        ("text", "damaged"),
        ("gone", "missing"),
        ("mute", "no caption"),
        ("sound", "no video"),
        ("small", "too small"),
    ],
)
def test_what_is_dropped_and_why(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.mp4"
    if name == "cut":
        data = write(tmp_path / "whole.mp4", steady(60, 10)).read_bytes()
        path.write_bytes(data[: len(data) // 3])
    elif name == "text":
        path.write_text("no video at all")
    elif name == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate = 8000
            container.mux(stream.encode(block))
            container.mux(stream.encode())
    elif name != "gone":
        size = 16 if name == "small" else 64
        write(path, steady(5 if name == "short" else 30, 10), size, size)
    with pytest.raises(Dropped) as caught:
        read_clip(clip(path, "" if name == "mute" else "a goat"), 8, [Bucket(9, 32, 32)])
    assert caught.value.kind == kind, str(caught.value)


def test_sources(tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.mp4", [0.0])
    write(tmp_path / "in" / "deep" / "a.mp4", [0.0])
    (tmp_path / "in" / "b.txt").write_text(" a red boat \n")
    found = read_sources(tmp_path / "in")
    assert [(c.name, c.caption) for c in found] == [("b.mp4", "a red boat"), ("deep/a.mp4", "")]
    table = tmp_path / "in" / "list.csv"
    table.write_text('video,caption\ndeep/a.mp4,"a goat, grey"\n')
    assert read_sources(table) == [Clip("deep/a.mp4", tmp_path / "in" / "deep" / "a.mp4", "a goat, grey")]
    lines = tmp_path / "in" / "list.jsonl"
    lines.write_text(json.dumps({"path": "b.mp4", "text": "a boat"}) + "\n")
    assert read_sources(lines)[0].caption == "a boat"
    table.write_text("name,caption\nx,y\n")
    with pytest.raises(UserError, match="row 1 names no video"):
        read_sources(table)
    table.write_text("video,caption\nb.mp4,y\nb.mp4,z\n")
    with pytest.raises(UserError, match=r"b\.mp4 is named twice"):
        read_sources(table)
    with pytest.raises(UserError, match="expected a folder of clips"):
        read_sources(tmp_path / "nothing.zip")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Seven clips: five good ones in two shapes, one short, one damaged."""
    folder = tmp_path / "clips"
    for number in range(5):
        size = (64, 48) if number == 3 else (48, 64)
        write(folder / f"c{number}.mp4", steady(16, 12), *size)
    write(folder / "short.mp4", [0.0, 0.1], 48, 64)
    (folder / "torn.mp4").write_bytes(b"\0" * 100)
    for path in folder.glob("*.mp4"):
        path.with_suffix(".txt").write_text(f"the boat {path.stem}")
    return folder


def command(folders: Folders, source: Path, out: Path, *more: str) -> list[str]:
    base = ["data", str(source), "--model", "wan", "--weights", str(folders("wan2.1")), "--out", str(out)]
    return [*base, "--generation", json.dumps(SIZE), "--fps", "8", "--chunk", "3",
            "--bucket", "5x32x48", "--bucket", "5x48x32", *more]  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    kept = [*folder.glob("shards/*"), folder / "manifest.json", folder / "report.json"]
    return {path.name: path.read_bytes() for path in kept}


def test_encoded_clips_are_a_direct_encode(
    folders: Folders, clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKLWan

    out = tmp_path / "data"
    assert main(command(folders, clips, out)) == 0
    said = capfd.readouterr().out
    assert "5 of 7 clips encoded; dropped:\n  1 damaged\n  1 too short" in said
    report = json.loads((out / "report.json").read_text())
    assert report["by_bucket"] == {"5x32x48": 4, "5x48x32": 1}
    assert {row["clip"]: row["kind"] for row in report["dropped_clips"]} == {
        "short.mp4": "too short", "torn.mp4": "damaged",
    }  # fmt: skip
    vae = AutoencoderKLWan.from_pretrained(folders("wan2.1"), subfolder="vae").eval()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    words = build_model(Registry(), "wan", ModelOptions(weights=str(folders("wan2.1")), generation=SIZE))
    empty = EncodedClips(out).empty_caption()
    assert empty is not None and torch.equal(empty, words.load("cpu").embed([""])[0].half())
    wrong = out / "empty.safetensors"
    wrong.write_bytes(save({"text": torch.ones_like(empty)}))
    with pytest.raises(UserError, match=r"empty\.safetensors is damaged .*altered since it was written"):
        EncodedClips(out).empty_caption()
    wrong.unlink()
    with pytest.raises(UserError, match=r"empty\.safetensors is damaged .*encode again"):
        EncodedClips(out).empty_caption()
    for shard in read_manifest(out)["shards"]:
        stored = load_file(out / shard["file"])
        bucket = Bucket.parse(shard["bucket"])
        for row, name in enumerate(shard["clips"]):
            _, frames = read_clip(clip(clips / name), 8, [bucket])
            video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.no_grad():
                wanted = (vae.encode(video).latent_dist.mean - mean) / std
            assert torch.equal(stored["latents"][row], wanted[0].half())


def test_encoding_is_deterministic_and_goes_on(
    folders: Folders, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(folders, clips, tmp_path / "whole")) == 0
    assert main(command(folders, clips, tmp_path / "again", "--threads", "4")) == 0
    assert tree(tmp_path / "whole") == tree(tmp_path / "again")

    real, count = encode_module._encode_chunk, 0

    def dies(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(encode_module, "_encode_chunk", dies)
    assert main(command(folders, clips, tmp_path / "killed")) == 130
    with pytest.raises(UserError, match="has no manifest"):
        read_manifest(tmp_path / "killed")
    assert main(command(folders, clips, tmp_path / "killed")) == 0
    assert count == 4  # one, the killed one again, and the third
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")
    assert main(command(folders, clips, tmp_path / "killed")) == 0
    assert count == 4
    shard = sorted((tmp_path / "killed" / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-2])
    assert main(command(folders, clips, tmp_path / "killed")) == 0
    assert count == 5
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")


def test_parts_make_the_same_folder(
    folders: Folders, clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folders, clips, tmp_path / "whole")) == 0
    capfd.readouterr()
    assert main(command(folders, clips, tmp_path / "parts", "--part", "2/2")) == 0
    assert "this part is done" in capfd.readouterr().out
    assert main(command(folders, clips, tmp_path / "parts", "--part", "1/2")) == 0
    assert tree(tmp_path / "whole") == tree(tmp_path / "parts")
    assert main(command(folders, clips, tmp_path / "parts", "--part", "3/2")) == 2


def test_training_reads_them(
    folders: Folders,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Through the command line: trained on the clips; another model's data, or none, is refused."""
    out = tmp_path / "data"
    assert main(command(folders, clips, out)) == 0
    drawn = EncodedClips(out)
    assert len(drawn) == 5
    latents, text = drawn.draw(3, torch.Generator().manual_seed(0))
    assert latents.shape[:2] == (3, 4) and text.shape == (3, 8, 16)
    monkeypatch.chdir(tmp_path)
    settings = json.dumps(
        {"frames": 5, "height": 32, "width": 32, "text_length": 8, "steps": 2, "shift": 3.0}
    )
    recipe = json.dumps({"kd-qat": {"recipe": {"steps": 4, "batch_size": 2, "log_every": 2}}})
    run = ["run", "--model", "wan", "--weights", str(folders("wan2.1")), "--generation", settings,
           "--protocol", "smoke", "--limit", "1", "--workers", "0", "--no-profile", "--methods", "kd-qat",
           "--method-options", recipe, "--output", "out"]  # fmt: skip
    assert main([*run, "--data", str(out)]) == 0
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["identity"]["training_data"] == read_manifest(out)["sha256"]
    capfd.readouterr()
    assert main(run) == 2
    assert "training_data" in capfd.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "model_fingerprint": "0" * 64}))
    assert main([*run, "--data", str(out)]) == 2
    assert "encoded by other weights" in capfd.readouterr().err
    assert main([*run, "--data", str(clips)]) == 2
    assert "make them with: evalharness data" in capfd.readouterr().err


def test_buckets_that_do_not_fit_the_model(
    folders: Folders, clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folders, clips, tmp_path / "x", "--bucket", "6x32x32")) == 2
    assert "frames 6: model wan makes a multiple of 4, plus one" in capfd.readouterr().err
    assert main(command(folders, clips, tmp_path / "x", "--bucket", "6x32")) == 2
    assert "expected FRAMESxHEIGHTxWIDTH" in capfd.readouterr().err


def test_one_clip_in_fifty_is_held_out(tmp_path: Path) -> None:
    """Clips tell their number by their latents: what is trained on and what is not never meet."""
    from safetensors.torch import save_file

    (tmp_path / "shards").mkdir()
    shards = []
    for part in range(2):
        numbers = torch.arange(part * 60, part * 60 + 60).half().view(-1, 1, 1, 1, 1)
        file = f"shards/{part}.safetensors"
        save_file({"latents": numbers, "text": torch.zeros(60, 1, 1).half()}, tmp_path / file)
        shards.append({"file": file, "bucket": "5x32x32", "sha256": "", "clips": [""] * 60})
    manifest = {"schema_version": 1, "sha256": "", "model_fingerprint": "", "clips": 120, "shards": shards}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    clips = EncodedClips(tmp_path)
    generator = torch.Generator().manual_seed(0)
    trained = {int(x) for _ in range(60) for x in clips.draw(20, generator)[0].flatten()}
    held = {int(x) for _ in range(10) for x in clips.draw(20, generator, held_out=True)[0].flatten()}
    assert held == {0, 50, 100}
    assert trained == set(range(120)) - held
    assert len(clips) == 117


def test_the_empty_caption_counts_as_training_data(tmp_path: Path) -> None:
    """Other words in place of none are other data, though every clip is the same."""
    shard = {"file": "shards/a.safetensors", "bucket": "5x32x32", "sha256": "1", "clips": ["x"]}
    found = []
    for name in ("2", "2", "3"):
        encoding = encode_module.Encoding(fps=8, buckets=(Bucket(5, 32, 32),))
        record = {"shards": [shard], "dropped": []}
        empty = {"file": "empty.safetensors", "sha256": name}
        encode_module._finish([record], 1, "model", encoding, tmp_path, empty)
        found.append(read_manifest(tmp_path)["sha256"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": [{"file": "../a.safetensors", "bucket": "5x32x32", "sha256": "1", "clips": []}]},
        {"shards": [{"file": "/a.safetensors", "bucket": "5x32x32", "sha256": "1", "clips": []}]},
        {"shards": [{"file": "a\\..\\b", "bucket": "5x32x32", "sha256": "1", "clips": []}]},
        {"shards": [{"bucket": "5x32x32", "sha256": "1", "clips": []}]},
        {"shards": ["a"]},
        {"empty_caption": {"file": "a"}},
        {"empty_caption": []},
    ],
)
def test_a_manifest_names_files_of_its_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    manifest = {"schema_version": 1, "sha256": "", "model_fingerprint": "", "clips": 1, "shards": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(UserError, match="no file here; encode again"):
        read_manifest(tmp_path)


def test_a_damaged_shard_is_one_line(tmp_path: Path) -> None:
    shard = {"file": "a.safetensors", "bucket": "5x32x32", "sha256": "1", "clips": ["x"]}
    manifest = {"schema_version": 1, "sha256": "", "model_fingerprint": "", "clips": 1, "shards": [shard]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for data in (b"", b"x" * 40, save({"latents": torch.zeros(1)}), save({"text": torch.zeros(1)})):
        (tmp_path / "a.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.safetensors is damaged .*encode again"):
            EncodedClips(tmp_path).row("a.safetensors", 0)
