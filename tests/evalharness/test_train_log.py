"""A training's log that is gone, cut or altered: mended from the run's log, or said."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness import trainlog
from evalharness.redaction import redact
from evalharness.results import read_results
from evalharness.runfolder import RunFolder
from tests.evalharness.conftest import files_of

Call = Callable[..., Any]
RUN = ("--methods", "toy-train", "--bits", "3", "--no-profile")
CELL = "toy-train-w3a3-s0"


def cut(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-9])


def changed(log: Path) -> None:
    text = log.read_text()
    digit = next(letter for letter in text if letter.isdigit())
    log.write_text(text.replace(digit, str((int(digit) + 1) % 10), 1))


def replaced_by_noise(log: Path) -> None:
    log.write_bytes(b"\xff\x00[1]\n\n{]\n")


HURTS = [Path.unlink, cut, changed, replaced_by_noise]


@pytest.mark.parametrize("hurt", HURTS)
def test_it_comes_back_to_the_byte(hurt: Callable[[Path], None], toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    log = tmp_path / "out" / "cells" / CELL / "train.jsonl"
    before = files_of(log.parent)
    hurt(log)
    assert files_of(log.parent) != before
    again = toy_run(*RUN)
    assert again.code == 0 and "nothing to do" in again.err
    assert f"cells/{CELL}/train.jsonl was lost or damaged; taken from events.jsonl" in again.err
    assert files_of(log.parent) == before


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (Path.unlink, r"train\.jsonl is gone \(\d+ lines were written\)"),
        (cut, "train.jsonl was changed since its training ended"),
        (changed, "train.jsonl was changed since its training ended"),
        (replaced_by_noise, r"train\.jsonl has 3 lines where \d+ were written"),
    ],
)
def test_without_a_copy_page_tables_and_each_command_say_so(
    hurt: Callable[[Path], None], said: str, toy_run: Call, tmp_path: Path
) -> None:
    import re

    toy_run(*RUN)
    out = tmp_path / "out"
    log, whole = out / "cells" / CELL / "train.jsonl", (out / "cells" / CELL / "train.jsonl").read_bytes()
    (out / "events.jsonl").unlink()
    hurt(log)
    for _ in range(2):
        again = toy_run(*RUN)
        assert again.code == 0 and re.search(f"{CELL}: {said}, and there is no copy", again.err)
    for name in ("report.html", "leaderboard.md"):
        text = (out / name).read_text()
        assert re.search(f"TRAINING LOG of {CELL}: {said}", text), name
        assert "1 training log damaged" in text or name != "report.html"
    assert re.search(said, read_results(out / "results.json").cell(CELL).train_log_damage or "")
    log.write_bytes(whole)
    assert "no copy" not in toy_run(*RUN).err
    assert read_results(out / "results.json").cell(CELL).train_log_damage is None
    assert "TRAINING LOG" not in (out / "report.html").read_text()


def test_a_folder_from_before_logs_were_sealed_says_what_can_be_told(toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    prepare = out / "cells" / CELL / "prepare.json"
    record = json.loads(prepare.read_text())
    assert record.pop("train_log")["lost"] == 0
    del record["crc"]
    prepare.write_text(json.dumps(record))
    (out / "events.jsonl").unlink()
    assert "train.jsonl" not in toy_run(*RUN).err
    with (out / "cells" / CELL / "train.jsonl").open("ab") as file:
        file.write(b"noise\n")
    assert "train.jsonl has 1 line that cannot be read" in toy_run(*RUN).err


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """From now on it can be opened, and reading it is a real input/output error: the first byte of memory."""
    opened: Callable[..., Any] = open

    def without(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        is_it = not isinstance(file, int) and Path(file).absolute() == path
        return opened("/proc/self/mem" if is_it and "r" in mode else file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", without)
    monkeypatch.setattr(io, "open", without)
    with pytest.raises(OSError, match="Errno 5"):
        path.read_bytes()


needs_linux = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")


@needs_linux
@pytest.mark.parametrize("is_copied", [True, False])
def test_a_log_that_the_disk_refuses_comes_back_or_is_told_of(
    is_copied: bool, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    log = out / "cells" / CELL / "train.jsonl"
    if not is_copied:
        (out / "events.jsonl").unlink()
    whole = log.read_bytes()
    log.write_bytes(b"as the disk has it")
    with monkeypatch.context() as patched:
        refuse(patched, log)
        again = toy_run(*RUN)
    assert again.code == 0
    if is_copied:
        assert f"cells/{CELL}/train.jsonl was lost or damaged; taken from events.jsonl" in again.err
        assert log.read_bytes() == whole
    else:
        said = f"{CELL}: train.jsonl cannot be read (Input/output error)"
        assert f"{said}, and there is no copy" in again.err
        assert f"TRAINING LOG of {said}" in (out / "leaderboard.md").read_text()


@needs_linux
@pytest.mark.parametrize("name", ["prepare.json", "samples.jsonl", "scores.jsonl"])
def test_what_the_disk_refuses_and_nobody_can_do_without_is_named(
    name: str, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_run(*RUN)
    path = tmp_path / "out" / "cells" / CELL / name
    (tmp_path / "out" / "events.jsonl").unlink()
    with monkeypatch.context() as patched:
        refuse(patched, path)
        again = toy_run(*RUN)
    assert again.code == 2
    [line] = again.errors
    advice = "mend that and run the same command again, finished work is kept"
    assert line.endswith(f"cells/{CELL}/{name}: Input/output error; {advice}")


@needs_linux
def test_a_log_that_a_training_would_go_on_with_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.jsonl"
    trainlog.add_line(log, {"step": 0}, sums=True)
    with monkeypatch.context() as patched:
        refuse(patched, log)
        with pytest.raises(OSError, match="Errno 5") as caught:
            trainlog.rewind(log, 1)
    assert caught.value.filename == str(log)


@given(st.data())
def test_a_log_under_way_is_held_against_its_sums(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Killed, then any lines lost or altered, then gone on with: what was hurt is missing, in its place."""
    log = tmp_path_factory.mktemp("training") / "train.jsonl"
    written = data.draw(st.integers(1, 8))
    saved = data.draw(st.integers(0, written))
    for step in range(written):
        trainlog.add_line(log, {"step": step, "loss": 0.5}, sums=True)
    lines = log.read_text().splitlines(keepends=True)
    hurt = data.draw(st.sets(st.integers(0, written - 1)))
    how = data.draw(st.sampled_from(["gone", "altered", "no record"]))
    damaged = {"gone": "", "altered": '{"step": 0, "loss": 0.75}\n', "no record": "nonsense\n"}[how]
    log.write_text("".join(damaged if place in hurt else line for place, line in enumerate(lines)))
    lost = {place for place in hurt if place < saved}
    assert trainlog.rewind(log, saved) == len(lost)
    for step in range(saved, 9):
        trainlog.add_line(log, {"step": step, "loss": 0.5}, sums=True)
    sealed = trainlog.seal(log)
    assert sealed is not None and (sealed["lines"], sealed["lost"]) == (9, len(lost))
    files = RunFolder(log.parents[1]).cell("x")
    object.__setattr__(files, "root", log.parent)
    records, problem = trainlog.read_train_log(files, {"train_log": sealed})
    assert [record["step"] for record in records] == [step for step in range(9) if step not in lost]
    assert (problem is not None) == bool(lost)
    assert not [path for path in log.parent.iterdir() if path.name != "train.jsonl"], "the sums are gone"


