"""Runs inside VBench's own environment: one dimension of the unmodified package over a list of videos.

    python worker.py JOB.json RESULT.json

It imports nothing of the harness. The job is a JSON object: ``dimension``, ``device`` (``cpu``,
``cuda``), ``local``, ``work`` (an empty folder) and ``videos``, a list of ``id``, ``path``, ``prompt``
and ``auxiliary_info``. The result is strict JSON: what was measured for each video, or why not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Judged by a detector of detectron2, which wants a torch.device; motion_smoothness compares the device with
# a string; the others take either.
GRIT = ("object_class", "multiple_objects", "color", "spatial_relationship")
DROPS_VIDEOS = ("color",)
VALUE = "video_results"
ENOUGH_ALIKE = 3  # videos that fail alone with the same words, before the others are not tried


def main() -> int:
    """Read the job, write the result; everything that is printed goes to standard error."""
    os.dup2(2, 1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = {"dimension": job["dimension"], "versions": _versions(), **_run(job)}
    temporary = Path(sys.argv[2] + ".part")
    temporary.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    temporary.replace(sys.argv[2])
    return 0


def _run(job: dict[str, Any]) -> dict[str, Any]:
    try:
        compute = _computer(job)
    except Exception as error:
        return {"error": f"cannot be set up: {_line(error)}", "videos": {}}
    staged: dict[str, Any] = {}
    videos: dict[str, Any] = {}
    for video in job["videos"]:
        problem = _unreadable(video["path"])
        if problem:
            videos[video["id"]] = {"value": None, "error": problem}
        else:
            staged[_stage(Path(job["work"]), video)] = video
    videos.update(_measure(compute, staged, job["dimension"], _Failed()))
    return {"error": _common_error(videos[video["id"]] for video in staged.values()), "videos": videos}


def _common_error(records: Iterable[dict[str, Any]]) -> str | None:
    """What all records complain of: the fault of the dimension then, not of a video."""
    errors = {record.get("error") for record in records}
    return errors.pop() if len(errors) == 1 else None


def _computer(job: dict[str, Any]) -> Any:
    """``compute(paths by video)``: the package's own function with its models' paths."""
    _mend_torchvision()
    _without_gradients()
    from vbench.utils import init_submodules

    dimension = job["dimension"]
    device = job["device"]
    if dimension in GRIT:
        import torch

        device = torch.device(device)
    submodules = init_submodules([dimension], local=job["local"], read_frame=False)[dimension]
    function = getattr(importlib.import_module(f"vbench.{dimension}"), f"compute_{dimension}")
    information = Path(job["work"]) / "full_info.json"
    swallowed = _noted_failures() if dimension in GRIT else []

    def compute(staged: dict[str, Any]) -> Any:
        entries = [
            {
                "prompt_en": video["prompt"],
                "dimension": [dimension],
                "video_list": [path],
                **({"auxiliary_info": video["auxiliary_info"]} if video.get("auxiliary_info") else {}),
            }
            for path, video in staged.items()
        ]
        information.write_text(json.dumps(entries), encoding="utf-8")
        swallowed.clear()
        found = function(str(information), device, submodules)
        if swallowed:
            raise swallowed[0]
        return found

    return compute


def _without_gradients() -> None:
    """Some dimensions keep what gradients would need: scene passes 22 GB on a clip of 64 x 64 pixels."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_grad_enabled(False)


def _noted_failures() -> list[Exception]:
    """Where failures of the detector are put: object_class takes each for an empty picture, a score of 0."""
    from vbench.third_party.grit_model import DenseCaptioning

    noted: list[Exception] = []
    run = DenseCaptioning.run_caption_tensor

    def noting(self: Any, image: Any) -> Any:
        try:
            return run(self, image)
        except Exception as error:
            noted.append(error)
            raise

    DenseCaptioning.run_caption_tensor = noting
    return noted


class _Failed:
    """Videos that failed alone, and whether any passed: what tells a video's fault from the dimension's."""

    def __init__(self) -> None:
        self._alone: list[str] = []
        self._passed = False

    def note(self, error: str | None) -> None:
        """One video by itself: what it failed with; None for any that passed."""
        if error is None:
            self._passed = True
        else:
            self._alone.append(error)

    @property
    def everywhere(self) -> str | None:
        """What all videos fail with, as it seems: so many did, alike, and none passed."""
        alike = len(self._alone) >= ENOUGH_ALIKE and len(set(self._alone)) == 1
        return self._alone[0] if alike and not self._passed else None