def test_a_line_hurt_between_the_last_save_and_the_end_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    for step in range(4):
        trainlog.add_line(log, {"step": step}, sums=True)
    log.write_text(log.read_text().replace('{"step": 2}', '{"step": 7}'))
    sealed = trainlog.seal(log)
    assert sealed is not None and sealed["lost"] == 1
    assert log.read_text().splitlines()[2] == '{"event": "lost"}'
    assert trainlog.seal(tmp_path / "none.jsonl") is None


def test_a_copy_with_cr_lf_is_gone_on_with(tmp_path: Path) -> None:
    """As a tool for texts may leave it: no line of it is lost, nor is what it says when it ends."""
    log = tmp_path / "train.jsonl"
    for step in range(3):
        trainlog.add_line(log, {"step": step}, sums=True)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert trainlog.rewind(log, 2) == 0
    assert log.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    log.write_bytes(log.read_bytes().replace(b"\n", b"\r\n"))
    sealed = trainlog.seal(log)
    assert sealed is not None and (sealed["lines"], sealed["lost"]) == (2, 0)
    text = trainlog.copied(log)
    assert text is not None and trainlog.copy_of({"train_log": sealed}, [text]) == text


def test_a_log_that_is_no_text_is_not_copied(tmp_path: Path) -> None:
    """Of a training without sums, on a bad disk: hours of work must not end for the sake of its curve."""
    log = tmp_path / "train.jsonl"
    trainlog.add_line(log, {"step": 0, "event": "rank"}, sums=False)
    log.write_bytes(log.read_bytes().replace(b"rank", b"r\xffnk"))
    assert trainlog.seal(log) is not None and trainlog.copied(log) is None


def test_a_sealed_log_without_a_line_is_whole(tmp_path: Path) -> None:
    files = RunFolder(tmp_path).cell("x")
    files.root.mkdir(parents=True)
    files.train_log.touch()
    sealed = trainlog.seal(files.train_log)
    assert sealed is not None and sealed["lines"] == 0
    assert trainlog.read_train_log(files, {"train_log": sealed}) == ([], None)


def test_the_log_has_no_secret_and_its_copy_still_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_TOKEN", "swordfish-and-more")
    log = tmp_path / "train.jsonl"
    said = {"step": 1, "data": "https://me:pass@host/x", "event": "got swordfish-and-more", "password": "pw"}
    trainlog.add_line(log, {**said, "loss": 0.5}, sums=True)
    text = log.read_text()
    assert not [secret for secret in ("swordfish", "me:pass", '"pw"') if secret in text]
    assert list(json.loads(text)) == [*said, "loss"] and json.loads(text)["loss"] == 0.5
    sealed = trainlog.seal(log)
    assert sealed is not None
    assert trainlog.copy_of({"train_log": sealed}, [redact(trainlog.copied(log))]) == text