def _measure(compute: Any, staged: dict[str, Any], dimension: str, failed: _Failed) -> dict[str, Any]:
    """Records of all staged videos. One that the package cannot take is found by halving the list."""
    if not staged:
        return {}
    if failed.everywhere is not None:
        return {video["id"]: {"value": None, "error": failed.everywhere} for video in staged.values()}
    try:
        _, rows = compute(staged)
    except Exception as error:
        if dimension in DROPS_VIDEOS and isinstance(error, ZeroDivisionError):
            rows = []
        elif len(staged) == 1:
            [video] = staged.values()
            failed.note(_line(error))
            return {video["id"]: {"value": None, "error": _line(error)}}
        else:
            return _halved(compute, staged, dimension, failed)
    failed.note(None)
    return _records(rows, staged, dimension)


def _halved(compute: Any, staged: dict[str, Any], dimension: str, failed: _Failed) -> dict[str, Any]:
    """The first alone, as it tells most of a fault that all share, and then each half of the rest.

    The half behind comes first: what is tried alone lies apart then, and neighbours, which are often broken
    alike, are not taken for all.
    """
    items = list(staged.items())
    middle = (1 + len(items)) // 2
    found: dict[str, Any] = {}
    for part in (items[:1], items[middle:], items[1:middle]):
        found.update(_measure(compute, dict(part), dimension, failed))
    return found


def _records(rows: Any, staged: dict[str, Any], dimension: str) -> dict[str, Any]:
    """The package's rows by video; what it left out without a word is said."""
    found = {str(row["video_path"]): row for row in rows}
    records: dict[str, Any] = {}
    for path, video in staged.items():
        row = found.get(path)
        if row is None:
            left_out = dimension in DROPS_VIDEOS
            error = None if left_out else "vbench left the video out without saying why"
            records[video["id"]] = {"value": None, "error": error, "left_out": left_out}
            continue
        value = _number(row[VALUE])
        records[video["id"]] = {
            "value": value,
            "error": None if value is not None else f"vbench returned {row[VALUE]!r}",
            "extras": {key: _plain(item) for key, item in row.items() if key not in ("video_path", VALUE)},
        }
    return records


def _stage(work: Path, video: dict[str, Any]) -> str:
    """A link in a folder of its own, so that prompts cannot collide; human_action reads its name."""
    folder = work / "videos" / video["id"]
    folder.mkdir(parents=True)
    suffix = ".gif" if video["path"].lower().endswith(".gif") else ".mp4"
    name = f"{video['prompt']}-0{suffix}"
    safe = name.isprintable() and "/" not in name and not name.startswith(".") and len(name.encode()) <= 255
    link = folder / (name if safe else f"video{suffix}")
    link.symlink_to(Path(video["path"]).resolve())
    return str(link)


def _unreadable(path: str) -> str | None:
    """Why a file cannot be scored at all. Two frames are the least that a dimension can compare."""
    import cv2

    capture = cv2.VideoCapture(path)
    try:
        frames = 0
        while frames < 2 and capture.read()[0]:
            frames += 1
    finally:
        capture.release()
    return None if frames == 2 else f"{frames} frames can be read, 2 are needed"


def _mend_torchvision() -> None:
    """A CPU torch beside a CUDA torchvision lacks two operators that its import asks for.

    They are declared, and the one that detectors use, nms, is given; roi_align has a form in Python, which
    torchvision compiles: without a C++ compiler it runs as it is.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return  # the package says so itself where it needs it
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        os.environ.setdefault("TORCHDYNAMO_SUPPRESS_ERRORS", "1")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        _KEPT.append(library)
        boxes: Any = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None


_KEPT: list[Any] = []  # a library that is collected takes its operators with it


def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Indices of the boxes that stay, the surest first: each takes those that overlap it more with it.

    Args:
        boxes: [N, 4], (left, top, right, bottom).
        scores: [N].
        iou_threshold: intersection over union above which the less sure one goes.
    """
    import torch

    order = scores.argsort(descending=True, stable=True)
    left, top, right, bottom = boxes[order].unbind(1)
    areas = (right - left) * (bottom - top)
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            width = (right.clamp(max=right[i]) - left.clamp(min=left[i])).clamp(min=0)
            height = (bottom.clamp(max=bottom[i]) - top.clamp(min=top[i])).clamp(min=0)
            shared = width * height
            gone = shared / (areas + areas[i] - shared) > iou_threshold
            alive[i + 1 :] &= ~gone[i + 1 :]
    return order[alive]


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    """A JSON value: tensors and NumPy numbers become lists and floats, NaN becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    names = (
        "vbench",
        "torch",
        "torchvision",
        "numpy",
        "decord",
        "transformers",
        "pyiqa",
        "timm",
        "detectron2",
    )
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


if __name__ == "__main__":
    sys.exit(main())
